"""Parameters and masks in the order in which compiled code reads them.

Hidden units come in blocks of `lanes`, as many as a vector register holds, padded with zeros. All gates of a block are
contiguous. In shapes, B is the number of blocks, G the number of gates that have parameters, and K the reduction
dimension of a GEMM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Masks
from lstmcore.config import LSTMConfig
from lstmcore_numba.codegen.step_emitter import INSIDE_HIDDEN, INSIDE_OUTPUT, step_numbers, unit_rows
from lstmcore_numba.gemm.amx import SPLIT_PARTS, TILE_BYTES, TILE_K
from lstmcore_numba.gemm.bf16 import pack_weight_pairs
from lstmcore_numba.gemm.bf16x3 import split_panels
from lstmcore_numba.gemm.tile_shapes import PANEL_VECTORS
from lstmcore_numba.gemm.vector import VECTOR_BYTES
from lstmcore_numba.runtime import buffer_pool

Array: TypeAlias = npt.NDArray[Any]


class Layout:
    """Sizes of padded arrays.

    Attributes
    ----------
    lanes, blocks
        Numbers in a vector; blocks of as many hidden units.
    hidden, output
        H and P, rounded up to whole vectors.
    gates, gate_row, real_gate_row
        Gates that have parameters; numbers in a row of them (B G lanes); how many of these are no padding (G H).
    tail
        Hidden units in the last block.
    padded
        Whether H or P is no multiple of `lanes`.
    """

    def __init__(self, config: LSTMConfig, dtype: np.dtype[Any]) -> None:
        self.config, self.dtype = config, dtype
        self.lanes = VECTOR_BYTES // dtype.itemsize
        self.hidden, self.output = self.round_up(config.hidden_size), self.round_up(config.output_size)
        self.blocks, self.gates = self.hidden // self.lanes, len(config.gates)
        self.gate_row, self.real_gate_row = self.hidden * self.gates, config.hidden_size * self.gates
        self.tail = config.hidden_size - (self.blocks - 1) * self.lanes
        self.padded = self.hidden != config.hidden_size or self.output != config.output_size

    def round_up(self, size: int) -> int:
        """Return the least multiple of `lanes` that is not below `size`."""
        return -(-size // self.lanes) * self.lanes

    def work(self, rows: int, k: int) -> float:
        """Return the multiply-adds of a GEMM of `rows` rows and K = `k` that makes all gates."""
        return float(rows) * k * self.gate_row

    def _to_blocks(self, rows: Array) -> Array:
        """Return parameters (G H, K) as (B, G, lanes, K), padded with zeros."""
        by_gate = rows.reshape(self.gates, self.config.hidden_size, rows.shape[1])
        full = padded(by_gate, 1, self.hidden)
        return full.reshape(self.gates, self.blocks, self.lanes, rows.shape[1]).transpose(1, 0, 2, 3)

    def pad_gate_rows(self, rows: Array) -> Array:
        """Return parameters (G H, K) as (B G lanes, K)."""
        return np.ascontiguousarray(self._to_blocks(rows)).reshape(self.gate_row, rows.shape[1])

    def pad_gates(self, parameter: Array | None) -> Array:
        """Return a parameter (G H,) as (B, G, lanes); (1, 1, 1) zeros if there is none."""
        if parameter is None:
            return np.zeros((1, 1, 1), self.dtype)
        return packed_copy(self._to_blocks(parameter[:, None])[..., 0])

    def unpad_gates(self, padded: Array) -> Array:
        """Return the parameter (G H,) of (B, G, lanes): the inverse of `pad_gates`."""
        by_gate = padded.transpose(1, 0, 2).reshape(self.gates, self.hidden)[:, : self.config.hidden_size]
        return np.ascontiguousarray(by_gate).reshape(-1)

    def unit_parameters(self, peephole: Array | None) -> Array:
        """Return the peepholes (rows, H) and the rows of `unit_rows`, in whole vectors; (1, 1) zeros if there is none.

        A number is in all columns, so that a step function loads it as it loads a peephole.
        """
        numbers = step_numbers(self.config)
        names = unit_rows(self.config, padded=self.padded)
        first = 0 if peephole is None else len(peephole)
        if first + len(names) == 0:
            return np.zeros((1, 1), self.dtype)
        rows = np.zeros((first + len(names), self.hidden), self.dtype)
        if peephole is not None:
            rows[:first, : self.config.hidden_size] = peephole
        inside = {INSIDE_HIDDEN: self.config.hidden_size, INSIDE_OUTPUT: self.config.output_size}
        for row, name in zip(rows[first:], names, strict=True):
            row[: inside.get(name)] = numbers.get(name, 1.0)
        return packed_copy(rows)

    def pad_units(self, parameter: Array | None) -> Array:
        """Return a parameter (H,) in whole vectors; zeros if there is none."""
        full = np.zeros(self.hidden, self.dtype)
        if parameter is not None:
            full[: len(parameter)] = parameter
        return full

    def pack_gates(self, rows: Array) -> Array:
        """Return parameters (G H, K) as (B, K, G, lanes): a panel of weights for each block."""
        return packed_copy(self._to_blocks(rows).transpose(0, 3, 1, 2))

    def pack_panels(self, matrix: Array) -> Array:
        """Return a matrix (K, columns in whole vectors) in panels for `gemm.product.multiply`."""
        step = PANEL_VECTORS * self.lanes
        return packed_copy(
            np.concatenate([matrix[:, k : k + step].ravel() for k in range(0, max(matrix.shape[1], 1), step)])
        )


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an uninitialised array whose address is a multiple of the size of a vector."""
    return buffer_pool.empty_aligned(shape, dtype, VECTOR_BYTES)


