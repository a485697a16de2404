"""The error budget: a multiple of the error of the naive evaluation on the same case.

docs/conformance.md states the rule for other languages. In short, for each output array of a case

    s      = max |oracle|              but at least GROUP_FLOOR times the largest s of its group
    error  = max |naive - oracle| / s  over the data and COPIES copies of them, each moved by one unit in the last
                                       place, all in its precision; for TF32 also with operands cut off
    budget = SAFETY * (error * eps / eps_naive + ROUNDING * eps) * s
    share  = max |got - oracle| / budget
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from lstmcore.precision import Precision, get_precision
from lstmcore_conformance.cases import quality
from lstmcore_conformance.cases.call_data import Array, storage_dtype
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.quality import ALSO, NAIVE
from lstmcore_conformance.oracle import evaluation
from lstmcore_conformance.oracle.composition import Arrays

#: The error of a backend may be this many times the error of the naive evaluation.
SAFETY: Final = 6.0
#: The naive evaluation is repeated on this many copies of the data, each moved by one unit in the last place: the
#: error of one evaluation is partly luck.
COPIES: Final = 3
#: Large cases have one copy: among their many numbers one evaluation has enough luck and bad luck.
COPIES_OF_LARGE: Final = 1
#: Epsilons for the rounding of the result, which count even if the naive evaluation happens to be exact.
ROUNDING: Final = 0.5
#: Arrays of one group (outputs, gradients, tangents) that are smaller than the largest by this factor get no less.
GROUP_FLOOR: Final = 2.0**-10


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected value of an output array, its budget (an absolute error) and its dtype."""

    value: Array
    budget: float
    dtype: str


Expectation = Mapping[str, Expected]
Evaluate = Callable[[Case, Precision | str, int], Arrays]


@dataclass(frozen=True, slots=True)
class Measure:
    """The worst element of a comparison; `share` is its error in budgets, so that at most 1 passes."""

    share: float
    array: str = ""
    index: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0
    budget: float = 0.0

    def __str__(self) -> str:
        place = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        return (
            f"{self.array}{place}: got {self.got!r}, expected {self.expected!r} within {self.budget:.3g}: "
            f"{self.share:.3g} of the budget"
        )


def forward(case: Case) -> Expectation:
    """Return what is expected of y, h_n and c_n."""
    return _expect(case, evaluation.forward)


def gradients(case: Case) -> Expectation:
    """Return what is expected of dx, dh0, dc0 and d_<parameter> for every parameter."""
    return _expect(case, evaluation.gradients)


def tangents(case: Case) -> Expectation:
    """Return what is expected of ty, th_n and tc_n."""
    return _expect(case, evaluation.tangents)


@lru_cache(maxsize=16)  # of many faulty backends in a row, which meet the same cases
def everything(case: Case) -> Expectation:
    """Return what is expected of all three together, for a large case: each evaluation runs forward once."""
    return _expected(case, evaluation.everything)


@lru_cache(maxsize=8192)
def _expect(case: Case, evaluate: Evaluate) -> Expectation:
    return _expected(case, evaluate)


def _expected(case: Case, evaluate: Evaluate) -> Expectation:
    policy, naive = case.policy, get_precision(NAIVE[case.precision])
    error = _baseline_error(case.with_precision(naive.name), evaluate)
    values = evaluate(case, "float64", 0)
    scales = _scales(values)
    allowed = {
        name: SAFETY * (error[name] * policy.epsilon / naive.epsilon + ROUNDING * policy.epsilon) * scales[name]
        for name in values
    }
    return {name: Expected(value, allowed[name], dtype_of(name, case)) for name, value in values.items()}


@lru_cache(maxsize=8192)
def _baseline_error(case: Case, evaluate: Evaluate) -> Mapping[str, float]:
    """Return the naive evaluation's error relative to each array's scale; `case` is in its precision."""
    exact = evaluate(case, "float64", 0)
    scales = _scales(exact)
    error = dict.fromkeys(exact, 0.0)
    copies = COPIES_OF_LARGE if evaluate is evaluation.everything else COPIES
    evaluations: list[tuple[Precision | str, int]] = [(case.precision, copy) for copy in range(copies + 1)]
    for policy, copy in [*evaluations, *((also, 0) for also in ALSO.get(case.precision, ()))]:
        for name, array in evaluate(case, policy, copy).items():
            stored = array.astype(storage_dtype(dtype_of(name, case))).astype(np.float64)
            if scales[name]:
                error[name] = max(error[name], _largest(stored - exact[name]) / scales[name])
    return error


def forget() -> None:
    """Free all results and data that were kept: those of large cases take much memory and are not used again."""
    evaluation.forget()
    quality.forget()
    for cached in (_expect, _baseline_error, everything):
        cached.cache_clear()


def _scales(values: Arrays) -> dict[str, float]:
    largest = {name: _largest(value) for name, value in values.items()}
    floor: dict[str, float] = {}
    for name, scale in largest.items():
        floor[_group(name)] = max(floor.get(_group(name), 0.0), GROUP_FLOOR * scale)
    return {name: max(scale, floor[_group(name)]) for name, scale in largest.items()}


def _group(name: str) -> str:
    """Return the group of an output array: outputs, gradients or tangents."""
    return "outputs" if name in ("y", "h_n", "c_n") else "gradients" if name.startswith("d") else "tangents"


def _largest(array: Array) -> float:
    return float(np.abs(array).max(initial=0.0))


def dtype_of(name: str, case: Case) -> str:
    """Return the dtype of an output: the compute dtype for the cell state, the storage dtype for all else."""
    return case.policy.compute if name in ("c_n", "dc0", "tc_n") else case.policy.storage


def measure(name: str, got: Any, expected: Expected) -> Measure:
    """Return the element of `got` with the largest error. NaN or infinity in the wrong place is an infinite error."""
    want, value = np.asarray(expected.value, np.float64), np.asarray(got).astype(np.float64)
    if not want.size:
        return Measure(0.0, name)
    error = errors(value, want)
    index = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
    worst = float(error[index])
    share = 0.0 if worst == 0 else worst / expected.budget if expected.budget else np.inf
    return Measure(share, name, index, float(value[index]), float(want[index]), expected.budget)


def errors(value: Array, want: Array) -> Array:
    """Return the error of every entry; that of NaN or infinity in the wrong place is infinite."""
    with np.errstate(invalid="ignore"):  # inf - inf where both are the same infinity
        error = np.abs(value - want)
    same = (value == want) | (np.isnan(value) & np.isnan(want))
    return np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf))
