"""The plug-in of the backend ``reference``; its kernel is imported when it is asked for."""

from __future__ import annotations

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.hookspecs import BackendInfo, hookimpl


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Tell what the backend is."""
    return BackendInfo("reference", __version__, "the equations of SPEC.md in float64, not made for speed")


@hookimpl
def lstmcore_backend() -> Backend:
    """Make the backend."""
    from lstmcore_reference.kernel import ReferenceBackend

    return ReferenceBackend()
