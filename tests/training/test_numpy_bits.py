"""The parts of the training on NumPy's arrays: copies of optimizers, and dtypes that differ or are no standard ones."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmcore.training import SGD, Adam, AdamW

SHAPES = {"w": (5, 3), "b": (5,), "large": (130, 257), "one": (), "none": (0, 4)}


def random_arrays(dtype: Any, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}


def assert_equal(found: Any, wanted: Any) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


@pytest.mark.parametrize("make", [SGD, lambda: SGD(momentum=0.9), Adam, AdamW])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_copy_of_an_optimizer_steps_on(make: Callable[[], Any], steps: int) -> None:
    """Copies and what is pickled have moments of their own, and the next steps have the same bits."""
    rule, parameters = make(), random_arrays("float32", 0)
    for step in range(steps):
        parameters = rule.step(parameters, random_arrays("float32", step + 1))
    for other in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert other.steps == steps
        twin = make()
        twin.load_state(steps, rule.state(), parameters)
        own = wanted = parameters
        for step in range(2):
            gradients = random_arrays("float32", 9 + step)
            own, wanted = other.step(own, gradients), twin.step(wanted, gradients)
        assert_equal(own, wanted)
        assert_equal(other.state(), twin.state())


@pytest.mark.parametrize("own", ["float64", "float32"])
@pytest.mark.parametrize("rule", [SGD(momentum=0.9, weight_decay=0.01), Adam(weight_decay=0.01)], ids=["sgd", "adam"])
def test_moments_have_the_dtype_of_parameters(rule: Any, own: str) -> None:
    """Decay is added in the wider dtype of the parameters, and so are the moments, which a new optimizer takes."""
    rule, p, moments = copy.deepcopy(rule), random_arrays(own, 0), {}
    narrow = {"float64": "float32", "float32": "float16"}[own]
    lr, decay = rule.settings["lr"], rule.settings["weight_decay"]
    wanted = {name: np.atleast_1d(value) for name, value in p.items()}
    for step in range(1, 4):
        gradients = random_arrays(narrow, step)
        p = rule.step(p, gradients)
        for name, value in wanted.items():
            g = np.atleast_1d(gradients[name]) + decay * value
            if rule.name == "sgd":
                moments[name] = 0.9 * moments[name] + g if step > 1 else g
                wanted[name] = value - lr * moments[name]
            else:
                m, v = moments.get(name, (0 * g, 0 * g))
                m, v = moments[name] = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g * g
                root = np.sqrt(v) / math.sqrt(1 - 0.999**step) + 1e-8
                wanted[name] = value - (lr / (1 - 0.9**step)) * m / root
            np.testing.assert_array_equal(np.atleast_1d(p[name]), wanted[name], strict=True)
    assert {value.dtype.name for value in rule.state().values()} == {own}
    again = type(rule)(lr)
    again.settings = rule.settings
    again.load_state(3, rule.state(), p)
    assert_equal(again.step(p, random_arrays(narrow, 4)), rule.step(p, random_arrays(narrow, 4)))


@pytest.mark.parametrize(("own", "other"), [("float64", "float32"), ("float32", "float64"), (">f4", "float32")])
@pytest.mark.parametrize("make", [lambda: SGD(momentum=0.5), Adam, AdamW])
def test_moments_of_another_dtype_are_refused(make: Callable[[], Any], own: str, other: str) -> None:
    """Without decay the moments have the dtype of the gradients, with which no step follows."""
    rule, parameters = make(), random_arrays(own, 0)
    moved = rule.step(parameters, random_arrays(other, 1))
    assert {value.dtype for value in moved.values()} == {np.dtype(own)}
    told = rf"expected the moment '\w+' of 'w' to be {own} of \(5, 3\), as the parameter; got {other} of"
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^optimizer state: {told} .*: an optimizer goes with one model"):
            rule.step(moved, random_arrays(other, 2))
    assert rule.steps == 1
