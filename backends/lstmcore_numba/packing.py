"""Parameters and arrays in whole vectors: hidden units in blocks, all gates of a block side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Masks
from lstmcore.config import LSTMConfig
from lstmcore_numba.gemm.amx import DEPTH, PARTS, TILE_BYTES
from lstmcore_numba.gemm.bf16 import paired_weights
from lstmcore_numba.gemm.bf16x3 import pair_panels
from lstmcore_numba.gemm.vector import BYTES, PANEL
from lstmcore_numba.runtime import buffer_pool as memory

Array: TypeAlias = npt.NDArray[Any]


class Layout:
    """The sizes of padded arrays.

    Attributes
    ----------
    lanes, blocks, hidden
        Numbers in a vector; blocks of as many hidden units; H in whole vectors.
    output
        P in whole vectors.
    gates, wide, real
        Gates that have parameters; numbers in a row of them, and how many of those are not padding.
    tail
        Hidden units in the last block.
    """

    def __init__(self, config: LSTMConfig, dtype: np.dtype[Any]) -> None:
        self.config, self.dtype = config, dtype
        self.lanes = BYTES // dtype.itemsize
        self.hidden, self.output = self.whole(config.hidden_size), self.whole(config.output_size)
        self.blocks, self.gates = self.hidden // self.lanes, len(config.gates)
        self.wide, self.real = self.hidden * self.gates, config.hidden_size * self.gates
        self.tail = config.hidden_size - (self.blocks - 1) * self.lanes

    def whole(self, size: int) -> int:
        """The least multiple of `lanes` that is not below `size`."""
        return -(-size // self.lanes) * self.lanes

    def work(self, rows: int, inner: int) -> float:
        """Multiply-adds of a product of `rows` by `inner` values with all gates."""
        return float(rows) * inner * self.wide

    def spread(self, rows: Array) -> Array:
        """Parameters (G H, K) as (B, G, lanes, K), padded with zeros."""
        apart = rows.reshape(self.gates, self.config.hidden_size, rows.shape[1])
        full = padded(apart, 1, self.hidden)
        return full.reshape(self.gates, self.blocks, self.lanes, rows.shape[1]).transpose(1, 0, 2, 3)

    def wide_rows(self, rows: Array) -> Array:
        """Parameters (G H, K) as (B G lanes, K)."""
        return np.ascontiguousarray(self.spread(rows)).reshape(self.wide, rows.shape[1])

    def gathered(self, wide: Array) -> Array:
        """The inverse of `wide_rows`."""
        apart = wide.reshape(self.blocks, self.gates, self.lanes, wide.shape[1]).transpose(1, 0, 2, 3)
        joined = apart.reshape(self.gates, self.hidden, wide.shape[1])[:, : self.config.hidden_size]
        return np.ascontiguousarray(joined).reshape(self.gates * self.config.hidden_size, wide.shape[1])

    def of_gates(self, wide: Array) -> Array:
        """The inverse of `wide_parameter`."""
        return self.gathered(wide.reshape(self.wide, 1))[:, 0]

    def wide_parameter(self, rows: Array | None) -> Array:
        """A parameter (G H,) as (B, G, lanes); zeros where there is none."""
        if rows is None:
            return np.zeros((1, 1, 1), self.dtype)
        return in_order(self.spread(rows[:, None])[..., 0])

    def unit_parameter(self, units: Array | None) -> Array:
        """A parameter (H,) in whole vectors; zeros where there is none."""
        full = np.zeros(self.hidden, self.dtype)
        if units is not None:
            full[: len(units)] = units
        return full

    def for_gates(self, rows: Array) -> Array:
        """Parameters (G H, K) as (B, K, G, lanes): the order in which a product of gates reads them."""
        return in_order(self.spread(rows).transpose(0, 3, 1, 2))

    def panels(self, matrix: Array) -> Array:
        """A matrix (K, columns in whole vectors) in panels: the order in which `tiles.product` reads it."""
        step = PANEL * self.lanes
        return in_order(
            np.concatenate([matrix[:, k : k + step].ravel() for k in range(0, max(matrix.shape[1], 1), step)])
        )


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array with anything in it that starts at a multiple of the size of a vector."""
    return memory.aligned(shape, dtype, BYTES)


