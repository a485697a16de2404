"""The one product that everything is made of: a tile of rows and vectors that stays in registers.

``tile`` keeps `rows` times `cols` vectors of sums in registers while it goes once over the inner size; for each of its
values it loads `cols` vectors of weights and `rows` numbers. docs/numba.md derives the sizes from the number of
registers. Every row of a tile of two rows and more sees the same operations in the same order, and only a batch of
one row has a tile of one, so that results do not depend on how rows are split among tiles or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter, Vector, vector_bytes
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.bf16 import PAIR, PairEmitter

#: Bytes of a vector; the code below is compiled for it.
BYTES: Final = vector_bytes()
#: Vectors of a panel of weights that are worked on together.
PANEL: Final = 4
#: Values of the inner size that all tiles of a panel take before the next ones.
_DEPTH: Final = 128


#: Rows of a tile at most: with 4 vectors of weights, 24 sums fill the 32 registers of AVX-512.
ROWS: Final = 6 if BYTES == 64 else 3
#: Values of the inner size that the tile of one row takes at once: alone its 4 sums would wait for each other.
_UNROLL: Final = 4


@plain_intrinsic
def tile(
    context: Any,
    zero: Any,
    cols: Any,
    rows: Any,
    a: Any,
    a_row: Any,
    a_k: Any,
    a_chunk: Any,
    a_gap: Any,
    b: Any,
    b_k: Any,
    c: Any,
    c_row: Any,
    c_gap: Any,
    chunks: Any,
    size: Any,
    place: Any,
    group: Any,
    fresh: Any,
) -> Any:
    """``c = a b``, or ``c += a b`` unless `fresh`, for 1 to `ROWS` rows and 1 to `PANEL` vectors, which `cols` says.

    `a`, `b` and `c` are addresses, and all distances are in bytes. The inner index goes over `chunks` of `size` values;
    ``a_chunk`` and ``a_k`` lie between those in `a`, ``b_k`` between the vectors of two values in `b`. ``a_row`` and
    ``c_row`` lie between rows, and ``a_gap`` and ``c_gap`` more between the last row of a group of `group` and the next
    one's first; the first row of the tile is at `place` in its group.

    The dtype of `zero` is that of all numbers. With that of `bf16.PAIR` those of `a` and `b` are pairs of bfloat16, and
    `c` is float32.
    """
    signature = types.void(zero, *(types.int64,) * 16, types.boolean)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, cols, rows, *rest = args
        e = emitter_of(builder, signature.args[0])
        done = builder.append_basic_block("tiled")
        shape = builder.add(builder.mul(cols, e.index(ROWS + 1)), rows)
        cases = builder.switch(shape, done)
        for width in range(1, PANEL + 1):
            for height in range(1, ROWS + 1):
                block = builder.append_basic_block(f"tile{height}x{width}")
                cases.add_case(e.index(width * (ROWS + 1) + height), block)
                builder.position_at_end(block)
                _emit_tile(e, height, width, *rest)
                builder.branch(done)
        builder.position_at_end(done)
        return target.get_dummy_value()

    return signature, emit


def _emit_tile(
    e: Emitter,
    rows: int,
    cols: int,
    a: ir.Value,
    a_row: ir.Value,
    a_k: ir.Value,
    a_chunk: ir.Value,
    a_gap: ir.Value,
    b: ir.Value,
    b_k: ir.Value,
    c: ir.Value,
    c_row: ir.Value,
    c_gap: ir.Value,
    chunks: ir.Value,
    size: ir.Value,
    place: ir.Value,
    group: ir.Value,
    fresh: ir.Value,
) -> None:
    builder, height, width = e.builder, range(rows), range(cols)
    zero, one = e.index(0), e.index(1)
    rows_a, rows_c = [a], [c]
    for _ in range(rows - 1):
        place = builder.add(place, one)
        first = builder.icmp_signed("==", place, group)
        rows_a.append(e.address(rows_a[-1], a_row, builder.select(first, a_gap, zero)))
        rows_c.append(e.address(rows_c[-1], c_row, builder.select(first, c_gap, zero)))
        place = builder.select(first, zero, place)
    places = [e.address(row, e.index(j * BYTES)) for row in rows_c for j in width]

    def added(sums: list[ir.Value], weights: ir.Value, along: ir.Value) -> list[ir.Value]:
        vectors = [e.load(e.address(weights, e.index(j * BYTES))) for j in width]
        found = []
        for r in height:
            number = e.broadcast(e.address(rows_a[r], along))
            found += [number.fma(vector, Vector(e, sums[r * cols + j])).value for j, vector in enumerate(vectors)]
        return found

    unroll, own = _UNROLL if rows == 1 else 1, len(places)
    sums = [e.constant(0).value] * (own * unroll)
    whole = builder.sdiv(size, e.index(unroll))
    with e.loop(zero, chunks, [*sums, b, zero]) as over:
        *sums, weights, base = over.values
        with e.loop(zero, whole, [*sums, weights, base]) as loop:
            *sums, weights, along = loop.values
            found = []
            for part in range(unroll):
                found += added(sums[part * own : (part + 1) * own], weights, along)
                weights, along = builder.add(weights, b_k), builder.add(along, a_k)
            loop.carried = [*found, weights, along]
        *sums, weights, along = loop.values
        if unroll > 1:
            with e.loop(builder.mul(whole, e.index(unroll)), size, [*sums[:own], weights, along]) as loop:
                *some, weights, along = loop.values
                loop.carried = [*added(some, weights, along), builder.add(weights, b_k), builder.add(along, a_k)]
            *some, weights, along = loop.values
            sums = [*some, *sums[own:]]
        over.carried = [*sums, weights, builder.add(base, a_chunk)]
    *sums, _, _ = over.values
    while len(sums) > own:
        half = len(sums) // 2
        sums = [(Vector(e, x) + Vector(e, y)).value for x, y in zip(sums[:half], sums[half:], strict=True)]
    with builder.if_else(fresh) as (empty, started):
        with empty:
            for spot, value in zip(places, sums, strict=True):
                e.store(Vector(e, value), spot)
        with started:  # what is there is added last: a sum of thousands loses less in parts than in one go
            for spot, value in zip(places, sums, strict=True):
                e.store(e.load(spot) + Vector(e, value), spot)


@plain_intrinsic
def copy_numbers(context: Any, zero: Any, source: Any, target: Any, count: Any, wanted: Any) -> Any:
    """Copy `count` numbers from one address to another, or write zeros there unless they are `wanted`."""
    signature = types.void(zero, types.int64, types.int64, types.int64, types.boolean)

    def emit(dummy: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, source, target, count, wanted = args
        e = emitter_of(builder, signature.args[0])
        _emit_numbers(e, source, target, count, lambda new, _: builder.select(wanted, new, ir.Constant(new.type, None)))
        return dummy.get_dummy_value()

    return signature, emit


@plain_intrinsic
def add_numbers(context: Any, zero: Any, source: Any, target: Any, count: Any) -> Any:
    """Add `count` numbers at one address to those at another."""
    signature = types.void(zero, types.int64, types.int64, types.int64)

    def emit(dummy: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, source, target, count = args
        e = emitter_of(builder, signature.args[0])
        _emit_numbers(e, source, target, count, lambda new, old: builder.fadd(old, new))
        return dummy.get_dummy_value()

    return signature, emit


def emitter_of(builder: ir.IRBuilder, dtype: Any) -> Emitter:
    """For vectors of numbers of a Numba type, as wide as the code here is compiled for; for pairs of bfloat16."""
    if str(dtype) == PAIR.name:
        return PairEmitter(builder)
    return Emitter(builder, str(dtype), BYTES // (4 if str(dtype) == "float32" else 8))


def _emit_numbers(
    e: Emitter, source: ir.Value, target: ir.Value, count: ir.Value, combined: Callable[[ir.Value, ir.Value], ir.Value]
) -> None:
    """Write what `combined` makes of the numbers at `source` and at `target`, to `target`."""
    b = e.builder
    with e.loop(e.index(0), b.sdiv(count, e.index(e.lanes)), [source, target]) as loop:
        here, there = loop.values
        e.store(Vector(e, combined(e.load(here).value, e.load(there).value)), there)
        loop.carried = [b.add(value, e.index(BYTES)) for value in loop.values]
    with e.loop(e.index(0), b.srem(count, e.index(e.lanes)), list(loop.values)) as loop:
        places = [b.inttoptr(value, POINTER) for value in loop.values]
        number = combined(*(b.load(place, typ=e.real, align=e.size) for place in places))
        b.store(number, places[1], align=e.size)
        loop.carried = [b.add(value, e.index(e.size)) for value in loop.values]


@plain_intrinsic
def call_step(context: Any, function: Any, table: Any, block: Any, first: Any, last: Any) -> Any:
    """Call the step function at the address `function`."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, args: Any) -> Any:
        function, *rest = args
        code = builder.inttoptr(function, ir.FunctionType(ir.VoidType(), [INDEX] * 4).as_pointer())
        builder.call(code, rest)
        return _.get_dummy_value()

    return types.void(*(types.int64,) * 5), emit


