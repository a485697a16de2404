"""GEMM of float32 on AMX: tiles of 16 rows by 16 columns, and each number as a sum of three bfloat16 numbers.

A float32 has 24 significant bits and a bfloat16 has 8, so three of them hold it exactly (the *bf16x3 split*). Of the
nine products of parts, the three smallest are below 2^-24 of the whole and are left out. One instruction sums 32 values
of k from zero before it adds them to the tile. So a sum loses less than with one addition after the other. See
docs/numba.md for the order of the parts in memory.

An infinite number has no split: its product with a second part of 0 would be NaN. The functions that split rows report
non-finite ones, and these rows are multiplied in float32.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any, Final

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.vector import VECTOR_BYTES
from lstmcore_numba.tuning import AMX_K_BLOCK

#: Parts of a number, rows of a tile, and values of k that one instruction takes.
SPLIT_PARTS: Final = 3
TILE_ROWS: Final = 16
TILE_K: Final = 32
#: Bytes of padding after each row of a left operand. Rows a multiple of 4096 bytes apart would share a set of L1.
ROW_GAP_BYTES: Final = 64
#: Bytes of a tile.
TILE_BYTES: Final = 1024
#: Pairs of parts that are multiplied, smallest products first. The order is the same in every tile, so results do not
#: depend on how rows are split among tiles.
_PART_PRODUCTS: Final = ((0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0))
_BYTE: Final = ir.IntType(8)

#: Whether code for AMX is compiled. Stored code is filed under the features of the target.
AMX_COMPILED: Final = VECTOR_BYTES == 64 and compile_target().has("amx-tile", "amx-bf16")
#: Linux on x86-64: the number of `arch_prctl`, and its arguments that request the tile registers.
_ARCH_PRCTL, _REQUEST, _TILES = 158, 0x1023, 18


@cache
def amx_usable() -> bool:
    """Return whether GEMMs of float32 can run on AMX; request the tile registers from Linux.

    The environment variable ``LSTMCORE_AMX=0`` disables it.

    Raises
    ------
    ValueError
        The variable is neither 0 nor 1.
    """
    asked = os.environ.get("LSTMCORE_AMX", "1")
    if asked not in ("0", "1"):
        raise ValueError(f"LSTMCORE_AMX: expected 0 or 1, got {asked!r}")
    if asked == "0" or not AMX_COMPILED or sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILES) == 0)


class TileEmitter:
    """Emitter of the instructions on the eight tiles."""

    def __init__(self, e: Emitter) -> None:
        self.e = e

    def _call(self, name: str, *args: ir.Value) -> None:
        self.e.call(f"llvm.x86.{name}", ir.VoidType(), *args)

    def configure(self, rows: ir.Value) -> None:
        """Configure tiles of rows of 64 bytes: 16 rows for tile 7, `rows` for the others."""
        b, module, name = self.e.builder, self.e.builder.module, "lstmcore.tile.shapes"
        table = module.globals.get(name)
        if table is None:
            numbers = [number for height in range(TILE_ROWS + 1) for number in self._shapes(height)]
            kind = ir.ArrayType(_BYTE, len(numbers))
            table = ir.GlobalVariable(module, kind, name)
            table.linkage, table.global_constant, table.align = "internal", True, 64
            table.initializer = ir.Constant(kind, bytearray(numbers))
        place = b.add(b.ptrtoint(table, INDEX), b.mul(rows, self.e.index(64)))
        self._call("ldtilecfg", b.inttoptr(place, POINTER))

    @staticmethod
    def _shapes(rows: int) -> list[int]:
        """Return the 64 bytes of a configuration: palette 1, bytes of a row of every tile, and rows."""
        return [1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[rows] * 7, TILE_ROWS, *[0] * 8]

    def release(self) -> None:
        """Release the tiles."""
        self._call("tilerelease")

    def zero(self, tile: int) -> None:
        """Set a tile to 0."""
        self._call("tilezero", ir.Constant(_BYTE, tile))

    def load(self, tile: int, address: ir.Value, row: ir.Value) -> None:
        """Load a tile whose rows are `row` bytes apart."""
        self._call("tileloadd64", ir.Constant(_BYTE, tile), self.e.builder.inttoptr(address, POINTER), row)

    def store(self, tile: int, address: ir.Value, row: ir.Value) -> None:
        """Store a tile whose rows are `row` bytes apart."""
        self._call("tilestored64", ir.Constant(_BYTE, tile), self.e.builder.inttoptr(address, POINTER), row)

    def multiply(self, target: int, a: int, b: int) -> None:
        """Add the products of the rows of `a` and the columns of `b` to `target`."""
        self._call("tdpbf16ps", *(ir.Constant(_BYTE, tile) for tile in (target, a, b)))


@plain_intrinsic
def configure_tiles(context: Any, rows: Any) -> Any:
    """Configure the tiles of sums and of the left operand to have `rows` rows."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        if AMX_COMPILED:
            TileEmitter(Emitter(builder, "float32", TILE_ROWS)).configure(args[0])
        return target.get_dummy_value()

    return types.void(types.int64), emit


