"""A small vector layer: values that stand for a register full of numbers, and emit the instruction of each operation.

Python code that computes with `Vector` runs once, when a kernel is made, and leaves LLVM code behind that works on a
whole register at a time. A switch that is off is a branch that Python did not take, so it costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import llvmlite.binding as llvm
from llvmlite import ir

INDEX: Final = ir.IntType(64)
POINTER: Final = ir.PointerType()
#: 1.5 times the range of the digits: a number's sum with it is a whole number, which its last bits tell.
ROUND: Final = {4: 1.5 * 2.0**23, 8: 1.5 * 2.0**52}
#: Tells an instruction of AVX-512 to round as the processor is set to.
_CURRENT_ROUNDING: Final = 4


def vector_bytes() -> int:
    """Bytes of a vector register of this machine: 64 with AVX-512, 32 with AVX2, else 16.

    ``LSTMCORE_VECTOR_BYTES`` asks for narrower ones.

    Raises
    ------
    ValueError
        The variable is not 16, 32 or 64, or wider than the machine's registers.
    """
    features = llvm.get_host_cpu_features()
    own = 64 if features.get("avx512f") else 32 if features.get("avx2") and features.get("fma") else 16
    asked = os.environ.get("LSTMCORE_VECTOR_BYTES")
    if asked is None:
        return own
    if asked not in ("16", "32", "64") or int(asked) > own:
        raise ValueError(f"LSTMCORE_VECTOR_BYTES: expected 16, 32 or 64, at most {own} on this machine; got {asked!r}")
    return int(asked)


class Emitter:
    """Emits code for vectors of `lanes` numbers of type `real` at the place where `builder` stands."""

    def __init__(self, builder: ir.IRBuilder, dtype: str, lanes: int) -> None:
        self.builder, self.dtype, self.lanes = builder, dtype, lanes
        self.real: ir.Type = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.size = 4 if dtype == "float32" else 8
        self.type: ir.Type = ir.VectorType(self.real, lanes)
        self.name = f"v{lanes}f{8 * self.size}"
        self.integer = ir.IntType(8 * self.size)
        self.integers: ir.Type = ir.VectorType(self.integer, lanes)

    def constant(self, number: float) -> Vector:
        """The same number in every lane."""
        return Vector(self, ir.Constant(self.type, [ir.Constant(self.real, float(number))] * self.lanes))

    def lift(self, value: Vector | float) -> Vector:
        """A `Vector` as it is, a number in every lane."""
        return value if isinstance(value, Vector) else self.constant(value)

    def intrinsic(self, name: str, *values: Vector) -> Vector:
        """The result of an LLVM intrinsic, such as ``fma``, on vectors."""
        return Vector(self, self.call(f"llvm.{name}.{self.name}", self.type, *(value.value for value in values)))

    def call(self, full: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        """What an LLVM intrinsic gives, which is named in full and declared where it is first of use."""
        function = self.builder.module.globals.get(full)
        if function is None:
            kind = ir.FunctionType(result, [arg.type for arg in args])
            function = ir.Function(self.builder.module, kind, full)
        return self.builder.call(function, args)

    @property
    def widest(self) -> bool:
        """Whether the vectors are those of AVX-512."""
        return self.lanes * self.size == 64

    @property
    def suffix(self) -> str:
        """What the processor's own instructions call the type."""
        return "ps" if self.size == 4 else "pd"

    def masked(self, full: str, values: list[Vector], options: list[ir.Value]) -> Vector:
        """The result of an instruction of AVX-512 that could leave lanes out, in all lanes."""
        every = ir.Constant(ir.IntType(self.lanes), (1 << self.lanes) - 1)
        return Vector(self, self.call(full, self.type, *(value.value for value in values), every, *options))

    def address(self, base: ir.Value, *offsets: ir.Value) -> ir.Value:
        """``base`` and the sum of `offsets`, in bytes; all are integers."""
        for offset in offsets:
            base = self.builder.add(base, offset)
        return base

    def load(self, address: ir.Value) -> Vector:
        """The numbers at `address`, which need not be aligned."""
        pointer = self.builder.inttoptr(address, POINTER)
        return Vector(self, self.builder.load(pointer, typ=self.type, align=self.size))

    def load_some(self, address: ir.Value, mask: ir.Value) -> Vector:
        """The numbers at `address` where the mask is set, else 0; the others need not be memory."""
        pointer, align = self.builder.inttoptr(address, POINTER), ir.Constant(ir.IntType(32), self.size)
        nothing = ir.Constant(self.type, None)
        return Vector(self, self.call(f"llvm.masked.load.{self.name}.p0", self.type, pointer, align, mask, nothing))

    def store(self, value: Vector, address: ir.Value) -> None:
        """Write `value` to `address`, which need not be aligned."""
        self.builder.store(value.value, self.builder.inttoptr(address, POINTER), align=self.size)

    def prefetch(self, address: ir.Value) -> None:
        """Ask for the cache line of `address`, which need not be memory."""
        options = [ir.Constant(ir.IntType(32), value) for value in (0, 3, 1)]  # to be read, the nearest cache, data
        self.call("llvm.prefetch.p0", ir.VoidType(), self.builder.inttoptr(address, POINTER), *options)

    def broadcast(self, address: ir.Value) -> Vector:
        """The one number at `address` in every lane."""
        number = self.builder.load(self.builder.inttoptr(address, POINTER), typ=self.real, align=self.size)
        return self.spread(number)

    def spread(self, number: ir.Value) -> Vector:
        """A scalar in every lane."""
        return Vector(self, self.in_every_lane(number))

    def in_every_lane(self, number: ir.Value) -> ir.Value:
        """The same of any type, as LLVM has it."""
        nothing = ir.Constant(ir.VectorType(number.type, self.lanes), ir.Undefined)
        one = self.builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(one, nothing, self.lane_numbers([0] * self.lanes))

    def lane_numbers(self, numbers: list[int]) -> ir.Constant:
        """An integer for each lane."""
        return ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), numbers)

    def index(self, number: int) -> ir.Constant:
        """An integer constant."""
        return ir.Constant(INDEX, number)

    @contextmanager
    def loop(self, start: ir.Value, stop: ir.Value, carried: list[ir.Value]) -> Iterator[Loop]:
        """Code for every integer from `start` below `stop`; `carried` values go from one round to the next."""
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
    """A loop that is being emitted: its counter, what came in, and what goes to the next round."""

    i: ir.Value
    values: list[ir.Value]
    carried: list[ir.Value]


