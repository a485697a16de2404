"""The equations of one step of the LSTM for one block of hidden units: forward, backward and JVP.

Each function emits the body of a step function for the configuration of its `StepEmitter`. A switch that is off emits
no code.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from lstmcore.config import LSTMConfig
from lstmcore_numba.codegen.emitter import Vector
from lstmcore_numba.codegen.gate_functions import derivative, value
from lstmcore_numba.codegen.step_emitter import INSIDE_OUTPUT, KernelArgs, StepEmitter, blend, needs_raw

# Forward --------------------------------------------------------------------------------------------------------------


def forward(  # long: the emitter of one step
    s: StepEmitter,
) -> None:
    """Emit a step from W x + R r, normalised with layer norm, to the gates and the cell, or to h (q)."""
    config, e = s.config, s.emitter
    bias, peephole = s.by_gate(KernelArgs.BIAS, config.bias), s.peepholes()
    gain_x, gain_h = s.by_gate(KernelArgs.GAIN_X, config.layer_norm), s.by_gate(KernelArgs.GAIN_H, config.layer_norm)
    at = {field: s.address(field) for field in KernelArgs}

    def emit_padding(row: ir.Value) -> None:
        e.store(e.load(s.cell(at[KernelArgs.C_BEFORE], row)), s.cell(at[KernelArgs.C], row))
        if not config.proj_size:
            e.store(e.load(s.output(at[KernelArgs.H_BEFORE], row)), s.output(at[KernelArgs.H], row))

    with s.rows(emit_padding) as row:
        c_before = e.load(s.cell(at[KernelArgs.C_BEFORE], row))
        if config.layer_norm:
            norm_x = {k: e.load(s.gate(at[KernelArgs.NORM_X], row, k)) for k in config.gates}
            norm_h = {k: e.load(s.gate(at[KernelArgs.NORM_H], row, k)) for k in config.gates}
            z = {k: norm_h[k].fma(gain_h[k], norm_x[k] * gain_x[k]) for k in config.gates}
        else:
            z = {k: e.load(s.gate(at[KernelArgs.GATES], row, k)) for k in config.gates}
        for k in bias:
            z[k] = z[k] + bias[k]
        for k in "if":
            if k in peephole:
                z[k] = peephole[k].fma(c_before, z[k])

        gate = {k: s.activation(k)(z[k]) for k in "ifg" if k in z}
        s.add_coupled(gate)
        c_new = s.clipped(gate["f"].fma(c_before, gate["i"] * gate["g"]), "cell_clip")
        c = blend(s.keep("c", row), c_before, c_new)
        e.store(c, s.cell(at[KernelArgs.C], row))

        if "o" in peephole:
            z["o"] = peephole["o"].fma(c, z["o"])
        gate["o"] = s.activation("o")(z["o"])
        for k in config.gates if s.variant.record else ("o",):
            e.store(gate[k], s.gate(at[KernelArgs.GATES], row, k))
            if s.variant.record and needs_raw(config):
                e.store(z[k], s.gate(at[KernelArgs.RAW], row, k))
    if not has_own_outputs(config, s.width):
        _emit_outputs(s, at)


def has_own_outputs(config: LSTMConfig, vector_bytes: int) -> bool:
    """Return whether `forward_cell` computes the outputs, and not the end of `forward`.

    Blocks of short vectors have as many instructions as those of long ones for fewer units. So they gain more if the
    gates of all blocks are computed first: a step of one row takes 3 to 8 % less on AVX2, and 2 % more on AVX-512.
    """
    return config.layer_norm or vector_bytes < 64


def forward_cell(s: StepEmitter) -> None:
    """Emit the second half of a step, if it is a function of its own: from the gate o and the cell to h or q."""
    _emit_outputs(s, {field: s.address(field) for field in KernelArgs})


def _emit_outputs(s: StepEmitter, at: dict[KernelArgs, ir.Value]) -> None:
    """Emit h or q, in a loop of its own.

    The chain of a row from its gates to h is twice as long as what a processor looks ahead. In two loops, the gates of
    several rows are computed at a time, then their outputs.
    """
    e, normalised = s.emitter, s.config.layer_norm
    scaled = _scaled_cell(s) if normalised else None
    with s.rows(lambda row: None) as row:
        c = e.load(s.norm(at[KernelArgs.NORM_C], row) if normalised else s.cell(at[KernelArgs.C], row))
        o = e.load(s.gate(at[KernelArgs.GATES], row, "o"))
        _store_output(s, at, row, o * value(s.function("hidden_activation"), c if scaled is None else scaled(c)))


def _scaled_cell(s: StepEmitter) -> Callable[[Vector], Vector]:
    """Return the function that applies the gain and the shift of the normalised cell."""
    gain = s.parameter(KernelArgs.GAIN_C, 0)
    if not s.config.bias:
        return lambda norm: norm * gain
    shift = s.parameter(KernelArgs.SHIFT_C, 0)
    return lambda norm: norm.fma(gain, shift)


def _store_output(s: StepEmitter, at: dict[KernelArgs, ir.Value], row: ir.Value, q: Vector) -> None:
    """Store q if there is a projection, else h."""
    e = s.emitter
    if s.config.proj_size:
        e.store(s.without_padding(q), s.cell(at[KernelArgs.Q], row))
        return
    h = blend(s.keep("h", row), e.load(s.output(at[KernelArgs.H_BEFORE], row)), q)
    e.store(h.rounded_to(s.variant.storage), s.output(at[KernelArgs.H], row))


def forward_output(s: StepEmitter) -> None:
    """Emit the end of a step with a projection: from W_proj q to h."""
    e = s.emitter
    at = {field: s.address(field) for field in KernelArgs}

    def emit_padding(row: ir.Value) -> None:
        e.store(e.load(s.output(at[KernelArgs.H_BEFORE], row)), s.output(at[KernelArgs.H], row))

    with s.rows(emit_padding) as row:
        h_new = s.clipped(e.load(s.output(at[KernelArgs.PROJECTED], row)), "proj_clip")
        h = blend(s.keep("h", row), e.load(s.output(at[KernelArgs.H_BEFORE], row)), h_new)
        e.store(h.rounded_to(s.variant.storage), s.output(at[KernelArgs.H], row))


# Backward: d_ is the gradient with respect to the value of that name --------------------------------------------------


def backward_output(s: StepEmitter) -> None:
    """Emit the first part of a backward step with a projection: from dh to the gradient of W_proj q."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in KernelArgs}

    def emit_padding(row: ir.Value) -> None:
        e.store(e.constant(0), s.output(at[KernelArgs.DPROJECTED], row))

    with s.rows(emit_padding) as row:
        dh, keep = e.load(s.output(at[KernelArgs.DH], row)), s.keep("h", row)
        dh_new = dh if keep is None else (1 - keep) * dh
        if config.proj_clip is not None:
            dh_new = dh_new * s.clip_derivative(e.load(s.output(at[KernelArgs.PROJECTED], row)), "proj_clip")
        e.store(s.without_padding(dh_new, INSIDE_OUTPUT), s.output(at[KernelArgs.DPROJECTED], row))
        e.store(e.constant(0) if keep is None else keep * dh, s.output(at[KernelArgs.DH], row))


