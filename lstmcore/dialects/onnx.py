"""ONNX's operator LSTM: its attributes and tensors as configurations and parameters, and back. No file is read here.

ONNX stacks gates in the order i, o, f, c (our g) and peepholes in the order i, o, f. It has two biases that it adds. It
keeps the rows of the forget gate if ``input_forget`` couples that gate to the input gate. Its text says that `clip`
bounds the input of every activation. We translate it to `gate_clip`, which leaves the input of the hidden activation
alone, as ONNX Runtime does. Both directions are one operator with an axis for them there, and two configurations here.
`onnx_reader` reads whole models, and `onnx_writer` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import ACTIVATIONS, Activation, LSTMConfig, StackConfig
from lstmcore.dialects.arrays import add_biases, check_floats

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

#: The smallest and the largest number above 0 of float32, the format of the operator's attributes.
SMALLEST: Final = float(np.finfo(np.float32).smallest_subnormal)
LARGEST: Final = float(np.finfo(np.float32).max)

_GATES: Final = "iofg"
_PEEPHOLES: Final = "iof"

#: An input of the operator -> its shape for each direction, in multiples of H or as a letter.
_SHAPES: Final[Mapping[str, tuple[int | str, ...]]] = {"W": (4, "I"), "R": (4, "H"), "B": (8,), "P": (3,)}


def attributes(*configs: LSTMConfig) -> dict[str, Any]:
    """Return the operator's attributes for one direction, or for the forward and the reversed one.

    Raises
    ------
    ValueError
        The operator lacks a feature of a configuration, or two configurations differ in more than the functions.
    """
    _check(configs)
    first = configs[0]
    functions = list(chain.from_iterable(map(_functions, configs)))
    result: dict[str, Any] = {
        "hidden_size": first.hidden_size,
        "direction": "bidirectional" if len(configs) > 1 else "reverse" if first.reverse else "forward",
        "activations": [FUNCTIONS[function.name] for function in functions],
        "input_forget": int(first.coupling == "forget_from_input"),
    }
    for key in ("alpha", "beta"):
        values = [getattr(function, key) for function in functions if key in ACTIVATIONS[function.name]]
        if values:
            result[f"activation_{key}"] = values
    if first.gate_clip is not None:
        result["clip"] = first.gate_clip
    return result


def float32_refusal(config: LSTMConfig, library: str = "ONNX") -> str | None:
    """Return which number of `config` float32 does not hold, in which `library` has it; None if there is none."""
    bound = config.gate_clip
    if bound is not None and not SMALLEST <= bound <= LARGEST:
        return f"gate_clip: {library} has it in float32, which {bound!r} is not"
    for role in ("gate_activation", "cell_activation", "hidden_activation"):
        function = getattr(config, role)
        if any(abs(value or 0.0) > LARGEST for value in (function.alpha, function.beta)):
            return f"{role}: {library} has its parameters in float32; got {function}"
    return None


def tensors(*directions: Direction) -> dict[str, Array]:
    """Return W and R, and B and P if the parameters have them; the first axis is the direction."""
    each = [_tensors(*direction) for direction in directions]
    return {name: np.stack([arrays[name] for arrays in each]) for name in each[0]}


def attributes_of(node: Any) -> dict[str, Any]:
    """Return the attributes of an ``onnx.NodeProto`` in the form of `attributes`."""
    from onnx import helper

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return float(str(np.float32(value)))  # ONNX has float32: 0.9 shall not become 0.8999999761581421
        return value.decode() if isinstance(value, bytes) else value

    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    lists = {name: [*map(plain, value)] for name, value in values.items() if isinstance(value, list)}
    return {name: plain(value) for name, value in values.items()} | lists


def directions(
    given: Mapping[str, Any], W: Array, R: Array, B: Array | None = None, P: Array | None = None
) -> tuple[tuple[LSTMConfig, dict[str, Array]], ...]:
    """Return the configuration and the parameters of every direction.

    Parameters
    ----------
    given
        Attributes of the operator; those left out have ONNX's default. `layout` is not read.
    W, R, B, P
        Inputs of the operator; the first axis is the direction.

    Raises
    ------
    TypeError, ValueError
        An attribute outside its domain; an input that is no array of floating-point numbers, or of another shape.
    """
    direction = given.get("direction", "forward")
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction: expected one of {', '.join(_DIRECTIONS)}; got {direction!r}")
    reverse = _DIRECTIONS[direction]
    check_shapes(given, {"W": W, "R": R, "B": B, "P": P})
    functions = _activations(given, len(reverse))
    results = []
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
        parameters = {name: from_onnx_rows(config, array[index]) for name, array in (("weight_x", W), ("weight_h", R))}
        if B is not None:
            parameters["bias"] = from_onnx_rows(config, add_biases(*np.split(B[index], 2)))
        if P is not None:
            rows = dict(zip(_PEEPHOLES, np.split(P[index], 3), strict=True))
            parameters["peephole"] = np.stack([rows[gate] for gate in config.peephole_gates])
        results.append((config, parameters))
    return tuple(results)


def check_shapes(given: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Raise unless these are inputs of an operator with the attributes `given`; None is one that is left out.

    Raises
    ------
    TypeError, ValueError
        The message names the input, W, R, B or P, or the attribute hidden_size.
    """
    present = {name: array for name, array in inputs.items() if array is not None or name in ("W", "R")}
    for name, array in present.items():
        check_floats(name, array)
    hidden = present["R"].shape[2] if present["R"].ndim == 3 else 0
    if not hidden:
        raise ValueError(f"R: expected shape (D, 4 H, H); got {present['R'].shape}")
    if (asked := given.get("hidden_size", hidden)) != hidden:
        raise ValueError(f"hidden_size: expected {hidden}, the last axis of R; got {asked}")
    count = len(_DIRECTIONS[given.get("direction", "forward")])
    for name in sorted(present, key="RWBP".index):  # R says what H is
        array = present[name]
        sizes = {"I": array.shape[-1] if array.shape else 0, "H": hidden}
        expected = (count, *(sizes[size] if isinstance(size, str) else size * hidden for size in _SHAPES[name]))
        if array.shape != expected or not array.size:
            raise ValueError(f"{name}: expected shape {expected} with D={count} and H={hidden}; got {array.shape}")


