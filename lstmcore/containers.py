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
    """The state between steps: ``h`` (N, P) in the storage dtype, ``c`` (N, H) in the compute dtype.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> y, state = LSTM(3, 5, seed=0)(np.zeros((7, 2, 3), np.float32))
    >>> state.h.shape, state.c.shape
    ((1, 2, 5), (1, 2, 5))
    """

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

    Examples
    --------
    >>> keep = Masks(zoneout_cell=np.ones((7, 2, 5), np.float32))
    >>> keep.recurrent is None
    True
    """

    recurrent: Array | None = None
    zoneout_hidden: Array | None = None
    zoneout_cell: Array | None = None


class StackMasks(NamedTuple):
    """The masks of a stack: one `Masks` for each of `StackConfig.configs`, and the dropout between layers.

    ``dropout[l]`` (T, N, D * P), values 0 or ``1 / (1 - dropout)``, multiplies the outputs of layer ``l`` before
    layer ``l + 1`` reads them; empty for none.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> lstm = LSTM(3, 5, recurrent_dropout=0.5, seed=0)
    >>> y, state, tape = lstm.record(np.zeros((7, 2, 3), np.float32))
    >>> tape.masks.layers[0].recurrent.shape, tape.masks.dropout
    ((2, 5), ())
    """

    layers: tuple[Masks, ...]
    dropout: tuple[Array, ...] = ()


class Forward(NamedTuple):
    """The result of a forward pass: ``y`` (T, N, P), the final state, and the tape if one was recorded.

    Examples
    --------
    >>> from lstmcore.config import LSTMConfig
    >>> from lstmcore.registry import get_backend
    >>> layer = get_backend("numpy").compile(LSTMConfig(input_size=3, hidden_size=5, bias=False), "float32")
    >>> weights = layer.pack({"weight_x": np.ones((20, 3), np.float32), "weight_h": np.ones((20, 5), np.float32)})
    >>> layer.forward(weights, np.zeros((7, 2, 3), np.float32)).y.shape
    (7, 2, 5)
    """

    y: Array
    state: State
    tape: Any = None


class Gradients(NamedTuple):
    """Gradients of a scalar: of x, of the initial state and of every parameter, each with its shape and dtype.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> lstm = LSTM(3, 5, seed=0)
    >>> y, state, tape = lstm.record(np.zeros((7, 2, 3), np.float32))
    >>> gradients = lstm.backward(tape, np.ones_like(y))
    >>> gradients.x.shape, gradients.state.c.shape, sorted(gradients.parameters)
    ((7, 2, 3), (1, 2, 5), ['bias_l0', 'weight_h_l0', 'weight_x_l0'])
    """

    x: Array
    state: State
    parameters: dict[str, Array]


class Tangents(NamedTuple):
    """Directions for `jvp`: of x, of the initial state, of parameters by name. What is left out is zero.

    Examples
    --------
    >>> Tangents(x=np.ones((7, 2, 3), np.float32)).parameters is None
    True
    """

    x: Array | None = None
    state: State | None = None
    parameters: Mapping[str, Array] | None = None


@dataclass(frozen=True, slots=True)
class Tape:
    """The record that `forward(record=True)` keeps for `backward`. It can be used more than once and never changes.

    Examples
    --------
    >>> from lstmcore.config import LSTMConfig
    >>> from lstmcore.registry import get_backend
    >>> layer = get_backend("numpy").compile(LSTMConfig(input_size=3, hidden_size=5, bias=False), "float32")
    >>> weights = layer.pack({"weight_x": np.ones((20, 3), np.float32), "weight_h": np.ones((20, 5), np.float32)})
    >>> tape = layer.forward(weights, np.zeros((7, 2, 3), np.float32), record=True).tape
    >>> tape.steps, tape.batch
    (7, 2)
    """

    owner: object
    steps: int
    batch: int
    saved: Any = field(repr=False)
