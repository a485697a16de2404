"""The plug-in of the backend ``numpy``; its kernel is imported when it is asked for."""

from __future__ import annotations

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.hookspecs import BackendInfo, hookimpl


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Tell what the backend is."""
    return BackendInfo("numpy", __version__, "every switch on NumPy: one matrix product a step")


@hookimpl
def lstmcore_backend() -> Backend:
    """Make the backend."""
    from lstmcore_numpy.kernel import NumpyBackend

    return NumpyBackend()
