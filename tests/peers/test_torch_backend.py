"""The backend ``torch``: the caller's PyTorch settings, the path, the tape, refusals.

The conformance suite has the rest.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.backend import Forward, Gradients, Kernel, State, UnsupportedError
from lstmcore.config import LSTMConfig
from lstmcore_conformance import run
from lstmcore_conformance.suite.expected_failures import load
from lstmcore_conformance.suite.report import Outcome

torch = pytest.importorskip("torch")
import lstmcore_torch  # noqa: E402  # needs PyTorch
from lstmcore_torch.kernel import TorchBackend  # noqa: E402  # needs PyTorch

T, N, I, H = 5, 3, 4, 6
LENGTHS = np.array([3, 0, 5])


def kernel(precision: str = "float32", **switches: Any) -> Kernel:
    return TorchBackend().compile(LSTMConfig(input_size=I, hidden_size=H, **switches), precision)


def draw(one: Kernel) -> tuple[Any, np.ndarray[Any, Any], State]:
    rng, dtype = np.random.default_rng(5), one.precision.storage
    shapes = one.config.parameter_shapes
    weights = one.pack({name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()})
    state = State(*(rng.standard_normal((N, width)).astype(dtype) for width in (one.config.output_size, H)))
    return weights, rng.standard_normal((T, N, I)).astype(dtype), state


def both(one: Kernel, lengths: Any = None) -> tuple[Forward, Gradients]:
    weights, x, state = draw(one)
    found = one.forward(weights, x, state, lengths=lengths, record=True)
    return found, one.backward(weights, found.tape, np.cos(found.y), found.state)


def arrays(found: tuple[Forward, Gradients]) -> list[np.ndarray[Any, Any]]:
    forward, gradients = found
    return [forward.y, *forward.state, gradients.x, *gradients.state, *gradients.parameters.values()]


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(
    "setting",
    [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")],
    ids=["inference_mode", "no_grad", "autocast", "default device"],
)
def test_the_settings_of_the_caller_change_nothing(
    setting: Callable[[], AbstractContextManager[Any]], lengths: Any
) -> None:
    wanted = arrays(both(kernel(), lengths))
    with setting():
        found = arrays(both(kernel(), lengths))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_writes_do_not_reach_the_tape(lengths: Any) -> None:
    """Writes to inputs and results after a call do not change the tape."""
    one = kernel("float64", proj_size=2)
    wanted = arrays(both(one, lengths))[3:]
    weights, x, state = draw(one)
    found = one.forward(weights, x, state, lengths=lengths, record=True)
    dy, dstate = np.cos(found.y), State(*(part.copy() for part in found.state))
    for array in (x, *state, found.y, *found.state):
        array[...] = np.nan
    gradients = one.backward(weights, found.tape, dy, dstate)
    for got, expected in zip([gradients.x, *gradients.state, *gradients.parameters.values()], wanted, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("precision", "switches", "lengths", "path"),
    [
        ("float32", {}, None, "oneDNN"),
        ("float32", {}, LENGTHS, "ATen"),
        ("float32", {"proj_size": 2}, None, "ATen"),
        ("float64", {}, None, "ATen"),
    ],
)
def test_the_receipt_names_the_code_that_runs(
    precision: str, switches: dict[str, Any], lengths: Any, path: str
) -> None:
    one = kernel(precision, **switches)
    weights, x, state = draw(one)
    with torch.autograd.profiler.profile() as profile:
        one.forward(weights, x, state, lengths=lengths)
    ran = {event.name for event in profile.function_events}
    assert "aten::lstm" in ran
    assert ("aten::mkldnn_rnn_layer" in ran) is (path == "oneDNN")
    receipt = one.receipt()
    assert receipt.path == path or "with lengths, which make a packed sequence, ATen" in receipt.reason


def test_onednn_switched_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel().receipt().fallback is None
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    receipt = kernel().receipt()
    assert (receipt.path, receipt.fallback) == ("ATen", "oneDNN, which is faster, is off")
    assert kernel("float64").receipt().fallback is None


def test_projections_and_read_only_inputs_do_not_warn() -> None:
    """A projection and a read-only input cause no warning in a fresh process."""
    code = f"""
import numpy as np
from lstmcore.config import LSTMConfig
from lstmcore_torch.kernel import TorchBackend
config = LSTMConfig(input_size={I}, hidden_size={H}, proj_size=2)
one = TorchBackend().compile(config, "float32")
weights = one.pack({{name: np.ones(shape, "float32") for name, shape in config.parameter_shapes.items()}})
x = np.ones(({T}, {N}, {I}), "float32")
x.flags.writeable = False
one.forward(weights, x)
one.forward(weights, x, record=True)
"""
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    ("precision", "switches", "told"),
    [
        ("float16", {}, "PyTorch returns c in the dtype of x"),
        ("bfloat16", {}, "PyTorch returns c in the dtype of x"),
        ("float32", {"peephole": True}, "peephole: PyTorch's LSTM has none"),
        ("float32", {"cell_activation": "relu"}, "activation:relu: PyTorch's LSTM has its sigmoid and its two tanh"),
    ],
)
def test_what_pytorch_has_not_is_refused_with_the_reason(precision: str, switches: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        kernel(precision, **switches)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_reason_for_refusing_half_precision_is_true(dtype: Any) -> None:
    _, (_, c) = torch.nn.LSTM(I, H, dtype=dtype)(torch.zeros(T, N, I, dtype=dtype))
    assert c.dtype == dtype


def test_the_failures_that_are_expected_are_those_that_fail() -> None:
    known = load(Path(lstmcore_torch.__file__).with_name("expected_failures.toml"))
    report = run(TorchBackend(), select="backward.rows", expected_failures=known)
    expected = {item.id for check in report.checks for item in check.items if item.outcome is Outcome.EXPECTED}
    assert set(known) == {"backward.rows"}
    assert "backward.rows[float32-rows,plain]" in expected
    assert report.conforms


def test_the_reason_for_the_expected_failure_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the gradient of the bias is compared. That of the weights is a product, which depends on the processor."""
    rng = np.random.default_rng(7)
    x, dy = (torch.from_numpy(rng.uniform(size=(64, 1024, width)) + 0.5) for width in (I, H))
    wanted = torch.nn.LSTM(I, H, dtype=torch.float64)

    def gradient(module: Any, dtype: Any) -> Any:
        module(x.to(dtype))[0].backward(dy.to(dtype))
        return module.bias_ih_l0.grad.double()

    def error() -> float:
        module = torch.nn.LSTM(I, H)
        module.load_state_dict(wanted.state_dict())
        return float((gradient(module, torch.float32) - exact).abs().max() / exact.abs().max())

    exact = gradient(wanted, torch.float64)
    with_onednn = error()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert with_onednn > 8 * error()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # PyTorch's own, on its way there
def test_the_reason_for_refusing_jvp_is_true() -> None:
    module = torch.nn.LSTM(I, H)
    x = torch.ones(T, N, I)
    with pytest.raises(NotImplementedError, match="forward AD with mkldnn_rnn_layer"):
        torch.func.jvp(lambda x: module(x)[0], (x,), (x,))


def test_the_reasons_for_answering_without_pytorch_are_true() -> None:
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
        torch.nn.LSTM(I, H)(torch.zeros(0, N, I))
    with pytest.raises(RuntimeError, match="Length of all samples has to be greater than 0"):
        torch.nn.utils.rnn.pack_padded_sequence(torch.zeros(T, 2, I), [T, 0])
    array = np.zeros(3)
    array.flags.writeable = False
    with pytest.warns(UserWarning, match="not writable"):
        torch.from_numpy(array)
