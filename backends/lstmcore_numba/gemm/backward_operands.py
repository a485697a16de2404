"""The operands of a backward pass and of the gradients after it, in vectors or on AMX."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from lstmcore_numba.codegen.numba_compiler import chosen_by_type, compiled
from lstmcore_numba.gemm.amx import (
    ROW_GAP_BYTES,
    SPLIT_PARTS,
    TILE_K,
    TILE_ROWS,
    amx_panel_matmul,
    split_bytes,
    split_chunks,
)
from lstmcore_numba.gemm.bf16x3 import SplitSource, SplitTarget, split_row_pairs, split_row_range, split_transposed
from lstmcore_numba.gemm.operands import Plane, Rows, SplitPanel, SplitRows, Sums, address_of, is_split
from lstmcore_numba.gemm.product import Panels, SplitPanels, all_rows, multiply_panel
from lstmcore_numba.gemm.thread_share import has_non_finite
from lstmcore_numba.gemm.vector import VECTOR_BYTES, add_numbers
from lstmcore_numba.tuning import AMX_WEIGHT_GRADIENT_ROWS, WEIGHT_GRADIENT_ROWS


class BackwardSplitOperands(NamedTuple):
    """Split operands of a backward pass: of the GEMM of dz with the recurrent weights.

    Attributes
    ----------
    recurrent
        Packed weights, split.
    dz
        (2, 3, N, K) dz of a step, and of the next one.
    non_finite, any_non_finite
        (2, threads, N) and (2, threads), as in `forward_operands.SplitOperands`.
    """

    recurrent: Any
    dz: Any
    non_finite: Any
    any_non_finite: Any


class VectorBackward(NamedTuple):
    """GEMMs in vectors: the address of the packed recurrent weights."""

    recurrent: int


class SplitBackward(NamedTuple):
    """GEMMs on AMX: `BackwardSplitOperands`, and the address of the packed recurrent weights in float32."""

    recurrent: int
    split: BackwardSplitOperands


@chosen_by_type
def backward_gemm(split: Any, weight: Any) -> Any:
    """Return the operands of a pass: `SplitBackward` if these are given, else `VectorBackward`."""
    if isinstance(split, types.NoneType):
        return lambda split, weight: VectorBackward(address_of(weight))
    return lambda split, weight: SplitBackward(address_of(weight), split)


@chosen_by_type
def publish_gradient(gemm: Any, dz: Any, slot: int, share: Any) -> Any:
    """Convert this thread's part of dz (`Rows` of all rows and blocks) to the operand of the step of `slot`."""
    return _publish_split_gradient if is_split(gemm) else lambda gemm, dz, slot, share: None


def _publish_split_gradient(gemm: Any, dz: Any, slot: int, share: Any) -> None:
    split = gemm.split
    slot_bytes, part, row = split.dz.strides[:3]
    slot_flags, part_flags = split.non_finite.strides[:2]
    source = SplitSource(dz.address + share.unit * dz.run, dz.row, share.units, dz.run, dz.size)
    target = SplitTarget(address_of(split.dz) + slot * slot_bytes + share.unit * dz.size * 2, row, part)
    flags = address_of(split.non_finite) + slot * slot_flags + (share.part * part_flags if share.by_units else 0)
    split.any_non_finite[slot, share.part] = split_row_range(source, target, share.first, share.last, flags)


@chosen_by_type
def gradient_rows(gemm: Any, dz: Any, slot: int, share: Any) -> Any:
    """Return this thread's rows of dz, or of what was published in `slot`, as a left operand."""
    return _split_gradient_rows if is_split(gemm) else _vector_gradient_rows


def _vector_gradient_rows(gemm: Any, dz: Any, slot: int, share: Any) -> Any:
    return _rows_from(dz, share.first)