class Vector:
    """A register of numbers. Arithmetic with another one, or with a number, emits an instruction."""

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
        """``self * factor + term`` with one rounding."""
        return self.emitter.intrinsic("fma", self, self.emitter.lift(factor), self.emitter.lift(term))

    def abs(self) -> Vector:
        """The absolute value."""
        return self.emitter.intrinsic("fabs", self)

    def sqrt(self) -> Vector:
        """The square root."""
        return self.emitter.intrinsic("sqrt", self)

    def nearest(self) -> Vector:
        """The nearest whole number, the even one of two."""
        return self.emitter.intrinsic("rint", self)

    def with_sign_of(self, other: Vector) -> Vector:
        """The absolute value with the sign of `other`."""
        return self.emitter.intrinsic("copysign", self, other)

    def across(self) -> ir.Value:
        """The sum of all lanes: halves are added until one number is left."""
        e, total, distance = self.emitter, self, self.emitter.lanes // 2
        while distance:
            turned = e.lane_numbers([(lane + distance) % e.lanes for lane in range(e.lanes)])
            total += Vector(e, e.builder.shuffle_vector(total.value, total.value, turned))
            distance //= 2
        return e.builder.extract_element(total.value, ir.Constant(ir.IntType(32), 0))

    def compare(self, relation: str, other: Vector | float) -> ir.Value:
        """Where ``self relation other`` holds; nowhere for a NaN."""
        return self.emitter.builder.fcmp_ordered(relation, self.value, self.emitter.lift(other).value)

    def reaches(self, number: float) -> ir.Value:
        """Where this is `number` or more; everywhere for a NaN."""
        return self.emitter.builder.fcmp_unordered(">=", self.value, self.emitter.constant(number).value)

    def where(self, condition: ir.Value, otherwise: Vector | float) -> Vector:
        """This where `condition` holds, else `otherwise`."""
        other = self.emitter.lift(otherwise)
        return Vector(self.emitter, self.emitter.builder.select(condition, self.value, other.value))

    def clip(self, low: float, high: float) -> Vector:
        """Limited to `low` and `high`; a NaN stays one."""
        floor, ceiling = self.emitter.constant(low), self.emitter.constant(high)
        raised = floor.where(self.compare("<", low), self)
        return ceiling.where(raised.compare(">", high), raised)

    def power_of_two(self) -> Vector:
        """2 to the whole number whose sum with `ROUND` this is, where that is a normal number."""
        e = self.emitter
        bias, shift = (127, 23) if e.size == 4 else (1023, 52)
        bits = e.builder.shl(e.builder.bitcast(self.value, e.integers), self._integers(shift))
        return Vector(e, e.builder.bitcast(e.builder.add(bits, self._integers(bias << shift)), e.type))

    def _integers(self, number: int) -> ir.Constant:
        """The same integer in every lane."""
        e = self.emitter
        return ir.Constant(e.integers, [ir.Constant(e.integer, number)] * e.lanes)

    def scaled(self, power: Vector) -> Vector:
        """This times 2 to the whole number whose sum with `ROUND` is `power`; one instruction with AVX-512."""
        e = self.emitter
        if not e.widest:
            return self * power.power_of_two()
        name, power = f"llvm.x86.avx512.mask.scalef.{e.suffix}.512", power - ROUND[e.size]
        return e.masked(name, [self, power, e.constant(0)], [ir.Constant(ir.IntType(32), _CURRENT_ROUNDING)])

    def over(self, divisor: Vector) -> Vector:
        """``self / divisor`` for divisors from 1 to below the inverse of the least normal number.

        AVX-512 has the first 14 bits of an inverse at a tenth of a division's price, and a step of Newton's doubles
        them. What the quotient is off by is taken off at the end.
        """
        e = self.emitter
        if not e.widest:
            return self / divisor
        inverse = divisor.inverse()
        quotient = self * inverse
        return inverse.fma((-divisor).fma(quotient, self), quotient)

    def inverse(self) -> Vector:
        """``1 / self`` for numbers as `over` has them, to 0.7 epsilons."""
        e = self.emitter
        if not e.widest:
            return 1 / self
        found = e.masked(f"llvm.x86.avx512.rcp14.{e.suffix}.512", [self, e.constant(0)], [])
        for _ in range(1 if e.size == 4 else 2):
            found = found.fma((-self).fma(found, 1), found)
        return found

    def rounded_to(self, storage: str) -> Vector:
        """As it is after a stay in memory as ``float16`` or ``bfloat16``."""
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
