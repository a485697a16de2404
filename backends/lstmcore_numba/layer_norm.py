"""Layer normalisation of whole rows, and its derivative.

Arrays are (blocks, rows, gates, lanes). `tail` lanes of the last block count; what lies behind them is 0 and stays so.
The code for a row goes over it two or three times, while it is in the nearest cache, with a vector of sums for each
gate. What is summed over a whole row is added up lane by lane first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.emitter import POINTER, Emitter, Vector
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.vector import BYTES, PANEL, emitter_of
from lstmcore_numba.runtime.worker_loop import outlined, side_by_side


@plain_intrinsic
def _normalise_row(
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
    """A row with mean 0 and variance 1, and what it was divided by; all are addresses, and bytes between blocks."""
    signature = types.void(zero, *(types.int64,) * 7, types.float64, types.float64, types.int64)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _for_gates(target, builder, signature, args, _emit_normalise)

    return signature, emit


def _emit_normalise(
    e: Emitter,
    gates: int,
    source: ir.Value,
    source_block: ir.Value,
    target: ir.Value,
    target_block: ir.Value,
    blocks: ir.Value,
    tail: ir.Value,
    count: ir.Value,
    eps: ir.Value,
    deviation: ir.Value,
) -> None:
    inside = _below(e, tail)

    def read(place: ir.Value, *, last: bool) -> list[Vector]:
        found = _load(e, place, gates)
        return [vector.where(inside, 0) for vector in found] if last else found

    def add(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        return [total + vector for total, vector in zip(sums, read(places[0], last=last), strict=True)]

    mean = _mean(e, _over_blocks(e, blocks, [source], [source_block], [e.constant(0)] * gates, add), count)

    def square(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        centred = [vector - mean for vector in _load(e, places[0], gates)]
        if last:
            centred = [vector.where(inside, 0) for vector in centred]
        return [vector.fma(vector, total) for total, vector in zip(sums, centred, strict=True)]

    squares = _over_blocks(e, blocks, [source], [source_block], [e.constant(0)] * gates, square)
    b, double = e.builder, ir.DoubleType()
    variance = b.fadd(b.fdiv(_total(e, squares), count), eps)
    divisor = _narrow(e, e.call("llvm.sqrt.f64", double, variance))
    b.store(divisor, b.inttoptr(deviation, POINTER), align=e.size)
    scale = e.spread(_narrow(e, b.fdiv(ir.Constant(double, 1.0), _wide(e, divisor))))

    def put(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        for gate, vector in enumerate(_load(e, places[0], gates)):
            scaled = (vector - mean) * scale
            e.store(scaled.where(inside, 0) if last else scaled, e.address(places[1], e.index(gate * BYTES)))
        return []

    _over_blocks(e, blocks, [source, target], [source_block, target_block], [], put)


@plain_intrinsic
def _linear_row(
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
    """The derivative of `_normalise_row` where it gave `norm`, of ``gain source``; it may be written over `source`."""
    signature = types.void(zero, *(types.int64,) * 11, types.float64, types.int64)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _for_gates(target, builder, signature, args, _emit_linear)

    return signature, emit


def _emit_linear(
    e: Emitter,
    gates: int,
    norm: ir.Value,
    norm_block: ir.Value,
    source: ir.Value,
    source_block: ir.Value,
    gain: ir.Value,
    gain_block: ir.Value,
    target: ir.Value,
    target_block: ir.Value,
    blocks: ir.Value,
    tail: ir.Value,
    count: ir.Value,
    deviation: ir.Value,
) -> None:
    places, strides = [norm, source, gain], [norm_block, source_block, gain_block]

    def read(places: Sequence[ir.Value]) -> list[tuple[Vector, Vector]]:
        """The normalised numbers and the gradients, after the gain."""
        norms, values, gains = (_load(e, place, gates) for place in places[:3])
        return [(of, value * by) for of, value, by in zip(norms, values, gains, strict=True)]

    def add(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        found = read(places)
        plain = [total + value for total, (_, value) in zip(sums[:gates], found, strict=True)]
        along = [value.fma(of, total) for total, (of, value) in zip(sums[gates:], found, strict=True)]
        return [*plain, *along]

    sums = _over_blocks(e, blocks, places, strides, [e.constant(0)] * (2 * gates), add)
    mean, slope = _mean(e, sums[:gates], count), _mean(e, sums[gates:], count)
    b = e.builder
    divisor = b.load(b.inttoptr(deviation, POINTER), typ=e.real, align=e.size)
    scale = e.spread(_narrow(e, b.fdiv(ir.Constant(ir.DoubleType(), 1.0), _wide(e, divisor))))

    inside = _below(e, tail)

    def put(places: Sequence[ir.Value], sums: Sequence[Vector], *, last: bool) -> list[Vector]:
        for gate, (of, value) in enumerate(read(places)):
            found = (-of).fma(slope, value - mean) * scale
            e.store(found.where(inside, 0) if last else found, e.address(places[3], e.index(gate * BYTES)))
        return []

    _over_blocks(e, blocks, [*places, target], [*strides, target_block], [], put)


@plain_intrinsic
def _add_products(
    context: Any, zero: Any, gates: Any, a: Any, a_row: Any, b: Any, b_row: Any, rows: Any, target: Any
) -> Any:
    """Add to the vectors at `target` the sum over rows of ``a b``; ``a_row`` and ``b_row`` lie between rows."""
    signature = types.void(zero, *(types.int64,) * 7)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _for_gates(target, builder, signature, args, _emit_products)

    return signature, emit


def _emit_products(
    e: Emitter,
    gates: int,
    a: ir.Value,
    a_row: ir.Value,
    b: ir.Value,
    b_row: ir.Value,
    rows: ir.Value,
    target: ir.Value,
) -> None:
    with e.loop(e.index(0), rows, [a, b, *[e.constant(0).value] * gates]) as loop:
        here, there, *sums = loop.values
        pairs = zip(_load(e, here, gates), _load(e, there, gates), sums, strict=True)
        found = [one.fma(other, Vector(e, total)).value for one, other, total in pairs]
        loop.carried = [e.address(here, a_row), e.address(there, b_row), *found]
    for gate, total in enumerate(loop.values[2:]):
        place = e.address(target, e.index(gate * BYTES))
        e.store(e.load(place) + Vector(e, total), place)


def _for_gates(target: Any, builder: ir.IRBuilder, signature: Any, args: Any, emit: Callable[..., None]) -> Any:
    """Code for 1 to 4 vectors that lie side by side: for as many as the second argument says."""
    _, gates, *rest = args
    e, done = emitter_of(builder, signature.args[0]), builder.append_basic_block("done")
    cases = builder.switch(gates, done)
    for width in range(1, PANEL + 1):
        block = builder.append_basic_block(f"gates{width}")
        cases.add_case(e.index(width), block)
        builder.position_at_end(block)
        emit(e, width, *rest)
        builder.branch(done)
    builder.position_at_end(done)
    return target.get_dummy_value()


def _load(e: Emitter, place: ir.Value, gates: int) -> list[Vector]:
    return [e.load(e.address(place, e.index(gate * BYTES))) for gate in range(gates)]


def _over_blocks(
    e: Emitter,
    blocks: ir.Value,
    places: Sequence[ir.Value],
    strides: Sequence[ir.Value],
    sums: Sequence[Vector],
    body: Callable[..., list[Vector]],
) -> list[Vector]:
    """What `body` makes of `sums`, block by block; it is told which one is the last."""
    size, before = len(places), e.builder.sub(blocks, e.index(1))
    with e.loop(e.index(0), before, [*places, *(total.value for total in sums)]) as loop:
        here, so_far = loop.values[:size], [Vector(e, value) for value in loop.values[size:]]
        found = body(here, so_far, last=False)
        further = [e.address(place, stride) for place, stride in zip(here, strides, strict=True)]
        loop.carried = [*further, *(total.value for total in found)]
    return body(loop.values[:size], [Vector(e, value) for value in loop.values[size:]], last=True)


def _below(e: Emitter, tail: ir.Value) -> ir.Value:
    """Which lanes are in front of lane `tail`."""
    behind = e.in_every_lane(e.builder.trunc(tail, ir.IntType(32)))
    return e.builder.icmp_signed("<", e.lane_numbers(list(range(e.lanes))), behind)


def _total(e: Emitter, sums: Sequence[Vector]) -> ir.Value:
    """The sum of all numbers of all vectors, in double precision."""
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
def normalise(a: Any, deviation: Any, count: int, tail: int, eps: float, first: int, last: int) -> None:
    """Rows `first` to `last` of `a` with mean 0 and variance 1, in place; `deviation` is what they were divided by."""
    blocks, rows, gates, lanes = a.shape
    row, block = gates * lanes * a.itemsize, rows * gates * lanes * a.itemsize
    for k in range(first, last):
        here, divisor = a.ctypes.data + k * row, deviation.ctypes.data + k * a.itemsize
        _normalise_row(a.dtype.type(0), gates, here, block, here, block, blocks, tail, float(count), eps, divisor)


@compiled
def normalise_cells(c: Any, a: Any, deviation: Any, count: int, tail: int, eps: float, first: int, last: int) -> None:
    """`normalise` of cells (N, Hp), whatever lies behind the last unit, into `a` (B, N, 1, lanes)."""
    blocks, rows, _, lanes = a.shape
    size = lanes * a.itemsize
    for k in range(first, last):
        here, there = c.ctypes.data + k * blocks * size, a.ctypes.data + k * size
        divisor = deviation.ctypes.data + k * a.itemsize
        _normalise_row(a.dtype.type(0), 1, here, size, there, rows * size, blocks, tail, float(count), eps, divisor)


@compiled
def linear(norm: Any, deviation: Any, gain: Any, d: Any, out: Any, count: int, first: int, last: int) -> None:
    """The derivative of `normalise`, applied to rows of ``gain d``; it is symmetric, so it serves both directions.

    The gain is (B, G, lanes), or (1, G, lanes) for all blocks. `out` may be `d`.
    """
    blocks, rows, gates, lanes = d.shape
    row, block = gates * lanes * d.itemsize, rows * gates * lanes * d.itemsize
    of_gain = row if gain.shape[0] > 1 else 0
    tail = count // gates - (blocks - 1) * lanes
    for k in range(first, last):
        _linear_row(
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


@compiled
def _linear_steps(part: int, parts: int, norm: Any, deviation: Any, gain: Any, d: Any, out: Any, count: int) -> None:
    steps, rows = d.shape[0], d.shape[2]
    for t in range(steps * part // parts, steps * (part + 1) // parts):
        linear(norm[t], deviation[t], gain, d[t], out[t], count, 0, rows)


@compiled
def linear_steps(team: Any, *args: Any) -> None:
    """`linear` of all rows of all steps: ``(norm, deviation, gain, d, out, count)``.

    Arrays are (T, B, N, G, lanes), deviations (T, N), and the gain is (B, G, lanes).
    """
    side_by_side(team, outlined(_linear_steps, args))


@compiled
def _gain_gradients(
    part: int, parts: int, d: Any, norm_x: Any, norm_h: Any, of_x: Any, of_h: Any, of_bias: Any
) -> None:
    steps, blocks, rows, gates, lanes = d.shape
    zero, row = d.dtype.type(0), gates * lanes * d.itemsize
    ones = np.ones((gates, lanes), d.dtype)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        of_x[block], of_h[block], of_bias[block] = 0, 0, 0
        for t in range(steps):
            place = (t * blocks + block) * rows * row
            here, to = d.ctypes.data + place, block * row
            _add_products(zero, gates, here, row, norm_x.ctypes.data + place, row, rows, of_x.ctypes.data + to)
            _add_products(zero, gates, here, row, norm_h.ctypes.data + place, row, rows, of_h.ctypes.data + to)
            _add_products(zero, gates, here, row, ones.ctypes.data, 0, rows, of_bias.ctypes.data + to)


@compiled
def gain_gradients(team: Any, *args: Any) -> None:
    """Of the two gains and the bias, from that of the pre-activations: ``(d, norm_x, norm_h, of_x, of_h, of_bias)``.

    The first three are (T, B, N, G, lanes), the results (B, G, lanes).
    """
    side_by_side(team, outlined(_gain_gradients, args))


@compiled
def _cell_gradients(part: int, parts: int, d: Any, norm: Any, of_gain: Any, of_shift: Any) -> None:
    steps, rows = d.shape[0], d.shape[1]
    blocks, lanes = of_gain.shape
    zero, size = d.dtype.type(0), lanes * d.itemsize
    ones = np.ones(lanes, d.dtype)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        of_gain[block], of_shift[block] = 0, 0
        for t in range(steps):
            here, to = d.ctypes.data + (t * rows * blocks + block) * size, block * size
            norms = norm.ctypes.data + (t * blocks + block) * rows * size
            _add_products(zero, 1, here, blocks * size, norms, size, rows, of_gain.ctypes.data + to)
            _add_products(zero, 1, here, blocks * size, ones.ctypes.data, 0, rows, of_shift.ctypes.data + to)


@compiled
def cell_gradients(team: Any, *args: Any) -> None:
    """Of the cell's gain and shift, from that of the cell after them: ``(d, norm, of_gain, of_shift)``.

    The first is (T, N, Hp), the second (T, B, N, 1, lanes), the results (B, lanes).
    """
    side_by_side(team, outlined(_cell_gradients, args))
