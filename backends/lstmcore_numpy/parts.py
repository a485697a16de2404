"""What forward, backward and jvp share: packed weights, the tape, layer normalisation, the layout of the gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Masks
from lstmcore.config import SIGMOID, TANH, LSTMConfig
from lstmcore.precision import Precision

Array: TypeAlias = npt.NDArray[Any]


class Layout(NamedTuple):
    """Where the gates are in a packed row of ``G * H``: **g, i, f, o**, the coupled one left out.

    In that order the sigmoid gates are side by side, and so are the gates that come before the cell.
    """

    gates: str
    hidden: int

    @classmethod
    def of(cls, config: LSTMConfig) -> Layout:
        return cls("".join(gate for gate in "gifo" if gate in config.gates), config.hidden_size)

    def columns(self, gate: str) -> slice:
        """The columns of a gate."""
        first = self.gates.index(gate) * self.hidden
        return slice(first, first + self.hidden)

    def packed(self, rows: Array, order: tuple[str, ...]) -> Array:
        """A copy of `rows` (G * H, ...), stacked by `order`, in the packed order."""
        parts = dict(zip(order, np.split(rows, len(order)), strict=True))
        return np.concatenate([parts[gate] for gate in self.gates])

    def unpacked(self, rows: Array, order: tuple[str, ...]) -> Array:
        """The inverse of `packed`."""
        return np.concatenate([rows[self.columns(gate)] for gate in order])


def folds(config: LSTMConfig) -> bool:
    """Whether one tanh serves all gates: ``sigmoid(z) = tanh(z / 2) / 2 + 1 / 2``, the half folded into the weights."""
    return config.gate_activation == SIGMOID and config.cell_activation == TANH and config.gate_clip is None


@dataclass(frozen=True, slots=True)
class Weights:
    """Packed parameters in the compute dtype.

    ``forward_x`` (I, G H), ``forward_h`` (R, G H), ``bias``, ``gain_x``, ``gain_h`` and ``peephole`` (by gate) have
    the halves of `folds` in them; ``weight_x`` (G H, I) and ``weight_h`` (G H, R), ``raw_gain_x``, ``raw_gain_h``
    and ``raw_peephole`` have not.
    """

    forward_x: Array
    forward_h: Array
    weight_x: Array
    weight_h: Array
    bias: Array | None
    weight_proj: Array | None
    forward_proj: Array | None
    peephole: dict[str, Array]
    raw_peephole: dict[str, Array]
    gain_x: Array | None
    gain_h: Array | None
    raw_gain_x: Array | None
    raw_gain_h: Array | None
    gain_c: Array | None
    shift_c: Array | None


def pack(config: LSTMConfig, precision: Precision, parameters: Mapping[str, Array], *, fold: bool) -> Weights:
    """Copy the parameters into the packed order."""
    layout = Layout.of(config)
    p = {name: np.array(array, precision.compute) for name, array in parameters.items()}
    stacked = {
        name: layout.packed(p[name], config.gates)
        for name in ("weight_x", "weight_h", "bias", "norm_gain_x", "norm_gain_h")
        if name in p
    }
    half = np.ones(len(layout.gates) * layout.hidden, precision.compute)
    if fold:
        half[layout.hidden :] = 0.5
    # With layer norm the halves go into its gains: a scaled product would be normalised back.
    scale = np.ones_like(half) if config.layer_norm else half
    raw_peephole = dict(zip(config.peephole_gates, p["peephole"], strict=True)) if config.peephole else {}

    def halved(name: str) -> Array | None:
        return stacked[name] * half if name in stacked else None

    return Weights(
        forward_x=np.ascontiguousarray((stacked["weight_x"] * scale[:, None]).T),
        forward_h=np.ascontiguousarray((stacked["weight_h"] * scale[:, None]).T),
        weight_x=stacked["weight_x"],
        weight_h=stacked["weight_h"],
        bias=halved("bias"),
        weight_proj=p.get("weight_proj"),
        forward_proj=np.ascontiguousarray(p["weight_proj"].T) if "weight_proj" in p else None,
        peephole={gate: row * (0.5 if fold else 1.0) for gate, row in raw_peephole.items()},
        raw_peephole=raw_peephole,
        gain_x=halved("norm_gain_x"),
        gain_h=halved("norm_gain_h"),
        raw_gain_x=stacked.get("norm_gain_x"),
        raw_gain_h=stacked.get("norm_gain_h"),
        gain_c=p.get("norm_gain_c"),
        shift_c=p.get("norm_bias_c"),
    )


class Norm(NamedTuple):
    """A layer normalisation before its gain, and what it divided by."""

    value: Array
    deviation: Array


def normalise(config: LSTMConfig, a: Array) -> Norm:
    """The last axis of `a` with mean 0 and variance 1."""
    centred = a - a.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + config.layer_norm_eps)
    centred /= deviation
    return Norm(centred, deviation)


def normalise_linear(norm: Norm, d: Array) -> Array:
    """The (symmetric) derivative of `normalise` applied to `d`."""
    result: Array = d - d.mean(axis=-1, keepdims=True)
    result -= norm.value * (norm.value * d).mean(axis=-1, keepdims=True)
    result /= norm.deviation
    return result


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows are within their length: ``active`` (T, N, 1), and for every step whether all are; None for all."""

    active: Array | None
    full: list[bool]

    @classmethod
    def of(cls, lengths: Any, steps: int) -> Rows:
        if lengths is None:
            return cls(None, [True] * steps)
        active = (np.arange(steps)[:, None] < lengths[None, :])[..., None]
        return cls(active, active.all(axis=(1, 2)).tolist())

    def only(self, array: Array) -> Array:
        """`array` (T, N, ...) with 0 in the padding, whatever stands there."""
        return array if self.active is None else np.where(self.active, array, array.dtype.type(0))


