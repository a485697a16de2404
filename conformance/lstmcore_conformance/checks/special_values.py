"""Checks of values that a kernel may take for something else: zeros, a single one in a row, an infinite state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.checks.contract import expectation, results
from lstmcore_conformance.checks.infinite_values import valued
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.oracle.composition import backward_pass, forward_pass, jvp_pass
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, compare
from lstmcore_conformance.suite.check import Scope, check

#: The row and the unit of the infinite state.
ROW: Final = 2
UNIT: Final = 1


def sparse_cases(scope: Scope) -> Iterator[Case]:
    """Yield models with zeros in x, in h or in c."""
    for precision in scope.precisions:
        for name in ("plain", "peephole", "recurrence_cell", "proj_size"):
            for where in ("x", "h", "c"):
                model = config_of(SWITCHES[name])
                yield Case(name=f"sparse;{where};{name}", model=model, precision=precision, batch=4)


def _sparse(case: Case) -> Data:
    """Return the data with a state whose h or c is 0, or with an x that has rows of zeros and with one other number."""
    data, where = case.data.map(np.array), case.name.split(";")[1]
    if data.state is None:
        raise TypeError(f"case {case.id}: expected a state")
    if where != "x":
        getattr(data.state, where)[...] = 0
        return data
    data.x[:, :2] = 0  # all steps of row 0
    data.x[1:, 3] = 0  # the last steps of row 3
    for t in range(case.steps):
        data.x[t, 1, t % data.x.shape[2]] = 0.75 if t % 2 else 1
    return data


@check(
    "values.sparse",
    "rows of x that are zero or have one other number, and a state whose h or c is zero, are numbers like others",
    section=2,
    cases=sparse_cases,
)
def sparse(tested: BackendUnderTest, case: Case) -> Measure:
    data = _sparse(case)
    done = forward_pass(case.model, data, "float64")
    backward, moved = (function(case.model, data, done, "float64") for function in (backward_pass, jvp_pass))
    right = done.outputs | backward | moved
    return compare(results(tested, case, tested.device(data)), valued(expectation(tested, case), right))


def infinite_cases(scope: Scope) -> Iterator[Case]:
    """Yield models that get an infinite h or c."""
    for precision in scope.precisions:
        for name in ("plain", "reverse", "zoneout_cell", "recurrence_cell", "peephole"):
            for where in ("h", "c"):
                model = config_of(SWITCHES[name])
                yield Case(name=f"infinite;{where};{name}", model=model, precision=precision, batch=4)


@check(
    "values.infinite_state",
    "after an infinite state the numbers of its row are those of IEEE 754 or NaN, and other rows do not change",
    section=3,
    cases=infinite_cases,
)
def infinite_state(tested: BackendUnderTest, case: Case) -> Measure:
    data = case.data.map(np.array)
    if data.state is None:
        raise TypeError(f"case {case.id}: expected a state")
    getattr(data.state, case.name.split(";")[1])[ROW, UNIT] = np.inf
    right = forward_pass(case.model, data, "float64").outputs
    got = tested.forward(case, data)
    return compare(got, valued(budgets.forward(case), {name: _either(got[name], right[name]) for name in right}))


def _either(got: Array, right: Array) -> Array:
    """Return the right numbers, or those of the backend where one of both is NaN in the row of the infinite number."""
    mine = (np.arange(right.shape[-2]) == ROW)[:, None]
    return np.where(mine & (np.isnan(got) | np.isnan(right)), got, right)
