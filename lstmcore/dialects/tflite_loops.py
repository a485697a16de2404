"""An LSTM that TFLite has as a loop: the operator WHILE with the equations of Keras in its body.

Nothing in such a file says that it is an LSTM. The reader takes the matrices by which the body multiplies x and h, and
runs the body for random numbers: only where h and c come out as an LSTM with these weights gives them is it one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.activations import value
from lstmcore.config import LSTMConfig
from lstmcore.dialects.arrays import add_biases
from lstmcore.dialects.tflite_file import DAMAGE, Graph, Operator, Tensor
from lstmcore.dialects.tflite_layers import LiteLayer, constant_of, matrix, vector
from lstmcore.dialects.tflite_operators import check_size, evaluate
from lstmcore.domains import Activation
from lstmcore.notices import notify
from lstmcore.stored_weights import StoredMatrix

Array: TypeAlias = npt.NDArray[Any]

LOOP: Final = "WHILE"
#: Lengths that stand for an axis of any length, by axis; x of a loop is (T, N, I).
FREE: Final = (3, 2, 4, 5)
#: Two lengths that stand for an axis of any length where the steps are counted: a limit has to follow both.
_LENGTHS: Final = (3, 4)
#: Functions of the gates and of the cell, one of each of which a body has to agree with.
_GATES: Final = (
    Activation("sigmoid"),
    Activation("hard_sigmoid", 1 / 6, 0.5),
    Activation("hard_sigmoid", 0.2, 0.5),
    Activation("tanh"),
    Activation("relu"),
)
_CELLS: Final = (Activation("tanh"), Activation("relu"), Activation("sigmoid"), Activation("identity"))


class LoopParts(NamedTuple):
    """The variables of a loop that are those of an LSTM: places of x, y (-1 for none), of the states and counters."""

    x: int
    y: int
    states: tuple[int, int]
    counters: tuple[int, ...]


def fixed_shape(shape: Sequence[int], free: Sequence[int] = FREE) -> tuple[int, ...]:
    """Return a shape with a length for each axis that may have any; raise ValueError if it has too many numbers."""
    fixed = tuple(free[axis % len(free)] if size < 0 else size for axis, size in enumerate(shape))
    check_size(*fixed)
    return fixed


def graphs_of(graphs: Sequence[Graph], operator: Operator) -> tuple[Graph, Graph] | None:
    """Return the condition and the body of a loop, or None if it is a damaged one."""
    try:
        options = operator.options("WhileOptions")
        places = options.CondSubgraphIndex(), options.BodySubgraphIndex()
    except DAMAGE:
        return None
    if not all(0 <= place < len(graphs) for place in places) or min(operator.inputs, default=0) < 0:
        return None
    condition, body = (graphs[place] for place in places)
    counts = {len(body.inputs), len(body.outputs), len(operator.inputs), len(operator.outputs)}
    return (condition, body) if len(counts) == 1 else None


def parts_of(body: Graph) -> LoopParts | None:
    """Return the parts of an LSTM in a loop; None if the loop has not two states and one array (T, N, I)."""
    states, counters, sequences, outputs = list[int](), list[int](), list[int](), list[int]()
    for number, (begin, end) in enumerate(zip(body.inputs, body.outputs, strict=True)):
        tensor = body.tensors[begin]
        if tensor.dtype == "float32" and len(tensor.shape) == 3:
            (sequences if begin == end else outputs).append(number)
        elif tensor.dtype == "float32" and len(tensor.shape) == 2 and begin != end:
            states.append(number)
        elif tensor.dtype in ("int32", "int64") and not tensor.shape and begin != end:
            counters.append(number)
    if len(states) != 2 or len(sequences) != 1 or len(outputs) > 1 or not counters:
        return None
    return LoopParts(sequences[0], outputs[0] if outputs else -1, (states[0], states[1]), tuple(counters))


def read_loop(graph: Graph, operator: Operator, label: str, condition: Graph, body: Graph) -> LiteLayer:
    """Return the layer of a loop.

    Raises
    ------
    TypeError, ValueError
        A body that does not compute what an LSTM does; another number of steps than x has; weights of other types and
        shapes.
    """
    parts = parts_of(body)
    if parts is None:
        raise ValueError("expected a loop with the states h and c and one x; got another one")
    for number in parts.counters:
        if not _is_zero(graph, operator.inputs[number]):
            raise ValueError("expected a loop that counts from 0; got another one")
    _check_limit(graph, operator, condition, parts)
    probes = [_Probe(graph, operator, body, parts, scale) for scale in (1.0, 1 / 64)]
    for h, c in (parts.states, parts.states[::-1]):
        products = [list(probes[0].products(array)) for array in (probes[0].x_now, probes[0].variables[h])]
        if [len(each) for each in products] != [1, 1]:
            continue
        weights = probes[0].weights(*(each[0] for each in products))
        for gate, cell in product(_GATES, _CELLS):
            if all(probe.agrees(weights, (gate, cell), (h, c)) for probe in probes):
                config = _config(weights, gate, cell)
                _tell_of_start(graph, [operator.inputs[number] for number in parts.states], label)
                y = operator.outputs[parts.y] if parts.y >= 0 else -1
                return LiteLayer(label, graph, config, weights, True, operator.inputs[parts.x], y, operator.outputs[h])
    raise ValueError("expected a loop whose body is a step of an LSTM of Keras, without a mask; got another body")


def _check_limit(graph: Graph, operator: Operator, condition: Graph, parts: LoopParts) -> None:
    """Raise ValueError unless the loop runs once for each step of x, whatever the length of x may be."""
    x = operator.inputs[parts.x]
    for length in _LENGTHS:
        known = {place: zeros for place in graph.inputs if (zeros := _zeros(graph, place, length)) is not None}
        if x not in (known := evaluate(graph, known, [x])):
            known[x] = np.zeros(fixed_shape(graph.tensors[x].shape, [length]))
        steps = known[x].shape[0] if known[x].ndim else 0
        check_size(steps + 1)
        found = evaluate(graph, known, operator.inputs)
        given = dict[int, Array]()
        for number, (inner, outer) in enumerate(zip(condition.inputs, operator.inputs, strict=False)):
            if number in parts.counters:
                given[inner] = np.arange(steps + 1)
            elif outer in found or graph.tensors[outer].data is not None:
                given[inner] = found[outer] if outer in found else graph.tensors[outer].values()
        goes_on = evaluate(condition, given, condition.outputs[:1]).get((*condition.outputs, -1)[0])
        if goes_on is None or not np.array_equal(goes_on.ravel(), np.arange(steps + 1) < steps):
            wanted = f"the {steps} steps" if graph.tensors[x].shape[:1] == (steps,) else "each step"
            raise ValueError(f"expected a loop over {wanted} of x; got one with another limit")


def _zeros(graph: Graph, place: int, length: int) -> Array | None:
    """Return zeros for a tensor, whose free axes have that length; None for one that is too large."""
    try:
        return np.zeros(fixed_shape(graph.tensors[place].shape, [length]))
    except ValueError:
        return None


def _config(weights: Any, gate: Activation, cell: Activation) -> LSTMConfig:
    return LSTMConfig(
        input_size=weights["weight_x"].shape[1],
        hidden_size=weights["weight_h"].shape[1],
        bias="bias" in weights,
        gate_activation=gate,
        cell_activation=cell,
        hidden_activation=cell,
    )


def _tell_of_start(graph: Graph, places: Sequence[int], label: str) -> None:
    """Notify if h or c starts from numbers of the file that are not 0."""
    known = evaluate(graph, {}, places)
    for place in places:
        state = graph.tensors[place].values() if graph.tensors[place].data is not None else known.get(place)
        if state is not None and state.any():
            notify(f"{label}: starts from a state that is not 0, which no LSTM holds: hand it over as state")
            return


def _is_zero(graph: Graph, place: int) -> bool:
    tensor = graph.tensors[place]
    return tensor.data is not None and not tensor.stored().any()


class _Probe:
    """Random variables of a loop, and what its body makes of them in a step that is not the first."""

    def __init__(self, graph: Graph, operator: Operator, body: Graph, parts: LoopParts, scale: float) -> None:
        rng = np.random.default_rng(0)
        self.graph, self.operator, self.body, self.parts = graph, operator, body, parts
        self.variables = dict[int, Array]()
        for number, place in enumerate(body.inputs):
            outer = graph.tensors[operator.inputs[number]]
            if number in (parts.x, *parts.states):
                shape = fixed_shape(outer.shape if number == parts.x else body.tensors[place].shape)
                self.variables[number] = scale * rng.standard_normal(shape)
            elif number in parts.counters:
                self.variables[number] = np.asarray(0)
            elif place == body.outputs[number] and self._constant(place).data is not None:
                values = self._constant(place).values()
                self.variables[number] = values.astype(np.float64) if values.dtype.kind == "f" else values
        x = self.variables[parts.x]
        self.step = max(len(x) - 2, 0)
        for number in parts.counters:
            self.variables[number] = np.asarray(self.step)
        self.x_now = x[self.step] if len(x) else x
        known = {body.inputs[number]: array for number, array in self.variables.items()}
        wanted = [body.outputs[number] for number in (*parts.states, *parts.counters)]
        inner = [place for each in body.operators if each.code == "FULLY_CONNECTED" for place in each.inputs[:1]]
        self.results = evaluate(body, known, [*wanted, *inner])

    def products(self, array: Array) -> Iterator[Operator]:
        """Yield the products of an array and a matrix in the body."""
        for operator in self.body.operators:
            if operator.code == "FULLY_CONNECTED" and len(operator.inputs) > 1:
                found = self.results.get(operator.inputs[0])
                if found is None or not found.size or found.shape[-1:] != array.shape[-1:]:
                    continue
                if np.array_equal(found.reshape(-1, array.shape[-1]), array):  # a step of x may keep the axis of time
                    yield operator

    def agrees(self, weights: Any, functions: tuple[Activation, Activation], states: tuple[int, int]) -> bool:
        """Return whether the body counts on, and makes h and c as the equations of an LSTM do."""
        ends = [self.results.get(self.body.outputs[number]) for number in (*states, *self.parts.counters)]
        if any(end is None for end in ends) or any(int(end) != self.step + 1 for end in ends[2:] if end is not None):
            return False
        h, c = (self.variables[number] for number in states)
        x_weights, h_weights = (
            part.read(np.float64) if isinstance(part, StoredMatrix) else part.astype(np.float64)
            for part in (weights["weight_x"], weights["weight_h"])
        )
        if h.shape != c.shape or h_weights.shape != (4 * h.shape[1], h.shape[1]) or len(x_weights) != len(h_weights):
            return False
        z = self.x_now @ x_weights.T + h @ h_weights.T + weights.get("bias", np.float64(0))
        gates = np.split(z, 4, axis=1)
        i, f, o = (value(functions[0], gates[place]) for place in (0, 1, 3))
        wanted_c = f * c + i * value(functions[1], gates[2])
        wanted = (o * value(functions[1], wanted_c), wanted_c)
        return all(
            end is not None and end.shape == array.shape and np.allclose(end, array, rtol=1e-9, atol=1e-9)
            for end, array in zip(ends, wanted, strict=False)
        )

    def weights(self, of_x: Operator, of_h: Operator) -> dict[str, Array | StoredMatrix]:
        """Return the matrices of two products, and the sum of all constants that the body adds to a row of them."""
        weights = {
            "weight_x": matrix([self._constant(of_x.inputs[1])]),
            "weight_h": matrix([self._constant(of_h.inputs[1])]),
        }
        added = [place for each in (of_x, of_h) for place in each.inputs[2:3]]
        added += [place for each in self.body.operators if each.code == "ADD" for place in each.inputs]
        rows, bias = weights["weight_h"].shape[0], None
        for tensor in (self._constant(place) for place in added if place >= 0):
            if tensor.data is not None and tensor.shape in ((rows,), (1, rows)):
                one = vector(tensor, tensor.shape).reshape(rows)
                bias = one if bias is None else add_biases(bias, one)
        return weights if bias is None else {**weights, "bias": bias}

    def _constant(self, place: int) -> Tensor:
        """Return a constant of the body, or one that the graph hands over as a variable that stays as it is."""
        if place in self.body.inputs and place in self.body.outputs:
            return constant_of(self.graph, self.operator.inputs[self.body.inputs.index(place)])
        return constant_of(self.body, place)
