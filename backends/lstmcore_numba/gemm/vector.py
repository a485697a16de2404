"""GEMM in vector registers: a microkernel of rows and vectors whose sums stay in registers.

The microkernel keeps ``rows x cols`` vectors of sums in registers while it goes over K once. For each k it loads `cols`
vectors of weights and broadcasts `rows` numbers. `tile_shapes` has the sizes for each number of registers.

All microkernels of two rows and more add in the same order, and K is split alike for any number of them. Only a GEMM
of one row uses the microkernel of one row. So results do not depend on the split of rows among microkernels or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter, Vector
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.bf16 import PAIR, PairEmitter
from lstmcore_numba.gemm.tile_shapes import PANEL_VECTORS, TileShape, TileTable, tile_table

#: Bytes of a vector register; the code of this package is compiled for it.
VECTOR_BYTES: Final = compile_target().vector_bytes
#: The shapes of microkernels.
TILES: Final = tile_table(compile_target())
#: Rows of a microkernel at most.
MAX_ROWS: Final = max(shape.rows for shape in TILES.panels)
_ONE, _TWO, _THREE, _FOUR = TILES.panels
_SPLITS_PANELS: Final = any(shape.cols < vectors for vectors, shape in enumerate(TILES.panels, 1))
_K_BLOCK: Final = TILES.k_block


@plain_intrinsic
def microkernel(  # noqa: PLR0913  (next issue: groups of arguments)
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
    """Compute ``c = a b``, or ``c += a b`` unless `fresh`, for `rows` rows and `cols` vectors.

    Parameters
    ----------
    zero
        A number of the dtype of all operands. If the dtype is `bf16.PAIR`, `a` and `b` are packed bfloat16 pairs and
        `c` is float32.
    cols, rows
        A shape of `TILES`.
    a, b, c
        Addresses. All strides are in bytes.
    a_row, c_row
        Strides of rows.
    a_k, b_k
        Strides of k.
    a_chunk, chunks, size
        K consists of `chunks` chunks of `size` values; ``a_chunk`` is the stride of chunks in `a`.
    a_gap, c_gap, group, place
        Rows come in groups of `group`. The gaps are added to the stride between the last row of a group and the first
        row of the next. The first row of the microkernel is row `place` of its group.
    fresh
        Whether to overwrite `c`.
    """
    signature = types.void(zero, *(types.int64,) * 16, types.boolean)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, cols, rows, *rest = args
        e = emitter_of(builder, signature.args[0])
        done = builder.append_basic_block("tiled")
        shape = builder.add(builder.mul(cols, e.index(MAX_ROWS + 1)), rows)
        cases = builder.switch(shape, done)
        for tile in TILES.shapes():
            block = builder.append_basic_block(f"tile{tile.rows}x{tile.cols}")
            cases.add_case(e.index(tile.cols * (MAX_ROWS + 1) + tile.rows), block)
            builder.position_at_end(block)
            emit_tile(e, TILES, tile, *rest)
            builder.branch(done)
        builder.position_at_end(done)
        return target.get_dummy_value()

    return signature, emit


def emit_tile(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
    e: Emitter,
    table: TileTable,
    tile: TileShape,
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
    """Emit one microkernel; arguments as for `microkernel`."""
    rows, cols, vector_bytes = tile.rows, tile.cols, e.lanes * e.size
    builder, height, width = e.builder, range(rows), range(cols)
    zero, one = e.index(0), e.index(1)
    rows_a, rows_c = [a], [c]
    for _ in range(rows - 1):
        place = builder.add(place, one)
        first = builder.icmp_signed("==", place, group)
        rows_a.append(e.address(rows_a[-1], a_row, builder.select(first, a_gap, zero)))
        rows_c.append(e.address(rows_c[-1], c_row, builder.select(first, c_gap, zero)))
        place = builder.select(first, zero, place)
    places = [e.address(row, e.index(j * vector_bytes)) for row in rows_c for j in width]

    def added(sums: list[ir.Value], weights: ir.Value, along: ir.Value) -> list[ir.Value]:
        def load(j: int) -> Vector:
            return e.load(e.address(weights, e.index(j * vector_bytes)))

        def broadcast(r: int) -> Vector:
            return e.broadcast(e.address(rows_a[r], along))

        new_sums = list(sums)
        if table.broadcasts_first(tile):
            numbers = [broadcast(r) for r in height]
            pairs = ((r, j, number, vector) for j in width for vector in [load(j)] for r, number in enumerate(numbers))
        else:
            vectors = [load(j) for j in width]
            pairs = (
                (r, j, number, vector) for r in height for number in [broadcast(r)] for j, vector in enumerate(vectors)
            )
        for r, j, number, vector in pairs:
            new_sums[r * cols + j] = e.multiply_add(number, vector, Vector(e, sums[r * cols + j])).value
        return new_sums

    unroll, own = table.unroll(tile), len(places)
    sums = [e.constant(0).value] * (own * unroll)
    whole = builder.sdiv(size, e.index(unroll))
    with e.loop(zero, chunks, [*sums, b, zero]) as over:
        *sums, weights, base = over.values
        with e.loop(zero, whole, [*sums, weights, base]) as loop:
            *sums, weights, along = loop.values
            new_sums = []
            for part in range(unroll):
                new_sums += added(sums[part * own : (part + 1) * own], weights, along)
                weights, along = builder.add(weights, b_k), builder.add(along, a_k)
            loop.carried = [*new_sums, weights, along]
        *sums, weights, along = loop.values
        if unroll > 1:
            with e.loop(builder.mul(whole, e.index(unroll)), size, [*sums[:own], weights, along]) as loop:
                *some, weights, along = loop.values
                loop.carried = [*added(some, weights, along), builder.add(weights, b_k), builder.add(along, a_k)]
            *some, weights, along = loop.values
            sums = [*some, *sums[own:]]
        over.carried = [*sums, weights, builder.add(base, a_chunk)]
    *sums, _, _ = over.values
    while len(sums) > own:  # with an odd count, the last sums go to the first ones
        half = len(sums) // (2 * own) * own
        added_sums = [(Vector(e, x) + Vector(e, y)).value for x, y in zip(sums, sums[half : 2 * half], strict=False)]
        sums = [*added_sums, *sums[2 * half :]]
    with builder.if_else(fresh) as (empty, started):
        with empty:
            for spot, value in zip(places, sums, strict=True):
                e.store(Vector(e, value), spot)
        with started:  # c is added last: a sum of partial sums loses less than one long sum
            for spot, value in zip(places, sums, strict=True):
                e.store(e.load(spot) + Vector(e, value), spot)


@plain_intrinsic
def copy_numbers(context: Any, zero: Any, source: Any, target: Any, count: Any, wanted: Any) -> Any:
    """Copy `count` numbers from address `source` to `target`; write zeros instead unless `wanted`."""
    signature = types.void(zero, types.int64, types.int64, types.int64, types.boolean)

    def emit(dummy: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, source, target, count, wanted = args
        e = emitter_of(builder, signature.args[0])
        _emit_numbers(e, source, target, count, lambda new, _: builder.select(wanted, new, ir.Constant(new.type, None)))
        return dummy.get_dummy_value()

    return signature, emit


@plain_intrinsic
def add_numbers(context: Any, zero: Any, source: Any, target: Any, count: Any) -> Any:
    """Add `count` numbers at address `source` to those at `target`."""
    signature = types.void(zero, types.int64, types.int64, types.int64)

    def emit(dummy: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, source, target, count = args
        e = emitter_of(builder, signature.args[0])
        _emit_numbers(e, source, target, count, lambda new, old: builder.fadd(old, new))
        return dummy.get_dummy_value()

    return signature, emit


def emitter_of(builder: ir.IRBuilder, dtype: Any) -> Emitter:
    """Return an emitter for vectors of `VECTOR_BYTES` of a Numba type, or for packed bfloat16 pairs."""
    if str(dtype) == PAIR.name:
        return PairEmitter(builder)
    return Emitter(builder, str(dtype), VECTOR_BYTES // (4 if str(dtype) == "float32" else 8))


def _emit_numbers(
    e: Emitter, source: ir.Value, target: ir.Value, count: ir.Value, combined: Callable[[ir.Value, ir.Value], ir.Value]
) -> None:
    """Emit ``target = combined(source, target)`` for `count` numbers."""
    b = e.builder
    with e.loop(e.index(0), b.sdiv(count, e.index(e.lanes)), [source, target]) as loop:
        here, there = loop.values
        e.store(Vector(e, combined(e.load(here).value, e.load(there).value)), there)
        loop.carried = [b.add(value, e.index(VECTOR_BYTES)) for value in loop.values]
    with e.loop(e.index(0), b.srem(count, e.index(e.lanes)), list(loop.values)) as loop:
        places = [b.inttoptr(value, POINTER) for value in loop.values]
        number = combined(*(b.load(place, typ=e.real, align=e.size) for place in places))
        b.store(number, places[1], align=e.size)
        loop.carried = [b.add(value, e.index(e.size)) for value in loop.values]


@plain_intrinsic
def call_step(context: Any, function: Any, table: Any, block: Any, first: Any, last: Any) -> Any:
    """Call the step function at the address `function` for a block and rows `first` to `last`."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, args: Any) -> Any:
        function, *rest = args
        code = builder.inttoptr(function, ir.FunctionType(ir.VoidType(), [INDEX] * 4).as_pointer())
        builder.call(code, rest)
        return _.get_dummy_value()

    return types.void(*(types.int64,) * 5), emit


