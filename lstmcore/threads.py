"""The number of threads that the user asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

THREADS_VARIABLE: Final = "LSTMCORE_NUM_THREADS"
#: The number of `using_threads`, in this thread.
_OWN: Final[ContextVar[int | None]] = ContextVar("lstmcore_threads", default=None)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Make `asked_threads` return `count` in this thread, whatever the variable says.

    The variable is that of the process, in which threads may run tasks of several commands.
    """
    token = _OWN.set(count)
    try:
        yield
    finally:
        _OWN.reset(token)


def asked_threads() -> int | None:
    """Return the number of `using_threads`, else that in ``LSTMCORE_NUM_THREADS``, or None if it is not set.

    Raises
    ------
    ValueError
        The variable is not a whole number of at least 1.
    """
    own = _OWN.get()
    if own is not None:
        return own
    asked = os.environ.get(THREADS_VARIABLE)
    if asked is None:
        return None
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"{THREADS_VARIABLE}: expected a whole number of at least 1; got {asked!r}")
    return int(asked)
