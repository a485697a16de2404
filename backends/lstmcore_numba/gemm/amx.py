"""Products of float32 on AMX: tiles of 16 rows by 16 columns, and each number as a sum of three of bfloat16.

A number of float32 has 24 bits, one of bfloat16 8: cut off from the top, three of them hold it exactly. Of the nine
products of parts the three smallest are below 2^-24 of the whole and left out. The processor sums 32 values of the
inner size from zero before it adds them to what is there, so that a sum loses less than one value after the other
would. docs/numba.md tells how the parts lie in memory.

What is infinite cannot be done so: times the second part of a number, which may be 0, it would give NaN. Whoever cuts
numbers hears of it, and takes float32 for those rows.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.vector import BYTES

#: Parts of a number, rows of a tile, and values of the inner size that one instruction takes.
PARTS: Final = 3
TILE: Final = 16
DEPTH: Final = 32
#: Bytes between the rows of a left operand, beside those that are there: rows a multiple of 4096 bytes apart would
#: share a place in the nearest cache.
APART: Final = 64
#: Instructions' depths of the inner size that all tiles of a panel take before the next ones, where it has up to twice
#: as many: both operands are then in the nearest cache. With more, sums would come and go too often.
_CUT: Final = 4
#: Bytes of a tile.
TILE_BYTES: Final = 1024
#: Which parts are multiplied, smallest products first: in every tile in this order, so that results do not depend on
#: how rows are split among tiles.
_PAIRS: Final = ((0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0))
_BYTE: Final = ir.IntType(8)

_FEATURES: Final = llvm.get_host_cpu_features()
#: Whether code for AMX can be made here; what is kept on disk is found by these features.
MADE: Final = BYTES == 64 and bool(_FEATURES.get("amx-tile")) and bool(_FEATURES.get("amx-bf16"))
#: Linux's number of `arch_prctl` on x86-64, and what asks for the tiles' registers.
_ARCH_PRCTL, _REQUEST, _TILES = 158, 0x1023, 18


@cache
def usable() -> bool:
    """Whether products of float32 can run on AMX here: Linux hands its registers to who asks.

    ``LSTMCORE_AMX=0`` says no.

    Raises
    ------
    ValueError
        The variable is neither 0 nor 1.
    """
    asked = os.environ.get("LSTMCORE_AMX", "1")
    if asked not in ("0", "1"):
        raise ValueError(f"LSTMCORE_AMX: expected 0 or 1, got {asked!r}")
    if asked == "0" or not MADE or sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILES) == 0)


class _Tiles:
    """Emits the processor's instructions on its eight tiles."""

    def __init__(self, e: Emitter) -> None:
        self.e = e

    def _call(self, name: str, *args: ir.Value) -> None:
        self.e.call(f"llvm.x86.{name}", ir.VoidType(), *args)

    def configure(self, rows: ir.Value) -> None:
        """Give all tiles rows of 64 bytes, the last tile 16 of them and the others `rows`."""
        b, module, name = self.e.builder, self.e.builder.module, "lstmcore.tile.shapes"
        table = module.globals.get(name)
        if table is None:
            numbers = [number for height in range(TILE + 1) for number in self._shapes(height)]
            kind = ir.ArrayType(_BYTE, len(numbers))
            table = ir.GlobalVariable(module, kind, name)
            table.linkage, table.global_constant, table.align = "internal", True, 64
            table.initializer = ir.Constant(kind, bytearray(numbers))
        place = b.add(b.ptrtoint(table, INDEX), b.mul(rows, self.e.index(64)))
        self._call("ldtilecfg", b.inttoptr(place, POINTER))

    @staticmethod
    def _shapes(rows: int) -> list[int]:
        """The 64 bytes that the processor wants: palette 1, bytes of a row of every tile, and rows."""
        return [1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[rows] * 7, TILE, *[0] * 8]

    def release(self) -> None:
        """Tell the processor that the tiles are free."""
        self._call("tilerelease")

    def zero(self, tile: int) -> None:
        self._call("tilezero", ir.Constant(_BYTE, tile))

    def load(self, tile: int, address: ir.Value, row: ir.Value) -> None:
        self._call("tileloadd64", ir.Constant(_BYTE, tile), self.e.builder.inttoptr(address, POINTER), row)

    def store(self, tile: int, address: ir.Value, row: ir.Value) -> None:
        self._call("tilestored64", ir.Constant(_BYTE, tile), self.e.builder.inttoptr(address, POINTER), row)

    def multiply(self, target: int, a: int, b: int) -> None:
        """Add the products of the rows of `a` and the columns of `b` to `target`."""
        self._call("tdpbf16ps", *(ir.Constant(_BYTE, tile) for tile in (target, a, b)))


@plain_intrinsic
def shape_tiles(context: Any, rows: Any) -> Any:
    """Give the tiles of sums and of the left operand `rows` rows."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        if MADE:
            _Tiles(Emitter(builder, "float32", TILE)).configure(args[0])
        return target.get_dummy_value()

    return types.void(types.int64), emit


@plain_intrinsic
def release_tiles(context: Any) -> Any:
    """Leave the tiles to whoever comes next."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        if MADE:
            _Tiles(Emitter(builder, "float32", TILE)).release()
        return target.get_dummy_value()

    return types.void(), emit


