"""Runs of a source and of a converted file on the same input, by the library of each format where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from lstmcore.chain import Chain
from lstmcore.chain_layers import Merge, Mode
from lstmcore.config import StackConfig
from lstmcore.dialects.keras import LAYERS
from lstmcore.dialects.keras_files import path_is_weights
from lstmcore.dialects.layers import PlacedLayer, split_layers
from lstmcore.dialects.onnx_reader import INPUTS, NodeLayer, read_nodes, weights_of
from lstmcore.dialects.openvino import chosen_node
from lstmcore.dialects.tflite_reader import arranged_layers
from lstmcore.layer_file import LayerFile, layer_widths
from lstmcore.training.model import SequenceModel

Array = npt.NDArray[Any]

#: T and N of the random input.
_SIZES: Final = (20, 3)
#: Format -> the module that runs its files.
_RUNTIMES: Final = {
    "torch": "torch",
    "onnx": "onnxruntime",
    "keras": "keras",
    "tflite": "ai_edge_litert",
    "openvino": "openvino",
}
#: (module, storage dtype) -> why it cannot run such a file.
_LACKING: Final = {("onnxruntime", "float64"): "onnxruntime has no kernel of LSTM for float64"}


class Source(NamedTuple):
    """A file, the name of its format, which LSTM of it is meant, and its layers."""

    path: Path
    format: str
    which: str | None
    content: LayerFile


def runtime_of(name: str, dtype: str) -> tuple[str, str | None]:
    """Return what runs files of a format and a storage dtype, with its version, and why it cannot, or None."""
    module = _RUNTIMES.get(name, "lstmcore")
    if find_spec(module) is None:
        return module, f"{module} is not installed"
    return f"{module} {version(module)}", _LACKING.get((module, dtype))


def largest_difference(source: Source, target: Source) -> float:
    """Return the largest difference of an output for a random input; `target` is run by lstmcore without its runtime.

    Raises
    ------
    ValueError, ImportError
        A source that its runtime cannot run.
    """
    if source.format == "tflite":
        x, wanted, steps = _run_tflite(source)
    else:
        steps = slice(None)
        width = layer_widths(source.content.layers)[0]
        x = np.random.default_rng(0).standard_normal((*_SIZES, width)).astype(source.content.precision.storage)
        wanted = run_source(source, x)
    _, missing = runtime_of(target.format, target.content.precision.storage)
    got = _run_ours(target.content, x) if missing else run_target(target, x)
    return float(np.abs(np.float64(wanted) - np.float64(got[steps])).max())


def largest_model_difference(model: SequenceModel, path: Path) -> float:
    """Return the largest difference of an output of a model and of its ONNX file, on rows of unequal length."""
    rng, lengths = np.random.default_rng(0), (_SIZES[0], 1, 7)
    if model.embedding is None:
        rows = [rng.standard_normal((length, model.lstm.input_size)).astype(model.readout.dtype) for length in lengths]
    else:
        rows = [rng.integers(0, model.embedding.entries, length) for length in lengths]
    x = np.zeros((len(rows), _SIZES[0], *rows[0].shape[1:]), rows[0].dtype)
    for place, row in enumerate(rows):
        x[place, : len(row)] = row
    laid_out = x if model.lstm.batch_first else np.ascontiguousarray(x.swapaxes(0, 1))
    y = _session(path.read_bytes()).run(["y"], {"x": laid_out, "lengths": np.array(lengths, np.int32)})[0]
    if model.readout.steps == "every" and not model.lstm.batch_first:
        y = y.swapaxes(0, 1)
    wanted = model.predict(rows)
    each = [a[:n] for a, n in zip(y, lengths, strict=True)] if model.readout.steps == "every" else y
    return max(float(np.abs(one - two).max()) for one, two in zip(each, wanted, strict=True))


def run_source(source: Source, x: Array) -> Array:
    """Return y (T, N, width) of a source for x (T, N, I), by the library of its format."""
    if source.format == "torch":
        return _run_torch(source, x)
    if source.format == "onnx":
        return _run_nodes(read_nodes(source.path, source.which), x)
    if source.format == "keras":
        return _run_keras(source, x)
    if source.format == "openvino":
        return _run_openvino(source, x)
    return _run_ours(source.content, x)


def run_target(target: Source, x: Array) -> Array:
    """Return y (T, N, width) of a file that was written here."""
    if target.format == "torch":
        return _run_torch(target, x)
    if target.format == "onnx":
        return _run_model(target, x)
    if target.format == "keras":
        return _run_keras(target, x)
    return _run_ours(target.content, x)


def _run_ours(content: LayerFile, x: Array) -> Array:
    chain = Chain.from_content(content._replace(batch_first=False))
    return chain(x.astype(chain.precision.storage))[0]


def _run_torch(source: Source, x: Array) -> Array:
    """Return the outputs of ``torch.nn.LSTM`` with the very tensors of the file."""
    import torch

    from lstmcore.dialects.torch import read_tensors

    stack = source.content.layers
    if not isinstance(stack, StackConfig):
        raise TypeError(f"{source.path}: expected a stack of PyTorch; got a chain")
    config, prefix = stack.layers[0][0], source.which or ""
    module = torch.nn.LSTM(
        config.input_size,
        config.hidden_size,
        stack.num_layers,
        bias=config.bias,
        bidirectional=stack.num_directions == 2,
        proj_size=config.proj_size,
    )
    values = {
        name.removeprefix(prefix): torch.as_tensor(value)
        for name, value in read_tensors(source.path, prefix).items()
        if name.startswith(prefix)
    }
    known = module.state_dict()
    module.load_state_dict({name: value for name, value in values.items() if name in known})
    module = module.to(values["weight_ih_l0"].dtype).eval()
    with torch.no_grad():
        y, _ = module(torch.from_numpy(_widened(x)).to(values["weight_ih_l0"].dtype))
    return np.asarray(y.double().numpy())


def _widened(x: Array) -> Array:
    """Return numbers of 16 bits as float32, others as they are."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an error raises an exception as well
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run_nodes(layers: Sequence[NodeLayer], x: Array) -> Array:
    """Return the outputs of nodes one after another, each in a model of its own with the very weights of the file."""
    from onnx import helper, numpy_helper

    for layer in layers:
        weights = {name: array for name, array in weights_of(layer.found).items() if not name.startswith("initial")}
        node = type(layer.found.node)()
        node.CopyFrom(layer.found.node)
        del node.input[:], node.output[:]
        given = [attribute for attribute in node.attribute if attribute.name not in ("layout", "output_sequence")]
        del node.attribute[:]
        node.attribute.extend(given)
        known = [name for name in INPUTS if name == "X" or name in weights]
        node.input.extend(name if name in known else "" for name in INPUTS[: 1 + INPUTS.index(known[-1])])
        node.output.append("Y")
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        values = [helper.make_tensor_value_info(name, kind, None) for name in "XY"]
        constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
        graph = helper.make_graph([node], "node", values[:1], values[1:], constants)
        opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
        y = _session(helper.make_model(graph, opset_imports=opsets, ir_version=7).SerializeToString()).run(
            ["Y"], {"X": x}
        )[0]
        x = np.concatenate(list(np.moveaxis(y, 1, 0)), axis=-1)
        x = x if layer.merge is None else Merge(cast(Mode, layer.merge))(x)
    return x


