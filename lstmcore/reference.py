"""The equations of SPEC.md in float64: forward, backward and the directional derivative of one layer in one direction.

This is what every backend is compared with. It is written to be read beside SPEC.md and docs/backward.md, one step at
a time, one gate at a time, with no thought of speed. Products of arrays follow ``z = x W^T`` since rows are samples.

The same code evaluated in a lower precision (`precision=`) is the naive evaluation from which the conformance
suite takes its error budgets. Complex inputs are carried through in complex128, for derivatives by a complex step.
"""

# long file: forward, backward and jvp are read next to each other

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore import validation
from lstmcore.activations import clip, derivative, inside, value
from lstmcore.backend import Forward, Gradients, Masks, State, Tangents
from lstmcore.config import LSTMConfig
from lstmcore.precision import Precision, get_precision

Array: TypeAlias = npt.NDArray[Any]
Parameters: TypeAlias = Mapping[str, Array]


class Normalised(NamedTuple):
    """The result of a layer normalisation before its gain, and what it was divided by."""

    value: Array
    deviation: Array


@dataclass(slots=True)
class Step:
    """The values of one step that the backward pass needs. Gate dictionaries are keyed by i, f, g, o.

    `x` and `recurrent` are there as the products read them.
    """

    precision: Precision
    active: Array
    x: Array
    h_before: Array
    c_before: Array
    masks: tuple[Array, Array, Array]
    recurrent: Array
    norms: dict[str, Normalised] = field(default_factory=dict)
    z: dict[str, Array] = field(default_factory=dict)
    gate: dict[str, Array] = field(default_factory=dict)
    c_unclipped: Array = field(default_factory=lambda: np.empty(0))
    c: Array = field(default_factory=lambda: np.empty(0))
    c_out: Array = field(default_factory=lambda: np.empty(0))
    q: Array = field(default_factory=lambda: np.empty(0))
    h_unclipped: Array = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True, slots=True)
class Tape:
    """The steps in the order in which they ran, with the parameters they used."""

    parameters: Parameters
    steps: tuple[tuple[int, Step], ...]
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    precision: Precision


def forward(  # noqa: PLR0913  (the contract of a kernel, with its config and precision)
    config: LSTMConfig,
    parameters: Parameters,
    x: Array,
    state: State | None = None,
    *,
    lengths: Any = None,
    masks: Masks | None = None,
    precision: Precision | str = "float64",
) -> Forward:
    """Run all steps of one layer in one direction and keep the tape.

    Parameters
    ----------
    config
        The layer.
    parameters
        Name -> array, `config.parameter_shapes`.
    x
        (T, N, I).
    state
        Initial h (N, P) and c (N, H); zeros where None.
    lengths
        (N,), 0 to T; None is T everywhere.
    masks
        Random masks; None is inference.
    precision
        The policy to evaluate in.

    Returns
    -------
    Forward
        y (T, N, P), the final state, and the tape for `backward`.
    """
    policy = get_precision(precision)
    arrays = [x, *parameters.values(), *(state or ())]
    dtype = np.dtype(np.complex128 if any(np.iscomplexobj(a) for a in arrays) else policy.compute)
    p = _parameters(parameters, policy, dtype)
    steps, batch, _ = x.shape
    h, c = _state(config, batch, state, dtype)
    y = np.zeros((steps, batch, config.output_size), dtype)
    tape = []
    for t, active in _schedule(config, steps, batch, lengths):
        given = _masks_at(config, masks, t, batch, dtype)
        step = _begin(config, np.asarray(x[t], dtype), State(h, c), given, active, policy)
        h_new, c_new = _forward_step(config, p, step)
        h_new = _stored(h_new, policy)
        h, c = np.where(active, h_new, h), np.where(active, c_new, c)
        y[t] = np.where(active, h, 0)
        tape.append((t, step))
    kept = Tape(p, tuple(tape), (steps, batch, config.input_size), dtype, policy)
    return Forward(y, State(h, c), kept)


def backward(config: LSTMConfig, tape: Tape, dy: Array | None = None, dstate: State | None = None) -> Gradients:
    """Return gradients of ``sum(dy * y) + sum(dstate * final state)``: of x, the initial state and all parameters.

    Backpropagation through time; docs/backward.md derives every line. What is None is zero.
    """
    steps, batch, _ = tape.shape
    dh, dc = _state(config, batch, dstate, tape.dtype)
    dx = np.zeros(tape.shape, tape.dtype)
    dp = {name: np.zeros(shape, tape.dtype) for name, shape in config.parameter_shapes.items()}
    for t, step in reversed(tape.steps):
        incoming = np.zeros_like(dh) if dy is None else np.asarray(dy[t], tape.dtype)
        dh_step = np.where(step.active, dh, 0) + np.where(step.active, incoming, 0)
        dc_step = np.where(step.active, dc, 0)
        dx[t], dh_before, dc_before = _backward_step(config, tape.parameters, step, dh_step, dc_step, dp)
        dh = np.where(step.active, dh_before, dh)
        dc = np.where(step.active, dc_before, dc)
    return Gradients(dx, State(dh, dc), dp)


