"""The plug-in of the backend ``numpy``. Its kernel is imported on first use."""

from __future__ import annotations

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.hookspecs import BackendInfo, hookimpl


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version, summary and priority of the backend."""
    return BackendInfo("numpy", __version__, "every switch on NumPy: one matrix product a step", priority=100)


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_numpy.kernel import NumpyBackend

    return NumpyBackend()
