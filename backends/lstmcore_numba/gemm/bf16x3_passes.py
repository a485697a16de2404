"""The products of a pass over time from operands that are cut into parts."""

from __future__ import annotations

from typing import Any, NamedTuple

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.amx import DEPTH, PARTS, TILE, TILE_BYTES, amx_panel
from lstmcore_numba.gemm.bf16x3 import cut_rows
from lstmcore_numba.gemm.vector import BYTES, PANEL, grouped_panel


class Cut(NamedTuple):
    """Operands in parts, for products on AMX.

    What is infinite or no number is *wild*: a row that has it is multiplied in float32.

    Attributes
    ----------
    input, recurrent
        Packed weights in parts.
    x
        (3, rows, K) the input of the steps whose products are made at once.
    state
        (2, 3, N, K) what the recurrent weights multiply at a step, and at the next one.
    wild_x, wild
        (rows,) and (2, threads, N) bytes: 1 where a row, or the part of it that a thread cut, is wild.
    any_wild
        (3, threads) whether any row is that a thread cut: of `state`, and of `x`.
    """

    input: Any
    recurrent: Any
    x: Any
    state: Any
    wild_x: Any
    wild: Any
    any_wild: Any


class CutBack(NamedTuple):
    """Operands in parts, of the product that takes gradients back through the recurrent weights.

    Attributes
    ----------
    recurrent
        Packed weights in parts.
    dz
        (2, 3, N, K) the gradient of a step's gates, and of the next one's.
    wild, any_wild
        (2, threads, N) and (2, threads), as in `Cut`.
    """

    recurrent: Any
    dz: Any
    wild: Any
    any_wild: Any


@compiled
def some_wild(flags: Any, which: int, first: int, last: int) -> bool:
    """Whether any of the threads `first` to `last` cut a row that is wild."""
    found = False
    for part in range(first, last):
        found = found or flags[which, part] != 0
    return found


@compiled
def mixed_panel(
    zero: Any,
    cols: int,
    cut: int,
    cut_row: int,
    cut_part: int,
    cut_weight: int,
    source: int,
    pitch: int,
    weight: int,
    c: int,
    c_row: int,
    runs: int,
    run: int,
    size: int,
    first: int,
    last: int,
    fresh: bool,
    flags: Any,
    height: int,
) -> None:
    """The product of rows `first` to `last` with one panel: from parts, and in float32 where a row is wild.

    `cut` and `source` are the addresses of row 0 in parts and in float32, `c` is that of the result of row `first`; a
    row of `source` is `runs` runs of `size` values. `flags` (threads, rows) tells which rows are wild, `height` is
    that of `amx_panel`.
    """
    chunks = (runs * size + DEPTH - 1) // DEPTH
    begin = first
    for row in range(first, last + 1):
        wild = False
        for part in range(flags.shape[0] if row < last else 0):
            wild = wild or flags[part, row] != 0
        if row < last and not wild:
            continue
        if row > begin:
            here, there = cut + begin * cut_row, c + (begin - first) * c_row
            step = cols * PARTS * TILE_BYTES
            amx_panel(
                cols,
                here,
                cut_row,
                cut_part,
                cut_weight,
                step,
                there,
                c_row,
                chunks,
                row - begin,
                fresh,
                cut_weight,
                height,
            )
        if wild:
            here, there = source + row * pitch, c + (row - first) * c_row
            grouped_panel(
                zero, cols, here, pitch, 4, run, 0, weight, cols * BYTES, there, c_row, 0, runs, size, 1, 1, fresh
            )
        begin = row + 1


@compiled
def cut_inputs(part: int, parts: int, x: Any, cut: Any, begin: int, steps: int, first: int, last: int) -> int:
    """Cut rows `first` to `last` of `steps` steps of `x` from `begin` on, or a share of all rows of them."""
    batch, inner = x.shape[1], x.shape[2]
    pitch, rows, flags = inner * 4, steps * batch, cut.wild_x.ctypes.data
    source, target = x.ctypes.data + begin * batch * pitch, cut.x.ctypes.data
    part_bytes, row = cut.x.strides[:2]
    if parts > 1 or last - first == batch:
        from_row, to_row = rows * part // parts, rows * (part + 1) // parts
        return cut_rows(source, pitch, target, row, part_bytes, from_row, to_row, 1, 0, inner, flags)
    wild = 0
    for k in range(0, rows, batch):
        wild |= cut_rows(source, pitch, target, row, part_bytes, k + first, k + last, 1, 0, inner, flags)
    return wild


