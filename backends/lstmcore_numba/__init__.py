"""The plug-in of the backend ``numba``; its kernel is imported when it is asked for."""

from __future__ import annotations

from importlib.util import find_spec

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.hookspecs import BackendInfo, hookimpl


def _unavailable() -> str | None:
    if find_spec("numba") is None:
        return "numba is not installed; install it with: pip install 'lstmcore[numba]'"
    return None


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Tell what the backend is."""
    summary = "vector code made for this processor and this LSTM"
    return BackendInfo("numba", __version__, summary, unavailable=_unavailable, priority=200)


@hookimpl
def lstmcore_backend() -> Backend:
    """Make the backend."""
    from lstmcore_numba.kernel import NumbaBackend

    return NumbaBackend()
