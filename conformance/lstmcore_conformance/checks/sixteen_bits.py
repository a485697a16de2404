"""Checks of 16-bit storage: the cell, the gates and sums have at least float32, and h is rounded to the nearest.

The budgets of other checks cannot see this: in 16 bits they are as wide as the roundings of h. Here weights are 0 or
steps are few, so that h is not read or is known, and the rest has the precision of float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore.backend import State
from lstmcore.config import StackConfig
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.switches import config_of
from lstmcore_conformance.oracle.budgets import Expected, Measure, dtype_of
from lstmcore_conformance.oracle.composition import backward_pass, forward_pass, jvp_pass
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare, same_bits
from lstmcore_conformance.suite.check import MakeCases, Scope, check

#: Steps in which a cell that is rounded to 16 bits drifts away by many units of float32.
STEPS: Final = 400
#: The allowed error of c after one or two steps, in units of 2^-23: sums of some dozens of products have a few.
UNITS: Final = 64
#: The largest mean error of |y|, in units of the last place: rounding to the nearest has 0, cutting off 1/2.
BIAS: Final = 0.2
#: Pre-activations of i, f, g and o: a nearly closed input, a nearly open memory, a small candidate.
GATES: Final = (-3.0, 6.0, 0.02, 0.25)
#: Widths at which sums in 16 bits lose many digits.
_WIDE: Final[Mapping[str, Any]] = {"input_size": 61, "hidden_size": 33}


def _cases(name: str, steps: int, batch: int, *, layers: int = 0, masks: bool = False, **changes: Any) -> MakeCases:
    """Return the function that makes one case in each 16-bit precision; of a stack if there are layers."""

    def cases(scope: Scope) -> Iterator[Case]:
        for precision in scope.precisions:
            config = config_of({"input_size": 2, "hidden_size": 9, **changes})
            model = StackConfig.make(config, num_layers=layers) if layers else config
            case = Case(name=name, model=model, precision=precision, steps=steps, batch=batch, masks=masks)
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


def _within_either(case: Case, got: Array, rounded: Array, exact: Array) -> dict[str, Expected]:
    """Return what is expected of c: a number from one of two right answers to the other, with a budget of `UNITS`."""
    nearest = np.clip(got, np.minimum(rounded, exact), np.maximum(rounded, exact))
    return _within(case, "c_n", np.where(np.isnan(nearest), exact, nearest), UNITS)


def _with_rounded_or_exact_h(tested: BackendUnderTest, case: Case) -> Measure:
    """Compare c with those of a pass that rounds h and of one that does not: both are right."""
    rounded, exact = (
        np.asarray(forward_pass(case.model, case.data, precision).outputs["c_n"], np.float64)
        for precision in (case.policy, "float64")
    )
    got = tested.forward(case)
    return compare(got, _within_either(case, got["c_n"], rounded, exact))


def _first_cases(scope: Scope) -> Iterator[Case]:
    """Yield a step with many products, and one whose gates read the cell."""
    yield from _cases("first16", 1, 5, **_WIDE)(scope)
    yield from _cases("first16,peephole", 1, 5, peephole=True)(scope)


for _id, _claim, _section, _make in (
    ("first_step", "products, peepholes, gates and the cell of the first step have float32", 8, _first_cases),
    ("next_step", "the second step reads the h that y has, or one of more digits", 8, _cases("next16", 2, 5, **_WIDE)),
    ("next_layer", "a layer reads the y of the one below, or one of more digits", 6, _cases("stack16", 1, 5, layers=2)),
):
    check(f"bits16.{_id}", _claim, section=_section, cases=_make)(_with_rounded_or_exact_h)


@check(
    "bits16.masks",
    "a mask of the recurrent input has float32; its product with h may be rounded to 16 bits",
    section=8,
    cases=_cases("masks16", 1, 5, recurrent_dropout=0.25, masks=True, **_WIDE),
    needs=("masks",),
)
def masks(tested: BackendUnderTest, case: Case) -> Measure:
    """The mask is 4/3 or 0, and 4/3 in 16 bits is another number."""
    data = case.data
    if data.state is None:
        raise TypeError(f"case {case.id}: expected a state")
    product = (data.masks.recurrent * data.state.h.astype(np.float32)).astype(data.x.dtype)
    known = replace(data, state=State(product, data.state.c), masks=None)
    rounded, exact = (forward_pass(case.model, each, "float64").outputs["c_n"] for each in (known, data))
    got = tested.forward(case)
    return compare(got, _within_either(case, got["c_n"], rounded, exact))


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
    return _mean_error(case, tested.forward(case, data), forward_pass(case.model, data, "float64").outputs, ("y",))


@check(
    "bits16.derivatives",
    "gradients and tangents are rounded to the nearest number; in float16 gradients beyond the largest are infinite",
    section=8,
    cases=_cases("derivatives16", 32, 16),
    needs=("backward", "jvp"),
)
def derivatives(tested: BackendUnderTest, case: Case) -> Measure:
    data = _without_weights(case)
    done = forward_pass(case.model, data, "float64")
    right = backward_pass(case.model, data, done, "float64")
    got = tested.gradients(case, data)
    sums = _mean_error(case, got, right, ("d_bias", "d_weight_h"))
    moved = _mean_error(case, tested.tangents(case, data), jvp_pass(case.model, data, done, "float64"), ("ty",))
    if case.policy.storage == "float16":  # in bfloat16 float32 ends at the same number, and 0 * infinity is NaN
        _judge_overflow(tested, case, data, right["d_bias"])
    return max(sums, moved, key=lambda each: each.share)


def _judge_overflow(tested: BackendUnderTest, case: Case, data: Data, right: Array) -> None:
    """Raise `Failure` unless a gradient of the bias that is beyond the largest number is infinite."""
    if data.dy is None:
        raise TypeError(f"case {case.id}: expected dy")
    factor = 2.0**14
    beyond = np.abs(right) * factor > 4 * _largest(case)
    got = tested.gradients(case, replace(data, dy=np.asarray(data.dy * factor, data.dy.dtype)))["d_bias"][beyond]
    if not (got.size and np.isinf(got).all()):
        raise Failure(f"d_bias: expected infinity beyond the largest number; got {got}")


def _mean_error(case: Case, got: Mapping[str, Array], right: Mapping[str, Array], names: tuple[str, ...]) -> Measure:
    """Return the mean error of the sizes of some arrays, in units of the last place, or raise `Failure`."""
    exact, sizes = (np.concatenate([np.abs(np.float64(a[name])).ravel() for name in names]) for a in (right, got))
    normal = exact > 2.0**-14
    place = 2.0 ** np.floor(np.log2(exact[normal])) * case.policy.epsilon
    mean = float(((sizes - exact)[normal] / place).mean())
    what = f"the mean error of |{'|, |'.join(names)}| in units of the last place"
    worst = Measure(abs(mean) / BIAS, what, (), mean, 0.0, BIAS)
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
