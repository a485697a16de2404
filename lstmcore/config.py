"""The configuration of an LSTM: its switches, its parameters and their shapes.

`LSTMConfig` describes one layer in one direction; `StackConfig` puts layers and directions together.
Nothing here computes: this module is what the reference, the backends and the conformance suite agree on.
The meaning of every switch is in SPEC.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, get_args

Coupling = Literal["none", "forget_from_input", "input_from_forget"]
Recurrence = Literal["hidden", "cell"]

#: Version of the dictionary form of a configuration. A file with a larger one was written by a newer lstmcore.
CONFIG_VERSION: Final = 1

#: Layers that `StackConfig.make` makes at most: each takes time and memory before the first call.
MOST_LAYERS: Final = 2**16

#: Activation name -> its parameters with the defaults of the ONNX operator set.
ACTIVATIONS: Final[Mapping[str, Mapping[str, float]]] = {
    "sigmoid": {},
    "tanh": {},
    "relu": {},
    "identity": {},
    "affine": {"alpha": 1.0, "beta": 0.0},
    "leaky_relu": {"alpha": 0.01},
    "thresholded_relu": {"alpha": 1.0},
    "scaled_tanh": {"alpha": 1.0, "beta": 1.0},
    "hard_sigmoid": {"alpha": 0.2, "beta": 0.5},
    "elu": {"alpha": 1.0},
    "softsign": {},
    "softplus": {},
}

_ACTIVATION_TEXT: Final = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<arguments>[^()]*)\))?\s*")


@dataclass(frozen=True, slots=True)
class Activation:
    """An element-wise function with its parameters, for example ``hard_sigmoid(alpha=0.2, beta=0.5)``.

    Parameters
    ----------
    name
        One of `ACTIVATIONS`.
    alpha, beta
        The parameters of the function; None takes the ONNX default. Giving one to a function that has none is
        an error.

    Raises
    ------
    ValueError
        Unknown name, a parameter that the function does not have, or one that is not finite.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}; got {self.name!r}")
        defaults = ACTIVATIONS[self.name]
        for key in ("alpha", "beta"):
            value = getattr(self, key)
            if key not in defaults:
                if value is not None:
                    raise ValueError(
                        f"activation {self.name}: has no parameter {key}; got {key}={value!r}, leave it out"
                    )
                continue
            object.__setattr__(
                self, key, defaults[key] if value is None else finite(f"activation {self.name} {key}", value)
            )

    @classmethod
    def parse(cls, value: Activation | str) -> Activation:
        """Make an activation from its text: ``"tanh"``, ``"elu(0.5)"``, ``"hard_sigmoid(alpha=0.2, beta=0.5)"``."""
        if isinstance(value, Activation):
            return value
        if not isinstance(value, str):
            raise TypeError(
                f"activation: expected an Activation or its text, such as 'tanh'; got {type(value).__name__}"
            )
        match = _ACTIVATION_TEXT.fullmatch(value)
        if match is None:
            raise ValueError(f"activation: expected a text such as 'tanh' or 'elu(alpha=0.5)'; got {value!r}")
        arguments: dict[str, float] = {}
        text = match["arguments"] or ""
        for position, part in enumerate(text.split(",") if text.strip() else []):
            key, equals, number = part.rpartition("=")
            key = key.strip() if equals else ("alpha", "beta")[position] if position < 2 else ""
            try:
                parsed = float(number)
            except ValueError:
                raise ValueError(
                    f"activation: expected a number for {key or 'each parameter'}; got {part.strip()!r} in {value!r}"
                ) from None
            if key not in ("alpha", "beta"):
                raise ValueError(f"activation: expected alpha and beta only; got {value!r}")
            if key in arguments:
                raise ValueError(f"activation: expected {key} once; got {value!r}")
            arguments[key] = parsed
        return cls(match["name"], **arguments)

    def __str__(self) -> str:
        given = [f"{key}={getattr(self, key)!r}" for key in ACTIVATIONS[self.name]]
        return f"{self.name}({', '.join(given)})" if given else self.name


SIGMOID: Final = Activation("sigmoid")
TANH: Final = Activation("tanh")


