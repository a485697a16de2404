"""An LSTM of this specification as the operator LSTM of ONNX, and back.

ONNX stacks gates in the order i, o, f, c (our g) and peepholes in the order i, o, f, has two biases that it adds, and
keeps the rows of the forget gate where ``input_forget`` couples it to the input gate. Its text says that `clip` bounds
the input of every activation; we translate it to `gate_clip`, which leaves that of the hidden activation alone, as
ONNX Runtime does. `direction` is a second axis of one operator there, and two configurations here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from lstmcore.config import ACTIVATIONS, Activation, LSTMConfig, StackConfig

Array: TypeAlias = npt.NDArray[Any]
#: A configuration and its parameters.
Direction: TypeAlias = tuple[LSTMConfig, Mapping[str, Array]]

#: Our name of a function -> ONNX's. `identity` is the affine function with the parameters 1 and 0.
FUNCTIONS: Final = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "affine": "Affine",
    "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu",
    "scaled_tanh": "ScaledTanh",
    "hard_sigmoid": "HardSigmoid",
    "elu": "Elu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}
_OURS: Final = {theirs.lower(): ours for ours, theirs in FUNCTIONS.items()}
_DEFAULT: Final = ("Sigmoid", "Tanh", "Tanh")

#: Direction -> whether each of its operator's directions is reversed.
_DIRECTIONS: Final = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}

_GATES: Final = "iofg"
_PEEPHOLES: Final = "iof"

#: The first version of the operator that is the same as ours but for its layout, and of the file that goes with it.
_OPSET: Final = 14
_IR: Final = 7
INPUTS: Final = ("X", "sequence_lens", "initial_h", "initial_c")
OUTPUTS: Final = ("Y", "Y_h", "Y_c")


def attributes(*configs: LSTMConfig) -> dict[str, Any]:
    """The operator's attributes for one direction, or for the forward and the reversed one.

    Raises
    ------
    ValueError
        The operator has not what a configuration asks for, or two of them differ in more than the functions.
    """
    _check(configs)
    first = configs[0]
    functions = list(chain.from_iterable(map(_functions, configs)))
    found: dict[str, Any] = {
        "hidden_size": first.hidden_size,
        "direction": "bidirectional" if len(configs) > 1 else "reverse" if first.reverse else "forward",
        "activations": [FUNCTIONS[function.name] for function in functions],
        "input_forget": int(first.coupling == "forget_from_input"),
    }
    for key in ("alpha", "beta"):
        values = [getattr(function, key) for function in functions if key in ACTIVATIONS[function.name]]
        if values:
            found[f"activation_{key}"] = values
    if first.gate_clip is not None:
        found["clip"] = first.gate_clip
    return found


def tensors(*directions: Direction) -> dict[str, Array]:
    """W, R and, where there are such parameters, B and P; the first axis is the direction."""
    parts = [_tensors(*direction) for direction in directions]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def model(config: LSTMConfig, parameters: Mapping[str, Array]) -> onnx.ModelProto:
    """A model of one direction: its inputs are `INPUTS`, its outputs `OUTPUTS`, the parameters are in it."""
    weights = tensors((config, parameters))
    optional = [name if name in weights else "" for name in ("B", "P")]
    node = helper.make_node(
        "LSTM", ["X", "W", "R", optional[0], *INPUTS[1:], optional[1]], OUTPUTS, **attributes(config)
    )
    float_type = helper.np_dtype_to_tensor_dtype(weights["W"].dtype)
    width, state = config.hidden_size, [1, "N", config.hidden_size]

    def value(name: str, shape: Sequence[Any], dtype: int = float_type) -> Any:
        return helper.make_tensor_value_info(name, dtype, shape)

    graph = helper.make_graph(
        [node],
        "lstm",
        [
            value("X", ["T", "N", config.input_size]),
            value("sequence_lens", ["N"], onnx.TensorProto.INT32),
            value("initial_h", state),
            value("initial_c", state),
        ],
        [value("Y", ["T", 1, "N", width]), value("Y_h", state), value("Y_c", state)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR, producer_name="lstmcore"
    )


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node, as `attributes` has them."""

    def text(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    found = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return {name: list(map(text, value)) if isinstance(value, list) else text(value) for name, value in found.items()}


def directions(
    given: Mapping[str, Any], W: Array, R: Array, B: Array | None = None, P: Array | None = None
) -> tuple[tuple[LSTMConfig, dict[str, Array]], ...]:
    """The configuration and the parameters of every direction, from the operator's attributes and inputs.

    An attribute that is not given has ONNX's default; `layout` and `hidden_size` say nothing about either.

    Raises
    ------
    ValueError
        An attribute outside its domain.
    """
    direction = given.get("direction", "forward")
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction: expected one of {', '.join(_DIRECTIONS)}; got {direction!r}")
    reverse = _DIRECTIONS[direction]
    functions = _activations(given, len(reverse))
    made = []
    for index, (reversed_, (gate, cell, hidden)) in enumerate(zip(reverse, functions, strict=True)):
        config = LSTMConfig(
            input_size=W.shape[2],
            hidden_size=R.shape[2],
            bias=B is not None,
            reverse=reversed_,
            peephole=P is not None,
            coupling="forget_from_input" if given.get("input_forget", 0) else "none",
            gate_clip=given.get("clip"),
            gate_activation=gate,
            cell_activation=cell,
            hidden_activation=hidden,
        )
        parameters = {name: _own(config, array[index]) for name, array in (("weight_x", W), ("weight_h", R))}
        if B is not None:
            parameters["bias"] = _own(config, np.add(*np.split(B[index], 2)))
        if P is not None:
            rows = dict(zip(_PEEPHOLES, np.split(P[index], 3), strict=True))
            parameters["peephole"] = np.stack([rows[gate] for gate in config.peephole_gates])
        made.append((config, parameters))
    return tuple(made)


def _check(configs: tuple[LSTMConfig, ...]) -> None:
    """Raise unless one operator can have all `configs`."""
    known = {"no_bias", "reverse", "peephole", "gate_clip", "coupling:forget_from_input"}
    for config in configs:
        if missing := sorted(name for name in config.features - known if not name.startswith("activation:")):
            raise ValueError(f"config: expected what ONNX's LSTM has; got {', '.join(missing)}")
    if len(configs) != 1:
        StackConfig((configs,))  # one forward and one reversed, of the same sizes
        for name in ("bias", "peephole", "coupling", "gate_clip"):
            found = [getattr(config, name) for config in configs]
            if found[0] != found[1]:
                raise ValueError(f"{name}: expected the same in both directions of an operator; got {found}")


def _functions(config: LSTMConfig) -> Iterator[Activation]:
    for function in (config.gate_activation, config.cell_activation, config.hidden_activation):
        yield Activation("affine", 1.0, 0.0) if function.name == "identity" else function


def _activations(given: Mapping[str, Any], count: int) -> list[tuple[Activation, ...]]:
    """Three functions for each direction; each takes the next alpha and beta where it has one."""
    theirs = given.get("activations") or _DEFAULT * count
    names = [_OURS.get(name.lower(), "") for name in theirs]
    if len(names) != 3 * count or "" in names:
        raise ValueError(f"activations: expected {3 * count} of {', '.join(FUNCTIONS.values())}; got {list(theirs)}")
    left = {key: iter(given.get(f"activation_{key}") or ()) for key in ("alpha", "beta")}
    made = [Activation(name, **{key: next(left[key], None) for key in ACTIVATIONS[name]}) for name in names]
    return [tuple(made[3 * index : 3 * index + 3]) for index in range(count)]


def _tensors(config: LSTMConfig, parameters: Mapping[str, Array]) -> dict[str, Array]:
    found = {"W": _theirs(config, parameters["weight_x"]), "R": _theirs(config, parameters["weight_h"])}
    if config.bias:
        bias = _theirs(config, parameters["bias"])
        found["B"] = np.concatenate([bias, np.zeros_like(bias)])
    if config.peephole:
        rows = dict(zip(config.peephole_gates, parameters["peephole"], strict=True))
        none = np.zeros_like(parameters["peephole"][0])
        found["P"] = np.concatenate([rows.get(gate, none) for gate in _PEEPHOLES])
    return found


def _theirs(config: LSTMConfig, array: Array) -> Array:
    """Rows by gate in ONNX's order; zeros for the gate that follows another one."""
    rows = dict(zip(config.gates, np.split(array, len(config.gates)), strict=True))
    return np.concatenate([rows.get(gate, np.zeros_like(rows["i"])) for gate in _GATES])


def _own(config: LSTMConfig, array: Array) -> Array:
    """Rows by gate in our order; without the gate that follows another one."""
    rows = dict(zip(_GATES, np.split(array, len(_GATES)), strict=True))
    return np.concatenate([rows[gate] for gate in config.gates])
