"""The table of formats in docs/reference/formats.md; ``python tests/formats/format_table.py`` writes it.

Each row runs a layer of random weights in the library and here, in float32, and has the largest difference of y.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore import LSTM
from lstmcore.dialects.cells import read_cell, write_cell

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"
#: T, N, I and H of every row.
SIZES: Final = (50, 8, 24, 40)
X: Final = np.random.default_rng(0).standard_normal(SIZES[:3]).astype(np.float32)


class Row(NamedTuple):
    """A row of the table; `measure` returns y of the library and y of ours, both (T, N, width)."""

    name: str
    read: str
    write: str
    packages: tuple[str, ...]
    measure: Callable[[], tuple[Any, Any]]


def _ours(**arguments: Any) -> LSTM:
    return LSTM(SIZES[2], SIZES[3], seed=1, backend="numpy", **arguments)


def _torch() -> tuple[Any, Any]:
    import torch

    module = torch.nn.LSTM(SIZES[2], SIZES[3], 2, bidirectional=True).eval()
    return module(torch.from_numpy(X))[0].detach().numpy(), LSTM.from_torch(module, backend="numpy")(X)[0]


def _onnx(quantize: bool = False) -> tuple[Any, Any]:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        _ours(num_layers=1 if quantize else 2, bidirectional=True).to_onnx(path, lengths=False, state=False)
        if quantize:
            quantize_dynamic(path, path.with_name("int8.onnx"), weight_type=QuantType.QInt8)
            path = path.with_name("int8.onnx")
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        return session.run(["y"], {"x": X})[0], LSTM.from_onnx(path, backend="numpy")(X)[0]


def _keras() -> tuple[Any, Any]:
    import keras

    layers = [keras.layers.Bidirectional(keras.layers.LSTM(SIZES[3], return_sequences=True)) for _ in range(2)]
    model = keras.Sequential([keras.Input((None, SIZES[2])), *layers])
    x = np.ascontiguousarray(X.swapaxes(0, 1))
    return keras.ops.convert_to_numpy(model(x)), LSTM.from_keras(model, backend="numpy")(x)[0]


def _tflite(kind: str = "fused") -> tuple[Any, Any]:
    from ai_edge_litert.interpreter import Interpreter

    import tflite_models as models

    x = X[: models.SIZES[0], : models.SIZES[1], : models.SIZES[2]]
    build: dict[str, Callable[[Any, int], int]] = {
        "fused": lambda graph, x: models.add_fused(graph, x, 3, peephole=True, proj=4),
        "both": lambda graph, x: models.add_both(graph, x, 3, peephole=True, proj=4)[0],
        "loop": lambda graph, x: models.add_loop(graph, x, 3)[0],
    }
    content = models.one_graph(build[kind])
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        path.write_bytes(content)
        return y, LSTM.from_tflite(path, backend="numpy")(x)[0]


def _openvino() -> tuple[Any, Any]:
    import openvino
    from openvino import opset5

    from lstmcore.dialects.openvino import from_arrays, to_arrays

    attributes, arrays = to_arrays(_ours(bidirectional=True).content)
    x, (steps, batch) = opset5.parameter([*SIZES[1::-1], SIZES[2]], np.float32), SIZES[:2]
    start, lengths = np.zeros((batch, 2, SIZES[3]), np.float32), np.full(batch, steps, np.int32)
    inputs = [opset5.constant(array) for array in (start, start, lengths, *(arrays[name] for name in "WRB"))]
    node = opset5.lstm_sequence(x, *inputs, hidden_size=SIZES[3], direction=attributes["direction"])
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(openvino.Model([node.output(0)], [x], "lstm"), "CPU", exact)
    turned = np.ascontiguousarray(X.swapaxes(0, 1))
    y = model([turned])[0].transpose(0, 2, 1, 3).reshape(batch, steps, 2 * SIZES[3])
    return y, LSTM.from_content(from_arrays(arrays, attributes), backend="numpy")(turned)[0]


def _cell(name: str) -> tuple[Any, Any]:
    """Run the cell with our weights."""
    lstm = _ours()
    arrays = write_cell(name, lstm.content)
    start = (np.zeros((SIZES[1], SIZES[3]), np.float32),) * 2
    step = {"equinox": _equinox, "flax": _flax, "haiku": _haiku}[name](arrays)
    outputs, state = [], start
    for x in X:
        state, y = step(state, x)
        outputs.append(np.asarray(y))
    return np.stack(outputs), LSTM.from_content(read_cell(name, arrays), backend="numpy")(X)[0]


def _equinox(arrays: dict[str, Any]) -> Any:
    import equinox
    import jax

    cell = equinox.nn.LSTMCell(SIZES[2], SIZES[3], key=jax.random.key(0))
    cell = equinox.tree_at(lambda one: [getattr(one, name) for name in arrays], cell, list(arrays.values()))

    def step(state: Any, x: Any) -> Any:
        state = jax.vmap(cell)(x, state)
        return state, state[0]

    return jax.jit(step)


def _flax(arrays: dict[str, Any]) -> Any:
    import jax
    from flax import linen

    nested: dict[str, Any] = {}
    for name, array in arrays.items():
        nested.setdefault(name.split("/")[0], {})[name.split("/")[1]] = array
    cell = linen.LSTMCell(SIZES[3])
    return jax.jit(lambda state, x: cell.apply({"params": nested}, state, x))


def _haiku(arrays: dict[str, Any]) -> Any:
    import haiku
    import jax

    core = haiku.without_apply_rng(haiku.transform(lambda x, state: haiku.LSTM(SIZES[3])(x, haiku.LSTMState(*state))))

    def step(state: Any, x: Any) -> Any:
        y, state = core.apply({"lstm/linear": arrays}, x, state)
        return tuple(state), y

    return jax.jit(step)


_LITE: Final = ("ai-edge-litert", "tflite")

ROWS: Final = (
    Row("PyTorch `nn.LSTM`", "state_dict, module, file", "state_dict, file", ("torch",), _torch),
    Row("ONNX `LSTM`", "any model", "LSTM, chain, whole model", ("onnxruntime", "onnx"), _onnx),
    Row("ONNX Runtime `DynamicQuantizeLSTM`", "any model", "no", ("onnxruntime",), lambda: _onnx(quantize=True)),
    Row("Keras `LSTM`, `Bidirectional`", "layer, model, file", "arrays, file", ("keras", "torch"), _keras),
    Row("TFLite `UNIDIRECTIONAL_SEQUENCE_LSTM`", "any model", "no", _LITE, _tflite),
    Row("TFLite `BIDIRECTIONAL_SEQUENCE_LSTM`", "any model", "no", _LITE, lambda: _tflite("both")),
    Row("TFLite `WHILE` of Keras", "any model", "no", _LITE, lambda: _tflite("loop")),
    Row("OpenVINO `LSTMSequence`, `LSTMCell`", "file, arrays", "arrays", ("openvino",), _openvino),
    Row("Equinox `LSTMCell`", "arrays", "arrays", ("equinox", "jax"), lambda: _cell("equinox")),
    Row("Flax `LSTMCell`", "arrays", "arrays", ("flax", "jax"), lambda: _cell("flax")),
    Row("Haiku `LSTM`", "arrays", "arrays", ("dm-haiku", "jax"), lambda: _cell("haiku")),
)


def difference(row: Row) -> float:
    """Return the largest difference of y."""
    theirs, ours = row.measure()
    return float(np.abs(np.float64(theirs) - ours).max())


def documented() -> dict[str, float]:
    """Return the name and the difference of each row of the page."""
    rows = re.findall(r"^\| (.+?) \| .*? \| .*? \| (\d[\d.e-]+) \| .*? \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {name: float(value) for name, value in rows}


def main() -> None:
    """Measure all rows and write them into the page."""
    os.environ["KERAS_BACKEND"] = "torch"
    lines = ["| format | read | write | largest difference | versions |", "| --- | --- | --- | --- | --- |"]
    for row in ROWS:
        versions = ", ".join(f"{name} {version(name)}" for name in row.packages)
        lines.append(f"| {row.name} | {row.read} | {row.write} | {difference(row):.1e} | {versions} |")
    text = PAGE.read_text("utf-8")
    begin, end = "<!-- formats -->\n\n", "\n\n<!-- end of formats -->"
    head, tail = text.split(begin)[0], text.split(end)[1]
    PAGE.write_text(head + begin + "\n".join(lines) + end + tail, "utf-8")


if __name__ == "__main__":
    main()