def jvp(  # noqa: PLR0913  (the contract of a kernel, with its config and precision)
    config: LSTMConfig,
    parameters: Parameters,
    x: Array,
    state: State | None,
    tangents: Tangents,
    *,
    lengths: Any = None,
    masks: Masks | None = None,
    precision: Precision | str = "float64",
) -> tuple[Forward, Forward]:
    """Return the forward pass, without its tape, and its derivative along `tangents`."""
    primal = forward(config, parameters, x, state, lengths=lengths, masks=masks, precision=precision)
    return primal._replace(tape=None), along(config, primal.tape, tangents)


def along(config: LSTMConfig, tape: Tape, tangents: Tangents) -> Forward:
    """Return the derivatives of y (T, N, P) and of the final state along `tangents`, from the tape of `forward`."""
    steps, batch, _ = tape.shape
    tp = _parameters(tangents.parameters or {}, tape.precision, tape.dtype)
    th, tc = _state(config, batch, tangents.state, tape.dtype)
    ty = np.zeros((steps, batch, config.output_size), tape.dtype)
    for t, step in tape.steps:
        tx = 0 if tangents.x is None else np.asarray(tangents.x[t], tape.dtype)
        inputs = (
            np.where(step.active, tangent, np.zeros_like(old)) for tangent, old in ((tx, step.x), (th, th), (tc, tc))
        )
        th_new, tc_new = _jvp_step(config, tape.parameters, tp, step, *inputs)
        th, tc = np.where(step.active, th_new, th), np.where(step.active, tc_new, tc)
        ty[t] = np.where(step.active, th, 0)
    return Forward(ty, State(th, tc))


# One step, forward ----------------------------------------------------------------------------------------------------


def _forward_step(config: LSTMConfig, p: Parameters, step: Step) -> tuple[Array, Array]:  # long: the equations in order
    keep_r, keep_h, keep_c = step.masks
    c_before = step.c_before

    # z = LN(W x) + LN(R (m_r * r)) + b
    from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T
    if config.layer_norm:
        step.norms["x"], step.norms["h"] = _normalise(config, from_x), _normalise(config, from_h)
        from_x = p["norm_gain_x"] * step.norms["x"].value
        from_h = p["norm_gain_h"] * step.norms["h"].value
    z = from_x + from_h
    if config.bias:
        z = z + p["bias"]
    step.z = _split(config, z)
    peephole = _peepholes(config, p)
    for k in "if":
        if k in peephole:
            step.z[k] = step.z[k] + peephole[k] * c_before

    # i = s(z_i), f = s(z_f), g = a(z_g)
    gate = step.gate
    for k in "ifg":
        if k in step.z:
            gate[k] = _activate(config, k, step.z[k])
    if config.coupling == "forget_from_input":
        gate["f"] = 1 - gate["i"]
    elif config.coupling == "input_from_forget":
        gate["i"] = 1 - gate["f"]

    # c = zoneout(clip(f c + i g))
    step.c_unclipped = gate["f"] * c_before + gate["i"] * gate["g"]
    c_new = step.c_unclipped if config.cell_clip is None else clip(step.c_unclipped, config.cell_clip)
    step.c = keep_c * c_before + (1 - keep_c) * c_new

    # o = s(z_o + p_o c)
    if "o" in peephole:
        step.z["o"] = step.z["o"] + peephole["o"] * step.c
    gate["o"] = _activate(config, "o", step.z["o"])

    # q = o u(LN(c)), h = zoneout(clip(W_proj q))
    step.c_out = step.c
    if config.layer_norm:
        step.norms["c"] = _normalise(config, step.c)
        step.c_out = p["norm_gain_c"] * step.norms["c"].value
        if config.bias:
            step.c_out = step.c_out + p["norm_bias_c"]
    step.q = gate["o"] * value(config.hidden_activation, step.c_out)
    step.h_unclipped = _operand(step.q, step.precision) @ p["weight_proj"].T if config.proj_size else step.q
    h_new = step.h_unclipped if config.proj_clip is None else clip(step.h_unclipped, config.proj_clip)
    return keep_h * step.h_before + (1 - keep_h) * h_new, step.c


