"""The backend ``onnxruntime``: NaN and infinity, calls that it answers itself, refusals and their reasons.

The conformance suite has the rest.
"""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lstmcore import reference
from lstmcore.backend import Kernel, State, UnsupportedError
from lstmcore.config import LSTMConfig
from lstmcore.dialects.onnx_graph import OUTPUTS
from lstmcore.dialects.onnx_writer import INPUTS, operator_model
from lstmcore.extras import installing

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx import ModelProto, TensorProto, helper, numpy_helper  # noqa: E402

import lstmcore_onnxruntime  # noqa: E402  # needs ONNX Runtime
from lstmcore_onnxruntime.kernel import OnnxRuntimeBackend, _clips_the_cell  # noqa: E402

T, N, I, H = 5, 4, 3, 6
LENGTHS = np.array([3, 0, 5, 1])

Array = np.ndarray[Any, np.dtype[Any]]


def config_of(**switches: Any) -> LSTMConfig:
    return LSTMConfig(input_size=I, hidden_size=H, **switches)


def kernel(**switches: Any) -> Kernel:
    return OnnxRuntimeBackend().compile(config_of(**switches), "float32")


def draw(config: LSTMConfig, seed: int = 5) -> tuple[dict[str, Array], Array, State]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    parameters = {name: normal(*shape) for name, shape in config.parameter_shapes.items()}
    return parameters, normal(T, N, I), State(normal(N, H), normal(N, H))


def plain(inputs: dict[str, Array], bias: Array | None = None, **attributes: Any) -> list[Array]:
    """Return ONNX Runtime's outputs for random weights and these inputs, in the dtype of X."""
    dtype, rng = inputs["X"].dtype, np.random.default_rng(3)
    weights = {name: rng.standard_normal((1, 4 * H, k)).astype(dtype) for name, k in (("W", I), ("R", H))}
    if bias is not None:
        weights["B"] = bias.astype(dtype)
    given = {"X": "X", "W": "W", "R": "R"} | {name: name for name in (*weights, *inputs)}
    order = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c")
    node = helper.make_node("LSTM", [given.get(name, "") for name in order], ["Y", "Y_h", "Y_c"], **attributes)
    kind = helper.np_dtype_to_tensor_dtype

    def value(name: str, array: Array) -> Any:
        return helper.make_tensor_value_info(name, kind(array.dtype), array.shape)

    outputs = [helper.make_tensor_value_info(name, kind(dtype), None) for name in ("Y", "Y_h", "Y_c")]
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "plain", [value(*item) for item in inputs.items()], outputs, held)
    opset = 22 if kind(dtype) == TensorProto.BFLOAT16 else 14
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


# NaN and infinity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"bias": False},
        {"peephole": True},
        {"coupling": "forget_from_input", "gate_clip": 0.5},
        {"gate_activation": "hard_sigmoid", "cell_activation": "thresholded_relu", "hidden_activation": "relu"},
    ],
)
def test_a_nan_goes_where_the_equations_take_it(switches: dict[str, Any], reverse: bool, lengths: Any) -> None:
    one = kernel(reverse=reverse, **switches)
    parameters, x, state = draw(one.config)
    weights = one.pack(parameters)
    places = [("x", (t, n, 1)) for t in range(T) for n in range(N)]
    places += [(name, (n, 2)) for name in "hc" for n in range(N)]
    for where, index in [*places, ("both", ())]:
        array = {"x": x.copy(), "h": state.h.copy(), "c": state.c.copy()}
        if where == "both":
            array["x"][2, 2, 0] = array["c"][2, 3] = array["h"][3, 1] = array["c"][0, 5] = np.nan
        else:
            array[where][index] = np.nan
        given = State(array["h"], array["c"])
        found = one.forward(weights, array["x"], given, lengths=lengths)
        wanted = reference.forward(one.config, parameters, array["x"], given, lengths=lengths)
        for got, expected in zip((found.y, *found.state), (wanted.y, *wanted.state), strict=True):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=f"{where}{index}")


@pytest.mark.parametrize(("where", "told"), [("x", r"x\[2, 3\]"), ("h", r"state\.h\[3\]"), ("c", r"state\.c\[3\]")])
def test_an_infinity_is_refused_where_it_would_be_computed_with(where: str, told: str) -> None:
    one = kernel()
    parameters, x, state = draw(one.config)
    weights = one.pack(parameters)
    array = {"x": x, "h": state.h, "c": state.c}[where]
    array[(2, 3, 0) if where == "x" else (3, 0)] = -np.inf
    with pytest.raises(UnsupportedError, match=f"{told}: ONNX Runtime makes it the largest float32"):
        one.forward(weights, x, state)
    for end in (0, 2) if where == "x" else (0,):
        assert np.isfinite(one.forward(weights, x, state, lengths=[5, 5, 5, end]).y).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused(value: float) -> None:
    one = kernel()
    parameters, _, _ = draw(one.config)
    parameters["weight_h"][7, 2] = value
    with pytest.raises(
        ValueError, match=r"parameters\['weight_h'\]: expected finite numbers; got (nan|inf) at \[7, 2\]"
    ):
        one.pack(parameters)


