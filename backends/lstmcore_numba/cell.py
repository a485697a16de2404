"""One step of the LSTM for one block of hidden units, as code for vectors: forward, backward and along tangents.

Each function here is emitted for one configuration, so it holds only what that configuration needs. It works on rows
``first`` to ``last`` of a batch and on the ``lanes`` hidden units of ``block``. What it reads and writes are arrays
whose last axis is padded to whole vectors; their addresses come in a table, in the order of the classes below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from llvmlite import ir

from lstmcore.config import SIGMOID, TANH, LSTMConfig
from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter, Vector
from lstmcore_numba.codegen.gate_functions import derivative, value

SIGNATURE: Final = ir.FunctionType(ir.VoidType(), [INDEX] * 4)


class At(IntEnum):
    """Where the address of each array is in the table. Shapes: Hp and Pp are H and P in whole vectors, B blocks.

    Gates are (B, N, G, lanes): all gates of a block of one row lie side by side, in the order of ``config.gates``.
    """

    LENGTHS = 0  # (N,) int64
    STEP = 1  # not an address: the index of the step
    BIAS = 2  # (B, G, lanes)
    PEEPHOLE = 3  # (rows, Hp)
    MASK_C = 4  # (N, Hp)
    MASK_H = 5  # (N, Pp)
    GATES = 6  # (B, N, G, lanes): pre-activations of the products, then the gates
    RAW = 7  # (B, N, G, lanes): what the gate functions read, where their derivative needs it
    C_BEFORE = 8  # (N, Hp)
    C = 9  # (N, Hp)
    H_BEFORE = 10  # (N, Pp)
    H = 11  # (N, Pp)
    Q = 12  # (N, Hp): what is projected
    PROJECTED = 13  # (N, Pp): before its clip
    DZ = 14  # (B, N, G, lanes)
    DC = 15  # (N, Hp): of the cell after the step, then of the one before
    DH = 16  # (N, Pp): of h after the step, then the part of the one before that does not go through the gates
    DQ = 17  # (N, Hp)
    DPROJECTED = 18  # (N, Pp)
    TZ = 19  # (B, N, G, lanes)
    TC_BEFORE = 20  # (N, Hp)
    TC = 21  # (N, Hp)
    TH_BEFORE = 22  # (N, Pp)
    TH = 23  # (N, Pp)
    TQ = 24  # (N, Hp)
    TPEEPHOLE = 25  # (rows, Hp)
    TPROJECTED = 26  # (N, Pp)
    NORM_X = 27  # (B, N, G, lanes): the normalised product of x, of r, and the normalised cell
    NORM_H = 28  # (B, N, G, lanes)
    NORM_C = 29  # (B, N, lanes)
    GAIN_X = 30  # (B, G, lanes)
    GAIN_H = 31  # (B, G, lanes)
    GAIN_C = 32  # (1, Hp)
    SHIFT_C = 33  # (1, Hp)
    DC_OUT = 34  # (N, Hp): of the cell after its gain
    DNORM_C = 35  # (B, N, lanes): of the normalised cell
    TGAIN_C = 36  # (1, Hp)
    TSHIFT_C = 37  # (1, Hp)
    TNORM_C = 38  # (B, N, lanes)
    BATCH = 39  # not an address: N


@dataclass(frozen=True, slots=True)
class Variant:
    """What code is emitted for.

    Attributes
    ----------
    config, dtype, storage
        The layer; the dtype of all arithmetic; and how h is stored between steps.
    lanes
        Numbers in a vector.
    masked_c, masked_h
        Whether masks of zoneout are given.
    record
        Whether gates are kept.
    """

    config: LSTMConfig
    dtype: str
    storage: str
    lanes: int
    masked_c: bool = False
    masked_h: bool = False
    record: bool = False


def seen_by_steps(config: LSTMConfig, lanes: int) -> LSTMConfig:
    """A configuration with the same code for its steps, the same for all that have it: only whole vectors count.

    Neither the input's size nor the direction, the mask of r, what the gates read or the norms' epsilon are seen.
    """
    hidden, output = (-(-size // lanes) * lanes for size in (config.hidden_size, config.output_size))
    return replace(
        config,
        input_size=1,
        hidden_size=max(hidden, 2),
        proj_size=min(output, max(hidden, 2) - 1) if config.proj_size else 0,  # as many vectors, but below the other
        reverse=False,
        recurrence="hidden",
        recurrent_dropout=0.0,
        layer_norm_eps=1.0,
    )


def needs_raw(config: LSTMConfig) -> bool:
    """Whether the derivative of a gate cannot be had from the gate alone."""
    return config.gate_activation != SIGMOID or config.cell_activation != TANH or config.gate_clip is not None


class Step:
    """Emits the body of a step function; `gates`, `cells` and `outputs` are how arrays are addressed."""

    def __init__(self, variant: Variant, function: ir.Function) -> None:
        self.variant, self.config = variant, variant.config
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.emitter = Emitter(self.builder, variant.dtype, variant.lanes)
        self.table, self.block, self.first, self.last = function.args
        self.width = variant.lanes * self.emitter.size
        self.blocks = -(-self.config.hidden_size // variant.lanes)
        self.output_blocks = -(-self.config.output_size // variant.lanes)
        self.count = len(self.config.gates)
        self.before = self.builder.mul(self.block, self.address(At.BATCH))

    def address(self, field: At) -> ir.Value:
        """What the table has for `field`."""
        e = self.emitter
        pointer = self.builder.inttoptr(e.address(self.table, e.index(8 * field)), POINTER)
        return self.builder.load(pointer, typ=INDEX, align=8)

    def times(self, value: ir.Value, factor: int) -> ir.Value:
        """An integer product."""
        return self.builder.mul(value, self.emitter.index(factor))

    def parameter(self, field: At, row: int) -> Vector:
        """Row `row` of a (rows, Hp) parameter."""
        e = self.emitter
        return e.load(
            e.address(self.address(field), e.index(row * self.blocks * self.width), self.times(self.block, self.width))
        )

    def by_gate(self, field: At, wanted: bool = True) -> dict[str, Vector]:
        """A (B, G, lanes) parameter for each gate, empty unless `wanted`."""
        if not wanted:
            return {}
        e = self.emitter
        base = e.address(self.address(field), self.times(self.block, self.count * self.width))
        return {k: e.load(e.address(base, e.index(i * self.width))) for i, k in enumerate(self.config.gates)}

    def peepholes(self, field: At = At.PEEPHOLE) -> dict[str, Vector]:
        """The peephole of each gate that has one."""
        return {k: self.parameter(field, row) for row, k in enumerate(self.config.peephole_gates)}

    def gate(self, base: ir.Value, row: ir.Value, name: str) -> ir.Value:
        """The address of a gate in a (B, N, G, lanes) array."""
        place = self.builder.add(self.before, row)
        offset = self.emitter.index(self.config.gates.index(name) * self.width)
        return self.emitter.address(base, self.times(place, self.count * self.width), offset)

    def norm(self, base: ir.Value, row: ir.Value) -> ir.Value:
        """The address in a (B, N, lanes) array."""
        return self.emitter.address(base, self.times(self.builder.add(self.before, row), self.width))

    def cell(self, base: ir.Value, row: ir.Value) -> ir.Value:
        """The address in a (N, Hp) array."""
        return self.emitter.address(base, self.times(row, self.blocks * self.width), self.times(self.block, self.width))

    def output(self, base: ir.Value, row: ir.Value) -> ir.Value:
        """The address in a (N, Pp) array."""
        return self.emitter.address(
            base, self.times(row, self.output_blocks * self.width), self.times(self.block, self.width)
        )

    @contextmanager
    def rows(self, idle: Callable[[ir.Value], None]) -> Iterator[ir.Value]:
        """Code for every row that is within its length; `idle` emits that for the others."""
        lengths, step = self.address(At.LENGTHS), self.address(At.STEP)
        b, e = self.builder, self.emitter
        with e.loop(self.first, self.last, []) as loop:
            pointer = b.inttoptr(e.address(lengths, self.times(loop.i, 8)), POINTER)
            end = b.load(pointer, typ=INDEX, align=8)
            with b.if_else(b.icmp_signed("<", step, end), likely=True) as (within, past):
                with within:
                    yield loop.i
                with past:
                    idle(loop.i)

    def keep(self, which: str, row: ir.Value) -> Vector | None:
        """The share of the old value that zoneout keeps, None for no zoneout."""
        rate = self.config.zoneout_cell if which == "c" else self.config.zoneout_hidden
        if rate == 0:
            return None
        if which == "c" and self.variant.masked_c:
            return self.emitter.load(self.cell(self.address(At.MASK_C), row))
        if which == "h" and self.variant.masked_h:
            return self.emitter.load(self.output(self.address(At.MASK_H), row))
        return self.emitter.constant(rate)

    def activation(self, k: str) -> Callable[[Vector], Vector]:
        """The function of gate `k` after the gate clip."""
        config = self.config
        function = config.cell_activation if k == "g" else config.gate_activation

        def activate(z: Vector) -> Vector:
            return value(function, z if config.gate_clip is None else z.clip(-config.gate_clip, config.gate_clip))

        return activate

    def slope(self, k: str, gate: Vector, raw: Vector | None) -> Vector:
        """The derivative of gate `k` at what it read."""
        config = self.config
        function = config.cell_activation if k == "g" else config.gate_activation
        if raw is None:
            return derivative(function, gate, gate)
        bound = config.gate_clip
        if bound is None:
            return derivative(function, raw, gate)
        return derivative(function, raw.clip(-bound, bound), gate) * inside(raw, bound)

    def coupled(self, gate: dict[str, Vector]) -> None:
        """Add the gate that follows another one."""
        if self.config.coupling == "forget_from_input":
            gate["f"] = 1 - gate["i"]
        elif self.config.coupling == "input_from_forget":
            gate["i"] = 1 - gate["f"]


def inside(x: Vector, bound: float | None) -> Vector:
    """The derivative of a clip: 1 within the bound, else 0."""
    one, zero = x.emitter.constant(1), x.emitter.constant(0)
    return one if bound is None else one.where(x.abs().compare("<=", bound), zero)


def limited(x: Vector, bound: float | None) -> Vector:
    """`x` clipped to +-bound."""
    return x if bound is None else x.clip(-bound, bound)


def blend(keep: Vector | None, before: Vector, new: Vector) -> Vector:
    """``keep before + (1 - keep) new``."""
    return new if keep is None else keep * before + (1 - keep) * new


# Forward --------------------------------------------------------------------------------------------------------------


def forward(s: Step) -> None:
    """From the products to the gates, the cell and h, or to what is projected to h.

    With layer norm, from the normalised products to the gates and the cell: `forward_cell` goes on from there.
    """
    config, e = s.config, s.emitter
    bias, peephole = s.by_gate(At.BIAS, config.bias), s.peepholes()
    gain_x, gain_h = s.by_gate(At.GAIN_X, config.layer_norm), s.by_gate(At.GAIN_H, config.layer_norm)
    at = {field: s.address(field) for field in At}

    def idle(row: ir.Value) -> None:
        e.store(e.load(s.cell(at[At.C_BEFORE], row)), s.cell(at[At.C], row))
        if not config.proj_size:
            e.store(e.load(s.output(at[At.H_BEFORE], row)), s.output(at[At.H], row))

    with s.rows(idle) as row:
        c_before = e.load(s.cell(at[At.C_BEFORE], row))
        if config.layer_norm:
            norm_x = {k: e.load(s.gate(at[At.NORM_X], row, k)) for k in config.gates}
            norm_h = {k: e.load(s.gate(at[At.NORM_H], row, k)) for k in config.gates}
            z = {k: norm_h[k].fma(gain_h[k], norm_x[k] * gain_x[k]) for k in config.gates}
        else:
            z = {k: e.load(s.gate(at[At.GATES], row, k)) for k in config.gates}
        for k in bias:
            z[k] = z[k] + bias[k]
        for k in "if":
            if k in peephole:
                z[k] = peephole[k].fma(c_before, z[k])

        gate = {k: s.activation(k)(z[k]) for k in "ifg" if k in z}
        s.coupled(gate)
        c_new = limited(gate["f"].fma(c_before, gate["i"] * gate["g"]), config.cell_clip)
        c = blend(s.keep("c", row), c_before, c_new)
        e.store(c, s.cell(at[At.C], row))

        if "o" in peephole:
            z["o"] = peephole["o"].fma(c, z["o"])
        gate["o"] = s.activation("o")(z["o"])
        if s.variant.record:
            for k in config.gates:
                e.store(gate[k], s.gate(at[At.GATES], row, k))
                if needs_raw(config):
                    e.store(z[k], s.gate(at[At.RAW], row, k))
        if config.layer_norm:
            e.store(gate["o"], s.gate(at[At.GATES], row, "o"))
        else:
            _leave(s, at, row, gate["o"] * value(config.hidden_activation, c))


def forward_cell(s: Step) -> None:
    """With layer norm: from the gates and the normalised cell to h, or to what is projected to h."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in At}
    scaled = _scaled_cell(s)

    def idle(row: ir.Value) -> None:
        return None

    with s.rows(idle) as row:
        c_out = scaled(e.load(s.norm(at[At.NORM_C], row)))
        _leave(s, at, row, e.load(s.gate(at[At.GATES], row, "o")) * value(config.hidden_activation, c_out))