# One step, backward: d_ is the gradient of the scalar with respect to the value of that name --------------------------


def _backward_step(  # noqa: C901  # long: the equations in order  (each switch is a branch)
    config: LSTMConfig, p: Parameters, step: Step, dh: Array, dc: Array, dp: dict[str, Array]
) -> tuple[Array, Array, Array]:
    keep_r, keep_h, keep_c = step.masks
    gate, peephole, dgate, dz = step.gate, _peepholes(config, p), {}, {}
    dpeephole = dict(zip(config.peephole_gates, dp["peephole"], strict=True)) if config.peephole else {}

    # h = keep_h h_before + (1 - keep_h) clip(W_proj q)
    dh_before = keep_h * dh
    dh_new = (1 - keep_h) * dh
    if config.proj_clip is not None:
        dh_new = dh_new * inside(step.h_unclipped, config.proj_clip)
    dq = dh_new
    if config.proj_size:
        from_q = _operand(dh_new, step.precision)
        dp["weight_proj"] += from_q.T @ _operand(step.q, step.precision)
        dq = from_q @ p["weight_proj"]

    # q = o u(c_out), c_out = LN(c)
    dgate["o"] = dq * value(config.hidden_activation, step.c_out)
    dc_out = dq * gate["o"] * derivative(config.hidden_activation, step.c_out)
    if config.layer_norm:
        if config.bias:
            dp["norm_bias_c"] += dc_out.sum(axis=0)
        dp["norm_gain_c"] += (dc_out * step.norms["c"].value).sum(axis=0)
        dc_out = _normalise_linear(step.norms["c"], dc_out * p["norm_gain_c"])
    dc = dc + dc_out

    # o = s(z_o + p_o c)
    dz["o"] = dgate["o"] * _activate_derivative(config, "o", step.z["o"])
    if "o" in peephole:
        dpeephole["o"] += (dz["o"] * step.c).sum(axis=0)
        dc = dc + dz["o"] * peephole["o"]

    # c = keep_c c_before + (1 - keep_c) clip(f c_before + i g)
    dc_before = keep_c * dc
    dc_new = (1 - keep_c) * dc
    if config.cell_clip is not None:
        dc_new = dc_new * inside(step.c_unclipped, config.cell_clip)
    dgate["i"] = dc_new * gate["g"]
    dgate["f"] = dc_new * step.c_before
    dgate["g"] = dc_new * gate["i"]
    dc_before = dc_before + dc_new * gate["f"]
    if config.coupling == "forget_from_input":
        dgate["i"] = dgate["i"] - dgate["f"]
    elif config.coupling == "input_from_forget":
        dgate["f"] = dgate["f"] - dgate["i"]

    # i, f, g from their pre-activations
    for k in "ifg":
        if k in step.z:
            dz[k] = dgate[k] * _activate_derivative(config, k, step.z[k])
    for k in "if":
        if k in peephole:
            dpeephole[k] += (dz[k] * step.c_before).sum(axis=0)
            dc_before = dc_before + dz[k] * peephole[k]

    # z = LN(W x) + LN(R (m_r * r)) + b
    dz_all = np.concatenate([dz[k] for k in config.gates], axis=1)
    if config.bias:
        dp["bias"] += dz_all.sum(axis=0)
    from_x = from_h = dz_all
    if config.layer_norm:
        dp["norm_gain_x"] += (dz_all * step.norms["x"].value).sum(axis=0)
        dp["norm_gain_h"] += (dz_all * step.norms["h"].value).sum(axis=0)
        from_x = _normalise_linear(step.norms["x"], dz_all * p["norm_gain_x"])
        from_h = _normalise_linear(step.norms["h"], dz_all * p["norm_gain_h"])
    from_x, from_h = (_operand(array, step.precision) for array in (from_x, from_h))
    dp["weight_x"] += from_x.T @ step.x
    dp["weight_h"] += from_h.T @ step.recurrent
    dx = from_x @ p["weight_x"]
    dr = keep_r * (from_h @ p["weight_h"])
    if config.recurrence == "cell":
        dc_before = dc_before + dr
    else:
        dh_before = dh_before + dr
    return dx, dh_before, dc_before


# One step, forward-mode derivative: t_ is the change of the value of that name along the tangents ---------------------


