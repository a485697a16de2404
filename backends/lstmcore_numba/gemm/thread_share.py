"""A thread's share of a pass: rows of the batch, and blocks of hidden units."""

from __future__ import annotations

from typing import Any, NamedTuple

from lstmcore_numba.codegen.numba_compiler import compiled


class ThreadShare(NamedTuple):
    """What one of the threads of a pass computes.

    Attributes
    ----------
    part, parts
        Index of the thread, and the number of threads.
    by_units
        Whether threads share blocks of hidden units, and all take all rows; else they share rows.
    first, last
        Range of rows.
    block_first, block_last
        Range of blocks.
    unit, units
        First unit and number of units of the operand that the thread converts for the others.
    """

    part: int
    parts: int
    by_units: bool
    first: int
    last: int
    block_first: int
    block_last: int
    unit: int
    units: int


@compiled
def row_range(part: int, parts: int, by_units: bool, batch: int) -> Any:
    """Return the first row of a thread and the row behind its last one."""
    return (0, batch) if by_units else (batch * part // parts, batch * (part + 1) // parts)


@compiled
def has_non_finite(flags: Any, which: int, share: Any) -> bool:
    """Return whether any of the threads that convert what this thread reads met a row that is not finite.

    `flags` is (operands, threads).
    """
    first, last = (0, share.parts) if share.by_units else (share.part, share.part + 1)
    result = False
    for part in range(first, last):
        result = result or flags[which, part] != 0
    return result
