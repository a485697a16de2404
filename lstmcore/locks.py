"""Locks that a forked process gets anew.

A fork copies a lock in the state that it has. If another thread held it, no thread of the new process can release it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final


class ForkSafeLock:
    """Owner of a lock, which is free in a forked process. Use it as ``with owner.lock:``.

    The owner is no context manager itself: an exception of a signal could leave its ``__enter__`` with the lock held.
    No such exception arrives between a `with` statement and a lock that is written in C.

    Parameters
    ----------
    make
        Makes the lock: `threading.Lock` or `threading.RLock`.
    """

    def __init__(self, make: Callable[[], Any] = threading.Lock) -> None:
        self._make = make
        self.renew()
        _OWNERS.add(self)

    def renew(self) -> None:
        """Replace the lock by a new one. Only right where no other thread runs, as in a process just forked."""
        self.lock = self._make()


_OWNERS: Final[weakref.WeakSet[ForkSafeLock]] = weakref.WeakSet()


def _renew_all() -> None:
    for owner in list(_OWNERS):
        owner.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