@dataclass(slots=True)
class Saved:
    """The tape: values for every step by time index, in the compute dtype.

    ``c`` (T + 1, N, H) and ``h`` (T + 1, N, P) have the state around every step; `before` is the view of the states
    that the steps started from. ``gates`` (T, N, G H) is packed as in `Layout`. The rest is there with its switch.
    """

    weights: Weights
    rows: Rows
    x: Array
    h: Array
    c: Array
    gates: Array
    u: Array
    masks: Masks
    recurrent: Array | None = None
    z: Array | None = None
    c_unclipped: Array | None = None
    h_unclipped: Array | None = None
    c_out: Array | None = None
    norm_x: Norm | None = None
    norm_h: Norm | None = None
    norm_c: Norm | None = None


def order(config: LSTMConfig, steps: int) -> range:
    """The time indices in the order in which they run."""
    return range(steps - 1, -1, -1) if config.reverse else range(steps)


def before(config: LSTMConfig, states: Array) -> Array:
    """The states that each step started from, of the (T + 1, ...) around the steps."""
    return states[1:] if config.reverse else states[:-1]


def after(config: LSTMConfig, states: Array) -> Array:
    """The states that each step ended in."""
    return states[:-1] if config.reverse else states[1:]


def own_masks(masks: Masks | None, rows: Rows) -> Masks:
    """The masks without what they hold in the padding; a recurrent mask has none."""
    if masks is None:
        return Masks()
    hidden, cell = masks.zoneout_hidden, masks.zoneout_cell
    return Masks(
        None if masks.recurrent is None else np.array(masks.recurrent),
        None if hidden is None else np.array(rows.only(hidden)),
        None if cell is None else np.array(rows.only(cell)),
    )


def blocks(steps: range, size: int) -> Iterator[range]:
    """`steps` in pieces of at most `size`."""
    for first in range(0, len(steps), size):
        yield steps[first : first + size]