def test_the_reasons_for_that_are_true() -> None:
    x = ones(T, N, I)
    x[0, 0, 0] = np.nan
    assert np.isnan(plain({"X": x}, hidden_size=H)[0][:, 0, 0]).all()
    assert np.isfinite(plain({"X": x}, ones(1, 8 * H), hidden_size=H)[0]).all()  # gone
    x[0, 0, 0] = np.inf
    functions = {"activations": ["Sigmoid", "Relu", "Relu"]}
    largest = plain({"X": x[:1]}, ones(1, 8 * H), hidden_size=H, **functions)[2].max()
    assert largest == np.finfo(np.float32).max  # infinity in the equations


# Calls that it answers itself, and refusals ---------------------------------------------------------------------------


def test_onnx_runtime_without_a_step_loses_the_state() -> None:
    """For T = 0 ONNX Runtime does not return the initial state."""
    state = {"initial_h": ones(1, N, H), "initial_c": ones(1, N, H)}
    _, h, c = plain({"X": ones(T, N, I), "sequence_lens": LENGTHS.astype(np.int32), **state}, hidden_size=H)
    assert not h[0, 1].any() and not c[0, 1].any()
    for _, h, _ in (
        plain({"X": ones(0, N, I), **state}, hidden_size=H),
        plain({"X": ones(T, N, I), "sequence_lens": np.zeros(N, np.int32), **state}, hidden_size=H),
    ):
        assert not h.any()  # and c is memory that nobody wrote to


@pytest.mark.parametrize("shape", [(2**20, 2**9, 1), (2**20, 2**7, 2**4)])
def test_sizes_that_onnx_runtime_cannot_count_are_refused(shape: tuple[int, int, int]) -> None:
    config = LSTMConfig(input_size=shape[2], hidden_size=1)
    one = OnnxRuntimeBackend().compile(config, "float32")
    weights = one.pack({name: ones(*size) for name, size in config.parameter_shapes.items()})
    with pytest.raises(UnsupportedError, match=r"x: expected T N 4 H and T N I below 2\^31"):
        one.forward(weights, np.broadcast_to(np.float32(0), shape))


@pytest.mark.parametrize(
    ("precision", "switches", "told"),
    [
        ("float64", {}, "does not support double"),
        ("float16", {}, "returns c in float16"),
        ("bfloat16", {}, "bfloat16: ONNX Runtime has no LSTM in it"),
        ("float32", {"proj_size": 2}, "proj_size: ONNX's LSTM has none"),
        ("float32", {"coupling": "input_from_forget"}, "input_from_forget: ONNX's LSTM has none"),
        ("float32", {"hidden_activation": "softplus"}, r"infinite from z = 88\.8"),
        ("float32", {"gate_clip": 1e-46}, "gate_clip: ONNX has it in float32, which 1e-46 is not"),
        ("float32", {"gate_clip": 1e39}, r"gate_clip: ONNX has it in float32, which 1e\+39 is not"),
        ("float32", {"cell_activation": "elu(-1e39)"}, "cell_activation: ONNX has its parameters in float32; got elu"),
    ],
)
def test_what_onnx_runtime_has_not_is_refused_with_the_reason(
    precision: str, switches: dict[str, Any], told: str
) -> None:
    with pytest.raises(UnsupportedError, match=told):
        OnnxRuntimeBackend().compile(config_of(**switches), precision)


@pytest.mark.parametrize("bound", [1.5e-45, 3e38])
def test_a_gate_clip_at_the_ends_of_float32_runs(bound: float) -> None:
    one = kernel(gate_clip=bound)
    parameters, x, state = draw(one.config)
    assert np.isfinite(one.forward(one.pack(parameters), x, state).y).all()


def test_the_reasons_for_refusing_precisions_are_true() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(Exception, match="LSTM operator does not support double yet"):
        plain({"X": ones(T, N, I, dtype=np.float64)}, hidden_size=H)
    assert plain({"X": ones(T, N, I, dtype=np.float16)}, hidden_size=H)[2].dtype == np.float16
    with pytest.raises(Exception, match="Could not find an implementation for LSTM"):
        plain({"X": ones(T, N, I, dtype=ml_dtypes.bfloat16)}, hidden_size=H)


