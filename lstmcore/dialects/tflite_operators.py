"""A small evaluator of TFLite's operators, by which a reader finds out what a part of a graph computes.

It has the operators that lie between LSTMs and in the loop of one. Numbers are float64, so that a comparison with the
equations of an LSTM tells rounding from a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.activations import value
from lstmcore.dialects.tflite_file import DAMAGE, Graph, Operator
from lstmcore.domains import Activation

Array: TypeAlias = npt.NDArray[Any]

#: Numbers of all results together, and of one of them. A file of a few bytes may ask for any number.
_MOST: Final = 2**24
_MOST_OF_ONE: Final = 2**22
#: What an operator raises whose inputs or options are not those that it needs.
_FAILURES: Final = (*DAMAGE, KeyError, ZeroDivisionError)
#: TFLite's number of a function that an operator applies to its result.
_FUSED: Final[Mapping[int, Callable[[Array], Array]]] = {
    0: lambda z: z,
    1: lambda z: np.maximum(z, 0),
    2: lambda z: np.clip(z, -1, 1),
    3: lambda z: np.clip(z, 0, 6),
    4: np.tanh,
}
_SIGMOID: Final = Activation("sigmoid")


def evaluate(graph: Graph, known: Mapping[int, Array], wanted: Iterable[int]) -> dict[int, Array]:
    """Return those of the `wanted` tensors that follow from constants and from `known` ones, by their places.

    What follows an operator that is not one of these, or one whose inputs do not fit it, or whose results are too
    large, is left out.
    """
    needed, operators = set(wanted), list[Operator]()
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs) and not all(place in known for place in operator.outputs):
            operators.append(operator)
            needed.update(operator.inputs)
    results, left = dict(known), _MOST
    for operator in reversed(operators):
        try:
            with np.errstate(all="ignore"):
                outputs = _OPERATORS[operator.code](_inputs(graph, operator, results), operator)
        except _FAILURES:
            continue
        left -= sum(array.size for array in outputs)
        if left < 0:
            break
        results |= {place: array for place, array in zip(operator.outputs, outputs, strict=False) if place not in known}
    return results


def _inputs(graph: Graph, operator: Operator, results: Mapping[int, Array]) -> list[Any]:
    """Return the inputs of an operator, with None for one that is left out; raise ValueError if one is unknown."""
    inputs: list[Any] = []
    for place in operator.inputs:
        if place < 0 or place in results:
            inputs.append(results.get(place))
        else:
            values = graph.tensors[place].values()
            inputs.append(values.astype(np.float64) if values.dtype.kind == "f" else values)
    return inputs


def check_size(*shape: int) -> None:
    """Raise ValueError for an array that no model needs; a few bytes of a damaged one may ask for any."""
    if math.prod(shape) > _MOST_OF_ONE:
        raise ValueError(f"expected a result of less than {_MOST_OF_ONE} numbers; got shape {shape}")


def _binary(function: Any, kind: str | None = None) -> Callable[[Sequence[Any], Operator], list[Array]]:
    """Return an operator of two arrays; `kind` names its options if these have a function to apply."""

    def apply(inputs: Sequence[Any], operator: Operator) -> list[Array]:
        one, two = inputs
        check_size(*np.broadcast_shapes(one.shape, two.shape))
        fused = operator.options(kind).FusedActivationFunction() if kind and operator.table is not None else 0
        return [_FUSED[fused](function(one, two))]

    return apply


def _unary(function: Callable[[Array], Array]) -> Callable[[Sequence[Any], Operator], list[Array]]:
    return lambda inputs, operator: [function(inputs[0])]


def _fully_connected(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    x, weights, *bias = inputs
    options = operator.options("FullyConnectedOptions")
    if options.WeightsFormat():
        raise ValueError("another layout of weights")
    rows = x if options.KeepNumDims() else x.reshape(-1, weights.shape[1])
    check_size(*rows.shape[:-1], len(weights))
    z = rows @ weights.T
    if bias and bias[0] is not None:
        z = z + bias[0]
    return [_FUSED[options.FusedActivationFunction()](z)]


def _gather(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    options = operator.options("GatherOptions")
    if options.BatchDims():
        raise ValueError("rows of their own")
    values, places = inputs
    check_size(places.size, values.size // max(values.shape[options.Axis()], 1))
    return [np.take(values, places, axis=options.Axis())]


def _reshape(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    if len(inputs) > 1:
        return [inputs[0].reshape([int(size) for size in inputs[1]])]
    return [inputs[0].reshape(operator.options("ReshapeOptions").NewShapeAsNumpy())]


def _split(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    return np.split(inputs[1], operator.options("SplitOptions").NumSplits(), axis=int(inputs[0].reshape(())))


def _concatenate(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    check_size(sum(array.size for array in inputs))
    options = operator.options("ConcatenationOptions")
    return [_FUSED[options.FusedActivationFunction()](np.concatenate(inputs, axis=options.Axis()))]


def _slice(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    values, begin, size = inputs
    ends = [start + count if count >= 0 else None for start, count in zip(begin, size, strict=True)]
    return [values[tuple(map(slice, begin, ends))]]


def _strided_slice(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    """Return a part of an array; the masks have a bit for each axis: to begin at 0, to go to the end, to drop it."""
    options = operator.options("StridedSliceOptions")
    if options.EllipsisMask() or options.NewAxisMask():
        raise ValueError("other masks")
    values, *parts = inputs
    places: list[slice | int] = []
    for axis, (begin, end, stride) in enumerate(zip(*parts, strict=True)):
        if options.ShrinkAxisMask() >> axis & 1:
            places.append(int(begin))
            continue
        start = None if options.BeginMask() >> axis & 1 else int(begin)
        places.append(slice(start, None if options.EndMask() >> axis & 1 else int(end), int(stride)))
    return [np.asarray(values[tuple(places)])]


def _squeeze(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    options = operator.options("SqueezeOptions")
    axes = tuple(map(int, options.SqueezeDimsAsNumpy())) if options.SqueezeDimsLength() else None
    return [np.squeeze(inputs[0], axes)]


def _pack(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    check_size(sum(array.size for array in inputs))
    return [np.stack(inputs, axis=operator.options("PackOptions").Axis())]


def _largest(inputs: Sequence[Any], operator: Operator) -> list[Array]:
    kept = operator.options("ReducerOptions").KeepDims()
    return [np.asarray(np.max(inputs[0], tuple(map(int, inputs[1].ravel())), keepdims=kept))]


_OPERATORS: Final[Mapping[str, Callable[[Sequence[Any], Operator], list[Array]]]] = {
    "ADD": _binary(np.add, "AddOptions"),
    "SUB": _binary(np.subtract, "SubOptions"),
    "MUL": _binary(np.multiply, "MulOptions"),
    "DIV": _binary(np.divide, "DivOptions"),
    "MINIMUM": _binary(np.minimum),
    "MAXIMUM": _binary(np.maximum),
    "LESS": _binary(np.less),
    "LOGICAL_AND": _binary(np.logical_and),
    "LOGISTIC": _unary(lambda z: value(_SIGMOID, z)),
    "TANH": _unary(np.tanh),
    "RELU": _unary(_FUSED[1]),
    "RELU_N1_TO_1": _unary(_FUSED[2]),
    "RELU6": _unary(_FUSED[3]),
    "DEQUANTIZE": _unary(lambda z: z),  # the constants that go in are floating-point numbers already
    "SHAPE": _unary(lambda z: np.array(z.shape, np.int32)),
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": _gather,
    "RESHAPE": _reshape,
    "SPLIT": _split,
    "CONCATENATION": _concatenate,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "SQUEEZE": _squeeze,
    "PACK": _pack,
    "EXPAND_DIMS": lambda inputs, operator: [np.expand_dims(inputs[0], int(inputs[1].reshape(())))],
    "TRANSPOSE": lambda inputs, operator: [inputs[0].transpose(inputs[1])],
    "REDUCE_MAX": _largest,
    "REVERSE_V2": lambda inputs, operator: [np.flip(inputs[0], tuple(map(int, inputs[1])))],
}
