"""Hypothesis strategies and data that the tests share: configurations over all switches, and cases to run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lstmcore.backend import Masks, State, Tangents
from lstmcore.config import SWITCHES as SWITCH_FIELDS
from lstmcore.config import Activation, LSTMConfig
from lstmcore.domains import RATE, Kind
from lstmcore_conformance.cases.switches import FUNCTIONS, SWITCHES, config_of

Array = np.ndarray[Any, np.dtype[Any]]


def switch_config(name: str, **changes: Any) -> LSTMConfig:
    """Return the configuration of a `SWITCHES` entry of the conformance suite: I = 5, H = 7, a projection to 3."""
    return config_of({**SWITCHES[name], **changes})


def with_switches(config: LSTMConfig, **changes: Any) -> LSTMConfig:
    """Return `config` with some switches changed."""
    return LSTMConfig(**({item.name: getattr(config, item.name) for item in fields(config) if item.init} | changes))


@dataclass(frozen=True)
class Case:
    """Everything that one call needs, in float64: asymmetric random numbers, non-zero states, ragged lengths."""

    config: LSTMConfig
    parameters: dict[str, Array]
    x: Array
    state: State
    lengths: Array | None
    masks: Masks | None
    dy: Array
    dstate: State
    tangents: Tangents

    @property
    def call(self) -> dict[str, Any]:
        """The keyword arguments of a call."""
        return {"lengths": self.lengths, "masks": self.masks}


def make_case(  # long: one line for each array  # noqa: PLR0913  (sizes and switches of one case)
    config: LSTMConfig,
    *,
    steps: int = 4,
    batch: int = 3,
    seed: int = 0,
    lengths: bool = True,
    masks: bool = True,
    scale: float = 0.8,
) -> Case:
    """Return a case for `config`. With `lengths`, the first row has 0 steps and the last has all T."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape) * scale + 0.05

    def drawn(rate: float, *shape: int, kept: float) -> Array | None:
        return np.where(rng.random(shape) < 0.5, 0.0, kept) if rate else None

    shapes = config.parameter_shapes
    parameters = {name: normal(*shape) + ("norm_gain" in name) for name, shape in shapes.items()}
    ends = rng.integers(0, steps + 1, batch)
    ends[:1], ends[-1:] = 0, steps
    recurrent, hidden, cell = config.recurrent_size, config.output_size, config.hidden_size
    made = Masks(
        drawn(config.recurrent_dropout, batch, recurrent, kept=1 / (1 - config.recurrent_dropout)),
        drawn(config.zoneout_hidden, steps, batch, hidden, kept=1.0),
        drawn(config.zoneout_cell, steps, batch, cell, kept=1.0),
    )
    return Case(
        config,
        parameters,
        normal(steps, batch, config.input_size),
        State(normal(batch, hidden), normal(batch, cell)),
        ends if lengths else None,
        made if masks else None,
        normal(steps, batch, hidden),
        State(normal(batch, hidden), normal(batch, cell)),
        Tangents(
            normal(steps, batch, config.input_size),
            State(normal(batch, hidden), normal(batch, cell)),
            {name: normal(*shape) for name, shape in shapes.items()},
        ),
    )


def activations() -> st.SearchStrategy[Activation]:
    """Return a strategy for any activation, with parameters that differ from its defaults."""
    return st.sampled_from([Activation.parse(text) for text in FUNCTIONS])


def switch_values(name: str) -> st.SearchStrategy[Any]:
    """Return a strategy for the values of a switch, by the kind of its domain."""
    item = SWITCH_FIELDS[name]
    kinds: dict[Kind, st.SearchStrategy[Any]] = {
        "flag": st.booleans(),
        "size": st.integers(0, 3),
        "choice": st.sampled_from(item.domain.choices or (None,)),
        "number": st.sampled_from([item.default, 1e-2]),
        "bound": st.none() | st.floats(0.2, 1.5),
        "rate": st.sampled_from([0.0, 0.0, 0.15, 0.6] + [1.0] * (item.domain is RATE)),
        "function": st.just(item.default) | activations(),
    }
    return kinds[item.domain.kind]


@st.composite
def lstm_configs(draw: st.DrawFn, max_size: int = 4) -> LSTMConfig:
    """Draw any configuration that the specification allows, with small sizes."""
    hidden = draw(st.integers(1, max_size))
    proj = draw(st.integers(0, hidden - 1))
    own = {"proj_size": st.just(proj)} if proj else {"proj_size": st.just(0), "proj_clip": st.none()}
    return LSTMConfig(
        input_size=draw(st.integers(1, max_size + 1)),
        hidden_size=hidden,
        **{name: draw(own.get(name, switch_values(name))) for name in SWITCH_FIELDS},
    )


@st.composite
def cases(draw: st.DrawFn, max_steps: int = 4, max_batch: int = 3) -> Case:
    """Draw a case for any configuration, with or without lengths and masks."""
    return make_case(
        draw(lstm_configs()),
        steps=draw(st.integers(0, max_steps)),
        batch=draw(st.integers(0, max_batch)),
        seed=draw(st.integers(0, 2**32 - 1)),
        lengths=draw(st.booleans()),
        masks=draw(st.booleans()),
    )
