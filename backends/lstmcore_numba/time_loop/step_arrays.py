"""What the loops over time share."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from lstmcore_numba.cell import At
from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.vector import copy_numbers

#: Entries of a table of addresses.
FIELDS: Final = len(At)


@compiled
def at(array: Any, index: int) -> Any:
    """The address of ``array[index]``; of the first where there is but one (what is not kept, or does not change)."""
    return array.ctypes.data + (index * array.strides[0] if array.shape[0] > 1 else 0)


class Norms(NamedTuple):
    """What layer norm needs and leaves: normalised rows, what they were divided by, gains and the shift of the cell.

    ``x`` and ``h`` are (T or 1, B, N, G, lanes), ``c`` (T or 1, B, N, 1, lanes), deviations (T or 1, N).
    """

    x: Any
    deviation_x: Any
    h: Any
    deviation_h: Any
    c: Any
    deviation_c: Any
    gain_x: Any
    gain_h: Any
    gain_c: Any
    shift_c: Any
    eps: float


class Wave(NamedTuple):
    """What a layer of a wavefront and its neighbours tell each other.

    Attributes
    ----------
    below, done
        (threads, some) first how many steps each thread has finished: of the layer below, and of this one.
    mask
        (T, N, P) the dropout between this layer and the next one; no steps where there is none.
    masked
        Outputs times `mask`, which the next layer reads; as `mask` where there is none.
    """

    below: Any
    done: Any
    mask: Any
    masked: Any


class Short(NamedTuple):
    """What products of pairs of bfloat16 read, beside pairs of x and of its weights.

    Attributes
    ----------
    recurrent
        (B, K / 2, G, lanes) the packed recurrent weights.
    h
        (2, N, some) h before a step and before the next one as bfloat16, with 0 behind the last unit.
    """

    recurrent: Any
    h: Any


@compiled
def set_norms(table: Any, norms: Any, t: int) -> int:
    """Put the addresses for step `t` into the table; the place of the step in the arrays."""
    table[At.NORM_X], table[At.NORM_H], table[At.NORM_C] = at(norms.x, t), at(norms.h, t), at(norms.c, t)
    table[At.GAIN_X], table[At.GAIN_H] = norms.gain_x.ctypes.data, norms.gain_h.ctypes.data
    table[At.GAIN_C], table[At.SHIFT_C] = norms.gain_c.ctypes.data, norms.shift_c.ctypes.data
    return t if norms.h.shape[0] > 1 else 0


@compiled
def masked_operand(target: Any, mask: Any, state: Any, first: int, last: int) -> None:
    """``target = mask state`` for rows `first` to `last`; a state may be wider, in whole vectors."""
    for row in range(first, last):
        for k in range(target.shape[1]):
            target[row, k] = mask[row, k] * state[row, k]


@compiled
def put_outputs(
    zero: Any,
    target: int,
    row_target: int,
    source: int,
    row_source: int,
    lengths: Any,
    t: int,
    first: int,
    last: int,
    count: int,
) -> None:
    """Copy `count` numbers of rows `first` to `last` of a state to the outputs of step `t`; 0 past a row's end.

    `target` and `source` are addresses of row 0, and rows lie ``row_target`` and ``row_source`` bytes apart.
    """
    for row in range(first, last):
        copy_numbers(zero, source + row * row_source, target + row * row_target, count, t < lengths[row])


@compiled
def whole_cells(source: Any, target: Any, hidden: int, first: int, last: int) -> None:
    """Copy cells (N, Hp) to (B, N, 1, lanes), with 0 behind the last unit."""
    blocks, lanes = target.shape[0], target.shape[3]
    for row in range(first, last):
        for block in range(blocks):
            for lane in range(lanes):
                k = block * lanes + lane
                target[block, row, 0, lane] = source[row, k] if k < hidden else 0


@compiled
def add_cells(source: Any, target: Any, lengths: Any, t: int, first: int, last: int) -> None:
    """Add (B, N, 1, lanes) to cells (N, Hp), in rows that have a step `t`."""
    blocks, lanes = source.shape[0], source.shape[3]
    for row in range(first, last):
        if t < lengths[row]:
            for block in range(blocks):
                for lane in range(lanes):
                    target[row, block * lanes + lane] += source[block, row, 0, lane]