@plain_intrinsic
def release_tiles(context: Any) -> Any:
    """Release the tiles, which is due before other code of the process uses them."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        if AMX_COMPILED:
            TileEmitter(Emitter(builder, "float32", TILE_ROWS)).release()
        return target.get_dummy_value()

    return types.void(), emit


@plain_intrinsic
def amx_microkernel(  # noqa: PLR0913  (next issue: groups of arguments)
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
    """Compute ``c = a b``, or ``c += a b`` unless `fresh`, for `high` tiles of rows and `cols` vectors.

    Parameters
    ----------
    high, cols
        1 or 2 tiles of rows; 1 to 4 vectors of columns with one tile, 1 or 2 with two.
    a, b, c
        Addresses: of parts, of parts, and of float32. All strides are in bytes.
    a_row, a_part, b_step, c_row
        Strides of rows and of parts in `a`, of `TILE_K` values of k in `b`, and of rows in `c`.
    chunks
        K in units of `TILE_K`.
    fresh
        Whether to overwrite `c`.
    following
        Address of the right operand that is read next; it is prefetched.
    """

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        high, cols, *rest = args
        e = Emitter(builder, "float32", TILE_ROWS)
        done = builder.append_basic_block("tiled")
        if not AMX_COMPILED:
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


def _emit_tile(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
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
    builder, tiles = e.builder, TileEmitter(e)
    sums = [(r * cols + j, r, j) for r in range(high) for j in range(cols)]
    below, parts = builder.mul(a_row, e.index(TILE_ROWS)), [builder.mul(a_part, e.index(p)) for p in range(SPLIT_PARTS)]
    below_c = builder.mul(c_row, e.index(TILE_ROWS))
    places = [e.address(c, *([below_c] if r else []), e.index(j * VECTOR_BYTES)) for _, r, j in sums]
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
            tiles.load(tile, e.address(from_b, e.index((j * SPLIT_PARTS + part) * TILE_BYTES)), e.index(64))

        # With one row of tiles, tiles 4 to 6 hold all parts of the left and 7 one part of the right. With two, 4 and 5
        # hold one part of the left, 6 and 7 one of the right. Between two products for the same tile there are three
        # others, since a result takes as long.
        for part in range(SPLIT_PARTS if high == 1 else 0):
            tiles.load(4 + part, e.address(from_a, parts[part]), a_row)
        before: tuple[int, int] = (-1, -1)
        lines = range(0, cols * SPLIT_PARTS * TILE_BYTES, 64)
        is_last = builder.icmp_signed("==", builder.add(loop.i, e.index(1)), chunks)
        next_b = builder.select(is_last, following, builder.add(from_b, b_step))
        for turn, pair in enumerate(_PART_PRODUCTS):
            for line in lines[turn :: len(_PART_PRODUCTS)]:  # of the right operand at the next values of k
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
        loop.carried = [builder.add(from_a, e.index(2 * TILE_K)), builder.add(from_b, b_step)]
    for (tile, _, _), place in zip(sums, places, strict=True):
        tiles.store(tile, place, c_row)


@compiled
def amx_panel_matmul(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
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
    """Multiply all `rows` with one panel of 1 to 4 vectors; arguments as for `amx_microkernel`.

    Tiles are configured to `height` rows before and after: 16, or always `rows` if these are fewer. A configuration
    takes as long as some products.
    """
    pairs, tail = rows // (2 * TILE_ROWS), rows % TILE_ROWS
    depth = AMX_K_BLOCK if chunks <= 2 * AMX_K_BLOCK else chunks
    for block in range(0, chunks if pairs > 0 else 0, depth):
        some = min(depth, chunks - block)
        for first in range(0, cols, 2):
            here = b + first * SPLIT_PARTS * TILE_BYTES + block * b_step
            for k in range(pairs):
                row = 2 * TILE_ROWS * k
                after = here
                if k == pairs - 1:
                    after = here + 2 * SPLIT_PARTS * TILE_BYTES
                    if first + 2 >= cols:
                        after = b + (block + depth) * b_step if block + depth < chunks else following
                amx_microkernel(
                    2,
                    min(2, cols - first),
                    a + row * a_row + block * 2 * TILE_K,
                    a_row,
                    a_part,
                    here,
                    b_step,
                    c + row * c_row + first * VECTOR_BYTES,
                    c_row,
                    some,
                    fresh and block == 0,
                    after,
                )
    for row in range(2 * TILE_ROWS * pairs, rows, TILE_ROWS):
        if rows - row == tail and tail != height:
            configure_tiles(tail)
        amx_microkernel(
            1, cols, a + row * a_row, a_row, a_part, b, b_step, c + row * c_row, c_row, chunks, fresh, following
        )
    if tail > 0 and tail != height:
        configure_tiles(height)