def _jvp_step(  # noqa: C901, PLR0913  # long: the equations in order  (each switch is a branch)
    config: LSTMConfig, p: Parameters, tp: Parameters, step: Step, tx: Array, th_before: Array, tc_before: Array
) -> tuple[Array, Array]:
    keep_r, keep_h, keep_c = step.masks
    gate, peephole, tpeephole = step.gate, _peepholes(config, p), _peepholes(config, tp)

    tr = keep_r * (tc_before if config.recurrence == "cell" else th_before)
    tx, tr = (_operand(array, step.precision) for array in (tx, tr))
    from_x = tx @ p["weight_x"].T + _change(step.x, tp.get("weight_x"))
    from_h = tr @ p["weight_h"].T + _change(step.recurrent, tp.get("weight_h"))
    if config.layer_norm:
        norm_x, norm_h = step.norms["x"], step.norms["h"]
        from_x = _change(norm_x.value, tp.get("norm_gain_x")) + p["norm_gain_x"] * _normalise_linear(norm_x, from_x)
        from_h = _change(norm_h.value, tp.get("norm_gain_h")) + p["norm_gain_h"] * _normalise_linear(norm_h, from_h)
    tz_all = from_x + from_h
    if config.bias:
        tz_all = tz_all + tp.get("bias", 0)
    tz = _split(config, tz_all)
    for k in "if":
        if k in peephole:
            tz[k] = tz[k] + _change(step.c_before, tpeephole.get(k)) + peephole[k] * tc_before
    tgate = {k: tz[k] * _activate_derivative(config, k, step.z[k]) for k in "ifg" if k in tz}
    if config.coupling == "forget_from_input":
        tgate["f"] = -tgate["i"]
    elif config.coupling == "input_from_forget":
        tgate["i"] = -tgate["f"]

    tc_new = tgate["f"] * step.c_before + gate["f"] * tc_before + tgate["i"] * gate["g"] + gate["i"] * tgate["g"]
    if config.cell_clip is not None:
        tc_new = tc_new * inside(step.c_unclipped, config.cell_clip)
    tc = keep_c * tc_before + (1 - keep_c) * tc_new

    if "o" in peephole:
        tz["o"] = tz["o"] + _change(step.c, tpeephole.get("o")) + peephole["o"] * tc
    tgate["o"] = tz["o"] * _activate_derivative(config, "o", step.z["o"])

    tc_out = tc
    if config.layer_norm:
        norm_c = step.norms["c"]
        tc_out = _change(norm_c.value, tp.get("norm_gain_c")) + p["norm_gain_c"] * _normalise_linear(norm_c, tc)
        if config.bias:
            tc_out = tc_out + tp.get("norm_bias_c", 0)
    u = config.hidden_activation
    tq = tgate["o"] * value(u, step.c_out) + gate["o"] * derivative(u, step.c_out) * tc_out
    th_new = tq
    if config.proj_size:
        tq, q = (_operand(array, step.precision) for array in (tq, step.q))
        th_new = tq @ p["weight_proj"].T + _change(q, tp.get("weight_proj"))
    if config.proj_clip is not None:
        th_new = th_new * inside(step.h_unclipped, config.proj_clip)
    return keep_h * th_before + (1 - keep_h) * th_new, tc


# The parts ------------------------------------------------------------------------------------------------------------


def _schedule(config: LSTMConfig, steps: int, batch: int, lengths: Any) -> Iterator[tuple[int, Array]]:
    """Yield the steps in the order in which they run, each with the rows (N, 1) that are within their length."""
    known = validation.check_lengths(lengths, steps, batch)
    ends = np.full(batch, steps) if known is None else known
    for t in reversed(range(steps)) if config.reverse else range(steps):
        yield t, (t < ends)[:, None]


def _begin(
    config: LSTMConfig,
    x: Array,
    before: State,
    masks: tuple[Array, Array, Array],
    active: Array,
    policy: Precision,
) -> Step:
    """Return the inputs of a step, with zeros in rows past their end: no value of those rows reaches a sum."""
    x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))
    keep_r, keep_h, keep_c = (np.where(active, mask, 0) for mask in masks)
    recurrent = keep_r * (c_before if config.recurrence == "cell" else h_before)
    x, recurrent = _operand(x, policy), _operand(recurrent, policy)
    return Step(policy, active, x, h_before, c_before, (keep_r, keep_h, keep_c), recurrent)


