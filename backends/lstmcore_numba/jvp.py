"""The JVP (forward mode) of one layer: the tangents of y and of the final state of a recorded call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstmcore.backend import Forward, State, Tangents
from lstmcore_numba import cell, time_loop
from lstmcore_numba.backward import recurrent_operand
from lstmcore_numba.compiled_layer import CompiledLayer, zero_padding, zero_rows
from lstmcore_numba.packing import Array, padded
from lstmcore_numba.runtime.thread_pool import CALLER_ALONE
from lstmcore_numba.schedule import MIN_PART_ROWS
from lstmcore_numba.workspace import LayerTape


class _StateTangents(NamedTuple):
    """Tangents of h (2, N, P) and of c (2, N, H) before a step and after it, in turn; rows without steps (N,)."""

    h: Array
    c: Array
    empty: Array


def run_jvp(layer: CompiledLayer, tape: LayerTape, tangents: Tangents, *, has_lengths: bool) -> Forward:
    """Return the tangents of y and of the final state.

    Parameters
    ----------
    layer
        The layer.
    tape
        Of the recorded call.
    tangents
        Of x, of the initial state and of parameters; what is None or missing is zero.
    has_lengths
        Whether the call had lengths.
    """
    config = layer.config
    steps, batch, _ = tape.x.shape
    parameters = {name: np.asarray(array, layer.dtype) for name, array in (tangents.parameters or {}).items()}
    tx = tangents.x
    if tx is not None and has_lengths:
        tx = zero_padding(tx, tape.lengths)
    tz, tz_h = _product_tangents(layer, tape, tx, parameters)
    state = _first_state(layer, tape, tangents, has_lengths=has_lengths)
    ty = np.empty((steps, batch, config.output_size), layer.dtype)
    args = _pass_arguments(layer, tape, parameters, (tz, tz_h), state)
    work = layer.layout.work(steps * batch, config.recurrent_size)
    layer.run_pass(time_loop.jvp, (*args, ty), batch // MIN_PART_ROWS, work)
    th, tc = state.h[steps % 2][:, : config.output_size], state.c[steps % 2][:, : config.hidden_size]
    last = State(th.astype(layer.storage), tc.copy())
    if tangents.state is not None:
        last.h[state.empty], last.c[state.empty] = tangents.state.h[state.empty], tangents.state.c[state.empty]
    return Forward(ty.astype(layer.storage, copy=False), last)


def _first_state(layer: CompiledLayer, tape: LayerTape, tangents: Tangents, *, has_lengths: bool) -> _StateTangents:
    """Return the tangents of the initial state."""
    config, layout, dtype, batch = layer.config, layer.layout, layer.dtype, tape.x.shape[1]
    th, tc = np.zeros((2, batch, layout.output), dtype), np.zeros((2, batch, layout.hidden), dtype)
    empty = tape.lengths == 0 if has_lengths else np.zeros(batch, bool)
    if tangents.state is not None:
        th[0, :, : config.output_size] = zero_rows(empty, tangents.state.h)
        tc[0, :, : config.hidden_size] = zero_rows(empty, tangents.state.c)
    return _StateTangents(th, tc, empty)


def _product_tangents(
    layer: CompiledLayer, tape: LayerTape, tx: Array | None, parameters: dict[str, Array]
) -> tuple[Array, Array]:
    """Return tangents (T, B, N, G, lanes) of the pre-activations and of R r, without those of the state.

    Without layer norm both are the same array.

    Parameters
    ----------
    layer, tape
        The layer, and its recorded call.
    tx
        Tangent of x, 0 past the end of each row; None for zeros.
    parameters
        Tangents of parameters.
    """
    layout, norms = layer.layout, tape.norms
    steps, batch, width = tape.x.shape
    rows = steps * batch
    tz = np.zeros((rows, layout.gate_row), layer.dtype)
    tz_h = tz if norms is None else np.zeros_like(tz)
    if tx is not None:
        tz += layer.as_compute(tx).reshape(rows, width) @ tape.weights.input_rows.T
    if "weight_x" in parameters:
        tz += tape.x.reshape(rows, width) @ layout.pad_gate_rows(parameters["weight_x"]).T
    if "weight_h" in parameters:
        operand = recurrent_operand(layer, tape)[:, : layer.config.recurrent_size]
        tz_h += operand @ layout.pad_gate_rows(parameters["weight_h"]).T
    by_row = (steps, batch, layout.blocks, layout.gates, layout.lanes)
    tz_blocks = np.ascontiguousarray(tz.reshape(by_row).swapaxes(1, 2))
    tz_h_blocks = tz_blocks
    if norms is not None:
        tz_h_blocks = np.ascontiguousarray(tz_h.reshape(by_row).swapaxes(1, 2))
        ones = np.ones_like(norms.gain_x)
        args = (norms.x, norms.deviation_x, ones, tz_blocks, tz_blocks, layout.real_gate_row)
        time_loop.norm_backward_steps(CALLER_ALONE, *args)
        tz_blocks *= norms.gain_x[:, None]
        for name, norm in (("norm_gain_x", norms.x), ("norm_gain_h", norms.h)):
            if name in parameters:
                tz_blocks += norm * layout.pad_gates(parameters[name])[:, None]
    if "bias" in parameters:
        tz_blocks += layout.pad_gates(parameters["bias"])[:, None]
    return tz_blocks, tz_h_blocks


def _pass_arguments(  # long: the flat argument list of the pass
    layer: CompiledLayer,
    tape: LayerTape,
    parameters: dict[str, Array],
    product_tangents: tuple[Array, Array],
    state: _StateTangents,
) -> tuple[Any, ...]:
    """Return the arguments of `time_loop.jvp` between `threads` and `ty`, in order."""
    config, layout, dtype = layer.config, layer.layout, layer.dtype
    weights, masks, saved = tape.weights, tape.masks, tape.workspace
    steps, batch, _ = tape.x.shape
    normed, projects = config.layer_norm, config.proj_size > 0
    tpeephole = np.zeros((len(config.peephole_gates) or 1, layout.hidden), dtype)
    if "peephole" in parameters:
        tpeephole[:, : config.hidden_size] = parameters["peephole"]
    tprojected = np.zeros((steps if projects else 1, batch, layout.output), dtype)
    if "weight_proj" in parameters:
        projection = padded(padded(parameters["weight_proj"].T, 0, layout.hidden), 1, layout.output)
        tprojected[...] = (saved.q.reshape(-1, layout.hidden) @ projection).reshape(tprojected.shape)
    step = cell.jvp if "peephole" in parameters else cell.jvp_fixed_peepholes
    of_layer = (config.hidden_size, tape.norms, config.reverse, layer.recurrence_is_cell, tape.lengths)
    recorded = (masks.recurrent, masks.hidden, masks.cell, saved.gates, saved.raw, saved.projected, saved.c)
    return (
        layer.step_address(step, masks, record=True),
        layer.step_address(cell.jvp_output, masks, record=True) if projects else 0,
        layer.step_address(cell.jvp_cell, masks, record=True) if normed else 0,
        *of_layer,
        weights.recurrent,
        weights.peephole,
        tpeephole,
        weights.projection,
        *recorded,
        *product_tangents,
        np.zeros((layout.blocks, batch if normed else 1, 1, layout.lanes), dtype),
        layout.pad_units(parameters.get("norm_gain_c")),
        layout.pad_units(parameters.get("norm_bias_c")),
        tprojected,
        np.zeros((batch, layout.hidden), dtype),
        np.empty((batch, config.recurrent_size), dtype),
        state.h,
        state.c,
    )
