"""LLVM code for vector registers: a Python value stands for a register, and each operation on it emits an instruction.

Python code that computes with `Vector` runs once, when a kernel is compiled. The emitted code works on a whole register
at a time. A switch that is off is a branch that Python did not take, so it emits no code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from llvmlite import ir

INDEX: Final = ir.IntType(64)
POINTER: Final = ir.PointerType()
#: 1.5 times the range of the mantissa. A number plus this is rounded to a whole number, which its last bits hold.
ROUND: Final = {4: 1.5 * 2.0**23, 8: 1.5 * 2.0**52}
#: Operand of AVX-512 instructions: round in the mode that the processor is in.
_CURRENT_ROUNDING: Final = 4


class Emitter:
    """Emitter of code for vectors of `lanes` numbers of `dtype`, at the position of `builder`."""

    def __init__(self, builder: ir.IRBuilder, dtype: str, lanes: int) -> None:
        self.builder, self.dtype, self.lanes = builder, dtype, lanes
        self.real: ir.Type = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.size = 4 if dtype == "float32" else 8
        self.type: ir.Type = ir.VectorType(self.real, lanes)
        self.name = f"v{lanes}f{8 * self.size}"
        self.integer = ir.IntType(8 * self.size)
        self.integers: ir.Type = ir.VectorType(self.integer, lanes)

    def constant(self, number: float) -> Vector:
        """Return a vector with `number` in every lane."""
        return Vector(self, ir.Constant(self.type, [ir.Constant(self.real, float(number))] * self.lanes))

    def lift(self, value: Vector | float) -> Vector:
        """Return a `Vector` unchanged, and a number as a vector with it in every lane."""
        return value if isinstance(value, Vector) else self.constant(value)

    def intrinsic(self, name: str, *values: Vector) -> Vector:
        """Call the LLVM intrinsic `name`, such as ``fma``, on vectors."""
        return Vector(self, self.call(f"llvm.{name}.{self.name}", self.type, *(value.value for value in values)))

    def multiply_add(self, a: Vector, b: Vector, term: Vector) -> Vector:
        """Return ``a * b + term``, with one rounding if the processor has an instruction for it."""
        return self.intrinsic("fmuladd", a, b, term)

    def call(self, full: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        """Call the LLVM intrinsic with the full name `full`; declare it if the module has not yet."""
        function = self.builder.module.globals.get(full)
        if function is None:
            kind = ir.FunctionType(result, [arg.type for arg in args])
            function = ir.Function(self.builder.module, kind, full)
        return self.builder.call(function, args)

    @property
    def widest(self) -> bool:
        """Whether the vectors are registers of AVX-512."""
        return self.lanes * self.size == 64

    @property
    def suffix(self) -> str:
        """The type in names of x86 instructions."""
        return "ps" if self.size == 4 else "pd"

    def masked(self, full: str, values: list[Vector], options: list[ir.Value]) -> Vector:
        """Call a masked instruction of AVX-512 with all lanes enabled."""
        every = ir.Constant(ir.IntType(self.lanes), (1 << self.lanes) - 1)
        return Vector(self, self.call(full, self.type, *(value.value for value in values), every, *options))

    def address(self, base: ir.Value, *offsets: ir.Value) -> ir.Value:
        """Return `base` plus the sum of `offsets`, in bytes; all are integers."""
        for offset in offsets:
            base = self.builder.add(base, offset)
        return base

    def load(self, address: ir.Value) -> Vector:
        """Load a vector from `address`, which need not be aligned."""
        pointer = self.builder.inttoptr(address, POINTER)
        return Vector(self, self.builder.load(pointer, typ=self.type, align=self.size))

    def load_weights(self, address: ir.Value, column: int) -> Vector:
        """Load vector `column` of the weights of one value of K, as the factor of `multiply_add`."""
        return self.load(self.address(address, self.index(column * self.lanes * self.size)))

    def plus(self, a: Vector, b: Vector) -> Vector:
        """Return the sum of two sums of products."""
        return a + b

    def result(self, value: Vector, row: int, column: int) -> Vector:
        """Return a sum of products as numbers; subclasses may sum integers."""
        return value

    def load_some(self, address: ir.Value, mask: ir.Value) -> Vector:
        """Load the lanes whose bit in `mask` is set, and 0 in the others, whose addresses may be invalid."""
        pointer, align = self.builder.inttoptr(address, POINTER), ir.Constant(ir.IntType(32), self.size)
        nothing = ir.Constant(self.type, None)
        return Vector(self, self.call(f"llvm.masked.load.{self.name}.p0", self.type, pointer, align, mask, nothing))

    def store(self, value: Vector, address: ir.Value) -> None:
        """Store `value` at `address`, which need not be aligned."""
        self.builder.store(value.value, self.builder.inttoptr(address, POINTER), align=self.size)

    def prefetch(self, address: ir.Value) -> None:
        """Prefetch the cache line of `address` into L1; the address may be invalid."""
        options = [ir.Constant(ir.IntType(32), value) for value in (0, 3, 1)]  # for reading, L1, data
        self.call("llvm.prefetch.p0", ir.VoidType(), self.builder.inttoptr(address, POINTER), *options)

    def broadcast(self, address: ir.Value) -> Vector:
        """Load the number at `address` into every lane."""
        number = self.builder.load(self.builder.inttoptr(address, POINTER), typ=self.real, align=self.size)
        return self.spread(number)

    def spread(self, number: ir.Value) -> Vector:
        """Return a vector with the scalar `number` in every lane."""
        return Vector(self, self.in_every_lane(number))

    def in_every_lane(self, number: ir.Value) -> ir.Value:
        """Return an LLVM vector with `number`, of any type, in every lane."""
        nothing = ir.Constant(ir.VectorType(number.type, self.lanes), ir.Undefined)
        one = self.builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(one, nothing, self.lane_numbers([0] * self.lanes))

    def lane_numbers(self, numbers: list[int]) -> ir.Constant:
        """Return a constant with one 32-bit integer per lane."""
        return ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), numbers)

    def index(self, number: int) -> ir.Constant:
        """Return an int64 constant."""
        return ir.Constant(INDEX, number)

    @contextmanager
    def loop(self, start: ir.Value, stop: ir.Value, carried: list[ir.Value]) -> Iterator[Loop]:
        """Emit a loop over i from `start` to below `stop`; the values `carried` go from one iteration to the next."""
        b = self.builder
        before, head = b.block, b.append_basic_block("head")
        body, done = b.append_basic_block("body"), b.append_basic_block("done")
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(INDEX)
        i.add_incoming(start, before)
        values = []
        for value in carried:
            phi = b.phi(value.type)
            phi.add_incoming(value, before)
            values.append(phi)
        b.cbranch(b.icmp_signed("<", i, stop), body, done)
        b.position_at_end(body)
        loop = Loop(i, values, list(values))
        yield loop
        i.add_incoming(b.add(i, self.index(1)), b.block)
        for phi, value in zip(values, loop.carried, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(done)


@dataclass
class Loop:
    """A loop that is being emitted: its counter, the values that came in, and those for the next iteration."""

    i: ir.Value
    values: list[ir.Value]
    carried: list[ir.Value]


class Vector:
    """A vector register. Arithmetic with another one, or with a number, emits an instruction."""

    def __init__(self, emitter: Emitter, value: ir.Value) -> None:
        self.emitter, self.value = emitter, value

    def _with(self, emit: Callable[..., ir.Value], other: Vector | float) -> Vector:
        return Vector(self.emitter, emit(self.value, self.emitter.lift(other).value))

    def __add__(self, other: Vector | float) -> Vector:
        return self._with(self.emitter.builder.fadd, other)

    def __sub__(self, other: Vector | float) -> Vector:
        return self._with(self.emitter.builder.fsub, other)

    def __mul__(self, other: Vector | float) -> Vector:
        return self._with(self.emitter.builder.fmul, other)

    def __truediv__(self, other: Vector | float) -> Vector:
        return self._with(self.emitter.builder.fdiv, other)

    def __radd__(self, other: float) -> Vector:
        return self + other

    def __rmul__(self, other: float) -> Vector:
        return self * other

    def __rsub__(self, other: float) -> Vector:
        return self.emitter.lift(other) - self

    def __rtruediv__(self, other: float) -> Vector:
        return self.emitter.lift(other) / self

    def __neg__(self) -> Vector:
        return Vector(self.emitter, self.emitter.builder.fneg(self.value))

    def fma(self, factor: Vector | float, term: Vector | float) -> Vector:
        """Return ``self * factor + term`` with one rounding."""
        return self.emitter.intrinsic("fma", self, self.emitter.lift(factor), self.emitter.lift(term))

    def abs(self) -> Vector:
        """Return the absolute value."""
        return self.emitter.intrinsic("fabs", self)

    def sqrt(self) -> Vector:
        """Return the square root."""
        return self.emitter.intrinsic("sqrt", self)

    def nearest(self) -> Vector:
        """Return the nearest whole number; a tie goes to the even one."""
        return self.emitter.intrinsic("rint", self)

    def with_sign_of(self, other: Vector) -> Vector:
        """Return the absolute value with the sign of `other`."""
        return self.emitter.intrinsic("copysign", self, other)

    def across(self) -> ir.Value:
        """Return the sum of all lanes; halves are added until one number is left."""
        e, total, distance = self.emitter, self, self.emitter.lanes // 2
        while distance:
            turned = e.lane_numbers([(lane + distance) % e.lanes for lane in range(e.lanes)])
            total += Vector(e, e.builder.shuffle_vector(total.value, total.value, turned))
            distance //= 2
        return e.builder.extract_element(total.value, ir.Constant(ir.IntType(32), 0))

    def compare(self, relation: str, other: Vector | float) -> ir.Value:
        """Return the mask of lanes in which ``self relation other`` holds; a NaN gives False."""
        return self.emitter.builder.fcmp_ordered(relation, self.value, self.emitter.lift(other).value)

    def reaches(self, number: float) -> ir.Value:
        """Return the mask of lanes that are `number` or more; a NaN gives True."""
        return self.emitter.builder.fcmp_unordered(">=", self.value, self.emitter.constant(number).value)

    def where(self, condition: ir.Value, otherwise: Vector | float) -> Vector:
        """Select this in the lanes in which `condition` holds, else `otherwise`."""
        other = self.emitter.lift(otherwise)
        return Vector(self.emitter, self.emitter.builder.select(condition, self.value, other.value))

    def clip(self, low: Vector | float, high: Vector | float) -> Vector:
        """Return this clipped to `low` and `high`; a NaN stays NaN."""
        floor, ceiling = self.emitter.lift(low), self.emitter.lift(high)
        raised = floor.where(self.compare("<", floor), self)
        return ceiling.where(raised.compare(">", ceiling), raised)

    def power_of_two(self) -> Vector:
        """Return ``2 ** n`` if this is ``n + ROUND`` and the result is a normal number."""
        e = self.emitter
        bias, shift = (127, 23) if e.size == 4 else (1023, 52)
        bits = e.builder.shl(e.builder.bitcast(self.value, e.integers), self._integers(shift))
        return Vector(e, e.builder.bitcast(e.builder.add(bits, self._integers(bias << shift)), e.type))

    def _integers(self, number: int) -> ir.Constant:
        """Return a constant with the integer `number` in every lane."""
        e = self.emitter
        return ir.Constant(e.integers, [ir.Constant(e.integer, number)] * e.lanes)

    def scaled(self, power: Vector) -> Vector:
        """Return ``self * 2 ** n`` if `power` is ``n + ROUND``. It is one instruction with AVX-512."""
        e = self.emitter
        if not e.widest:
            return self * power.power_of_two()
        name, power = f"llvm.x86.avx512.mask.scalef.{e.suffix}.512", power - ROUND[e.size]
        return e.masked(name, [self, power, e.constant(0)], [ir.Constant(ir.IntType(32), _CURRENT_ROUNDING)])

    def over(self, divisor: Vector) -> Vector:
        """Return ``self / divisor`` for divisors from 1 to below the reciprocal of the least normal number.

        AVX-512 computes 14 bits of a reciprocal in a tenth of the time of a division. One Newton step doubles them. The
        error of the quotient is subtracted at the end.
        """
        e = self.emitter
        if not e.widest:
            return self / divisor
        inverse = divisor.inverse()
        quotient = self * inverse
        return inverse.fma((-divisor).fma(quotient, self), quotient)

    def inverse(self) -> Vector:
        """Return ``1 / self`` with an error of at most 0.7 epsilons, for the range of `over`'s divisors."""
        e = self.emitter
        if not e.widest:
            return 1 / self
        inverse = e.masked(f"llvm.x86.avx512.rcp14.{e.suffix}.512", [self, e.constant(0)], [])
        for _ in range(1 if e.size == 4 else 2):
            inverse = inverse.fma((-self).fma(inverse, 1), inverse)
        return inverse

    def rounded_to(self, storage: str) -> Vector:
        """Return this rounded to `storage` if that is ``float16`` or ``bfloat16``, else unchanged."""
        e = self.emitter
        if storage == "float16":
            half = ir.VectorType(ir.HalfType(), e.lanes)
            return Vector(e, e.builder.fpext(e.builder.fptrunc(self.value, half), e.type))
        if storage != "bfloat16":
            return self
        bits = e.builder.bitcast(self.value, e.integers)

        def number(n: int) -> ir.Constant:
            return ir.Constant(e.integers, [ir.Constant(e.integer, n)] * e.lanes)

        odd = e.builder.and_(e.builder.lshr(bits, number(16)), number(1))
        upper = e.builder.and_(e.builder.add(bits, e.builder.add(odd, number(0x7FFF))), number(0xFFFF0000))
        return self.where(
            e.builder.fcmp_unordered("uno", self.value, self.value), Vector(e, e.builder.bitcast(upper, e.type))
        )
