"""Configurations: every switch alone, and a sample of combinations in which every pair of values meets.

They follow from the descriptions of the switches (`lstmcore.config.SWITCHES`): a new switch is in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import combinations
from types import MappingProxyType
from typing import Any, Final

from lstmcore.backend import Capabilities
from lstmcore.config import SWITCHES as FIELDS
from lstmcore.config import LSTMConfig
from lstmcore.domains import SAMPLE_FUNCTIONS, Switch

#: I, H and the projection of the small cases: different from each other and from T and N.
WIDTHS: Final = {"input_size": 5, "hidden_size": 7}
PROJECTION: Final[int] = FIELDS["proj_size"].sample[0]

#: Activations with parameters that differ from the defaults.
FUNCTIONS: Final = SAMPLE_FUNCTIONS

#: Names of cases that a published report holds and `_case_name` would not give.
_NAMES: Final = {"coupling_forget_from_input": "forget_from_input", "coupling_input_from_forget": "input_from_forget"}

#: Cases of more than one switch, by the switch that they follow; the names are those of the switches' own cases.
_TOGETHER: Final[Mapping[str, tuple[str, ...]]] = {
    "coupling": ("forget_from_input,peephole", "input_from_forget,peephole"),
    "gate_clip": ("gate_clip,peephole",),
    "cell_clip": ("cell_clip,peephole",),
    "recurrence": ("recurrence_cell,proj_size",),
    "layer_norm": ("layer_norm,no_bias",),
    "zoneout_hidden": ("zoneout_hidden,proj_size",),
    "zoneout_cell": ("zoneout_cell,cell_clip", "zoneout_cell,peephole"),
}

#: Further cases, by the switch that they follow.
_FURTHER: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "bias": {"square": {"input_size": WIDTHS["hidden_size"]}},
    "zoneout_cell": {"zoneout_all": {"zoneout_hidden": 1.0, "zoneout_cell": 1.0}},
}


def _case_name(field: Switch, value: object) -> str:
    """Return the name of the case in which a switch alone has this value."""
    if field.domain.kind == "function":
        return f"{field.name}={value}"
    name = f"{field.name}_{value}" if field.domain.kind == "choice" else field.feature or field.name
    return _NAMES.get(name, name)


def _samples(field: Switch) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and changes for each sample of a switch but its default, with what the switch needs."""
    needed = {} if field.needs is None else {field.needs: FIELDS[field.needs].sample[0]}
    for value in field.sample:
        if field.domain.check(field.name, value) != field.default:
            yield _case_name(field, value), {**needed, field.name: value}


def _cases() -> Mapping[str, Mapping[str, Any]]:
    """Return the cases of every switch alone and of some together; functions, which are many, come last."""
    alone = {name: changes for field in FIELDS.values() for name, changes in _samples(field)}
    cases: dict[str, Mapping[str, Any]] = {"plain": {}}
    for field in sorted(FIELDS.values(), key=lambda field: field.domain.kind == "function"):
        cases |= dict(_samples(field))
        for name in _TOGETHER.get(field.name, ()):
            cases[name] = {key: value for part in name.split(",") for key, value in alone[part].items()}
        cases |= _FURTHER.get(field.name, {})
    return cases


#: Names of `SWITCHES` that most checks of steps and states take: with memory in each way, with masks, and together.
MEMORIES: Final = ("plain", "reverse", "proj_size", "peephole", "recurrence_cell")
MASKED: Final = ("zoneout_hidden", "zoneout_cell", "recurrent_dropout")
TOGETHER: Final = ("everything", "everything_coupled")

#: Name -> what differs from the default. A check over them names the switch that is wrong.
SWITCHES: Final[Mapping[str, Mapping[str, Any]]] = {
    **_cases(),
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

#: Values of a switch in combinations, if other ones than its samples: functions are too many, and clips are wider.
_COMBINED: Final[Mapping[str, tuple[Any, ...]]] = {
    "gate_clip": (1.1,),
    "cell_clip": (0.6,),
    "gate_activation": (FUNCTIONS[8], "softsign"),
    "cell_activation": ("relu", FUNCTIONS[7]),
    "hidden_activation": ("identity", "elu(alpha=0.8)"),
    "layer_norm_eps": (),
}


def _factors() -> Mapping[str, tuple[Mapping[str, Any], ...]]:
    """Return the factors; a switch that needs another one gives that one's factor further values."""
    factors: dict[str, tuple[Mapping[str, Any], ...]] = {}
    for field in FIELDS.values():
        samples = tuple(changes for _, changes in _samples(field))
        if field.name in _COMBINED:
            samples = tuple({field.name: value} for value in _COMBINED[field.name])
        factor = field.needs or field.name
        factors[factor] = (*factors.get(factor, ({},)), *samples)
    return {**factors, "lengths": ({}, {"lengths": True}), "masks": ({}, {"masks": True})}


#: Factor -> its values, each the changes that it makes. A factor is a switch, or how the kernel is called.
FACTORS: Final = _factors()


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
    """Return whether a value of a factor uses declared features alone."""
    return _allowed(value, declared.features)


def _allowed(value: Mapping[str, Any], features: frozenset[str]) -> bool:
    call = {name for name in ("lengths", "masks") if name in value}
    switches = {name: item for name, item in value.items() if name not in call}
    return (call | config_of(switches).features) <= features
