"""The operands of a forward pass, for each way to multiply: in vectors, as bfloat16 pairs, on AMX, or stored.

The loop over time calls the functions of this module. Their code follows from the type of `gemm` while Numba compiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from lstmcore_numba.codegen.numba_compiler import chosen_by_type, compiled
from lstmcore_numba.gemm.amx import TILE_ROWS, configure_tiles, release_tiles, split_bytes, split_chunks
from lstmcore_numba.gemm.bf16 import narrow_rows
from lstmcore_numba.gemm.bf16x3 import SplitSource, SplitTarget, split_row_range
from lstmcore_numba.gemm.operands import Panel, Plane, RowRange, Rows, SplitPanel, SplitRows, Sums, address_of, is_split
from lstmcore_numba.gemm.product import dense_rows, multiply_panel
from lstmcore_numba.gemm.stored_operands import (
    StoredGemm,
    StoredOperands,
    StoredRows,
    same_stored_row_twice,
    stored_input_panel,
    stored_input_rows,
    stored_recurrent_panel,
    stored_state_rows,
)
from lstmcore_numba.gemm.thread_share import has_non_finite
from lstmcore_numba.gemm.vector import VECTOR_BYTES, copy_numbers


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


class SplitOperands(NamedTuple):
    """Split operands of a forward pass, for GEMMs on AMX. A row that is not finite is multiplied in float32.

    Attributes
    ----------
    input, recurrent
        Packed weights, split.
    x
        (3, rows, K) the input of one chunk of steps.
    state
        (2, 3, N, K) the recurrent input of a step, and of the next one.
    non_finite_x, non_finite
        (rows,) and (2, threads, N) bytes: 1 if a row, or the part of it that a thread split, is not finite.
    any_non_finite
        (3, threads) whether any row that a thread split is not finite: of `state` (2), and of `x`.
    """

    input: Any
    recurrent: Any
    x: Any
    state: Any
    non_finite_x: Any
    non_finite: Any
    any_non_finite: Any


class VectorGemm(NamedTuple):
    """GEMMs in vectors: addresses of the packed weights, and an array of the dtype of the state."""

    input: int
    recurrent: int
    like: Any


class PairGemm(NamedTuple):
    """GEMMs of bfloat16 pairs: `PackedPairs`, and the address of the weights of x."""

    input: int
    packed: PackedPairs


class SplitGemm(NamedTuple):
    """GEMMs on AMX: `SplitOperands`, addresses of the packed weights in float32, and an array of float32."""

    input: int
    recurrent: int
    like: Any
    split: SplitOperands


class InputChunk(NamedTuple):
    """Steps whose input products are made at once: the first one, its place in the products, and their number."""

    begin: int
    place: int
    steps: int


@chosen_by_type
def forward_gemm(split: Any, packed: Any, input_weight: Any, recurrent_weight: Any, like: Any) -> Any:
    """Return the operands of a pass: `VectorGemm`, or those of the given `SplitOperands`, pairs or `StoredOperands`."""
    if not isinstance(split, types.NoneType):
        return lambda split, packed, input_weight, recurrent_weight, like: SplitGemm(
            address_of(input_weight), address_of(recurrent_weight), like, split
        )
    if not isinstance(packed, types.NoneType) and packed.instance_class is StoredOperands:
        return lambda split, packed, input_weight, recurrent_weight, like: StoredGemm(packed, like)
    if not isinstance(packed, types.NoneType):
        return lambda split, packed, input_weight, recurrent_weight, like: PairGemm(address_of(input_weight), packed)
    return lambda split, packed, input_weight, recurrent_weight, like: VectorGemm(
        address_of(input_weight), address_of(recurrent_weight), like
    )


@chosen_by_type
def begin_gemm(gemm: Any, rows: int) -> Any:
    """Prepare this thread for products of `rows` rows."""
    return (lambda gemm, rows: configure_tiles(min(TILE_ROWS, rows))) if is_split(gemm) else lambda gemm, rows: None


@chosen_by_type
def end_gemm(gemm: Any) -> Any:
    """End what `begin_gemm` began."""
    return (lambda gemm: release_tiles()) if is_split(gemm) else lambda gemm: None


# What a step reads ----------------------------------------------------------------------------------------------------


@chosen_by_type
def publish_state(gemm: Any, state: Any, slot: int, share: Any) -> Any:
    """Convert this thread's part of a state to the operand of a step; return whether a conversion was made.

    Parameters
    ----------
    gemm
        Operands of the pass.
    state
        `Plane` of all rows and units.
    slot
        0 or 1: steps read one and write the other.
    share
        `ThreadShare`.
    """
    if is_split(gemm):
        return _publish_split_state
    return _publish_pairs if gemm.instance_class is PairGemm else lambda gemm, state, slot, share: False


def _publish_pairs(gemm: Any, state: Any, slot: int, share: Any) -> bool:
    h = gemm.packed.h
    slot_bytes, row = h.strides[:2]
    target = Plane(address_of(h) + slot * slot_bytes + share.unit * 2, row)
    narrow_rows(Plane(state.address + share.unit * 4, state.row), target, share.first, share.last, share.units)
    return True


def _publish_split_state(gemm: Any, state: Any, slot: int, share: Any) -> bool:
    split = gemm.split
    slot_bytes, part, row = split.state.strides[:3]
    source = SplitSource(state.address + share.unit * 4, state.row, 1, 0, share.units)
    target = SplitTarget(address_of(split.state) + slot * slot_bytes + share.unit * 2, row, part)
    slot_flags, part_flags = split.non_finite.strides[:2]
    flags = address_of(split.non_finite) + slot * slot_flags + (share.part * part_flags if share.by_units else 0)
    split.any_non_finite[slot, share.part] = split_row_range(source, target, share.first, share.last, flags)
    return True


@chosen_by_type
def recurrent_rows(gemm: Any, state: Any, k_size: int, slot: int, share: Any) -> Any:
    """Return this thread's rows of `state` (`Plane`), or of what was published in `slot`, as a left operand."""
    if is_split(gemm):
        return _split_state_rows
    if gemm.instance_class is StoredGemm:
        return lambda gemm, state, k_size, slot, share: stored_state_rows(gemm, state, k_size, share)
    return _pair_rows if gemm.instance_class is PairGemm else _state_rows


