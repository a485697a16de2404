"""Checks at large sizes: every switch at several vectors and tiles, and each axis beyond the usual thresholds.

A case runs every call that the backend declares: forward without a tape, into a new array and into `out`, forward with
a tape and backward, and jvp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lstmcore_conformance.cases.case import Array, Case
from lstmcore_conformance.cases.large_sizes import (
    LENGTHS,
    LONGEST,
    MASKS,
    ROWS,
    STEPS,
    WIDTHS,
    Extent,
    extent_cases,
    stacked_cases,
    switch_cases,
)
from lstmcore_conformance.checks.contract import results
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, compare
from lstmcore_conformance.suite.check import MakeCases, Profile, Scope, check


def _of(extents: Mapping[str, Extent]) -> MakeCases:
    """Return the function that makes the cases of a table."""

    def cases(scope: Scope) -> Iterator[Case]:
        for precision in scope.precisions:
            yield from extent_cases(extents, scope.declared, precision)

    return cases


def _each_switch(scope: Scope) -> Iterator[Case]:
    for precision in scope.precisions:
        yield from switch_cases(scope.declared, precision)


def _stacked(scope: Scope) -> Iterator[Case]:
    for precision in scope.precisions:
        yield from stacked_cases(scope.declared, precision)


def _all_calls(tested: BackendUnderTest, case: Case) -> Measure:
    expected, worst = budgets.everything(case), Measure(0.0)
    for got in _results_of_calls(tested, case, expected["y"].value.shape):
        worst = max(worst, compare(got, {name: expected[name] for name in got}), key=lambda each: each.share)
    return worst


def _results_of_calls(tested: BackendUnderTest, case: Case, shape: tuple[int, ...]) -> Iterator[dict[str, Array]]:
    """Yield the results of forward into a new array, of forward into `out` of that shape, and of all other calls."""
    data = tested.device(case.data)
    out = tested.backend.to_device(np.full(shape, np.nan, case.data.x.dtype))
    yield tested.outputs(tested.call(case, data))
    yield tested.outputs(tested.call(case, data, out=out))
    yield results(tested, case, data)


_Table = tuple[str, str, int, MakeCases, tuple[str, ...], Profile]
_TABLE: tuple[_Table, ...] = (
    ("each_switch", "each switch at 37 rows and 40, 64 and 129 units", 3, _each_switch, (), "quick"),
    ("widths", "up to 1,100 units and 1,025 inputs", 9, _of(WIDTHS), (), "quick"),
    ("batches", "34 to 70,000 rows", 9, _of(ROWS), (), "quick"),
    ("sequences", "129 and 257 steps", 9, _of(STEPS), (), "quick"),
    ("longest", "up to 1,025 steps", 9, _of(LONGEST), (), "full"),
    ("stacks", "stacks of many rows, units and steps", 6, _stacked, (), "quick"),
    ("ends", "many rows and steps with lengths", 4, _of(LENGTHS), ("lengths",), "quick"),
    ("random_masks", "many rows, units and steps with masks", 5, _of(MASKS), ("masks",), "quick"),
)
for _name, _what, _section, _cases, _needs, _profile in _TABLE:
    check(
        f"large.{_name}",
        f"outputs, gradients and tangents are right for {_what}",
        section=_section,
        cases=_cases,
        needs=_needs,
        profile=_profile,
    )(_all_calls)
