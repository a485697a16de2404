"""The bf16x3 split: numbers of float32 as three of bfloat16, in the order of AMX tiles.

A left operand is (3 parts, rows, K). A right operand is (K / 32, columns / 16, 3 parts, 16, 16, 2): for each of 16
columns, two adjacent values of k.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter, Vector
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.amx import (
    AMX_COMPILED,
    SPLIT_PARTS,
    TILE_BYTES,
    TILE_K,
    TILE_ROWS,
    split_bytes,
    split_chunks,
)
from lstmcore_numba.gemm.operands import Plane, address_of, unpack
from lstmcore_numba.gemm.vector import VECTOR_BYTES

#: The bits of a float32 that its first part keeps.
_HIGH: Final = 0xFFFF0000
_BYTE: Final = ir.IntType(8)


class SplitSource(NamedTuple):
    """Rows of float32 that are split: the address of the first, strides, and `runs` runs of `size` values in each."""

    address: Any
    row: Any
    runs: Any
    run: Any
    size: Any


class SplitTarget(NamedTuple):
    """Where the parts of rows go: the address of the first row of the first parts, strides of rows and of parts."""

    address: Any
    row: Any
    part: Any


@plain_intrinsic
def split_rows(context: Any, source: Any, target: Any, rows: Any, flags: Any) -> Any:
    """Split `rows` rows of a `SplitSource`, with 0 after each run up to a whole vector.

    Return 1 if any row is not finite, else 0. `flags` is the address of a byte for each row, which becomes 1 if the row
    is not finite, else 0.
    """

    def emit(_: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        if not AMX_COMPILED:
            return ir.Constant(INDEX, 0)
        source, target = (unpack(builder, signature.args[k], args[k]) for k in range(2))
        return _emit_rows(SplitEmitter(builder), source, target, args[2], args[3])

    return types.int64(source, target, types.int64, types.int64), emit


@plain_intrinsic
def split_row_pairs(context: Any, cols: Any, source: Any, target: Any, rows: Any, flag: Any) -> Any:
    """Split `rows` rows of `cols` vectors for a right operand, with two rows (values of k) side by side.

    `source` is a `Plane` of float32. `target` is a `Plane` of parts, whose stride is that of `TILE_K` rows. Rows that
    are missing to a multiple of `TILE_K` are 0. The byte at `flag` becomes 1 if a value is not finite.
    """

    def emit(dummy: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        if AMX_COMPILED:
            source, target = (unpack(builder, signature.args[k], args[k]) for k in (1, 2))
            _emit_pairs(SplitEmitter(builder), args[0], source, target, (args[3], args[4]))
        return dummy.get_dummy_value()

    return types.void(types.int64, source, target, types.int64, types.int64), emit


@plain_intrinsic
def split_transposed(context: Any, source: Any, target: Any, rows: Any, flag: Any) -> Any:
    """Split and transpose `rows` rows of one run each: a row of `target` holds one value of all rows.

    Rows that are missing to a multiple of `TILE_K` are 0. The byte at `flag` becomes 1 if a value is not finite.
    `target` has space for a multiple of 16 rows.
    """

    def emit(dummy: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        if AMX_COMPILED:
            source, target = (unpack(builder, signature.args[k], args[k]) for k in range(2))
            _emit_transposed(SplitEmitter(builder), source, target, args[2], args[3])
        return dummy.get_dummy_value()

    return types.void(source, target, types.int64, types.int64), emit


class SplitEmitter(Emitter):
    """Emitter of code that splits vectors of float32."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        super().__init__(builder, "float32", TILE_ROWS)
        self.bits = ir.VectorType(ir.IntType(1), self.lanes)
        self.high, self.half = self.whole_number(_HIGH), self.whole_number(16)

    def whole_number(self, number: int) -> ir.Constant:
        """Return a constant with the integer `number` in every lane."""
        return ir.Constant(self.integers, [ir.Constant(self.integer, number)] * self.lanes)

    def first_lanes(self, count: ir.Value) -> ir.Value:
        """Return a mask of the first `count` lanes."""
        numbers = ir.Constant(self.integers, [ir.Constant(self.integer, k) for k in range(self.lanes)])
        limit = self.builder.trunc(count, self.integer)
        undefined = ir.Constant(self.integers, ir.Undefined)
        one = self.builder.insert_element(undefined, limit, ir.Constant(ir.IntType(32), 0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.icmp_signed("<", numbers, self.builder.shuffle_vector(one, undefined, order))

    def limited(self, count: ir.Value) -> ir.Value:
        """Return `count` clipped to 0 and the number of lanes."""
        b, most, zero = self.builder, self.index(self.lanes), self.index(0)
        count = b.select(b.icmp_signed("<", count, most), count, most)
        return b.select(b.icmp_signed(">", count, zero), count, zero)

    def parts(self, value: Vector) -> tuple[list[ir.Value], ir.Value]:
        """Return three vectors of bits whose upper halves are the parts, and the mask of non-finite lanes.

        A non-finite number has its first part alone.
        """
        b = self.builder

        def cut(bits: ir.Value) -> Vector:
            return Vector(self, b.bitcast(b.and_(bits, self.high), self.type))

        bits = b.bitcast(value.value, self.integers)
        off = value - cut(bits)
        non_finite = b.fcmp_unordered("uno", off.value, off.value)
        second = b.bitcast(self.constant(0).where(non_finite, off).value, self.integers)
        third = b.bitcast((Vector(self, b.bitcast(second, self.type)) - cut(second)).value, self.integers)
        return [bits, second, third], non_finite

    def shortened(self, bits: ir.Value) -> ir.Value:
        """Return the upper halves, contiguous."""
        return self.builder.trunc(self.builder.lshr(bits, self.half), ir.VectorType(ir.IntType(16), self.lanes))

    def store_parts(self, parts: list[ir.Value], place: ir.Value, distance: ir.Value) -> None:
        """Store the upper halves, with a stride of `distance` bytes between parts."""
        for bits in parts:
            self.builder.store(self.shortened(bits), self.builder.inttoptr(place, POINTER), align=2)
            place = self.builder.add(place, distance)

    def store_pairs(self, parts: list[tuple[ir.Value, ir.Value]], place: ir.Value, distance: ir.Value) -> None:
        """Store like `store_parts` two adjacent vectors with one instruction, as they are read later."""
        b, count = self.builder, 2 * self.lanes
        halves = ir.VectorType(ir.IntType(16), count)
        upper = ir.Constant(ir.VectorType(ir.IntType(32), count), [2 * k + 1 for k in range(count)])
        for pair in parts:
            first, second = (b.bitcast(bits, halves) for bits in pair)
            b.store(b.shuffle_vector(first, second, upper), b.inttoptr(place, POINTER), align=2)
            place = b.add(place, distance)

    def none(self) -> ir.Constant:
        """Return an empty mask."""
        return ir.Constant(self.bits, None)

    def any_lane(self, mask: ir.Value) -> ir.Value:
        """Return whether any lane of `mask` is set."""
        lanes = ir.IntType(self.lanes)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(mask, lanes), ir.Constant(lanes, 0))

    def raise_flag(self, non_finite: ir.Value, flag: ir.Value) -> None:
        """Set the byte at `flag` if any lane of `non_finite` is set."""
        with self.builder.if_then(self.any_lane(non_finite), likely=False):
            self.builder.store(ir.Constant(_BYTE, 1), self.builder.inttoptr(flag, POINTER))


def _two_vectors(e: SplitEmitter, place: ir.Value, left: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
    """Return address and number of remaining values of two adjacent vectors."""
    return [(place, left), (e.builder.add(place, e.index(VECTOR_BYTES)), e.builder.sub(left, e.index(TILE_ROWS)))]


def _emit_rows(e: SplitEmitter, source: SplitSource, target: SplitTarget, rows: ir.Value, flags: ir.Value) -> ir.Value:
    b = e.builder
    with e.loop(e.index(0), rows, [source.address, target.address, flags, e.index(0)]) as row:
        from_row, to_row, flag, so_far = row.values
        with e.loop(e.index(0), source.runs, [from_row, to_row, e.none()]) as run:
            from_run, to_run, non_finite = run.values
            after, non_finite = _emit_run(e, source, from_run, (to_run, target.part), non_finite)
            run.carried = [b.add(from_run, source.run), after, non_finite]
        odd = e.any_lane(run.values[2])
        b.store(b.zext(odd, _BYTE), b.inttoptr(flag, POINTER))
        row.carried = [
            b.add(from_row, source.row),
            b.add(to_row, target.row),
            b.add(flag, e.index(1)),
            b.or_(so_far, b.zext(odd, INDEX)),
        ]
    return row.values[3]


def _emit_run(
    e: SplitEmitter, source: SplitSource, address: ir.Value, target: tuple[ir.Value, ir.Value], non_finite: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Emit the split of one run to an address, with a stride of parts; return the address behind it and the mask."""
    b, (there, part) = e.builder, target
    vectors = b.sdiv(b.add(source.size, e.index(TILE_ROWS - 1)), e.index(TILE_ROWS))
    with e.loop(e.index(0), b.sdiv(vectors, e.index(2)), [address, there, non_finite, source.size]) as loop:
        here, there, non_finite, left = loop.values
        one, other = (
            e.load_some(place, e.first_lanes(e.limited(count))) for place, count in _two_vectors(e, here, left)
        )
        lower, lower_mask = e.parts(one)
        upper, upper_mask = e.parts(other)
        e.store_pairs(list(zip(lower, upper, strict=True)), there, part)
        loop.carried = [
            b.add(here, e.index(2 * VECTOR_BYTES)),
            b.add(there, e.index(4 * TILE_ROWS)),
            b.or_(non_finite, b.or_(lower_mask, upper_mask)),
            b.sub(left, e.index(2 * TILE_ROWS)),
        ]
    with e.loop(e.index(0), b.srem(vectors, e.index(2)), list(loop.values)) as loop:
        here, there, non_finite, left = loop.values
        parts, lower_mask = e.parts(e.load_some(here, e.first_lanes(e.limited(left))))
        e.store_parts(parts, there, part)
        loop.carried = [here, b.add(there, e.index(2 * TILE_ROWS)), b.or_(non_finite, lower_mask), left]
    return loop.values[1], loop.values[2]


def _emit_pairs(
    e: SplitEmitter, cols: ir.Value, source: Plane, target: Plane, rows_and_flag: tuple[ir.Value, ir.Value]
) -> None:
    b, (rows, flag) = e.builder, rows_and_flag
    steps = b.sdiv(b.add(rows, e.index(TILE_K - 1)), e.index(TILE_K))
    with e.loop(e.index(0), steps, [source.address, target.address, rows, e.none()]) as step:
        with e.loop(e.index(0), e.index(TILE_K // 2), step.values) as pair:
            from_rows, to_pairs, left, non_finite = pair.values
            all_lanes = e.index(TILE_ROWS)
            masks = [
                e.first_lanes(b.select(b.icmp_signed(">", left, e.index(k)), all_lanes, e.index(0))) for k in range(2)
            ]
            with e.loop(e.index(0), cols, [from_rows, to_pairs, non_finite]) as col:
                here, place, so_far = col.values
                lower, one = e.parts(e.load_some(here, masks[0]))
                upper, other = e.parts(e.load_some(b.add(here, source.row), masks[1]))
                for k, (x, y) in enumerate(zip(lower, upper, strict=True)):
                    joined = b.or_(b.lshr(x, e.half), b.and_(y, e.high))
                    e.store(Vector(e, b.bitcast(joined, e.type)), e.address(place, e.index(k * TILE_BYTES)))
                col.carried = [
                    b.add(here, e.index(VECTOR_BYTES)),
                    b.add(place, e.index(SPLIT_PARTS * TILE_BYTES)),
                    b.or_(so_far, b.or_(one, other)),
                ]
            pair.carried = [
                e.address(from_rows, source.row, source.row),
                b.add(to_pairs, e.index(VECTOR_BYTES)),
                b.sub(left, e.index(2)),
                col.values[2],
            ]
        step.carried = [pair.values[0], b.add(step.values[1], target.row), pair.values[2], pair.values[3]]
    e.raise_flag(step.values[3], flag)


def _emit_transposed(e: SplitEmitter, source: SplitSource, target: SplitTarget, rows: ir.Value, flag: ir.Value) -> None:
    b = e.builder
    squares = b.mul(b.sdiv(b.add(rows, e.index(TILE_K - 1)), e.index(TILE_K)), e.index(TILE_K // TILE_ROWS))
    columns = b.sdiv(b.add(source.size, e.index(TILE_ROWS - 1)), e.index(TILE_ROWS))
    with e.loop(e.index(0), squares, [source.address, target.address, rows, e.none()]) as square:
        from_rows, to_rows, left, _ = square.values
        with e.loop(e.index(0), columns, [from_rows, to_rows, source.size, square.values[3]]) as column:
            here, there, width, non_finite = column.values
            mask, vectors = e.first_lanes(e.limited(width)), []
            for k in range(TILE_ROWS):
                known = b.select(b.icmp_signed(">", left, e.index(k)), mask, e.none())
                vectors.append(e.load_some(here, known))
                here = b.add(here, source.row)
            for vector in _transpose(e, vectors):
                parts, lower_mask = e.parts(vector)
                e.store_parts(parts, there, target.part)
                there, non_finite = b.add(there, target.row), b.or_(non_finite, lower_mask)
            column.carried = [
                b.add(column.values[0], e.index(VECTOR_BYTES)),
                there,
                b.sub(width, e.index(TILE_ROWS)),
                non_finite,
            ]
        below = b.mul(source.row, e.index(TILE_ROWS))
        square.carried = [
            b.add(from_rows, below),
            b.add(to_rows, e.index(2 * TILE_ROWS)),
            b.sub(left, e.index(TILE_ROWS)),
            column.values[3],
        ]
    e.raise_flag(square.values[3], flag)


def _transpose(e: SplitEmitter, rows: list[Vector]) -> list[Vector]:
    """Return the columns of a square of vectors. Vectors `half` apart exchange halves of every run of ``2 half``.

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
def split_panels(source: Any, vectors: int, panel_vectors: int, k_size: int, target: Any, flag: Any) -> None:
    """Split a right operand in panels of `panel_vectors` vectors; `target` has the panels in the same order."""
    chunks = split_chunks(k_size)
    for first in range(0, vectors, panel_vectors):
        cols = min(panel_vectors, vectors - first)
        weights = Plane(address_of(source) + first * k_size * VECTOR_BYTES, cols * VECTOR_BYTES)
        parts = Plane(address_of(target) + chunks * split_bytes(first), split_bytes(cols))
        split_row_pairs(cols, weights, parts, k_size, address_of(flag))


@compiled
def split_row_range(source: Any, target: Any, first: int, last: int, flags: int) -> int:
    """Call `split_rows` for rows `first` to `last`; source, target and flags are those of row 0."""
    here = SplitSource(source.address + first * source.row, source.row, source.runs, source.run, source.size)
    there = SplitTarget(target.address + first * target.row, target.row, target.part)
    non_finite: int = split_rows(here, there, last - first, flags + first)
    return non_finite
