"""The GEMMs of a pass over time with operands in the bf16x3 split."""

from __future__ import annotations

from typing import Any, NamedTuple

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.amx import SPLIT_PARTS, TILE_BYTES, TILE_K, TILE_ROWS, amx_panel_matmul
from lstmcore_numba.gemm.bf16x3 import split_row_range
from lstmcore_numba.gemm.vector import PANEL_VECTORS, VECTOR_BYTES, grouped_panel_matmul


class SplitOperands(NamedTuple):
    """Split operands of a forward pass, for GEMMs on AMX. A row that is not finite is multiplied in float32.

    Attributes
    ----------
    input, recurrent
        Packed weights, split.
    x
        (3, rows, K) the input of one chunk of steps.
    state
        (2, 3, N, K) the recurrent input of a step, and of the next one.
    wild_x, wild
        (rows,) and (2, threads, N) bytes: 1 if a row, or the part of it that a thread split, is not finite.
    any_wild
        (3, threads) whether any row that a thread split is not finite: of `state` (2), and of `x`.
    """

    input: Any
    recurrent: Any
    x: Any
    state: Any
    non_finite_x: Any
    non_finite: Any
    any_non_finite: Any


class BackwardSplitOperands(NamedTuple):
    """Split operands of a backward pass: of the GEMM of dz with the recurrent weights.

    Attributes
    ----------
    recurrent
        Packed weights, split.
    dz
        (2, 3, N, K) dz of a step, and of the next one.
    wild, any_wild
        (2, threads, N) and (2, threads), as in `SplitOperands`.
    """

    recurrent: Any
    dz: Any
    non_finite: Any
    any_non_finite: Any


@compiled
def has_non_finite(flags: Any, which: int, first: int, last: int) -> bool:
    """Return whether any of the threads `first` to `last` split a row that is not finite."""
    result = False
    for part in range(first, last):
        result = result or flags[which, part] != 0
    return result


