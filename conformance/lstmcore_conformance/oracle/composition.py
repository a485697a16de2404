"""The reference on a layer or a stack, in float64 or as the naive evaluation of a lower precision.

Stacks are composed here from the reference alone, by section 6 of SPEC.md. So the suite checks the core's composition
and does not compare it with itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lstmcore import reference
from lstmcore.backend import Masks, StackMasks, State, Tangents
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import Precision, get_precision
from lstmcore_conformance.cases.call_data import Array, Data, storage_dtype

#: Name of an output -> array: y, h_n, c_n; dx, dh0, dc0 and d_<parameter>; ty, th_n, tc_n.
Arrays = dict[str, Array]
Model: TypeAlias = LSTMConfig | StackConfig


class Pass(NamedTuple):
    """A forward pass: outputs, and the tape of each layer and direction."""

    outputs: Arrays
    tapes: tuple[reference.Tape, ...]


class Draft(NamedTuple):
    """The tapes and gradients by which data are judged."""

    tapes: tuple[reference.Tape, ...]
    gradients: Arrays


def draft(model: Model, data: Data, precision: Precision | str) -> Draft:
    """Return the tapes and the gradients of `model` on `data`."""
    done = forward_pass(model, data, precision)
    return Draft(done.tapes, backward_pass(model, data, done, precision))


def parts(stack: StackConfig, values: Mapping[str, Array], index: int) -> Arrays:
    """Return the arrays of entry `index` of `StackConfig.configs`, by their names without the suffix."""
    suffix = stack.suffixes[index]
    return {name: values[name + suffix] for name in stack.configs[index].parameter_shapes}


def forward_pass(model: Model, data: Data, precision: Precision | str) -> Pass:
    """Return the outputs y, h_n and c_n, and the tapes."""
    call: dict[str, Any] = {"lengths": data.lengths, "precision": precision}
    if isinstance(model, LSTMConfig):
        result = reference.forward(model, data.parameters, data.x, data.state, masks=data.masks, **call)
        return Pass({"y": result.y, "h_n": result.state.h, "c_n": result.state.c}, (result.tape,))
    masks = _masks(model, data)
    below, tapes, last = data.x, [], []
    for layer in range(model.num_layers):
        if layer:
            below = _stored(below * masks.dropout[layer - 1] if masks.dropout else below, precision)
        outputs = []
        for index in _directions(model, layer):
            weights, state = parts(model, data.parameters, index), _entry(data.state, index)
            result = reference.forward(model.configs[index], weights, below, state, masks=masks.layers[index], **call)
            outputs.append(result.y)
            tapes.append(result.tape)
            last.append(result.state)
        below = np.concatenate(outputs, axis=2)
    h_n, c_n = (np.stack(arrays) for arrays in zip(*last, strict=True))
    return Pass({"y": below, "h_n": h_n, "c_n": c_n}, tuple(tapes))


def backward_pass(model: Model, data: Data, done: Pass, precision: Precision | str) -> Arrays:
    """Return the gradients dx, dh0, dc0 and d_<parameter>.

    Parameters
    ----------
    model, data
        The model and the arguments of its calls.
    done
        The forward pass on them.
    precision
        The precision of that pass.
    """
    if isinstance(model, LSTMConfig):
        gradients = reference.backward(model, done.tapes[0], data.dy, data.dstate)
        named = {f"d_{name}": array for name, array in gradients.parameters.items()}
        return {"dx": gradients.x, "dh0": gradients.state.h, "dc0": gradients.state.c} | named
    masks, width = _masks(model, data), model.output_size
    named = {}
    dh0: list[Any] = [None] * len(model.configs)
    dc0: list[Any] = [None] * len(model.configs)
    above: Any = data.dy
    for layer in reversed(range(model.num_layers)):
        total: Any = 0
        for direction, index in enumerate(_directions(model, layer)):
            dy = None if above is None else above[:, :, direction * width : (direction + 1) * width]
            gradients = reference.backward(model.configs[index], done.tapes[index], dy, _entry(data.dstate, index))
            total = _stored(total + _stored(gradients.x, precision), precision)
            dh0[index], dc0[index] = gradients.state
            named |= {f"d_{name}{model.suffixes[index]}": array for name, array in gradients.parameters.items()}
        above = _stored(total * masks.dropout[layer - 1] if layer and masks.dropout else total, precision)
    ordered = {f"d_{name}": named[f"d_{name}"] for name in model.parameter_shapes}
    return {"dx": above, "dh0": np.stack(dh0), "dc0": np.stack(dc0)} | ordered


def jvp_pass(model: Model, data: Data, done: Pass, precision: Precision | str) -> Arrays:
    """Return the tangents ty, th_n and tc_n along those of `data`.

    Parameters
    ----------
    model, data, done, precision
        The parameters of `backward_pass`.
    """
    tangents = data.tangents
    if isinstance(model, LSTMConfig):
        moved = reference.along(model, done.tapes[0], tangents)
        return {"ty": moved.y, "th_n": moved.state.h, "tc_n": moved.state.c}
    masks = _masks(model, data)
    below: Any = tangents.x
    last = []
    for layer in range(model.num_layers):
        if layer and masks.dropout:
            below = _stored(below * masks.dropout[layer - 1], precision)
        outputs = []
        for index in _directions(model, layer):
            weights = parts(model, tangents.parameters or {}, index)
            along = Tangents(below, _entry(tangents.state, index), weights)
            moved = reference.along(model.configs[index], done.tapes[index], along)
            outputs.append(_stored(moved.y, precision))
            last.append(moved.state)
        below = np.concatenate(outputs, axis=2)
    th_n, tc_n = (np.stack(arrays) for arrays in zip(*last, strict=True))
    return {"ty": below, "th_n": th_n, "tc_n": tc_n}


def _masks(stack: StackConfig, data: Data) -> StackMasks:
    """Return the masks of the call; without any, those of each layer are empty."""
    masks: StackMasks = data.masks or StackMasks(tuple(Masks() for _ in stack.configs))
    return masks


def _directions(stack: StackConfig, layer: int) -> range:
    """Return the indices of a layer's directions in `StackConfig.configs`."""
    return range(layer * stack.num_directions, (layer + 1) * stack.num_directions)


def _entry(state: State | None, index: int) -> State | None:
    """Return the state of one layer and direction."""
    return None if state is None else State(state.h[index], state.c[index])


def _stored(array: Array, precision: Precision | str) -> Array:
    """Return what passes from layer to layer: the oracle's exact values, or values as the policy stores them."""
    if precision == "float64":
        return array
    stored: Array = array.astype(storage_dtype(get_precision(precision).storage))
    return stored
