"""Arguments of `lstmcore.layers`; the values are compared in tests/peers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmcore.layers import AttentionPooling, Conv1d, Embedding, Layer, Linear

LAYERS: dict[str, tuple[Callable[..., Layer], tuple[int, ...]]] = {
    "linear": (lambda **more: Linear(3, 2, **more), (7, 4, 3)),
    "convolution": (lambda **more: Conv1d(3, 2, 3, stride=2, padding=1, **more), (7, 4, 3)),
    "attention": (lambda **more: AttentionPooling(3, 2, **more), (7, 4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_slopes(name: str) -> None:
    """Central differences of a sum of dy y, along random directions."""
    make, shape = LAYERS[name]
    layer, random = make(dtype="float64", seed=0), np.random.default_rng(0)
    x = random.standard_normal(shape)
    y, tape = layer.record(x)
    dy = random.standard_normal(y.shape)
    found, start = layer.backward(tape, dy), layer.parameters
    for part, gradient in {"x": found.x, **found.parameters}.items():
        along = random.standard_normal(gradient.shape)
        ends = []
        for step in (1e-6, -1e-6):
            layer.load_parameters({**start, part: start[part] + step * along} if part != "x" else start)
            ends.append((layer(x + step * along if part == "x" else x) * dy).sum())
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((gradient * along).sum(), rel=1e-7)


@pytest.mark.parametrize("name", LAYERS)
def test_arrays_that_do_not_fit(name: str) -> None:
    layer = LAYERS[name][0](seed=0)
    with pytest.raises(ValueError, match=r"x: expected shape \(.*3\)"):
        layer(np.ones((7, 4, 2), np.float32))
    with pytest.raises(TypeError, match="x: expected dtype float32"):
        layer(np.ones((7, 4, 3)))
    with pytest.raises(TypeError, match="x: expected a NumPy array"):
        layer([[[1.0]]])  # type: ignore[arg-type]
    y, tape = layer.record(np.ones((7, 4, 3), np.float32))
    with pytest.raises(ValueError, match="dy: expected shape"):
        layer.backward(tape, y[:-1])
    for array in layer.parameters.values():
        assert not array.flags.writeable


def test_parameters_are_checked_and_copied() -> None:
    layer = Linear(3, 2, seed=0)
    good = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)}
    bad: dict[str, dict[str, Any]] = {
        "bias missing": {"weight": good["weight"]},
        "unknown gain": good | {"gain": good["bias"]},
        r"'weight'\]: expected shape": good | {"weight": good["weight"].T},
        r"'bias'\]: expected dtype float32": good | {"bias": np.ones(2)},
        "expected finite numbers; got nan": good | {"bias": np.array([1, np.nan], np.float32)},
    }
    before = layer.parameters
    for message, parameters in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            layer.load_parameters(parameters)
        assert layer.parameters["weight"] is before["weight"]
    layer.load_parameters(good)
    good["weight"][0] = 5
    assert (layer.parameters["weight"] == 1).all()
    assert np.array_equal(Linear(3, 2, seed=4).parameters["weight"], Linear(3, 2, seed=4).parameters["weight"])


def test_other_errors() -> None:
    table = Embedding(4, 2, seed=0)
    with pytest.raises(ValueError, match="x: expected 0 to 3; got 4"):
        table(np.array([0, 4]))
    with pytest.raises(ValueError, match="x: expected 0 to 3; got -1"):
        table(np.array([-1, 2]))
    with pytest.raises(TypeError, match="x: expected whole numbers; got dtype float64"):
        table(np.array([0.0]))
    with pytest.raises(ValueError, match=r"x: expected T \+ 2 padding >= kernel_size=3; got T=1"):
        Conv1d(2, 2, 3)(np.ones((1, 1, 2), np.float32))
    with pytest.raises(ValueError, match="stride: expected at least 1"):
        Conv1d(2, 2, 3, stride=0)
    with pytest.raises(TypeError, match="bias: expected True or False"):
        Linear(2, 2, bias=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'float64'; got 'float16'"):
        Linear(2, 2, dtype="float16")
    with pytest.raises(ValueError, match=r"lengths\[0\]: expected 0 to T=3; got 4"):
        AttentionPooling(2)(np.ones((3, 1, 2), np.float32), np.array([4]))


def test_attention_has_one_array_of_all_pairs_of_steps() -> None:
    """It has T * T * N * H numbers; a second one for the tanh doubled the memory of a pass."""
    pooling, x = AttentionPooling(4, 16, seed=0), np.ones((40, 4, 4), np.float32)
    pooling(x)
    tracemalloc.start()
    try:
        pooling(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 40 * 40 * 4 * 16 * x.itemsize