def _scaled_cell(s: Step) -> Callable[[Vector], Vector]:
    """The gain and the shift of the normalised cell."""
    gain = s.parameter(At.GAIN_C, 0)
    if not s.config.bias:
        return lambda norm: norm * gain
    shift = s.parameter(At.SHIFT_C, 0)
    return lambda norm: norm.fma(gain, shift)


def _leave(s: Step, at: dict[At, ir.Value], row: ir.Value, q: Vector) -> None:
    """Write h, or what is projected to it."""
    e = s.emitter
    if s.config.proj_size:
        e.store(q, s.cell(at[At.Q], row))
        return
    h = blend(s.keep("h", row), e.load(s.output(at[At.H_BEFORE], row)), q)
    e.store(h.rounded_to(s.variant.storage), s.output(at[At.H], row))


def forward_output(s: Step) -> None:
    """From what was projected to h."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in At}

    def idle(row: ir.Value) -> None:
        e.store(e.load(s.output(at[At.H_BEFORE], row)), s.output(at[At.H], row))

    with s.rows(idle) as row:
        h_new = limited(e.load(s.output(at[At.PROJECTED], row)), config.proj_clip)
        h = blend(s.keep("h", row), e.load(s.output(at[At.H_BEFORE], row)), h_new)
        e.store(h.rounded_to(s.variant.storage), s.output(at[At.H], row))


# Backward: d_ is the gradient with respect to the value of that name --------------------------------------------------


def backward_output(s: Step) -> None:
    """From h to what was projected."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in At}

    def idle(row: ir.Value) -> None:
        e.store(e.constant(0), s.output(at[At.DPROJECTED], row))

    with s.rows(idle) as row:
        dh, keep = e.load(s.output(at[At.DH], row)), s.keep("h", row)
        dh_new = dh if keep is None else (1 - keep) * dh
        if config.proj_clip is not None:
            dh_new = dh_new * inside(e.load(s.output(at[At.PROJECTED], row)), config.proj_clip)
        e.store(dh_new, s.output(at[At.DPROJECTED], row))
        e.store(e.constant(0) if keep is None else keep * dh, s.output(at[At.DH], row))


