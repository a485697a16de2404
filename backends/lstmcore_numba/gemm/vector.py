"""GEMM in vector registers: a microkernel of rows and vectors whose sums stay in registers.

The microkernel keeps ``rows x cols`` vectors of sums in registers while it goes over K once. For each k it loads `cols`
vectors of weights and broadcasts `rows` numbers. `tile_shapes` has the sizes for each number of registers.

All microkernels of two rows and more add in the same order, and K is split alike for any number of them. Only a GEMM
of one row uses the microkernel of one row. So results do not depend on the split of rows among microkernels or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter, Vector
from lstmcore_numba.codegen.numba_compiler import chosen_by_type, compiled, plain_intrinsic
from lstmcore_numba.gemm.bf16 import PAIR, PairEmitter
from lstmcore_numba.gemm.operands import Rows, call_microkernel, unpack
from lstmcore_numba.gemm.stored_panel import StoredPanel, run_stored_tile, stored_panel_tiles
from lstmcore_numba.gemm.tile_shapes import TileShape, TileTable, tile_table

#: Bytes of a vector register; the code of this package is compiled for it.
VECTOR_BYTES: Final = compile_target().vector_bytes
#: The shapes of microkernels.
TILES: Final = tile_table(compile_target())
#: Rows of a microkernel at most.
MAX_ROWS: Final = max(shape.rows for shape in TILES.panels)
_ONE, _TWO, _THREE, _FOUR = TILES.panels
_SPLITS_PANELS: Final = any(shape.cols < vectors for vectors, shape in enumerate(TILES.panels, 1))
_K_BLOCK: Final = TILES.k_block


class Tile(NamedTuple):
    """One call of a microkernel.

    Attributes
    ----------
    rows, cols
        A shape of `TILES`.
    a, b, c
        Addresses of the operands and of the result.
    runs, size
        K consists of `runs` runs of `size` values.
    place, group
        The first row is row `place` of its group of `group` rows.
    fresh
        Whether to overwrite the result.
    first
        Index of the first row among all.
    """

    rows: int
    cols: int
    a: int
    b: int
    c: int
    runs: int
    size: int
    place: int
    group: int
    fresh: bool
    first: int


class TileValues(NamedTuple):
    """What the code of a microkernel reads: addresses, and strides in bytes; see `Rows`, `Panel`, `Sums` and `Tile`."""

    a: ir.Value
    a_row: ir.Value
    a_k: ir.Value
    a_run: ir.Value
    a_gap: ir.Value
    b: ir.Value
    b_k: ir.Value
    c: ir.Value
    c_row: ir.Value
    c_gap: ir.Value
    runs: ir.Value
    size: ir.Value
    place: ir.Value
    group: ir.Value
    fresh: ir.Value


@plain_intrinsic
def _microkernel(context: Any, tile: Any, left: Any, panel: Any, sums: Any) -> Any:
    """Compute ``c = a b``, or ``c += a b`` unless `Tile.fresh`. The operands give strides; `tile` has the addresses."""
    signature = types.void(tile, left, panel, sums)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        tile, left, panel, sums = (
            unpack(builder, kind, value) for kind, value in zip(signature.args, args, strict=True)
        )
        kind = signature.args[1]
        dtype, transposed = str(kind.types[0]), kind.instance_class is not Rows
        arguments = (tile.cols, tile.rows, tile.a, left.k if transposed else left.row, left.run, left.gap, tile.b)
        arguments += (panel.cols, tile.c, sums.row, sums.gap, *tile[5:10])
        name = f"{'columns' if transposed else 'rows'}_{dtype}"
        call_microkernel(builder, name, partial(_emit_shapes, dtype, transposed), arguments)
        return target.get_dummy_value()

    return signature, emit


def _emit_shapes(dtype: str, transposed: bool, builder: ir.IRBuilder, *arguments: ir.Value) -> None:
    """Emit the microkernels of all shapes, and the choice of one."""
    cols, rows, a, stride, run, gap, b, panel_cols, *others = arguments
    e = emitter_of(builder, dtype)
    strides = (e.index(e.size), stride) if transposed else (stride, e.index(e.size))
    values = TileValues(a, *strides, run, gap, b, builder.mul(panel_cols, e.index(VECTOR_BYTES)), *others)
    done = builder.append_basic_block("tiled")
    cases = builder.switch(builder.add(builder.mul(cols, e.index(MAX_ROWS + 1)), rows), done)
    for shape in TILES.shapes():
        block = builder.append_basic_block(f"tile{shape.rows}x{shape.cols}")
        cases.add_case(e.index(shape.cols * (MAX_ROWS + 1) + shape.rows), block)
        builder.position_at_end(block)
        emit_tile(e, TILES, shape, values)
        builder.branch(done)
    builder.position_at_end(done)


def emit_tile(e: Emitter, table: TileTable, shape: TileShape, values: TileValues) -> None:
    """Emit the microkernel of one shape."""
    rows_a, rows_c = _row_addresses(e, shape.rows, values)
    places = [e.address(row, e.index(j * e.lanes * e.size)) for row in rows_c for j in range(shape.cols)]
    sums = _emit_sums(e, table, shape, values, rows_a)
    results = [e.result(Vector(e, value), *divmod(k, shape.cols)) for k, value in enumerate(sums)]
    with e.builder.if_else(values.fresh) as (empty, started):
        with empty:
            for place, value in zip(places, results, strict=True):
                e.store(value, place)
        with started:  # c is added last: a sum of partial sums loses less than one long sum
            for place, value in zip(places, results, strict=True):
                e.store(e.load(place) + value, place)


def _row_addresses(e: Emitter, rows: int, values: TileValues) -> tuple[list[ir.Value], list[ir.Value]]:
    """Return the addresses of the rows of the left operand, and of the result."""
    builder, place, zero = e.builder, values.place, e.index(0)
    rows_a, rows_c = [values.a], [values.c]
    for _ in range(rows - 1):
        place = builder.add(place, e.index(1))
        first = builder.icmp_signed("==", place, values.group)
        rows_a.append(e.address(rows_a[-1], values.a_row, builder.select(first, values.a_gap, zero)))
        rows_c.append(e.address(rows_c[-1], values.c_row, builder.select(first, values.c_gap, zero)))
        place = builder.select(first, zero, place)
    return rows_a, rows_c


def _emit_sums(
    e: Emitter, table: TileTable, shape: TileShape, values: TileValues, rows_a: list[ir.Value]
) -> list[ir.Value]:
    """Emit the loop over K; return the sums of all rows and vectors."""
    builder, zero = e.builder, e.index(0)
    unroll, own = table.unroll(shape), shape.rows * shape.cols
    sums = [e.constant(0).value] * (own * unroll)
    whole = builder.sdiv(values.size, e.index(unroll))

    def next_k(weights: ir.Value, along: ir.Value) -> tuple[ir.Value, ir.Value]:
        return builder.add(weights, values.b_k), builder.add(along, values.a_k)

    with e.loop(zero, values.runs, [*sums, values.b, zero]) as over:
        *sums, weights, base = over.values
        with e.loop(zero, whole, [*sums, weights, base]) as loop:
            *sums, weights, along = loop.values
            for k in range(unroll):
                places, part = [e.address(row, along) for row in rows_a], slice(k * own, (k + 1) * own)
                sums[part] = _add_products(e, table, shape, sums[part], (places, weights))
                weights, along = next_k(weights, along)
            loop.carried = [*sums, weights, along]
        *sums, weights, along = loop.values
        if unroll > 1:
            with e.loop(builder.mul(whole, e.index(unroll)), values.size, [*sums[:own], weights, along]) as loop:
                *some, weights, along = loop.values
                places = [e.address(row, along) for row in rows_a]
                loop.carried = [*_add_products(e, table, shape, some, (places, weights)), *next_k(weights, along)]
            *some, weights, along = loop.values
            sums = [*some, *sums[own:]]
        over.carried = [*sums, weights, builder.add(base, values.a_run)]
    *sums, _, _ = over.values
    while len(sums) > own:  # with an odd count, the last sums go to the first ones
        half = len(sums) // (2 * own) * own
        pairs = zip(sums, sums[half : 2 * half], strict=False)
        sums = [*(e.plus(Vector(e, x), Vector(e, y)).value for x, y in pairs), *sums[2 * half :]]
    return sums


def _add_products(
    e: Emitter,
    table: TileTable,
    shape: TileShape,
    sums: list[ir.Value],
    places: tuple[list[ir.Value], ir.Value],
) -> list[ir.Value]:
    """Return `sums` plus the products of one value of K, at the addresses of its numbers and of its weights."""
    numbers, weights = places
    rows, cols = range(shape.rows), range(shape.cols)
    new_sums = list(sums)

    def add(r: int, j: int, number: Vector, vector: Vector) -> None:
        place = r * shape.cols + j
        new_sums[place] = e.multiply_add(number, vector, Vector(e, sums[place])).value

    if table.broadcasts_first(shape):
        held = [e.broadcast(numbers[r]) for r in rows]
        for j in cols:
            vector = e.load_weights(weights, j)
            for r in rows:
                add(r, j, held[r], vector)
    else:
        held = [e.load_weights(weights, j) for j in cols]
        for r in rows:
            number = e.broadcast(numbers[r])
            for j in cols:
                add(r, j, number, held[j])
    return new_sums


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


@chosen_by_type
def _run_tile(tile: Any, left: Any, panel: Any, sums: Any) -> Any:
    """Run the microkernel of a panel."""
    if panel.instance_class is StoredPanel:
        return run_stored_tile
    return lambda tile, left, panel, sums: _microkernel(tile, left, panel, sums)


@chosen_by_type
def _panel_tiles(panel: Any, values: int, rows: int) -> Any:
    """Return rows and vectors of a microkernel at most, bytes of a vector, and in how many blocks K is taken."""
    return stored_panel_tiles if panel.instance_class is StoredPanel else _vector_panel_tiles


def _vector_panel_tiles(panel: Any, values: int, rows: int) -> Any:
    cols = panel.cols
    width = _tile_cols(cols) if _SPLITS_PANELS else cols
    return _tile_rows(cols), width, VECTOR_BYTES, (values + _K_BLOCK - 1) // _K_BLOCK if rows > 1 else 1


@compiled
def vector_panel_matmul(left: Any, panel: Any, sums: Any, rows: Any) -> None:
    """Multiply all rows of `Rows`, `Columns` or `StoredRows` with one panel of 1 to `PANEL_VECTORS` vectors.

    K is split into blocks, so that this part of the panel is in L1 for the next microkernel. A block is a number of
    runs, or a part of the only run. It does not depend on the number of rows, unless there is one.
    """
    cols, runs, size = panel.cols, left.runs, left.size
    most, width, vector_bytes, cuts = _panel_tiles(panel, runs * size, rows.total)
    tiles = (rows.total + most - 1) // most
    cuts = min(cuts, runs if runs > 1 else size)
    for cut in range(max(cuts, 1)):
        some, depth, begin, offset = runs, size, 0, 0
        if cuts > 1 and runs > 1:
            start = runs * cut // cuts
            some = runs * (cut + 1) // cuts - start
            begin, offset = start * size, start * left.run
        elif cuts > 1:
            begin = size * cut // cuts
            depth = size * (cut + 1) // cuts - begin
            offset = begin * left.k
        from_b, fresh = panel.address + begin * cols * vector_bytes, sums.fresh and cut == 0
        for k in range(tiles):
            first = rows.total * k // tiles
            height, before, place = rows.total * (k + 1) // tiles - first, first // rows.group, first % rows.group
            from_a = left.address + offset + first * left.row + before * left.gap
            to_c = sums.address + first * sums.row + before * sums.gap
            col = 0
            while col < cols:  # not a range, whose length would be a division
                tile = Tile(
                    height,
                    min(width, cols - col),
                    from_a,
                    from_b + col * vector_bytes,
                    to_c + col * VECTOR_BYTES,
                    some,
                    depth,
                    place,
                    rows.group,
                    fresh,
                    first,
                )
                _run_tile(tile, left, panel, sums)
                col += width
