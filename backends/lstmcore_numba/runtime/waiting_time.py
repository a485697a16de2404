"""How long threads of this process have been ready to run without a processor, by the system's own count."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Final, Protocol

#: Seconds that a thread is away for once the system has taken its processor, about: a time slice. Used where the system
#: counts how often that happens and not how long it takes.
SLICE_SECONDS: Final = 2.5e-3


class Clock(Protocol):
    """Anything that tells a time of waiting."""

    def seconds(self) -> float:
        """Return the seconds waited since some point."""


class ThreadClock:
    """The time that one thread of this process has waited, which Linux counts. A reading takes about 1 us.

    Parameters
    ----------
    thread
        The system's number of the thread.

    Raises
    ------
    OSError
        This system does not count it, or the thread has ended.
    """

    def __init__(self, thread: int) -> None:
        self.process = os.getpid()
        self._file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def seconds(self) -> float:
        """Return the seconds that the thread has been ready to run and had no processor; 0 after its end."""
        return self._read()[1] * 1e-9

    @property
    def counts(self) -> bool:
        """Whether the system counts: it shows zeros if it does not, even for a thread that has run."""
        return self._read()[0] > 0

    def _read(self) -> list[int]:
        """Return the nanoseconds on a processor and those of waiting, and the number of time slices."""
        try:
            return [int(number) for number in os.pread(self._file, 64, 0).split()]
        except ProcessLookupError:
            return [0, 0, 0]

    def __del__(self) -> None:
        """Close the file; there is none if the constructor raised."""
        if hasattr(self, "_file"):
            os.close(self._file)


class LossClock:
    """About the time that all threads of this process have waited, by how often they lost their processor.

    Parameters
    ----------
    count
        Returns how often the system has taken a processor from a thread of this process.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def seconds(self) -> float:
        """Return the number of losses times `SLICE_SECONDS`."""
        return self._count() * SLICE_SECONDS


def _find_process_clock() -> Clock:
    try:
        import resource
    except ImportError:  # Windows does not count it
        return LossClock(lambda: 0)
    return LossClock(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)


#: For systems that do not count the time of each thread.
PROCESS_CLOCK: Final = _find_process_clock()


@cache
def _has_thread_clocks() -> bool:
    try:
        return ThreadClock(threading.get_native_id()).counts
    except OSError:
        return False


def find_clock(thread: int | None) -> Clock | None:
    """Return the clock of a thread; None if this system has none for single threads, or the thread has ended."""
    if thread is None or not _has_thread_clocks():
        return None
    try:
        return ThreadClock(thread)
    except OSError:
        return None
