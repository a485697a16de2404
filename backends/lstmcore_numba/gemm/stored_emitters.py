"""Emitters of products whose weights are in fewer bytes: widened to float32 on load, or multiplied as integers."""

from __future__ import annotations

from typing import Final, NamedTuple

from llvmlite import ir

from lstmcore_numba.codegen.compile_target import CompileTarget
from lstmcore_numba.codegen.emitter import POINTER, Emitter, Vector
from lstmcore_numba.gemm.stored_panel import KernelArguments

_INT8, _INT16, _INT32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


class IntegerForm(NamedTuple):
    """How int8 weights and int16 activations lie for products of integers.

    Attributes
    ----------
    values
        Values of K in a group. The weights of a group lie side by side, and so do the activations.
    exact_groups
        Groups whose sum of products is exact in int32.
    """

    values: int
    exact_groups: int


#: Sums of pairs are 2 * 256 * 127 * 32767 at most, those of the bytes of quads 4 * 16384 * 127 * 255: below 2^31.
INTEGER_FORMS: Final = {"pairs": IntegerForm(2, 256), "quads": IntegerForm(4, 16384)}
#: Format -> bytes of a weight; for integers, of a group. ``scaled`` are widened int8 weights without their scales.
WEIGHT_BYTES: Final = {"float32": 4, "scaled": 4, "bfloat16": 2, "float16": 2, "int8": 1} | {
    form: values for form, (values, _) in INTEGER_FORMS.items()
}


def multiplies_bytes(target: CompileTarget) -> bool:
    """Return whether a processor has an instruction for products of quads of bytes (VNNI)."""
    return target.has("avx512vnni") if target.vector_bytes > 32 else target.has("avxvnni", "avx2", "fma")