def _load_dq(s: StepEmitter, at: dict[KernelArgs, ir.Value], row: ir.Value) -> Vector:
    """Return the gradient of q; without a projection, replace dh by the part that zoneout passes to the step before."""
    e = s.emitter
    if s.config.proj_size:
        return e.load(s.cell(at[KernelArgs.DQ], row))
    dh, keep = e.load(s.output(at[KernelArgs.DH], row)), s.keep("h", row)
    e.store(e.constant(0) if keep is None else keep * dh, s.output(at[KernelArgs.DH], row))
    return dh if keep is None else (1 - keep) * dh


def backward_cell(s: StepEmitter) -> None:
    """Emit the first half of a backward step with layer norm: from dh or dq to dz of o and the normalised cell."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in KernelArgs}
    scaled, gain = _scaled_cell(s), s.parameter(KernelArgs.GAIN_C, 0)
    raw = needs_raw(config)

    def emit_padding(row: ir.Value) -> None:
        e.store(e.constant(0), s.cell(at[KernelArgs.DC_OUT], row))
        e.store(e.constant(0), s.norm(at[KernelArgs.DNORM_C], row))

    with s.rows(emit_padding) as row:
        dq = _load_dq(s, at, row)
        o = e.load(s.gate(at[KernelArgs.GATES], row, "o"))
        read = e.load(s.gate(at[KernelArgs.RAW], row, "o")) if raw else None
        c_out = scaled(e.load(s.norm(at[KernelArgs.NORM_C], row)))
        u = value(s.function("hidden_activation"), c_out)
        e.store(dq * u * s.slope("o", o, read), s.gate(at[KernelArgs.DZ], row, "o"))
        dc_out = dq * o * derivative(s.function("hidden_activation"), c_out, u)
        e.store(dc_out, s.cell(at[KernelArgs.DC_OUT], row))
        e.store(s.without_padding(dc_out * gain), s.norm(at[KernelArgs.DNORM_C], row))


def backward(  # long: the emitter of one step
    s: StepEmitter,
) -> None:
    """Emit one backward step: from dh (or dq) and dc to dz and the gradient of the cell before.

    With layer norm: from dc and the results of `backward_cell`.
    """
    config, e = s.config, s.emitter
    peephole = s.peepholes()
    at = {field: s.address(field) for field in KernelArgs}
    raw = needs_raw(config)

    def emit_padding(row: ir.Value) -> None:
        for k in config.gates:
            e.store(e.constant(0), s.gate(at[KernelArgs.DZ], row, k))

    with s.rows(emit_padding) as row:
        gate = {k: e.load(s.gate(at[KernelArgs.GATES], row, k)) for k in config.gates}
        read = {k: e.load(s.gate(at[KernelArgs.RAW], row, k)) if raw else None for k in config.gates}
        s.add_coupled(gate)
        c_before, c = e.load(s.cell(at[KernelArgs.C_BEFORE], row)), e.load(s.cell(at[KernelArgs.C], row))
        dc = e.load(s.cell(at[KernelArgs.DC], row))

        # q = o u(c)
        if config.layer_norm:
            dz = {"o": e.load(s.gate(at[KernelArgs.DZ], row, "o"))}
        else:
            dq = _load_dq(s, at, row)
            u = value(s.function("hidden_activation"), c)
            dz = {"o": dq * u * s.slope("o", gate["o"], read["o"])}
            dc = (dq * gate["o"]).fma(derivative(s.function("hidden_activation"), c, u), dc)
        if "o" in peephole:
            dc = dz["o"].fma(peephole["o"], dc)

        # c = keep c_before + (1 - keep) clip(f c_before + i g)
        keep = s.keep("c", row)
        dc_new = dc if keep is None else (1 - keep) * dc
        if config.cell_clip is not None:
            dc_new = dc_new * s.clip_derivative(gate["f"].fma(c_before, gate["i"] * gate["g"]), "cell_clip")
        dgate = {"i": dc_new * gate["g"], "f": dc_new * c_before, "g": dc_new * gate["i"]}
        dc_before = dc_new * gate["f"] if keep is None else dc_new.fma(gate["f"], keep * dc)
        if config.coupling == "forget_from_input":
            dgate["i"] = dgate["i"] - dgate["f"]
        elif config.coupling == "input_from_forget":
            dgate["f"] = dgate["f"] - dgate["i"]

        for k in "ifg":
            if k in config.gates:
                dz[k] = dgate[k] * s.slope(k, gate[k], read[k])
        for k in "if":
            if k in peephole:
                dc_before = dz[k].fma(peephole[k], dc_before)
        for k in config.gates:
            e.store(s.without_padding(dz[k]), s.gate(at[KernelArgs.DZ], row, k))
        e.store(dc_before, s.cell(at[KernelArgs.DC], row))


# JVP: t_ is the tangent of the value of that name ---------------------------------------------------------------------


def jvp(s: StepEmitter) -> None:
    """Emit one step of the JVP: from the tangents of W x + R r to those of the cell and of h or q.

    With layer norm: to those of the cell and of the gate o. `jvp_cell` does the rest.
    """
    _emit_jvp(s, s.peepholes(KernelArgs.TPEEPHOLE))


def jvp_fixed_peepholes(s: StepEmitter) -> None:
    """Emit the same for peepholes without a tangent: they do not move, even where the cell is infinite."""
    _emit_jvp(s, {})


def _emit_jvp(  # long: the emitter of one step
    s: StepEmitter, tpeephole: dict[str, Vector]
) -> None:
    config, e = s.config, s.emitter
    peephole = s.peepholes()
    at = {field: s.address(field) for field in KernelArgs}
    raw = needs_raw(config)

    def emit_padding(row: ir.Value) -> None:
        e.store(e.load(s.cell(at[KernelArgs.TC_BEFORE], row)), s.cell(at[KernelArgs.TC], row))
        if not config.proj_size:
            e.store(e.load(s.output(at[KernelArgs.TH_BEFORE], row)), s.output(at[KernelArgs.TH], row))

    with s.rows(emit_padding) as row:
        gate = {k: e.load(s.gate(at[KernelArgs.GATES], row, k)) for k in config.gates}
        read = {k: e.load(s.gate(at[KernelArgs.RAW], row, k)) if raw else None for k in config.gates}
        c_before, c = e.load(s.cell(at[KernelArgs.C_BEFORE], row)), e.load(s.cell(at[KernelArgs.C], row))
        tc_before = e.load(s.cell(at[KernelArgs.TC_BEFORE], row))
        tz = {k: e.load(s.gate(at[KernelArgs.TZ], row, k)) for k in config.gates}
        for k in "if":
            if k in tpeephole:
                tz[k] = tz[k] + tpeephole[k] * c_before
            if k in peephole:
                tz[k] = tz[k] + peephole[k] * tc_before
        tgate = {k: tz[k] * s.slope(k, gate[k], read[k]) for k in "ifg" if k in tz}
        if config.coupling == "forget_from_input":
            tgate["f"] = -tgate["i"]
        elif config.coupling == "input_from_forget":
            tgate["i"] = -tgate["f"]
        s.add_coupled(gate)

        tc_new = tgate["f"] * c_before + gate["f"] * tc_before + tgate["i"] * gate["g"] + gate["i"] * tgate["g"]
        if config.cell_clip is not None:
            tc_new = tc_new * s.clip_derivative(gate["f"].fma(c_before, gate["i"] * gate["g"]), "cell_clip")
        tc = blend(s.keep("c", row), tc_before, tc_new)
        e.store(tc, s.cell(at[KernelArgs.TC], row))

        if "o" in tpeephole:
            tz["o"] = tz["o"] + tpeephole["o"] * c
        if "o" in peephole:
            tz["o"] = tz["o"] + peephole["o"] * tc
        to = tz["o"] * s.slope("o", gate["o"], read["o"])
        if config.layer_norm:
            e.store(to, s.gate(at[KernelArgs.TZ], row, "o"))
        else:
            u = value(s.function("hidden_activation"), c)
            slope = derivative(s.function("hidden_activation"), c, u)
            _store_output_tangent(s, at, row, to * u + gate["o"] * slope * tc)


def jvp_cell(s: StepEmitter) -> None:
    """Emit the second half of a JVP step with layer norm: to the tangent of h or q."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in KernelArgs}
    scaled, gain, tgain = _scaled_cell(s), s.parameter(KernelArgs.GAIN_C, 0), s.parameter(KernelArgs.TGAIN_C, 0)
    tshift = s.parameter(KernelArgs.TSHIFT_C, 0) if config.bias else e.constant(0)

    def emit_padding(row: ir.Value) -> None:
        return None

    with s.rows(emit_padding) as row:
        norm = e.load(s.norm(at[KernelArgs.NORM_C], row))
        c_out = scaled(norm)
        tc_out = e.load(s.norm(at[KernelArgs.TNORM_C], row)) * gain + norm * tgain + tshift
        o, to = e.load(s.gate(at[KernelArgs.GATES], row, "o")), e.load(s.gate(at[KernelArgs.TZ], row, "o"))
        u = value(s.function("hidden_activation"), c_out)
        _store_output_tangent(s, at, row, to * u + o * derivative(s.function("hidden_activation"), c_out, u) * tc_out)


