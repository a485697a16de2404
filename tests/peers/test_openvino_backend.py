"""The backends of OpenVINO: the reasons of refusals, calls that they answer themselves, models and settings.

The conformance suite has the rest, and test_deviations.py what OpenVINO gets wrong.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from lstmcore import reference
from lstmcore.backend import Backend, State, UnsupportedError
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.extras import installing
from lstmcore.precision import get_precision
from lstmcore.registry import get_backend

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")

import lstmcore_openvino  # noqa: E402  # needs OpenVINO
import lstmcore_openvino.onnx_plugin  # noqa: E402
from lstmcore_openvino import kernel as module  # noqa: E402
from lstmcore_openvino.kernel import OpenVinoBackend  # noqa: E402
from lstmcore_openvino.onnx_kernel import OpenVinoOnnxBackend, OpenVinoOnnxBatchFirst  # noqa: E402

T, N, I, H = 5, 4, 3, 6
LENGTHS = np.array([3, 0, 5, 1])
BOTH = pytest.mark.parametrize("backend", [OpenVinoBackend(), OpenVinoOnnxBackend()], ids=lambda found: found.name)

Array = np.ndarray[Any, np.dtype[Any]]


def config_of(**switches: Any) -> LSTMConfig:
    return LSTMConfig(input_size=I, hidden_size=H, **switches)


def draw(config: LSTMConfig, dtype: Any = np.float32) -> tuple[dict[str, Array], Array, State]:
    rng = np.random.default_rng(5)
    parameters = {name: rng.standard_normal(shape).astype(dtype) for name, shape in config.parameter_shapes.items()}
    x, h, c = (rng.standard_normal(shape).astype(dtype) for shape in ((T, N, I), (N, H), (N, H)))
    return parameters, x, State(h, c)


def error(backend: Backend, lengths: Any = None, **switches: Any) -> float:
    """Return the largest error of y and the final state, from OpenVINO's result and ours."""
    config = config_of(**switches)
    parameters, x, state = draw(config)
    kernel = backend.compile(config, "float32")
    found = kernel.forward(kernel.pack(parameters), x, state, lengths=lengths)
    wanted = reference.forward(config, parameters, x, state, lengths=lengths)
    pairs = zip((found.y, *found.state), (wanted.y, *wanted.state), strict=True)
    return max(float(np.abs(got - expected).max()) for got, expected in pairs)


def plain(dtype: Any, **options: str) -> list[Array]:
    """Return OpenVINO's y, h and c of one LSTMSequence in `dtype`, with options of the CPU plug-in."""
    config = config_of()
    parameters, x, state = draw(config, dtype)
    model = module.sequence_model(config, parameters, None)
    program = openvino.Core().compile_model(model, "CPU", options)
    return module.infer(program, (np.swapaxes(x, 0, 1), state.h[:, None], state.c[:, None]))


def layers(config: LSTMConfig, sizes: tuple[int, int] | None) -> set[str]:
    """Return the types of the layers of a compiled model."""
    program = OpenVinoBackend().compile(config, "float32").pack(draw(config)[0])(sizes)
    return {str(node.get_rt_info()["layerType"].value) for node in program.get_runtime_model().get_ordered_ops()}


# What it computes -----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("switches", [{}, {"bias": False}, {"reverse": True}, {"gate_clip": 0.5}])
def test_a_call_is_right(backend: Backend, switches: dict[str, Any]) -> None:
    assert error(backend, **switches) < 1e-6


@pytest.mark.parametrize("switches", [{}, {"reverse": True}, {"gate_clip": 0.5}, {"cell_activation": "relu"}])
def test_lengths_are_right_and_0_keeps_the_state(switches: dict[str, Any]) -> None:
    assert error(OpenVinoBackend(), LENGTHS, **switches) < 1e-6


def test_the_reading_of_onnx_is_as_it_is() -> None:
    """The backend hides nothing: where OpenVINO drops a switch, its own plain LSTM comes back."""
    onnx = OpenVinoOnnxBackend()
    assert error(onnx, peephole=True) > 0.1
    assert error(onnx, coupling="forget_from_input") > 0.1
    assert error(onnx, LENGTHS) > 0.1
    assert error(onnx, LENGTHS, gate_clip=0.5) > 0.1  # the row of length 0
    assert error(onnx, np.maximum(LENGTHS, 1), gate_clip=0.5) < 1e-6
    config = config_of(peephole=True)
    parameters, x, state = draw(config)
    kernels = [onnx.compile(made, "float32") for made in (config, config_of())]
    packs = [kernels[0].pack(parameters), kernels[1].pack({k: v for k, v in parameters.items() if k != "peephole"})]
    y = [kernel.forward(weights, x, state).y for kernel, weights in zip(kernels, packs, strict=True)]
    np.testing.assert_array_equal(*y)


def test_layout_1_with_a_state_is_an_error() -> None:
    """OpenVINO takes rows for steps, and the state then fits no row. test_deviations.py has a call without a state."""
    backend, config = OpenVinoOnnxBatchFirst(), config_of()
    parameters, x, state = draw(config)
    kernel = backend.compile(config, "float32")
    model = kernel._model(parameters, None)
    assert [str(value.get_partial_shape()) for value in model.inputs][:2] == ["[?,?,3]", "[?]"]
    with pytest.raises(RuntimeError, match=r"incompatible|not matched"):
        kernel.forward(kernel.pack(parameters), x, state)


