"""The worker threads of this process.

They start at their first use. After a pass they spin for new work for two milliseconds (`worker_loop`), then they sleep
until this module wakes them.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore.threads import asked_threads
from lstmcore_numba.runtime.barrier import spin
from lstmcore_numba.runtime.load_guard import LOAD_GUARD, SAMPLED
from lstmcore_numba.runtime.waiting_time import ThreadClock, find_clock
from lstmcore_numba.runtime.worker_loop import Mailbox, WorkerState, run_worker
from lstmcore_numba.tuning import WORKER_SPIN_SECONDS, Tuning

_CACHE_LINE_BYTES: Final = 64
#: The `threads` argument of a pass on the calling thread alone.
CALLER_ALONE: Final = np.zeros(1, np.int64)

#: Seconds of work on one processor from which the clock of each thread is read: two readings take 6 us a thread.
_CLOCKS_SECONDS: Final = 5e-4


def thread_count() -> int:
    """Return ``LSTMCORE_NUM_THREADS``, else the number of processors that this process may use.

    Raises
    ------
    ValueError
        The variable is not a whole number of at least 1.
    """
    asked = asked_threads()
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def spins_per_second() -> float:
    """Measure how often a waiting thread reads in a second. Processors differ by a factor of ten."""
    spin(CALLER_ALONE.ctypes.data, 100)
    start = time.perf_counter()
    spin(CALLER_ALONE.ctypes.data, 10_000)
    return 10_000 / (time.perf_counter() - start)


def _find_current_processor() -> Callable[[], int] | None:
    """Return the system's function for the caller's processor; None if the system cannot move threads."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    function: Callable[[], int] | None = getattr(ctypes.CDLL(None), "sched_getcpu", None)
    return function


_CURRENT_PROCESSOR: Final = _find_current_processor()


def _allowed_processors() -> set[int]:
    """Return the processors that the caller may run on; none if the system does not tell."""
    try:
        return os.sched_getaffinity(0)
    except OSError:
        return set()


def _restrict(thread: int, processors: set[int]) -> None:
    """Let a thread run on these processors alone, if the system allows that.

    A container may refuse it, or may have lost a processor since. The thread then starts later, and nothing else
    changes.
    """
    with suppress(OSError):
        os.sched_setaffinity(thread, processors)


