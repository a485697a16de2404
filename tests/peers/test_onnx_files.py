"""Whole ONNX models: written, read, and run by ONNX Runtime and by ONNX's reference evaluator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.chain import Chain
from lstmcore.chain_layers import Merge, Reversed
from lstmcore.cli._verify import largest_model_difference
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.layers import Embedding
from lstmcore.lstm import LSTM
from lstmcore.training import Readout, SequenceModel, Standardizer

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

LENGTHS = np.array([7, 2, 0, 5], np.int32)
Model = LSTM | Chain


def lstm(input_size: int = 3, hidden_size: int = 5, seed: int = 1, **arguments: Any) -> LSTM:
    return LSTM(input_size, hidden_size, seed=seed, backend="numpy", **arguments)


def unlike() -> LSTM:
    """Return an LSTM whose two directions have other activations."""
    configs = (
        LSTMConfig(input_size=3, hidden_size=5, gate_activation="hard_sigmoid(0.25, 0.4)"),
        LSTMConfig(input_size=3, hidden_size=5, reverse=True, cell_activation="leaky_relu(0.3)"),
    )
    return LSTM.from_config(StackConfig((configs,)), seed=3, backend="numpy")


def chain(*, batch_first: bool = False) -> Chain:
    parts = [lstm(num_layers=2, bidirectional=True), Merge("mul"), Reversed(lstm(5, 4, 2)), lstm(4, 6, 3, num_layers=2)]
    return Chain(parts, batch_first=batch_first)


MODELS: dict[str, Any] = {
    "plain": lstm,
    "no bias": lambda: lstm(bias=False),
    "stack": lambda: lstm(num_layers=3, bidirectional=True, batch_first=True, dropout=0.2),
    "coupled": lambda: lstm(coupling="forget_from_input", peephole=True, gate_clip=0.9),
    "activations": lambda: lstm(gate_activation="hard_sigmoid(0.2, 0.5)", cell_activation="elu(0.7)"),
    "unlike directions": unlike,
    "dropout": lambda: lstm(recurrent_dropout=0.3),
    "reversed": lambda: Chain([Reversed(lstm())]),
    "chain": chain,
    "sum": lambda: Chain([lstm(bidirectional=True), Merge("sum")]),
    "average": lambda: Chain([lstm(bidirectional=True), Merge("average"), lstm(5, 2)], batch_first=True),
}


def inputs_for(model: Model, dtype: str = "float32") -> tuple[dict[str, Any], Any]:
    """Return the inputs of a written model, and the initial state for ours."""
    rng, found = np.random.default_rng(0), {}
    x = rng.standard_normal((7, 4, 3)).astype(dtype)
    found["x"], found["lengths"] = (x.swapaxes(0, 1) if model.batch_first else x), LENGTHS
    states = []
    for index, one in enumerate(model.lstms if isinstance(model, Chain) else (model,)):
        sizes = (len(one.stack.configs), 4, one.stack.hidden_size)
        states.append(tuple(rng.standard_normal(sizes).astype(dtype) for _ in "hc"))
        end = f".{index}" if isinstance(model, Chain) else ""
        found |= {f"{name}_0{end}": value for name, value in zip("hc", states[-1], strict=True)}
    return found, tuple(states) if isinstance(model, Chain) else states[0]


def run(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_runs_and_is_read_back(tmp_path: Path, name: str) -> None:
    model, path = MODELS[name](), tmp_path / "model.onnx"
    model.to_onnx(path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    inputs, state = inputs_for(model)
    y, last = model(np.ascontiguousarray(inputs["x"]), state, LENGTHS)
    found = run(path, inputs)
    np.testing.assert_allclose(found["y"], y, atol=2e-6)
    for index, pair in enumerate(last if isinstance(model, Chain) else (last,)):
        end = f".{index}" if isinstance(model, Chain) else ""
        for key, value in zip("hc", pair, strict=True):
            wanted = np.array(value)
            wanted[:, LENGTHS == 0] = 0  # ONNX Runtime has 0 for a row of length 0
            np.testing.assert_allclose(found[f"{key}_n{end}"], wanted, atol=2e-6)
    again = type(model).from_onnx(path, backend="numpy")
    assert list(again.parameters) == list(model.parameters)
    for one, two in zip(again.parameters.values(), model.parameters.values(), strict=True):
        assert one.tobytes() == two.tobytes() and one.dtype == two.dtype
    if isinstance(model, LSTM):
        plain = tuple(replace(config, recurrent_dropout=0.0) for config in model.stack.configs)
        assert again.stack.configs == plain and again.batch_first is False
    else:
        assert [spec[::2] for spec in again.spec] == [spec[::2] for spec in model.spec]


def test_without_lengths_and_state(tmp_path: Path) -> None:
    """In float64 too, which ONNX Runtime lacks; the evaluator computes it."""
    model, path = lstm(num_layers=2, bidirectional=True, dtype="float64"), tmp_path / "model.onnx"
    model.to_onnx(path, lengths=False, state=False)
    x = np.random.default_rng(0).standard_normal((6, 2, 3))
    found = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
    assert len(found) == 1
    np.testing.assert_allclose(found[0], model(x)[0], atol=1e-13)
    again = LSTM.from_onnx(path, backend="numpy")
    assert again.precision.name == "float64" and again.stack == model.stack


def scaled(width: int) -> Standardizer:
    scale = np.arange(width) * 2.0
    return Standardizer(np.arange(width) + 0.5, scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", ["last", "every", "mean"])
@pytest.mark.parametrize("activation", ["none", "tanh", "sigmoid", "relu", "softmax"])
def test_a_whole_model(tmp_path: Path, activation: Any, steps: Any, dtype: str) -> None:
    """Standardised, with x beside h in the readout, for any T and N."""
    layers: Any = Chain(
        [lstm(bidirectional=True, dtype=dtype), Merge("sum"), Reversed(lstm(5, 4, 2, dtype=dtype))],
        batch_first=activation == "tanh",
    )
    readout = Readout(4, 2, activation=activation, x_size=3, steps=steps, seed=0, dtype=dtype)
    ends = {} if activation == "softmax" else {"target_scaling": scaled(2)}
    model = SequenceModel(layers, readout, input_scaling=scaled(3), **ends)
    path, rng = tmp_path / "model.onnx", np.random.default_rng(0)
    model.to_onnx(path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    for sizes in ((7, 2, 0, 5), (1,), (3, 4)):
        rows = [rng.standard_normal((size, 3)).astype(dtype) for size in sizes]
        x = np.zeros((len(sizes), max(sizes), 3), dtype)
        for place, row in enumerate(rows):
            x[place, : len(row)] = row
        x = x if activation == "tanh" else np.ascontiguousarray(x.swapaxes(0, 1))
        inputs = {"x": x, "lengths": np.array(sizes, np.int32)}
        if dtype == "float32":
            y = run(path, inputs)["y"]
        elif len(set(sizes)) == 1:  # the evaluator leaves out lengths
            y = ReferenceEvaluator(onnx.load(path)).run(None, inputs)[0]
        else:
            continue
        y = y if steps != "every" or activation == "tanh" else y.swapaxes(0, 1)
        for row, (expected, size) in enumerate(zip(model.predict(rows), sizes, strict=True)):
            got = y[row, :size] if steps == "every" else y[row]
            np.testing.assert_allclose(got, expected, atol=3e-6 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("steps", ["last", "every", "mean"])
def test_an_embedding_is_written(tmp_path: Path, steps: Any, batch_first: bool) -> None:
    layers = LSTM(3, 5, bidirectional=True, batch_first=batch_first, seed=0)
    readout = Readout.of(layers, 2, steps=steps, with_x=True, seed=0)
    model = SequenceModel(layers, readout, embedding=Embedding(11, 3, seed=1))
    path, rng = tmp_path / "model.onnx", np.random.default_rng(0)
    model.to_onnx(path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    sizes = (7, 2, 0, 5)
    rows = [rng.integers(0, 11, size) for size in sizes]
    x = np.zeros((len(sizes), max(sizes)), np.int64)
    for place, row in enumerate(rows):
        x[place, : len(row)] = row
    y = run(path, {"x": x if batch_first else np.ascontiguousarray(x.T), "lengths": np.array(sizes, np.int32)})["y"]
    y = y if steps != "every" or batch_first else y.swapaxes(0, 1)
    for row, (expected, size) in enumerate(zip(model.predict(rows), sizes, strict=True)):
        np.testing.assert_allclose(y[row, :size] if steps == "every" else y[row], expected, atol=3e-6)
    assert largest_model_difference(model, path) < 3e-6


@pytest.mark.parametrize(
    ("switches", "missing"),
    [
        ({"proj_size": 2}, "proj_size"),
        ({"cell_clip": 1.0}, "cell_clip"),
        ({"layer_norm": True}, "layer_norm"),
        ({"zoneout_cell": 0.1}, "zoneout_cell"),
        ({"recurrence": "cell"}, "recurrence:cell"),
        ({"coupling": "input_from_forget"}, "coupling:input_from_forget"),
    ],
)
def test_switches_that_onnx_lacks_are_refused(tmp_path: Path, switches: dict[str, Any], missing: str) -> None:
    with pytest.raises(ValueError, match=f"expected what ONNX's LSTM has; got {missing}"):
        lstm(**switches).to_onnx(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"clip: expected a number that float32 holds.*1e\+39"):
        lstm(gate_clip=1e39, dtype="float64").to_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_stored_weights_are_written_as_their_numbers(tmp_path: Path) -> None:
    model, path = lstm(num_layers=2).compressed("int8"), tmp_path / "model.onnx"
    model.to_onnx(path)
    for name, value in LSTM.from_onnx(path, backend="numpy").parameters.items():
        np.testing.assert_array_equal(value, model.parameters[name])


# Models of others -----------------------------------------------------------------------------------------------------


def weights(directions: int = 1, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    sizes = {"W": (directions, 20, 3), "R": (directions, 20, 5), "B": (directions, 40), "P": (directions, 15)}
    return {name: (rng.standard_normal(size) / 3).astype(dtype) for name, size in sizes.items()}


def node_of(name: str = "lstm", **attributes: Any) -> Any:
    return helper.make_node("LSTM", ["X", "W", "R", "B", "", "", "", "P"], ["Y"], name=name, **attributes)


def write(path: Path, nodes: Any, constants: dict[str, Any], opset: int = 14, **more: Any) -> Path:
    """Write a model with the input X, whose constants are initializers."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("X", TensorProto.FLOAT, ["T", "N", 3]), *more.get("inputs", [])],
        [value("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=domains, ir_version=7).SerializeToString())
    return path


def read(path: Path, node: str | None = None) -> LSTM:
    return LSTM.from_onnx(path, node, backend="numpy")


@pytest.mark.parametrize("opset", [1, 7, 14, 22])
def test_every_version_of_the_operator(tmp_path: Path, opset: int) -> None:
    attributes = {"output_sequence": 1} if opset == 1 else {"layout": 1} if opset >= 14 else {}
    path = write(tmp_path / "m.onnx", [node_of(hidden_size=5, **attributes)], weights(), opset)
    found = read(path)
    assert found.batch_first is (opset >= 14)
    assert found.stack.configs == (LSTMConfig(input_size=3, hidden_size=5, peephole=True),)
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    model = onnx.load(path)
    if opset in (7, 14):
        y = ReferenceEvaluator(model).run(None, {"X": x})[0]
        y = y[:, :, 0] if opset == 14 else y[:, 0]
        np.testing.assert_allclose(found(x)[0], y, atol=2e-6)


def same(one: LSTM, two: LSTM) -> None:
    assert one.stack.configs == two.stack.configs
    for name, value in one.parameters.items():
        assert value.tobytes() == two.parameters[name].tobytes()


def test_weights_that_are_constants_in_other_ways(tmp_path: Path) -> None:
    """Nodes Constant and Identity, computed ones, ones of the graph around, and inputs with a default."""
    own, path = weights(), tmp_path / "m.onnx"
    plain = read(write(path, [node_of()], own))
    make = helper.make_node
    constant = make("Constant", [], ["W0"], value=numpy_helper.from_array(own["W"]))
    same(read(write(path, [constant, make("Identity", ["W0"], ["W"]), node_of()], own | {"W": own["R"]})), plain)
    parts = {"W1": own["W"][0, :7], "W2": own["W"][0, 7:], "axes": np.array([0])}
    nodes = [make("Concat", ["W1", "W2"], ["W3"], axis=0), make("Unsqueeze", ["W3", "axes"], ["W"]), node_of()]
    same(read(write(path, nodes, {**parts, **{k: own[k] for k in "RBP"}})), plain)
    defaults = [helper.make_tensor_value_info("R", TensorProto.FLOAT, [1, 20, 5])]
    same(read(write(path, [node_of()], own, inputs=defaults)), plain)
    kinds = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    branches = {f"{name}_branch": helper.make_graph([node_of("")], name, [], [kinds]) for name in ("then", "else")}
    path = write(path, [make("If", ["Q"], ["Y"], name="if", **branches)], {**own, "Q": np.array(True)})
    same(read(path, "if/then_branch/Y"), plain)
    with pytest.raises(ValueError, match=r"node: expected one of 'if/else_branch/Y', 'if/then_branch/Y', since .*None"):
        read(path)


def test_weights_in_other_dtypes(tmp_path: Path) -> None:
    own, path = weights(dtype=np.float16), tmp_path / "m.onnx"
    half = read(write(path, [node_of()], own))
    assert half.precision.name == "float16"
    np.testing.assert_array_equal(half.parameters["weight_h_l0"][:5], own["R"][0, :5])
    scales = {"W": np.float32(0.25), "zero": np.int8(3)}
    own = weights() | {
        "W8": np.arange(60, dtype=np.int8).reshape(1, 20, 3),
        "scale": scales["W"],
        "zero": scales["zero"],
    }
    del own["W"]
    nodes = [helper.make_node("DequantizeLinear", ["W8", "scale", "zero"], ["W"]), node_of()]
    found = read(write(path, nodes, own, 21))
    np.testing.assert_array_equal(found.parameters["weight_x_l0"][0], np.array([-0.75, -0.5, -0.25], np.float32))


def test_other_orders_of_axes_are_not_taken_for_a_stack(tmp_path: Path) -> None:
    """A second LSTM along another axis than T reads what has the right width."""
    first, second = weights(), weights()
    second["W"] = second.pop("R")[:, :, :]
    constants = first | {f"{name}2": value for name, value in (weights() | {"W": weights()["R"]}).items()}
    constants |= {"one": np.array([1])}
    make = helper.make_node
    nodes = [
        make("LSTM", ["X", "W", "R", "B"], ["Y1"], name="first"),
        make("Squeeze", ["Y1", "one"], ["Y2"]),
        make("LSTM", ["Y2", "W2", "R2", "B2"], ["Y"], name="second"),
    ]
    path = write(tmp_path / "m.onnx", nodes, constants)
    assert read(path).stack.num_layers == 2
    nodes.insert(2, make("Transpose", ["Y2"], ["Y3"], perm=[1, 0, 2]))
    nodes[3] = make("LSTM", ["Y3", "W2", "R2", "B2"], ["Y"], name="second")
    path = write(path, nodes, constants)
    with pytest.raises(ValueError, match=r"m.onnx: node: expected one of 'first', 'second', since they are not one"):
        read(path)
    assert read(path, "second").input_size == 5


def test_an_initial_state_is_told(tmp_path: Path) -> None:
    from lstmcore.notices import Notice

    node = helper.make_node("LSTM", ["X", "W", "R", "", "", "h", ""], ["Y"], name="lstm")
    own = {key: weights()[key] for key in "WR"}
    path = write(tmp_path / "m.onnx", [node], own | {"h": np.zeros((1, 2, 5), np.float32)})
    assert read(path).stack.configs[0].bias is False
    write(path, [node], own | {"h": np.ones((1, 2, 5), np.float32)})
    with pytest.warns(Notice, match="lstm: starts from a state that is not 0"):
        read(path)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_int8_weights_of_onnx_runtime(tmp_path: Path, per_channel: bool, bidirectional: bool) -> None:
    """Their numbers are stored as they are, and the operator in float32 gives the same with them."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path, small = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    original = lstm(6, 9, bidirectional=bidirectional)
    original.to_onnx(path, lengths=False, state=False)
    x = np.random.default_rng(0).standard_normal((5, 3, 6)).astype(np.float32)
    for kind in (QuantType.QInt8, QuantType.QUInt8):
        quantize_dynamic(path, small, weight_type=kind, per_channel=per_channel)
        model = onnx.load(small)
        (node,) = [node for node in model.graph.node if node.op_type == "DynamicQuantizeLSTM"]
        zero = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[9])
        for shift, stored in ((0, "int8"), (100, "same")):  # without their middle int8 does not hold the numbers
            if shift and per_channel:
                continue  # ONNX Runtime refuses zero points then
            numbers = numpy_helper.to_array(zero)
            zero.CopyFrom(
                numpy_helper.from_array((numbers - numbers.dtype.type(shift)).astype(numbers.dtype), zero.name)
            )
            small.write_bytes(model.SerializeToString())
            found = LSTM.from_onnx(small, backend="numpy")
            assert found.precision.weights == stored and found.stack == original.stack
            for name, value in found.parameters.items():
                if not shift or name.startswith("weight_h"):
                    step = np.abs(original.parameters[name]).max() / 100
                    np.testing.assert_allclose(value, original.parameters[name], atol=step)
            y = found(x)[0]
            np.testing.assert_allclose(run(small, {"x": x})["y"], y, atol=0.1)  # it rounds x and h too
            again = tmp_path / "again.onnx"
            found.to_onnx(again, lengths=False, state=False)
            np.testing.assert_allclose(run(again, {"x": x})["y"], y, atol=2e-6)


def test_what_is_no_lstm_is_refused(tmp_path: Path) -> None:
    own, path, f32 = weights(), tmp_path / "m.onnx", np.float32
    integers = {name: value.astype(np.int32) for name, value in own.items()}
    wide = {name: np.concatenate([value, value]) for name, value in own.items()}
    cases: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
        ({"R": np.zeros((1, 12, 2), f32)}, {}, r"R: expected shape \(1, 8, 2\) with D=1 and H=2; got \(1, 12, 2\)"),
        ({"P": np.zeros((3, 8), np.float32)}, {}, r"P: expected shape \(1, 15\).*; got \(3, 8\)"),
        ({"B": np.zeros((0, 0), np.float32)}, {}, r"B: expected shape \(1, 40\).*; got \(0, 0\)"),
        ({"W": np.zeros((1, 20, 0), np.float32)}, {}, r"W: expected shape \(1, 20, 0\).*; got \(1, 20, 0\)"),
        (wide, {}, r"R: expected shape \(1, 20, 5\).*; got \(2, 20, 5\)"),
        ({"B": np.zeros((1, 40), np.int32)}, {}, "W: expected one dtype in all weights; got float32, int32"),
        (integers, {}, "W: expected floating-point numbers; got int32"),
        ({}, {"hidden_size": 7}, "hidden_size: expected 5, the last axis of R; got 7"),
        ({}, {"direction": "sideways"}, "direction: expected one of forward"),
        ({}, {"activations": ["Sigmoid", "Tanh", "Gelu"]}, "activations: expected 3 of"),
        ({}, {"clip": -1.0}, "gate_clip: expected a number > 0"),
        ({"B": np.full((1, 40), np.nan, np.float32)}, {}, r"parameters\['bias_l0'\]: expected finite numbers"),
    )  # fmt: skip
    for changes, attributes, message in cases:
        write(path, [node_of(**attributes)], own | changes)
        with pytest.raises((TypeError, ValueError), match=r"m.onnx: (lstm: )?" + message) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    write(path, [helper.make_node("LSTM", ["X", "X", "R"], ["Y"], name="lstm")], own)
    with pytest.raises(ValueError, match=r"m.onnx: lstm: W: expected a constant of the model; got 'X'"):
        read(path)
    write(path, [helper.make_node("LSTM", ["X", "", "R"], ["Y"], name="lstm")], own)
    with pytest.raises(ValueError, match=r"m.onnx: lstm: W: expected a tensor; got none"):
        read(path)
    write(path, [helper.make_node("Relu", ["X"], ["Y"])], {})
    with pytest.raises(ValueError, match=r"m.onnx: expected an LSTM; got a model with none"):
        read(path)
    write(path, [node_of(direction="reverse")], own)
    with pytest.raises(ValueError, match="expected layers of one LSTM; got reversed: the same call of Chain"):
        read(path)
    with pytest.raises(ValueError, match=r"m.onnx: node: expected one of 'lstm'; got 'other'"):
        read(path, "other")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"hello, world", b"", b"\x00" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"m.onnx: expected an ONNX model; got"):
            read(path)
    with pytest.raises(ValueError, match="expected a file; got a folder"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.onnx")


@pytest.mark.filterwarnings("ignore")
def test_an_export_of_pytorch(tmp_path: Path) -> None:
    """Two layers in both directions, whose order of axes PyTorch changes between the nodes."""
    torch = pytest.importorskip("torch")
    module = torch.nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True).eval()
    path, x = tmp_path / "torch.onnx", torch.randn(4, 7, 3)
    axes = {"x": {0: "N", 1: "T"}}
    torch.onnx.export(module, (x,), path, input_names=["x"], dynamic_axes=axes, dynamo=False)
    found = LSTM.from_onnx(path, backend="numpy")
    assert (found.stack.num_layers, found.stack.num_directions) == (2, 2)
    y = found(np.ascontiguousarray(x.numpy().swapaxes(0, 1)))[0]
    np.testing.assert_allclose(y.swapaxes(0, 1), module(x)[0].detach().numpy(), atol=2e-6)
