"""Functions in LLVM code that multiply by weights in fewer bytes, reached by their addresses.

A weight is widened to float32 when it is loaded, so a product of one row reads fewer bytes. Weights of int8 may also be
multiplied with activations of int16, whose sums are exact in int32. The loops over time call these functions by
address, so that they are compiled once for all formats.

All functions have one signature, `KernelArguments`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir

from lstmcore.locks import ForkSafeLock
from lstmcore_numba.codegen.compile_target import CompileTarget, compile_target
from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter, Vector
from lstmcore_numba.codegen.step_compiler import compile_module
from lstmcore_numba.gemm.stored_panel import KernelArguments
from lstmcore_numba.gemm.tile_shapes import TileShape, TileTable, tile_table
from lstmcore_numba.gemm.vector import TileValues, emit_tile

_LOCK: Final = ForkSafeLock()
#: Pairs of K whose sum of products of int8 and int16 is exact in int32: 2 * 256 * 127 * 32767 is below 2^31.
EXACT_PAIRS: Final = 256
#: The largest magnitude of an activation in int16.
LARGEST_ACTIVATION: Final = 32767
#: The least scale of a row of activations: its inverse is finite.
_LEAST_SCALE: Final = 2.0**-100
_INT16, _INT32 = ir.IntType(16), ir.IntType(32)


class StoredEmitter(Emitter):
    """Emitter for sums of float32 whose weights are widened when they are loaded."""

    def __init__(self, builder: ir.IRBuilder, form: str, target: CompileTarget, arguments: KernelArguments) -> None:
        super().__init__(builder, "float32", target.vector_bytes // 4)
        self.form, self.target, self.arguments = form, target, arguments
        self.weight_bytes = self.lanes * WEIGHT_BYTES[form]

    def raw_weights(self, address: ir.Value, kind: ir.Type, count: int) -> ir.Value:
        """Load `count` weights of an LLVM type."""
        return self.builder.load(self.builder.inttoptr(address, POINTER), typ=ir.VectorType(kind, count), align=1)

    def load_weights(self, address: ir.Value, column: int) -> Vector:
        """Load a vector of weights as float32, exactly; int8 without its scale."""
        b, place = self.builder, self.address(address, self.index(column * self.weight_bytes))
        if self.form in ("float32", "scaled"):
            return self.load(place)
        if self.form == "float16":
            return Vector(self, b.fpext(self.raw_weights(place, ir.HalfType(), self.lanes), self.type))
        if self.form == "bfloat16":
            words = b.zext(self.raw_weights(place, _INT16, self.lanes), self.integers)
            return Vector(self, b.bitcast(b.shl(words, ir.Constant(self.integers, [16] * self.lanes)), self.type))
        return Vector(self, b.sitofp(self.raw_weights(place, ir.IntType(8), self.lanes), self.type))

    def result(self, value: Vector, row: int, column: int) -> Vector:
        """Return a sum of products; with int8 weights, times the scale of its column."""
        return value * self.scale_of(column) if self.form in ("int8", "scaled") else value

    def scale_of(self, column: int) -> Vector:
        """Load the scales of a vector of columns."""
        return self.load(self.address(self.arguments.scale, self.index(4 * self.lanes * column)))


class PairWeights(StoredEmitter):
    """Emitter for one value of K at a time whose int8 weights lie in pairs of K: for rows that are not finite."""

    def weights_of(self, address: ir.Value, column: int, odd: ir.Value) -> Vector:
        """Load the first weights of the pairs at an address, or the second ones if `odd`, with their scales."""
        b, place = self.builder, self.address(address, self.index(column * self.weight_bytes))
        shorts = ir.VectorType(_INT16, self.lanes)
        eight = ir.Constant(shorts, [8] * self.lanes)
        both = self.raw_weights(place, _INT16, self.lanes)
        first = b.ashr(b.shl(both, eight), eight)
        return Vector(self, b.sitofp(b.select(odd, b.ashr(both, eight), first), self.type)) * self.scale_of(column)


class IntegerEmitter(StoredEmitter):
    """Emitter for int8 weights and int16 activations in pairs of K, with sums of int32."""

    def constant(self, number: float) -> Vector:
        """Return a vector of integers."""
        return Vector(self, ir.Constant(self.integers, [int(number)] * self.lanes))

    def broadcast(self, address: ir.Value) -> Vector:
        """Load a pair of activations into every lane."""
        pair = self.builder.load(self.builder.inttoptr(address, POINTER), typ=_INT32, align=4)
        return self.spread(pair)

    def load_weights(self, address: ir.Value, column: int) -> Vector:
        """Load pairs of weights as int16."""
        place = self.address(address, self.index(column * self.weight_bytes))
        pairs = self.raw_weights(place, ir.IntType(8), 2 * self.lanes)
        return Vector(self, self.builder.sext(pairs, ir.VectorType(_INT16, 2 * self.lanes)))

    def multiply_add(self, a: Vector, b: Vector, term: Vector) -> Vector:
        """Add both products of each pair to the sum, exactly."""
        builder, shorts = self.builder, ir.VectorType(_INT16, 2 * self.lanes)
        pair, weights = (builder.bitcast(factor.value, shorts) for factor in (a, b))
        has, width = self.target.has, 32 * self.lanes
        if has("avx512vnni") if self.widest else has("avxvnni", "avx2"):
            words = [builder.bitcast(value, self.integers) for value in (weights, pair)]
            return Vector(self, self.call(f"llvm.x86.avx512.vpdpwssd.{width}", self.integers, term.value, *words))
        name = "llvm.x86.avx512.pmaddw.d.512" if self.widest and has("avx512bw") else None
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
        of_row = super().broadcast(self.address(self.arguments.row_scale, self.index(4 * row)))
        return Vector(self, self.builder.sitofp(value.value, self.type)) * (of_row * self.scale_of(column))


#: Format -> bytes of a weight. ``scaled`` are widened int8 weights without their scales; ``pairs`` are int8 weights in
#: pairs of K, with the bytes of a pair.
WEIGHT_BYTES: Final = {"float32": 4, "scaled": 4, "bfloat16": 2, "float16": 2, "int8": 1, "pairs": 2}


def stored_table(target: CompileTarget, form: str) -> TileTable:
    """Return the microkernels for a format: those of float32, with fewer rows where the widening needs registers."""
    table = tile_table(target)
    if WEIGHT_BYTES[form] == 4 or target.vector_bytes > 32:
        return table
    if form == "pairs":
        rows = 6 if target.vector_bytes > 16 else 4
        one, two = TileShape(rows, 1), TileShape(rows, 2)
        return TileTable(15, (one, two, two, two), table.k_block)
    if target.vector_registers > 16:
        return table
    panels = (TileShape(6, 1), TileShape(4, 2), TileShape(2, 3), TileShape(2, 4))
    return TileTable(15, panels, table.k_block)  # one more holds what is widened


def _switch_rows(builder: ir.IRBuilder, rows: ir.Value, most: int, emit: Callable[[int], None]) -> None:
    """Emit a case for each number of rows from 1 to `most`."""
    done = builder.append_basic_block("tiled")
    cases = builder.switch(rows, done)
    for count in range(1, most + 1):
        block = builder.append_basic_block(f"rows{count}")
        cases.add_case(ir.Constant(INDEX, count), block)
        builder.position_at_end(block)
        emit(count)
        builder.branch(done)
    builder.position_at_end(done)


def emit_multiply(
    builder: ir.IRBuilder, arguments: KernelArguments, form: str, cols: int, target: CompileTarget
) -> None:
    """Emit the product of up to as many rows as a microkernel has with a panel of `cols` vectors in a format."""
    kind = IntegerEmitter if form == "pairs" else StoredEmitter
    table, k = stored_table(target, form), arguments
    most, width = table.panels[cols - 1]

    def emit_rows(rows: int) -> None:
        taken = cols if rows == 1 else width
        for first in range(0, cols, taken):
            e = kind(builder, form, target, arguments)
            numbers = e.index(4 * e.lanes * first)
            b = e.address(k.b, e.index(first * e.weight_bytes))
            c, scale = e.address(k.c, numbers), e.address(k.scale, numbers)
            e.arguments = arguments._replace(b=b, c=c, scale=scale)
            emit_tile(e, table, TileShape(rows, min(taken, cols - first)), _tile_values(e, cols))

    _switch_rows(builder, k.rows, most, emit_rows)


def _tile_values(e: StoredEmitter, cols: int) -> TileValues:
    """Return the arguments of an emitter as those of a microkernel, for a panel of `cols` vectors."""
    k, zero = e.arguments, e.index(0)
    fresh = e.builder.icmp_signed("!=", k.fresh, zero)
    b_k = e.index(cols * e.weight_bytes)
    left, result = (k.a, k.a_row, e.index(4), zero, k.a_gap), (k.c, k.c_row, k.c_gap)
    return TileValues(*left, k.b, b_k, *result, e.index(1), k.size, k.place, k.group, fresh)


def emit_widen(builder: ir.IRBuilder, arguments: KernelArguments, form: str, cols: int, target: CompileTarget) -> None:
    """Emit the copy of a panel of `size` values of K as float32 to address `c`."""
    e = StoredEmitter(builder, form, target, arguments)
    with e.loop(e.index(0), arguments.size, [arguments.b, arguments.c]) as loop:
        weights, place = loop.values
        for column in range(cols):
            e.store(e.load_weights(weights, column), e.address(place, e.index(4 * e.lanes * column)))
        loop.carried = [
            e.address(weights, e.index(cols * e.weight_bytes)),
            e.address(place, e.index(4 * e.lanes * cols)),
        ]


def emit_exact(builder: ir.IRBuilder, arguments: KernelArguments, form: str, cols: int, target: CompileTarget) -> None:
    """Emit the product of one row of float32, whose weights are in pairs; it is added to the result."""
    e, k = PairWeights(builder, form, target, arguments), arguments
    with e.loop(e.index(0), k.size, [e.constant(0).value] * cols) as loop:
        number = e.broadcast(e.address(k.a, builder.mul(loop.i, e.index(4))))
        pairs = e.address(k.b, builder.mul(builder.lshr(loop.i, e.index(1)), e.index(cols * e.weight_bytes)))
        odd = builder.trunc(loop.i, ir.IntType(1))
        loop.carried = [
            e.multiply_add(number, e.weights_of(pairs, column, odd), Vector(e, total)).value
            for column, total in enumerate(loop.values)
        ]
    for column, total in enumerate(loop.values):
        place = e.address(k.c, e.index(4 * e.lanes * column))
        e.store(e.load(place) + Vector(e, total), place)


def emit_quantise(
    builder: ir.IRBuilder, arguments: KernelArguments, form: str, cols: int, target: CompileTarget
) -> None:
    """Emit the rounding of `rows` rows of `size` numbers at `a` to int16 at `c`, with 0 behind an odd number of them.

    A row has the scale `largest magnitude / 32767`, which goes to `row_scale`; 1 if all are 0. A row that is not
    finite has the scale 0, and ``int32`` at address `scale` becomes 1.
    """
    e, k = StoredEmitter(builder, "float32", target, arguments), arguments
    with e.loop(e.index(0), k.rows, [k.a, k.c, k.row_scale]) as rows:
        source, place, scale_place = rows.values
        largest = _largest_magnitude(e, source, k.size)
        finite = builder.icmp_unsigned("<", largest, ir.Constant(_INT32, 0x7F800000))
        with builder.if_then(builder.not_(finite)):
            builder.store(ir.Constant(_INT32, 1), builder.inttoptr(k.scale, POINTER), align=4)
        _round_row(e, (source, place, scale_place), largest, finite)
        rows.carried = [e.address(source, k.a_row), e.address(place, k.c_row), e.address(scale_place, e.index(4))]


def _largest_magnitude(e: Emitter, source: ir.Value, size: ir.Value) -> ir.Value:
    """Return the bits of the largest magnitude; as integers they have the order of the numbers, NaN last."""
    b, lanes = e.builder, e.index(e.lanes)
    clear = ir.Constant(_INT32, 0x7FFFFFFF)

    def greater(x: ir.Value, y: ir.Value) -> ir.Value:
        return b.select(b.icmp_signed(">", x, y), x, y)

    with e.loop(e.index(0), b.sdiv(size, lanes), [source, ir.Constant(e.integers, [0] * e.lanes)]) as loop:
        here, most = loop.values
        bits = b.and_(b.bitcast(e.load(here).value, e.integers), ir.Constant(e.integers, [clear] * e.lanes))
        loop.carried = [e.address(here, e.index(4 * e.lanes)), greater(most, bits)]
    here, vector = loop.values
    largest = b.extract_element(vector, ir.Constant(_INT32, 0))
    for lane in range(1, e.lanes):
        largest = greater(largest, b.extract_element(vector, ir.Constant(_INT32, lane)))
    with e.loop(e.index(0), b.srem(size, lanes), [here, largest]) as rest:
        here, most = rest.values
        bits = b.and_(b.load(b.inttoptr(here, POINTER), typ=_INT32, align=4), clear)
        rest.carried = [e.address(here, e.index(4)), greater(most, bits)]
    result: ir.Value = rest.values[1]
    return result


def _round_row(
    e: StoredEmitter, places: tuple[ir.Value, ir.Value, ir.Value], largest: ir.Value, finite: ir.Value
) -> None:
    """Emit the rounding of a row, from its address to that of its integers, and its scale; zeros unless `finite`."""
    b, real, (source, place, scale_place) = e.builder, e.real, places
    zero, whole = ir.Constant(real, 0.0), e.index(e.lanes)
    top, size = ir.Constant(real, float(LARGEST_ACTIVATION)), e.arguments.size
    scale = b.fdiv(b.bitcast(largest, real), top)
    least = ir.Constant(real, _LEAST_SCALE)
    scale = b.select(b.fcmp_ordered("<", scale, least), least, scale)
    scale = b.select(b.icmp_signed("==", largest, ir.Constant(_INT32, 0)), ir.Constant(real, 1.0), scale)
    b.store(b.select(finite, scale, zero), b.inttoptr(scale_place, POINTER), align=4)
    inverse = b.select(finite, b.fdiv(ir.Constant(real, 1.0), scale), zero)
    shorts = ir.VectorType(_INT16, e.lanes)
    with e.loop(e.index(0), b.sdiv(size, whole), [source, place]) as loop:
        here, there = loop.values
        value = (e.load(here) * e.spread(inverse)).nearest().value
        value = b.select(finite, value, ir.Constant(e.type, None))  # infinity times 0 is NaN
        b.store(b.trunc(b.fptosi(value, e.integers), shorts), b.inttoptr(there, POINTER), align=2)
        loop.carried = [e.address(here, e.index(4 * e.lanes)), e.address(there, e.index(2 * e.lanes))]
    with e.loop(e.index(0), b.srem(size, whole), list(loop.values)) as loop:
        here, there = loop.values
        number = b.fmul(b.load(b.inttoptr(here, POINTER), typ=real, align=4), inverse)
        rounded = e.call("llvm.rint.f32", real, b.select(finite, number, zero))
        b.store(b.trunc(b.fptosi(rounded, _INT32), _INT16), b.inttoptr(there, POINTER), align=2)
        loop.carried = [e.address(here, e.index(4)), e.address(there, e.index(2))]
    with b.if_then(b.trunc(size, ir.IntType(1))):
        b.store(ir.Constant(_INT16, 0), b.inttoptr(loop.values[1], POINTER), align=2)


_EMIT: Final = {"multiply": emit_multiply, "widen": emit_widen, "exact": emit_exact, "quantise": emit_quantise}


def emit_kernel(module: ir.Module, what: str, form: str, cols: int, target: CompileTarget) -> None:
    """Emit the function `what` (``multiply``, ``widen``, ``exact``, ``quantise``) with this name into a module."""
    kind = ir.FunctionType(ir.VoidType(), [INDEX] * len(KernelArguments._fields))
    function = ir.Function(module, kind, what)
    builder = ir.IRBuilder(function.append_basic_block())
    _EMIT[what](builder, KernelArguments(*function.args), form, cols, target)
    builder.ret_void()


def widens(form: str, target: CompileTarget) -> bool:
    """Return whether a processor widens a format on load. Without F16C, x86 calls a function for each float16."""
    return form != "float16" or not target.triple.startswith("x86_64") or target.has("f16c") or target.has("avx512f")


@lru_cache(maxsize=64)
def _compile(what: str, form: str, cols: int) -> Any:
    module = ir.Module("lstmcore")
    module.triple = llvm.get_process_triple()
    emit_kernel(module, what, form, cols, compile_target())
    return compile_module(module, what)


def compile_kernel(what: str, form: str, cols: int) -> Any:
    """Return a `CompiledStep`: the function `what` for panels of `cols` vectors of weights in a format."""
    with _LOCK.lock:
        return _compile(what, form, cols)
