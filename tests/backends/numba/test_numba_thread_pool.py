"""The worker threads: passes that run at the same time, and exceptions that arrive at any point."""

from __future__ import annotations

import errno
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

Pass = Callable[[Any], list[int]]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a pool of its own for a test, with as many threads as a call wants, up to three."""
    from lstmcore_numba.runtime import thread_pool

    own = thread_pool.ThreadPool()
    monkeypatch.setattr(thread_pool, "thread_pool", lambda process: own)
    monkeypatch.setenv("LSTMCORE_NUM_THREADS", "3")
    yield own
    for worker in own.workers:
        worker.retire()


@pytest.fixture(scope="session")
def run_pass() -> Pass:
    """Return a function that runs a pass on `threads` and returns the number of parts that each part saw."""
    from lstmcore_numba.codegen.numba_compiler import compiled
    from lstmcore_numba.runtime.tasks import make_task
    from lstmcore_numba.runtime.worker_loop import run_parts

    def inner(part: int, parts: int, seen: Any) -> None:
        seen[part] = parts

    run_part = compiled(inner)

    def outer(threads: Any, seen: Any) -> None:
        run_parts(threads, make_task(run_part, (seen,)))

    run = compiled(outer)

    def run_once(threads: Any) -> list[int]:
        seen = np.zeros(3, np.int64)
        run(threads, seen)
        result: list[int] = seen.tolist()
        return result

    return run_once


def acquired(parts: int) -> Any:
    """Return the argument `threads` of a pass."""
    from lstmcore_numba.runtime.thread_pool import acquire_threads
    from lstmcore_numba.tuning import Tuning

    return acquire_threads(parts, 1e12, None, Tuning(load_pause=0))


def run_until(run_pass: Pass, parts: int, expected: int) -> None:
    """Run passes that ask for `parts` threads until one has `expected`; none may have more.

    A busy machine runs a worker at some time. The limit is only against a hang.
    """
    end, last = time.monotonic() + 120, 0
    while last != expected and time.monotonic() < end:
        seen = run_pass(acquired(parts))
        last = seen[0]
        assert last <= expected
        assert seen == [last] * last + [0] * (3 - last)
    assert last == expected


def test_a_pass_runs_on_the_workers_that_it_asked_for(pool: Any, run_pass: Pass) -> None:
    for parts in (1, 2, 3, 2):
        run_until(run_pass, parts, parts)
    assert len(pool.workers) == 2


def test_a_pass_does_not_take_workers_of_another(pool: Any, run_pass: Pass) -> None:
    """A worker that another pass has is not waited for, and counts among the threads of the process."""
    from lstmcore_numba.runtime.worker_loop import Mailbox, WorkerState

    run_until(run_pass, 2, 2)
    (worker,) = pool.workers
    worker.mailbox[Mailbox.STATE // 8] = WorkerState.CLAIMED
    run_until(run_pass, 3, 2)  # the limit is three, and one works elsewhere
    threads = acquired(3)
    pool.workers[1].mailbox[Mailbox.STATE // 8] = WorkerState.CLAIMED  # after the pass asked for it
    assert run_pass(threads) == [1, 0, 0]
    assert worker.state == WorkerState.CLAIMED
    for other in pool.workers:
        other.mailbox[Mailbox.STATE // 8] = WorkerState.ASLEEP  # a worker that spins goes to sleep, then
    run_until(run_pass, 3, 3)


def raise_at_line(number: int, function: Callable[[], Any]) -> bool:
    """Call `function` and raise KeyboardInterrupt before line `number` that it executes in the thread pool's module.

    Return whether it executed so many. The end of a `with` statement does not count: Python handles no signal between
    the last call of its body and the `__exit__` of a lock.
    """
    from lstmcore_numba.runtime import thread_pool

    left, lines, entered = number, Path(thread_pool.__file__).read_text().splitlines(), set[int]()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != thread_pool.__file__:
            return None
        if event == "line" and frame.f_lineno not in entered:
            if lines[frame.f_lineno - 1].lstrip().startswith("with "):
                entered.add(frame.f_lineno)
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


@pytest.mark.parametrize("worker_is", ["new", "asleep", "awake"])
def test_no_exception_loses_a_worker(worker_is: str, pool: Any, run_pass: Pass) -> None:
    """An exception of a signal may arrive at any line: the next pass runs on all workers all the same."""
    from lstmcore_numba.runtime import thread_pool
    from lstmcore_numba.runtime.worker_loop import WorkerState

    thread_pool.spins_per_second()
    number, reached = 0, True
    while reached:
        number += 1
        for worker in pool.workers:
            while worker_is != "awake" and worker.state != WorkerState.ASLEEP:
                time.sleep(0.001)
            if worker_is == "new":
                worker.retire()
        if worker_is == "new":
            pool.workers = []
        reached = raise_at_line(number, lambda: acquired(3))
        run_until(run_pass, 3, 3)
    assert number > 15


def test_a_worker_that_never_comes_gets_no_part(run_pass: Pass) -> None:
    """A worker that is awake and has no processor: its caller does all the work after some reads."""
    from lstmcore_numba.runtime.worker_loop import Mailbox, WorkerState

    mailbox = np.zeros(8, np.int64)
    mailbox[Mailbox.STATE // 8] = WorkerState.IDLE
    for _ in range(2):
        assert run_pass(np.array([100, mailbox.ctypes.data, 0])) == [1, 0, 0]
        assert mailbox[Mailbox.STATE // 8] == WorkerState.IDLE


#: Whether the system takes a processor away in each shared pass -> how many passes run on the caller alone after each.
LOADS = {
    "none": ([False] * 4, [0] * 4),
    "always": ([True] * 6, [1, 2, 4, 8, 8, 8]),
    "once": ([False, True, False, False, False], [0, 1, 0, 0, 0]),
    "twice in a row": ([True, True, False, True, False, False, True], [1, 2, 0, 2, 0, 0, 1]),
}


@pytest.mark.parametrize("load", LOADS)
def test_passes_are_alone_while_processors_are_taken(load: str) -> None:
    from lstmcore_numba.runtime.load_guard import LoadGuard

    guard, lost, alone = LoadGuard(), 5, []
    assert guard.allows(lost, 8, seconds=3.0, threads=2)
    for takes in LOADS[load][0]:
        lost += takes
        passes = 0
        while not guard.allows(lost, 8, seconds=3.0, threads=2):
            passes += 1
            lost += 1  # what is lost while the caller is alone does not count
        alone.append(passes)
    assert alone == LOADS[load][1]


@pytest.mark.parametrize("threads", [2, 7])
def test_losses_of_a_quiet_machine_do_not_count(threads: int) -> None:
    """A long pass loses a processor now and then without other work: how often in a second decides."""
    from lstmcore_numba.runtime.load_guard import QUIET_LOSSES_PER_SECOND, LoadGuard

    quiet = QUIET_LOSSES_PER_SECOND * threads // 2
    for more, shared in ((0, True), (1, False)):
        guard = LoadGuard()
        assert guard.allows(7, 8, seconds=2.0, threads=threads)
        assert guard.allows(7 + quiet + more, 8, seconds=2.5, threads=threads) == shared


def test_a_wait_after_a_pass_excuses_no_losses() -> None:
    from lstmcore_numba.runtime.load_guard import QUIET_LOSSES_PER_SECOND, LoadGuard

    guard = LoadGuard()
    assert guard.allows(0, 8, seconds=0.0, threads=2, longest=0.01)
    assert not guard.allows(1 + QUIET_LOSSES_PER_SECOND // 50, 8, seconds=1000.0, threads=2, longest=0.01)


def test_a_call_is_not_shared_after_one_that_lost_time(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shared pass loses a processor here. With a pause of 0, all passes are shared all the same."""
    from lstmcore_numba.runtime import load_guard, thread_pool
    from lstmcore_numba.tuning import Tuning

    losses = itertools.count()
    monkeypatch.setattr(thread_pool, "LOAD_GUARD", load_guard.LoadGuard())
    monkeypatch.setattr(load_guard, "QUIET_LOSSES_PER_SECOND", 0)
    monkeypatch.setattr(thread_pool, "count_lost_processors", lambda: next(losses))

    def workers(load_pause: int) -> list[int]:
        tuning = Tuning(load_pause=load_pause)
        return [len(thread_pool.acquire_threads(2, 1e12, None, tuning)) // 2 for _ in range(7)]

    assert workers(0) == [1] * 7
    assert workers(2) == [0, 1, 0, 0, 1, 0, 0]
    assert workers(0) == [1] * 7


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not move threads")
@pytest.mark.parametrize("refused", ["sched_getaffinity", "sched_setaffinity"])
def test_a_pass_runs_where_threads_cannot_be_moved(
    refused: str, pool: Any, run_pass: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers may refuse the system call. Neither the caller nor the worker may end by that."""
    from lstmcore_numba.runtime.worker_loop import WorkerState

    calls = []

    def refuse(*args: Any) -> None:
        calls.append(threading.current_thread())
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, refused, refuse)
    run_until(run_pass, 2, 2)
    (worker,) = pool.workers
    while worker.state != WorkerState.ASLEEP:
        time.sleep(0.001)
    run_until(run_pass, 2, 2)  # wakes the worker
    assert worker.is_alive()
    assert calls


def test_threads_that_ask_first_get_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pools would have twice as many workers as the limit allows. Both threads are inside the function at once."""
    from lstmcore_numba.runtime import thread_pool

    both_ask = threading.Barrier(2)

    class SlowPool(thread_pool.ThreadPool):
        def __init__(self) -> None:
            both_ask.wait(timeout=60)
            super().__init__()

    monkeypatch.setattr(thread_pool, "ThreadPool", SlowPool)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(thread_pool.thread_pool, (-1, -1))
    assert first is second
    assert thread_pool.thread_pool(-1) is first
    del thread_pool._POOLS[-1]
