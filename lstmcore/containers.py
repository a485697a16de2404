"""Containers of arrays that go into a call of a kernel or come out of it: states, masks, results, tapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

#: An array of whatever library the backend computes with; it has at least ``shape`` and ``dtype``.
Array: TypeAlias = Any
#: Parameters as a backend wants them, made by `Kernel.pack`; opaque to everybody else.
Weights: TypeAlias = Any


class State(NamedTuple):
    """The state between steps: ``h`` (N, P) in the storage dtype, ``c`` (N, H) in the compute dtype."""

    h: Array
    c: Array


class Masks(NamedTuple):
    """The random masks of one layer in one direction, in the compute dtype; None is the inference behaviour.

    Attributes
    ----------
    recurrent
        (N, R), values 0 or ``1 / (1 - recurrent_dropout)``; multiplies the recurrent input at every step.
    zoneout_hidden, zoneout_cell
        (T, N, P) and (T, N, H), 1 where the old value stays and 0 where the new one is taken. None blends the two
        by the rate.
    """

    recurrent: Array | None = None
    zoneout_hidden: Array | None = None
    zoneout_cell: Array | None = None


class StackMasks(NamedTuple):
    """The masks of a stack: one `Masks` for each of `StackConfig.configs`, and the dropout between layers.

    ``dropout[l]`` (T, N, D * P), values 0 or ``1 / (1 - dropout)``, multiplies the outputs of layer ``l`` before
    layer ``l + 1`` reads them; empty for none.
    """

    layers: tuple[Masks, ...]
    dropout: tuple[Array, ...] = ()


class Forward(NamedTuple):
    """The result of a forward pass: ``y`` (T, N, P), the final state, and the tape if one was recorded."""

    y: Array
    state: State
    tape: Any = None


class Gradients(NamedTuple):
    """Gradients of a scalar: of x, of the initial state and of every parameter, each with its shape and dtype."""

    x: Array
    state: State
    parameters: dict[str, Array]


class Tangents(NamedTuple):
    """Directions for `jvp`: of x, of the initial state, of parameters by name. What is left out is zero."""

    x: Array | None = None
    state: State | None = None
    parameters: Mapping[str, Array] | None = None


@dataclass(frozen=True, slots=True)
class Tape:
    """The record that `forward(record=True)` keeps for `backward`. It can be used more than once and never changes."""

    owner: object
    steps: int
    batch: int
    saved: Any = field(repr=False)
