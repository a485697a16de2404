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
from typing import Any, Final, NamedTuple

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.codegen.emitter import INDEX, POINTER, Emitter
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.operands import call_microkernel, unpack
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


class AmxTiles(NamedTuple):
    """One call of the microkernel: `high` tiles of rows times `cols` vectors of columns. All strides are in bytes.

    Attributes
    ----------
    high, cols
        1 or 2 tiles of rows; 1 to 4 vectors of columns with one tile, 1 or 2 with two.
    a, a_row, a_part
        Address of the left operand's parts, and strides of its rows and parts.
    b, b_step
        Address of the right operand's parts, and the stride of `TILE_K` values of k.
    c, c_row
        Address of the result in float32, and its stride of rows.
    chunks
        K in units of `TILE_K`.
    fresh
        Whether to overwrite the result; else the product is added.
    following
        Address of the right operand that is read next; it is prefetched.
    """

    high: Any
    cols: Any
    a: Any
    a_row: Any
    a_part: Any
    b: Any
    b_step: Any
    c: Any
    c_row: Any
    chunks: Any
    fresh: Any
    following: Any


@plain_intrinsic
def amx_microkernel(context: Any, call: Any) -> Any:
    """Compute ``c = a b``, or ``c += a b`` unless `fresh`, as `AmxTiles` says."""

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        if AMX_COMPILED:
            call_microkernel(builder, "amx_microkernel", _emit_microkernel, unpack(builder, signature.args[0], args[0]))
        return target.get_dummy_value()

    return types.void(call), emit


def _emit_microkernel(builder: ir.IRBuilder, *arguments: ir.Value) -> None:
    """Emit the code of `amx_microkernel` for the members of `AmxTiles`."""
    call, e = AmxTiles(*arguments), Emitter(builder, "float32", TILE_ROWS)
    done = builder.append_basic_block("tiled")
    cases = builder.switch(builder.add(builder.mul(call.high, e.index(8)), call.cols), done)
    for height, width in ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)):
        block = builder.append_basic_block(f"amx{height}x{width}")
        cases.add_case(e.index(8 * height + width), block)
        builder.position_at_end(block)
        _emit_tiles(e, height, width, call)
        builder.branch(done)
    builder.position_at_end(done)


def _emit_tiles(e: Emitter, high: int, cols: int, call: AmxTiles) -> None:
    """Emit the microkernel for one number of tiles: load or clear the sums, loop over K, store the sums."""
    builder, tiles = e.builder, TileEmitter(e)
    sums = [(r * cols + j, r, j) for r in range(high) for j in range(cols)]
    below_c = builder.mul(call.c_row, e.index(TILE_ROWS))
    places = [e.address(call.c, *([below_c] if r else []), e.index(j * VECTOR_BYTES)) for _, r, j in sums]
    with builder.if_else(call.fresh) as (empty, started):
        with empty:
            for tile, _, _ in sums:
                tiles.zero(tile)
        with started:
            for (tile, _, _), place in zip(sums, places, strict=True):
                tiles.load(tile, place, call.c_row)
    with e.loop(e.index(0), call.chunks, [call.a, call.b]) as loop:
        from_a, from_b = loop.values
        is_last = builder.icmp_signed("==", builder.add(loop.i, e.index(1)), call.chunks)
        next_b = builder.select(is_last, call.following, builder.add(from_b, call.b_step))
        _emit_products(tiles, high, cols, call._replace(a=from_a, b=from_b, following=next_b))
        loop.carried = [builder.add(from_a, e.index(2 * TILE_K)), builder.add(from_b, call.b_step)]
    for (tile, _, _), place in zip(sums, places, strict=True):
        tiles.store(tile, place, call.c_row)