def packed_copy(array: Array) -> Array:
    """Return a copy of `array` that is aligned and C-contiguous."""
    copy = empty_aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def padded(array: Array, axis: int, size: int) -> Array:
    """Return a copy of `array` with zeros at the end of `axis`, which then has length `size`."""
    shape = list(array.shape)
    shape[axis] = size
    full = empty_aligned(tuple(shape), array.dtype)
    full[...] = 0
    full[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
    return full


@dataclass(frozen=True, slots=True)
class Weights:
    """Packed parameters in the dtype of the arithmetic.

    Attributes
    ----------
    input, recurrent
        (B, K, G, lanes) for the products with x and with the recurrent input.
    bias, gain_x, gain_h
        (B, G, lanes).
    peephole
        (rows, H in whole vectors) the peepholes, then the rows of `Layout.unit_parameters`.
    projection
        Panels of the transposed projection (H, P).
    input_rows
        (B G lanes, I) the weights of x, for NumPy.
    back_input, back_recurrent, back_projection
        Panels of the same weights for products with gradients.
    gain_c, shift_c
        (H in whole vectors,).
    """

    input: Array
    recurrent: Array
    bias: Array
    peephole: Array
    projection: Array
    input_rows: Array
    back_input: Array
    back_recurrent: Array
    back_projection: Array
    gain_x: Array
    gain_h: Array
    gain_c: Array
    shift_c: Array
    _split: dict[str, Array | None] = field(default_factory=dict)
    _pairs: dict[str, Array] = field(default_factory=dict)

    def split(self, name: str, vectors: int, panel_vectors: int, k: int) -> Array | None:
        """Return the weights `name` split into three bfloat16 numbers, for AMX; None if any is not finite.

        They are made at the first call.

        Parameters
        ----------
        name
            The attribute that holds them in float32.
        vectors, panel_vectors
            Columns in vectors, of all and of one panel.
        k
            The reduction dimension.
        """
        if name not in self._split:
            parts = empty_aligned((vectors * -(-k // TILE_K) * SPLIT_PARTS * TILE_BYTES // 2,), np.dtype(np.uint16))
            non_finite = np.zeros(1, np.uint8)
            split_panels(getattr(self, name), vectors, panel_vectors, k, parts, non_finite)
            self._split[name] = None if non_finite[0] else parts
        return self._split[name]

    def packed_pairs(self, name: str) -> Array:
        """Return the weights `name` as pairs of bfloat16, which are made at the first call."""
        if name not in self._pairs:
            self._pairs[name] = packed_copy(pack_weight_pairs(getattr(self, name)))
        return self._pairs[name]


def pack(layout: Layout, parameters: Mapping[str, Array]) -> Weights:
    """Return packed copies of the parameters."""
    config, dtype = layout.config, layout.dtype
    p = {name: np.asarray(array, dtype) for name, array in parameters.items()}
    recurrent = layout.hidden if config.recurrence == "cell" else layout.output
    absent = np.zeros(1, dtype)
    projection = back_projection = absent
    if config.proj_size:
        proj = p["weight_proj"]
        projection = layout.pack_panels(padded(padded(proj.T, 0, layout.hidden), 1, layout.output))
        back_projection = layout.pack_panels(padded(padded(proj, 0, layout.output), 1, layout.hidden))
    input_rows = layout.pad_gate_rows(p["weight_x"])
    return Weights(
        input=layout.pack_gates(p["weight_x"]),
        recurrent=layout.pack_gates(p["weight_h"]),
        bias=layout.pad_gates(p.get("bias")),
        peephole=layout.unit_parameters(p.get("peephole")),
        projection=projection,
        input_rows=input_rows,
        back_input=layout.pack_panels(padded(input_rows, 1, layout.round_up(config.input_size))),
        back_recurrent=layout.pack_panels(padded(layout.pad_gate_rows(p["weight_h"]), 1, recurrent)),
        back_projection=back_projection,
        gain_x=layout.pad_gates(p.get("norm_gain_x")),
        gain_h=layout.pad_gates(p.get("norm_gain_h")),
        gain_c=layout.pad_units(p.get("norm_gain_c")),
        shift_c=layout.pad_units(p.get("norm_bias_c")),
    )


@dataclass(frozen=True, slots=True)
class LayoutMasks:
    """Masks in whole vectors: (N, K), (T, N, P) and (T, N, H). A mask that is not given has length 0."""

    recurrent: Array
    hidden: Array
    cell: Array


def layout_masks(layout: Layout, masks: Masks | None, empty: Array | None) -> LayoutMasks:
    """Return copies of `masks`; the recurrent mask is 0 in the rows that `empty` (N,) marks as without steps."""
    masks = Masks() if masks is None else masks
    dtype = layout.dtype
    recurrent = np.zeros((0, 1), dtype)
    if masks.recurrent is not None:
        # In C order: an array in Fortran order has another type, for which Numba would compile every pass again.
        recurrent = np.array(masks.recurrent, dtype, order="C")
        if empty is not None:
            recurrent[empty] = 0
    none = np.zeros((0, 1, 1), dtype)

    def pad(mask: Array | None, size: int) -> Array:
        return none if mask is None else padded(np.asarray(mask, dtype), 2, size)

    return LayoutMasks(recurrent, pad(masks.zoneout_hidden, layout.output), pad(masks.zoneout_cell, layout.hidden))