@compiled
def _rows_from(rows: Any, first: int) -> Any:
    """Return `Rows` from row `first` on."""
    address = rows.address + first * rows.row
    return Rows(rows.number, address, rows.row, rows.k, rows.runs, rows.run, rows.size, rows.gap)


def _split_gradient_rows(gemm: Any, dz: Any, slot: int, share: Any) -> Any:
    split, first = gemm.split, share.first
    slot_bytes, part, row = split.dz.strides[:3]
    flags = split.non_finite[slot, : share.parts if share.by_units else 1, first:]
    non_finite, address = has_non_finite(split.any_non_finite, slot, share), address_of(split.dz) + slot * slot_bytes
    height = min(TILE_ROWS, share.last - first)
    return SplitRows(_rows_from(dz, first), address + first * row, row, part, 0, flags, non_finite, height)


@chosen_by_type
def recurrent_panels(gemm: Any, first: int, vectors: int, k_size: int) -> Any:
    """Return the recurrent weights of `vectors` vectors from `first` on."""
    if is_split(gemm):
        return lambda gemm, first, vectors, k_size: SplitPanels(
            Panels(gemm.recurrent + first * k_size * VECTOR_BYTES, vectors),
            address_of(gemm.split.recurrent) + split_chunks(k_size) * split_bytes(first),
            vectors,
        )
    return lambda gemm, first, vectors, k_size: Panels(gemm.recurrent + first * k_size * VECTOR_BYTES, vectors)


# The gradient of the input --------------------------------------------------------------------------------------------


class VectorInputGradient(NamedTuple):
    """The input's gradient in vectors: the packed weights."""

    weight: Any


class SplitInputGradient(NamedTuple):
    """The same on AMX: the weights in float32, their parts, and memory for split rows (3, rows, K) and their flags."""

    weight: Any
    split: Any
    rows: Any
    flags: Any


@chosen_by_type
def input_gradient_gemm(split_weight: Any, weight: Any, rows: int, k_size: int) -> Any:
    """Return the operands for up to `rows` rows at once; on AMX if the split weights are given."""
    if isinstance(split_weight, types.NoneType):
        return lambda split_weight, weight, rows, k_size: VectorInputGradient(weight)
    return _split_input_gradient_gemm


