"""The plug-in of the backend ``reference``. Its kernel is imported on first use."""

from __future__ import annotations

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.hookspecs import BackendInfo, hookimpl


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version and summary of the backend."""
    return BackendInfo("reference", __version__, "the equations of SPEC.md in float64, not made for speed")


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_reference.kernel import ReferenceBackend

    return ReferenceBackend()