class StoredEmitter(Emitter):
    """Emitter for sums of float32 whose weights are widened when they are loaded.

    Parameters
    ----------
    builder
        Where code is emitted.
    form
        A name of `WEIGHT_BYTES`.
    cols
        Vectors in a row of the panel of weights.
    target, arguments
        The processor, and the arguments of the function, whose addresses are those of vector `first`.
    first
        The first vector that a microkernel takes, an even number.
    """

    #: Bytes of a number of the left operand: of a value of float32, or of a group of integers.
    number_bytes = 4

    def __init__(
        self,
        builder: ir.IRBuilder,
        form: str,
        cols: int,
        target: CompileTarget,
        arguments: KernelArguments,
        first: int = 0,
    ) -> None:
        super().__init__(builder, "float32", target.vector_bytes // 4)
        self.form, self.cols, self.target, self.arguments, self.first = form, cols, target, arguments, first
        self.weight_bytes = self.lanes * WEIGHT_BYTES[form]

    def load_integers(self, address: ir.Value, kind: ir.Type, count: int) -> ir.Value:
        """Load a vector of `count` numbers of an LLVM type, which need not be aligned."""
        return self.builder.load(self.builder.inttoptr(address, POINTER), typ=ir.VectorType(kind, count), align=1)

    def weights_at(self, address: ir.Value, column: int, kind: ir.Type, count: int) -> ir.Value:
        """Load the `count` weights of vector `column` as they are stored."""
        return self.load_integers(self.address(address, self.index(column * self.weight_bytes)), kind, count)

    def load_weights(self, address: ir.Value, column: int) -> Vector:
        """Load a vector of weights as float32, exactly; int8 without its scale."""
        b = self.builder
        if self.form in ("float32", "scaled"):
            return super().load_weights(address, column)
        if self.form == "float16":
            return Vector(self, b.fpext(self.weights_at(address, column, ir.HalfType(), self.lanes), self.type))
        if self.form == "bfloat16":
            return self._widened_bfloat16(address, column)
        return Vector(self, b.sitofp(self.weights_at(address, column, _INT8, self.lanes), self.type))

    def _widened_bfloat16(self, address: ir.Value, column: int) -> Vector:
        """Load a vector of bfloat16, whose numbers alternate with those of its neighbour unless it is the odd last one.

        Two neighbours are the lower and the upper halves of words: one load for both, and one instruction for each.
        """
        b, upper = self.builder, column % 2
        if self.first + column - upper + 1 < self.cols:
            words = self.weights_at(address, column - upper, _INT32, self.lanes)
        else:
            words = b.zext(self.weights_at(address, column, _INT16, self.lanes), self.integers)
        bits = b.and_(words, self.same_integers(-(2**16))) if upper else b.shl(words, self.same_integers(16))
        return Vector(self, b.bitcast(bits, self.type))

    def same_integers(self, number: int) -> ir.Constant:
        """Return a constant with an int32 in every lane."""
        return ir.Constant(self.integers, [number] * self.lanes)

    def result(self, value: Vector, row: int, column: int) -> Vector:
        """Return a sum of products; with int8 weights, times the scale of its column."""
        return value * self.scale_of(column) if self.form in ("int8", "scaled") else value

    def scale_of(self, column: int) -> Vector:
        """Load the scales of a vector of columns."""
        return self.load(self.address(self.arguments.scale, self.index(4 * self.lanes * column)))

    def scale_of_row(self, row: int) -> Vector:
        """Load the scale of a row of integers into every lane."""
        return Emitter.broadcast(self, self.address(self.arguments.row_scale, self.index(4 * row)))


class GroupWeights(StoredEmitter):
    """Emitter for one value of K at a time whose int8 weights lie in groups of K: for rows that are not finite."""

    def weights_of(self, address: ir.Value, column: int, place: ir.Value) -> Vector:
        """Load the weights at a place in the groups at an address, with their scales."""
        b, group = self.builder, ir.IntType(8 * INTEGER_FORMS[self.form].values)
        words = self.weights_at(address, column, group, self.lanes)
        if group.width < _INT32.width:
            words = b.zext(words, self.integers)
        to_top = b.sub(self.index(24), b.mul(place, self.index(8)))
        words = b.ashr(b.shl(words, self.in_every_lane(b.trunc(to_top, _INT32))), self.same_integers(24))
        return Vector(self, b.sitofp(words, self.type)) * self.scale_of(column)


class PairEmitter(StoredEmitter):
    """Emitter for int8 weights and int16 activations in pairs of K, with sums of int32."""

    def constant(self, number: float) -> Vector:
        """Return a vector of integers."""
        return Vector(self, self.same_integers(int(number)))

    def broadcast(self, address: ir.Value) -> Vector:
        """Load a pair of activations into every lane."""
        pair = self.builder.load(self.builder.inttoptr(address, POINTER), typ=_INT32, align=4)
        return self.spread(pair)

    def load_weights(self, address: ir.Value, column: int) -> Vector:
        """Load pairs of weights as int16."""
        pairs = self.weights_at(address, column, _INT8, 2 * self.lanes)
        return Vector(self, self.builder.sext(pairs, ir.VectorType(_INT16, 2 * self.lanes)))

    def multiply_add(self, a: Vector, b: Vector, term: Vector) -> Vector:
        """Add both products of each pair to the sum, exactly."""
        builder, shorts = self.builder, ir.VectorType(_INT16, 2 * self.lanes)
        pair, weights = (builder.bitcast(factor.value, shorts) for factor in (a, b))
        width = 32 * self.lanes
        name = "llvm.x86.avx512.pmaddw.d.512" if self.widest and self.target.has("avx512bw") else None
        if self.target.triple.startswith("x86_64") and not self.widest:
            name = "llvm.x86.avx2.pmadd.wd" if width == 256 else "llvm.x86.sse2.pmadd.wd"
        products = self.call(name, self.integers, weights, pair) if name else self._pair_sums(weights, pair)
        return Vector(self, builder.add(term.value, products))

    def _pair_sums(self, weights: ir.Value, pair: ir.Value) -> ir.Value:
        """Return the sum of both products of each pair, on processors without an instruction for it."""
        b, wide = self.builder, ir.VectorType(_INT32, 2 * self.lanes)
        products = b.mul(b.sext(weights, wide), b.sext(pair, wide))
        halves = [
            b.shuffle_vector(products, products, self.lane_numbers([2 * lane + part for lane in range(self.lanes)]))
            for part in range(2)
        ]
        return b.add(*halves)

    def plus(self, a: Vector, b: Vector) -> Vector:
        """Return the sum of two vectors of integers."""
        return Vector(self, self.builder.add(a.value, b.value))

    def result(self, value: Vector, row: int, column: int) -> Vector:
        """Return a sum of integers times the scales of its row and of its column."""
        return self.as_float(value, column) * (self.scale_of_row(row) * self.scale_of(column))

    def as_float(self, value: Vector, column: int) -> Vector:
        """Return a sum of integers with the weights of a vector of columns, rounded to float32."""
        return Vector(self, self.builder.sitofp(value.value, self.type))


class QuadEmitter(PairEmitter):
    """Emitter for int8 weights in quads of K and activations as two unsigned bytes, with sums of int32 (VNNI).

    An activation plus 2^15 is ``256 high + low``. The products with both bytes have sums of their own, which are one
    vector of twice as many lanes: the low ones, then the high ones.
    """

    number_bytes = 8

    def constant(self, number: float) -> Vector:
        """Return a vector of integers for both sums."""
        return Vector(self, ir.Constant(ir.VectorType(_INT32, 2 * self.lanes), [int(number)] * (2 * self.lanes)))

    def broadcast(self, address: ir.Value) -> Vector:
        """Load the low bytes of a quad of activations into every lane, and its high bytes."""
        return self._joined(
            *(
                super(QuadEmitter, self).broadcast(self.address(address, self.index(4 * part))).value
                for part in range(2)
            )
        )

    def load_weights(self, address: ir.Value, column: int) -> Vector:
        """Load quads of weights as they are."""
        return Vector(self, self.weights_at(address, column, _INT32, self.lanes))

    def multiply_add(self, a: Vector, b: Vector, term: Vector) -> Vector:
        """Add the four products of each quad to both sums, exactly."""
        name, parts = (
            f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}",
            zip(self._halves(term), self._halves(a), strict=True),
        )
        return self._joined(*(self.call(name, self.integers, total, part, b.value) for total, part in parts))

    def as_float(self, value: Vector, column: int) -> Vector:
        """Return the sum, rounded once if it is below 2^32.

        What 2^15 adds to the sum of the high bytes is behind the scales, negative. The low sum keeps 8 bits.
        """
        b, (low, high) = self.builder, self._halves(value)
        place = self.address(self.arguments.scale, self.index(4 * self.lanes * (self.cols + column)))
        high = b.add(b.add(high, self.load_integers(place, _INT32, self.lanes)), b.ashr(low, self.same_integers(8)))
        whole, rest = (Vector(self, b.sitofp(part, self.type)) for part in (high, b.and_(low, self.same_integers(255))))
        return whole.fma(StoredEmitter.constant(self, 256), rest)

    def _joined(self, low: ir.Value, high: ir.Value) -> Vector:
        return Vector(self, self.builder.shuffle_vector(low, high, _numbers(range(2 * self.lanes))))

    def _halves(self, value: Vector) -> tuple[ir.Value, ir.Value]:
        low, high = (
            self.builder.shuffle_vector(value.value, value.value, _numbers(range(first, first + self.lanes)))
            for first in (0, self.lanes)
        )
        return low, high


def _numbers(numbers: range) -> ir.Constant:
    """Return a constant of 32-bit integers."""
    return ir.Constant(ir.VectorType(_INT32, len(numbers)), list(numbers))
