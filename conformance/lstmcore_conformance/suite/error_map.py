"""Where the errors of an array sit: on which steps, rows and units, and how large they are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lstmcore_conformance.cases.call_data import Array
from lstmcore_conformance.oracle.budgets import Expected, errors

#: Cells of a map along each of its two axes at most.
CELLS: Final = 48
#: Array -> the names of its axes; a state of a stack has an axis for layers and directions in front.
_AXES: Final = {
    "y": ("step", "row", "unit"),
    "ty": ("step", "row", "unit"),
    "dx": ("step", "row", "input"),
    "d_weight_x": ("gate row", "input"),
    "d_weight_h": ("gate row", "unit"),
    "d_weight_proj": ("output", "unit"),
    "d_bias": ("gate row",),
    "d_peephole": ("gate", "unit"),
}
_STATES: Final = ("h_n", "c_n", "dh0", "dc0", "th_n", "tc_n")


@dataclass(frozen=True, slots=True)
class ErrorMap:
    """The errors of one array that are above its budget, by axis.

    Attributes
    ----------
    array
        Its name.
    axes
        The name of each axis.
    shape
        Its shape.
    above
        How many entries are above the budget.
    spans
        For each axis the first and the last index with such an entry, and the number of indices with one.
    cells
        The largest share of the budget, by the first and the last axis, in at most `CELLS` groups of each.
    """

    array: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    above: int
    spans: tuple[tuple[int, int, int], ...]
    cells: tuple[tuple[float, ...], ...]

    @property
    def size(self) -> int:
        """The number of entries of the array."""
        return int(np.prod(self.shape))

    def __str__(self) -> str:
        places = (
            _format_span(axis, size, *span) for axis, size, span in zip(self.axes, self.shape, self.spans, strict=True)
        )
        return f"{self.array}: {self.above} of {self.size} values are above the budget: {', '.join(places)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the form for JSON; a share that is not finite is a text."""
        return {
            "array": self.array,
            "axes": list(self.axes),
            "shape": list(self.shape),
            "above": self.above,
            "spans": [list(span) for span in self.spans],
            "cells": [[value if np.isfinite(value) else str(value) for value in row] for row in self.cells],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ErrorMap:
        """Return the map of `to_dict`."""
        return cls(
            values["array"],
            tuple(values["axes"]),
            tuple(values["shape"]),
            values["above"],
            tuple((first, last, count) for first, last, count in values["spans"]),
            tuple(tuple(map(float, row)) for row in values["cells"]),
        )


def _format_span(axis: str, size: int, first: int, last: int, count: int) -> str:
    if count == size:
        return f"every {axis} ({size})"
    if first == last:
        return f"{axis} {first} of {size}"
    some = "" if count == last - first + 1 else f", {count} of them"
    return f"{axis}s {first} to {last} of {size}{some}"


def axes_of(name: str, dimensions: int) -> tuple[str, ...]:
    """Return the names of the axes of an output array."""
    if name in _STATES:
        return ("row", "unit") if dimensions == 2 else ("layer and direction", "row", "unit")[:dimensions]
    stem = next((stem for stem in _AXES if name == stem or name.startswith(f"{stem}_")), None)
    known = () if stem is None else _AXES[stem]
    return known if len(known) == dimensions else tuple(f"index of axis {axis}" for axis in range(dimensions))


def error_map(name: str, got: Array, expected: Expected) -> ErrorMap | None:
    """Return where `got` is above its budget; None if no entry is, or the shapes differ, or there is no axis."""
    want = np.asarray(expected.value, np.float64)
    if got.shape != want.shape or not want.ndim or not want.size:
        return None
    share = shares(got, expected)
    above = ~(share <= 1)
    if not above.any():
        return None
    spans = []
    for axis in range(above.ndim):
        hit = np.flatnonzero(above.any(axis=tuple(other for other in range(above.ndim) if other != axis)))
        spans.append((int(hit[0]), int(hit[-1]), len(hit)))
    return ErrorMap(name, axes_of(name, share.ndim), share.shape, int(above.sum()), tuple(spans), _cells(share))


def shares(got: Array, expected: Expected) -> Array:
    """Return the error of every entry as a share of the budget."""
    error = errors(got.astype(np.float64), np.asarray(expected.value, np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):  # a budget of 0
        return np.where(error == 0, 0.0, error / expected.budget)


def _cells(share: Array) -> tuple[tuple[float, ...], ...]:
    """Return the largest share for groups of the first and of the last axis; a vector is one row."""
    table = share.reshape(1, -1) if share.ndim == 1 else share.max(axis=tuple(range(1, share.ndim - 1)))
    for axis in (0, 1):
        starts = np.unique(np.linspace(0, table.shape[axis], min(CELLS, table.shape[axis]), endpoint=False).astype(int))
        table = np.maximum.reduceat(table, starts, axis=axis)
    return tuple(tuple(float(f"{value:.3g}") for value in row) for row in table)
