"""TFLite's operators of LSTMs, in one direction and in both, in our terms; weights may be of 8 or 16 bits.

An operator has an array of its own for each gate. Its layer normalisation is another one than ours: it normalises the
sum of both products, gate by gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig
from lstmcore.dialects.tflite_file import Graph, Operator, Tensor
from lstmcore.domains import Activation
from lstmcore.stored_weights import StoredMatrix

Array: TypeAlias = npt.NDArray[Any]
#: Our name of a parameter -> its array, or a matrix as it is stored.
Weights: TypeAlias = Mapping[str, Array | StoredMatrix]

FUSED: Final = "UNIDIRECTIONAL_SEQUENCE_LSTM"
BOTH: Final = "BIDIRECTIONAL_SEQUENCE_LSTM"
#: Our parameter -> gate -> the place of its array among the inputs of the operator in one direction.
_INPUTS: Final[Mapping[str, Mapping[str, int]]] = {
    "weight_x": {"i": 1, "f": 2, "g": 3, "o": 4},
    "weight_h": {"i": 5, "f": 6, "g": 7, "o": 8},
    "peephole": {"i": 9, "f": 10, "o": 11},
    "bias": {"i": 12, "f": 13, "g": 14, "o": 15},
}
_PROJECTION: Final = 16
_PROJECTION_BIAS: Final = 17
_LAYER_NORM: Final = range(20, 24)
#: The operator in both directions has these inputs of the first one in their places, and those of the second so many
#: behind; from the last number on it may have a second x.
_OF_DIRECTION: Final = range(1, 18)
_SECOND: Final = 17
_SECOND_X: Final = 39
#: TFLite's number of the function of the candidate and of the cell on its way out. Without one (0) its kernel leaves
#: memory as it was.
_FUNCTIONS: Final = {1: Activation("relu"), 4: Activation("tanh")}


@dataclass(frozen=True)
class LiteLayer:
    """An LSTM of a graph, in one direction; whether it runs backward is said by what it reads.

    Attributes
    ----------
    label
        The name of its first output.
    graph
        The graph that it is in.
    config, weights
        In our terms.
    time_major
        Whether x and y are (T, N, width), else (N, T, width).
    x, y, h
        Places of tensors: the input, the outputs of all steps and the last one, -1 if the LSTM does not give it.
    columns
        The first of y that is this LSTM's, and the one behind the last; None for all that follow.
    backward
        Whether it reads x from the end by itself, with y in the order of x; else what it reads says so.
    """

    label: str
    graph: Graph
    config: LSTMConfig
    weights: Weights
    time_major: bool
    x: int
    y: int
    h: int
    columns: tuple[int, int | None] = (0, None)
    backward: bool = False

    def steps(self, y: Array, reverse: bool) -> Array:
        """Return the outputs (T, N, H) in the order of x, from the tensor y; `reverse`: it runs from the end."""
        own = (y if self.time_major else y.swapaxes(0, 1))[..., slice(*self.columns)]
        return own[::-1] if reverse and not self.backward else own


def constant_of(graph: Graph, place: int) -> Tensor:
    """Return the tensor that holds a constant, before an operator that turns it into float32; raise ValueError."""
    if graph.tensors[place].data is None:
        for operator in graph.operators:
            if operator.code == "DEQUANTIZE" and place in operator.outputs:
                return graph.tensors[operator.first()]
    return graph.tensors[place]


def vector(tensor: Tensor, shape: tuple[int, ...]) -> Array:
    """Return the float32 numbers of a constant of that shape; raise TypeError or ValueError."""
    _check_dtype(tensor)
    values = tensor.values()
    if values.shape != shape:
        raise ValueError(f"expected shape {shape} in {tensor.name!r}; got {values.shape}")
    return values.astype(np.float32)


def matrix(tensors: Sequence[Tensor], columns: int | None = None) -> Array | StoredMatrix:
    """Return the rows of several constants, as they are stored if all of them are of int8 or of float16.

    Parameters
    ----------
    tensors
        Matrices of the same shape, one below another.
    columns
        Their width, None for any.

    Raises
    ------
    TypeError, ValueError
        Other types and shapes; a zero point, which symmetric weights do not have.
    """
    stored = [tensor.stored() for tensor in tensors]
    shape = stored[0].shape
    for tensor, array in zip(tensors, stored, strict=True):
        _check_dtype(tensor)
        if array.shape != shape or array.ndim != 2 or array.shape[1] != (columns or shape[-1]) or not array.size:
            wanted = f"(H, {columns or 'width'})"
            raise ValueError(f"expected the same shape {wanted} for all gates in {tensor.name!r}; got {array.shape}")
    kinds = {tensor.dtype for tensor in tensors}
    if kinds == {"float16"}:
        return StoredMatrix("float16", np.concatenate(stored))
    if kinds == {"int8"}:
        scales = [
            np.broadcast_to(tensor.by_place(tensor.scale).astype(np.float32), (shape[0], 1)) for tensor in tensors
        ]
        return StoredMatrix("int8", np.concatenate(stored), np.concatenate(scales)[:, 0])
    return np.concatenate([tensor.values().astype(np.float32) for tensor in tensors])


def _check_dtype(tensor: Tensor) -> None:
    if tensor.dtype not in ("float32", "float16", "int8"):
        raise TypeError(f"expected float32, float16 or int8 weights in {tensor.name!r}; got {tensor.dtype}")
    if tensor.dtype == "int8" and (not tensor.scale.size or tensor.zero.any()):
        raise ValueError(f"expected int8 weights with scales and without a zero point in {tensor.name!r}; got others")


def read_fused(graph: Graph, operator: Operator, label: str) -> list[LiteLayer]:
    """Return the layer of an operator, or the two of one in both directions.

    Raises
    ------
    TypeError, ValueError
        What the operator has and ours has not, by name; weights that are computed in a run; other types and shapes.
    """
    given = {number: place for number, place in enumerate(operator.inputs) if place >= 0}
    if 0 not in given or not operator.outputs:
        raise ValueError("expected an operator with x and y; got one without")
    if operator.code == FUSED:
        options = operator.options("UnidirectionalSequenceLSTMOptions")
        if options.DiagonalRecurrentTensors():
            raise ValueError("diagonal_recurrent_tensors: expected False, since lstmcore has whole matrices; got True")
        return [_read_direction(graph, given, options, label, operator.outputs[0])]
    options = operator.options("BidirectionalSequenceLSTMOptions")
    if any(number >= _SECOND_X for number in given):
        raise ValueError("auxiliary input: expected none, since both directions of an LSTM read one x; got one")
    each = []
    for shift in (0, _SECOND):
        own = {number: given[number + shift] for number in _OF_DIRECTION if number + shift in given}
        each.append(_read_direction(graph, {0: given[0], **own}, options, label, operator.outputs[0]))
    forward, backward = (layer.config.output_size for layer in each)
    if not options.MergeOutputs():
        return [each[0], replace(each[1], y=(*operator.outputs, -1)[1], backward=True)]
    behind = forward + backward
    return [replace(each[0], columns=(0, forward)), replace(each[1], columns=(forward, behind), backward=True)]


def _read_direction(graph: Graph, given: Mapping[int, int], options: Any, label: str, y: int) -> LiteLayer:
    """Return the layer with these inputs, by their numbers in the operator in one direction."""
    _check_carried(graph, given, options)
    gates = "ifgo" if 1 in given else "fgo"
    peephole = any(number in given for number in _INPUTS["peephole"].values())
    weights: dict[str, Array | StoredMatrix] = {}
    if _PROJECTION in given:
        weights["weight_proj"] = matrix([constant_of(graph, given[_PROJECTION])])
    weights["weight_x"] = matrix(_gates(graph, given, "weight_x", gates))
    hidden = weights["weight_x"].shape[0] // len(gates)
    output = weights["weight_proj"].shape[0] if _PROJECTION in given else hidden
    weights["weight_h"] = matrix(_gates(graph, given, "weight_h", gates), output)
    weights["bias"] = np.concatenate([vector(each, (hidden,)) for each in _gates(graph, given, "bias", gates)])
    if peephole:
        rows = _gates(graph, given, "peephole", gates.replace("g", ""))
        weights["peephole"] = np.stack([vector(each, (hidden,)) for each in rows])
    function = _FUNCTIONS[options.FusedActivationFunction()]
    config = LSTMConfig(
        input_size=weights["weight_x"].shape[1],
        hidden_size=hidden,
        proj_size=output if _PROJECTION in given else 0,
        peephole=peephole,
        coupling="none" if 1 in given else "input_from_forget",
        cell_clip=_bound(options.CellClip()),
        proj_clip=_bound(options.ProjClip()) if _PROJECTION in given else None,
        cell_activation=function,
        hidden_activation=function,
    )
    return LiteLayer(label, graph, config, _checked(config, weights), options.TimeMajor(), given[0], y, -1)


def _check_carried(graph: Graph, given: Mapping[int, int], options: Any) -> None:
    """Raise unless the operator has only what ours has."""
    if any(number in given for number in _LAYER_NORM):
        raise ValueError(
            "layer_norm: expected none, since TFLite normalises each gate's sum, and lstmcore each product"
        )
    if (kind := graph.tensors[given[0]].dtype) != "float32":
        raise TypeError(f"x: expected float32; got {kind}: an operator whose activations are integers is not read")
    if (number := options.FusedActivationFunction()) not in _FUNCTIONS:
        raise ValueError(f"activation: expected relu or tanh; got TFLite's number {number}")
    if _PROJECTION_BIAS in given:
        added = constant_of(graph, given[_PROJECTION_BIAS]).values()
        if added.any():
            raise ValueError("projection bias: expected zeros, since lstmcore's projection has none; got other numbers")


def _gates(graph: Graph, given: Mapping[int, int], name: str, gates: str) -> list[Tensor]:
    """Return the constants of a parameter for these gates; raise ValueError if another set of gates has one."""
    places = _INPUTS[name]
    present = "".join(gate for gate, number in places.items() if number in given)
    if present != gates:
        raise ValueError(f"{name}: expected arrays of the gates {', '.join(gates)}; got those of {', '.join(present)}")
    return [constant_of(graph, given[places[gate]]) for gate in gates]


def _bound(number: float) -> float | None:
    """Return a bound, which TFLite has as float32 and 0 for none: 0.9 shall not become 0.8999999761581421."""
    return float(str(np.float32(number))) or None


def _checked(config: LSTMConfig, weights: Weights) -> Weights:
    """Return the weights in the order of the parameters; raise ValueError for another shape."""
    for name, shape in config.parameter_shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"{name}: expected shape {shape}; got {weights[name].shape}")
    return {name: weights[name] for name in config.parameter_shapes}
