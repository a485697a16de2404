"""The plug-in: two hooks. The kernel is imported on first use."""

from __future__ import annotations

from lstmcore.backend import Backend
from lstmcore.hookspecs import BackendInfo, hookimpl


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version and summary of the backend."""
    return BackendInfo("example", "0.1.0", "the plain LSTM, one step at a time")


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_example.kernel import ExampleBackend

    return ExampleBackend()