def _emit_products(tiles: TileEmitter, high: int, cols: int, call: AmxTiles) -> None:
    """Emit all products of `TILE_K` values of k.

    With one row of tiles, tiles 4 to 6 hold all parts of the left and 7 one part of the right. With two, 4 and 5 hold
    one part of the left, 6 and 7 one of the right. Between two products for the same tile there are three others, since
    a result takes as long.
    """
    e, builder = tiles.e, tiles.e.builder
    parts = [builder.mul(call.a_part, e.index(part)) for part in range(SPLIT_PARTS)]
    below = builder.mul(call.a_row, e.index(TILE_ROWS))

    def load_b(tile: int, j: int, part: int) -> None:
        tiles.load(tile, e.address(call.b, e.index((j * SPLIT_PARTS + part) * TILE_BYTES)), e.index(64))

    for part in range(SPLIT_PARTS if high == 1 else 0):
        tiles.load(4 + part, e.address(call.a, parts[part]), call.a_row)
    before: tuple[int, int] = (-1, -1)
    lines = range(0, cols * SPLIT_PARTS * TILE_BYTES, 64)
    for turn, pair in enumerate(_PART_PRODUCTS):
        for line in lines[turn :: len(_PART_PRODUCTS)]:  # of the right operand at the next values of k
            e.prefetch(e.address(call.following, e.index(line)))
        for r in range(high if high == 2 and pair[0] != before[0] else 0):
            tiles.load(4 + r, e.address(call.a, parts[pair[0]], *([below] if r else [])), call.a_row)
        for j in range(cols if high == 2 and pair[1] != before[1] else 0):
            load_b(6 + j, j, pair[1])
        before = pair
        for r in range(high):
            for j in range(cols):
                if high == 1:
                    load_b(7, j, pair[1])
                tiles.multiply(r * cols + j, 4 + (r if high == 2 else pair[0]), 6 + j if high == 2 else 7)


@compiled
def split_bytes(cols: int) -> int:
    """Return the bytes of `TILE_K` rows of a split right operand of `cols` vectors."""
    return cols * SPLIT_PARTS * TILE_BYTES


@compiled
def split_chunks(k_size: int) -> int:
    """Return K in units of `TILE_K`, rounded up."""
    return (k_size + TILE_K - 1) // TILE_K


@compiled
def amx_panel_matmul(left: Any, a: int, panel: Any, sums: Any, rows: int) -> None:
    """Multiply `rows` rows with one panel, all of them split.

    The first row is at the address `a`, and its sums are the first row of `sums`. Tiles are configured to
    `SplitRows.height` rows before and after. A configuration takes as long as some products, so it changes only for the
    last rows.
    """
    pairs, tail, cols = rows // (2 * TILE_ROWS), rows % TILE_ROWS, panel.exact.cols
    chunks, step = split_chunks(left.exact.runs * left.exact.size), split_bytes(cols)
    depth = AMX_K_BLOCK if chunks <= 2 * AMX_K_BLOCK else chunks
    for block in range(0, chunks if pairs > 0 else 0, depth):
        some, fresh = min(depth, chunks - block), sums.fresh and block == 0
        for col in range(0, cols, 2):
            b = panel.address + split_bytes(col) + block * step
            for k in range(pairs):
                row, after = 2 * TILE_ROWS * k, b
                if k == pairs - 1:
                    after = b + split_bytes(2)
                    if col + 2 >= cols:
                        after = panel.address + (block + depth) * step if block + depth < chunks else panel.following
                from_a, c = a + row * left.row + block * 2 * TILE_K, sums.address + row * sums.row + col * VECTOR_BYTES
                wide = min(2, cols - col)
                amx_microkernel(
                    AmxTiles(2, wide, from_a, left.row, left.part, b, step, c, sums.row, some, fresh, after)
                )
    for row in range(2 * TILE_ROWS * pairs, rows, TILE_ROWS):
        if rows - row == tail and tail != left.height:
            configure_tiles(tail)
        from_a, b, c, after = a + row * left.row, panel.address, sums.address + row * sums.row, panel.following
        amx_microkernel(AmxTiles(1, cols, from_a, left.row, left.part, b, step, c, sums.row, chunks, sums.fresh, after))
    if tail > 0 and tail != left.height:
        configure_tiles(left.height)
