"""The backward call of one layer: the pass over time, then the gradients of x and of every parameter."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstmcore.backend import Gradients, State
from lstmcore_numba import cell, time_loop
from lstmcore_numba.compiled_layer import CompiledLayer
from lstmcore_numba.gemm.amx import SPLIT_PARTS
from lstmcore_numba.gemm.tile_shapes import PANEL_VECTORS
from lstmcore_numba.packing import Array, Weights, empty_aligned
from lstmcore_numba.schedule import MIN_PART_ROWS, ThreadPlan
from lstmcore_numba.workspace import LayerTape, empty_split


class PassGradients(NamedTuple):
    """Arrays that the backward pass writes. Without layer norm, `dz_h` is `dz`.

    Attributes
    ----------
    dz, dz_h
        (T, B, N, G, lanes) gradients of the pre-activations, and of R r.
    dc_out
        (T or 1, N, H) gradient of the cell after its gain and shift.
    dprojected
        (T or 1, N, P) gradient of W_proj q.
    dh, dc
        (N, P) and (N, H): of the final state before the pass, of the initial state after it.
    """

    dz: Array
    dz_h: Array
    dc_out: Array
    dprojected: Array
    dh: Array
    dc: Array


class PreparedBackward(NamedTuple):
    """A backward call before its pass: arguments of `time_loop.backward`, and what the pass writes."""

    args: tuple[Any, ...]
    plan: ThreadPlan
    gradients: PassGradients


def run_backward(layer: CompiledLayer, tape: LayerTape, dy: Array | None, dstate: State | None) -> Gradients:
    """Return all gradients of a recorded call.

    Parameters
    ----------
    layer, tape
        The layer, and what its forward call recorded.
    dy
        (T, N, P) gradient of y; None for zeros.
    dstate
        Gradient of the final state; None for zeros.
    """
    prepared = prepare_backward(layer, tape, dy, dstate)
    layer.run_pass(time_loop.backward, prepared.args, prepared.plan.max_threads, prepared.plan.shared_work)
    return finish_backward(layer, tape, prepared)


def prepare_backward(layer: CompiledLayer, tape: LayerTape, dy: Array | None, dstate: State | None) -> PreparedBackward:
    """Allocate the arrays of a backward pass, and return its arguments.

    Parameters
    ----------
    layer, tape, dy, dstate
        As for `run_backward`.
    """
    gradients = _allocate(layer, tape, dstate)
    steps, batch, _ = tape.x.shape
    masked = len(tape.masks.recurrent) > 0
    plan = layer.schedule.thread_plan(
        steps, batch, layer.config.recurrent_size, masked=masked, units_per_thread=PANEL_VECTORS
    )
    dy = np.zeros((steps, batch, 0), layer.dtype) if dy is None else layer.as_compute(dy)
    return PreparedBackward(_pass_arguments(layer, tape, dy, gradients, plan), plan, gradients)


def _allocate(layer: CompiledLayer, tape: LayerTape, dstate: State | None) -> PassGradients:
    """Allocate what the pass writes; dh and dc start as the gradients of the final state."""
    config, layout, dtype = layer.config, layer.layout, layer.dtype
    steps, batch, _ = tape.x.shape
    dh, dc = np.zeros((batch, layout.output), dtype), np.zeros((batch, layout.hidden), dtype)
    if dstate is not None:
        dh[:, : config.output_size], dc[:, : config.hidden_size] = dstate
    dz = empty_aligned((steps, layout.blocks, batch, layout.gates, layout.lanes), dtype)
    return PassGradients(
        dz=dz,
        dz_h=empty_aligned(dz.shape, dtype) if config.layer_norm else dz,
        dc_out=np.zeros((steps if config.layer_norm else 1, batch, layout.hidden), dtype),
        dprojected=np.empty((steps if config.proj_size else 1, batch, layout.output), dtype),
        dh=dh,
        dc=dc,
    )


def _pass_arguments(  # long: the flat argument list of the pass
    layer: CompiledLayer, tape: LayerTape, dy: Array, gradients: PassGradients, plan: ThreadPlan
) -> tuple[Any, ...]:
    """Return the arguments of `time_loop.backward` after `threads`, in order."""
    config, layout, dtype = layer.config, layer.layout, layer.dtype
    weights, masks, saved = tape.weights, tape.masks, tape.workspace
    batch = tape.x.shape[1]
    normed = config.layer_norm
    dnorm_c = np.zeros((layout.blocks, batch if normed else 1, 1, layout.lanes), dtype)
    doperand = np.empty((batch, layout.hidden if layer.recurrence_is_cell else layout.output), dtype)
    of_layer = (config.hidden_size, tape.norms, config.reverse, layer.recurrence_is_cell, tape.lengths)
    recorded = (masks.recurrent, masks.hidden, masks.cell, saved.gates, saved.raw, saved.projected, saved.c)
    return (
        plan.split == "units",
        layer.step_address(cell.backward, masks, record=True),
        layer.step_address(cell.backward_output, masks, record=True) if config.proj_size else 0,
        layer.step_address(cell.backward_cell, masks, record=True) if normed else 0,
        *of_layer,
        weights.back_recurrent,
        weights.peephole,
        weights.back_projection,
        *recorded,
        dy,
        gradients.dz,
        gradients.dz_h,
        gradients.dc_out,
        dnorm_c,
        gradients.dprojected,
        np.empty((batch, layout.hidden), dtype),
        doperand,
        gradients.dh,
        gradients.dc,
        _split_operands(layer, weights, batch, plan.max_threads),
        np.zeros(1, np.int64),
    )


def _split_operands(
    layer: CompiledLayer, weights: Weights, batch: int, max_threads: int
) -> time_loop.BackwardSplitOperands | None:
    """Return the operands of the GEMM with the recurrent weights as three bfloat16 numbers; None without AMX."""
    layout = layer.layout
    width = layout.hidden if layer.recurrence_is_cell else layout.output
    if not layer.schedule.uses_amx(batch, layout.gate_row, width):
        return None
    parts = weights.split("back_recurrent", width // layout.lanes, PANEL_VECTORS, layout.gate_row)
    if parts is None:
        return None
    threads = max(1, max_threads)
    row_flags, any_flags = np.zeros((2, threads, batch), np.uint8), np.zeros((2, threads), np.int64)
    dz_parts = empty_split((2, SPLIT_PARTS), batch, layout.gate_row)
    return time_loop.BackwardSplitOperands(parts, dz_parts, row_flags, any_flags)


def finish_backward(layer: CompiledLayer, tape: LayerTape, prepared: PreparedBackward) -> Gradients:
    """Return the results of `run_backward`, after the pass."""
    config, dtype, storage = layer.config, layer.dtype, layer.storage
    dz, dh, dc = prepared.gradients.dz, prepared.gradients.dh, prepared.gradients.dc
    with np.errstate(all="ignore"):  # an overflow gives infinity, as IEEE 754 says
        dz_x = dz
        if tape.norms is not None:
            dz_x, norms = empty_aligned(dz.shape, dtype), tape.norms
            rows = dz.shape[0] * dz.shape[2]
            args = (norms.x, norms.deviation_x, norms.gain_x, dz, dz_x, layer.layout.real_gate_row)
            work = layer.layout.work(rows, layer.tuning.norm_work)
            layer.run_pass(time_loop.norm_backward_steps, args, len(dz), work)
        parameters = _parameter_gradients(layer, tape, prepared.gradients, dz_x)
        dx = _input_gradient(layer, tape, dz_x)
        dstate = State(dh[:, : config.output_size].astype(storage), dc[:, : config.hidden_size].copy())
        parameters = {name: parameters[name].astype(storage) for name in config.parameter_shapes}
        return Gradients(dx.astype(storage, copy=False), dstate, parameters)


def _parameter_gradients(
    layer: CompiledLayer, tape: LayerTape, gradients: PassGradients, dz_x: Array
) -> dict[str, Array]:
    """Return the gradient of every parameter, in the dtype of the arithmetic; `dz_x` is the gradient of W x."""
    config, layout = layer.config, layer.layout
    steps, batch, width = tape.x.shape
    rows = steps * batch
    result: dict[str, Array] = {}
    x = tape.x.reshape(rows, width)
    result["weight_x"], result["bias"] = _weight_gradient(layer, dz_x, x, config.hidden_size, width)
    operand = recurrent_operand(layer, tape)
    result["weight_h"], _ = _weight_gradient(layer, gradients.dz_h, operand, config.hidden_size, config.recurrent_size)
    if tape.norms is not None:
        result |= _norm_gradients(layer, tape.norms, gradients)
    if config.proj_size:
        blocks = (steps, batch, layout.output // layout.lanes, 1, layout.lanes)
        dprojected = np.ascontiguousarray(gradients.dprojected.reshape(blocks).swapaxes(1, 2))
        q = tape.workspace.q.reshape(rows, layout.hidden)
        result["weight_proj"], _ = _weight_gradient(layer, dprojected, q, config.proj_size, config.hidden_size)
    if config.peephole:
        result["peephole"] = _peephole_gradient(layer, tape, gradients.dz)
    return result


def _norm_gradients(layer: CompiledLayer, norms: time_loop.Norms, gradients: PassGradients) -> dict[str, Array]:
    """Return the gradients of gains and biases of a layer with layer norm."""
    layout, hidden = layer.layout, layer.config.hidden_size
    dz = gradients.dz
    rows = dz.shape[0] * dz.shape[2]
    gains = [np.empty((layout.blocks, layout.gates, layout.lanes), layer.dtype) for _ in range(3)]
    work = layout.work(rows, layer.tuning.norm_work)
    layer.run_pass(time_loop.gain_gradients, (dz, norms.x, norms.h, *gains), layout.blocks, work)
    names = ("norm_gain_x", "norm_gain_h", "bias")
    result = {name: layout.unpad_gates(gain) for name, gain in zip(names, gains, strict=True)}
    gain_c, shift_c = np.empty((2, layout.blocks, layout.lanes), layer.dtype)
    args = (gradients.dc_out, norms.c, gain_c, shift_c)
    layer.run_pass(time_loop.cell_gradients, args, layout.blocks, rows * layout.hidden)
    return result | {"norm_gain_c": gain_c.ravel()[:hidden], "norm_bias_c": shift_c.ravel()[:hidden]}


def _weight_gradient(layer: CompiledLayer, dz: Array, operand: Array, units: int, columns: int) -> tuple[Array, Array]:
    """Return ``dz^T operand`` and the sums of dz's rows.

    Parameters
    ----------
    layer
        The layer.
    dz
        (T, B, N, G, lanes) of `units` units.
    operand
        (T N, `columns` or more).
    units, columns
        The results are (G units, columns) and (G units,).
    """
    dtype = layer.dtype
    _, blocks, _, gates, lanes = dz.shape
    weight, bias = np.empty((gates * units, columns), dtype), np.empty(gates * units, dtype)
    sums, blocked = empty_aligned((blocks, gates, lanes), dtype), empty_aligned((blocks, columns, gates, lanes), dtype)
    amx = True if layer.schedule.uses_amx(min(len(operand), columns), len(operand), gates * units) else None
    args = (dz, operand, units, sums, blocked, weight, bias, amx)
    layer.run_pass(time_loop.weight_gradient, args, blocks, float(dz.size) * columns)
    return weight, bias


def _input_gradient(layer: CompiledLayer, tape: LayerTape, dz_x: Array) -> Array:
    """Return the gradient of x (T, N, I); `dz_x` is that of W x."""
    layout = layer.layout
    steps, batch, width = tape.x.shape
    rows, padded_width = steps * batch, layout.round_up(width)
    padded_dx = empty_aligned((rows, padded_width), layer.dtype)
    # Threads share whole steps; of a single step they share the rows.
    max_threads = rows // MIN_PART_ROWS if steps == 1 else steps // -(-MIN_PART_ROWS // max(1, batch))
    parts = None
    if layer.schedule.uses_amx(rows, layout.gate_row, padded_width):
        parts = tape.weights.split("back_input", padded_width // layout.lanes, PANEL_VECTORS, layout.gate_row)
    args = (dz_x, tape.weights.back_input, parts, padded_dx)
    layer.run_pass(time_loop.input_gradient, args, max_threads, layout.work(rows, width))
    return padded_dx[:, :width].reshape(steps, batch, width)


def recurrent_operand(layer: CompiledLayer, tape: LayerTape) -> Array:
    """Return what R multiplied at every step, (T N, K) or wider."""
    workspace = tape.workspace
    operand = workspace.operand
    if len(tape.masks.recurrent) == 0:
        operand = _before(layer, workspace.c if layer.recurrence_is_cell else workspace.h)
    return operand.reshape(operand.shape[0] * operand.shape[1], operand.shape[2])


def _before(layer: CompiledLayer, states: Array) -> Array:
    """Return the states (T, ...) before each step, of T + 1 states by time index."""
    return states[1:] if layer.config.reverse else states[:-1]


def _after(layer: CompiledLayer, states: Array) -> Array:
    """Return the states (T, ...) after each step, of T + 1 states by time index."""
    return states[:-1] if layer.config.reverse else states[1:]


def _peephole_gradient(layer: CompiledLayer, tape: LayerTape, dz: Array) -> Array:
    """Return the gradient of the peepholes. Rows are summed per step first, which loses less than one long sum."""
    config, c = layer.config, tape.workspace.c
    steps, blocks, batch, _, lanes = dz.shape
    rows = []
    for gate in config.peephole_gates:
        read = (_after if gate == "o" else _before)(layer, c).reshape(steps, batch, blocks, lanes)
        dgate = dz[:, :, :, config.gates.index(gate)]
        rows.append(np.einsum("tbnl,tnbl->tbl", dgate, read).sum(axis=0).ravel())
    return np.stack(rows)[:, : config.hidden_size]
