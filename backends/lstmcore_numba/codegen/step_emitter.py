"""The frame of a step function: how it finds its arrays, and loops over the rows of a block.

A step function is emitted for one configuration, so it holds only what that configuration needs. Its signature is
``(args, block, first, last)``: the address of a table, a block of `lanes` hidden units, and a range of rows of the
batch. The table has an int64 for each field of `KernelArgs`. The last axis of every array is padded to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final

from llvmlite import ir

from lstmcore.config import SIGMOID, TANH, Activation, LSTMConfig
from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter, Vector
from lstmcore_numba.codegen.gate_functions import GateFunction, derivative, value

SIGNATURE: Final = ir.FunctionType(ir.VoidType(), [INDEX] * 4)


class KernelArgs(IntEnum):
    """Index of each array's address in the table of a step function.

    In shapes, Hp and Pp are H and P padded to whole vectors, and B is the number of blocks. Gates are (B, N, G, lanes):
    all gates of one row's block are contiguous, in the order of ``config.gates``.
    """

    LENGTHS = 0  # (N,) int64
    STEP = 1  # not an address: the index t of the step
    BIAS = 2  # (B, G, lanes)
    PEEPHOLE = 3  # (rows, Hp): the peepholes, then the rows of `unit_rows`
    MASK_C = 4  # (N, Hp)
    MASK_H = 5  # (N, Pp)
    GATES = 6  # (B, N, G, lanes): sums of the matrix products, then the gates
    RAW = 7  # (B, N, G, lanes): pre-activations, if the derivative needs them
    C_BEFORE = 8  # (N, Hp)
    C = 9  # (N, Hp)
    H_BEFORE = 10  # (N, Pp)
    H = 11  # (N, Pp)
    Q = 12  # (N, Hp): the input of the projection
    PROJECTED = 13  # (N, Pp): before its clip
    DZ = 14  # (B, N, G, lanes)
    DC = 15  # (N, Hp): gradient of the cell after the step, then of the cell before it
    DH = 16  # (N, Pp): gradient of h after the step, then zoneout's part of that before it
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
    NORM_X = 27  # (B, N, G, lanes): normalised W x
    NORM_H = 28  # (B, N, G, lanes): normalised R r
    NORM_C = 29  # (B, N, lanes): normalised cell
    GAIN_X = 30  # (B, G, lanes)
    GAIN_H = 31  # (B, G, lanes)
    GAIN_C = 32  # (1, Hp)
    SHIFT_C = 33  # (1, Hp)
    DC_OUT = 34  # (N, Hp): gradient of the cell after its gain and shift
    DNORM_C = 35  # (B, N, lanes): gradient of the normalised cell
    TGAIN_C = 36  # (1, Hp)
    TSHIFT_C = 37  # (1, Hp)
    TNORM_C = 38  # (B, N, lanes)
    BATCH = 39  # not an address: N


@dataclass(frozen=True, slots=True)
class StepVariant:
    """Specification of a step function; equal variants share machine code.

    Attributes
    ----------
    config, dtype, storage
        The layer (of `step_config`), the dtype of the arithmetic, and the dtype that h is rounded to.
    lanes
        Numbers in a vector.
    masked_c, masked_h
        Whether the call has a zoneout mask for c, and for h.
    record
        Whether the gates are stored for a later backward pass.
    padded
        Whether the last block of hidden units or of outputs has padding.
    """

    config: LSTMConfig
    dtype: str
    storage: str
    lanes: int
    masked_c: bool = False
    masked_h: bool = False
    record: bool = False
    padded: bool = False


#: Names of the rows that are 1 for hidden units and for outputs, and 0 in the padding behind them.
INSIDE_HIDDEN: Final = "inside hidden"
INSIDE_OUTPUT: Final = "inside output"


def step_numbers(config: LSTMConfig) -> dict[str, float]:
    """Return the numbers of a configuration that its step functions read from memory, by name and in order.

    They are no constants of the code, so that layers that differ in such a number alone share it.
    """
    numbers: dict[str, float | None] = {name: getattr(config, name) for name in _CLIPS}
    numbers |= {name: getattr(config, name) or None for name in _RATES}
    for name in _ACTIVATIONS:
        function: Activation = getattr(config, name)
        numbers |= {f"{name} alpha": function.alpha, f"{name} beta": function.beta}
    return {name: number for name, number in numbers.items() if number is not None}


def unit_rows(config: LSTMConfig, *, padded: bool) -> list[str]:
    """Return the names of the rows behind the peepholes: a number each, or which units are no padding."""
    rows = list(step_numbers(config))
    if padded:
        rows += [INSIDE_HIDDEN, INSIDE_OUTPUT]
    return rows


_CLIPS: Final = ("gate_clip", "cell_clip", "proj_clip")
_RATES: Final = ("zoneout_cell", "zoneout_hidden")
_ACTIVATIONS: Final = ("gate_activation", "cell_activation", "hidden_activation")


def step_config(config: LSTMConfig, lanes: int) -> LSTMConfig:
    """Return the representative of all configurations whose step functions are the same.

    Sizes are rounded up to whole vectors. The step functions do not depend on the input size, the direction, the
    recurrence, the recurrent dropout, the epsilon of layer norm and the values of `step_numbers`, so these get fixed
    values.
    """
    numbers: dict[str, Any] = {name: 1.0 for name in _CLIPS if getattr(config, name) is not None}
    numbers |= {name: 0.5 for name in _RATES if getattr(config, name)}
    numbers |= {name: Activation(getattr(config, name).name) for name in _ACTIVATIONS}
    hidden, output = (-(-size // lanes) * lanes for size in (config.hidden_size, config.output_size))
    return replace(
        config,
        input_size=1,
        hidden_size=max(hidden, 2),
        proj_size=min(output, max(hidden, 2) - 1)
        if config.proj_size
        else 0,  # as many vectors, but less than hidden_size
        reverse=False,
        recurrence="hidden",
        recurrent_dropout=0.0,
        layer_norm_eps=1.0,
        **numbers,
    )


def needs_raw(config: LSTMConfig) -> bool:
    """Return whether a gate's derivative needs its pre-activation, and not just the gate."""
    return config.gate_activation != SIGMOID or config.cell_activation != TANH or config.gate_clip is not None