def _state_rows(gemm: Any, state: Any, k_size: int, slot: int, share: Any) -> Any:
    return dense_rows(gemm.like, Plane(state.address + share.first * state.row, state.row), k_size)


def _pair_rows(gemm: Any, state: Any, k_size: int, slot: int, share: Any) -> Any:
    h, weights = gemm.packed.h, gemm.packed.recurrent
    slot_bytes, row = h.strides[:2]
    return dense_rows(weights, Plane(address_of(h) + slot * slot_bytes + share.first * row, row), weights.shape[1])


def _split_state_rows(gemm: Any, state: Any, k_size: int, slot: int, share: Any) -> Any:
    split, first = gemm.split, share.first
    slot_bytes, part, row = split.state.strides[:3]
    exact = dense_rows(gemm.like, Plane(state.address + first * state.row, state.row), k_size)
    address = address_of(split.state) + slot * slot_bytes + first * row
    non_finite = has_non_finite(split.any_non_finite, slot, share)
    flags = split.non_finite[slot, : share.parts if share.by_units else 1, first:]
    return SplitRows(exact, address, row, part, 0, flags, non_finite, min(TILE_ROWS, share.last - first))


@chosen_by_type
def recurrent_panel(gemm: Any, block: int, following: int, cols: int, k_size: int) -> Any:
    """Return the recurrent weights of a block, of which block `following` is next."""
    if is_split(gemm):
        return lambda gemm, block, following, cols, k_size: _split_panel(
            gemm.recurrent, gemm.split.recurrent, (block, following), cols, k_size
        )
    if gemm.instance_class is StoredGemm:
        return lambda gemm, block, following, cols, k_size: stored_recurrent_panel(gemm, block, cols, k_size)
    if gemm.instance_class is PairGemm:
        return lambda gemm, block, following, cols, k_size: Panel(
            address_of(gemm.packed.recurrent) + block * gemm.packed.recurrent.shape[1] * cols * VECTOR_BYTES, cols
        )
    return lambda gemm, block, following, cols, k_size: Panel(
        gemm.recurrent + block * k_size * cols * VECTOR_BYTES, cols
    )


@compiled
def _split_panel(exact: int, parts: Any, blocks: Any, cols: int, k_size: int) -> Any:
    """Return the panel of a block and the address of the next one's; `blocks` are their indices."""
    block, following = blocks
    panel_bytes = split_chunks(k_size) * split_bytes(cols)
    panel = Panel(exact + block * k_size * cols * VECTOR_BYTES, cols)
    return SplitPanel(panel, address_of(parts) + block * panel_bytes, address_of(parts) + following * panel_bytes)


# The input of a chunk of steps ----------------------------------------------------------------------------------------


@chosen_by_type
def publish_input(gemm: Any, x: Any, chunk: Any, share: Any) -> Any:
    """Convert this thread's part of a chunk of x; return whether a conversion was made."""
    return _publish_split_input if is_split(gemm) else lambda gemm, x, chunk, share: False


