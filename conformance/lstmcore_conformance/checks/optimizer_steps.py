"""Checks of `Backend.updates`: steps of optimizers and norms of gradients, each in a kernel or two on the device.

There are cases for the formulas and dtypes that a backend declares, and none for a backend without updates. Budgets are
those of other checks: six times what the same formula loses in NumPy, in the dtype of the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from lstmcore.backend import Formula, Updates
from lstmcore.precision import numpy_dtype
from lstmcore_conformance.cases.case import Array, Case
from lstmcore_conformance.cases.switches import config_of
from lstmcore_conformance.oracle.budgets import ROUNDING, SAFETY, Expected, Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare, same_bits
from lstmcore_conformance.suite.check import Scope, check

#: Shapes of one number, of rests of a warp and of a block, of several blocks, and of none.
_SHAPES: Final = ((1,), (7,), (8, 125), (0, 4), (4097,), ())
#: More arrays than an argument of 4,096 bytes has places for, with two pointers, a start and a size for each.
_MANY: Final = ((3,),) * 130
_STEPS: Final = 3
_SGD: Final = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "initial": 0.0, "nesterov": 0.0}
_ADAM: Final = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "correction": 0.4, "eps": 0.03, "rate": 0.1}
_FORMULAS: Final[Mapping[str, Formula]] = {
    "sgd": Formula("sgd", _SGD),
    "sgd,weight_decay": Formula("sgd", _SGD | {"weight_decay": 0.2}),
    "sgd,initial": Formula("sgd", _SGD | {"momentum": 0.8, "initial": 1.0}),
    "sgd,momentum": Formula("sgd", _SGD | {"momentum": 0.8, "weight_decay": 0.2}),
    "sgd,nesterov": Formula("sgd", _SGD | {"momentum": 0.8, "weight_decay": 0.2, "nesterov": 1.0}),
    "adam": Formula("adam", _ADAM | {"shrink": 1.0}),
    "adam,weight_decay": Formula("adam", _ADAM | {"weight_decay": 0.2, "shrink": 1.0}),
    "adam,shrink": Formula("adam", _ADAM | {"shrink": 0.7}),
}
_MANY_SUFFIX: Final = ",many arrays"


def _cases(scope: Scope, names: Mapping[str, str]) -> Iterator[Case]:
    """Yield a case for each name whose operation is declared for the dtype, and one with many arrays."""
    for precision in scope.precisions:
        if precision == "tf32":  # its arrays are those of float32
            continue
        for name, operation in names.items():
            if (operation, precision) in scope.updates:
                yield Case(name=f"updates,{name}", model=config_of({}), precision=precision)
                if name in ("sgd", "adam", "clip"):
                    yield Case(name=f"updates,{name}{_MANY_SUFFIX}", model=config_of({}), precision=precision)


def _step_cases(scope: Scope) -> Iterator[Case]:
    return _cases(scope, {name: formula.name for name, formula in _FORMULAS.items()})


def _clip_cases(scope: Scope) -> Iterator[Case]:
    return _cases(scope, {"clip": "clip"})


def _updates_of(tested: BackendUnderTest) -> Updates:
    """Return the updates of a backend that declares some."""
    with tested.guard("updates"):
        if (updates := tested.backend.updates()) is None:
            raise Failure("updates: expected the same from each call; got None, and Updates before")
        return updates


def _drawn(case: Case, seed: int) -> list[Array]:
    """Return arrays of a case in its storage dtype."""
    random, dtype = np.random.default_rng((seed, len(case.name))), numpy_dtype(case.policy.storage)
    shapes = _MANY if case.name.endswith(_MANY_SUFFIX) else _SHAPES
    return [np.asarray(random.standard_normal(shape)).astype(dtype) for shape in shapes]


def _flat(arrays: Sequence[Array], dtype: Any = None) -> Array:
    return np.concatenate([array.astype(dtype or array.dtype).reshape(-1) for array in arrays])


def step(formula: Formula, dtype: Any, p: Array, g: Array, moments: Sequence[Array]) -> dict[str, Array]:
    """Return the parameters and moments after a step: the formula of `lstmcore.backend.Formula` in a dtype.

    Parameters
    ----------
    formula, dtype
        The formula, and the dtype in which each operation is rounded.
    p, g, moments
        Flat arrays of parameters, gradients and moments.
    """
    numbers = dict(formula.numbers)
    numbers |= {f"rest{one}": 1 - numbers[f"beta{one}"] for one in "12" if f"beta{one}" in numbers}
    n = {name: np.asarray(value).astype(dtype) for name, value in numbers.items()}
    p, g, *moments = (array.astype(dtype) for array in (p, g, *moments))
    g = g + n["weight_decay"] * p
    if formula.name == "adam":
        m, v = n["beta1"] * moments[0] + n["rest1"] * g, n["beta2"] * moments[1] + n["rest2"] * g * g
        return {"p": n["shrink"] * p - n["rate"] * m / (np.sqrt(v) / n["correction"] + n["eps"]), "m": m, "v": v}
    if not moments:
        return {"p": p - n["lr"] * g}
    m = g if numbers["initial"] else n["momentum"] * moments[0] + g
    return {"p": p - n["lr"] * (g + n["momentum"] * m if numbers["nesterov"] else m), "m": m}


def _expected(case: Case, right: Mapping[str, Array], naive: Mapping[str, Array]) -> dict[str, Expected]:
    """Return what is expected of arrays in the storage dtype, of values in float64 and in that dtype."""
    found, name = {}, case.policy.storage
    for key, value in right.items():
        scale = max(float(np.max(np.abs(value))), 1e-30)
        lost = float(np.max(np.abs(naive[key].astype(np.float64) - value)))
        budget = SAFETY * (lost + ROUNDING * _epsilon(name) * scale)
        found[key] = Expected(value, budget, name)
    return found


def _epsilon(storage: str) -> float:
    """Return the distance of 1 to the next number of a storage dtype."""
    one = np.ones((), numpy_dtype(storage))
    return 2.0**-7 if storage == "bfloat16" else float(np.nextafter(one, 2 * one) - one)


def _moments(case: Case, formula: Formula) -> list[Array]:
    """Return flat moments before the first step: none, m, or m and v."""
    if formula.name == "sgd" and not formula.numbers["momentum"]:
        return []
    m = _flat(_drawn(case, 2))
    return [m] if formula.name == "sgd" else [m, np.square(_flat(_drawn(case, 3)))]


@check(
    "updates.steps",
    "a step of an optimizer in a kernel is that of its formula, for arrays of all sizes",
    section=9,
    cases=_step_cases,
)
def _steps(tested: BackendUnderTest, case: Case) -> Measure:
    """Each step starts from what the one before it returned, so that its own error alone is judged."""
    formula = _FORMULAS[case.name.removeprefix("updates,").removesuffix(_MANY_SUFFIX)]
    dtype, move, worst = numpy_dtype(case.policy.storage), tested.backend.to_device, Measure(0.0)
    updates = _updates_of(tested)
    values, moments = _drawn(case, 0), [move(moment) for moment in _moments(case, formula)]
    for number in range(_STEPS):
        gradients = _drawn(case, 10 + number)
        before = _flat(values), _flat(gradients), [tested.host(moment).copy() for moment in moments]
        given = [move(array.copy()) for array in (*values, *gradients)]
        with tested.guard("updates.move"):
            target = updates.move(formula, given[: len(values)], given[len(values) :], moments)
        _same(tested, "updates.move wrote to its arguments", given, [*values, *gradients])
        names = ("p", "m", "v")
        got = {name: tested.host(array) for name, array in zip(names, (target, *moments), strict=False)}
        right, naive = (step(formula, one, *before) for one in (np.float64, dtype))
        measured = compare(got, _expected(case, right, naive))
        worst = measured if measured.share > worst.share else worst
        ends = np.cumsum([array.size for array in values])[:-1]
        values = [p.reshape(v.shape) for p, v in zip(np.split(got["p"], ends), values, strict=True)]
    return worst


@check(
    "updates.clip",
    "the norm of gradients is that of all their numbers, and clipping by it scales them by one factor",
    section=9,
    cases=_clip_cases,
)
def _clip(tested: BackendUnderTest, case: Case) -> Measure:
    """A running sum is right too: gradients are judged by the norm that is told for them, and that norm for itself."""
    gradients, updates = _drawn(case, 0), _updates_of(tested)
    flat = _flat(gradients, np.float64)
    norm, worst = float(np.sqrt(np.sum(np.square(flat)))), Measure(0.0)
    right = {"norm": Expected(np.array(norm), flat.size * 2.0**-52 * norm, "float64")}
    for factor in (0.3, 1.5):
        given = [tested.backend.to_device(array.copy()) for array in gradients]
        with tested.guard("updates.norm and updates.clip"):
            alone, (clipped, told) = updates.norm(given), updates.clip(given, factor * norm)
        _same(tested, "updates.clip wrote to its arguments", given, gradients)
        for array in (alone, told):
            compare({"norm": tested.host(array)}, right)
        got, plain = {"g": tested.host(clipped)}, _flat(gradients)
        if factor > 1:
            same_bits("updates.clip with a bound above the norm", got, {"g": plain})
            continue
        scale = factor * norm / float(tested.host(told))
        naive = {"g": plain * np.asarray(scale).astype(plain.dtype)}
        worst = compare(got, _expected(case, {"g": flat * scale}, naive))
    if not case.name.endswith(_MANY_SUFFIX):
        _clip_infinite(tested, gradients[:3])
    return worst


def _clip_infinite(tested: BackendUnderTest, gradients: list[Array]) -> None:
    """Check that gradients with a norm that is not finite stay as they are."""
    for wild in (np.inf, np.nan):
        changed = [array.copy() for array in gradients]
        changed[0].reshape(-1)[0] = wild
        with tested.guard("updates.clip"):
            clipped, told = _updates_of(tested).clip([tested.backend.to_device(array) for array in changed], 1.0)
        if np.isfinite(tested.host(told)):
            raise Failure(f"updates.clip: expected a norm that is not finite for a gradient of {wild}")
        same_bits("updates.clip with a norm that is not finite", {"g": tested.host(clipped)}, {"g": _flat(changed)})


def _same(tested: BackendUnderTest, what: str, given: Sequence[Any], before: Sequence[Array]) -> None:
    got, wanted = ({str(n): array for n, array in enumerate(arrays)} for arrays in (map(tested.host, given), before))
    same_bits(what, got, wanted)
