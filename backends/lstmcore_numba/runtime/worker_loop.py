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
    """Offsets of the integers of a mailbox, in bytes. `PARTS` is 0 until the work may begin."""

    STATE = 0
    FUNCTION = 8
    ARGUMENTS = 16
    PART = 24
    PARTS = 32
    DONE = 40


class WorkerState(IntEnum):
    """Value at `Mailbox.STATE`: waits, was given a task, has taken it, sleeps."""

    IDLE = 0
    POSTED = 1
    TAKEN = 2
    ASLEEP = 3


@compiled
def run_worker(mailbox: int, spin_limit: int) -> None:
    """Run the tasks that arrive at the address `mailbox`; return after `spin_limit` reads without a task."""
    spins = 0
    while True:
        if read(mailbox + Mailbox.STATE) == WorkerState.POSTED and compare_and_swap(
            mailbox + Mailbox.STATE, WorkerState.POSTED, WorkerState.TAKEN
        ):
            wait_for(mailbox + Mailbox.PARTS, 1)
            call_task(
                read(mailbox + Mailbox.FUNCTION),
                read(mailbox + Mailbox.ARGUMENTS),
                read(mailbox + Mailbox.PART),
                read(mailbox + Mailbox.PARTS),
            )
            write(mailbox + Mailbox.STATE, WorkerState.IDLE)
            write(mailbox + Mailbox.DONE, 1)
            spins = 0
        elif spins < spin_limit:
            pause()
            spins += 1
        elif compare_and_swap(mailbox + Mailbox.STATE, WorkerState.IDLE, WorkerState.ASLEEP):
            return


@compiled
def run_parts(threads: Any, task: Any) -> None:
    """Run all parts of a task: one here, one on each worker that is awake.

    Parameters
    ----------
    threads
        What ``with AcquiredThreads(...)`` returns: how often to read whether the workers have taken the task, then the
        addresses of their mailboxes. A worker that has not taken it by then gets no part.
    task
        The two addresses of `tasks.make_task`.
    """
    function, arguments = task
    for mailbox in threads[1:]:
        write(mailbox + Mailbox.FUNCTION, function)
        write(mailbox + Mailbox.ARGUMENTS, arguments)
        write(mailbox + Mailbox.PARTS, 0)
        write(mailbox + Mailbox.DONE, 0)
        compare_and_swap(mailbox + Mailbox.STATE, WorkerState.IDLE, WorkerState.POSTED)
    for _ in range(threads[0]):
        taken = 0
        for mailbox in threads[1:]:
            taken += read(mailbox + Mailbox.STATE) == WorkerState.TAKEN
        if taken == len(threads) - 1:
            break
        pause()
    parts = 1
    for mailbox in threads[1:]:
        revoked = compare_and_swap(mailbox + Mailbox.STATE, WorkerState.POSTED, WorkerState.IDLE)
        if not revoked and read(mailbox + Mailbox.STATE) == WorkerState.TAKEN:
            write(mailbox + Mailbox.PART, parts)
            parts += 1
    for mailbox in threads[1:]:
        if read(mailbox + Mailbox.STATE) == WorkerState.TAKEN:
            write(mailbox + Mailbox.PARTS, parts)
    call_task(function, arguments, 0, parts)
    for mailbox in threads[1:]:
        if read(mailbox + Mailbox.PARTS) > 0:
            wait_for(mailbox + Mailbox.DONE, 1, LONG_WAIT_SPINS)