def _arrive(s: Step, at: dict[At, ir.Value], row: ir.Value) -> Vector:
    """The gradient of q; what zoneout keeps of that of h stays in its place."""
    e = s.emitter
    if s.config.proj_size:
        return e.load(s.cell(at[At.DQ], row))
    dh, keep = e.load(s.output(at[At.DH], row)), s.keep("h", row)
    e.store(e.constant(0) if keep is None else keep * dh, s.output(at[At.DH], row))
    return dh if keep is None else (1 - keep) * dh


def backward_cell(s: Step) -> None:
    """With layer norm: from h, or what is projected to it, to the gate o and the normalised cell."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in At}
    scaled, gain = _scaled_cell(s), s.parameter(At.GAIN_C, 0)
    raw = needs_raw(config)

    def idle(row: ir.Value) -> None:
        e.store(e.constant(0), s.cell(at[At.DC_OUT], row))
        e.store(e.constant(0), s.norm(at[At.DNORM_C], row))

    with s.rows(idle) as row:
        dq = _arrive(s, at, row)
        o = e.load(s.gate(at[At.GATES], row, "o"))
        read = e.load(s.gate(at[At.RAW], row, "o")) if raw else None
        c_out = scaled(e.load(s.norm(at[At.NORM_C], row)))
        u = value(config.hidden_activation, c_out)
        e.store(dq * u * s.slope("o", o, read), s.gate(at[At.DZ], row, "o"))
        dc_out = dq * o * derivative(config.hidden_activation, c_out, u)
        e.store(dc_out, s.cell(at[At.DC_OUT], row))
        e.store(dc_out * gain, s.norm(at[At.DNORM_C], row))


def backward(s: Step) -> None:
    """From h, or what is projected to it, and c to the pre-activations and the cell before.

    With layer norm, from c and what `backward_cell` made.
    """
    config, e = s.config, s.emitter
    peephole = s.peepholes()
    at = {field: s.address(field) for field in At}
    raw = needs_raw(config)

    def idle(row: ir.Value) -> None:
        for k in config.gates:
            e.store(e.constant(0), s.gate(at[At.DZ], row, k))

    with s.rows(idle) as row:
        gate = {k: e.load(s.gate(at[At.GATES], row, k)) for k in config.gates}
        read = {k: e.load(s.gate(at[At.RAW], row, k)) if raw else None for k in config.gates}
        s.coupled(gate)
        c_before, c = e.load(s.cell(at[At.C_BEFORE], row)), e.load(s.cell(at[At.C], row))
        dc = e.load(s.cell(at[At.DC], row))

        # q = o u(c)
        if config.layer_norm:
            dz = {"o": e.load(s.gate(at[At.DZ], row, "o"))}
        else:
            dq = _arrive(s, at, row)
            u = value(config.hidden_activation, c)
            dz = {"o": dq * u * s.slope("o", gate["o"], read["o"])}
            dc = (dq * gate["o"]).fma(derivative(config.hidden_activation, c, u), dc)
        if "o" in peephole:
            dc = dz["o"].fma(peephole["o"], dc)

        # c = keep c_before + (1 - keep) clip(f c_before + i g)
        keep = s.keep("c", row)
        dc_new = dc if keep is None else (1 - keep) * dc
        if config.cell_clip is not None:
            dc_new = dc_new * inside(gate["f"].fma(c_before, gate["i"] * gate["g"]), config.cell_clip)
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
            e.store(dz[k], s.gate(at[At.DZ], row, k))
        e.store(dc_before, s.cell(at[At.DC], row))


# Along tangents: t_ is the change of the value of that name -----------------------------------------------------------


def tangent(s: Step) -> None:
    """From the change of the pre-activations to that of the cell and of h, or of what is projected to h.

    With layer norm, to that of the cell and of the gate o: `tangent_cell` goes on from there.
    """
    config, e = s.config, s.emitter
    peephole, tpeephole = s.peepholes(), s.peepholes(At.TPEEPHOLE)
    at = {field: s.address(field) for field in At}
    raw = needs_raw(config)

    def idle(row: ir.Value) -> None:
        e.store(e.load(s.cell(at[At.TC_BEFORE], row)), s.cell(at[At.TC], row))
        if not config.proj_size:
            e.store(e.load(s.output(at[At.TH_BEFORE], row)), s.output(at[At.TH], row))

    with s.rows(idle) as row:
        gate = {k: e.load(s.gate(at[At.GATES], row, k)) for k in config.gates}
        read = {k: e.load(s.gate(at[At.RAW], row, k)) if raw else None for k in config.gates}
        c_before, c = e.load(s.cell(at[At.C_BEFORE], row)), e.load(s.cell(at[At.C], row))
        tc_before = e.load(s.cell(at[At.TC_BEFORE], row))
        tz = {k: e.load(s.gate(at[At.TZ], row, k)) for k in config.gates}
        for k in "if":
            if k in peephole:
                tz[k] = tz[k] + tpeephole[k] * c_before + peephole[k] * tc_before
        tgate = {k: tz[k] * s.slope(k, gate[k], read[k]) for k in "ifg" if k in tz}
        if config.coupling == "forget_from_input":
            tgate["f"] = -tgate["i"]
        elif config.coupling == "input_from_forget":
            tgate["i"] = -tgate["f"]
        s.coupled(gate)

        tc_new = tgate["f"] * c_before + gate["f"] * tc_before + tgate["i"] * gate["g"] + gate["i"] * tgate["g"]
        if config.cell_clip is not None:
            tc_new = tc_new * inside(gate["f"].fma(c_before, gate["i"] * gate["g"]), config.cell_clip)
        tc = blend(s.keep("c", row), tc_before, tc_new)
        e.store(tc, s.cell(at[At.TC], row))

        if "o" in peephole:
            tz["o"] = tz["o"] + tpeephole["o"] * c + peephole["o"] * tc
        to = tz["o"] * s.slope("o", gate["o"], read["o"])
        if config.layer_norm:
            e.store(to, s.gate(at[At.TZ], row, "o"))
        else:
            u = value(config.hidden_activation, c)
            _leave_tangent(s, at, row, to * u + gate["o"] * derivative(config.hidden_activation, c, u) * tc)


def tangent_cell(s: Step) -> None:
    """With layer norm: from the change of the gate o and of the normalised cell to that of h or what is projected."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in At}
    scaled, gain, tgain = _scaled_cell(s), s.parameter(At.GAIN_C, 0), s.parameter(At.TGAIN_C, 0)
    tshift = s.parameter(At.TSHIFT_C, 0) if config.bias else e.constant(0)

    def idle(row: ir.Value) -> None:
        return None

    with s.rows(idle) as row:
        norm = e.load(s.norm(at[At.NORM_C], row))
        c_out = scaled(norm)
        tc_out = e.load(s.norm(at[At.TNORM_C], row)) * gain + norm * tgain + tshift
        o, to = e.load(s.gate(at[At.GATES], row, "o")), e.load(s.gate(at[At.TZ], row, "o"))
        u = value(config.hidden_activation, c_out)
        _leave_tangent(s, at, row, to * u + o * derivative(config.hidden_activation, c_out, u) * tc_out)


def _leave_tangent(s: Step, at: dict[At, ir.Value], row: ir.Value, tq: Vector) -> None:
    """Write the change of h, or of what is projected to it."""
    e = s.emitter
    if s.config.proj_size:
        e.store(tq, s.cell(at[At.TQ], row))
        return
    e.store(blend(s.keep("h", row), e.load(s.output(at[At.TH_BEFORE], row)), tq), s.output(at[At.TH], row))


def tangent_output(s: Step) -> None:
    """From the change of what was projected to that of h."""
    config, e = s.config, s.emitter
    at = {field: s.address(field) for field in At}

    def idle(row: ir.Value) -> None:
        e.store(e.load(s.output(at[At.TH_BEFORE], row)), s.output(at[At.TH], row))

    with s.rows(idle) as row:
        th_new = e.load(s.output(at[At.TPROJECTED], row))
        if config.proj_clip is not None:
            th_new = th_new * inside(e.load(s.output(at[At.PROJECTED], row)), config.proj_clip)
        e.store(blend(s.keep("h", row), e.load(s.output(at[At.TH_BEFORE], row)), th_new), s.output(at[At.TH], row))
