"""Where the errors of an array sit: on which steps, rows and units, and how large they are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from lstmcore_conformance.cases.call_data import Array
from lstmcore_conformance.cases.case_spec import CaseSpec
from lstmcore_conformance.oracle.budgets import Expected, errors
from lstmcore_conformance.suite.backend_under_test import Failure

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
    start
        The first step that is wrong, and where, as text; empty if no array of the call has steps. Later steps read the
        state that was wrong, so that the error is soon everywhere.
    """

    array: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    above: int
    spans: tuple[tuple[int, int, int], ...]
    cells: tuple[tuple[float, ...], ...]
    start: str = ""

    @property
    def size(self) -> int:
        """The number of entries of the array."""
        return int(np.prod(self.shape))

    def __str__(self) -> str:
        places = _format_spans(self.axes, self.shape, self.spans)
        start = f"; {self.start}" if self.start else ""
        return f"{self.array}: {self.above} of {self.size} values are above the budget: {places}{start}"

    def to_dict(self) -> dict[str, Any]:
        """Return the form for JSON; a share that is not finite is a text."""
        return {
            "array": self.array,
            "axes": list(self.axes),
            "shape": list(self.shape),
            "above": self.above,
            "spans": [list(span) for span in self.spans],
            "cells": [[value if np.isfinite(value) else str(value) for value in row] for row in self.cells],
            "start": self.start,
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
            values.get("start", ""),
        )


def _format_spans(axes: Sequence[str], shape: Sequence[int], spans: Iterable[tuple[int, int, int]]) -> str:
    """Return the span of each axis in words."""
    return ", ".join(_format_span(axis, size, *span) for axis, size, span in zip(axes, shape, spans, strict=True))


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
    return ErrorMap(name, axes_of(name, share.ndim), share.shape, int(above.sum()), _spans(above), _cells(share))


def _spans(above: Array) -> tuple[tuple[int, int, int], ...]:
    """Return for each axis the first and the last index with an entry, and the number of indices with one."""
    spans = []
    for axis in range(above.ndim):
        hit = np.flatnonzero(above.any(axis=tuple(other for other in range(above.ndim) if other != axis)))
        spans.append((int(hit[0]), int(hit[-1]), len(hit)))
    return tuple(spans)


def first_step(name: str, got: Array, expected: Expected, *, last_first: bool) -> str:
    """Return where the first step that is wrong is so, as text; empty if no step is, or the array has none.

    Parameters
    ----------
    name, got, expected
        The array, as for `error_map`.
    last_first
        Whether the last step runs first.
    """
    axes = axes_of(name, got.ndim)
    if got.shape != np.shape(expected.value) or not axes or axes[0] != "step":
        return ""
    above = ~(shares(got, expected) <= 1)
    steps = np.flatnonzero(above.any(axis=(1, 2)))
    if not steps.size:
        return ""
    step = int(steps[-1] if last_first else steps[0])
    return f"{name} is wrong first at step {step}: {_format_spans(axes[1:], got.shape[1:], _spans(above[step]))}"


def locate(failure: Failure, case: CaseSpec) -> ErrorMap | None:
    """Return where the errors of the worst array sit and begin, if numbers were compared."""
    if failure.worst is None or failure.worst.array not in failure.arrays:
        return None
    found = error_map(failure.worst.array, *failure.arrays[failure.worst.array])
    both = case.stack is not None and case.stack.num_directions == 2
    steps = next((name for name in ("y", "ty", "dx") if name in failure.arrays), None)
    if found is None or steps is None or both:  # in both directions no step is the first
        return found
    start = first_step(steps, *failure.arrays[steps], last_first=case.configs[0].reverse != (steps == "dx"))
    return replace(found, start=start)


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