@dataclass(frozen=True, slots=True, kw_only=True)
class LSTMConfig:
    """One LSTM layer in one direction. SPEC.md gives the equations.

    Shapes use ``I = input_size``, ``H = hidden_size``, ``P = output_size`` (``proj_size`` or ``H``),
    ``G = len(gates)`` (4, or 3 with coupled gates) and ``R = recurrent_size`` (``P``, or ``H`` where
    ``recurrence="cell"``).

    Parameters
    ----------
    input_size, hidden_size
        Widths of the input and of the memory cell, at least 1.
    bias
        Whether the gates have a bias (and, with `layer_norm`, the normalised cell a shift).
    proj_size
        0 for none, else the width of the projected output, ``1 <= proj_size < hidden_size``.
    reverse
        Run from each row's own last step to its first.
    peephole
        Diagonal connections from the cell to the gates.
    coupling
        ``"forget_from_input"``: ``f = 1 - i`` (ONNX); ``"input_from_forget"``: ``i = 1 - f`` (TFLite). The
        gate that follows has no parameters of its own.
    gate_clip, cell_clip, proj_clip
        Symmetric bounds > 0 of the pre-activations, of the cell and of the projected output; None for none.
        `proj_clip` needs `proj_size`.
    gate_activation, cell_activation, hidden_activation
        Functions of the gates i, f, o; of the candidate g; of the cell on its way out.
    recurrence
        What the gates read: ``"hidden"`` is ``h[t-1]``, ``"cell"`` is ``c[t-1]``.
    layer_norm, layer_norm_eps
        Layer normalisation of ``W x``, of ``R r`` and of ``c`` (Ba, Kiros and Hinton 2016, arXiv:1607.06450).
    zoneout_hidden, zoneout_cell
        Rates in [0, 1] (Krueger et al. 2016, arXiv:1606.01305).
    recurrent_dropout
        Rate in [0, 1) of one mask a sequence on the recurrent input (Gal and Ghahramani 2016, arXiv:1512.05287).

    Raises
    ------
    ValueError, TypeError
        A value outside its domain; the message names the switch, what was expected and what came.
    """

    input_size: int
    hidden_size: int
    bias: bool = True
    proj_size: int = 0
    reverse: bool = False
    peephole: bool = False
    coupling: Coupling = "none"
    gate_clip: float | None = None
    cell_clip: float | None = None
    proj_clip: float | None = None
    gate_activation: Activation = SIGMOID
    cell_activation: Activation = TANH
    hidden_activation: Activation = TANH
    recurrence: Recurrence = "hidden"
    layer_norm: bool = False
    layer_norm_eps: float = 1e-5
    zoneout_hidden: float = 0.0
    zoneout_cell: float = 0.0
    recurrent_dropout: float = 0.0
    #: Parameter name -> shape, in canonical order. Derived.
    parameter_shapes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("input_size", "hidden_size"):
            put(self, name, integer(name, getattr(self, name), 1))
        put(self, "proj_size", integer("proj_size", self.proj_size, 0))
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size: expected 0 or a value below hidden_size={self.hidden_size}; got {self.proj_size}"
            )
        for name in ("bias", "reverse", "peephole", "layer_norm"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name}: expected True or False; got {value!r}")
        _choice("coupling", self.coupling, get_args(Coupling))
        _choice("recurrence", self.recurrence, get_args(Recurrence))
        for name in ("gate_clip", "cell_clip", "proj_clip"):
            value = getattr(self, name)
            if value is not None:
                put(self, name, _positive(name, value))
        if self.proj_clip is not None and not self.proj_size:
            raise ValueError(f"proj_clip: needs proj_size > 0; got proj_clip={self.proj_clip!r} with proj_size=0")
        put(self, "layer_norm_eps", _positive("layer_norm_eps", self.layer_norm_eps))
        for name in ("gate_activation", "cell_activation", "hidden_activation"):
            put(self, name, Activation.parse(getattr(self, name)))
        for name in ("zoneout_hidden", "zoneout_cell"):
            put(self, name, rate(name, getattr(self, name), one_allowed=True))
        put(self, "recurrent_dropout", rate("recurrent_dropout", self.recurrent_dropout))
        put(self, "parameter_shapes", self._parameter_shapes())

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates that have parameters, in the order in which their rows are stacked."""
        follower = {"none": "", "forget_from_input": "f", "input_from_forget": "i"}[self.coupling]
        return tuple(gate for gate in "ifgo" if gate != follower)

    @property
    def peephole_gates(self) -> tuple[str, ...]:
        """The gates that have a peephole, in the order of the rows of ``peephole``; empty without `peephole`."""
        return tuple(gate for gate in self.gates if gate != "g") if self.peephole else ()

    @property
    def output_size(self) -> int:
        """P: the width of h and y."""
        return self.proj_size or self.hidden_size

    @property
    def recurrent_size(self) -> int:
        """R: the width of what the gates read from the step before."""
        return self.hidden_size if self.recurrence == "cell" else self.output_size

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, rows = self.hidden_size, len(self.gates) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_x": (rows, self.input_size),
            "weight_h": (rows, self.recurrent_size),
        }
        if self.bias:
            shapes["bias"] = (rows,)
        if self.proj_size:
            shapes["weight_proj"] = (self.proj_size, hidden)
        if self.peephole:
            shapes["peephole"] = (len(self.peephole_gates), hidden)
        if self.layer_norm:
            shapes |= {"norm_gain_x": (rows,), "norm_gain_h": (rows,), "norm_gain_c": (hidden,)}
            if self.bias:
                shapes["norm_bias_c"] = (hidden,)
        return shapes

    @property
    def features(self) -> frozenset[str]:
        """The names of the switches in use, as a backend declares them (`FEATURES`)."""
        used = {name for name in _FLAG_FEATURES if getattr(self, name)}
        used |= set() if self.bias else {"no_bias"}
        used |= {f"coupling:{self.coupling}"} if self.coupling != "none" else set()
        used |= {"recurrence:cell"} if self.recurrence == "cell" else set()
        functions = (self.gate_activation, self.cell_activation, self.hidden_activation)
        if functions != (SIGMOID, TANH, TANH):
            used |= {f"activation:{function.name}" for function in functions}
        return frozenset(used)

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON: the version of the form and every switch."""
        values: dict[str, Any] = {"version": CONFIG_VERSION}
        for item in fields(self):
            if item.init:
                value = getattr(self, item.name)
                values[item.name] = str(value) if isinstance(value, Activation) else value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LSTMConfig:
        """The inverse of `to_dict`. A newer version, an unknown or a missing switch is a ValueError."""
        rest = dict(values)
        check_version("config", rest.pop("version", None), CONFIG_VERSION)
        known = {item.name for item in fields(cls) if item.init}
        if unknown := sorted(set(rest) - known):
            raise ValueError(f"config: unknown switch {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        if missing := sorted({"input_size", "hidden_size"} - set(rest)):
            raise ValueError(f"config: {', '.join(missing)} missing")
        return cls(**rest)


_FLAG_FEATURES: Final = (
    "proj_size",
    "reverse",
    "peephole",
    "gate_clip",
    "cell_clip",
    "proj_clip",
    "layer_norm",
    "zoneout_hidden",
    "zoneout_cell",
    "recurrent_dropout",
)

#: Every feature that a backend can declare. ``lengths`` and ``masks`` are features of a call, the rest of a config.
FEATURES: Final = frozenset(
    (
        *_FLAG_FEATURES,
        "no_bias",
        "coupling:forget_from_input",
        "coupling:input_from_forget",
        "recurrence:cell",
        *(f"activation:{name}" for name in ACTIVATIONS),
        "lengths",
        "masks",
    )
)


@dataclass(frozen=True, slots=True)
class StackConfig:
    """Layers and directions of an LSTM: ``layers[l][d]`` is layer ``l`` in direction ``d`` (1 is reversed).

    Parameters
    ----------
    layers
        For every layer its one or two directions, forward first. All layers have the same number of
        directions ``D``; layer ``l > 0`` reads the ``D * P`` outputs of the layer below.
    dropout
        Rate in [0, 1) of the dropout on the outputs of every layer but the last, while recording.

    Raises
    ------
    ValueError
        Layers that do not fit together.
    """

    layers: tuple[tuple[LSTMConfig, ...], ...]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dropout", rate("dropout", self.dropout))
        if not self.layers:
            raise ValueError("layers: expected at least one layer; got none")
        expected: int | None = None
        for index, directions in enumerate(self.layers):
            if len(directions) not in (1, 2):
                raise ValueError(f"layers[{index}]: expected 1 or 2 directions; got {len(directions)}")
            if len(directions) != self.num_directions:
                raise ValueError(
                    f"layers[{index}]: expected {self.num_directions} direction(s) as in layers[0]; "
                    f"got {len(directions)}"
                )
            for direction, config in enumerate(directions):
                where = f"layers[{index}][{direction}]"
                if expected is not None and config.input_size != expected:
                    raise ValueError(
                        f"{where}.input_size: expected {expected}, the width of the layer below; "
                        f"got {config.input_size}"
                    )
                if config.reverse != bool(direction):
                    raise ValueError(f"{where}.reverse: expected {bool(direction)}; got {config.reverse}")
                if (config.hidden_size, config.output_size) != (self.hidden_size, self.output_size):
                    raise ValueError(
                        f"{where}: hidden_size and proj_size must be the same in every layer and direction"
                    )
                if config.input_size != directions[0].input_size:
                    raise ValueError(
                        f"{where}.input_size: expected {directions[0].input_size} as in the other direction; "
                        f"got {config.input_size}"
                    )
            expected = len(directions) * directions[0].output_size

    @classmethod
    def make(
        cls, config: LSTMConfig, *, num_layers: int = 1, bidirectional: bool = False, dropout: float = 0.0
    ) -> StackConfig:
        """`num_layers` layers, at most `MOST_LAYERS`, with the switches of `config`, in one or both directions."""
        num_layers = integer("num_layers", num_layers, 1)
        if num_layers > MOST_LAYERS:
            raise ValueError(f"num_layers: expected at most {MOST_LAYERS}; got {num_layers}")
        if not isinstance(bidirectional, bool):
            raise TypeError(f"bidirectional: expected True or False; got {bidirectional!r}")
        if config.reverse:
            raise ValueError("reverse: expected False here; use bidirectional=True for a second, reversed direction")
        switches = {item.name: getattr(config, item.name) for item in fields(LSTMConfig) if item.init}
        directions = (False, True) if bidirectional else (False,)
        first, above = (
            tuple(LSTMConfig(**(switches | {"input_size": width, "reverse": reverse})) for reverse in directions)
            for width in (config.input_size, len(directions) * config.output_size)
        )
        return cls((first, *[above] * (num_layers - 1)), dropout)

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def num_directions(self) -> int:
        """D: 1 or 2."""
        return len(self.layers[0])

    @property
    def input_size(self) -> int:
        """I: the width of the first layer's input."""
        return self.layers[0][0].input_size

    @property
    def hidden_size(self) -> int:
        """H: the width of every cell."""
        return self.layers[0][0].hidden_size

    @property
    def output_size(self) -> int:
        """P: the width of h in one direction; y is ``D * P`` wide."""
        return self.layers[0][0].output_size

    @property
    def configs(self) -> tuple[LSTMConfig, ...]:
        """All layers and directions in the order of the states: layer 0 forward, layer 0 reversed, layer 1 ..."""
        return tuple(config for directions in self.layers for config in directions)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffix of the parameter names for each of `configs`: ``_l0``, ``_l0_reverse``, ``_l1`` ..."""
        return tuple(
            f"_l{index}{'_reverse' if config.reverse else ''}"
            for index, directions in enumerate(self.layers)
            for config in directions
        )

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Full parameter name -> shape, in canonical order."""
        return {
            name + suffix: shape
            for config, suffix in zip(self.configs, self.suffixes, strict=True)
            for name, shape in config.parameter_shapes.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON: the version of the form, every layer and direction, the dropout."""
        layers = [[config.to_dict() for config in directions] for directions in self.layers]
        return {"version": CONFIG_VERSION, "layers": layers, "dropout": self.dropout}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StackConfig:
        """The inverse of `to_dict`. A newer version, an unknown or a missing entry is a ValueError."""
        rest = dict(values)
        check_version("stack", rest.pop("version", None), CONFIG_VERSION)
        if unknown := sorted(set(rest) - {"layers", "dropout"}):
            raise ValueError(f"stack: unknown {', '.join(unknown)}; known are layers, dropout")
        if "layers" not in rest:
            raise ValueError("stack: layers missing")
        layers = rest["layers"]
        if not isinstance(layers, list) or not all(isinstance(directions, list) for directions in layers):
            raise ValueError(f"stack layers: expected a list of lists of layer configurations; got {layers!r}")
        made = tuple(tuple(LSTMConfig.from_dict(config) for config in directions) for directions in layers)
        return cls(made, rest.get("dropout", 0.0))


def check_version(what: str, found: object, newest: int) -> None:
    """Raise ValueError unless `found` is a version of `what` that this lstmcore can read."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{what} version: expected a whole number from 1 to {newest}; got {found!r}")
    if found > newest:
        raise ValueError(
            f"{what} version: expected at most {newest}; got {found}, written by a newer lstmcore: upgrade with "
            "'pip install -U lstmcore'"
        )


def rate(name: str, value: object, *, one_allowed: bool = False) -> float:
    """Check a dropout or zoneout rate and return it as a float."""
    number = finite(name, value)
    if not (0.0 <= number < 1.0 or (one_allowed and number == 1.0)):
        raise ValueError(f"{name}: expected a rate in [0, 1{']' if one_allowed else ')'}; got {value!r}")
    return number


def integer(name: str, value: object, minimum: int) -> int:
    """Check a whole number of any type that can be an index and return it as an int."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected a whole number; got {value!r}")
    number = int(value.__index__())
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}; got {number}")
    return number


def finite(name: str, value: object) -> float:
    """Check a number of any type and return it as a finite float."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number; got {value!r}")
    try:
        number = float(value.__float__())
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number; got one that no float64 can hold") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number; got {number}")
    return number


def _positive(name: str, value: object) -> float:
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a number > 0, or None for none; got {number}")
    return number


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}; got {value!r}")
