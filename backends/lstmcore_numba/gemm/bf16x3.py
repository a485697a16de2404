"""Numbers of float32 as three of bfloat16, laid out for the tiles of AMX.

The left operand has the parts of a row side by side, (3, rows, K); the right one has two values of the inner size side
by side for each of 16 columns, and 16 such rows one after the other: (K / 32, columns / 16, 3, 16, 16, 2).
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter, Vector
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.amx import DEPTH, MADE, PARTS, TILE, TILE_BYTES
from lstmcore_numba.gemm.vector import BYTES

#: The bits of a number of float32 that its first part has.
_HIGH: Final = 0xFFFF0000
_BYTE: Final = ir.IntType(8)


@plain_intrinsic
def split_rows(
    context: Any,
    source: Any,
    source_row: Any,
    target: Any,
    target_row: Any,
    part: Any,
    rows: Any,
    runs: Any,
    run: Any,
    size: Any,
    flags: Any,
) -> Any:
    """Cut `runs` times `size` values of each of `rows` rows into parts, with 0 after each run up to a whole vector.

    `source` is the address of float32 and `target` that of the first parts; distances are in bytes: ``source_row`` and
    ``target_row`` between rows, `run` between runs of the source, `part` between parts. The byte of a row at `flags`
    becomes 1 where a value is infinite or no number, else 0; returns 1 if any does.
    """

    def emit(_: Any, builder: ir.IRBuilder, __: Any, args: Any) -> Any:
        return _emit_rows(_Cutter(builder), *args) if MADE else ir.Constant(INDEX, 0)

    return types.int64(*(types.int64,) * 10), emit


@plain_intrinsic
def pair_rows(
    context: Any, cols: Any, source: Any, source_row: Any, target: Any, target_step: Any, rows: Any, flag: Any
) -> Any:
    """Cut `rows` rows of `cols` vectors into parts, two rows side by side.

    Rows are values of the inner size. `source` is the address of float32 with ``source_row`` bytes between rows,
    `target` that of parts with ``target_step`` bytes between `DEPTH` rows. Rows that are missing to a multiple of
    `DEPTH` are 0. The byte at `flag` becomes 1 where a value is infinite or no number.
    """

    def emit(dummy: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        if MADE:
            _emit_pairs(_Cutter(builder), *args)
        return dummy.get_dummy_value()

    return types.void(*(types.int64,) * 7), emit


@plain_intrinsic
def turn_rows(
    context: Any,
    source: Any,
    source_row: Any,
    target: Any,
    target_row: Any,
    part: Any,
    rows: Any,
    size: Any,
    flag: Any,
) -> Any:
    """Cut `size` values of each of `rows` rows into parts, and turn them: a row of `target` holds one value of all.

    Rows that are missing to a multiple of `DEPTH` are 0. The byte at `flag` becomes 1 where a value is infinite or no
    number. `target` has room for a multiple of 16 rows.
    """

    def emit(dummy: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        if MADE:
            _emit_turned(_Cutter(builder), *args)
        return dummy.get_dummy_value()

    return types.void(*(types.int64,) * 8), emit


class _Cutter(Emitter):
    """Emits code for parts of vectors of float32."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        super().__init__(builder, "float32", TILE)
        self.bits = ir.VectorType(ir.IntType(1), self.lanes)
        self.high, self.half = self.whole_number(_HIGH), self.whole_number(16)

    def whole_number(self, number: int) -> ir.Constant:
        """The same integer in every lane."""
        return ir.Constant(self.integers, [ir.Constant(self.integer, number)] * self.lanes)

    def first_lanes(self, count: ir.Value) -> ir.Value:
        """A mask of the first `count` lanes."""
        numbers = ir.Constant(self.integers, [ir.Constant(self.integer, k) for k in range(self.lanes)])
        limit = self.builder.trunc(count, self.integer)
        undefined = ir.Constant(self.integers, ir.Undefined)
        one = self.builder.insert_element(undefined, limit, ir.Constant(ir.IntType(32), 0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.icmp_signed("<", numbers, self.builder.shuffle_vector(one, undefined, order))

    def limited(self, count: ir.Value) -> ir.Value:
        """`count`, between 0 and the number of lanes."""
        b, most, zero = self.builder, self.index(self.lanes), self.index(0)
        count = b.select(b.icmp_signed("<", count, most), count, most)
        return b.select(b.icmp_signed(">", count, zero), count, zero)

    def parts(self, value: Vector) -> tuple[list[ir.Value], ir.Value]:
        """The bits of float32 whose upper halves are the parts, and where there are but the first.

        What is infinite or no number has no others.
        """
        b = self.builder

        def cut(bits: ir.Value) -> Vector:
            return Vector(self, b.bitcast(b.and_(bits, self.high), self.type))

        bits = b.bitcast(value.value, self.integers)
        off = value - cut(bits)
        wild = b.fcmp_unordered("uno", off.value, off.value)
        second = b.bitcast(self.constant(0).where(wild, off).value, self.integers)
        third = b.bitcast((Vector(self, b.bitcast(second, self.type)) - cut(second)).value, self.integers)
        return [bits, second, third], wild

    def shortened(self, bits: ir.Value) -> ir.Value:
        """The upper halves, side by side."""
        return self.builder.trunc(self.builder.lshr(bits, self.half), ir.VectorType(ir.IntType(16), self.lanes))

    def store_parts(self, parts: list[ir.Value], place: ir.Value, distance: ir.Value) -> None:
        """Write the upper halves, each part `distance` bytes after the one before."""
        for bits in parts:
            self.builder.store(self.shortened(bits), self.builder.inttoptr(place, POINTER), align=2)
            place = self.builder.add(place, distance)

    def store_pairs(self, parts: list[tuple[ir.Value, ir.Value]], place: ir.Value, distance: ir.Value) -> None:
        """As `store_parts`, of two vectors one after the other: what is read as a whole is written as a whole."""
        b, count = self.builder, 2 * self.lanes
        halves = ir.VectorType(ir.IntType(16), count)
        upper = ir.Constant(ir.VectorType(ir.IntType(32), count), [2 * k + 1 for k in range(count)])
        for pair in parts:
            first, second = (b.bitcast(bits, halves) for bits in pair)
            b.store(b.shuffle_vector(first, second, upper), b.inttoptr(place, POINTER), align=2)
            place = b.add(place, distance)

    def none(self) -> ir.Constant:
        """A mask of no lanes."""
        return ir.Constant(self.bits, None)

    def any_lane(self, mask: ir.Value) -> ir.Value:
        """Whether any lane of a mask is set."""
        lanes = ir.IntType(self.lanes)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(mask, lanes), ir.Constant(lanes, 0))

    def raise_flag(self, wild: ir.Value, flag: ir.Value) -> None:
        """Set the byte at `flag` if any lane of a mask is set."""
        with self.builder.if_then(self.any_lane(wild), likely=False):
            self.builder.store(ir.Constant(_BYTE, 1), self.builder.inttoptr(flag, POINTER))


def _halves(e: _Cutter, place: ir.Value, left: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
    """Where two vectors begin, and how many values are left there."""
    return [(place, left), (e.builder.add(place, e.index(BYTES)), e.builder.sub(left, e.index(TILE)))]


def _emit_rows(
    e: _Cutter,
    source: ir.Value,
    source_row: ir.Value,
    target: ir.Value,
    target_row: ir.Value,
    part: ir.Value,
    rows: ir.Value,
    runs: ir.Value,
    run: ir.Value,
    size: ir.Value,
    flags: ir.Value,
) -> ir.Value:
    b = e.builder
    vectors = b.sdiv(b.add(size, e.index(TILE - 1)), e.index(TILE))
    with e.loop(e.index(0), rows, [source, target, flags, e.index(0)]) as row:
        from_row, to_row, flag, so_far = row.values
        with e.loop(e.index(0), runs, [from_row, to_row, e.none()]) as part_of_row:
            from_run, *rest = part_of_row.values
            with e.loop(e.index(0), b.sdiv(vectors, e.index(2)), [from_run, *rest, size]) as loop:
                here, there, wild, left = loop.values
                one, other = (
                    e.load_some(place, e.first_lanes(e.limited(count))) for place, count in _halves(e, here, left)
                )
                lower, found = e.parts(one)
                upper, too = e.parts(other)
                e.store_pairs(list(zip(lower, upper, strict=True)), there, part)
                loop.carried = [
                    b.add(here, e.index(2 * BYTES)),
                    b.add(there, e.index(4 * TILE)),
                    b.or_(wild, b.or_(found, too)),
                    b.sub(left, e.index(2 * TILE)),
                ]
            with e.loop(e.index(0), b.srem(vectors, e.index(2)), list(loop.values)) as loop:
                here, there, wild, left = loop.values
                parts, found = e.parts(e.load_some(here, e.first_lanes(e.limited(left))))
                e.store_parts(parts, there, part)
                loop.carried = [here, b.add(there, e.index(2 * TILE)), b.or_(wild, found), left]
            part_of_row.carried = [b.add(from_run, run), *loop.values[1:3]]
        odd = e.any_lane(part_of_row.values[2])
        b.store(b.zext(odd, _BYTE), b.inttoptr(flag, POINTER))
        row.carried = [
            b.add(from_row, source_row),
            b.add(to_row, target_row),
            b.add(flag, e.index(1)),
            b.or_(so_far, b.zext(odd, INDEX)),
        ]
    return row.values[3]


def _emit_pairs(
    e: _Cutter,
    cols: ir.Value,
    source: ir.Value,
    source_row: ir.Value,
    target: ir.Value,
    target_step: ir.Value,
    rows: ir.Value,
    flag: ir.Value,
) -> None:
    b = e.builder
    steps = b.sdiv(b.add(rows, e.index(DEPTH - 1)), e.index(DEPTH))
    with e.loop(e.index(0), steps, [source, target, rows, e.none()]) as step:
        with e.loop(e.index(0), e.index(DEPTH // 2), step.values) as pair:
            from_rows, to_pairs, left, wild = pair.values
            all_lanes = e.index(TILE)
            masks = [
                e.first_lanes(b.select(b.icmp_signed(">", left, e.index(k)), all_lanes, e.index(0))) for k in range(2)
            ]
            with e.loop(e.index(0), cols, [from_rows, to_pairs, wild]) as col:
                here, place, so_far = col.values
                lower, one = e.parts(e.load_some(here, masks[0]))
                upper, other = e.parts(e.load_some(b.add(here, source_row), masks[1]))
                for k, (x, y) in enumerate(zip(lower, upper, strict=True)):
                    joined = b.or_(b.lshr(x, e.half), b.and_(y, e.high))
                    e.store(Vector(e, b.bitcast(joined, e.type)), e.address(place, e.index(k * TILE_BYTES)))
                col.carried = [
                    b.add(here, e.index(BYTES)),
                    b.add(place, e.index(PARTS * TILE_BYTES)),
                    b.or_(so_far, b.or_(one, other)),
                ]
            pair.carried = [
                e.address(from_rows, source_row, source_row),
                b.add(to_pairs, e.index(BYTES)),
                b.sub(left, e.index(2)),
                col.values[2],
            ]
        step.carried = [pair.values[0], b.add(step.values[1], target_step), pair.values[2], pair.values[3]]
    e.raise_flag(step.values[3], flag)


def _emit_turned(
    e: _Cutter,
    source: ir.Value,
    source_row: ir.Value,
    target: ir.Value,
    target_row: ir.Value,
    part: ir.Value,
    rows: ir.Value,
    size: ir.Value,
    flag: ir.Value,
) -> None:
    b = e.builder
    squares = b.mul(b.sdiv(b.add(rows, e.index(DEPTH - 1)), e.index(DEPTH)), e.index(DEPTH // TILE))
    columns = b.sdiv(b.add(size, e.index(TILE - 1)), e.index(TILE))
    with e.loop(e.index(0), squares, [source, target, rows, e.none()]) as square:
        from_rows, to_rows, left, _ = square.values
        with e.loop(e.index(0), columns, [from_rows, to_rows, size, square.values[3]]) as column:
            here, there, width, wild = column.values
            mask, vectors = e.first_lanes(e.limited(width)), []
            for k in range(TILE):
                known = b.select(b.icmp_signed(">", left, e.index(k)), mask, e.none())
                vectors.append(e.load_some(here, known))
                here = b.add(here, source_row)
            for vector in _turned(e, vectors):
                parts, found = e.parts(vector)
                e.store_parts(parts, there, part)
                there, wild = b.add(there, target_row), b.or_(wild, found)
            column.carried = [
                b.add(column.values[0], e.index(BYTES)),
                there,
                b.sub(width, e.index(TILE)),
                wild,
            ]
        below = b.mul(source_row, e.index(TILE))
        square.carried = [
            b.add(from_rows, below),
            b.add(to_rows, e.index(2 * TILE)),
            b.sub(left, e.index(TILE)),
            column.values[3],
        ]
    e.raise_flag(square.values[3], flag)


def _turned(e: _Cutter, rows: list[Vector]) -> list[Vector]:
    """The columns of a square of vectors: of two that are `half` apart, each keeps one half of every run of ``2 half``.

    K. S. Eklundh, "A fast computer method for matrix transposing", IEEE Transactions on Computers 21(7), 1972.
    """
    values = [row.value for row in rows]
    half = e.lanes // 2
    while half:
        upper = [k + e.lanes - half if k & half else k for k in range(e.lanes)]
        lower = [k + e.lanes if k & half else k + half for k in range(e.lanes)]
        for first in (k for k in range(e.lanes) if not k & half):
            pair = values[first], values[first + half]
            for place, order in ((first, upper), (first + half, lower)):
                lanes = ir.Constant(ir.VectorType(ir.IntType(32), e.lanes), order)
                values[place] = e.builder.shuffle_vector(*pair, lanes)
        half //= 2
    return [Vector(e, value) for value in values]


@compiled
def pair_panels(source: Any, vectors: int, panel: int, inner: int, target: Any, flag: Any) -> None:
    """Cut a right operand that is packed in panels of `panel` vectors; `target` has its panels in the same order."""
    chunks = (inner + DEPTH - 1) // DEPTH
    for first in range(0, vectors, panel):
        cols = min(panel, vectors - first)
        pair_rows(
            cols,
            source.ctypes.data + first * inner * BYTES,
            cols * BYTES,
            target.ctypes.data + first * chunks * PARTS * TILE_BYTES,
            cols * PARTS * TILE_BYTES,
            inner,
            flag.ctypes.data,
        )


@compiled
def cut_rows(
    source: int,
    pitch: int,
    target: int,
    row: int,
    part: int,
    first: int,
    last: int,
    runs: int,
    run: int,
    size: int,
    flags: int,
) -> int:
    """`split_rows` for rows `first` to `last`; addresses are those of row 0."""
    here, there = source + first * pitch, target + first * row
    wild: int = split_rows(here, pitch, there, row, part, last - first, runs, run, size, flags + first)
    return wild