@compiled
def grouped_panel(
    zero: Any,
    cols: int,
    a: int,
    a_row: int,
    a_k: int,
    a_chunk: int,
    a_gap: int,
    b: int,
    b_k: int,
    c: int,
    c_row: int,
    c_gap: int,
    chunks: int,
    size: int,
    rows: int,
    group: int,
    fresh: bool,
) -> None:
    """The product of all `rows` with one panel of 1 to 4 vectors; distances are those of `tile`.

    The inner size is cut, so that what is read of the panel is in the nearest cache for the next tile: into groups of
    chunks, or where there is but one, into parts of it.
    """
    tiles = (rows + ROWS - 1) // ROWS
    cuts = (chunks * size + _DEPTH - 1) // _DEPTH if tiles > 1 else 1
    cuts = min(cuts, chunks if chunks > 1 else size)
    for cut in range(max(cuts, 1)):
        some, depth, begin, offset = chunks, size, 0, 0
        if cuts > 1 and chunks > 1:
            start = chunks * cut // cuts
            some = chunks * (cut + 1) // cuts - start
            begin, offset = start * size, start * a_chunk
        elif cuts > 1:
            begin = size * cut // cuts
            depth = size * (cut + 1) // cuts - begin
            offset = begin * a_k
        from_b, empty = b + begin * b_k, fresh and cut == 0
        for k in range(tiles):
            first = rows * k // tiles
            height, before, place = rows * (k + 1) // tiles - first, first // group, first % group
            from_a = a + offset + first * a_row + before * a_gap
            to_c = c + first * c_row + before * c_gap
            tile(
                zero,
                cols,
                height,
                from_a,
                a_row,
                a_k,
                a_chunk,
                a_gap,
                from_b,
                b_k,
                to_c,
                c_row,
                c_gap,
                some,
                depth,
                place,
                group,
                empty,
            )


