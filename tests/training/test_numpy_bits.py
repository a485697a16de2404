"""The parts of the training on NumPy's arrays: copies of optimizers, and dtypes that differ or are no standard ones."""

from __future__ import annotations

import copy
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