def test_the_reason_for_refusing_softplus_is_true() -> None:
    def candidate(x: float) -> float:
        """Return the cell after one step from 0, with an open gate."""
        functions = {"activations": ["Affine", "Softplus", "Tanh"], "activation_alpha": [0.0], "activation_beta": [1.0]}
        bias = np.zeros((1, 8 * H), np.float32)
        bias[0, 3 * H : 4 * H] = x
        return float(plain({"X": 0 * ones(1, 1, I)}, bias, hidden_size=H, **functions)[2].max())

    assert candidate(88.0) == 88.0
    assert candidate(89.0) == np.inf


@pytest.mark.parametrize(("h", "clips"), [(np.tanh(4.0) / 2, False), (np.tanh(1.0) / 2, True)])
def test_a_version_that_clips_the_cell_is_found(monkeypatch: pytest.MonkeyPatch, h: float, clips: bool) -> None:
    one, weights = kernel(gate_clip=1.0), {"weight_x": ones(24, I), "weight_h": ones(24, H), "bias": 0 * ones(24)}
    large = State(ones(1, H), 8 * ones(1, H))
    assert one.forward(one.pack(weights), 0 * ones(1, 1, I), large).y.min() > 0.7  # sigmoid(1) tanh(1) is 0.56
    assert not _clips_the_cell()
    session = SimpleNamespace(run=lambda *_: [np.full((1, 1, 1), h, np.float32)])
    made: list[ModelProto] = []

    def start(serialized: bytes) -> Any:
        made.append(ModelProto.FromString(serialized))
        return session

    monkeypatch.setattr("lstmcore_onnxruntime.kernel.start_session", start)
    monkeypatch.setattr("lstmcore_onnxruntime.kernel._clips_the_cell", _clips_the_cell.__wrapped__)
    assert ("gate_clip" in OnnxRuntimeBackend().capabilities().features) is not clips
    (model,) = made
    assert [each.f for node in model.graph.node for each in node.attribute if each.name == "clip"] == [1.0]
    if not clips:
        return
    with pytest.raises(UnsupportedError, match="gate_clip: this ONNX Runtime clips the input of the hidden"):
        kernel(gate_clip=1.0)


# The session ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "threads", "told"), [(None, 0, "its own number"), ("2", 2, "LSTMCORE_NUM_THREADS=2")]
)
def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, asked: str | None, threads: int, told: str) -> None:
    monkeypatch.delenv("LSTMCORE_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("LSTMCORE_NUM_THREADS", asked)
    one = kernel()
    session = one.pack(draw(one.config)[0])
    assert session.get_session_options().intra_op_num_threads == threads
    assert session.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"
    assert told in one.receipt().reason


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    config, rng, found = LSTMConfig(input_size=17, hidden_size=129), np.random.default_rng(1), []
    one = OnnxRuntimeBackend().compile(config, "float32")
    parameters = {name: rng.normal(size=size).astype("f4") / 9 for name, size in config.parameter_shapes.items()}
    x = rng.normal(size=(9, 33, 17)).astype("f4")
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("LSTMCORE_NUM_THREADS", threads)
        found.append(one.forward(one.pack(parameters), x).y)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_the_model_is_a_valid_one_of_its_own() -> None:
    config = config_of(peephole=True, reverse=True, gate_clip=2.0, cell_activation="elu(0.5)")
    made = operator_model(config, draw(config)[0])
    onnx.checker.check_model(made, full_check=True)
    (node,) = made.graph.node
    assert {*node.input} == {*INPUTS, *(tensor.name for tensor in made.graph.initializer)}
    assert [value.name for value in made.graph.input] == list(INPUTS)
    assert [value.name for value in made.graph.output] == list(OUTPUTS)


def test_the_plugin_imports_neither_library() -> None:
    code = """if True:
        import sys, lstmcore_onnxruntime
        lstmcore_onnxruntime.lstmcore_backend_info().unavailable()
        print({"onnx", "onnxruntime"} & {*sys.modules})
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ({"onnxruntime"}, f"ONNX Runtime is not installed; install it with: {installing('onnxruntime')}"),
        (
            {"onnx"},
            f"ONNX, which writes its models, is not installed; install it with: {installing('onnxruntime')}",
        ),
        (set(), None),
    ],
)
def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, missing: set[str], told: str | None) -> None:
    monkeypatch.setattr(lstmcore_onnxruntime, "find_spec", lambda name: None if name in missing else object())
    assert lstmcore_onnxruntime.lstmcore_backend_info().unavailable() == told
