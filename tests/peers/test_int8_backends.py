"""The peers' dynamic int8 as backends: near float32, and found out by the checks of rows and steps."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lstmcore import reference
from lstmcore.backend import State, UnsupportedError
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore_conformance import run
from lstmcore_conformance.suite.report import Outcome

T, N, I, H = 5, 4, 3, 6


@pytest.fixture(params=["torch", "onnxruntime"])
def package(request: pytest.FixtureRequest) -> ModuleType:
    pytest.importorskip(request.param)
    pytest.importorskip("onnx")
    return import_module(f"lstmcore_{request.param}")


def _backend(package: ModuleType, plugin: str = ".int8_plugin") -> Any:
    return import_module(f"{package.__name__}{plugin}").lstmcore_backend()


def _error(backend: Any, lengths: Any = None, **switches: Any) -> float:
    """Return the largest error of y and the final state, beside the float64 reference."""
    config, rng = LSTMConfig(input_size=I, hidden_size=H, **switches), np.random.default_rng(5)
    draw = {name: rng.uniform(-0.4, 0.4, shape) for name, shape in config.parameter_shapes.items()}
    parameters = {name: array.astype(np.float32) for name, array in draw.items()}
    x, h, c = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((T, N, I), (N, H), (N, H)))
    kernel = backend.compile(config, "float32")
    got = kernel.forward(kernel.pack(parameters), x, State(h, c), lengths=lengths)
    wanted = reference.forward(config, parameters, x, State(h, c), lengths=lengths)
    pairs = zip((got.y, *got.state), (wanted.y, *wanted.state), strict=True)
    return max(float(np.abs(one - other).max()) for one, other in pairs)


@pytest.mark.parametrize("switches", [{}, {"reverse": True}])
def test_its_values_are_near_those_of_float32(package: ModuleType, switches: dict[str, Any]) -> None:
    """They are those of int8, and those of the backend in float32 are not."""
    assert _error(_backend(package, ""), **switches) < 1e-6
    assert 1e-4 < _error(_backend(package), **switches) < 0.05


def test_onnxruntime_has_lengths_and_no_bias() -> None:
    package = pytest.importorskip("lstmcore_onnxruntime.int8_plugin")
    pytest.importorskip("onnxruntime")
    backend = package.lstmcore_backend()
    for switches in ({}, {"reverse": True}, {"bias": False}):
        assert 1e-4 < _error(backend, np.array([3, 0, 5, 1]), **switches) < 0.05


def test_a_large_row_and_step_change_others_in_int8_alone(package: ModuleType) -> None:
    """The smallest case comes first, and fails too."""
    selection = "rows.large or steps.large"
    whole = run(_backend(package, ""), precisions=["float32"], select=selection)
    assert not whole.bad
    for check in run(_backend(package), select=selection).checks:
        ran = [item for item in check.items if item.outcome is not Outcome.UNSUPPORTED]
        assert [item.outcome for item in ran] == [Outcome.FAILED] * len(ran)
        assert ran[0].id == f"{check.id}[float32-large,T=2,N=2,I=1,H=1]"
        assert max(item.worst.share for item in ran if item.worst) > 1e4


def test_h_has_one_scale_for_all_rows_of_a_thread(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTMCORE_NUM_THREADS", "1")
    config, rng = LSTMConfig(input_size=I, hidden_size=H), np.random.default_rng(0)
    parameters = {name: rng.uniform(-0.4, 0.4, s).astype(np.float32) for name, s in config.parameter_shapes.items()}
    x, h = np.zeros((1, 2, I), np.float32), rng.uniform(-1, 1, (2, H)).astype(np.float32)
    large = h * np.array([[1], [1000]], np.float32)
    for plugin, right in (("", True), (".int8_plugin", False)):
        kernel = _backend(package, plugin).compile(config, "float32")
        weights = kernel.pack(parameters)
        first, other = (kernel.forward(weights, x, State(state, 0 * h)).y[:, 0] for state in (h, large))
        assert np.array_equal(first, other) == right


def test_what_it_declares_has_a_reason(package: ModuleType) -> None:
    backend = _backend(package)
    declared = backend.capabilities()
    assert declared.derivatives == set()
    assert set(declared.reasons) >= FEATURES - declared.features
    with pytest.raises(UnsupportedError, match="peephole: left out of this backend, which is there for rows and steps"):
        backend.compile(LSTMConfig(input_size=I, hidden_size=H, peephole=True), "float32")
    receipt = backend.compile(LSTMConfig(input_size=I, hidden_size=H), "float32").receipt()
    assert "one scale for x of all rows and steps" in receipt.reason


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_the_plugin_imports_no_library(name: str) -> None:
    code = (
        f"import sys, lstmcore_{name}.int8_plugin as p; print(p.lstmcore_backend_info().name);"
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{name}-int8\n"
