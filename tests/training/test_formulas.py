"""The formulas that optimizers give to `Updates` of a backend, and when these compute."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import array_api_strict as strict
import numpy as np
import pytest

from lstmcore.arrays import move_like, to_host
from lstmcore.backend import Formula, Updates
from lstmcore.registry import get_backend
from lstmcore.training import SGD, Adam, AdamW, Optimizer, clip_by_global_norm, global_norm
from lstmcore_conformance.oracle.naive import NaiveBackend
from strict_arrays import LIKE, away

T = TypeVar("T")
RULES: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: SGD(0.1, weight_decay=0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9),
    "nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: Adam(0.1, weight_decay=0.1),
    "adamw": lambda: AdamW(0.1),
}
SHAPES = {"w": (5, 3), "b": (5,), "one": (), "none": (0, 4)}


def plainly(formula: Formula, p: Any, g: Any, moments: Sequence[Any]) -> Any:
    """Return the parameters after a step, by the formulas of the docstring, on flat arrays of NumPy."""
    numbers = dict(formula.numbers)
    g = g + numbers.pop("weight_decay") * p
    if formula.name == "sgd":
        lr, momentum, initial, nesterov = (numbers.pop(name) for name in ("lr", "momentum", "initial", "nesterov"))
        assert not numbers
        if moments:
            (m,) = moments
            m[...] = g if initial else momentum * m + g
            g = g + momentum * m if nesterov else m
        return p - lr * g
    assert formula.name == "adam"
    m, v = moments
    beta1, beta2, eps = (numbers.pop(name) for name in ("beta1", "beta2", "eps"))
    rate, correction, shrink = (numbers.pop(name) for name in ("rate", "correction", "shrink"))
    assert not numbers
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    return shrink * p - rate * m / (np.sqrt(v) / correction + eps)


class OnDevice(Updates):
    """Formulas on the host, of arrays of array-api-strict."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def refusal(self, formula: str | None, dtype: str) -> str | None:
        return None if dtype == "float64" else f"no {dtype}"

    def move(self, formula: Formula, values: Any, gradients: Any, moments: Any) -> Any:
        self.called.append(formula.name)
        own = [to_host(moment).copy() for moment in moments]
        found = plainly(formula, flat(values), flat(gradients), own)
        for moment, value in zip(moments, own, strict=True):
            moment[...] = move_like(value, LIKE)
        return move_like(found, LIKE)

    def norm(self, gradients: Any) -> Any:
        self.called.append("norm")
        return move_like(np.asarray(math.sqrt(np.square(flat(gradients)).sum())), LIKE)

    def clip(self, gradients: Any, bound: float) -> tuple[Any, Any]:
        norm = self.norm(gradients)
        self.called[-1] = "clip"
        return move_like(flat(gradients) * min(1.0, bound / float(norm)), LIKE), norm


def flat(arrays: Sequence[Any]) -> Any:
    return np.concatenate([to_host(array).reshape(-1) for array in arrays])


class Device(NaiveBackend):
    """A backend of arrays of array-api-strict."""

    name = "strict"

    def __init__(self, updates: Updates | None) -> None:
        self._own = updates

    def updates(self) -> Updates | None:
        return self._own

    def locate(self, array: Any) -> tuple[str, Any] | None:
        return ("device1", array) if isinstance(array, type(LIKE)) else None


def random_arrays(seed: int, dtype: str = "float64") -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("make", RULES.values(), ids=list(RULES))
def test_formulas_are_what_the_rules_compute(make: Callable[[], Optimizer]) -> None:
    """Steps by the formulas of `Formula`, and those of the rule on the host, with the same moments."""
    host, device, own = make(), make(), OnDevice()
    device.use_backend(Device(own))
    parameters = random_arrays(0)
    moved = away(parameters)
    for step in range(4):
        host.settings["lr"] = device.settings["lr"] = 0.1 / (1 + step)
        gradients = random_arrays(step + 1)
        parameters, moved = host.step(parameters, gradients), device.step(moved, away(gradients))
        for wanted, found in ((parameters, moved), (host.state(), device.state())):
            assert list(found) == list(wanted)
            for name, value in wanted.items():
                np.testing.assert_allclose(to_host(found[name]), value, rtol=1e-13, atol=1e-15)
                assert found[name].shape == value.shape
    assert own.called == [own.called[0]] * 4
    assert device.explain() == "one kernel of backend 'strict'"


def test_norms_and_clipping_by_a_backend() -> None:
    own, gradients = OnDevice(), random_arrays(0)
    backend, norm = Device(own), global_norm(gradients)
    assert to_host(global_norm(away(gradients), backend=backend)) == pytest.approx(norm)
    found, told = clip_by_global_norm(away(gradients), norm / 2, backend=backend)
    assert to_host(told) == pytest.approx(norm)
    for name, value in clip_by_global_norm(gradients, norm / 2)[0].items():
        np.testing.assert_allclose(to_host(found[name]), value, rtol=1e-13)
    assert own.called == ["norm", "clip"]
    assert clip_by_global_norm(gradients, norm / 2, backend=backend)[1] == norm
    assert own.called == ["norm", "clip"]  # arrays of the host are the host's


class Halved(Adam):
    """A rule of its own, of which no formula tells."""

    def _update(self, xp: Any, value: Any, gradient: Any, moments: Any) -> None:
        value *= 0.5


