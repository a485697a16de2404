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
from functools import cache, lru_cache
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.threads import asked_threads
from lstmcore_numba.runtime.barrier import spin
from lstmcore_numba.runtime.worker_loop import Mailbox, WorkerState, run_worker
from lstmcore_numba.tuning import WORKER_SPIN_SECONDS, Tuning

_CACHE_LINE_BYTES: Final = 64
#: The `threads` argument of a pass on the calling thread alone.
CALLER_ALONE: Final = np.zeros(1, np.int64)


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


class Worker(threading.Thread):
    """A thread with its mailbox.

    Its code is compiled before the thread starts. If it compiled while its process forks, Numba's lock would stay
    locked in the child.
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

    def run(self) -> None:
        """Sleep until `wake` is called, then run tasks; again and again."""
        while True:
            self.asleep.acquire()
            if self.affinity:
                os.sched_setaffinity(0, self.affinity)
            run_worker(self.address, self.spin_limit)

    def wake(self) -> None:
        """Let the worker spin for tasks, on another processor than the caller's.

        Linux puts a woken thread on the processor of the thread that woke it, and leaves it there for some
        milliseconds. So the worker may not run on that processor until it has started.
        """
        if _CURRENT_PROCESSOR is not None and self.native_id is not None:
            self.affinity = os.sched_getaffinity(0)
            others = self.affinity - {_CURRENT_PROCESSOR()}
            if others:
                os.sched_setaffinity(self.native_id, others)
        self.mailbox[Mailbox.STATE // 8] = WorkerState.IDLE
        self.asleep.release()


class ThreadPool:
    """The workers of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free: list[Worker] = []
        self.size = 0

    def acquire(self, wanted: int, limit: int | None = None) -> list[Worker]:
        """Return up to `wanted` workers, awake. No call waits for workers that another call holds.

        At most `limit` threads (None: `thread_count`) work at a time, the caller included.
        """
        with self.lock:
            busy = self.size - len(self.free)
            wanted = max(0, min(wanted, (limit or thread_count()) - 1 - busy))
            while len(self.free) < wanted:
                worker = Worker()
                worker.start()
                self.free.append(worker)
                self.size += 1
            workers = [self.free.pop() for _ in range(wanted)]
        for worker in workers:
            if worker.mailbox[Mailbox.STATE // 8] == WorkerState.ASLEEP:
                worker.wake()
        return workers

    def release(self, workers: list[Worker]) -> None:
        """Return workers to the pool."""
        with self.lock:
            self.free.extend(reversed(workers))


@lru_cache(maxsize=1)
def thread_pool(process: int) -> ThreadPool:
    """Return the pool of the process with this id: a forked process has another one."""
    return ThreadPool()


class AcquiredThreads:
    """Context manager whose value is the `threads` argument of a pass (see `worker_loop.run_parts`).

    Parameters
    ----------
    max_threads
        Parts into which the pass can be split at most.
    work
        Multiply-adds of the pass.
    limit
        Threads that the caller allows, None for `thread_count`.
    tuning
        When a thread is worth its cost, and how long to wait for it.
    """

    __slots__ = ("limit", "pool", "tuning", "wanted", "work", "workers")

    def __init__(self, max_threads: int, work: float, limit: int | None, tuning: Tuning) -> None:
        self.work, self.wanted, self.tuning = work, 0, tuning
        if max_threads > 1 and work >= 2 * tuning.thread_work:
            self.limit = limit or thread_count()
            self.wanted = min(max_threads, int(work // tuning.thread_work), self.limit) - 1
        self.workers: list[Worker] = []

    def __enter__(self) -> npt.NDArray[Any]:
        if self.wanted < 1:
            return CALLER_ALONE
        self.pool = thread_pool(os.getpid())
        self.workers = self.pool.acquire(self.wanted, self.limit)
        tuning = self.tuning
        seconds = min(tuning.wake_fraction * self.work / tuning.work_per_second, tuning.wake_seconds)
        spins = int(seconds * spins_per_second())
        return np.array([spins, *(worker.address for worker in self.workers)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.workers:
            self.pool.release(self.workers)