def _masks_at(
    config: LSTMConfig, masks: Masks | None, t: int, batch: int, dtype: np.dtype[Any]
) -> tuple[Array, Array, Array]:
    """Return the three multipliers of step t: on the recurrent input, on the old h and on the old c."""
    recurrent, zoneout_hidden, zoneout_cell = masks or Masks()
    return (
        np.asarray(np.ones((batch, config.recurrent_size)) if recurrent is None else recurrent, dtype),
        np.full((batch, config.output_size), config.zoneout_hidden, dtype)
        if zoneout_hidden is None
        else np.asarray(zoneout_hidden[t], dtype),
        np.full((batch, config.hidden_size), config.zoneout_cell, dtype)
        if zoneout_cell is None
        else np.asarray(zoneout_cell[t], dtype),
    )


def _state(config: LSTMConfig, batch: int, state: State | None, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return a copy of `state` as two arrays (N, P) and (N, H); zeros for None."""
    if state is None:
        return np.zeros((batch, config.output_size), dtype), np.zeros((batch, config.hidden_size), dtype)
    h, c = state
    return np.array(h, dtype), np.array(c, dtype)


def _parameters(parameters: Parameters, policy: Precision, dtype: np.dtype[Any]) -> Parameters:
    """Return the parameters in the compute dtype, and the matrices as matmul reads them."""
    cast = {name: np.asarray(array, dtype) for name, array in parameters.items()}
    return {name: _operand(array, policy) if name.startswith("weight") else array for name, array in cast.items()}


def _stored(h: Array, policy: Precision) -> Array:
    """Return `h` rounded to the storage dtype, since the next step reads what was stored."""
    if policy.storage == policy.compute or np.iscomplexobj(h):
        return h
    if policy.storage == "bfloat16":  # NumPy has no such dtype: the upper half of a float32
        return _shortened(h, 16)
    return h.astype(policy.storage).astype(h.dtype)


def _operand(array: Array, policy: Precision) -> Array:
    """Return `array` as matmul reads it: in TF32 rounded to 10 bits of the 23."""
    if policy.operands == "as they are" or np.iscomplexobj(array):
        return array
    return _shortened(array, 13, policy.operands == "nearest")


def _shortened(array: Array, bits: int, nearest: bool = True) -> Array:
    """Return float32 numbers without their last `bits` bits: the nearest, ties to even, or those nearer to zero."""
    words = np.ascontiguousarray(array).view(np.uint32)
    if nearest:
        words = words + np.uint32((1 << bits - 1) - 1) + (words >> np.uint32(bits) & np.uint32(1))
    return np.where(np.isnan(array), array, (words >> np.uint32(bits) << np.uint32(bits)).view(np.float32))


def _split(config: LSTMConfig, z: Array) -> dict[str, Array]:
    """Return the columns of each gate of the stacked (N, G * H)."""
    each = z.reshape(len(z), len(config.gates), config.hidden_size)
    return dict(zip(config.gates, np.swapaxes(each, 0, 1), strict=True))


def _peepholes(config: LSTMConfig, p: Parameters) -> dict[str, Array]:
    """Return the peepholes of each gate, of parameters or tangents; none if they have no peephole."""
    return dict(zip(config.peephole_gates, p["peephole"], strict=True)) if "peephole" in p else {}


def _change(operand: Array, tangent: Array | None) -> Array | int:
    """Return `operand` times the tangent of a parameter. One that has none does not move: 0, even at infinity."""
    if tangent is None:
        return 0
    changed: Array = operand @ tangent.T if tangent.ndim > 1 else operand * tangent
    return changed


def _activate(config: LSTMConfig, k: str, z: Array) -> Array:
    """Return the activation of gate `k` after the gate clip."""
    if config.gate_clip is not None:
        z = clip(z, config.gate_clip)
    return value(config.cell_activation if k == "g" else config.gate_activation, z)


def _activate_derivative(config: LSTMConfig, k: str, z: Array) -> Array:
    function = config.cell_activation if k == "g" else config.gate_activation
    if config.gate_clip is None:
        return derivative(function, z)
    return derivative(function, clip(z, config.gate_clip)) * inside(z, config.gate_clip)


def _normalise(config: LSTMConfig, a: Array) -> Normalised:
    """Return rows of `a` with mean 0 and variance 1: ``(a - mean) / sqrt(var + eps)``."""
    centred = a - a.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + config.layer_norm_eps)
    return Normalised(centred / deviation, deviation)


def _normalise_linear(norm: Normalised, d: Array) -> Array:
    """Return the derivative of `_normalise` applied to `d`; its matrix is symmetric, so backward and jvp share it."""
    along = norm.value * (norm.value * d).mean(axis=1, keepdims=True)
    result: Array = (d - d.mean(axis=1, keepdims=True) - along) / norm.deviation
    return result