def _split_input_gradient_gemm(split_weight: Any, weight: Any, rows: int, k_size: int) -> Any:
    whole = (k_size + TILE_K - 1) // TILE_K * TILE_K
    split = np.empty((SPLIT_PARTS, rows, whole + ROW_GAP_BYTES // 2), np.uint16)
    split[:, :, k_size:] = 0
    return SplitInputGradient(weight, split_weight, split, np.empty((1, rows), np.uint8))


@chosen_by_type
def gathered_rows(gemm: Any, exact: Any, rows: Any) -> Any:
    """Return `Rows` as a left operand; on AMX they are split, and groups lie without gaps."""
    return _gather_split_rows if is_split(gemm) else lambda gemm, exact, rows: exact


def _gather_split_rows(gemm: Any, exact: Any, rows: Any) -> Any:
    part, row = gemm.rows.strides[:2]
    address, flags, non_finite = address_of(gemm.rows), address_of(gemm.flags), 0
    for first in range(0, rows.total, rows.group):
        from_row = exact.address + first * exact.row + first // rows.group * exact.gap
        source = SplitSource(from_row, exact.row, exact.runs, exact.run, exact.size)
        target = SplitTarget(address + first * row, row, part)
        non_finite |= split_row_range(source, target, 0, rows.group, flags + first)
    return SplitRows(exact, address, row, part, 0, gemm.flags[:, : rows.total], non_finite != 0, TILE_ROWS)


@chosen_by_type
def input_panels(gemm: Any, vectors: int) -> Any:
    """Return the weights of all `vectors` vectors."""
    if is_split(gemm):
        return lambda gemm, vectors: SplitPanels(
            Panels(address_of(gemm.weight), vectors), address_of(gemm.split), vectors
        )
    return lambda gemm, vectors: Panels(address_of(gemm.weight), vectors)


# The gradients of weights ---------------------------------------------------------------------------------------------


class VectorWeightGradient(NamedTuple):
    """A weight gradient in vectors: the most rows that are summed at once."""

    most: int


class SplitWeightGradient(NamedTuple):
    """The same on AMX, with memory for both operands, the product, and a flag of each operand."""

    most: int
    split: Any
    right: Any
    product: Any
    flags: Any


@chosen_by_type
def weight_gradient_gemm(use_split: Any, like: Any, columns: int, cols: int) -> Any:
    """Return the operands of a gradient (columns, cols vectors); in vectors if `use_split` is None."""
    if isinstance(use_split, types.NoneType):
        return lambda use_split, like, columns, cols: VectorWeightGradient(WEIGHT_GRADIENT_ROWS)
    return _split_weight_gradient_gemm


def _split_weight_gradient_gemm(use_split: Any, like: Any, columns: int, cols: int) -> Any:
    most, rows = AMX_WEIGHT_GRADIENT_ROWS, (columns + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    left = np.empty((SPLIT_PARTS, rows, most + ROW_GAP_BYTES // 2), np.uint16)
    right = np.empty(most // TILE_K * split_bytes(cols), np.uint8)
    product = np.empty(columns * cols * VECTOR_BYTES // like.itemsize, like.dtype)
    return SplitWeightGradient(most, left, right, product, np.empty(2, np.uint8))


@chosen_by_type
def split_columns(gemm: Any, source: Any, depth: int, columns: int) -> Any:
    """Convert `depth` rows of a `Plane`, which are the values of K, to the left operand of all blocks."""
    return _split_columns if is_split(gemm) else lambda gemm, source, depth, columns: None


def _split_columns(gemm: Any, source: Any, depth: int, columns: int) -> None:
    gemm.flags[0] = 0
    part, row = gemm.split.strides[:2]
    rows, target = (
        SplitSource(source.address, source.row, 1, 0, columns),
        SplitTarget(address_of(gemm.split), row, part),
    )
    split_transposed(rows, target, depth, address_of(gemm.flags))


@chosen_by_type
def add_weight_gradient(gemm: Any, left: Any, panel: Any, target: int, columns: int) -> Any:
    """Add the product of `Columns` and a panel of as many rows to (columns, vectors) at the address `target`."""
    return _add_split_gradient if is_split(gemm) else _add_vector_gradient


def _add_vector_gradient(gemm: Any, left: Any, panel: Any, target: int, columns: int) -> None:
    multiply_panel(left, panel, Sums(target, panel.cols * VECTOR_BYTES, 0, False), all_rows(columns))


def _add_split_gradient(gemm: Any, left: Any, panel: Any, target: int, columns: int) -> None:
    gemm.flags[1] = 0
    row_bytes, right, product = panel.cols * VECTOR_BYTES, address_of(gemm.right), address_of(gemm.product)
    parts, flags = Plane(right, split_bytes(panel.cols)), address_of(gemm.flags)
    split_row_pairs(panel.cols, Plane(panel.address, row_bytes), parts, left.size, flags + 1)
    if gemm.flags[0] == 0 and gemm.flags[1] == 0:
        part, row = gemm.split.strides[:2]
        exact = Rows(left.number, 0, 0, left.row, 1, 0, left.size, 0)
        rows = SplitRows(exact, address_of(gemm.split), row, part, 0, gemm.flags.reshape(1, -1), False, TILE_ROWS)
        sums = Sums(product, row_bytes, 0, True)
        amx_panel_matmul(rows, rows.address, SplitPanel(panel, right, right), sums, columns)
        add_numbers(left.number, product, target, columns * row_bytes // left.row)
    else:
        multiply_panel(left, panel, Sums(target, row_bytes, 0, False), all_rows(columns))
