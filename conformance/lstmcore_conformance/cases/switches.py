"""Configurations: every switch alone, and a sample of combinations in which every pair of values meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import combinations
from types import MappingProxyType
from typing import Any, Final

from lstmcore.backend import Capabilities
from lstmcore.config import LSTMConfig

#: I, H and the projection of the small cases: different from each other and from T and N.
WIDTHS: Final = {"input_size": 5, "hidden_size": 7}
PROJECTION: Final = 3

#: Activations with parameters that differ from the defaults.
FUNCTIONS: Final = (
    "sigmoid",
    "tanh",
    "relu",
    "identity",
    "affine(alpha=0.7, beta=0.1)",
    "leaky_relu(alpha=0.3)",
    "thresholded_relu(alpha=0.2)",
    "scaled_tanh(alpha=1.3, beta=0.6)",
    "hard_sigmoid(alpha=0.3, beta=0.45)",
    "elu(alpha=0.8)",
    "softsign",
    "softplus",
)

_ROLES: Final = {"gate_activation": "sigmoid", "cell_activation": "tanh", "hidden_activation": "tanh"}

#: Name -> what differs from the default. A check over them names the switch that is wrong.
SWITCHES: Final[Mapping[str, Mapping[str, Any]]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "square": {"input_size": 7},
    "proj_size": {"proj_size": PROJECTION},
    "reverse": {"reverse": True},
    "peephole": {"peephole": True},
    "forget_from_input": {"coupling": "forget_from_input"},
    "input_from_forget": {"coupling": "input_from_forget"},
    "forget_from_input,peephole": {"coupling": "forget_from_input", "peephole": True},
    "input_from_forget,peephole": {"coupling": "input_from_forget", "peephole": True},
    "gate_clip": {"gate_clip": 0.9},
    "gate_clip,peephole": {"gate_clip": 0.9, "peephole": True},
    "cell_clip": {"cell_clip": 0.45},
    "cell_clip,peephole": {"cell_clip": 0.45, "peephole": True},
    "proj_clip": {"proj_size": PROJECTION, "proj_clip": 0.25},
    "recurrence_cell": {"recurrence": "cell"},
    "recurrence_cell,proj_size": {"recurrence": "cell", "proj_size": PROJECTION},
    "layer_norm": {"layer_norm": True},
    "layer_norm,no_bias": {"layer_norm": True, "bias": False},
    "layer_norm_eps": {"layer_norm": True, "layer_norm_eps": 0.3},
    "zoneout_hidden": {"zoneout_hidden": 0.3},
    "zoneout_hidden,proj_size": {"zoneout_hidden": 0.3, "proj_size": PROJECTION},
    "zoneout_cell": {"zoneout_cell": 0.4},
    "zoneout_cell,cell_clip": {"zoneout_cell": 0.4, "cell_clip": 0.45},
    "zoneout_cell,peephole": {"zoneout_cell": 0.4, "peephole": True},
    "zoneout_all": {"zoneout_hidden": 1.0, "zoneout_cell": 1.0},
    "recurrent_dropout": {"recurrent_dropout": 0.25},
    **{f"{role}={text}": {role: text} for role, usual in _ROLES.items() for text in FUNCTIONS if text != usual},
    "everything": {
        "proj_size": PROJECTION,
        "reverse": True,
        "peephole": True,
        "gate_clip": 1.4,
        "cell_clip": 0.9,
        "proj_clip": 0.4,
        "layer_norm": True,
        "zoneout_hidden": 0.2,
        "zoneout_cell": 0.3,
        "recurrent_dropout": 0.25,
        "gate_activation": "hard_sigmoid(alpha=0.3, beta=0.45)",
        "cell_activation": "scaled_tanh(alpha=1.3, beta=0.6)",
        "hidden_activation": "softsign",
    },
    "everything_coupled": {
        "peephole": True,
        "coupling": "forget_from_input",
        "gate_clip": 1.4,
        "cell_clip": 0.9,
        "recurrence": "cell",
        "layer_norm": True,
        "zoneout_hidden": 0.2,
        "zoneout_cell": 0.3,
        "recurrent_dropout": 0.25,
    },
}

#: A factor and the position of one of its values.
_Level = tuple[str, int]

#: Factor -> its values, each the changes that it makes; ``call`` is how the kernel is called.
FACTORS: Final[Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "bias": ({}, {"bias": False}),
    "projection": ({}, {"proj_size": PROJECTION}, {"proj_size": PROJECTION, "proj_clip": 0.25}),
    "reverse": ({}, {"reverse": True}),
    "peephole": ({}, {"peephole": True}),
    "coupling": ({}, {"coupling": "forget_from_input"}, {"coupling": "input_from_forget"}),
    "gate_clip": ({}, {"gate_clip": 1.1}),
    "cell_clip": ({}, {"cell_clip": 0.6}),
    "gate_activation": ({}, {"gate_activation": FUNCTIONS[8]}, {"gate_activation": "softsign"}),
    "cell_activation": ({}, {"cell_activation": "relu"}, {"cell_activation": FUNCTIONS[7]}),
    "hidden_activation": ({}, {"hidden_activation": "identity"}, {"hidden_activation": "elu(alpha=0.8)"}),
    "recurrence": ({}, {"recurrence": "cell"}),
    "layer_norm": ({}, {"layer_norm": True}),
    "zoneout_hidden": ({}, {"zoneout_hidden": 0.3}),
    "zoneout_cell": ({}, {"zoneout_cell": 0.4}),
    "recurrent_dropout": ({}, {"recurrent_dropout": 0.25}),
    "lengths": ({}, {"lengths": True}),
    "masks": ({}, {"masks": True}),
}


def config_of(changes: Mapping[str, Any]) -> LSTMConfig:
    """Return the configuration with these changes and the widths of the small cases."""
    return _config_of(**changes)


@lru_cache(maxsize=1024, typed=True)  # typed: 1 is not True
def _config_of(**changes: Any) -> LSTMConfig:
    return LSTMConfig(**({**WIDTHS, **changes}))


def covering(declared: Capabilities) -> tuple[Mapping[str, Any], ...]:
    """Return changes in which every pair of values of two factors meets, among those that `declared` allows."""
    return _covering(declared.features)


@lru_cache(maxsize=64)
def _covering(features: frozenset[str]) -> tuple[Mapping[str, Any], ...]:
    return tuple(_rows(features))


def _rows(features: frozenset[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a greedy covering array.

    Each row starts from a pair that has not met and takes, factor by factor, the value that adds the most new pairs.
    """
    factors = {name: [value for value in values if _allowed(value, features)] for name, values in FACTORS.items()}
    names = list(factors)
    order = {name: position for position, name in enumerate(names)}

    def pair(one: _Level, two: _Level) -> tuple[_Level, _Level]:
        return (one, two) if order[one[0]] < order[two[0]] else (two, one)

    def position(pair: tuple[_Level, _Level]) -> tuple[int, int, int, int]:
        (a, i), (b, j) = pair
        return order[a], order[b], i, j

    todo = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    while todo:
        first = min(todo, key=position)
        row = dict(first)
        for name in names:
            if name not in row:
                row[name] = max(
                    range(len(factors[name])),
                    key=lambda value: (sum(pair((name, value), item) in todo for item in row.items()), value),
                )
        todo -= {pair(one, two) for one, two in combinations(row.items(), 2)}
        changes: dict[str, Any] = {}
        for name in names:
            changes |= factors[name][row[name]]
        yield MappingProxyType(changes)


def allowed(value: Mapping[str, Any], declared: Capabilities) -> bool:
    """Whether a value of a factor uses nothing that is not declared."""
    return _allowed(value, declared.features)


def _allowed(value: Mapping[str, Any], features: frozenset[str]) -> bool:
    call = {name for name in ("lengths", "masks") if name in value}
    switches = {name: item for name, item in value.items() if name not in call}
    return (call | config_of(switches).features) <= features