@plain_intrinsic
def amx_tile(
    context: Any,
    high: Any,
    cols: Any,
    a: Any,
    a_row: Any,
    a_part: Any,
    b: Any,
    b_step: Any,
    c: Any,
    c_row: Any,
    chunks: Any,
    fresh: Any,
    following: Any,
) -> Any:
    """``c = a b``, or ``c += a b`` unless `fresh`, for `high` tiles of rows (1 or 2) and `cols` vectors (1 to 4; 2).

    `a` and `b` are addresses of parts, `c` of float32; distances are in bytes: ``a_row`` and ``c_row`` between rows,
    ``a_part`` between parts, ``b_step`` between `DEPTH` values of the inner size, of which there are `chunks`.
    `following` is the right operand that is read next.
    """

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        high, cols, *rest = args
        e = Emitter(builder, "float32", TILE)
        done = builder.append_basic_block("tiled")
        if not MADE:
            builder.branch(done)
            builder.position_at_end(done)
            return target.get_dummy_value()
        cases = builder.switch(builder.add(builder.mul(high, e.index(8)), cols), done)
        for height, width in ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)):
            block = builder.append_basic_block(f"amx{height}x{width}")
            cases.add_case(e.index(8 * height + width), block)
            builder.position_at_end(block)
            _emit_tile(e, height, width, *rest)
            builder.branch(done)
        builder.position_at_end(done)
        return target.get_dummy_value()

    return types.void(*(types.int64,) * 10, types.boolean, types.int64), emit


def _emit_tile(
    e: Emitter,
    high: int,
    cols: int,
    a: ir.Value,
    a_row: ir.Value,
    a_part: ir.Value,
    b: ir.Value,
    b_step: ir.Value,
    c: ir.Value,
    c_row: ir.Value,
    chunks: ir.Value,
    fresh: ir.Value,
    following: ir.Value,
) -> None:
    builder, tiles = e.builder, _Tiles(e)
    sums = [(r * cols + j, r, j) for r in range(high) for j in range(cols)]
    below, parts = builder.mul(a_row, e.index(TILE)), [builder.mul(a_part, e.index(p)) for p in range(PARTS)]
    below_c = builder.mul(c_row, e.index(TILE))
    places = [e.address(c, *([below_c] if r else []), e.index(j * BYTES)) for _, r, j in sums]
    with builder.if_else(fresh) as (empty, started):
        with empty:
            for tile, _, _ in sums:
                tiles.zero(tile)
        with started:
            for (tile, _, _), place in zip(sums, places, strict=True):
                tiles.load(tile, place, c_row)
    with e.loop(e.index(0), chunks, [a, b]) as loop:
        from_a, from_b = loop.values

        def load_b(tile: int, j: int, part: int) -> None:
            tiles.load(tile, e.address(from_b, e.index((j * PARTS + part) * TILE_BYTES)), e.index(64))

        # One row of tiles: all parts of the left in 4 to 6, one of the right in 7. Two: one part of the left in 4 and
        # 5, of the right in 6 and 7. The next product for a tile comes after those for three others, when it is ready.
        for part in range(PARTS if high == 1 else 0):
            tiles.load(4 + part, e.address(from_a, parts[part]), a_row)
        before: tuple[int, int] = (-1, -1)
        lines = range(0, cols * PARTS * TILE_BYTES, 64)
        is_last = builder.icmp_signed("==", builder.add(loop.i, e.index(1)), chunks)
        next_b = builder.select(is_last, following, builder.add(from_b, b_step))
        for turn, pair in enumerate(_PAIRS):
            for line in lines[turn :: len(_PAIRS)]:  # of the right operand at the next values of the inner size
                e.prefetch(e.address(next_b, e.index(line)))
            for r in range(high if high == 2 and pair[0] != before[0] else 0):
                tiles.load(4 + r, e.address(from_a, parts[pair[0]], *([below] if r else [])), a_row)
            for j in range(cols if high == 2 and pair[1] != before[1] else 0):
                load_b(6 + j, j, pair[1])
            before = pair
            for tile, r, j in sums:
                if high == 1:
                    load_b(7, j, pair[1])
                tiles.multiply(tile, 4 + (r if high == 2 else pair[0]), 6 + j if high == 2 else 7)
        loop.carried = [builder.add(from_a, e.index(2 * DEPTH)), builder.add(from_b, b_step)]
    for (tile, _, _), place in zip(sums, places, strict=True):
        tiles.store(tile, place, c_row)


@compiled
def amx_panel(
    cols: int,
    a: int,
    a_row: int,
    a_part: int,
    b: int,
    b_step: int,
    c: int,
    c_row: int,
    chunks: int,
    rows: int,
    fresh: bool,
    following: int,
    height: int,
) -> None:
    """The product of all `rows` with one panel of 1 to 4 vectors; arguments are those of `amx_tile`.

    Tiles have `height` rows before and after: 16, or `rows` where these are fewer and come again and again, since to
    shape them takes as long as some products do.
    """
    pairs, tail = rows // (2 * TILE), rows % TILE
    depth = _CUT if chunks <= 2 * _CUT else chunks
    for cut in range(0, chunks if pairs > 0 else 0, depth):
        some = min(depth, chunks - cut)
        for first in range(0, cols, 2):
            here = b + first * PARTS * TILE_BYTES + cut * b_step
            for k in range(pairs):
                row = 2 * TILE * k
                after = here
                if k == pairs - 1:
                    after = here + 2 * PARTS * TILE_BYTES
                    if first + 2 >= cols:
                        after = b + (cut + depth) * b_step if cut + depth < chunks else following
                amx_tile(
                    2,
                    min(2, cols - first),
                    a + row * a_row + cut * 2 * DEPTH,
                    a_row,
                    a_part,
                    here,
                    b_step,
                    c + row * c_row + first * BYTES,
                    c_row,
                    some,
                    fresh and cut == 0,
                    after,
                )
    for row in range(2 * TILE * pairs, rows, TILE):
        if rows - row == tail and tail != height:
            shape_tiles(tail)
        amx_tile(1, cols, a + row * a_row, a_row, a_part, b, b_step, c + row * c_row, c_row, chunks, fresh, following)
    if tail > 0 and tail != height:
        shape_tiles(height)
