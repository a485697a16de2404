"""Checks of infinite inputs and bounds: what does not depend on an infinite input stays finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from lstmcore.backend import Tangents
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.checks.errors import error_cases, judge
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Expectation, Expected, Measure
from lstmcore_conformance.oracle.composition import backward_pass, forward_pass, jvp_pass
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, compare
from lstmcore_conformance.suite.check import Scope, check

#: Models whose state stays finite where x is infinite, and those whose cell becomes infinite.
BOUNDED: Final = ("plain", "peephole", "proj_size", "input_from_forget", "recurrence_cell")
UNBOUNDED: Final = ("cell_activation=relu", "cell_activation=identity")
#: The row and the step of the infinite x; that row ends after this step.
ROW: Final = 1
STEP: Final = 2
LENGTHS: Final = (4, 3, 0, 4)


def ended_cases(scope: Scope) -> Iterator[Case]:
    """Yield models with a row whose last step gets an infinite x, and with padding after it."""
    for precision in scope.precisions:
        for name in (*BOUNDED, *UNBOUNDED):
            model = config_of(SWITCHES[name])
            yield Case(name=f"infinite,{name}", model=model, precision=precision, batch=4, lengths=LENGTHS)


def still_cases(scope: Scope) -> Iterator[Case]:
    """Yield models with a tangent of the state alone, and of x alone."""
    for precision in scope.precisions:
        for name in BOUNDED:
            for kind in ("x", "state"):
                yield Case(name=f"still,{kind},{name}", model=config_of(SWITCHES[name]), precision=precision)


def infinite(case: Case) -> Data:
    """Return the data with an infinite number in x."""
    data = case.data.map(np.array)
    data.x[STEP, ROW, 1] = np.inf
    return data


def valued(budget: Expectation, values: Mapping[str, Array]) -> dict[str, Expected]:
    """Return `values` as what is expected, with the budgets of the same arrays of finite data."""
    return {name: replace(want, value=values[name]) for name, want in budget.items()}


@check(
    "lengths.infinite",
    "an infinite x in the last step of a row makes nothing infinite but what is multiplied by it, whatever follows",
    section=4,
    cases=ended_cases,
    needs=("lengths", "backward"),
)
def ended(tested: BackendUnderTest, case: Case) -> Measure:
    data = infinite(case)
    done = forward_pass(case.model, data, "float64")
    right = backward_pass(case.model, data, done, "float64")
    expected = valued(budgets.gradients(case), right)
    got = tested.gradients(case, data)
    del expected["d_weight_x"]  # the gradient of z in that step times infinity: a backend's own rounding of it counts
    return compare(got, expected)


@check(
    "jvp.still",
    "a parameter without a tangent does not move: it adds no NaN, also where x is infinite",
    section=7,
    cases=still_cases,
    needs=("jvp",),
)
def still(tested: BackendUnderTest, case: Case) -> Measure:
    data, kind = infinite(case), case.name.split(",")[1]
    data = replace(data, tangents=Tangents(**{kind: getattr(data.tangents, kind)}))
    right = jvp_pass(case.model, data, forward_pass(case.model, data, "float64"), "float64")
    return compare(tested.tangents(case, data), valued(budgets.tangents(case), right))


def bound_cases(scope: Scope) -> Iterator[Case]:
    """Yield one case for each bound that is declared, in the precisions whose numbers end before 1e39."""
    for case in error_cases(scope):
        for name in ("gate_clip", "cell_clip"):
            if name in scope.declared.features and case.policy.compute == "float32":
                yield replace(case, name=name)


@check(
    "errors.numbers",
    "a bound that overflows the compute dtype is a ValueError that names it",
    section=9,
    cases=bound_cases,
)
def overflowing(tested: BackendUnderTest, case: Case) -> None:
    config = config_of({case.name: 1e39})
    judge(iter([("1e39", partial(tested.backend.compile, config, case.precision), ValueError, case.name)]))