@compiled
def panel(
    zero: Any,
    cols: int,
    a: int,
    a_row: int,
    a_k: int,
    b: int,
    b_k: int,
    c: int,
    c_row: int,
    size: int,
    rows: int,
    fresh: bool,
) -> None:
    """The product of all `rows` with one panel of 1 to 4 vectors."""
    grouped_panel(zero, cols, a, a_row, a_k, 0, 0, b, b_k, c, c_row, 0, 1, size, rows, max(rows, 1), fresh)


@compiled
def grouped_product(
    zero: Any,
    vectors: int,
    a: int,
    a_row: int,
    a_k: int,
    a_chunk: int,
    a_gap: int,
    b: int,
    c: int,
    c_row: int,
    chunks: int,
    size: int,
    rows: int,
    group: int,
    fresh: bool,
    turned: bool,
) -> None:
    """The product of all `rows` with `vectors` columns of vectors, packed in panels of 4; distances as in `tile`.

    `turned` begins with the last panel: what is read of the weights last is in the cache for who reads it next.
    """
    panels = (vectors + PANEL - 1) // PANEL
    for index in range(panels):
        first = PANEL * (panels - 1 - index if turned else index)
        cols = min(PANEL, vectors - first)
        here, there = b + first * chunks * size * BYTES, c + first * BYTES
        grouped_panel(
            zero,
            cols,
            a,
            a_row,
            a_k,
            a_chunk,
            a_gap,
            here,
            cols * BYTES,
            there,
            c_row,
            0,
            chunks,
            size,
            rows,
            group,
            fresh,
        )


@compiled
def product(
    zero: Any,
    vectors: int,
    a: int,
    a_row: int,
    a_k: int,
    b: int,
    c: int,
    c_row: int,
    size: int,
    rows: int,
    fresh: bool,
) -> None:
    """The product of all `rows` with `vectors` columns of vectors, packed in panels of 4."""
    grouped_product(zero, vectors, a, a_row, a_k, 0, 0, b, c, c_row, 1, size, rows, max(rows, 1), fresh, False)
