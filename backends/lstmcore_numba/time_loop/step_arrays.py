"""The arrays of one step: groups of arguments, addresses, masks and copies."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from numba import types

from lstmcore_numba.codegen.numba_compiler import chosen_by_type, compiled
from lstmcore_numba.codegen.step_emitter import KernelArgs
from lstmcore_numba.gemm.bf16 import narrow_to_bf16
from lstmcore_numba.gemm.operands import Plane, Sums
from lstmcore_numba.gemm.product import all_rows, dense_rows, multiply
from lstmcore_numba.gemm.vector import call_step, copy_numbers
from lstmcore_numba.runtime.barrier import barrier

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


class LayerSteps(NamedTuple):
    """What a pass knows of its layer.

    Attributes
    ----------
    step, step_output, step_cell
        Addresses of the step functions: of a step, of its end with a projection, and of its second half if that
        is a function of its own; 0 if there is none.
    hidden
        H.
    reverse, of_cell, masked
        Whether time runs backwards, the recurrent input is the cell, and it has a mask.
    """

    step: int
    step_output: int
    step_cell: int
    hidden: int
    reverse: bool
    of_cell: bool
    masked: bool


class TapeArrays(NamedTuple):
    """The arrays of a recorded call that `backward` and `jvp` read, named as their arguments."""

    projection: Any
    mask_r: Any
    mask_h: Any
    mask_c: Any
    gates: Any
    raw: Any
    projected: Any
    c: Any


class StepRows(NamedTuple):
    """Rows `first` to `last` at step `t`; `lengths` (N,) has the end of each row."""

    lengths: Any
    t: int
    first: int
    last: int


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
def set_tape_args(args: Any, tape: Any, t: int, reverse: bool) -> None:
    """Write the addresses of step `t` of `TapeArrays` into the table."""
    args[KernelArgs.STEP], args[KernelArgs.GATES] = t, address_at(tape.gates, t)
    args[KernelArgs.RAW], args[KernelArgs.PROJECTED] = address_at(tape.raw, t), address_at(tape.projected, t)
    args[KernelArgs.MASK_C], args[KernelArgs.MASK_H] = address_at(tape.mask_c, t), address_at(tape.mask_h, t)
    args[KernelArgs.C_BEFORE] = address_at(tape.c, t + 1 if reverse else t)
    args[KernelArgs.C] = address_at(tape.c, t if reverse else t + 1)


@compiled
def apply_recurrent_mask(target: Any, mask: Any, state: Any, first: int, last: int) -> None:
    """Compute ``target = mask * state`` for rows `first` to `last`; `state` may have padding."""
    for row in range(first, last):
        for k in range(target.shape[1]):
            target[row, k] = mask[row, k] * state[row, k]


@chosen_by_type
def copy_row(like: Any, source: int, target: int, count: int, wanted: bool) -> Any:
    """Copy `count` numbers between two addresses, or write zeros unless `wanted`.

    The source has the dtype of the arithmetic, the target that of the array `like`; uint16 stands for bfloat16.
    """
    if like.dtype == types.uint16:
        return lambda like, source, target, count, wanted: narrow_to_bf16(source, target, count, wanted)
    return lambda like, source, target, count, wanted: copy_numbers(like.dtype.type(0), source, target, count, wanted)


@compiled
def store_outputs(like: Any, target: Any, source: Any, rows: Any, count: int) -> None:
    """Copy `count` numbers of each of `StepRows` from a `Plane` of states to one of outputs; 0 past a row's end.

    The outputs have the dtype of the array `like`.
    """
    for row in range(rows.first, rows.last):
        wanted = rows.t < rows.lengths[row]
        copy_row(like, source.address + row * source.row, target.address + row * target.row, count, wanted)


@compiled
def meet(counter: int, barriers: int, share: Any) -> int:
    """Wait for the other threads if they share hidden units; return the number of barriers so far.

    `counter` is the address of the arrivals, and `barriers` the number of barriers before.
    """
    if share.by_units and share.parts > 1:
        barriers += 1
        barrier(counter, share.parts * barriers)
    return barriers


@compiled
def call_blocks(function: int, args: Any, blocks: int, share: Any) -> None:
    """Call a step function for all blocks and the rows of a thread."""
    for block in range(blocks):
        call_step(function, args.ctypes.data, block, share.first, share.last)


@compiled
def project(source: Any, panels: Any, like: Any, k_size: int, sums: Any, share: Any) -> None:
    """Multiply a thread's rows of a `Plane` with `panels`, in vectors of the dtype of the array `like`.

    `source` and `sums` have the addresses of row 0, and K is `k_size`.
    """
    left = dense_rows(like, Plane(source.address + share.first * source.row, source.row), k_size)
    result = Sums(sums.address + share.first * sums.row, sums.row, 0, sums.fresh)
    multiply(left, panels, k_size, result, all_rows(share.last - share.first), False)


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
