"""Writing of ONNX models: one operator for a backend, a stack or a chain, and a whole model with its readout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.dialects.layers import split_layers
from lstmcore.dialects.onnx_graph import OUTPUTS, GraphBuilder, OutputPart
from lstmcore.extras import installing
from lstmcore.files import write_atomically
from lstmcore.layer_file import LayerFile, file_dtype, in_dtype, layer_widths
from lstmcore.precision import numpy_dtype
from lstmcore.stored_weights import read_parameters

Array: TypeAlias = npt.NDArray[Any]

INPUTS: Final = ("X", "sequence_lens", "initial_h", "initial_c")
_ACTIVATIONS: Final = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "softmax": "Softmax"}


def operator_model(config: LSTMConfig, parameters: Mapping[str, Array], *, batch_first: bool = False) -> Any:
    """Return an ``onnx.ModelProto`` of one direction; it has `INPUTS`, `OUTPUTS` and the parameters.

    `batch_first` is the operator's ``layout=1``: N is then the first axis of every input and output.
    """
    from onnx import helper

    graph = GraphBuilder(numpy_dtype(str(parameters["weight_x"].dtype)))
    width = config.hidden_size
    x: list[Any] = ["T", "N", config.input_size]
    state: list[Any] = [1, "N", width]
    y: list[Any] = ["T", 1, "N", width]
    if batch_first:
        x, state, y = ["N", "T", config.input_size], ["N", 1, width], ["N", "T", 1, width]
    for name, shape in zip(INPUTS, (x, ["N"], state, state), strict=True):
        graph.add_input(name, shape)
    graph.add_lstm("", [(config, parameters)], INPUTS)
    if batch_first:
        graph.nodes[-1].attribute.append(helper.make_attribute("layout", 1))
    for name, shape in zip(OUTPUTS, (y, state, state), strict=True):
        graph.add_output(name, shape)
    return graph.model()


class ModelEnds(NamedTuple):
    """What a model has around its LSTM: standardisations (mean, scale) or None, and a dense readout.

    `weight` is (K, width + x_size), `steps` is that of the readout, `part` is the forecast among the outputs or None,
    `table` is that of an embedding or None.
    """

    weight: Array
    bias: Array
    activation: str
    x_size: int
    steps: str
    input_scaling: tuple[Array, Array] | None
    target_scaling: tuple[Array, Array] | None
    part: OutputPart | None = None
    table: Array | None = None


def write_layers_to_onnx(path: str | Path, content: LayerFile, *, lengths: bool = True, state: bool = True) -> None:
    """Write a stack or a chain as an ONNX model.

    Its inputs are x, ``lengths`` (N,) in int32, and for each LSTM the initial state ``h_0`` and ``c_0``; its outputs y
    and the final states ``h_n`` and ``c_n``. The names of the states of a chain end with ``.0``, ``.1`` and so on.
    T and N are free. Numbers of 16 bits and stored weights are written as float32.

    Parameters
    ----------
    path
        The file to write.
    content
        The layers, their layout and parameters.
    lengths, state
        Whether the model has these inputs, and for the state these outputs; without them all rows have T steps, and
        start from zero.

    Raises
    ------
    ValueError
        A switch that ONNX's LSTM does not have, by name; more than 2 GiB; a path that cannot be written.
    ImportError
        ONNX is not installed.
    """
    graph = _start(path, content, lengths)
    run = _add_layers(graph, content, graph.time_major("x", content.batch_first), lengths=lengths, state=state)
    rows = ["N", "T"] if content.batch_first else ["T", "N"]
    graph.rename(graph.time_major(run.y, content.batch_first), "y")
    graph.add_output("y", [*rows, layer_widths(content.layers)[1]])
    write_atomically(path, graph.model().SerializeToString())


def write_model_to_onnx(path: str | Path, content: LayerFile, ends: ModelEnds) -> None:
    """Write a whole model: the inputs x and ``lengths``, the output y (N, K), or (T, N, K) and (N, T, K) for each step.

    x is raw, as `SequenceModel.predict` takes it; a step past the end of a row has any numbers in y. Errors are those
    of `write_layers_to_onnx`.
    """
    graph = _start(path, content, lengths=True, codes=ends.table is not None)
    x = "x" if ends.table is None else graph.add("Gather", [graph.constant(ends.table), "x"])
    x = graph.time_major(x, content.batch_first)
    if ends.input_scaling is not None:
        mean, scale = ends.input_scaling
        x = graph.in_double(x, [("Sub", mean), ("Div", np.where(scale > 0, scale, 1.0))])
    run = _add_layers(graph, content, x, lengths=True, state=False)
    y = graph.add("MatMul", [_features(graph, run, x, ends), graph.constant(ends.weight.T)])
    y = graph.add("Add", [y, graph.constant(ends.bias)])
    if ends.activation != "none":
        y = graph.add(_ACTIVATIONS[ends.activation], [y], **({"axis": -1} if ends.activation == "softmax" else {}))
    if ends.target_scaling is not None:
        mean, scale = ends.target_scaling
        y = graph.in_double(y, [("Mul", scale), ("Add", mean)])
    every = ends.steps == "every"
    if ends.part is not None:
        y = graph.part_of(y, ends.part, 3 if every else 2)
    rows = ["N"] if not every else ["N", "T"] if content.batch_first else ["T", "N"]
    graph.rename(graph.time_major(y, content.batch_first) if every else y, "y")
    graph.add_output("y", [*rows, len(ends.bias) // (1 if ends.part is None else ends.part.parts)])
    write_atomically(path, graph.model().SerializeToString())


def _start(path: str | Path, content: LayerFile, lengths: bool, codes: bool = False) -> GraphBuilder:
    """Return a graph with the inputs x, which are whole numbers if `codes`, and lengths."""
    try:
        import onnx  # noqa: F401  (that it is there)
    except ImportError:
        raise ImportError(f"{path}: needs ONNX to be written: {installing('onnx')}") from None
    graph = GraphBuilder(numpy_dtype(file_dtype(content.precision)))
    rows = ["N", "T"] if content.batch_first else ["T", "N"]
    if codes:
        graph.add_input("x", rows, np.int64)
    else:
        graph.add_input("x", [*rows, layer_widths(content.layers)[0]])
    if lengths:
        graph.add_input("lengths", ["N"])
    return graph


class _Run(NamedTuple):
    """The names of the outputs (T, N, width) and of the outputs after whole rows (N, width)."""

    y: str
    last: str


def _features(graph: GraphBuilder, run: _Run, x: str, ends: ModelEnds) -> str:
    """Return what the readout reads: (T, N, width + x_size) at every step, else (N, width + x_size)."""
    if ends.steps == "last":
        return graph.add("Concat", [run.last, graph.last_step(x)], axis=-1) if ends.x_size else run.last
    read = graph.add("Concat", [run.y, x], axis=-1) if ends.x_size else run.y
    return graph.mean_over_steps(read) if ends.steps == "mean" else read


def _add_layers(graph: GraphBuilder, content: LayerFile, x: str, *, lengths: bool, state: bool) -> _Run:
    """Add all layers; `state` adds inputs and outputs for the states."""
    dtype, run, outputs = graph.dtype, _Run(x, ""), ("", "", "")
    parameters = in_dtype(read_parameters(content.parameters, dtype if dtype == "float64" else "float32"), dtype)
    number = 0
    for layers in split_layers(content._replace(parameters=parameters)):
        if (mode := layers[0].mode) is not None:
            if mode != "concat":
                run = _Run(graph.merge(outputs[0], mode, 1), graph.merge(outputs[1], mode, 0))
            continue
        end = "" if isinstance(content.layers, StackConfig) else f".{number}"
        sizes = [len(layers), len(layers[0].configs), layers[0].configs[0].hidden_size]
        begin = [graph.state_input(f"{name}_0{end}", sizes) if state else [""] * len(layers) for name in "hc"]
        finals: list[tuple[str, str, str]] = []
        for index, layer in enumerate(layers):
            configs = [replace(config, reverse=True) for config in layer.configs]
            pairs = zip(layer.configs if layer.kind == "lstm" else configs, layer.parameters, strict=True)
            inputs = (run.y, "lengths" * lengths, begin[0][index], begin[1][index])
            outputs = graph.add_lstm(f"lstm{end}_l{index}", list(pairs), inputs)
            finals.append(outputs)
            run = _Run(
                *(graph.side_by_side(name, sizes[1:], axis) for name, axis in zip(outputs, (1, 0), strict=False))
            )
        if state:
            for place, name in enumerate("hc", 1):
                graph.state_output(f"{name}_n{end}", [each[place] for each in finals], sizes)
        number += 1
    return run
