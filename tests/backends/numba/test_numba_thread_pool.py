"""The worker threads: passes that run at the same time, and exceptions that arrive at any point."""

from __future__ import annotations

import errno
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
    from lstmcore_numba.runtime.thread_pool import PassSize, acquire_threads
    from lstmcore_numba.tuning import Tuning

    return acquire_threads(PassSize(parts, 1e12), None, Tuning(load_pause=0))


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


class StepClock:
    """A clock of waiting that a test sets."""

    def __init__(self) -> None:
        self.waited, self.process, self.is_open = 3.0, os.getpid(), True

    def seconds(self) -> float:
        return self.waited


@pytest.fixture
def own_clock(monkeypatch: pytest.MonkeyPatch) -> StepClock:
    """Return a clock that stands for the one of the calling thread."""
    from lstmcore_numba.runtime import load_guard

    clock = StepClock()
    monkeypatch.setattr(load_guard, "find_clock", lambda thread: clock)
    return clock


#: Whether threads wait in each shared pass -> how many passes run on the caller alone after each.
LOADS = {
    "none": ([False] * 4, [0] * 4),
    "always": ([True] * 6, [1, 2, 4, 8, 8, 8]),
    "once": ([False, True, False, False, False], [0, 1, 0, 0, 0]),
    "twice in a row": ([True, True, False, True, False, False, True], [1, 2, 0, 2, 0, 0, 1]),
}


@pytest.mark.parametrize("load", LOADS)
def test_passes_are_alone_while_threads_wait_for_processors(load: str, own_clock: StepClock) -> None:
    from lstmcore_numba.runtime.load_guard import LoadGuard

    guard, other, now, alone = LoadGuard(), StepClock(), 3.0, []
    for waits in LOADS[load][0]:
        guard.begin([other], 2, now)
        other.waited += waits
        guard.finish(8, now + 1)
        passes, now = 0, now + 2
        own_clock.waited += 1  # waits between passes do not count
        while not guard.allows(8):
            passes += 1
        alone.append(passes)
    assert alone == LOADS[load][1]


#: Threads, seconds that each waits in a pass of a second, and whether the next pass is shared.
WAITS = [(2, 0.12, True), (2, 0.13, False), (5, 0.07, True), (5, 0.09, False), (64, 0.007, True), (64, 0.008, False)]


@pytest.mark.parametrize(("threads", "wait", "shared"), WAITS)
def test_waits_count_from_half_of_the_gain_on(threads: int, wait: float, shared: bool, own_clock: StepClock) -> None:
    """A system without other work lets threads wait too, for some 1 % of the time. Eight threads stand for all."""
    from lstmcore_numba.runtime.load_guard import LoadGuard

    guard, clocks = LoadGuard(), [own_clock, *(StepClock() for _ in range(threads - 1))]
    guard.begin(clocks[1:8], threads, 0.0)
    for clock in clocks:
        clock.waited += wait
    guard.finish(8, 1.0)
    assert guard.allows(8) == shared