@BOTH
@pytest.mark.parametrize("shape", [(0, N, I), (T, 0, I), (0, 0, I)])
def test_a_call_without_a_step_keeps_the_state(backend: Backend, shape: tuple[int, int, int]) -> None:
    config = config_of()
    kernel, rng = backend.compile(config, "float32"), np.random.default_rng(2)
    state = State(*rng.standard_normal((2, shape[1], H)).astype(np.float32))
    found = kernel.forward(kernel.pack(draw(config)[0]), np.zeros(shape, np.float32), state)
    assert found.y.shape == (*shape[:2], H)
    for got, given in zip(found.state, state, strict=True):
        np.testing.assert_array_equal(got, given)
        assert not np.shares_memory(got, given)


# What it declares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid", "elu"])
def test_other_activations_are_refused_by_openvino(name: str) -> None:
    config = config_of(cell_activation=name)
    with pytest.raises(UnsupportedError, match=f"activation:{name}: OpenVINO's CPU plug-in refuses it in an LSTM"):
        OpenVinoOnnxBackend().compile(config, "float32")
    kernel = OpenVinoOnnxBackend()._compile(config, get_precision("float32"))
    with pytest.raises(RuntimeError):
        kernel.pack(draw(config)[0])(None)


@BOTH
def test_every_reason_is_given(backend: Backend) -> None:
    declared = backend.capabilities()
    assert set(declared.reasons) >= FEATURES - declared.features
    assert not set(declared.reasons) & declared.features
    for bound in (1e-46, 1e39):
        with pytest.raises(UnsupportedError, match="gate_clip: OpenVINO has it in float32"):
            backend.compile(config_of(gate_clip=bound), "float32")


def test_the_reasons_for_refusing_precisions_are_true() -> None:
    in_double, in_float = plain(np.float64, INFERENCE_PRECISION_HINT="f32"), plain(np.float32)
    assert in_double[2].dtype == np.float64
    config = config_of()
    parameters, x, state = draw(config, np.float64)
    wanted = reference.forward(config, parameters, x, state).state.c
    assert 1e-9 < np.abs(in_double[2][:, 0] - wanted).max() < 1e-5
    assert in_float[2].dtype == np.float32
    assert plain(np.float16, INFERENCE_PRECISION_HINT="f32")[2].dtype == np.float16


# Models and settings --------------------------------------------------------------------------------------------------


def test_receipts_name_what_openvino_runs() -> None:
    """One kernel for all steps, or a loop with a clip, other functions, or lengths."""
    backend = OpenVinoBackend()
    for switches, path, layer in (
        ({}, "oneDNN's LSTM", "RNNSeq"),
        ({"gate_clip": 0.5}, "a loop over one step", "TensorIterator"),
        ({"hidden_activation": "relu"}, "a loop over one step", "TensorIterator"),
    ):
        config = config_of(**switches)
        assert backend.compile(config, "float32").receipt().path == path
        assert layers(config, None) & {"RNNSeq", "TensorIterator"} == {layer}
    assert "with lengths, a loop" in backend.compile(config_of(), "float32").receipt().reason
    assert "TensorIterator" in layers(config_of(), (T, N))


@BOTH
def test_models_are_compiled_once_a_size(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[openvino.Model] = []
    compiled = module._compiled
    monkeypatch.setattr(module, "_compiled", lambda model: made.append(model) or compiled(model))
    config = config_of()
    parameters, x, state = draw(config)
    kernel = backend.compile(config, "float32")
    weights = kernel.pack(parameters)
    assert not made
    for lengths in (None, None, LENGTHS, LENGTHS):
        kernel.forward(weights, x, state, lengths=lengths)
    assert len(made) == (2 if backend.name == "openvino" else 1)


@pytest.mark.parametrize(("asked", "told"), [(None, "its own number"), ("2", "LSTMCORE_NUM_THREADS=2")])
def test_the_settings(monkeypatch: pytest.MonkeyPatch, asked: str | None, told: str) -> None:
    monkeypatch.delenv("LSTMCORE_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("LSTMCORE_NUM_THREADS", asked)
    config = config_of()
    kernel = OpenVinoBackend().compile(config, "float32")
    program = kernel.pack(draw(config)[0])(None)
    assert str(program.get_property("INFERENCE_PRECISION_HINT")) == str(openvino.Type.f32)
    assert program.get_property("NUM_STREAMS") == 1
    assert asked is None or program.get_property("INFERENCE_NUM_THREADS") == int(asked)
    assert told in kernel.receipt().reason


def test_versions_are_those_of_the_packages() -> None:
    assert set(get_backend("openvino").versions()) == {"openvino"}
    found = get_backend("openvino-onnx").versions()
    assert set(found) == {"openvino", "onnx"}
    assert openvino.__version__.startswith(found["openvino"])


# The plug-ins ---------------------------------------------------------------------------------------------------------


def test_the_plugins_import_neither_library() -> None:
    code = """if True:
        import sys, lstmcore_openvino, lstmcore_openvino.onnx_plugin as other
        print([part.lstmcore_backend_info().name for part in (lstmcore_openvino, other)])
        lstmcore_openvino.lstmcore_backend_info().unavailable()
        print({"onnx", "openvino"} & {*sys.modules})
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "['openvino', 'openvino-onnx']\nset()\n"


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("openvino", f"OpenVINO is not installed; install it with: {installing('openvino')}"),
        ("onnx", f"ONNX, which writes its models, is not installed; install it with: {installing('openvino')}"),
        ("", None),
    ],
)
def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, missing: str, told: str | None) -> None:
    monkeypatch.setattr(lstmcore_openvino, "find_spec", lambda name: None if name == missing else object())
    assert lstmcore_openvino.onnx_plugin.lstmcore_backend_info().unavailable() == told
    own = lstmcore_openvino.lstmcore_backend_info().unavailable()
    assert own == (told if missing == "openvino" else None)
