"""Behaviour of the NumPy backend beyond the conformance suite."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from lstmcore.backend import Masks, State
from lstmcore.config import LSTMConfig
from lstmcore.registry import get_backend


@pytest.mark.parametrize("reverse", [False, True])
def test_a_row_without_steps_reaches_no_gradient(reverse: bool) -> None:
    config = LSTMConfig(
        input_size=3, hidden_size=4, reverse=reverse, peephole=True, layer_norm=True, recurrent_dropout=0.5
    )
    rng = np.random.default_rng(0)
    parameters = {name: rng.normal(size=shape) for name, shape in config.parameter_shapes.items()}
    x, h, c, mask = (rng.normal(size=shape) for shape in ((3, 2, 3), (2, 4), (2, 4), (2, 4)))
    h[1] = c[1] = mask[1] = np.nan
    results = []
    for name in ("numpy", "reference"):
        kernel = get_backend(name).compile(config, "float64")
        weights = kernel.pack(parameters)
        masks = Masks(recurrent=mask)
        _, last, tape = kernel.forward(weights, x, State(h, c), lengths=[3, 0], masks=masks, record=True)
        np.testing.assert_array_equal(last.h[1], h[1])
        np.testing.assert_array_equal(last.c[1], c[1])
        results.append(kernel.backward(weights, tape, np.ones((3, 2, 4))).parameters)
    for name, value in results[0].items():
        np.testing.assert_allclose(value, results[1][name], rtol=1e-11, atol=1e-12, err_msg=name)


def _kernel(**switches: Any) -> tuple[Any, Any, LSTMConfig]:
    config = LSTMConfig(**{"input_size": 5, "hidden_size": 3} | switches)
    rng = np.random.default_rng(1)
    kernel = get_backend("numpy").compile(config, "float64")
    return kernel, kernel.pack({n: rng.normal(size=s) for n, s in config.parameter_shapes.items()}), config


@pytest.mark.parametrize("switches", [{}, {"layer_norm": True}, {"input_size": 7}, {"recurrence": "cell"}], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_blocks_of_steps_are_the_same_computation(
    monkeypatch: pytest.MonkeyPatch, switches: dict[str, Any], reverse: bool
) -> None:
    """Blocks of one and of three steps give the y, the state and the gradients of one block."""
    from lstmcore_numpy import tuning

    kernel, weights, config = _kernel(reverse=reverse, zoneout_cell=0.3, **switches)
    rng = np.random.default_rng(2)
    x, h, c, dy = (rng.normal(size=shape) for shape in ((8, 2, config.input_size), (2, 3), (2, 3), (8, 2, 3)))

    def run() -> list[Any]:
        y, last, _ = kernel.forward(weights, x, State(h, c), lengths=[8, 5])
        tape = kernel.forward(weights, x, State(h, c), lengths=[8, 5], record=True).tape
        gradients = kernel.backward(weights, tape, dy)
        return [y, *last, gradients.x, *gradients.state, *gradients.parameters.values()]

    whole = run()
    for steps in (1, 3):
        monkeypatch.setattr(tuning, "FORWARD_BLOCK", steps * 2 * kernel.plan.layout.depth)
        monkeypatch.setattr(tuning, "BACKWARD_BLOCK", steps * 2)
        for part, expected in zip(run(), whole, strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-12, atol=1e-13)


def test_the_receipt_names_the_product() -> None:
    narrow, wide = _kernel()[0], _kernel(input_size=7)[0]
    assert narrow.receipt().path.startswith("one product a step")
    assert narrow.receipt(steps=9, batch=1).path.startswith("an input product apart")
    assert narrow.receipt(steps=1, batch=1).path.startswith("one product a step")
    assert wide.receipt().path.startswith("an input product apart")
    assert _kernel(layer_norm=True)[0].receipt(1, 1).path.startswith("an input product apart")


def test_inference_keeps_no_buffer_for_every_step() -> None:
    kernel, weights, _ = _kernel(hidden_size=64)
    x = np.zeros((20_000, 4, 5))
    out = np.empty((20_000, 4, 64))
    tracemalloc.start()
    kernel.forward(weights, x, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.nbytes / 4


def test_a_closed_gate_keeps_its_relative_precision() -> None:
    """A sigmoid made from tanh, ``tanh(z / 2) / 2 + 1 / 2``, would be off by 1e-3 here."""
    kernel, _, config = _kernel(input_size=1, hidden_size=1)
    parameters = {name: np.zeros(shape) for name, shape in config.parameter_shapes.items()}
    parameters["bias"][:] = [-30.0, 0.0, 1.0, 0.0]
    c = kernel.forward(kernel.pack(parameters), np.zeros((1, 1, 1))).state.c
    np.testing.assert_allclose(c, np.tanh(1.0) / (1 + np.exp(30.0)), rtol=1e-14)
