"""Dynamic int8 of ONNX Runtime and PyTorch: one scale for all, which the benchmark of compressed weights tells."""

from __future__ import annotations

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore_conformance.bench.compressed import candidates, disturbed


@pytest.mark.parametrize("name", [name for name, _ in candidates("numpy", 1) if not name.startswith("numpy")])
def test_float32_is_right_and_int8_is_near(name: str) -> None:
    lstm = LSTM(5, 8, seed=0, backend="numpy")
    x = np.random.default_rng(0).normal(size=(6, 3, 5)).astype(np.float32)
    difference = np.abs(dict(candidates("numpy", 1))[name](lstm).forward(x) - lstm(x)[0]).max()
    assert difference < 1e-6 if name.endswith("float32") else 1e-6 < difference < 0.1


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_only_int8_lets_large_rows_and_steps_through(runtime: str) -> None:
    known = dict(candidates("numpy", 1))
    assert disturbed(known[f"{runtime} float32"]) == {}
    assert set(disturbed(known[f"{runtime} dynamic int8"])) == {"another row", "an earlier step"}
