"""The matrix product of the loops over time: one signature, whose code follows from the types of the operands.

`Rows` and `Columns` are multiplied in vectors. They are packed bfloat16 pairs if their numbers are `bf16.PAIR`.
`SplitRows` are multiplied on AMX, `StoredRows` with weights in fewer bytes.
Numba selects the code while it compiles, so a call has no branch for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lstmcore_numba.codegen.numba_compiler import chosen_by_type, compiled
from lstmcore_numba.gemm.amx import TILE_ROWS, amx_panel_matmul, split_bytes, split_chunks
from lstmcore_numba.gemm.operands import Panel, RowRange, Rows, SplitPanel, SplitRows, Sums
from lstmcore_numba.gemm.stored_operands import StoredRows, multiply_stored
from lstmcore_numba.gemm.tile_shapes import PANEL_VECTORS
from lstmcore_numba.gemm.vector import VECTOR_BYTES, vector_panel_matmul


class Panels(NamedTuple):
    """A right operand of several panels: the address of the first one, and the vectors of all."""

    address: int
    vectors: int


class SplitPanels(NamedTuple):
    """The same on AMX: the weights in float32, and the address of their parts."""

    exact: Panels
    address: int
    vectors: int


@chosen_by_type
def multiply_panel(left: Any, panel: Any, sums: Any, rows: Any) -> Any:
    """Multiply rows with one panel.

    Parameters
    ----------
    left
        `Rows`, `Columns`, `SplitRows` or `StoredRows`.
    panel
        `Panel`; `SplitPanel` for `SplitRows`, `StoredPanel` for `StoredRows`.
    sums
        `Sums`.
    rows
        `RowRange`.
    """
    if left.instance_class is StoredRows:
        return lambda left, panel, sums, rows: multiply_stored(left, panel, sums, rows)
    return _multiply_split if left.instance_class is SplitRows else _multiply_vectors


def _multiply_vectors(left: Any, panel: Any, sums: Any, rows: Any) -> None:
    vector_panel_matmul(left, panel, sums, rows)


def _multiply_split(left: Any, panel: Any, sums: Any, rows: Any) -> None:
    whole_tiles = left.gap == 0 and sums.gap == 0 and left.height == TILE_ROWS  # groups may share a tile
    at_once = rows.total if whole_tiles and not left.non_finite else rows.group
    for first in range(0, rows.total, max(at_once, 1)):
        group = first // rows.group
        c = Sums(sums.address + first * sums.row + group * sums.gap, sums.row, 0, sums.fresh)
        following = panel.following if first + at_once == rows.total else panel.address
        here = SplitPanel(panel.exact, panel.address, following)
        if left.non_finite:
            _multiply_mixed(left, here, c, first, at_once, group)
        else:
            amx_panel_matmul(left, left.address + first * left.row + group * left.gap, here, c, at_once)


@compiled
def _multiply_mixed(left: Any, panel: Any, sums: Any, first: int, count: int, group: int) -> None:
    """Multiply `count` rows from row `first` on: split, or in float32 if a row is not finite."""
    exact, flagged = left.exact, first + group * (left.gap // left.row)
    begin = 0
    for row in range(count + 1):
        non_finite = False
        for part in range(left.flags.shape[0] if row < count else 0):
            non_finite = non_finite or left.flags[part, flagged + row] != 0
        if row < count and not non_finite:
            continue
        if row > begin:
            c = Sums(sums.address + begin * sums.row, sums.row, 0, sums.fresh)
            amx_panel_matmul(left, left.address + (first + begin) * left.row + group * left.gap, panel, c, row - begin)
        if non_finite:
            address = exact.address + (first + row) * exact.row + group * exact.gap
            one = Rows(exact.number, address, exact.row, exact.k, exact.runs, exact.run, exact.size, 0)
            c = Sums(sums.address + row * sums.row, sums.row, 0, sums.fresh)
            vector_panel_matmul(one, panel.exact, c, RowRange(1, 1))
        begin = row + 1


@chosen_by_type
def take_panel(panels: Any, k_size: int, first: int, cols: int, following: int) -> Any:
    """Return the panel of `cols` vectors from vector `first` on; the panel from `following` on comes after it."""
    return _take_split_panel if panels.instance_class is SplitPanels else _take_vector_panel


def _take_vector_panel(panels: Any, k_size: int, first: int, cols: int, following: int) -> Any:
    return Panel(panels.address + first * k_size * VECTOR_BYTES, cols)


def _take_split_panel(panels: Any, k_size: int, first: int, cols: int, following: int) -> Any:
    exact = Panel(panels.exact.address + first * k_size * VECTOR_BYTES, cols)
    step = split_chunks(k_size) * split_bytes(1)
    return SplitPanel(exact, panels.address + first * step, panels.address + following * step)


@compiled
def multiply(left: Any, panels: Any, k_size: int, sums: Any, rows: Any, last_panel_first: bool) -> None:
    """Multiply rows with all vectors of `panels`, whose K is `k_size`.

    With `last_panel_first` the panels come in reverse order. A caller that alternates the order starts with weights
    that are still in the cache.
    """
    count = (panels.vectors + PANEL_VECTORS - 1) // PANEL_VECTORS
    for index in range(count):
        first = PANEL_VECTORS * (count - 1 - index if last_panel_first else index)
        following = max(0, first - PANEL_VECTORS if last_panel_first else first + PANEL_VECTORS)
        panel = take_panel(panels, k_size, first, min(PANEL_VECTORS, panels.vectors - first), following)
        multiply_panel(left, panel, Sums(sums.address + first * VECTOR_BYTES, sums.row, sums.gap, sums.fresh), rows)


@compiled
def dense_rows(like: Any, source: Any, k_size: int) -> Any:
    """Return the rows of a `Plane` as a left operand of `k_size` numbers in the dtype of the array `like`."""
    return Rows(like.dtype.type(0), source.address, source.row, like.itemsize, 1, 0, k_size, 0)


@compiled
def all_rows(count: int) -> Any:
    """Return the range of `count` rows that are one group."""
    return RowRange(count, max(count, 1))