def _run_model(target: Source, x: Array) -> Array:
    """Return the outputs of a model that `write_layers_to_onnx` wrote."""
    session, x = _session(target.path.read_bytes()), _widened(x)  # such weights are written as float32
    inputs: dict[str, Array] = {"x": x, "lengths": np.full(x.shape[1], len(x), np.int32)}
    for value in session.get_inputs():
        if value.name not in inputs:
            inputs[value.name] = np.zeros((value.shape[0], x.shape[1], value.shape[2]), x.dtype)
    laid_out = target.content.batch_first
    inputs["x"] = np.ascontiguousarray(x.swapaxes(0, 1)) if laid_out else x
    y = session.run(["y"], inputs)[0]
    return np.asarray(y.swapaxes(0, 1) if laid_out else y)


def _run_openvino(source: Source, x: Array) -> Array:
    """Return the outputs of a layer in a model of its own, with the very attributes and weights of the file."""
    import openvino
    from openvino import opset5

    found = chosen_node(source.path, source.which)
    arrays = {name: array if array.ndim > 1 + (name != "B") else array[None] for name, array in found.arrays.items()}
    directions, (steps, batch, _) = len(arrays["B"]), x.shape
    hidden = arrays["R"].shape[2]
    start, lengths = np.zeros((batch, directions, hidden), x.dtype), np.full(batch, steps, np.int32)
    given = opset5.parameter([batch, steps, x.shape[2]], x.dtype)
    weights = [np.ascontiguousarray(arrays[name].astype(x.dtype)) for name in "WRB"]
    node = opset5.lstm_sequence(
        given,
        *(opset5.constant(array) for array in (start, start, lengths, *weights)),
        hidden_size=hidden,
        direction=found.attributes.get("direction", "forward").upper(),
        activations=[word.strip() for word in found.attributes.get("activations", "sigmoid,tanh,tanh").split(",")],
        clip=float(found.attributes.get("clip") or 0),
    )
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # a processor with AMX computes in bfloat16 without it
    model = openvino.compile_model(openvino.Model([node.output(0)], [given], "lstm"), "CPU", exact)
    y = model([np.ascontiguousarray(x.swapaxes(0, 1))])[0]  # (N, D, T, H)
    return np.ascontiguousarray(y.transpose(2, 0, 1, 3).reshape(steps, batch, directions * hidden))