class Signs:
    """A mixin with a rule of its own."""

    def _update(self, xp: Any, value: Any, gradient: Any, moments: Any) -> None:
        value -= 0.5 * xp.sign(gradient)


class SignSGD(Signs, SGD):
    """A rule whose `_update` is that of the mixin."""


class Assigned(SGD):
    """A rule whose `_update` is assigned after the class was made."""


Assigned._update = Signs._update  # type: ignore[method-assign]


class Own(Adam):
    """A rule with an `_update` and a formula of it."""

    def _update(self, xp: Any, value: Any, gradient: Any, moments: Any) -> None:
        value -= 2 * gradient

    _formula_for = _update

    def _formula(self, step: int) -> Formula:
        return Formula("sgd", {"lr": 2.0, "momentum": 0.0, "weight_decay": 0.0, "initial": 0.0, "nesterov": 0.0})

    def _used(self) -> tuple[str, ...]:
        return ()


class Tagged:
    """A base with keywords of its subclasses and a hook for them."""

    tag: str

    def __init_subclass__(cls, tag: str, **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.tag = tag


class Smaller(AdamW):
    """AdamW with another first rate."""

    def __init__(self) -> None:
        super().__init__(1e-4)


def test_operations_compute_where_a_backend_cannot() -> None:
    """And `explain` tells why."""
    arrays = away(random_arrays(0))
    for rule, backend, given, why in (
        (Adam(), None, arrays, "no backend was named"),
        (Adam(), Device(None), arrays, "backend 'strict' declares no updates"),
        (Adam(), get_backend("numpy"), arrays, "backend 'numpy' declares no updates"),
        (Adam(), Device(OnDevice()), random_arrays(0), "arrays of the host"),
        (Adam(), Device(OnDevice()), away(random_arrays(0, "float32")), "no float32"),
        (Halved(), Device(OnDevice()), arrays, "Halved has no formula"),
        (SignSGD(), Device(OnDevice()), arrays, "SignSGD has no formula"),
        (Assigned(), Device(OnDevice()), arrays, "Assigned has no formula"),
        (Smaller(), Device(OnDevice()), arrays, None),
    ):
        rule.use_backend(backend)
        rule.step(given, given)
        wanted = "one kernel of backend 'strict'" if why is None else f"operations of the arrays' library: {why}"
        assert rule.explain() == wanted


@pytest.mark.parametrize("rule", [SignSGD, Assigned, Own, Halved])
def test_rules_of_others_are_the_same_on_a_device(rule: type[Optimizer]) -> None:
    """Whatever the class has its `_update` from, a formula computes only what that one does."""
    device, own, arrays = rule(0.1), OnDevice(), random_arrays(0)
    device.use_backend(Device(own))
    wanted = rule(0.1).step(arrays, random_arrays(1))
    found = device.step(away(arrays), away(random_arrays(1)))
    for name, value in wanted.items():
        np.testing.assert_allclose(to_host(found[name]), value, rtol=1e-15)
    assert own.called == (["sgd"] if rule is Own else [])


def test_an_update_that_is_assigned_between_two_steps() -> None:
    """Of one object: the next step is by it, and so are all after."""
    rule, own, arrays = SGD(0.1), OnDevice(), away(random_arrays(0))
    rule.use_backend(Device(own))
    rule.step(arrays, arrays)
    rule._update = lambda xp, value, gradient, moments: None  # type: ignore[method-assign]
    for name, value in rule.step(arrays, arrays).items():
        np.testing.assert_array_equal(to_host(value), to_host(arrays[name]))
    assert own.called == ["sgd"]
    assert rule.explain().endswith("SGD has no formula")


def test_rules_with_bases_of_others() -> None:
    """Parameters of types, keywords of a class, and hooks of a mixin are those of plain classes."""

    class Typed(Adam, Generic[T]):
        pass

    class Named(Adam, Tagged, tag="x"):
        pass

    assert isinstance(Typed[int](), Adam) and Named.tag == "x"


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_settings_of_a_subclass_are_not_those_of_a_formula(kind: type[Optimizer]) -> None:
    rule = kind(0.1)
    wanted = rule._formula(1)
    rule.settings["mine"] = 1.0
    assert rule._formula(1) == wanted


def test_arrays_of_another_library_than_the_backend() -> None:
    class Other(Device):
        def locate(self, array: Any) -> tuple[str, Any] | None:
            return "device1", strict.asarray(array, copy=True)  # a view of another library's array, as of DLPack

    rule, arrays = Adam(), away(random_arrays(0))
    rule.use_backend(Other(OnDevice()))
    rule.step(arrays, arrays)
    assert rule.explain().endswith("arrays of another library than those of backend 'strict'")


def test_a_copy_of_an_optimizer_has_no_backend() -> None:
    """A device is not copied; the copy goes on by operations, from the same moments."""
    own, arrays = OnDevice(), away(random_arrays(0))
    rule = Adam()
    rule.use_backend(Device(own))
    rule.step(arrays, arrays)
    other = copy.deepcopy(rule)
    one, two = rule.step(arrays, arrays), other.step(arrays, arrays)
    for name, value in one.items():
        np.testing.assert_allclose(to_host(two[name]), to_host(value), rtol=1e-13)
    assert own.called == ["adam", "adam"]
    assert other.explain().endswith("no backend was named")
    rule.use_backend(None)
    rule.step(arrays, arrays)
    assert rule.explain().endswith("no backend was named")