def in_order(array: Array) -> Array:
    """A copy of `array`, aligned and without gaps."""
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def padded(array: Array, axis: int, size: int) -> Array:
    """`array` with zeros at the end of an axis; a copy."""
    shape = list(array.shape)
    shape[axis] = size
    full = aligned(tuple(shape), array.dtype)
    full[...] = 0
    full[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
    return full


@dataclass(frozen=True, slots=True)
class Weights:
    """Packed parameters in the dtype of arithmetic."""

    input: Array
    recurrent: Array
    bias: Array
    peephole: Array
    projection: Array
    wide_input: Array
    back_input: Array
    back_recurrent: Array
    back_projection: Array
    gain_x: Array
    gain_h: Array
    gain_c: Array
    shift_c: Array
    in_parts: dict[str, Array | None] = field(default_factory=dict)
    in_pairs: dict[str, Array] = field(default_factory=dict)

    def cut(self, name: str, vectors: int, panel: int, inner: int) -> Array | None:
        """The weights `name` in parts, which are made when they are first of use; None where they are not finite."""
        if name not in self.in_parts:
            found = aligned((vectors * -(-inner // DEPTH) * PARTS * TILE_BYTES // 2,), np.dtype(np.uint16))
            wild = np.zeros(1, np.uint8)
            pair_panels(getattr(self, name), vectors, panel, inner, found, wild)
            self.in_parts[name] = None if wild[0] else found
        return self.in_parts[name]

    def paired(self, name: str) -> Array:
        """The weights `name` as pairs of bfloat16, which are made when they are first of use."""
        if name not in self.in_pairs:
            self.in_pairs[name] = in_order(paired_weights(getattr(self, name)))
        return self.in_pairs[name]


def pack(layout: Layout, parameters: Mapping[str, Array]) -> Weights:
    """Copies of the parameters in the orders in which they are read."""
    config, dtype = layout.config, layout.dtype
    p = {name: np.asarray(array, dtype) for name, array in parameters.items()}
    recurrent = layout.hidden if config.recurrence == "cell" else layout.output
    nothing = np.zeros(1, dtype)
    proj = p.get("weight_proj")
    wide_input = layout.wide_rows(p["weight_x"])
    return Weights(
        input=layout.for_gates(p["weight_x"]),
        recurrent=layout.for_gates(p["weight_h"]),
        bias=layout.wide_parameter(p.get("bias")),
        peephole=padded(p["peephole"], 1, layout.hidden) if config.peephole else nothing[None],
        projection=nothing
        if proj is None
        else layout.panels(padded(padded(proj.T, 0, layout.hidden), 1, layout.output)),
        wide_input=wide_input,
        back_input=layout.panels(padded(wide_input, 1, layout.whole(config.input_size))),
        back_recurrent=layout.panels(padded(layout.wide_rows(p["weight_h"]), 1, recurrent)),
        back_projection=nothing
        if proj is None
        else layout.panels(padded(padded(proj, 0, layout.output), 1, layout.hidden)),
        gain_x=layout.wide_parameter(p.get("norm_gain_x")),
        gain_h=layout.wide_parameter(p.get("norm_gain_h")),
        gain_c=layout.unit_parameter(p.get("norm_gain_c")),
        shift_c=layout.unit_parameter(p.get("norm_bias_c")),
    )


@dataclass(frozen=True, slots=True)
class OwnMasks:
    """Masks in whole vectors; with no rows where there is none."""

    recurrent: Array
    hidden: Array
    cell: Array


def own_masks(layout: Layout, masks: Masks | None, empty: Array | None) -> OwnMasks:
    """Copies of the masks; that of rows without steps is 0, whatever it holds."""
    masks = Masks() if masks is None else masks
    dtype = layout.dtype
    recurrent = np.zeros((0, 1), dtype)
    if masks.recurrent is not None:
        # In C order: a mask in Fortran order has another type, for which Numba would compile every pass again.
        recurrent = np.array(masks.recurrent, dtype, order="C")
        if empty is not None:
            recurrent[empty] = 0
    none = np.zeros((0, 1, 1), dtype)

    def whole(mask: Array | None, size: int) -> Array:
        return none if mask is None else padded(np.asarray(mask, dtype), 2, size)

    return OwnMasks(recurrent, whole(masks.zoneout_hidden, layout.output), whole(masks.zoneout_cell, layout.hidden))