def _store_output_tangent(s: StepEmitter, at: dict[KernelArgs, ir.Value], row: ir.Value, tq: Vector) -> None:
    """Store the tangent of q if there is a projection, else that of h."""
    e = s.emitter
    if s.config.proj_size:
        e.store(s.without_padding(tq), s.cell(at[KernelArgs.TQ], row))
        return
    e.store(
        blend(s.keep("h", row), e.load(s.output(at[KernelArgs.TH_BEFORE], row)), tq), s.output(at[KernelArgs.TH], row)
    )


def jvp_output(s: StepEmitter) -> None:
    """Emit the end of a JVP step with a projection: from the tangent of W_proj q to that of h."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in KernelArgs}

    def emit_padding(row: ir.Value) -> None:
        e.store(e.load(s.output(at[KernelArgs.TH_BEFORE], row)), s.output(at[KernelArgs.TH], row))

    with s.rows(emit_padding) as row:
        th_new = e.load(s.output(at[KernelArgs.TPROJECTED], row))
        if config.proj_clip is not None:
            th_new = th_new * s.clip_derivative(e.load(s.output(at[KernelArgs.PROJECTED], row)), "proj_clip")
        e.store(
            blend(s.keep("h", row), e.load(s.output(at[KernelArgs.TH_BEFORE], row)), th_new),
            s.output(at[KernelArgs.TH], row),
        )
