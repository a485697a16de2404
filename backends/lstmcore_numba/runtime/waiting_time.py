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
    """The time that one thread of this process has waited, which Linux counts. A reading takes about 3 us.

    Parameters
    ----------
    thread
        The system's number of the thread.

    Attributes
    ----------
    is_open
        Whether the last reading found the file; a new clock is needed if it did not.

    Raises
    ------
    OSError
        This system does not count it, or the thread has ended.
    """

    def __init__(self, thread: int) -> None:
        self.process = os.getpid()
        self._file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._identity, self.is_open = _identity(self._file), True

    def seconds(self) -> float:
        """Return the seconds that the thread has been ready to run and had no processor; 0 if it cannot be read."""
        numbers = self.read()
        return numbers[1] * 1e-9 if numbers else 0.0

    def read(self) -> list[int]:
        """Return the nanoseconds on a processor and those of waiting, and the number of time slices.

        The list is empty after the end of the thread, and if somebody else closed the file, as ``os.closerange`` does.
        Then its number may be that of another file.
        """
        self.is_open = self.is_open and _identity(self._file) == self._identity
        if not self.is_open:
            return []
        try:
            return [int(number) for number in os.pread(self._file, 64, 0).split()]
        except (OSError, ValueError):  # no call may fail by what only decides its number of threads
            return []

    def __del__(self) -> None:
        """Close the file, if the constructor opened one and nobody closed it."""
        if hasattr(self, "_identity") and _identity(self._file) == self._identity:
            os.close(self._file)


def _identity(file: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
    """Return whether the system counts: it has no such file if it does not, or zeros in it.

    Raises
    ------
    OSError
        It cannot be told now, for example since no more files can be opened.
    """
    try:
        return any(ThreadClock(threading.get_native_id()).read())
    except (FileNotFoundError, NotADirectoryError):
        return False


def find_clock(thread: int | None) -> ThreadClock | None:
    """Return the clock of a thread; None if this system has none for single threads, or the thread has ended."""
    if thread is None:
        return None
    try:
        return ThreadClock(thread) if _has_thread_clocks() else None
    except OSError:
        return None
