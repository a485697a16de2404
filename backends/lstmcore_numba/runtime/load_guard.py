"""When a pass is not shared among threads because other processes need the processors."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final


def _find_counter() -> Callable[[], int]:
    """Return a function for the number of times that the system took a processor from a thread of this process."""
    try:
        import resource
    except ImportError:  # Windows does not count it
        return lambda: 0
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


count_lost_processors: Final = _find_counter()
#: Times in a second that a thread of a shared pass may lose its processor. A system without other work takes it some 15
#: times a second, one process that spins beside two threads takes theirs 200 times each.
QUIET_LOSSES_PER_SECOND: Final = 50


class LoadGuard(threading.local):
    """Decides for each calling thread whether a pass may be shared.

    A thread that has lost its processor stops the others of its pass at their next barrier, for milliseconds. So after
    a shared pass during which the system took processors from this process more often than it does without other work,
    the next pass runs on its caller alone. Each further time twice as many passes do, and each shared pass without such
    losses halves their number. Results have the same bits for any number of threads.
    """

    def __init__(self) -> None:
        self.pause, self.left = 0, 0
        self.before_shared: int | None = None
        self.begin, self.threads, self.longest = 0.0, 1, 0.0

    def allows(
        self, lost_processors: int, longest_pause: int, *, seconds: float, threads: int, longest: float = math.inf
    ) -> bool:
        """Return whether the next pass of this thread may be shared.

        Parameters
        ----------
        lost_processors
            What `count_lost_processors` returns now.
        longest_pause
            Passes in a row that are not shared at most; 0 allows every pass.
        seconds
            What a clock shows now.
        threads
            Threads that would share the pass.
        longest
            Seconds that the pass takes at most, about: what its caller does afterwards excuses no losses.
        """
        if self.before_shared is not None:
            quiet = QUIET_LOSSES_PER_SECOND * self.threads * min(seconds - self.begin, self.longest)
            lost, self.before_shared = lost_processors - self.before_shared > quiet, None
            self.pause = min(longest_pause, max(1, 2 * self.pause)) if lost else self.pause // 2
            self.left = self.pause if lost else 0
        self.left = min(self.left, longest_pause)
        if self.left > 0:
            self.left -= 1
            return False
        self.before_shared, self.begin, self.threads, self.longest = lost_processors, seconds, threads, longest
        return True


LOAD_GUARD: Final = LoadGuard()
