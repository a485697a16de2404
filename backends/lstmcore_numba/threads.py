"""Work on rows of a batch side by side. Kernels release the interpreter lock, so that Python's own threads do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Final

from lstmcore.threads import asked_threads

#: Multiply-adds below which handing work to a thread costs more than it saves.
WORTH: Final = 2_000_000
#: Threads of a process at most.
_MOST: Final = 256
#: Rows of a part at least: a tile full of them.
ROWS: Final = 6


def thread_count() -> int:
    """``LSTMCORE_NUM_THREADS``, else the processors that this process may use.

    Raises
    ------
    ValueError
        The variable is not a whole number of at least 1.
    """
    asked = asked_threads()
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Team:
    """The threads of this process, and how many of them are free."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.busy = 0
        self.pool = ThreadPoolExecutor(_MOST, thread_name_prefix="lstmcore-numba")

    def take(self, wanted: int) -> int:
        """Take up to `wanted` threads; what others have taken is not there, so that no call waits for another."""
        with self.lock:
            taken = max(0, min(wanted, thread_count() - 1 - self.busy, _MOST - self.busy))
            self.busy += taken
            return taken

    def give(self, taken: int) -> None:
        """Give them back."""
        with self.lock:
            self.busy -= taken


@lru_cache(maxsize=1)
def _team(process: int) -> _Team:
    """The team of this process; a forked one has its own."""
    return _Team()


def share(work: Callable[[int, int], None], size: int, least: int, cost: float) -> None:
    """Call ``work(first, last)`` for parts of `size`, of `least` each or more, on the threads that are free.

    `cost` is how many multiply-adds they take together.
    """
    with_threads(lambda part, parts: work(size * part // parts, size * (part + 1) // parts), size // least, cost)


def with_threads(work: Callable[[int, int], None], most: int, cost: float) -> None:
    """Call ``work(part, parts)`` for every part side by side, with at most `most` parts: all of them run at once."""
    wanted = int(min(most, cost // WORTH)) - 1
    if wanted < 1 or (wanted := min(wanted, thread_count() - 1)) < 1:
        work(0, 1)
        return
    team = _team(os.getpid())
    taken = team.take(wanted)
    try:
        others = [team.pool.submit(work, part, taken + 1) for part in range(1, taken + 1)]
        work(0, taken + 1)
        for other in others:
            other.result()
    finally:
        team.give(taken)
