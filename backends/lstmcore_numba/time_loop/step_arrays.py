"""The arrays of one step: groups of arguments, addresses, masks and copies."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.codegen.step_emitter import KernelArgs
from lstmcore_numba.gemm.vector import copy_numbers

#: Entries of the table that a step function reads.
FIELDS: Final = len(KernelArgs)


@compiled
def address_at(array: Any, index: int) -> Any:
    """Return the address of ``array[index]``; of ``array[0]`` if the array has no more, as it holds a single step."""
    return array.ctypes.data + (index * array.strides[0] if array.shape[0] > 1 else 0)


class Norms(NamedTuple):
    """The arrays of layer norm: normalised rows, their standard deviations, gains, and the shift of the cell.

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


class WavefrontProgress(NamedTuple):
    """What a layer of a wavefront shares with its neighbours.

    Attributes
    ----------
    below, done
        (threads, a cache line) the number of steps that each thread has finished, of the layer below and of this one.
    mask
        (T, N, P) the dropout between this layer and the next one; (0, 1, 1) if there is none.
    masked
        Outputs times `mask`, which the next layer reads; (0, 1, 1) if there is no mask.
    """

    below: Any
    done: Any
    mask: Any
    masked: Any


class PackedPairs(NamedTuple):
    """Operands of the recurrent GEMM as packed bfloat16 pairs.

    Attributes
    ----------
    recurrent
        (B, K / 2, G, lanes) the packed recurrent weights.
    h
        (2, N, Pp + padding) h before a step and before the next one as bfloat16, with 0 behind the last unit.
    """

    recurrent: Any
    h: Any


@compiled
def set_norm_args(args: Any, norms: Any, t: int) -> int:
    """Write the addresses of step `t` into the table; return the index of the step in the arrays."""
    args[KernelArgs.NORM_X], args[KernelArgs.NORM_H], args[KernelArgs.NORM_C] = (
        address_at(norms.x, t),
        address_at(norms.h, t),
        address_at(norms.c, t),
    )
    args[KernelArgs.GAIN_X], args[KernelArgs.GAIN_H] = norms.gain_x.ctypes.data, norms.gain_h.ctypes.data
    args[KernelArgs.GAIN_C], args[KernelArgs.SHIFT_C] = norms.gain_c.ctypes.data, norms.shift_c.ctypes.data
    return t if norms.h.shape[0] > 1 else 0


@compiled
def apply_recurrent_mask(target: Any, mask: Any, state: Any, first: int, last: int) -> None:
    """Compute ``target = mask * state`` for rows `first` to `last`; `state` may have padding."""
    for row in range(first, last):
        for k in range(target.shape[1]):
            target[row, k] = mask[row, k] * state[row, k]


@compiled
def store_outputs(  # noqa: PLR0913  (next issue: groups of arguments)
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

    `target` and `source` are addresses of row 0. The strides of rows are ``row_target`` and ``row_source`` bytes.
    """
    for row in range(first, last):
        copy_numbers(zero, source + row * row_source, target + row * row_target, count, t < lengths[row])


@compiled
def cells_to_blocks(source: Any, target: Any, hidden: int, first: int, last: int) -> None:
    """Copy cells (N, Hp) to (B, N, 1, lanes), with 0 behind the last unit."""
    blocks, lanes = target.shape[0], target.shape[3]
    for row in range(first, last):
        for block in range(blocks):
            for lane in range(lanes):
                k = block * lanes + lane
                target[block, row, 0, lane] = source[row, k] if k < hidden else 0


@compiled
def add_blocks_to_cells(source: Any, target: Any, lengths: Any, t: int, first: int, last: int) -> None:
    """Add (B, N, 1, lanes) to cells (N, Hp), in rows that have a step `t`."""
    blocks, lanes = source.shape[0], source.shape[3]
    for row in range(first, last):
        if t < lengths[row]:
            for block in range(blocks):
                for lane in range(lanes):
                    target[row, block * lanes + lane] += source[block, row, 0, lane]
