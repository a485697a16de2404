"""The configuration of an LSTM: its switches, its parameters and their shapes.

`LSTMConfig` describes one layer in one direction; `StackConfig` puts layers and directions together.
Nothing here computes. The reference, the backends and the conformance suite all read configurations from here.
The meaning of every switch is in SPEC.md. A switch is described once, in its field of `LSTMConfig`: features, options
of the command line, macros of CUDA sources and cases of the conformance suite follow from that description.
"""
# long file: a layer and a stack of such layers; the descriptions of the switches take a fifth of the lines

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Final, Literal, get_args

from lstmcore.domains import (
    ACTIVATIONS,
    BOUND,
    DROPOUT,
    FLAG,
    FUNCTION,
    NUMBER,
    RATE,
    SAMPLE_FUNCTIONS,
    SIGMOID,
    SIZE,
    TANH,
    Activation,
    Switch,
    one_of,
    switch,
)
from lstmcore.scalars import check_version, finite, integer, rate
from lstmcore.suggestions import did_you_mean

__all__ = [
    "ACTIVATIONS",
    "CONFIG_VERSION",
    "FEATURES",
    "MOST_LAYERS",
    "SHARED_SWITCHES",
    "SIGMOID",
    "SWITCHES",
    "TANH",
    "Activation",
    "Coupling",
    "LSTMConfig",
    "Recurrence",
    "StackConfig",
    "check_version",
    "finite",
    "integer",
    "rate",
]

Coupling = Literal["none", "forget_from_input", "input_from_forget"]
Recurrence = Literal["hidden", "cell"]

#: Version of the dictionary form of a configuration. A file with a larger one was written by a newer lstmcore.
CONFIG_VERSION: Final = 1