class Worker(threading.Thread):
    """A thread with its mailbox.

    Its code is compiled before the thread starts, so that a call does not wait for it.
    """

    def __init__(self) -> None:
        super().__init__(name="lstmcore-numba", daemon=True)
        memory = np.zeros(3 * _CACHE_LINE_BYTES // 8, np.int64)
        start = (-memory.ctypes.data % _CACHE_LINE_BYTES) // 8
        self.mailbox = memory[start : start + _CACHE_LINE_BYTES // 8]
        self.address = self.mailbox.ctypes.data
        self.asleep = threading.Lock()
        self.asleep.acquire()
        self.spin_limit = int(WORKER_SPIN_SECONDS * spins_per_second())
        self.mailbox[Mailbox.STATE // 8] = WorkerState.IDLE
        run_worker(self.address, 0)  # finds no task, and leaves the state ASLEEP
        self.affinity: set[int] = set()
        self.is_waking = self.is_retired = False
        self._clock: ThreadClock | None = None

    @property
    def state(self) -> WorkerState:
        """The integer that passes and the worker change in compiled code."""
        return WorkerState(int(self.mailbox[Mailbox.STATE // 8]))

    def run(self) -> None:
        """Sleep until `wake` is called, then run tasks; again and again."""
        while True:
            self.asleep.acquire()
            if self.is_retired:
                return
            if self.affinity:
                _restrict(0, self.affinity)
            run_worker(self.address, self.spin_limit)

    def wake(self) -> None:
        """Let the worker spin for tasks, on another processor than the caller's, unless it does already.

        Linux puts a woken thread on the processor of the thread that woke it, and leaves it there for some
        milliseconds. So the worker may not run on that processor until it has started.

        An exception of a signal may end this method at any point. Then `is_waking` stays true, and the next call wakes
        the worker again: a worker that runs already goes to sleep once later.
        """
        asleep = self.state == WorkerState.ASLEEP
        if not asleep and not self.is_waking:
            return
        self.is_waking = True
        if asleep:
            if _CURRENT_PROCESSOR is not None and self.native_id is not None:
                self.affinity = _allowed_processors()
                others = self.affinity - {_CURRENT_PROCESSOR()}
                if others:
                    _restrict(self.native_id, others)
            self.mailbox[Mailbox.STATE // 8] = WorkerState.IDLE
        self._let_run()
        self.is_waking = False

    def clock(self) -> ThreadClock | None:
        """Return the clock of the time that the thread has waited for a processor; None if the system has none."""
        if self._clock is None or not self._clock.is_open:
            self._clock = find_clock(self.native_id)
        return self._clock

    def retire(self) -> None:
        """End the thread, if it sleeps or has not begun."""
        self.is_retired = True
        self._let_run()

    def _let_run(self) -> None:
        if self.asleep.locked():
            self.asleep.release()


class ThreadPool:
    """The workers of one process.

    The pool does not hand workers out. A pass takes them by their states (`worker_loop.run_parts`), so none is lost if
    an exception keeps a caller from its pass.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workers: list[Worker] = []

    def acquire(self, wanted: int, limit: int | None = None) -> list[Worker]:
        """Return up to `wanted` workers that no pass has, awake. No call waits for workers of another pass.

        At most `limit` threads (None: `thread_count`) work at a time, the caller included.
        """
        with self.lock:
            states = {worker: worker.state for worker in self.workers}
            awake = [worker for worker, state in states.items() if state == WorkerState.IDLE]
            free = awake + [worker for worker, state in states.items() if state == WorkerState.ASLEEP]
            busy = len(states) - len(free)
            wanted = max(0, min(wanted, (limit or thread_count()) - 1 - busy))
            while len(free) < wanted:
                free.append(self._start())
            for worker in free[:wanted]:
                worker.wake()
        return free[:wanted]

    def _start(self) -> Worker:
        """Start a worker. If an exception ends this, as one of a signal may, the pool does not know the worker."""
        worker = Worker()
        try:
            worker.start()
            self.workers.append(worker)
        except BaseException:
            self.workers = [other for other in self.workers if other is not worker]
            worker.retire()
            raise
        return worker


_POOLS: Final[dict[int, ThreadPool]] = {}


def thread_pool(process: int) -> ThreadPool:
    """Return the pool of the process with this id: a forked process has another one.

    Threads that ask at the same time get the same pool, which `dict.setdefault` alone decides.
    """
    return _POOLS.get(process) or _POOLS.setdefault(process, ThreadPool())


class PassSize(NamedTuple):
    """How far a pass can be split.

    Attributes
    ----------
    max_threads
        Parts into which it can be split at most.
    work
        Multiply-adds.
    """

    max_threads: int
    work: float


def run_pass(
    function: Callable[..., None], args: tuple[Any, ...], size: PassSize, limit: int | None, tuning: Tuning
) -> None:
    """Call ``function(threads, *args)``, a pass of `time_loop`, and judge whether sharing it paid; see `LoadGuard`.

    Parameters
    ----------
    function, args
        The pass, and its arguments after `threads`.
    size, limit, tuning
        As for `acquire_threads`.
    """
    threads = acquire_threads(size, limit, tuning)
    function(threads, *args)
    if threads is not CALLER_ALONE:
        LOAD_GUARD.finish(tuning.load_pause, time.monotonic())


def acquire_threads(size: PassSize, limit: int | None, tuning: Tuning) -> npt.NDArray[Any]:
    """Wake workers for a pass and return its argument `threads` (see `worker_loop.run_parts`), for this pass alone.

    Parameters
    ----------
    size
        The pass.
    limit
        Threads that the caller allows, None for `thread_count`.
    tuning
        When a thread is worth its cost, and how long to wait for it.
    """
    max_threads, work = size
    if max_threads <= 1 or work < 2 * tuning.thread_work:
        return CALLER_ALONE
    limit = limit or thread_count()
    wanted = min(max_threads, int(work // tuning.thread_work), limit) - 1
    if wanted < 1 or not LOAD_GUARD.allows(tuning.load_pause):
        return CALLER_ALONE
    seconds = work / tuning.work_per_second
    workers = thread_pool(os.getpid()).acquire(wanted, limit)
    if not workers:
        return CALLER_ALONE
    clocks = [worker.clock() for worker in workers[:SAMPLED]] if seconds >= _CLOCKS_SECONDS else []
    LOAD_GUARD.begin(clocks, 1 + len(workers), time.monotonic())
    spins = int(min(tuning.wake_fraction * seconds, tuning.wake_seconds) * spins_per_second())
    return np.array([spins, *(worker.address for worker in workers), *(0 for _ in workers)])
