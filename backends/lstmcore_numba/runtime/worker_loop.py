"""The loop of worker threads, and a pass that they share, in compiled code.

A waiting worker has a mailbox: some integers in a cache line that only it uses. A pass writes the addresses of its task
there. The worker takes the task within a microsecond, without the interpreter. A worker that has waited long sleeps,
and only the interpreter can wake it (`thread_pool`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.runtime.barrier import compare_and_swap, pause, read, wait_for, write
from lstmcore_numba.runtime.tasks import call_task
from lstmcore_numba.tuning import LONG_WAIT_SPINS


class Mailbox(IntEnum):
    """Offsets of the integers of a mailbox, in bytes.

    `PARTS` is 0 until the work may begin. `DONE` is the address of an integer of the call, which becomes 1 at the end.
    """

    STATE = 0
    FUNCTION = 8
    ARGUMENTS = 16
    PART = 24
    PARTS = 32
    DONE = 40


class WorkerState(IntEnum):
    """Value at `Mailbox.STATE`: waits, was given a task, has taken it, sleeps, belongs to a pass that writes its task.

    A pass takes a worker by this integer alone, in compiled code, which no exception of a signal interrupts.
    """

    IDLE = 0
    POSTED = 1
    TAKEN = 2
    ASLEEP = 3
    CLAIMED = 4


@compiled
def run_worker(mailbox: int, spin_limit: int) -> None:
    """Run the tasks that arrive at the address `mailbox`; return after `spin_limit` reads without a task."""
    spins = 0
    while True:
        if read(mailbox + Mailbox.STATE) == WorkerState.POSTED and compare_and_swap(
            mailbox + Mailbox.STATE, WorkerState.POSTED, WorkerState.TAKEN
        ):
            wait_for(mailbox + Mailbox.PARTS, 1)
            done = read(mailbox + Mailbox.DONE)
            call_task(
                read(mailbox + Mailbox.FUNCTION),
                read(mailbox + Mailbox.ARGUMENTS),
                read(mailbox + Mailbox.PART),
                read(mailbox + Mailbox.PARTS),
            )
            write(mailbox + Mailbox.STATE, WorkerState.IDLE)  # first, so that the next pass of the caller finds it so
            write(done, 1)
            spins = 0
        elif spins < spin_limit:
            pause()
            spins += 1
        elif (
            compare_and_swap(mailbox + Mailbox.STATE, WorkerState.IDLE, WorkerState.ASLEEP)
            or read(mailbox + Mailbox.STATE) == WorkerState.ASLEEP  # was woken once too often
        ):
            return


@compiled
def run_parts(threads: Any, task: Any) -> None:
    """Run all parts of a task: one here, one on each worker that is awake and that no other pass has.

    Parameters
    ----------
    threads
        What `thread_pool.acquire_threads` returned for this pass: how often to read whether the workers have taken the
        task, the addresses of their mailboxes, and an integer for each. A worker that has not taken the task by then
        gets no part. The addresses of such workers become 0.
    task
        The two addresses of `tasks.make_task`.
    """
    (function, arguments), workers, claimed = task, len(threads) // 2, 0
    done = threads.ctypes.data + 8 * workers  # of worker k: done + 8 k
    for k in range(1, workers + 1):
        mailbox = threads[k]
        if compare_and_swap(mailbox + Mailbox.STATE, WorkerState.IDLE, WorkerState.CLAIMED):
            claimed += 1
            write(done + 8 * k, 0)
            write(mailbox + Mailbox.FUNCTION, function)
            write(mailbox + Mailbox.ARGUMENTS, arguments)
            write(mailbox + Mailbox.PARTS, 0)
            write(mailbox + Mailbox.DONE, done + 8 * k)
            write(mailbox + Mailbox.STATE, WorkerState.POSTED)
        else:
            threads[k] = 0
    for _ in range(threads[0]):
        taken = 0
        for mailbox in threads[1 : workers + 1]:
            if mailbox != 0:
                taken += read(mailbox + Mailbox.STATE) == WorkerState.TAKEN
        if taken == claimed:
            break
        pause()
    parts = 1
    for k in range(1, workers + 1):
        mailbox = threads[k]
        if mailbox != 0:
            if compare_and_swap(mailbox + Mailbox.STATE, WorkerState.POSTED, WorkerState.IDLE):
                threads[k] = 0
            else:
                write(mailbox + Mailbox.PART, parts)
                parts += 1
    for mailbox in threads[1 : workers + 1]:
        if mailbox != 0:
            write(mailbox + Mailbox.PARTS, parts)
    call_task(function, arguments, 0, parts)
    for k in range(1, workers + 1):
        if threads[k] != 0:
            wait_for(done + 8 * k, 1, LONG_WAIT_SPINS)
