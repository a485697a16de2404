"""The arrays that a forward pass works in, which a recorded call keeps as its tape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lstmcore_numba.gemm.amx import ROW_GAP_BYTES, SPLIT_PARTS, TILE_K
from lstmcore_numba.packing import Array, Layout, LayoutMasks, Weights, empty_aligned
from lstmcore_numba.schedule import Schedule, ThreadPlan, layer_k
from lstmcore_numba.stored_packing import stored_memory
from lstmcore_numba.time_loop import Norms


class CallSizes(NamedTuple):
    """Sizes and kind of a forward call: all that its workspace depends on, apart from the layer.

    Attributes
    ----------
    steps, batch
        T and N.
    masked
        Whether the call has a mask of recurrent dropout.
    record
        Whether the arrays of all steps are kept.
    position, lag
        Index of the layer in its wavefront, and its lag in steps; None outside a wavefront.
    """

    steps: int
    batch: int
    masked: bool
    record: bool
    position: int | None = None
    lag: int | None = None


@dataclass(frozen=True, slots=True)
class Workspace:
    """Arrays for T steps of N rows, of the calling code alone. What a configuration lacks has a length of 1.

    The arrays that are not listed here are arguments of `time_loop.forward`, of the same names.

    Attributes
    ----------
    norms
        Normalised rows and deviations, in the order of `time_loop.Norms`.
    full_lengths
        (N,) filled with T.
    zero_h, zero_c, zero_state
        An initial state of zeros: (N, P), (N, H), and both with an axis in front.
    shapes
        Shape of y, and of h and c with an axis in front.
    input_chunk
        Steps whose input projections are computed at once.
    counter
        (1,) arrivals at the barrier.
    split
        Arrays of `time_loop.SplitOperands` that hold no weights; None without AMX.
    packed_h
        `time_loop.PackedPairs.h`; None unless GEMMs take packed bfloat16 pairs.
    stored
        Memory of `stored_packing.stored_memory`; None unless GEMMs read stored weights.
    """

    gates: Array
    raw: Array
    operand: Array
    q: Array
    projected: Array
    h: Array
    c: Array
    norms: tuple[Array, Array, Array, Array, Array, Array] | None
    full_lengths: Array
    zero_h: Array
    zero_c: Array
    zero_state: tuple[Array, Array]
    shapes: tuple[tuple[int, ...], ...]
    input_chunk: int
    plan: ThreadPlan
    counter: Array
    split: tuple[Array, ...] | None
    packed_h: Array | None
    stored: tuple[Array, Array] | None

    @property
    def size(self) -> int:
        """Bytes of the largest arrays."""
        return int(self.gates.nbytes + self.h.nbytes + self.c.nbytes + sum(part.nbytes for part in self.split or ()))


@dataclass(frozen=True, slots=True)
class LayerTape:
    """Tape of one layer in one direction: arrays of all steps by time index, padded to whole vectors."""

    weights: Weights
    lengths: Array
    masks: LayoutMasks
    x: Array
    workspace: Workspace
    norms: Norms | None


def empty_split(lead: tuple[int, ...], rows: int, k: int) -> Array:
    """Return memory for `rows` rows of `k` values as parts of bfloat16; the padding of a row is 0."""
    whole = -(-k // TILE_K) * TILE_K
    parts = empty_aligned((*lead, rows, whole + ROW_GAP_BYTES // 2), np.dtype(np.uint16))
    parts[..., k:] = 0
    return parts


def make_workspace(
    schedule: Schedule, sizes: CallSizes, *, raw: bool, packed_pairs: bool, stored_form: str | None, threads: int
) -> Workspace:
    """Allocate the workspace of a call.

    Parameters
    ----------
    schedule
        Of the layer.
    sizes
        Of the call.
    raw
        Whether a recorded call keeps pre-activations.
    packed_pairs
        Whether GEMMs take packed bfloat16 pairs.
    stored_form
        The form of stored weights, if GEMMs read them.
    threads
        Threads of a call at most.
    """
    layout, (steps, batch, masked, record, _, lag) = schedule.layout, sizes
    config, dtype, k = layout.config, layout.dtype, layout.config.recurrent_size
    chunk = schedule.input_chunk(steps, batch)
    if lag is not None:
        chunk = min(chunk, lag)
    stored, projected_steps = (steps, steps if config.proj_size else 1) if record else (1, 1)
    gate_shape = (layout.blocks, batch, layout.gates, layout.lanes)
    chunks = steps if record else chunk
    gates = empty_aligned((chunks if record or not config.layer_norm else 1, *gate_shape), dtype)
    zero_h, zero_c = np.zeros((batch, config.output_size), dtype), np.zeros((batch, config.hidden_size), dtype)
    plan = schedule.thread_plan(steps, batch, layer_k(layout), masked=masked)
    return Workspace(
        gates=gates,
        raw=np.empty_like(gates) if record and raw else np.empty((1, 1, 1, 1, 1), dtype),
        operand=np.empty((stored, batch, k) if masked else (1, 1, k), dtype),
        q=np.zeros((projected_steps, batch, layout.hidden), dtype),
        projected=np.empty((projected_steps, batch, layout.output), dtype),
        h=empty_aligned((steps + 1 if record else 2, batch, layout.output), dtype),
        c=empty_aligned((steps + 1 if record else 2, batch, layout.hidden), dtype),
        norms=_norm_arrays(layout, sizes, chunks) if config.layer_norm else None,
        full_lengths=np.full(batch, steps, np.int64),
        zero_h=zero_h,
        zero_c=zero_c,
        zero_state=(zero_h[None], zero_c[None]),
        shapes=((steps, *zero_h.shape), (1, *zero_h.shape), (1, *zero_c.shape)),
        input_chunk=chunk,
        plan=plan,
        counter=np.zeros(1, np.int64),
        split=_split_arrays(layout, batch, chunk, plan) if schedule.forward_uses_amx(batch) else None,
        packed_h=_packed_h(layout, batch) if packed_pairs else None,
        stored=stored_memory(layout, stored_form, threads, batch, chunk) if stored_form is not None else None,
    )


def _norm_arrays(layout: Layout, sizes: CallSizes, chunks: int) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Allocate normalised rows and deviations; W x of `chunks` steps."""
    steps, batch, dtype = sizes.steps, sizes.batch, layout.dtype
    stored = steps if sizes.record else 1
    gate_shape = (layout.blocks, batch, layout.gates, layout.lanes)
    return (
        empty_aligned((chunks, *gate_shape), dtype),
        np.empty((steps, batch), dtype),
        empty_aligned((stored, *gate_shape), dtype),
        np.empty((stored, batch), dtype),
        empty_aligned((stored, layout.blocks, batch, 1, layout.lanes), dtype),
        np.empty((stored, batch), dtype),
    )


def _split_arrays(layout: Layout, batch: int, chunk: int, plan: ThreadPlan) -> tuple[Array, ...]:
    """Allocate split operands and their flags of non-finite rows."""
    threads, config = max(1, plan.max_threads), layout.config
    return (
        empty_split((SPLIT_PARTS,), chunk * batch, config.input_size),
        empty_split((2, SPLIT_PARTS), batch, config.recurrent_size),
        np.zeros(chunk * batch, np.uint8),
        np.zeros((2, threads, batch), np.uint8),
        np.zeros((3, threads), np.int64),
    )


def _packed_h(layout: Layout, batch: int) -> Array:
    """Allocate h as bfloat16, of a step and of the next one; 0 behind the last unit."""
    packed = empty_aligned((2, batch, layout.output + ROW_GAP_BYTES // 2), np.dtype(np.uint16))
    packed[...] = 0
    return packed