@compiled
def mixed_panel_matmul(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
    zero: Any,
    cols: int,
    split: int,
    split_row: int,
    split_part: int,
    split_weight: int,
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
    """Multiply rows `first` to `last` with one panel: split, or in float32 if a row is not finite.

    `split` and `source` are the addresses of row 0, split and in float32. `c` is that of the result of row `first`. A
    row of `source` is `runs` runs of `size` values. `flags` (threads, rows) marks the non-finite rows. `height` is that
    of `amx_panel_matmul`.
    """
    chunks = (runs * size + TILE_K - 1) // TILE_K
    begin = first
    for row in range(first, last + 1):
        non_finite = False
        for part in range(flags.shape[0] if row < last else 0):
            non_finite = non_finite or flags[part, row] != 0
        if row < last and not non_finite:
            continue
        if row > begin:
            here, there = split + begin * split_row, c + (begin - first) * c_row
            step = cols * SPLIT_PARTS * TILE_BYTES
            amx_panel_matmul(
                cols,
                here,
                split_row,
                split_part,
                split_weight,
                step,
                there,
                c_row,
                chunks,
                row - begin,
                fresh,
                split_weight,
                height,
            )
        if non_finite:
            here, there = source + row * pitch, c + (row - first) * c_row
            grouped_panel_matmul(
                zero,
                cols,
                here,
                pitch,
                4,
                run,
                0,
                weight,
                cols * VECTOR_BYTES,
                there,
                c_row,
                0,
                runs,
                size,
                1,
                1,
                fresh,
            )
        begin = row + 1


@compiled
def split_inputs(  # noqa: PLR0913  (next issue: groups of arguments)
    part: int, parts: int, x: Any, split: Any, begin: int, steps: int, first: int, last: int
) -> int:
    """Split rows `first` to `last` of `steps` steps of `x` from `begin` on; with `parts`, a part of all their rows."""
    batch, k_size = x.shape[1], x.shape[2]
    pitch, rows, flags = k_size * 4, steps * batch, split.non_finite_x.ctypes.data
    source, target = x.ctypes.data + begin * batch * pitch, split.x.ctypes.data
    part_bytes, row = split.x.strides[:2]
    if parts > 1 or last - first == batch:
        from_row, to_row = rows * part // parts, rows * (part + 1) // parts
        return split_row_range(source, pitch, target, row, part_bytes, from_row, to_row, 1, 0, k_size, flags)
    non_finite = 0
    for k in range(0, rows, batch):
        non_finite |= split_row_range(source, pitch, target, row, part_bytes, k + first, k + last, 1, 0, k_size, flags)
    return non_finite


@compiled
def split_input_projection(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
    x: Any,
    weight: Any,
    split: Any,
    non_finite: bool,
    products: Any,
    begin: int,
    place: int,
    steps: int,
    first: int,
    last: int,
    block_first: int,
    block_last: int,
) -> None:
    """Compute ``W x`` of `steps` steps from `begin` on, into `products` (steps, B, N, G, lanes) from `place` on."""
    batch, k_size, height = x.shape[1], x.shape[2], min(TILE_ROWS, last - first)
    blocks, cols, lanes = products.shape[1], products.shape[3], products.shape[4]
    pitch, row_z, zero = k_size * 4, cols * lanes * 4, x.dtype.type(0)
    chunks, step = (k_size + TILE_K - 1) // TILE_K, cols * SPLIT_PARTS * TILE_BYTES
    source, target = x.ctypes.data + begin * batch * pitch, split.x.ctypes.data
    part_bytes, row = split.x.strides[:2]
    to, packed, packed_parts = products.ctypes.data, weight.ctypes.data, split.input.ctypes.data
    for block in range(block_first, block_last):
        split_weight, exact_weight = packed_parts + block * chunks * step, packed + block * k_size * cols * VECTOR_BYTES
        for k in range(steps):
            from_row, to_row = k * batch + first, k * batch + last
            c = to + (((place + k) * blocks + block) * batch + first) * row_z
            if non_finite:
                mixed_panel_matmul(
                    zero,
                    cols,
                    target,
                    row,
                    part_bytes,
                    split_weight,
                    source,
                    pitch,
                    exact_weight,
                    c,
                    row_z,
                    1,
                    0,
                    k_size,
                    from_row,
                    to_row,
                    True,
                    split.non_finite_x.reshape(1, -1),
                    height,
                )
            else:
                amx_panel_matmul(
                    cols,
                    target + from_row * row,
                    row,
                    part_bytes,
                    split_weight,
                    step,
                    c,
                    row_z,
                    chunks,
                    to_row - from_row,
                    True,
                    split_weight if k < steps - 1 else split_weight + chunks * step,
                    height,
                )


@compiled
def split_matmul(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
    zero: Any,
    vectors: int,
    split: int,
    split_row: int,
    split_part: int,
    split_weight: int,
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
    last_panel_first: bool,
    non_finite: bool,
    flags: Any,
    height: int,
) -> None:
    """Multiply rows `first` to `last` with `vectors` columns of vectors; arguments as for `mixed_panel_matmul`.

    `non_finite` says if any row is not finite. With `last_panel_first` the panels come in reverse order.
    """
    k_size = runs * size
    chunks = (k_size + TILE_K - 1) // TILE_K
    panels = (vectors + PANEL_VECTORS - 1) // PANEL_VECTORS
    for index in range(panels):
        place = PANEL_VECTORS * (panels - 1 - index if last_panel_first else index)
        cols = min(PANEL_VECTORS, vectors - place)
        parts, there = split_weight + place * chunks * SPLIT_PARTS * TILE_BYTES, c + place * VECTOR_BYTES
        if non_finite:
            exact = weight + place * k_size * VECTOR_BYTES
            mixed_panel_matmul(
                zero,
                cols,
                split,
                split_row,
                split_part,
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
            here = split + first * split_row
            step = cols * SPLIT_PARTS * TILE_BYTES
            after = (
                split_weight
                + max(0, place - PANEL_VECTORS if last_panel_first else place + PANEL_VECTORS)
                * chunks
                * SPLIT_PARTS
                * TILE_BYTES
            )
            amx_panel_matmul(
                cols, here, split_row, split_part, parts, step, there, c_row, chunks, last - first, fresh, after, height
            )