def _run_tflite(source: Source) -> tuple[Array, Array, slice]:
    """Return x and y of the LSTMs in a run of the whole model on random input, and which steps y has.

    A model may give the last output alone; only a loop in one direction is then compared.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    arranged, rng = arranged_layers(source.path, source.which), np.random.default_rng(0)
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate would not keep the tensors between operators
    interpreter = Interpreter(
        model_path=str(source.path), experimental_op_resolver_type=plain, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    for given in interpreter.get_input_details():
        numbers = rng.standard_normal(given["shape"]) if given["dtype"] == np.float32 else np.zeros(given["shape"])
        interpreter.set_tensor(given["index"], numbers.astype(given["dtype"]))
    interpreter.invoke()

    x, last, modes = interpreter.get_tensor(arranged.first.x), arranged.last, [each.mode for each in arranged.placed]
    x = np.asarray(x if arranged.first.time_major else x.swapaxes(0, 1))
    each = [
        layer.steps(np.asarray(interpreter.get_tensor(layer.y)), back) if layer.y >= 0 else np.zeros(0)
        for layer, back in last
    ]
    if all(len(y) == len(x) for y in each):
        y = np.concatenate(each, axis=2)
        return x, y if modes[-1] is None else Merge(cast(Mode, modes[-1]))(y), slice(None)
    if len(last) != 1:
        raise ValueError(
            f"{source.path}: expected y of all steps, to be compared; got the last one: leave out --verify"
        )
    ((layer, back),) = last
    return x, interpreter.get_tensor(layer.h)[None], slice(0, 1) if back else slice(len(x) - 1, len(x))


def _run_keras(source: Source, x: Array) -> Array:
    """Return the outputs of the layers of Keras, each with the weights of the file."""
    try:
        import keras
    except ImportError as error:  # of the library below Keras: TensorFlow, unless the user names another
        raise ImportError(
            f"--verify: expected Keras and the library that it runs on; got {str(error)!r}: install that, or set "
            "KERAS_BACKEND to jax or torch, if it is installed"
        ) from error

    if path_is_weights(source.path):
        layers = [_keras_layer(keras, each) for group in split_layers(source.content) for each in group if each.configs]
        model = keras.Sequential([keras.Input((None, x.shape[2])), *layers])
        model.load_weights(source.path)
    else:
        model = keras.saving.load_model(source.path, compile=False, custom_objects={"LSTM": _older_lstm(keras)})
        layers = [
            layer for layer in model.layers if type(layer).__name__ in LAYERS and source.which in (None, layer.name)
        ]
    y = x.swapaxes(0, 1)
    for layer in layers:
        config = layer.get_config()
        (config if "units" in config else config["layer"]["config"])["return_sequences"] = True
        if config.get("backward_layer"):
            config["backward_layer"]["config"]["return_sequences"] = True
        whole = type(layer).from_config(config)
        whole.build((None, None, y.shape[2]))
        whole.set_weights(layer.get_weights())
        y = np.asarray(keras.ops.convert_to_numpy(whole(y)))
        y = y[:, ::-1] if config.get("go_backwards") else y
    return np.ascontiguousarray(y.swapaxes(0, 1))


def _older_lstm(keras: Any) -> Any:
    """Return a class of Keras's LSTM that takes what Keras 2 writes and Keras 3 refuses."""

    class LSTM(keras.layers.LSTM):  # type: ignore[misc]  # untyped
        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return super().from_config({key: value for key, value in config.items() if key != "time_major"})

    return LSTM


def _keras_layer(keras: Any, layer: PlacedLayer) -> Any:
    config = layer.configs[0]
    made = keras.layers.LSTM(config.hidden_size, use_bias=config.bias, return_sequences=True)
    return keras.layers.Bidirectional(made) if len(layer.configs) == 2 else made