def test_losses_of_the_process_count_where_no_thread_has_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss counts as a time slice: one of a short pass, but only many of a long one."""
    from lstmcore_numba.runtime import load_guard
    from lstmcore_numba.runtime.waiting_time import SLICE_SECONDS, LossClock

    losses = [7]
    monkeypatch.setattr(load_guard, "PROCESS_CLOCK", LossClock(lambda: losses[0]))
    monkeypatch.setattr(load_guard, "find_clock", lambda thread: None)
    slices = int(0.25 / SLICE_SECONDS)
    for lost, seconds, shared in ((1, 1e-3, False), (slices, 1.0, True), (slices + 1, 1.0, False)):
        guard = load_guard.LoadGuard()
        guard.begin([], 2, 2.0)
        losses[0] += lost
        guard.finish(8, 2.0 + seconds)
        assert guard.allows(8) == shared


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone counts the waits of a thread")
def test_a_clock_counts_the_wait_of_its_thread_alone() -> None:
    """Two threads take turns on one processor, so both wait. A third thread sleeps, and does not wait."""
    from lstmcore_numba.runtime.waiting_time import Clock, find_clock

    processor, ends, clocks = min(os.sched_getaffinity(0)), threading.Event(), dict[str, Clock | None]()

    def own(name: str) -> None:
        clocks[name] = find_clock(threading.get_native_id())

    def spin(name: str) -> None:
        os.sched_setaffinity(0, {processor})
        own(name)
        data = np.ones((512, 512))
        while not ends.is_set():
            np.sin(data)  # without the interpreter's lock, for some milliseconds

    def sleep() -> None:
        own("sleeper")
        ends.wait()

    def seconds(name: str) -> float:
        clock = clocks.get(name)
        return 0.0 if clock is None else clock.seconds()

    sleeper = threading.Thread(target=sleep)
    spinners = [threading.Thread(target=spin, args=(name,)) for name in ("first", "second")]
    for thread in (sleeper, *spinners):
        thread.start()
    end = time.monotonic() + 120
    while min(seconds("first"), seconds("second")) < 0.05 + 10 * seconds("sleeper"):
        assert time.monotonic() < end
        time.sleep(0.01)
    ends.set()
    for thread in (sleeper, *spinners):
        thread.join()
    while seconds("first") > 0:  # the system ends a thread a moment after Python
        assert time.monotonic() < end


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone counts the waits of a thread")
@pytest.mark.parametrize("then", ["nothing", "another file", "a pipe"])
def test_a_clock_whose_file_somebody_closed_leaves_other_files_alone(then: str, tmp_path: Path) -> None:
    """Daemons close every number above 2, and then a number may be that of another file."""
    from lstmcore_numba.runtime.waiting_time import find_clock

    clock = find_clock(threading.get_native_id())
    assert clock is not None
    assert clock.seconds() >= 0
    number = clock._file
    os.close(number)
    others = []
    if then == "another file":
        others = [os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)]
    elif then == "a pipe":
        others = list(os.pipe())
    assert not others or number in others
    assert clock.seconds() == 0
    assert not clock.is_open
    del clock
    for other in others:
        os.close(other)  # raises if the clock closed it


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone counts the waits of a thread")
def test_a_call_after_all_files_were_closed_has_new_clocks(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.runtime import load_guard, thread_pool
    from lstmcore_numba.tuning import Tuning

    monkeypatch.setattr(thread_pool, "LOAD_GUARD", guard := load_guard.LoadGuard())
    size, clocks = thread_pool.PassSize(2, 1e12), []
    for number in range(3):
        thread_pool.run_pass(lambda threads: clocks.append(guard.shared.clocks), (), size, None, Tuning(load_pause=0))
        if number == 0:
            for clock in clocks[0]:
                os.close(clock._file)
    assert clocks[0] == clocks[1]  # the second pass finds that they are closed
    assert [clock.is_open for clock in clocks[0] + clocks[2]] == [False, False, True, True]


def test_a_pass_is_not_shared_after_one_that_waited(
    pool: Any, own_clock: StepClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shared pass waits here. With a pause of 0, all passes are shared all the same."""
    from lstmcore_numba.runtime import load_guard, thread_pool
    from lstmcore_numba.tuning import Tuning

    monkeypatch.setattr(thread_pool, "LOAD_GUARD", load_guard.LoadGuard())

    def workers(load_pause: int) -> list[int]:
        counts: list[int] = []

        def wait(threads: Any, seconds: float) -> None:
            counts.append(len(threads) // 2)
            own_clock.waited += seconds

        size = thread_pool.PassSize(2, 1e12)
        for _ in range(7):
            thread_pool.run_pass(wait, (1000.0,), size, None, Tuning(load_pause=load_pause))
        return counts

    assert workers(0) == [1] * 7
    assert workers(2) == [1, 0, 1, 0, 0, 1, 0]
    assert workers(0) == [1] * 7


def test_a_pass_that_an_exception_ends_is_not_judged(pool: Any, own_clock: StepClock) -> None:
    """The next one is, from its own begin on."""
    from lstmcore_numba.runtime.load_guard import LoadGuard

    guard = LoadGuard()
    guard.begin([StepClock()], 2, 0.0)
    own_clock.waited += 1
    guard.begin([StepClock()], 2, 1.0)
    guard.finish(8, 2.0)
    assert guard.allows(8)


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