#: Layers that `StackConfig.make` makes at most: each takes time and memory before the first call.
MOST_LAYERS: Final = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class LSTMConfig:
    """One LSTM layer in one direction. SPEC.md gives the equations.

    Shapes use ``I = input_size``, ``H = hidden_size``, ``P = output_size`` (``proj_size`` or ``H``),
    ``G = len(gates)`` (4, or 3 with coupled gates) and ``R = recurrent_size`` (``P``, or ``H`` if
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
        gate that follows has no parameters.
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

    Examples
    --------
    >>> config = LSTMConfig(input_size=3, hidden_size=5, peephole=True)
    >>> config.parameter_shapes["weight_x"], config.parameter_shapes["peephole"]
    ((20, 3), (3, 5))
    """

    input_size: int
    hidden_size: int
    bias: bool = switch(True, FLAG, "Give the gates a bias.", feature="no_bias", sample=(False,))
    proj_size: int = switch(0, SIZE, "Width of the projected output; 0 for none.", feature="proj_size", sample=(3,))
    reverse: bool = switch(False, FLAG, "Last step first.", feature="reverse", sample=(True,))
    peephole: bool = switch(False, FLAG, "Add peephole connections.", feature="peephole", sample=(True,))
    coupling: Coupling = switch(
        "none",
        one_of(*get_args(Coupling)),
        "Couple the input and the forget gate.",
        feature="coupling:{}",
        sample=("forget_from_input", "input_from_forget"),
    )
    gate_clip: float | None = switch(
        None, BOUND, "Clip the pre-activations of the gates here.", feature="gate_clip", sample=(0.9,)
    )
    cell_clip: float | None = switch(None, BOUND, "Clip the cell state here.", feature="cell_clip", sample=(0.45,))
    proj_clip: float | None = switch(
        None, BOUND, "Clip the projected output here.", feature="proj_clip", sample=(0.25,), needs="proj_size"
    )
    gate_activation: Activation = switch(
        SIGMOID,
        FUNCTION,
        "Of the gates, such as 'hard_sigmoid(alpha=0.2)'.",
        feature="activation:{.name}",
        sample=SAMPLE_FUNCTIONS,
    )
    cell_activation: Activation = switch(
        TANH, FUNCTION, "Of the cell candidate.", feature="activation:{.name}", sample=SAMPLE_FUNCTIONS
    )
    hidden_activation: Activation = switch(
        TANH, FUNCTION, "Of the cell state in the output.", feature="activation:{.name}", sample=SAMPLE_FUNCTIONS
    )
    recurrence: Recurrence = switch(
        "hidden",
        one_of(*get_args(Recurrence)),
        "Let the gates read the last output or the last cell.",
        feature="recurrence:{}",
        sample=("cell",),
    )
    layer_norm: bool = switch(False, FLAG, "Use layer normalisation.", feature="layer_norm", sample=(True,))
    layer_norm_eps: float = switch(
        1e-5, NUMBER, "Added to the variance in layer normalisation.", feature=None, sample=(0.3,), needs="layer_norm"
    )
    zoneout_hidden: float = switch(
        0.0, RATE, "Zoneout rate of the hidden state.", feature="zoneout_hidden", sample=(0.3,)
    )
    zoneout_cell: float = switch(0.0, RATE, "Zoneout rate of the cell state.", feature="zoneout_cell", sample=(0.4,))
    recurrent_dropout: float = switch(
        0.0, DROPOUT, "Dropout rate of the state, one mask per sequence.", feature="recurrent_dropout", sample=(0.25,)
    )
    #: Parameter name -> shape, in canonical order. Derived.
    parameter_shapes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("input_size", "hidden_size"):
            put(self, name, integer(name, getattr(self, name), 1))
        for name, item in SWITCHES.items():
            put(self, name, item.domain.check(name, getattr(self, name)))
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size: expected 0 or a value below hidden_size={self.hidden_size}; got {self.proj_size}"
            )
        if self.proj_clip is not None and not self.proj_size:
            raise ValueError(f"proj_clip: needs proj_size > 0; got proj_clip={self.proj_clip!r} with proj_size=0")
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
        """Names of the switches in use, as a backend declares them (`FEATURES`)."""
        return _features_used(self)

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON: the version of the form and every switch."""
        values: dict[str, Any] = {"version": CONFIG_VERSION}
        for item in fields(self):
            if item.init:
                value = getattr(self, item.name)
                values[item.name] = str(value) if isinstance(value, Activation) else value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LSTMConfig:
        """Invert `to_dict`. A newer version, an unknown or a missing switch is a ValueError."""
        rest = dict(values)
        check_version("config", rest.pop("version", None), CONFIG_VERSION)
        known = {item.name for item in fields(cls) if item.init}
        if unknown := sorted(set(rest) - known):
            near = did_you_mean(unknown[0], sorted(known))
            raise ValueError(f"config: unknown switch {', '.join(unknown)}; known are {', '.join(sorted(known))}{near}")
        if missing := sorted({"input_size", "hidden_size"} - set(rest)):
            raise ValueError(f"config: {', '.join(missing)} missing")
        return cls(**rest)


#: Switches by name, in the order of the fields: the fields of `LSTMConfig` that have a description.
SWITCHES: Final[Mapping[str, Switch]] = {
    item.name: Switch(item.name, item.default, **item.metadata) for item in fields(LSTMConfig) if item.metadata
}

#: Switches that all layers and directions of a stack share: all but the direction.
SHARED_SWITCHES: Final = tuple(name for name in SWITCHES if name != "reverse")

#: Feature, with ``{}`` for the value -> the switches that it describes together.
_GROUPS: Final[Mapping[str, tuple[Switch, ...]]] = {
    feature: tuple(item for item in SWITCHES.values() if item.feature == feature)
    for feature in dict.fromkeys(item.feature for item in SWITCHES.values())
    if feature is not None
}


@lru_cache(maxsize=4096)  # the suite asks for those of each case many times
def _features_used(config: LSTMConfig) -> frozenset[str]:
    used: set[str] = set()
    for feature, group in _GROUPS.items():
        values = [getattr(config, item.name) for item in group]
        if any(value != item.default for value, item in zip(values, group, strict=True)):
            used |= {feature.format(value) for value in values}
    return frozenset(used)


def _features_of(feature: str, group: tuple[Switch, ...]) -> Iterator[str]:
    """Yield the names that `LSTMConfig.features` can have for a group of switches."""
    if "{" not in feature:
        yield feature
        return
    for value in group[0].domain.choices:
        if len(group) > 1 or value != group[0].default:  # in a group, a default is named for another's sake
            yield feature.format(value)


#: Every feature that a backend can declare. ``lengths`` and ``masks`` are features of a call, the rest of a config.
FEATURES: Final = frozenset(
    {"lengths", "masks", *(name for feature, group in _GROUPS.items() for name in _features_of(feature, group))}
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

    Examples
    --------
    >>> stack = StackConfig.make(LSTMConfig(input_size=3, hidden_size=5), num_layers=2, bidirectional=True)
    >>> stack.suffixes
    ('_l0', '_l0_reverse', '_l1', '_l1_reverse')
    >>> stack.parameter_shapes["weight_x_l1"]
    (20, 10)
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
        """Return `num_layers` layers with the switches of `config`, in one or both directions.

        Parameters
        ----------
        config
            The switches, and the sizes of the first layer.
        num_layers
            1 to `MOST_LAYERS`.
        bidirectional
            Whether every layer also has a reversed direction.
        dropout
            As for `StackConfig`.

        Raises
        ------
        TypeError, ValueError
            A value outside its domain; a `config` that is reversed.
        """
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
        """Return a form for JSON: the version of the form, every layer and direction, the dropout."""
        layers = [[config.to_dict() for config in directions] for directions in self.layers]
        return {"version": CONFIG_VERSION, "layers": layers, "dropout": self.dropout}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StackConfig:
        """Invert `to_dict`. A newer version, an unknown or a missing entry is a ValueError."""
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
