"""Layer normalisation of whole rows, and its derivative.

Arrays are (blocks, rows, gates, lanes). `tail` lanes of the last block are no padding; the padding is 0 and stays 0.
The code goes over a row two or three times, while the row is in L1. It keeps a vector of sums for each gate, so a row
is summed lane by lane first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.emitter import POINTER, Emitter, Vector
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.tile_shapes import PANEL_VECTORS
from lstmcore_numba.gemm.vector import VECTOR_BYTES, emitter_of


@plain_intrinsic
def _normalise_row(  # noqa: PLR0913  (an intrinsic takes scalars)
    context: Any,
    zero: Any,
    gates: Any,
    source: Any,
    source_block: Any,
    target: Any,
    target_block: Any,
    blocks: Any,
    tail: Any,
    count: Any,
    eps: Any,
    deviation: Any,
) -> Any:
    """Normalise a row to mean 0 and variance 1, and store its standard deviation.

    `source`, `target` and `deviation` are addresses; strides of blocks are in bytes.
    """
    signature = types.void(zero, *(types.int64,) * 7, types.float64, types.float64, types.int64)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _for_gates(target, builder, signature, args, _NormaliseArgs, _emit_normalise)

    return signature, emit


class _NormaliseArgs(NamedTuple):
    """Arguments of `_normalise_row` after `gates`."""

    source: ir.Value
    source_block: ir.Value
    target: ir.Value
    target_block: ir.Value
    blocks: ir.Value
    tail: ir.Value
    count: ir.Value
    eps: ir.Value
    deviation: ir.Value


def _emit_normalise(e: Emitter, gates: int, row: _NormaliseArgs) -> None:
    inside = _below(e, row.tail)

    def read(place: ir.Value, *, last: bool) -> list[Vector]:
        found = _load(e, place, gates)
        return [vector.where(inside, 0) for vector in found] if last else found

    def add(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        return [total + vector for total, vector in zip(sums, read(places[0], last=last), strict=True)]

    mean = _mean(
        e, _over_blocks(e, row.blocks, [row.source], [row.source_block], [e.constant(0)] * gates, add), row.count
    )

    def square(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        centred = [vector - mean for vector in _load(e, places[0], gates)]
        if last:
            centred = [vector.where(inside, 0) for vector in centred]
        return [vector.fma(vector, total) for total, vector in zip(sums, centred, strict=True)]

    squares = _over_blocks(e, row.blocks, [row.source], [row.source_block], [e.constant(0)] * gates, square)
    b, double = e.builder, ir.DoubleType()
    variance = b.fadd(b.fdiv(_total(e, squares), row.count), row.eps)
    divisor = _narrow(e, e.call("llvm.sqrt.f64", double, variance))
    b.store(divisor, b.inttoptr(row.deviation, POINTER), align=e.size)
    scale = e.spread(_narrow(e, b.fdiv(ir.Constant(double, 1.0), _wide(e, divisor))))

    def put(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        for gate, vector in enumerate(_load(e, places[0], gates)):
            scaled = (vector - mean) * scale
            e.store(scaled.where(inside, 0) if last else scaled, e.address(places[1], e.index(gate * VECTOR_BYTES)))
        return []

    _over_blocks(e, row.blocks, [row.source, row.target], [row.source_block, row.target_block], [], put)


@plain_intrinsic
def _norm_backward_row(  # noqa: PLR0913  (an intrinsic takes scalars)
    context: Any,
    zero: Any,
    gates: Any,
    norm: Any,
    norm_block: Any,
    source: Any,
    source_block: Any,
    gain: Any,
    gain_block: Any,
    target: Any,
    target_block: Any,
    blocks: Any,
    tail: Any,
    count: Any,
    deviation: Any,
) -> Any:
    """Apply the derivative of `_normalise_row`, whose result was `norm`, to ``gain * source``.

    Arrays are addresses; strides of blocks are in bytes. `target` may be `source`.
    """
    signature = types.void(zero, *(types.int64,) * 11, types.float64, types.int64)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _for_gates(target, builder, signature, args, _NormBackwardArgs, _emit_norm_backward)

    return signature, emit


class _NormBackwardArgs(NamedTuple):
    """Arguments of `_norm_backward_row` after `gates`."""

    norm: ir.Value
    norm_block: ir.Value
    source: ir.Value
    source_block: ir.Value
    gain: ir.Value
    gain_block: ir.Value
    target: ir.Value
    target_block: ir.Value
    blocks: ir.Value
    tail: ir.Value
    count: ir.Value
    deviation: ir.Value


def _emit_norm_backward(e: Emitter, gates: int, row: _NormBackwardArgs) -> None:
    places, strides = [row.norm, row.source, row.gain], [row.norm_block, row.source_block, row.gain_block]

    def read(places: Sequence[ir.Value]) -> list[tuple[Vector, Vector]]:
        """Return the normalised numbers and the gradients times the gain, by gate."""
        norms, values, gains = (_load(e, place, gates) for place in places[:3])
        return [(of, value * by) for of, value, by in zip(norms, values, gains, strict=True)]

    def add(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        found = read(places)
        plain = [total + value for total, (_, value) in zip(sums[:gates], found, strict=True)]
        along = [value.fma(of, total) for total, (of, value) in zip(sums[gates:], found, strict=True)]
        return [*plain, *along]

    sums = _over_blocks(e, row.blocks, places, strides, [e.constant(0)] * (2 * gates), add)
    mean, slope = _mean(e, sums[:gates], row.count), _mean(e, sums[gates:], row.count)
    b = e.builder
    divisor = b.load(b.inttoptr(row.deviation, POINTER), typ=e.real, align=e.size)
    scale = e.spread(_narrow(e, b.fdiv(ir.Constant(ir.DoubleType(), 1.0), _wide(e, divisor))))

    inside = _below(e, row.tail)

    def put(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        for gate, (of, value) in enumerate(read(places)):
            found = (-of).fma(slope, value - mean) * scale
            e.store(found.where(inside, 0) if last else found, e.address(places[3], e.index(gate * VECTOR_BYTES)))
        return []

    _over_blocks(e, row.blocks, [*places, row.target], [*strides, row.target_block], [], put)


@plain_intrinsic
def add_products(  # noqa: PLR0913  (an intrinsic takes scalars)
    context: Any, zero: Any, gates: Any, a: Any, a_row: Any, b: Any, b_row: Any, rows: Any, target: Any
) -> Any:
    """Add to the vectors at `target` the sum over rows of ``a * b``; ``a_row`` and ``b_row`` are strides in bytes."""
    signature = types.void(zero, *(types.int64,) * 7)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _for_gates(target, builder, signature, args, _ProductArgs, _emit_products)

    return signature, emit


class _ProductArgs(NamedTuple):
    """Arguments of `add_products` after `gates`."""

    a: ir.Value
    a_row: ir.Value
    b: ir.Value
    b_row: ir.Value
    rows: ir.Value
    target: ir.Value


def _emit_products(e: Emitter, gates: int, row: _ProductArgs) -> None:
    with e.loop(e.index(0), row.rows, [row.a, row.b, *[e.constant(0).value] * gates]) as loop:
        here, there, *sums = loop.values
        pairs = zip(_load(e, here, gates), _load(e, there, gates), sums, strict=True)
        found = [one.fma(other, Vector(e, total)).value for one, other, total in pairs]
        loop.carried = [e.address(here, row.a_row), e.address(there, row.b_row), *found]
    for gate, total in enumerate(loop.values[2:]):
        place = e.address(row.target, e.index(gate * VECTOR_BYTES))
        e.store(e.load(place) + Vector(e, total), place)


def _for_gates(
    target: Any, builder: ir.IRBuilder, signature: Any, args: Any, row_type: Any, emit: Callable[..., None]
) -> Any:
    """Emit code for 1 to `PANEL_VECTORS` adjacent vectors (gates), and a switch on their number.

    The number is the second of `args`; a `row_type` holds those after it.
    """
    _, gates, *rest = args
    e, done = emitter_of(builder, signature.args[0]), builder.append_basic_block("done")
    cases = builder.switch(gates, done)
    for width in range(1, PANEL_VECTORS + 1):
        block = builder.append_basic_block(f"gates{width}")
        cases.add_case(e.index(width), block)
        builder.position_at_end(block)
        emit(e, width, row_type(*rest))
        builder.branch(done)
    builder.position_at_end(done)
    return target.get_dummy_value()


def _load(e: Emitter, place: ir.Value, gates: int) -> list[Vector]:
    return [e.load(e.address(place, e.index(gate * VECTOR_BYTES))) for gate in range(gates)]


def _over_blocks(
    e: Emitter,
    blocks: ir.Value,
    places: Sequence[ir.Value],
    strides: Sequence[ir.Value],
    sums: Sequence[Vector],
    body: Callable[..., list[Vector]],
) -> list[Vector]:
    """Emit a loop over blocks in which `body` updates `sums`; it gets `last` for the last block. Return the sums."""
    size, before = len(places), e.builder.sub(blocks, e.index(1))
    with e.loop(e.index(0), before, [*places, *(total.value for total in sums)]) as loop:
        here, so_far = loop.values[:size], [Vector(e, value) for value in loop.values[size:]]
        found = body(here, so_far, last=False)
        further = [e.address(place, stride) for place, stride in zip(here, strides, strict=True)]
        loop.carried = [*further, *(total.value for total in found)]
    return body(loop.values[:size], [Vector(e, value) for value in loop.values[size:]], last=True)


def _below(e: Emitter, tail: ir.Value) -> ir.Value:
    """Return the mask of the lanes below `tail`."""
    behind = e.in_every_lane(e.builder.trunc(tail, ir.IntType(32)))
    return e.builder.icmp_signed("<", e.lane_numbers(list(range(e.lanes))), behind)


def _total(e: Emitter, sums: Sequence[Vector]) -> ir.Value:
    """Return the sum of all numbers of all vectors, as a double."""
    total, *others = sums
    for other in others:
        total = total + other
    return _wide(e, total.across())


def _mean(e: Emitter, sums: Sequence[Vector], count: ir.Value) -> Vector:
    return e.spread(_narrow(e, e.builder.fdiv(_total(e, sums), count)))


def _wide(e: Emitter, number: ir.Value) -> ir.Value:
    return e.builder.fpext(number, ir.DoubleType()) if e.size == 4 else number


def _narrow(e: Emitter, number: ir.Value) -> ir.Value:
    return e.builder.fptrunc(number, e.real) if e.size == 4 else number


@compiled
def normalise(  # noqa: PLR0913  (next issue: groups of arguments)
    a: Any, deviation: Any, count: int, tail: int, eps: float, first: int, last: int
) -> None:
    """Normalise rows `first` to `last` of `a` in place; `deviation` (rows,) gets their standard deviations.

    Parameters
    ----------
    a
        (B, rows, G, lanes).
    deviation
        (rows,).
    count, tail
        Values in a row without padding, and lanes of the last block without padding.
    eps
        Added to the variance.
    first, last
        Range of rows.
    """
    blocks, rows, gates, lanes = a.shape
    row, block = gates * lanes * a.itemsize, rows * gates * lanes * a.itemsize
    for k in range(first, last):
        here, divisor = a.ctypes.data + k * row, deviation.ctypes.data + k * a.itemsize
        _normalise_row(a.dtype.type(0), gates, here, block, here, block, blocks, tail, float(count), eps, divisor)


@compiled
def normalise_cells(  # noqa: PLR0913  (next issue: groups of arguments)
    c: Any, a: Any, deviation: Any, count: int, tail: int, eps: float, first: int, last: int
) -> None:
    """Normalise cells (N, Hp) into `a` (B, N, 1, lanes), like `normalise`; the padding of the cells may be anything."""
    blocks, rows, _, lanes = a.shape
    size = lanes * a.itemsize
    for k in range(first, last):
        here, there = c.ctypes.data + k * blocks * size, a.ctypes.data + k * size
        divisor = deviation.ctypes.data + k * a.itemsize
        _normalise_row(a.dtype.type(0), 1, here, size, there, rows * size, blocks, tail, float(count), eps, divisor)


@compiled
def norm_backward(  # noqa: PLR0913  (next issue: groups of arguments)
    norm: Any, deviation: Any, gain: Any, d: Any, out: Any, count: int, first: int, last: int
) -> None:
    """Apply the derivative of `normalise` to rows of ``gain * d``. It is symmetric, so JVP and backward both use it.

    Parameters
    ----------
    norm, deviation
        Results of `normalise`.
    gain
        (B, G, lanes), or (1, G, lanes) for all blocks.
    d, out
        (B, rows, G, lanes); `out` may be `d`.
    count, first, last
        As for `normalise`.
    """
    blocks, rows, gates, lanes = d.shape
    row, block = gates * lanes * d.itemsize, rows * gates * lanes * d.itemsize
    of_gain = row if gain.shape[0] > 1 else 0
    tail = count // gates - (blocks - 1) * lanes
    for k in range(first, last):
        _norm_backward_row(
            d.dtype.type(0),
            gates,
            norm.ctypes.data + k * row,
            block,
            d.ctypes.data + k * row,
            block,
            gain.ctypes.data,
            of_gain,
            out.ctypes.data + k * row,
            block,
            blocks,
            tail,
            float(count),
            deviation.ctypes.data + k * d.itemsize,
        )
