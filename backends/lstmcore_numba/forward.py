"""The forward call of one layer: its arguments before the pass, and its results after it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstmcore.backend import Masks, State
from lstmcore_numba import cell, time_loop
from lstmcore_numba.call_cache import CallCache
from lstmcore_numba.compiled_layer import CompiledLayer, zero_padding, zero_rows
from lstmcore_numba.gemm.bf16 import pack_pairs
from lstmcore_numba.gemm.stored_operands import StoredOperands
from lstmcore_numba.packing import Array, LayoutMasks, Weights, layout_masks, packed_copy
from lstmcore_numba.runtime import buffer_pool
from lstmcore_numba.runtime.tasks import STORED_TASK_BYTES
from lstmcore_numba.stored_packing import StoredWeights, with_memory
from lstmcore_numba.workspace import CallSizes, LayerTape, Workspace


class ForwardCall(NamedTuple):
    """Arguments of `Kernel._forward`."""

    weights: Weights | StoredWeights
    x: Array
    state: State | None
    lengths: Any
    masks: Masks | None
    record: bool
    out: Array | None


class WavefrontLayer(NamedTuple):
    """A layer of a wavefront.

    Attributes
    ----------
    lowest
        Whether its x is the caller's; else x is the output of another layer, and has no values yet.
    position
        Index in the wavefront.
    lag
        Steps by which each layer is behind the layer below.
    progress
        Arrays that it shares with its neighbours.
    """

    lowest: bool
    position: int
    lag: int
    progress: time_loop.WavefrontProgress


class PreparedForward(NamedTuple):
    """A forward call before its pass.

    Attributes
    ----------
    args
        Arguments of `time_loop.forward`.
    keepalive
        What these arguments point to by address.
    y, last_h, last_c
        Results of the pass, in the dtype of the arithmetic or of packed pairs.
    empty
        (N,) which rows have no steps; None without lengths.
    tape
        None unless the call is recorded.
    """

    args: tuple[Any, ...]
    keepalive: tuple[Any, ...]
    workspace: Workspace
    y: Array
    last_h: Array
    last_c: Array
    empty: Array | None
    tape: LayerTape | None


class _Inputs(NamedTuple):
    """Inputs of a pass: x as it is read and as the tape keeps it, the weights of x, and pairs or stored weights."""

    x: Array
    recorded_x: Array
    weight: Array
    pairs: time_loop.PackedPairs | StoredOperands | None


def run_forward(layer: CompiledLayer, cache: CallCache, call: ForwardCall) -> tuple[Array, State, LayerTape | None]:
    """Return y, the final state and the tape (None unless the call is recorded)."""
    prepared = prepare_forward(layer, cache, call)
    plan = prepared.workspace.plan
    layer.run_pass(time_loop.forward, prepared.args, plan.max_threads, plan.shared_work)
    return finish_forward(layer, prepared, call.state, call.out)


def prepare_forward(
    layer: CompiledLayer, cache: CallCache, call: ForwardCall, wavefront: WavefrontLayer | None = None
) -> PreparedForward:
    """Allocate the arrays of a call, and store the arguments of its pass.

    Parameters
    ----------
    layer, cache
        The layer, and its cached calls.
    call
        The caller's arguments, which are valid.
    wavefront
        The layer's place in a wavefront, if it runs in one.
    """
    config = layer.config
    steps, batch, _ = call.x.shape
    empty = None if call.lengths is None else call.lengths == 0
    masks = layer.no_masks if call.masks is None else layout_masks(layer.layout, call.masks, empty)
    position, lag = (None, None) if wavefront is None else (wavefront.position, wavefront.lag)
    cached = cache.call(CallSizes(steps, batch, len(masks.recurrent) > 0, call.record, position, lag))
    workspace = cached.workspace
    lengths = workspace.full_lengths if call.lengths is None else np.array(call.lengths, np.int64)
    weights, stored = _weights_of(call, workspace)
    inputs = _inputs(layer, call, weights, workspace, lengths, values_exist=wavefront is None or wavefront.lowest)
    if stored is not None:
        inputs = inputs._replace(pairs=stored)
    first_h, first_c = _first_state(layer, call.state, workspace, empty)
    y = _output(layer, call, workspace)
    pass_y = y if workspace.packed_h is None else y.view(np.uint16)
    last_h, last_c = np.empty(workspace.zero_h.shape, layer.dtype), np.empty(workspace.zero_c.shape, layer.dtype)
    norms = _norms(layer, workspace, weights)
    progress = None if wavefront is None else wavefront.progress
    values = _PassValues(weights, pass_y, lengths, inputs, norms, progress)
    args = _pass_arguments(layer, call, workspace, masks, values)
    memory = np.empty(STORED_TASK_BYTES // 8 + len(args), np.int64)
    function = time_loop.store_forward(memory, memory[STORED_TASK_BYTES // 8 :], *args)
    plain = call.masks is None and call.lengths is None and wavefront is None and not call.record
    if plain and workspace.size <= layer.tuning.cached_bytes:
        cached.store(call.weights, function, memory, args)
    states = (first_h, first_c, last_h, last_c, config.reverse, workspace.h, workspace.c, pass_y)
    task = (function, memory.ctypes.data, workspace.counter, *states)
    tape = LayerTape(weights, lengths, masks, inputs.recorded_x, workspace, norms) if call.record else None
    return PreparedForward(task, (args, memory), workspace, y, last_h, last_c, empty, tape)


def finish_forward(
    layer: CompiledLayer, prepared: PreparedForward, state: State | None, out: Array | None
) -> tuple[Array, State, LayerTape | None]:
    """Return the results of `run_forward`, after the pass.

    Parameters
    ----------
    layer, prepared
        The layer, and what `prepare_forward` returned.
    state, out
        The caller's arguments.
    """
    y, last_h, empty = prepared.y, prepared.last_h, prepared.empty
    last = State(last_h if layer.same_dtype else last_h.astype(layer.storage), prepared.last_c)
    if state is not None and empty is not None:
        last.h[empty], last.c[empty] = state.h[empty], state.c[empty]
    if out is None:
        out = y.astype(layer.storage, copy=False)
    elif y is not out:
        out[...] = y
    return out, last, prepared.tape


def _weights_of(call: ForwardCall, workspace: Workspace) -> tuple[Weights, StoredOperands | None]:
    """Return the weights that a pass reads in the dtype of the arithmetic, and those that it reads as stored."""
    weights = call.weights
    if isinstance(weights, Weights):
        return weights, None
    if workspace.stored is None:
        return weights.wide(), None
    return weights.small, with_memory(weights.operands, workspace.stored)


def _inputs(
    layer: CompiledLayer,
    call: ForwardCall,
    weights: Weights,
    workspace: Workspace,
    lengths: Array,
    *,
    values_exist: bool,
) -> _Inputs:
    """Return what the pass reads instead of x and the weights of x; `values_exist` unless a layer below writes x.

    No step reads the products of x past a row's end. Gradients do read x there, so a recorded call has 0.
    """
    x = recorded_x = call.x
    if values_exist:
        x = zero_padding(call.x, lengths) if call.record and call.lengths is not None else call.x
        if call.record or workspace.packed_h is None:
            recorded_x = layer.as_compute(x)
        if call.record and recorded_x is call.x:
            recorded_x = packed_copy(call.x)
    if workspace.packed_h is None:
        return _Inputs(recorded_x, recorded_x, weights.input, None)
    pairs = time_loop.PackedPairs(weights.packed_pairs("recurrent"), workspace.packed_h)
    return _Inputs(pack_pairs(x), recorded_x, weights.packed_pairs("input"), pairs)


def _first_state(
    layer: CompiledLayer, state: State | None, workspace: Workspace, empty: Array | None
) -> tuple[Array, Array]:
    """Return h and c before the first step, in the dtype of the arithmetic."""
    if state is None:
        return workspace.zero_h, workspace.zero_c
    h, c = state
    if empty is not None:
        # A row without steps keeps its state. With 0 in its place, a NaN there reaches no product.
        h, c = zero_rows(empty, h), zero_rows(empty, c)
    return layer.as_compute(h), layer.as_compute(c)


def _output(layer: CompiledLayer, call: ForwardCall, workspace: Workspace) -> Array:
    """Return where the pass writes y: `out` if its dtype and order fit."""
    dtype = layer.dtype if workspace.packed_h is None else layer.storage
    if call.out is not None and dtype == layer.storage and call.out.flags.carray:
        return call.out
    return buffer_pool.empty((*call.x.shape[:2], layer.config.output_size), dtype)


class _PassValues(NamedTuple):
    """Arguments of the pass that belong to one call alone, and the weights that it reads in its dtype."""

    weights: Weights
    y: Array
    lengths: Array
    inputs: _Inputs
    norms: time_loop.Norms | None
    progress: time_loop.WavefrontProgress | None


def _pass_arguments(  # long: the flat argument list of the pass
    layer: CompiledLayer, call: ForwardCall, workspace: Workspace, masks: LayoutMasks, values: _PassValues
) -> tuple[Any, ...]:
    """Return the arguments of `time_loop.store_forward`, in order."""
    config, weights = layer.config, values.weights
    own_outputs = cell.has_own_outputs(config, layer.layout.lanes * layer.dtype.itemsize)
    return (
        config.reverse,
        workspace.h,
        workspace.c,
        values.y,
        workspace.plan.split == "units",
        layer.step_address(cell.forward, masks, record=call.record),
        layer.step_address(cell.forward_output, masks, record=call.record) if config.proj_size else 0,
        layer.step_address(cell.forward_cell, masks, record=call.record) if own_outputs else 0,
        config.hidden_size,
        values.norms,
        layer.recurrence_is_cell,
        values.lengths,
        values.inputs.x,
        values.inputs.weight,
        weights.recurrent,
        weights.bias,
        weights.peephole,
        weights.projection,
        masks.recurrent,
        masks.hidden,
        masks.cell,
        workspace.gates,
        workspace.raw,
        workspace.operand,
        workspace.q,
        workspace.projected,
        workspace.input_chunk,
        _split_operands(layer, workspace, weights),
        values.inputs.pairs,
        workspace.counter,
        values.progress,
    )


def _split_operands(layer: CompiledLayer, workspace: Workspace, weights: Weights) -> time_loop.SplitOperands | None:
    """Return the operands as three bfloat16 numbers each; None if GEMMs do not run on AMX."""
    if workspace.split is None:
        return None
    layout = layer.layout
    vectors = layout.blocks * layout.gates
    input_parts = weights.split("input", vectors, layout.gates, layer.config.input_size)
    recurrent_parts = weights.split("recurrent", vectors, layout.gates, layer.config.recurrent_size)
    if input_parts is None or recurrent_parts is None:
        return None
    return time_loop.SplitOperands(input_parts, recurrent_parts, *workspace.split)


def _norms(layer: CompiledLayer, workspace: Workspace, weights: Weights) -> time_loop.Norms | None:
    """Return the arrays of layer norm."""
    if workspace.norms is None:
        return None
    gains = (weights.gain_x, weights.gain_h, weights.gain_c, weights.shift_c)
    return time_loop.Norms(*workspace.norms, *gains, layer.config.layer_norm_eps)