class StepEmitter:
    """Emitter of the body of a step function, at the end of a new entry block of `function`.

    Its methods load parameters, compute addresses in the arrays of `KernelArgs`, and loop over rows.
    """

    def __init__(self, variant: StepVariant, function: ir.Function) -> None:
        self.variant, self.config = variant, variant.config
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.emitter = Emitter(self.builder, variant.dtype, variant.lanes)
        self.args, self.block, self.first, self.last = function.args
        self.width = variant.lanes * self.emitter.size
        self.blocks = -(-self.config.hidden_size // variant.lanes)
        self.output_blocks = -(-self.config.output_size // variant.lanes)
        self.count = len(self.config.gates)
        self.before = self.builder.mul(self.block, self.address(KernelArgs.BATCH))
        # Loaded before the loop over rows, since LLVM cannot know that no row writes to them.
        first = len(self.config.peephole_gates)
        rows = unit_rows(self.config, padded=variant.padded)
        self.units = {name: self.parameter(KernelArgs.PEEPHOLE, first + row) for row, name in enumerate(rows)}

    def address(self, field: KernelArgs) -> ir.Value:
        """Load the entry of the table for `field`."""
        e = self.emitter
        pointer = self.builder.inttoptr(e.address(self.args, e.index(8 * field)), POINTER)
        return self.builder.load(pointer, typ=INDEX, align=8)

    def times(self, value: ir.Value, factor: int) -> ir.Value:
        """Multiply two integers."""
        return self.builder.mul(value, self.emitter.index(factor))

    def parameter(self, field: KernelArgs, row: int) -> Vector:
        """Load this block's part of row `row` of a (rows, Hp) parameter."""
        e = self.emitter
        return e.load(
            e.address(self.address(field), e.index(row * self.blocks * self.width), self.times(self.block, self.width))
        )

    def by_gate(self, field: KernelArgs, wanted: bool = True) -> dict[str, Vector]:
        """Load a (B, G, lanes) parameter by gate name; return an empty dict unless `wanted`."""
        if not wanted:
            return {}
        e = self.emitter
        base = e.address(self.address(field), self.times(self.block, self.count * self.width))
        return {k: e.load(e.address(base, e.index(i * self.width))) for i, k in enumerate(self.config.gates)}

    def peepholes(self, field: KernelArgs = KernelArgs.PEEPHOLE) -> dict[str, Vector]:
        """Load the peephole weights by name of each gate that has them."""
        return {k: self.parameter(field, row) for row, k in enumerate(self.config.peephole_gates)}

    def gate(self, base: ir.Value, row: ir.Value, name: str) -> ir.Value:
        """Return the address of a gate in the (B, N, G, lanes) array at `base`."""
        place = self.builder.add(self.before, row)
        offset = self.emitter.index(self.config.gates.index(name) * self.width)
        return self.emitter.address(base, self.times(place, self.count * self.width), offset)

    def norm(self, base: ir.Value, row: ir.Value) -> ir.Value:
        """Return the address in the (B, N, lanes) array at `base`."""
        return self.emitter.address(base, self.times(self.builder.add(self.before, row), self.width))

    def cell(self, base: ir.Value, row: ir.Value) -> ir.Value:
        """Return the address in the (N, Hp) array at `base`."""
        return self.emitter.address(base, self.times(row, self.blocks * self.width), self.times(self.block, self.width))

    def output(self, base: ir.Value, row: ir.Value) -> ir.Value:
        """Return the address in the (N, Pp) array at `base`."""
        return self.emitter.address(
            base, self.times(row, self.output_blocks * self.width), self.times(self.block, self.width)
        )

    @contextmanager
    def rows(self, emit_padding: Callable[[ir.Value], None]) -> Iterator[ir.Value]:
        """Loop over the rows; yield the index of a row with a step t. `emit_padding` emits the code of the others."""
        lengths, step = self.address(KernelArgs.LENGTHS), self.address(KernelArgs.STEP)
        b, e = self.builder, self.emitter
        with e.loop(self.first, self.last, []) as loop:
            pointer = b.inttoptr(e.address(lengths, self.times(loop.i, 8)), POINTER)
            end = b.load(pointer, typ=INDEX, align=8)
            with b.if_else(b.icmp_signed("<", step, end), likely=True) as (within, padding):
                with within:
                    yield loop.i
                with padding:
                    emit_padding(loop.i)

    def keep(self, which: str, row: ir.Value) -> Vector | None:
        """Return the fraction of the old c or h (`which`) that zoneout keeps; None without zoneout."""
        rate = self.config.zoneout_cell if which == "c" else self.config.zoneout_hidden
        if rate == 0:
            return None
        if which == "c" and self.variant.masked_c:
            return self.emitter.load(self.cell(self.address(KernelArgs.MASK_C), row))
        if which == "h" and self.variant.masked_h:
            return self.emitter.load(self.output(self.address(KernelArgs.MASK_H), row))
        return self.units["zoneout_cell" if which == "c" else "zoneout_hidden"]

    def without_padding(self, vector: Vector, which: str = INSIDE_HIDDEN) -> Vector:
        """Return `vector` with 0 in the padding, where an infinite operand times a padding weight of 0 gives NaN.

        Vectors that are an operand of a GEMM with their padding need it.
        """
        return vector if not self.variant.padded else vector.where(self.units[which].compare(">", 0), 0)

    def function(self, name: str) -> GateFunction:
        """Return the activation of the field `name` of the configuration."""
        alpha, beta = (self.units.get(f"{name} {key}", 0.0) for key in ("alpha", "beta"))
        return GateFunction(getattr(self.config, name).name, alpha, beta)

    def clipped(self, x: Vector, name: str) -> Vector:
        """Return `x` clipped to +- the clip `name`, if there is one."""
        bound = self.units.get(name)
        return x if bound is None else x.clip(-bound, bound)

    def clip_derivative(self, x: Vector, name: str) -> Vector:
        """Return the derivative of `clipped` at `x`: 1 within the bound, else 0."""
        one, zero = x.emitter.constant(1), x.emitter.constant(0)
        bound = self.units.get(name)
        return one if bound is None else one.where(x.abs().compare("<=", bound), zero)

    def activation(self, k: str) -> Callable[[Vector], Vector]:
        """Return the function that applies the gate clip and the activation of gate `k`."""
        function = self.function("cell_activation" if k == "g" else "gate_activation")
        return lambda z: value(function, self.clipped(z, "gate_clip"))

    def slope(self, k: str, gate: Vector, raw: Vector | None) -> Vector:
        """Return the derivative of gate `k` with respect to its pre-activation, which is `raw` if it is needed."""
        function = self.function("cell_activation" if k == "g" else "gate_activation")
        if raw is None:
            return derivative(function, gate, gate)
        slope = derivative(function, self.clipped(raw, "gate_clip"), gate)
        return slope if self.config.gate_clip is None else slope * self.clip_derivative(raw, "gate_clip")

    def add_coupled(self, gate: dict[str, Vector]) -> None:
        """Add to `gate` the coupled gate, if there is one."""
        if self.config.coupling == "forget_from_input":
            gate["f"] = 1 - gate["i"]
        elif self.config.coupling == "input_from_forget":
            gate["i"] = 1 - gate["f"]


def blend(keep: Vector | None, before: Vector, new: Vector) -> Vector:
    """Return ``keep before + (1 - keep) new``."""
    return new if keep is None else keep * before + (1 - keep) * new
