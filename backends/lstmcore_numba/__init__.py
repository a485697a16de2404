"""The plug-in of the backend ``numba``; its kernel is imported when it is asked for."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.extras import installing
from lstmcore.hookspecs import BackendInfo, hookimpl


def _unavailable() -> str | None:
    if find_spec("numba") is None:
        return f"numba is not installed; install it with: {installing('numba')}"
    if _compiler_disabled():
        return "NUMBA_DISABLE_JIT tells Numba to compile nothing, and this backend is compiled code; unset it"
    return None


def _compiler_disabled() -> bool:
    """Return whether Numba hands out functions that are not compiled. Numba itself is not imported for that."""
    if "numba" in sys.modules:
        return bool(sys.modules["numba"].config.DISABLE_JIT)
    try:
        return int(os.environ.get("NUMBA_DISABLE_JIT", "0")) != 0
    except ValueError:  # Numba warns and takes it for 0
        return False


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