@compiled
def cut_input_products(
    x: Any,
    weight: Any,
    cut: Any,
    wild: bool,
    products: Any,
    begin: int,
    place: int,
    steps: int,
    first: int,
    last: int,
    block_first: int,
    block_last: int,
) -> None:
    """``W x`` of `steps` steps from `begin` on, into `products` (room, B, N, G, lanes) from `place` on."""
    batch, inner, height = x.shape[1], x.shape[2], min(TILE, last - first)
    blocks, cols, lanes = products.shape[1], products.shape[3], products.shape[4]
    pitch, row_z, zero = inner * 4, cols * lanes * 4, x.dtype.type(0)
    chunks, step = (inner + DEPTH - 1) // DEPTH, cols * PARTS * TILE_BYTES
    source, target = x.ctypes.data + begin * batch * pitch, cut.x.ctypes.data
    part_bytes, row = cut.x.strides[:2]
    to, packed, packed_parts = products.ctypes.data, weight.ctypes.data, cut.input.ctypes.data
    for block in range(block_first, block_last):
        cut_weight, exact_weight = packed_parts + block * chunks * step, packed + block * inner * cols * BYTES
        for k in range(steps):
            from_row, to_row = k * batch + first, k * batch + last
            c = to + (((place + k) * blocks + block) * batch + first) * row_z
            if wild:
                mixed_panel(
                    zero,
                    cols,
                    target,
                    row,
                    part_bytes,
                    cut_weight,
                    source,
                    pitch,
                    exact_weight,
                    c,
                    row_z,
                    1,
                    0,
                    inner,
                    from_row,
                    to_row,
                    True,
                    cut.wild_x.reshape(1, -1),
                    height,
                )
            else:
                amx_panel(
                    cols,
                    target + from_row * row,
                    row,
                    part_bytes,
                    cut_weight,
                    step,
                    c,
                    row_z,
                    chunks,
                    to_row - from_row,
                    True,
                    cut_weight if k < steps - 1 else cut_weight + chunks * step,
                    height,
                )


@compiled
def cut_product(
    zero: Any,
    vectors: int,
    cut: int,
    cut_row: int,
    cut_part: int,
    cut_weight: int,
    source: int,
    pitch: int,
    weight: int,
    c: int,
    c_row: int,
    runs: int,
    run: int,
    size: int,
    first: int,
    last: int,
    fresh: bool,
    turned: bool,
    wild: bool,
    flags: Any,
    height: int,
) -> None:
    """The product of rows `first` to `last` with `vectors` columns of vectors; arguments are those of `mixed_panel`.

    `wild` tells whether any row is; `turned` begins with the last panel.
    """
    inner = runs * size
    chunks = (inner + DEPTH - 1) // DEPTH
    panels = (vectors + PANEL - 1) // PANEL
    for index in range(panels):
        place = PANEL * (panels - 1 - index if turned else index)
        cols = min(PANEL, vectors - place)
        parts, there = cut_weight + place * chunks * PARTS * TILE_BYTES, c + place * BYTES
        if wild:
            exact = weight + place * inner * BYTES
            mixed_panel(
                zero,
                cols,
                cut,
                cut_row,
                cut_part,
                parts,
                source,
                pitch,
                exact,
                there,
                c_row,
                runs,
                run,
                size,
                first,
                last,
                fresh,
                flags,
                height,
            )
        else:
            here = cut + first * cut_row
            step = cols * PARTS * TILE_BYTES
            after = cut_weight + max(0, place - PANEL if turned else place + PANEL) * chunks * PARTS * TILE_BYTES
            amx_panel(
                cols, here, cut_row, cut_part, parts, step, there, c_row, chunks, last - first, fresh, after, height
            )
