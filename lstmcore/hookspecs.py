"""The hooks of a backend plug-in. They find a backend; they are never called inside a time step.

A plug-in is a light module, named by an entry point of the group ``lstmcore.backends``, that has both hooks. It
imports neither its kernel nor anything large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pluggy

from lstmcore.backend import Backend

PROJECT: Final = "lstmcore"
GROUP: Final = "lstmcore.backends"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


def _present() -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """The description of a backend, known before its kernel is imported.

    Attributes
    ----------
    name
        The name of its entry point.
    version
        Version of the distribution that brings it.
    summary
        One line.
    unavailable
        Called without arguments; returns why the backend cannot run here (with the install line if a package is
        missing), or None if it can. Must be quick.
    priority
        Rank for ``backend="auto"``, which takes the available backend with the highest one that declares the LSTM;
        equal ranks go by name. None, the default, is never taken by ``auto``. The backends of this project have
        300 (cupy), 200 (numba) and 100 (numpy).

    Examples
    --------
    >>> info = BackendInfo("mine", "1.0", "every switch, slowly", lambda: "it needs a GPU; found none")
    >>> info.unavailable()
    'it needs a GPU; found none'
    >>> info.priority is None
    True
    """

    name: str
    version: str
    summary: str
    unavailable: Callable[[], str | None] = _present
    priority: int | None = None


@hookspec(firstresult=True)
def lstmcore_backend_info() -> BackendInfo:  # type: ignore[empty-body]  # a specification has no body
    """Describe the backend without importing its kernel.

    Examples
    --------
    >>> import lstmcore_numpy  # a plug-in is a module that has both hooks
    >>> lstmcore_numpy.lstmcore_backend_info().name
    'numpy'
    """


@hookspec(firstresult=True)
def lstmcore_backend() -> Backend:  # type: ignore[empty-body]  # a specification has no body
    """Make the backend; only called if `BackendInfo.unavailable` gave no reason.

    Examples
    --------
    >>> import lstmcore_numpy
    >>> sorted(lstmcore_numpy.lstmcore_backend().capabilities().precisions)
    ['float16', 'float32', 'float64']
    """
