"""The one product that everything is made of: a tile of rows and vectors that stays in registers.

``tile`` keeps `rows` times `cols` vectors of sums in registers while it goes once over the inner size; for each of its
values it loads `cols` vectors of weights and `rows` numbers. docs/numba.md derives the sizes from the number of
registers. Every row of a tile of two rows and more sees the same operations in the same order, and only a batch of
one row has a tile of one, so that results do not depend on how rows are split among tiles or threads.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types

from lstmcore_numba.jit import compiled, literal_intrinsic, plain_intrinsic
from lstmcore_numba.vectors import INDEX, Emitter, Vector, vector_bytes

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


@literal_intrinsic
def tile(
    context: Any,
    zero: Any,
    cols: Any,
    rows: Any,
    a: Any,
    a_row: Any,
    a_k: Any,
    b: Any,
    b_k: Any,
    c: Any,
    c_row: Any,
    size: Any,
    fresh: Any,
) -> Any:
    """``c = a b``, or ``c += a b`` unless `fresh`, for 1 to `ROWS` rows and `cols` vectors.

    `a`, `b` and `c` are addresses; ``a_row`` and ``a_k`` lie between rows and between values of the inner index of `a`,
    ``b_k`` between the vectors of two values in `b`, ``c_row`` between rows of `c`, all in bytes.
    """
    signature = types.void(zero, cols, *(types.int64,) * 9, types.boolean)

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows, *rest = args[2:]
        dtype = str(signature.args[0])
        e = Emitter(builder, dtype, BYTES // (4 if dtype == "float32" else 8))
        done = builder.append_basic_block("tiled")
        cases = builder.switch(rows, done)
        for height in range(1, ROWS + 1):
            block = builder.append_basic_block(f"rows{height}")
            cases.add_case(ir.Constant(rows.type, height), block)
            builder.position_at_end(block)
            _emit_tile(e, height, signature.args[1].literal_value, *rest)
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
    b: ir.Value,
    b_k: ir.Value,
    c: ir.Value,
    c_row: ir.Value,
    size: ir.Value,
    fresh: ir.Value,
) -> None:
    builder, height, width = e.builder, range(rows), range(cols)
    rows_a = [e.address(a, builder.mul(a_row, e.index(r))) for r in height]
    rows_c = [e.address(c, builder.mul(c_row, e.index(r))) for r in height]
    places = [e.address(row, e.index(j * BYTES)) for row in rows_c for j in width]
    with builder.if_else(fresh) as (empty, started):
        with empty:
            nothing = builder.block
        with started:
            sums = [e.load(place).value for place in places]
            loaded = builder.block
    first = []
    for value in sums:
        start = builder.phi(e.type)
        start.add_incoming(e.constant(0).value, nothing)
        start.add_incoming(value, loaded)
        first.append(start)

    def added(sums: list[ir.Value], weights: ir.Value, along: ir.Value) -> list[ir.Value]:
        vectors = [e.load(e.address(weights, e.index(j * BYTES))) for j in width]
        found = []
        for r in height:
            number = e.broadcast(e.address(rows_a[r], along))
            found += [number.fma(vector, Vector(e, sums[r * cols + j])).value for j, vector in enumerate(vectors)]
        return found

    start, weights, along = e.index(0), b, e.index(0)
    if rows == 1:
        parts = [first] + [[e.constant(0).value] * cols for _ in range(_UNROLL - 1)]
        whole = builder.sdiv(size, e.index(_UNROLL))
        with e.loop(e.index(0), whole, [value for part in parts for value in part] + [weights, along]) as loop:
            *sums, weights, along = loop.values
            found = []
            for part in range(_UNROLL):
                found += added(sums[part * cols : (part + 1) * cols], weights, along)
                weights, along = builder.add(weights, b_k), builder.add(along, a_k)
            loop.carried = [*found, weights, along]
        *sums, weights, along = loop.values
        pairs = [Vector(e, value) for value in sums]
        while len(pairs) > cols:
            half = len(pairs) // 2
            pairs = [one + other for one, other in zip(pairs[:half], pairs[half:], strict=True)]
        first, start = [pair.value for pair in pairs], builder.mul(whole, e.index(_UNROLL))
    with e.loop(start, size, [*first, weights, along]) as loop:
        *sums, weights, along = loop.values
        loop.carried = [*added(sums, weights, along), builder.add(weights, b_k), builder.add(along, a_k)]
    for place, value in zip(places, loop.values, strict=False):
        e.store(Vector(e, value), place)


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
    """The product of all `rows` with one panel of 1 to 4 vectors.

    The inner size is cut, so that what is read of the panel is in the nearest cache for the next tile.
    """
    tiles = (rows + ROWS - 1) // ROWS
    cuts = (size + _DEPTH - 1) // _DEPTH if tiles > 1 else 1
    for cut in range(max(cuts, 1)):
        begin = size * cut // cuts if cuts > 1 else 0
        depth = size * (cut + 1) // cuts - begin if cuts > 1 else size
        b_here, a_here, empty = b + begin * b_k, a + begin * a_k, fresh and cut == 0
        for k in range(tiles):
            first, height = rows * k // tiles, rows * (k + 1) // tiles - rows * k // tiles
            from_a, to_c = a_here + first * a_row, c + first * c_row
            if cols == 4:
                tile(zero, 4, height, from_a, a_row, a_k, b_here, b_k, to_c, c_row, depth, empty)
            elif cols == 3:
                tile(zero, 3, height, from_a, a_row, a_k, b_here, b_k, to_c, c_row, depth, empty)
            elif cols == 2:
                tile(zero, 2, height, from_a, a_row, a_k, b_here, b_k, to_c, c_row, depth, empty)
            else:
                tile(zero, 1, height, from_a, a_row, a_k, b_here, b_k, to_c, c_row, depth, empty)


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
    for first in range(0, vectors, PANEL):
        cols = min(PANEL, vectors - first)
        here = b + first * size * BYTES
        panel(zero, cols, a, a_row, a_k, here, cols * BYTES, c + first * BYTES, c_row, size, rows, fresh)