def _check(configs: tuple[LSTMConfig, ...]) -> None:
    """Raise ValueError unless one operator can have all `configs`."""
    known = {"no_bias", "reverse", "peephole", "gate_clip", "coupling:forget_from_input"}
    for config in configs:
        if missing := sorted(name for name in config.features - known if not name.startswith("activation:")):
            raise ValueError(f"config: expected what ONNX's LSTM has; got {', '.join(missing)}")
    if len(configs) != 1:
        StackConfig((configs,))  # one forward and one reversed, of the same sizes
        for name in ("bias", "peephole", "coupling", "gate_clip"):
            values = [getattr(config, name) for config in configs]
            if values[0] != values[1]:
                raise ValueError(f"{name}: expected the same in both directions of an operator; got {values}")


def _functions(config: LSTMConfig) -> Iterator[Activation]:
    """Yield the functions of the gates, the cell and the hidden state, as ones that ONNX has."""
    for function in (config.gate_activation, config.cell_activation, config.hidden_activation):
        yield Activation("affine", 1.0, 0.0) if function.name == "identity" else function


def _activations(given: Mapping[str, Any], count: int) -> list[tuple[Activation, ...]]:
    """Return three functions for each direction; each takes the next alpha and beta if it has such a parameter."""
    theirs = given.get("activations") or _DEFAULT * count
    names = [_OURS.get(name.lower(), "") for name in theirs]
    if len(names) != 3 * count or "" in names:
        raise ValueError(f"activations: expected {3 * count} of {', '.join(FUNCTIONS.values())}; got {list(theirs)}")
    remaining = {key: iter(given.get(f"activation_{key}") or ()) for key in ("alpha", "beta")}
    functions = [Activation(name, **{key: next(remaining[key], None) for key in ACTIVATIONS[name]}) for name in names]
    return [tuple(functions[3 * index : 3 * index + 3]) for index in range(count)]


def _tensors(config: LSTMConfig, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Return W, R, B and P of one direction, without their first axis."""
    tensors = {"W": _to_onnx_rows(config, parameters["weight_x"]), "R": _to_onnx_rows(config, parameters["weight_h"])}
    if config.bias:
        bias = _to_onnx_rows(config, parameters["bias"])
        tensors["B"] = np.concatenate([bias, np.zeros_like(bias)])
    if config.peephole:
        rows = dict(zip(config.peephole_gates, parameters["peephole"], strict=True))
        none = np.zeros_like(parameters["peephole"][0])
        tensors["P"] = np.concatenate([rows.get(gate, none) for gate in _PEEPHOLES])
    return tensors


def _to_onnx_rows(config: LSTMConfig, array: Array) -> Array:
    """Return rows by gate in ONNX's order, with zeros for a coupled gate."""
    rows = dict(zip(config.gates, np.split(array, len(config.gates)), strict=True))
    return np.concatenate([rows.get(gate, np.zeros_like(rows["i"])) for gate in _GATES])


def from_onnx_rows(config: LSTMConfig, array: Array) -> Array:
    """Return rows by gate in our order, without a coupled gate."""
    rows = dict(zip(_GATES, np.split(array, len(_GATES)), strict=True))
    return np.concatenate([rows[gate] for gate in config.gates])
