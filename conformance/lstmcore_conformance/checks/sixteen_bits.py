"""Checks of 16-bit storage: the cell, the gates and sums have at least float32, and h is rounded to the nearest.

The budgets of other checks cannot see this: in 16 bits they are as wide as the roundings of h. Here weights are 0, so
h is never read, and the rest has the precision of float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from lstmcore.backend import State
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.switches import config_of
from lstmcore_conformance.oracle.budgets import Expected, Measure, dtype_of
from lstmcore_conformance.oracle.composition import backward_pass, forward_pass
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare, same_bits
from lstmcore_conformance.suite.check import MakeCases, Scope, check

#: Steps in which a cell that is rounded to 16 bits drifts away by many units of float32.
STEPS: Final = 400
#: The largest mean error of |y|, in units of the last place: rounding to the nearest has 0, cutting off 1/2.
BIAS: Final = 0.2
#: Pre-activations of i, f, g and o: a nearly closed input, a nearly open memory, a small candidate.
GATES: Final = (-3.0, 6.0, 0.02, 0.25)


def _cases(name: str, steps: int, batch: int, **changes: str) -> MakeCases:
    """Return the function that makes one case in each 16-bit precision."""

    def cases(scope: Scope) -> Iterator[Case]:
        for precision in scope.precisions:
            model = config_of({"input_size": 2, "hidden_size": 9, **changes})
            case = Case(name=name, model=model, precision=precision, steps=steps, batch=batch)
            if case.policy.storage in ("float16", "bfloat16"):
                yield case

    return cases


def _without_weights(case: Case) -> Data:
    """Return the data with weights of 0, the biases of `GATES` and a scalar whose terms all have one sign."""
    data = case.data.map(np.array)
    if data.state is None or data.dy is None:
        raise TypeError(f"case {case.id}: expected a state and dy")
    hidden, size = case.config.hidden_size, np.abs(data.dy.astype(np.float64))
    for name, array in data.parameters.items():
        array[...] = np.repeat(GATES, hidden) if name == "bias" else 0
    cells = np.linspace(1.0, 3.5, data.state.c.size).reshape(data.state.c.shape)
    return replace(
        data,
        state=State(data.state.h, np.asarray(cells, data.state.c.dtype)),
        dy=np.asarray(1 + 0.25 * size / (1 + size), data.dy.dtype),
        dstate=None,
    )


def _within(case: Case, name: str, value: Array, units: float) -> dict[str, Expected]:
    """Return one expected array with a budget of some units of 2^-23 of its scale."""
    budget = units * 2.0**-23 * float(np.abs(value).max())
    return {name: Expected(value, budget, dtype_of(name, case))}


@check(
    "bits16.cell",
    f"the cell and the gates have the precision of float32: c is right after {STEPS} steps of small changes",
    section=8,
    cases=_cases("cell16", STEPS, 5),
)
def cell(tested: BackendUnderTest, case: Case) -> Measure:
    data = _without_weights(case)
    right = forward_pass(case.model, data, "float64").outputs["c_n"]
    return compare(tested.forward(case, data), _within(case, "c_n", right, STEPS))


@check(
    "bits16.sums",
    "gradients of parameters are sums in at least float32: 4,096 rows of one sign are rounded once",
    section=8,
    cases=_cases("sums16", 64, 64),
    needs=("backward",),
)
def sums(tested: BackendUnderTest, case: Case) -> Measure:
    data = _without_weights(case)
    done = forward_pass(case.model, data, "float64")
    right = backward_pass(case.model, data, done, "float64")["d_bias"]
    once = 0.75 * case.policy.epsilon * 2.0**23
    return compare(tested.gradients(case, data), _within(case, "d_bias", right, once))


@check(
    "bits16.rounding",
    "h is rounded to the nearest number: |y| is on average neither too small nor too large",
    section=8,
    cases=_cases("rounding16", 32, 16),
)
def rounding(tested: BackendUnderTest, case: Case) -> Measure:
    data = _without_weights(case)
    exact = np.abs(forward_pass(case.model, data, "float64").outputs["y"])
    got = np.abs(tested.forward(case, data)["y"].astype(np.float64))
    place = 2.0 ** np.floor(np.log2(exact)) * case.policy.epsilon
    mean = float(((got - exact) / place).mean())
    worst = Measure(abs(mean) / BIAS, "the mean error of |y| in units of the last place", (), mean, 0.0, BIAS)
    if not worst.share <= 1:
        raise Failure(str(worst), worst)
    return worst


def _largest(case: Case) -> float:
    """Return the power of two of the largest numbers of the storage dtype."""
    return 2.0**15 if case.policy.storage == "float16" else 2.0**127


@check(
    "bits16.ties",
    "an h half way between two numbers becomes the even one, and one beyond the largest becomes infinite",
    section=8,
    cases=_cases("ties16", 1, 5, hidden_activation="identity"),
)
def ties(tested: BackendUnderTest, case: Case) -> None:
    """The gates f and o are 1 and g is 0, so that h is c0, which has more digits than 16 bits hold."""
    data = case.data.map(np.array)
    if data.state is None:
        raise TypeError(f"case {case.id}: expected a state")
    for name, array in data.parameters.items():
        array[...] = np.repeat((0, 40, 0, 40), case.config.hidden_size) if name == "bias" else 0
    place, last = case.policy.epsilon, _largest(case)
    tie = np.float32((2 - place / 2) * last)
    cells = (1 + place / 2, 1 + 1.5 * place, -1 - place / 2, -1 - 1.5 * place, 1 + 0.75 * place, (2 - place) * last)
    data.state.c[...] = (*cells, np.nextafter(tie, np.float32(0)), tie, -tie)
    with np.errstate(over="ignore"):
        expected = data.state.c.astype(data.x.dtype)
    got = tested.forward(case, data)
    same_bits("c0 in 16 bits", {"y": got["y"][0], "h_n": got["h_n"]}, {"y": expected, "h_n": expected})
