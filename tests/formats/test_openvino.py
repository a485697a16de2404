"""LSTMs of OpenVINO: the same outputs as its own, arrays and files there and back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lstmcore import LSTM, Chain
from lstmcore.cli import main
from lstmcore.dialects.openvino import from_arrays, read_openvino, to_arrays

openvino = pytest.importorskip("openvino")

T, N, I, H = 7, 2, 3, 5
X = np.random.default_rng(0).standard_normal((N, T, I)).astype(np.float32)

#: Without it a processor with AMX computes in bfloat16.
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}

CASES: dict[str, dict[str, Any]] = {
    "forward": {},
    "reverse": {"direction": "reverse"},
    "bidirectional": {"direction": "bidirectional"},
    "clip": {"clip": 0.4, "direction": "bidirectional"},
    "relu": {"activations": ["sigmoid", "relu", "tanh"]},
}


def drawn(directions: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shapes = {"W": (directions, 4 * H, I), "R": (directions, 4 * H, H), "B": (directions, 4 * H)}
    return {name: (rng.standard_normal(shape) / 2).astype(np.float32) for name, shape in shapes.items()}


def write_model(
    path: Path, *, half: bool = False, states: Any = (0, 0), steps: int = T, free: bool = False, **given: Any
) -> Any:
    """Write a model of one LSTMSequence, and return y (N, T, D H) of OpenVINO."""
    from openvino import opset5

    given = {"direction": "forward", "activations": ["sigmoid", "tanh", "tanh"], "clip": 0.0} | given
    directions = 1 + (given["direction"] == "bidirectional")
    x = opset5.parameter([N, -1 if free else T, I], np.float32, name="x")
    h, c = (np.full((N, directions, H), state, np.float32) for state in states)
    lengths = np.full(N, steps, np.int32)
    arrays = [opset5.constant(array) for array in (h, c, lengths, *drawn(directions).values())]
    node = opset5.lstm_sequence(x, *arrays, hidden_size=H, **given, name="lstm")
    model = openvino.Model([node.output(0)], [x], "model")
    openvino.save_model(model, path, compress_to_fp16=half)
    y = openvino.compile_model(openvino.Core().read_model(path), "CPU", EXACT)([X])[0]
    return y.transpose(0, 2, 1, 3).reshape(N, T, directions * H)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_file(tmp_path: Path, name: str, half: bool) -> None:
    path = tmp_path / "model.xml"
    wanted = write_model(path, half=half, **CASES[name])
    content = read_openvino(path)
    assert content.batch_first and content.precision.weights == ("float16" if half else "same")
    np.testing.assert_allclose(Chain.from_content(content, backend="numpy")(X)[0], wanted, atol=1e-6)
    attributes, arrays = to_arrays(content)
    assert attributes["direction"] == CASES[name].get("direction", "forward")
    for key, array in drawn(len(arrays["W"])).items():
        assert arrays[key].tobytes() == (array.astype(np.float16).astype(np.float32) if half else array).tobytes()
    again = from_arrays(arrays, attributes)
    assert str(again.layers) == str(content.layers)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("states", [(0.5, 0), (0, 0.5)])
def test_a_state_that_is_not_0(tmp_path: Path, half: bool, states: tuple[float, float]) -> None:
    wanted = write_model(tmp_path / "model.xml", half=half, states=states)
    with pytest.warns(UserWarning, match="lstm: starts from a state that is not 0, which no LSTM holds: hand it over"):
        content = read_openvino(tmp_path / "model.xml")
    start = tuple(np.full((1, N, H), state, np.float32) for state in states)
    np.testing.assert_allclose(Chain.from_content(content, backend="numpy")(X, [start])[0], wanted, atol=1e-6)


@pytest.mark.parametrize("given", [{"steps": 2}, {"free": True}])
def test_lengths_of_the_file(tmp_path: Path, given: dict[str, Any]) -> None:
    write_model(tmp_path / "model.xml", **given)
    with pytest.warns(UserWarning, match="lstm: has constant sequence_lengths other than that of x"):
        read_openvino(tmp_path / "model.xml")


def test_a_cell(tmp_path: Path) -> None:
    from openvino import opset5

    x, state = opset5.parameter([N, I], np.float32), [opset5.parameter([N, H], np.float32) for _ in range(2)]
    each = [opset5.constant(array[0]) for array in drawn().values()]
    node = opset5.lstm_cell(x, *state, *each, H)
    openvino.save_model(openvino.Model(list(node.outputs()), [x, *state], "model"), tmp_path / "cell.xml", False)
    start = np.random.default_rng(2).standard_normal((2, N, H)).astype(np.float32)
    wanted = openvino.compile_model(tmp_path / "cell.xml", "CPU", EXACT)([X[:, 0], *start])
    lstm = LSTM.from_content(read_openvino(tmp_path / "cell.xml"), backend="numpy")
    _, (h, c) = lstm(X[:, :1], (start[:1], start[1:]))
    np.testing.assert_allclose(h[0], wanted[0], atol=1e-6)
    np.testing.assert_allclose(c[0], wanted[1], atol=1e-6)


def test_arrays_that_are_refused() -> None:
    good, f32 = drawn(), np.float32
    for arrays, attributes, message in (
        ({"W": good["W"]}, {}, "arrays: expected W, R, B; got W"),
        (good | {"B": good["B"][:, 1:]}, {}, r"B: expected 4 H rows in each direction; got shape \(1, 19\)"),
        (good | {"R": np.zeros((1, 20, 4), f32)}, {}, "R: expected shape"),
        (good, {"direction": "both"}, "direction: expected one of forward, reverse, bidirectional"),
        (good, {"direction": "bidirectional"}, "expected shape"),
        (good, {"activations": "hardsigmoid, tanh, tanh"}, "activations: expected three of sigmoid, tanh, relu"),
        (good, {"clip": "wide"}, "clip: expected a number; got 'wide'"),
        (good, {"clip": "-1"}, "gate_clip: expected"),
        (good, {"hidden_size": "6"}, "hidden_size: expected 5"),
        (good, {"hidden_size": "\u0665"}, "hidden_size: expected 5"),
        (good, {"input_forget": "true"}, "input_forget: expected false; got 'true'"),
        (good, {"weights_format": "ifco"}, "weights_format: expected fico; got 'ifco'"),
        (good, {"layout": "1"}, "layout: expected no such attribute; got '1'"),
        (good | {"W": np.full((1, 20, 3), np.inf, f32)}, {}, "expected finite numbers"),
        (good | {"W": np.zeros((1, 20, 3), int)}, {}, "W: expected floating-point numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            from_arrays(arrays, attributes)
    for options, message in (
        ({"num_layers": 2}, "layers: expected one layer"),
        ({"peephole": True}, "peephole: expected False, as OpenVINO has it; got True"),
        ({"coupling": "forget_from_input"}, "coupling: expected none, as OpenVINO has it"),
        ({"bias": False}, "bias: expected True, as OpenVINO has it; got False"),
        ({"proj_size": 2}, "expected what ONNX's LSTM has; got proj_size"),
        ({"gate_activation": "hard_sigmoid"}, "activations: expected sigmoid, tanh, relu"),
    ):
        with pytest.raises(ValueError, match=message):
            to_arrays(LSTM(3, 5, backend="numpy", **options).content)


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    write_model(path)
    text, data = path.read_text("utf-8"), path.with_suffix(".bin").read_bytes()
    sizes = f'size="{4 * 4 * H * I}"'
    entities = '<!DOCTYPE net [<!ENTITY a "b"><!ENTITY c "&a;&a;">]>'
    assert text.startswith('<?xml version="1.0"?>') and sizes in text
    for changed, message in (
        (text.replace("?>", f"?>{entities}", 1), "a document type, which may define entities"),
        (text[: len(text) // 2], "expected the XML of OpenVINO; got a damaged one"),
        ("<html/>", "expected the XML of OpenVINO, <net>; got <html>"),
        ("<net/>", "expected an LSTMSequence or an LSTMCell; got a model with none"),
        (text.replace(sizes, 'size="12"'), r"lstm: W: expected float32 \(1, 20, 3\) within model.bin"),
        (text.replace(sizes, 'size="\u0662\u0664\u0660"'), "lstm: W: expected numbers for offset, size and shape"),
        (text.replace(sizes, 'size="-1"'), "lstm: W: expected numbers for offset, size and shape"),
        (
            text.replace('element_type="f32" shape="1, 20, 3"', 'element_type="i8" shape="1, 20, 3"'),
            "W: expected f32, f16",
        ),
        (text.replace('type="Const"', 'type="Multiply"'), "W: expected a constant of float32, float16 or float64"),
    ):
        path.write_text(changed, "utf-8")
        with pytest.raises((TypeError, ValueError), match=r"model\.xml: .*" + message):
            read_openvino(path)
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="expected the XML of OpenVINO"):
        read_openvino(path)
    path.write_text(text, "utf-8")
    path.with_suffix(".bin").write_bytes(data[:-40])
    with pytest.raises(ValueError, match=r"model\.xml: lstm: . ?: expected float32 .* within model.bin|B: expected"):
        read_openvino(path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.bin"):
        read_openvino(path)


def test_the_command(tmp_path: Path) -> None:
    path, out = tmp_path / "model.xml", tmp_path / "out.safetensors"
    write_model(path, direction="bidirectional", clip=0.4)
    done = CliRunner().invoke(main, ["convert", str(path), str(out), "--verify", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["from"] == "openvino" and report["largest_difference"] < 1e-6
    assert report["verified"].startswith("openvino ") and " for IN, lstmcore " in report["verified"]
    listed = json.loads(CliRunner().invoke(main, ["convert", "--list", str(path), "--json"]).stdout)
    assert [row["name"] for row in listed["lstms"]] == ["lstm"]
    path.with_suffix(".bin").write_bytes(b"")
    out.unlink()
    done = CliRunner().invoke(main, ["convert", str(path), str(out)])
    assert done.exit_code == 2 and "within model.bin of 0 bytes" in done.output and done.output.count("\n") == 1
    assert not out.exists()
