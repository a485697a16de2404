"""Reading the LSTMs of an ONNX model: nodes in any graph of it, their weights, and which node reads which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig
from lstmcore.dialects.layers import PlacedLayer, join_layers
from lstmcore.dialects.onnx import attributes_of, check_shapes, directions, from_onnx_rows
from lstmcore.extras import installing
from lstmcore.files import check_regular
from lstmcore.layer_file import LayerFile
from lstmcore.notices import notify
from lstmcore.precision import get_precision, numpy_dtype
from lstmcore.stored_weights import SAME, StoredMatrix

Array: TypeAlias = npt.NDArray[Any]

_LSTM: Final = "LSTM"
#: ONNX Runtime's operator with int8 weights; its inputs from 8 on are scales and zero points of W and R.
_QUANTIZED: Final = "DynamicQuantizeLSTM"
_DOMAINS: Final = {_LSTM: ("", "ai.onnx"), _QUANTIZED: ("com.microsoft",)}
INPUTS: Final = (
    "X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P",
    "W_scale", "W_zero_point", "R_scale", "R_zero_point",
)  # fmt: skip
#: T and N of the numbers by which `_link` finds out what lies between two nodes.
_PROBE: Final = (3, 2)


class VariableError(ValueError):
    """A tensor that is no constant of the model."""


@dataclass(frozen=True)
class Scope:
    """A graph, and the graphs around it, whose tensors it sees."""

    graph: Any
    opsets: Any
    outer: Scope | None

    @cached_property
    def producers(self) -> dict[str, Any]:
        """Name of a tensor -> the node that makes it."""
        return {name: node for node in self.graph.node for name in node.output if name}

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Name -> initializer."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    def find(self, name: str) -> Any:
        """Return the node or the initializer of a tensor.

        Raises
        ------
        VariableError
            An input of the model, or of a graph in it.
        """
        if name in self.producers:
            return self.producers[name]
        if name in self.constants:
            return self.constants[name]
        if self.outer is None:
            raise VariableError(f"expected a constant of the model; got {name!r}, which is known in a run alone")
        return self.outer.find(name)

    def evaluate(self, name: str, given: Mapping[str, Array] | None = None) -> Array:
        """Return a tensor that follows from constants and from `given` tensors.

        Raises
        ------
        VariableError
            It follows from inputs of the model, from an LSTM or from a graph in a node too.
        """
        from onnx import TensorProto, helper, numpy_helper
        from onnx.reference import ReferenceEvaluator

        nodes, tensors = self._needed(name, given or {})
        if not nodes and name in tensors:
            return np.asarray(numpy_helper.to_array(tensors[name]))
        inputs = [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for key, array in (given or {}).items()
        ]
        outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)]
        graph = helper.make_graph(nodes, "part", inputs, outputs, list(tensors.values()))
        model = helper.make_model(graph, opset_imports=self.opsets)
        try:
            return np.asarray(next(iter(ReferenceEvaluator(model).run([name], dict(given or {})))))
        except Exception as error:  # any operator of any domain may fail in its own way
            reason = " ".join(str(error).split())[:200]
            raise VariableError(f"expected a tensor that ONNX's evaluator computes; {name!r}: {reason}") from error

    def _needed(self, name: str, given: Mapping[str, Array]) -> tuple[list[Any], dict[str, Any]]:
        """Return the nodes, in order, and the initializers that a tensor follows from."""
        nodes, tensors = list[Any](), dict[str, Any]()
        done, opened, waiting = set(given), set[str](), [name]
        while waiting:
            if (top := waiting[-1]) in done:
                waiting.pop()
                continue
            source = self.find(top)
            if not hasattr(source, "op_type"):
                tensors[top] = source
                done.add(top)
                continue
            before = [each for each in source.input if each and each not in done]
            inner = any(attribute.g.node or attribute.graphs for attribute in source.attribute)
            if source.op_type in _DOMAINS or inner or (before and top in opened):
                raise VariableError(f"expected a constant of the model; got {top!r}, made by {source.op_type}")
            opened.add(top)
            waiting += before
            if not before:
                nodes.append(source)
                done |= set(source.output)
        return nodes, tensors


class LSTMNode(NamedTuple):
    """A node of an LSTM; `label` is its name, or its first output where it has none."""

    label: str
    node: Any
    scope: Scope


@dataclass(frozen=True)
class NodeLayer:
    """The layer of a node: its directions, parameters by direction, and what follows it."""

    found: LSTMNode
    configs: tuple[LSTMConfig, ...]
    parameters: tuple[dict[str, Array | StoredMatrix], ...]
    batch_first: bool
    merge: str | None = None

    @property
    def dtype(self) -> str:
        """The dtype of the weights; float32 where they are stored in int8."""
        weights = self.parameters[0]["weight_x"]
        return "float32" if isinstance(weights, StoredMatrix) else str(weights.dtype)


def open_model(path: str | Path) -> list[LSTMNode]:
    """Return the LSTMs in the file of an ONNX model, in the order of its graphs.

    Raises
    ------
    ValueError
        A file of another kind.
    OSError, ImportError
        The file cannot be read; ONNX is not installed.
    """
    check_regular(path)
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise ImportError(f"{path}: needs ONNX to be read: {installing('onnx')}") from None
    try:
        model = onnx.load(path)
    except DecodeError:
        raise ValueError(f"{path}: expected an ONNX model; got another kind of file, or a damaged one") from None
    except (onnx.checker.ValidationError, FileNotFoundError) as error:
        raise ValueError(f"{path}: expected an ONNX model with all its data; {str(error).splitlines()[0]}") from error
    if not model.graph.node:
        raise ValueError(f"{path}: expected an ONNX model; got one without a node")
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    return list(_walk(Scope(model.graph, model.opset_import, None), ""))


def _walk(scope: Scope, prefix: str) -> Iterator[LSTMNode]:
    for node in scope.graph.node:
        label = prefix + (node.name or next(filter(None, node.output), ""))
        if node.domain in _DOMAINS.get(node.op_type, ()):
            yield LSTMNode(label, node, scope)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    yield from _walk(Scope(graph, scope.opsets, scope), f"{label}/{attribute.name}/")


def read_onnx(path: str | Path, node: str | None = None) -> LayerFile:
    """Return an LSTM of a model in our terms.

    Parameters
    ----------
    path
        The file of the model.
    node
        The name of a node, or of its first output where it has no name. None takes all nodes, where each reads what
        the one before gives: they are the layers of one stack, or of a chain.

    Raises
    ------
    TypeError, ValueError
        No such node; weights that the model computes from its inputs; attributes, shapes and dtypes that are not those
        of an LSTM; numbers that are not finite.
    OSError, ImportError
        The file cannot be read; ONNX is not installed.
    """
    try:
        return _file(read_nodes(path, node))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def read_nodes(path: str | Path, node: str | None = None) -> list[NodeLayer]:
    """Return the layer of a node, or of all in their order; arguments and errors are those of `read_onnx`."""
    nodes = open_model(path)
    if not nodes:
        raise ValueError("expected an LSTM; got a model with none")
    if node is None:
        return _linked(nodes)
    chosen = [found for found in nodes if found.label == node]
    if len(chosen) != 1:
        raise ValueError(f"node: expected one of {_labels(nodes)}; got {node!r}")
    return [read_node(chosen[0])]


def _labels(nodes: Sequence[LSTMNode]) -> str:
    return ", ".join(sorted(repr(found.label) for found in nodes))


def read_node(found: LSTMNode) -> NodeLayer:
    """Return the layer of a node.

    Raises
    ------
    TypeError, ValueError
        Weights, attributes, shapes and dtypes that are not those of an LSTM; the message names the node.
    """
    try:
        given, inputs = attributes_of(found.node), weights_of(found)
        if any(inputs.pop(key, None) is not None for key in ("initial_h", "initial_c")):
            notify(f"{found.label}: starts from a state that is not 0, which no LSTM holds: hand it over as state")
        quantized = found.node.op_type == _QUANTIZED
        parts = (_read_quantized if quantized else _read_floats)(given, inputs)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{found.label}: {error}") from error
    configs, parameters = zip(*parts, strict=True)
    return NodeLayer(found, configs, parameters, bool(given.get("layout", 0)))


def weights_of(found: LSTMNode) -> dict[str, Any]:
    """Return the inputs of a node but x and the lengths, by their names in `INPUTS`.

    An initial state is None where it is 0 or given in a run.

    Raises
    ------
    ValueError
        Weights that the model computes from its inputs.
    """
    names = dict(zip(INPUTS, found.node.input, strict=False))
    kept = {key: name for key, name in names.items() if name and key not in ("X", "sequence_lens")}
    return {key: _constant(found.scope, key, name) for key, name in kept.items()}


def _constant(scope: Scope, key: str, name: str) -> Array | None:
    """Return an input; of an initial state None where it is 0, or where it is given in a run."""
    if not key.startswith("initial"):
        try:
            return scope.evaluate(name)
        except VariableError as error:
            raise ValueError(f"{key}: {error}") from error
    try:
        state = scope.evaluate(name)
    except VariableError:
        return None
    return state if state.any() else None


def _read_floats(given: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    if missing := [key for key in ("W", "R") if key not in inputs]:
        raise ValueError(f"{missing[0]}: expected a tensor; got none")
    if len(dtypes := {str(array.dtype) for array in inputs.values()}) > 1:
        raise TypeError(f"W: expected one dtype in all weights; got {', '.join(sorted(dtypes))}")
    return directions(given, **inputs)


def _read_quantized(given: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    """Return the directions of an operator with int8 weights.

    The matrices are stored as they are where our format has them: without a zero point and without -128. Else they are
    the float32 numbers that they stand for.
    """
    floats, kept = dict[str, Any](), dict[str, tuple[Array, Array]]()
    for key in ("W", "R"):
        if missing := [name for name in (key, f"{key}_scale", f"{key}_zero_point") if name not in inputs]:
            raise ValueError(f"{missing[0]}: expected a tensor; got none")
        values, scale, zero = (inputs[name] for name in (key, f"{key}_scale", f"{key}_zero_point"))
        if str(values.dtype) not in ("int8", "uint8") or values.ndim != 3 or zero.shape != scale.shape:
            raise ValueError(f"{key}: expected int8 or uint8 (D, width, 4 H); got {values.dtype} {values.shape}")
        if scale.shape not in ((len(values),), values.shape[::2]):
            raise ValueError(f"{key}_scale: expected shape (D,) or (D, 4 H); got {scale.shape}")
        rows = [np.broadcast_to(part.reshape(len(part), -1), values.shape[::2]) for part in (scale, zero)]
        values = values.swapaxes(1, 2)
        centred = values.astype(np.int16) - rows[1].astype(np.int16)[..., None]
        floats[key] = centred.astype(np.float32) * rows[0][..., None].astype(np.float32)
        kept[f"weight_{'x' if key == 'W' else 'h'}"] = centred, rows[0].astype(np.float32)
    floats |= {key: inputs[key] for key in ("B", "P") if key in inputs}
    check_shapes(given, floats)
    found = directions(given, **floats)
    if any(np.abs(values).max(initial=0) > 127 or not (scale > 0).all() for values, scale in kept.values()):
        return found
    stored = []
    for index, (config, parameters) in enumerate(found):
        own: dict[str, Array | StoredMatrix] = dict(parameters)
        for name, (values, scale) in kept.items():
            rows = [from_onnx_rows(config, part[index]) for part in (values.astype(np.int8), scale)]
            own[name] = StoredMatrix("int8", *map(np.ascontiguousarray, rows))
        stored.append((config, own))
    return stored


# Nodes one after another ----------------------------------------------------------------------------------------------


def _linked(nodes: Sequence[LSTMNode]) -> list[NodeLayer]:
    """Return the layers of all nodes, in the order in which each reads the one before."""
    layers = [read_node(found) for found in nodes]
    places = range(len(layers))
    sources = {
        reader: (source, mode)
        for reader in places
        for source in places
        if source != reader and (mode := _between(layers[source], layers[reader])) is not None
    }
    order = [place for place in places if place not in sources][:1]
    while order and (after := [reader for reader, (source, _) in sources.items() if source == order[-1]]):
        order.append(after[0])
    if len(order) != len(layers):
        raise ValueError(
            f"node: expected one of {_labels(nodes)}, since they are not one after another in one row; got None"
        )
    last = layers[order[-1]]
    ends = [_compare(last, output.name, batch_first=None) for output in last.found.scope.graph.output]
    modes = [sources[reader][1] for reader in order[1:]]
    modes.append(next((mode for mode in ends if mode not in (None, "concat")), None) or "concat")
    return [replace(layers[place], merge=mode) for place, mode in zip(order, modes, strict=True)]


def _between(source: NodeLayer, reader: NodeLayer) -> str | None:
    """Return how `reader` reads the outputs of `source`, or None if it does not."""
    if source.found.scope is not reader.found.scope:
        return None
    return _compare(source, reader.found.node.input[0], batch_first=reader.batch_first)


def _compare(layer: NodeLayer, name: str, *, batch_first: bool | None) -> str | None:
    """Return the mode of a merge by which the tensor `name` follows from the outputs of `layer`, or None.

    It is computed for known outputs. `batch_first` of None takes either layout.
    """
    output = layer.found.node.output[0] if layer.found.node.output else ""
    if not output:
        return None
    shape = (len(layer.configs), *_PROBE, layer.configs[0].hidden_size)
    each = np.random.default_rng(0).standard_normal(shape).astype(numpy_dtype(layer.dtype))
    y = each.transpose((2, 1, 0, 3) if layer.batch_first else (1, 0, 2, 3))
    try:
        got = layer.found.scope.evaluate(name, {output: np.ascontiguousarray(y)})
    except VariableError:
        return None
    expected = {"concat": np.concatenate(list(each), axis=-1)}
    if len(each) == 2:
        expected |= {"sum": each[0] + each[1], "mul": each[0] * each[1], "average": (each[0] + each[1]) / 2}
    for mode, array in expected.items():
        layouts = {False: array, True: array.swapaxes(0, 1)}
        for laid_out in layouts.values() if batch_first is None else [layouts[batch_first]]:
            if laid_out.shape == got.shape and np.allclose(laid_out, got, rtol=1e-2, atol=1e-3):
                return mode
    return None


def _file(layers: Sequence[NodeLayer]) -> LayerFile:
    """Return the layers as a stack, where one holds them, or as the layers of a chain."""
    placed: list[PlacedLayer] = []
    for layer in layers:
        reverse = len(layer.configs) == 1 and layer.configs[0].reverse
        configs = (replace(layer.configs[0], reverse=False),) if reverse else layer.configs
        placed.append(PlacedLayer("reversed" if reverse else "lstm", configs, layer.parameters))
        if layer.merge not in (None, "concat"):
            placed.append(PlacedLayer("merge", mode=layer.merge))
    stored = any(isinstance(value, StoredMatrix) for layer in layers for value in layer.parameters[0].values())
    precision = get_precision(layers[0].dtype).with_weights("int8" if stored else SAME)
    return join_layers(placed, precision, batch_first=layers[0].batch_first)
