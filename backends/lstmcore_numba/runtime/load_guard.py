"""When a pass is not shared among threads because other processes need the processors."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Final

from lstmcore_numba.runtime.waiting_time import PROCESS_CLOCK, Clock, ThreadClock, find_clock

#: Threads of a pass beside its caller whose clocks are read; they stand for the others.
SAMPLED: Final = 7


class LoadGuard(threading.local):
    """Decides for each calling thread whether a pass may be shared.

    A thread that waits for a processor stops the others of its pass at their next barrier. If threads that share a pass
    waited so long that half of what sharing gains may be lost, the next pass runs on its caller alone. Each further
    time twice as many passes do, and each shared pass without such waits halves their number. Results have the same
    bits for any number of threads.
    """

    def __init__(self) -> None:
        self.pause, self.left = 0, 0
        self.shared: _SharedPass | None = None
        self._own: ThreadClock | None = None

    def allows(self, longest_pause: int) -> bool:
        """Return whether the next pass of this thread may be shared.

        Parameters
        ----------
        longest_pause
            Passes in a row that are not shared at most; 0 allows every pass.
        """
        self.left = min(self.left, longest_pause)
        if self.left > 0:
            self.left -= 1
            return False
        return True

    def begin(self, clocks: Sequence[Clock | None], threads: int, now: float) -> None:
        """Begin a shared pass.

        Parameters
        ----------
        clocks
            Those of `SAMPLED` of the other threads, or of all. If there are none, or one is None, losses of the whole
            process count in their place.
        threads
            Threads of the pass, the caller included.
        now
            Seconds that a clock shows.
        """
        own = self._own_clock() if clocks else None
        self.shared = _SharedPass((own, *clocks), threads, now)

    def finish(self, longest_pause: int, now: float) -> None:
        """Judge the pass that began last; what its caller does between passes is no part of it.

        Parameters
        ----------
        longest_pause
            As for `allows`.
        now
            Seconds that a clock shows.
        """
        if self.shared is not None:
            lost, self.shared = self.shared.is_lost(now), None
            self.pause = min(longest_pause, max(1, 2 * self.pause)) if lost else self.pause // 2
            self.left = self.pause if lost else 0

    def _own_clock(self) -> Clock | None:
        """Return the clock of the calling thread. A forked process needs another one than its parent."""
        if self._own is None or self._own.process != os.getpid() or not self._own.is_open:
            self._own = find_clock(threading.get_native_id())
        return self._own


class _SharedPass:
    """A pass that several threads share, and what their clocks showed when it began."""

    def __init__(self, clocks: Sequence[Clock | None], threads: int, begin: float) -> None:
        known = [clock for clock in clocks if clock is not None]
        whole = len(known) == len(clocks)
        self.clocks: Sequence[Clock] = known if whole else (PROCESS_CLOCK,)
        self.threads, self.stand_for = threads, threads / len(known) if whole else 1.0
        self.begin, self.before = begin, self._waited()

    def _waited(self) -> float:
        return sum(clock.seconds() for clock in self.clocks)

    def is_lost(self, now: float) -> bool:
        """Return whether waits may have cost half of what sharing gains: a wait may stop all threads of the pass."""
        gain = (1 - 1 / self.threads) * (now - self.begin)
        return (self._waited() - self.before) * self.stand_for > gain / 2


LOAD_GUARD: Final = LoadGuard()