def _publish_split_input(gemm: Any, x: Any, chunk: Any, share: Any) -> bool:
    split, batch, k_size, rows = gemm.split, x.shape[1], x.shape[2], chunk.steps * x.shape[1]
    part_bytes, row = split.x.strides[:2]
    source = SplitSource(address_of(x) + chunk.begin * batch * k_size * 4, k_size * 4, 1, 0, k_size)
    target, flags = SplitTarget(address_of(split.x), row, part_bytes), address_of(split.non_finite_x)
    part, parts = (share.part, share.parts) if share.by_units else (0, 1)
    non_finite = 0
    if parts > 1 or share.last - share.first == batch:
        non_finite = split_row_range(source, target, rows * part // parts, rows * (part + 1) // parts, flags)
    else:
        for k in range(0, rows, batch):
            non_finite |= split_row_range(source, target, k + share.first, k + share.last, flags)
    split.any_non_finite[2, share.part] = non_finite
    return True


@chosen_by_type
def _input_rows(gemm: Any, x: Any, chunk: Any, share: Any) -> Any:
    """Return this thread's rows of all steps of a chunk, with a gap between steps."""
    if gemm.instance_class is StoredGemm:
        return lambda gemm, x, chunk, share: stored_input_rows(
            gemm, _exact_input_rows(x, chunk, share), chunk.steps, share
        )
    return _split_input_rows if is_split(gemm) else lambda gemm, x, chunk, share: _exact_input_rows(x, chunk, share)


@compiled
def _exact_input_rows(x: Any, chunk: Any, share: Any) -> Any:
    batch, k_size, row = x.shape[1], x.shape[2], x.shape[2] * x.itemsize
    address, gap = address_of(x) + (chunk.begin * batch + share.first) * row, batch - (share.last - share.first)
    return Rows(x.dtype.type(0), address, row, x.itemsize, 1, 0, k_size, gap * row)


def _split_input_rows(gemm: Any, x: Any, chunk: Any, share: Any) -> Any:
    split, first, rows = gemm.split, share.first, share.last - share.first
    part, row = split.x.strides[:2]
    flags, non_finite = split.non_finite_x.reshape(1, -1)[:, first:], has_non_finite(split.any_non_finite, 2, share)
    exact, gap = _exact_input_rows(x, chunk, share), (x.shape[1] - rows) * row
    return SplitRows(exact, address_of(split.x) + first * row, row, part, gap, flags, non_finite, min(TILE_ROWS, rows))


@chosen_by_type
def _input_panel(gemm: Any, block: int, cols: int, k_size: int, rows: int, part: int) -> Any:
    """Return the weights of x of a block, for `rows` rows and a thread's index."""
    if gemm.instance_class is StoredGemm:
        return lambda gemm, block, cols, k_size, rows, part: stored_input_panel(gemm, block, cols, k_size, rows, part)
    if is_split(gemm):
        return lambda gemm, block, cols, k_size, rows, part: _split_panel(
            gemm.input, gemm.split.input, (block, block + 1), cols, k_size
        )
    return lambda gemm, block, cols, k_size, rows, part: Panel(gemm.input + block * k_size * cols * VECTOR_BYTES, cols)


@chosen_by_type
def _same_row_twice(left: Any) -> Any:
    """Return the row of a left operand of one row as two equal rows."""
    if left.instance_class is SplitRows:
        return lambda left: left  # AMX multiplies more rows
    if left.instance_class is StoredRows:
        return lambda left: same_stored_row_twice(left)
    return lambda left: Rows(left.number, left.address, 0, left.k, left.runs, left.run, left.size, 0)


@compiled
def multiply_input(gemm: Any, x: Any, products: Any, chunk: Any, share: Any) -> None:
    """Compute ``W x`` of a chunk into `products` (steps, B, N, G, lanes), for the rows and blocks of a thread.

    The weights of a block are read once for all steps of the chunk. A single row is multiplied twice, as two equal
    rows: the microkernel of one row adds in another order, and a step would have other bits in a call of its own.
    """
    rows, k_size = share.last - share.first, x.shape[2]
    blocks, batch, cols, lanes = products.shape[1:]
    row_z, gap = cols * lanes * products.itemsize, blocks * batch - rows
    single = chunk.steps * rows == 1
    left = _input_rows(gemm, x, chunk, share)
    left = _same_row_twice(left) if single else left
    multiplied = RowRange(2, 2) if single else RowRange(chunk.steps * rows, max(rows, 1))
    twice = np.empty((2 if single else 0, cols * lanes), products.dtype)
    for block in range(share.block_first, share.block_last):
        to = address_of(products) + ((chunk.place * blocks + block) * batch + share.first) * row_z
        panel = _input_panel(gemm, block, cols, k_size, multiplied.total, share.part)
        sums = Sums(address_of(twice) if single else to, row_z, gap * row_z, True)
        multiply_panel(left, panel, sums, multiplied)
        if single:
            copy_numbers(products.dtype.type(0), address_of(twice), to, cols * lanes, True)
