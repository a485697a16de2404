"""Rounding of activations to int16, with a scale for each row, in the order in which integer products read them."""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from lstmcore_numba.codegen.compile_target import CompileTarget
from lstmcore_numba.codegen.emitter import POINTER, Emitter
from lstmcore_numba.gemm.stored_emitters import INTEGER_FORMS, StoredEmitter
from lstmcore_numba.gemm.stored_panel import KernelArguments

#: The largest magnitude of an activation in int16.
LARGEST_ACTIVATION: Final = 32767
#: The least scale of a row of activations: its inverse is finite.
_LEAST_SCALE: Final = 2.0**-100
_INT8, _INT16, _INT32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def emit_quantise(
    builder: ir.IRBuilder, arguments: KernelArguments, form: str, cols: int, target: CompileTarget
) -> None:
    """Emit the rounding of `rows` rows of `size` numbers at `a` to int16 at `c`, with 0 up to a whole group.

    A row has the scale `largest magnitude / 32767`, which goes to `row_scale`; 1 if all are 0. A row that is not
    finite has the scale 0, and ``int32`` at address `scale` becomes 1.
    """
    e, k = StoredEmitter(builder, form, cols, target, arguments), arguments
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
    with e.loop(e.index(0), b.sdiv(size, whole), [source, place]) as loop:
        here, there = loop.values
        value = (e.load(here) * e.spread(inverse)).nearest().value
        value = b.select(finite, value, ir.Constant(e.type, None))  # infinity times 0 is NaN
        shorts = b.trunc(b.fptosi(value, e.integers), ir.VectorType(_INT16, e.lanes))
        b.store(_grouped(e, shorts), b.inttoptr(there, POINTER), align=2)
        loop.carried = [e.address(here, e.index(4 * e.lanes)), e.address(there, e.index(2 * e.lanes))]
    here, there = loop.values
    rest, values = b.srem(size, whole), INTEGER_FORMS[e.form].values
    groups = b.and_(b.add(rest, e.index(values - 1)), e.index(-values))
    with e.loop(e.index(0), groups, [here]) as loop:
        inside = b.icmp_signed("<", loop.i, rest)
        number = b.load(b.inttoptr(b.select(inside, loop.values[0], source), POINTER), typ=real, align=4)
        number = b.select(b.and_(finite, inside), b.fmul(number, inverse), zero)
        short = b.trunc(b.fptosi(e.call("llvm.rint.f32", real, number), _INT32), _INT16)
        _store_one(e, short, there, loop.i)
        loop.carried = [e.address(loop.values[0], e.index(4))]


def _grouped(e: StoredEmitter, shorts: ir.Value) -> ir.Value:
    """Return int16 in the order of their form: for quads, the low bytes of four plus 2^15, then the high ones."""
    if e.form == "pairs":
        return shorts
    b, count = e.builder, 2 * e.lanes
    unsigned = b.xor(shorts, ir.Constant(shorts.type, [-(2**15)] * e.lanes))
    octets = b.bitcast(unsigned, ir.VectorType(_INT8, count))
    order = [8 * (k // 8) + 2 * (k % 4) + k // 4 % 2 for k in range(count)]
    return b.shuffle_vector(octets, octets, ir.Constant(ir.VectorType(_INT32, count), order))


def _store_one(e: StoredEmitter, short: ir.Value, place: ir.Value, number: ir.Value) -> None:
    """Store number `number` of the activations at `place`, in the order of its form."""
    b = e.builder
    if e.form == "pairs":
        b.store(short, b.inttoptr(e.address(place, b.mul(number, e.index(2))), POINTER), align=2)
        return
    quad, within = b.and_(number, e.index(-4)), b.and_(number, e.index(3))
    low = e.address(place, b.mul(quad, e.index(2)), within)
    unsigned = b.xor(short, ir.Constant(_INT16, -(2**15)))
    for part, distance in ((unsigned, 0), (b.lshr(unsigned, ir.Constant(_INT16, 8)), 4)):
        b.store(b.trunc(part, _INT8), b.inttoptr(e.address(low, e.index(distance)), POINTER), align=1)