@compiled
def _tile_rows(cols: int) -> int:
    """Return the rows of the largest microkernel for a panel of `cols` vectors."""
    return _ONE.rows if cols == 1 else _TWO.rows if cols == 2 else _THREE.rows if cols == 3 else _FOUR.rows


@compiled
def _tile_cols(cols: int) -> int:
    """Return how many vectors of a panel of `cols` one microkernel takes."""
    return _ONE.cols if cols == 1 else _TWO.cols if cols == 2 else _THREE.cols if cols == 3 else _FOUR.cols


@compiled
def grouped_panel_matmul(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
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
    """Multiply all `rows` with one panel of 1 to 4 vectors; arguments as for `microkernel`.

    K is split into blocks, so that this part of the panel is in L1 for the next microkernel. A block is a number of
    chunks, or a part of the only chunk. It does not depend on the number of rows, unless there is one.
    """
    most, width = _tile_rows(cols), _tile_cols(cols) if _SPLITS_PANELS else cols
    tiles = (rows + most - 1) // most
    cuts = (chunks * size + _K_BLOCK - 1) // _K_BLOCK if rows > 1 else 1
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
            col = 0
            while col < cols:  # not a range, whose length would be a division
                microkernel(
                    zero,
                    min(width, cols - col),
                    height,
                    from_a,
                    a_row,
                    a_k,
                    a_chunk,
                    a_gap,
                    from_b + col * VECTOR_BYTES,
                    b_k,
                    to_c + col * VECTOR_BYTES,
                    c_row,
                    c_gap,
                    some,
                    depth,
                    place,
                    group,
                    empty,
                )
                col += width


@compiled
def panel_matmul(  # noqa: PLR0913  (next issue: groups of arguments)
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
    """Multiply all `rows` with one panel of 1 to 4 vectors, with K as one chunk."""
    grouped_panel_matmul(zero, cols, a, a_row, a_k, 0, 0, b, b_k, c, c_row, 0, 1, size, rows, max(rows, 1), fresh)


@compiled
def grouped_matmul(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
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
    last_panel_first: bool,
) -> None:
    """Multiply all `rows` with `vectors` columns of vectors in panels; arguments as for `microkernel`.

    With `last_panel_first` the panels come in reverse order. A caller that alternates the order starts with weights
    that are still in the cache.
    """
    panels = (vectors + PANEL_VECTORS - 1) // PANEL_VECTORS
    for index in range(panels):
        first = PANEL_VECTORS * (panels - 1 - index if last_panel_first else index)
        cols = min(PANEL_VECTORS, vectors - first)
        here, there = b + first * chunks * size * VECTOR_BYTES, c + first * VECTOR_BYTES
        grouped_panel_matmul(
            zero,
            cols,
            a,
            a_row,
            a_k,
            a_chunk,
            a_gap,
            here,
            cols * VECTOR_BYTES,
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
def matmul(  # noqa: PLR0913  (next issue: groups of arguments)
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
    """Multiply all `rows` with `vectors` columns of vectors in panels, with K as one chunk."""
    grouped_matmul(zero, vectors, a, a_row, a_k, 0, 0, b, c, c_row, 1, size, rows, max(rows, 1), fresh, False)
