"""What the NumPy backend does beyond the conformance suite."""

from __future__ import annotations

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
