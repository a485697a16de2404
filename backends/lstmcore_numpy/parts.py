"""What forward, backward and jvp share: the layout, packed weights, the schedule, layer normalisation and the tape.

Inside this backend a column is a row of the batch: states are (H, N), gates (G H, N), whatever has steps (T, ., N)
in the order in which the steps run. A gate is then one piece of memory, and a step is one product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Masks
from lstmcore.config import SIGMOID, TANH, LSTMConfig
from lstmcore.precision import Precision

Array: TypeAlias = npt.NDArray[Any]

#: The operand of a step has a multiple of so many rows; products of other sizes are a little slower.
_MULTIPLE: Final = 8
_NO_MASKS: Final = Masks()


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are: the gates in (G H, .), and x, r and the 1 that meets the bias in the operand of a step.

    The gates are in the order **g, i, f, o**, a coupled one left out. So the sigmoid gates are side by side, and so
    are the gates that come ``early``, before the cell. ``size`` is G H, ``depth`` the rows of the operand.
    """

    gates: str
    places: dict[str, slice]
    size: int
    sigmoids: slice
    early: slice
    x: slice
    r: slice
    ones: slice
    depth: int

    @classmethod
    def of(cls, config: LSTMConfig) -> Layout:
        gates = "".join(gate for gate in "gifo" if gate in config.gates)
        hidden, inputs = config.hidden_size, config.input_size
        size, end = len(gates) * hidden, inputs + config.recurrent_size
        depth = -(-(end + config.bias) // _MULTIPLE) * _MULTIPLE
        return cls(
            gates,
            {gate: slice(k * hidden, (k + 1) * hidden) for k, gate in enumerate(gates)},
            size,
            sigmoids=slice(hidden, size),
            early=slice(0, size - hidden),
            x=slice(0, inputs),
            r=slice(inputs, end),
            ones=slice(end, depth),
            depth=depth,
        )

    def packed(self, rows: Array, order: tuple[str, ...]) -> Array:
        """A copy of `rows` (G H, ...), stacked by `order`, in the packed order."""
        parts = dict(zip(order, np.split(rows, len(order)), strict=True))
        return np.concatenate([parts[gate] for gate in self.gates])

    def unpacked(self, rows: Array, order: tuple[str, ...]) -> Array:
        """The inverse of `packed`."""
        return np.concatenate([rows[self.places[gate]] for gate in order])


def folds(config: LSTMConfig) -> bool:
    """Whether the sigmoid is ``1 / (1 + exp(-z))`` with the sign folded into the weights."""
    return config.gate_activation == SIGMOID and config.cell_activation == TANH and config.gate_clip is None


def apart(config: LSTMConfig, steps: int, batch: int) -> bool:
    """Whether W x is one product for many steps, apart from R r; else each step has one product ``[W R b] [x; r; 1]``.

    That one product reads W again at every step, which is lost time where nothing hides it: with one row, or with an
    input much wider than the state. A layer norm needs the two apart.
    """
    return config.layer_norm or (steps > 1 and (batch == 1 or config.input_size > 2 * config.recurrent_size))


@dataclass(frozen=True, slots=True)
class Weights:
    """Packed parameters in the compute dtype; vectors are columns.

    ``forward`` (G H, K) is ``[W R b]`` filled up with zeros, ``backward`` (I + R, G H) ``[W R]`` transposed. The first,
    ``bias``, ``gain_x``, ``gain_h`` and ``peephole`` (by gate) have the signs of `folds` in them; what is used in
    derivatives, ``backward``, ``raw_gain_x``, ``raw_gain_h`` and ``raw_peephole``, has not.
    """

    forward: Array
    backward: Array
    bias: Array | None
    proj: Array | None
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
    dtype = np.dtype(precision.compute)
    p = {name: np.array(array, dtype) for name, array in parameters.items()}
    stacked = {
        name: layout.packed(p[name].reshape(layout.size, -1), config.gates)
        for name in ("weight_x", "weight_h", "bias", "norm_gain_x", "norm_gain_h")
        if name in p
    }
    sign = np.ones((layout.size, 1), dtype)
    if fold:
        sign[layout.sigmoids] = -1
    # With layer norm the signs go into its gains: the mean that it takes off is that of W x itself.
    before_norm = np.ones_like(sign) if config.layer_norm else sign
    forward = np.zeros((layout.size, layout.depth), dtype)
    np.multiply(stacked["weight_x"], before_norm, out=forward[:, layout.x])
    np.multiply(stacked["weight_h"], before_norm, out=forward[:, layout.r])
    if config.bias:
        forward[:, layout.ones.start, None] = stacked["bias"] * sign
    raw_peephole = (
        {gate: row[:, None] for gate, row in zip(config.peephole_gates, p["peephole"], strict=True)}
        if config.peephole
        else {}
    )

    def signed(name: str) -> Array | None:
        return stacked[name] * sign if name in stacked else None

    def column(name: str) -> Array | None:
        return p[name][:, None] if name in p else None

    return Weights(
        forward=forward,
        backward=np.concatenate([stacked["weight_x"].T, stacked["weight_h"].T]),
        bias=signed("bias"),
        proj=p.get("weight_proj"),
        peephole={gate: -row if fold else row for gate, row in raw_peephole.items()},
        raw_peephole=raw_peephole,
        gain_x=signed("norm_gain_x"),
        gain_h=signed("norm_gain_h"),
        raw_gain_x=stacked.get("norm_gain_x"),
        raw_gain_h=stacked.get("norm_gain_h"),
        gain_c=column("norm_gain_c"),
        shift_c=column("norm_bias_c"),
    )


class Norm(NamedTuple):
    """A layer normalisation before its gain, and what it divided by."""

    value: Array
    deviation: Array

    def at(self, t: int) -> Norm:
        """That of step `t`."""
        return Norm(self.value[t], self.deviation[t])


def normalise(config: LSTMConfig, a: Array) -> Norm:
    """Every column of `a` (..., K, N) with mean 0 and variance 1."""
    centred = a - a.mean(axis=-2, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=-2, keepdims=True) + config.layer_norm_eps)
    centred /= deviation
    return Norm(centred, deviation)


def normalise_linear(norm: Norm, d: Array) -> Array:
    """The (symmetric) derivative of `normalise` applied to `d`."""
    result: Array = d - d.mean(axis=-2, keepdims=True)
    result -= norm.value * (norm.value * d).mean(axis=-2, keepdims=True)
    result /= norm.deviation
    return result


@dataclass(slots=True)
class Schedule:
    """The steps in the order in which they run, and the columns that are past their end: the one place where
    time-major arrays (T, N, .) become steps of columns (T, ., N) and back.

    ``past`` has for every step the columns (1, N) past their end, or None where there are none.
    """

    reverse: bool
    active: Array | None
    past: list[Array | None]

    @classmethod
    def of(cls, config: LSTMConfig, lengths: Any, steps: int) -> Schedule:
        if lengths is None:
            return cls(config.reverse, None, [None] * steps)
        order = np.arange(steps)[:: -1 if config.reverse else 1]
        active = order[:, None, None] < lengths
        return cls(config.reverse, active, [None if step.all() else ~step for step in active])

    def ordered(self, array: Array) -> Array:
        """A view of `array` (T, ...) with the steps in their order; its own inverse."""
        return array[::-1] if self.reverse else array

    def read(self, array: Array, columns: Array, first: int = 0) -> None:
        """Copy steps of `array` (T, N, .) from `first` on into `columns`, with 0 in the padding whatever is there."""
        steps = slice(first, first + len(columns))
        source = self.ordered(array)[steps].transpose(0, 2, 1)
        if self.active is None:
            columns[...] = source
        else:
            columns[...] = 0
            np.copyto(columns, source, where=self.active[steps])

    def write(self, columns: Array, array: Array, first: int = 0) -> None:
        """The inverse of `read`."""
        steps = slice(first, first + len(columns))
        target = self.ordered(array)[steps].transpose(0, 2, 1)
        target[...] = columns
        if self.active is not None:
            np.copyto(target, 0, where=~self.active[steps])

    def rows(self, array: Array, first: int, count: int, dtype: np.dtype[Any]) -> Array:
        """Steps of `array` (T, N, .) as `read` takes them, all rows one under another: (count N, .)."""
        steps = slice(first, first + count)
        part = self.ordered(array)[steps]
        if self.active is not None:
            part = np.where(self.active[steps].transpose(0, 2, 1), part, part.dtype.type(0))
        return np.asarray(part, dtype).reshape(count * part.shape[1], part.shape[2])

    def columns(self, array: Array, dtype: np.dtype[Any]) -> Array:
        """A copy of `array` (T, N, .) as `read` makes it."""
        steps, batch, width = array.shape
        result = np.empty((steps, width, batch), dtype)
        self.read(array, result)
        return result

    def masks(self, masks: Masks | None, dtype: np.dtype[Any]) -> Masks:
        """A copy of the masks as columns, the recurrent one (R, N)."""
        if masks is None:
            return _NO_MASKS
        recurrent, hidden, cell = masks
        return Masks(
            None if recurrent is None else np.array(recurrent.T, dtype, order="C"),
            None if hidden is None else self.columns(hidden, dtype),
            None if cell is None else self.columns(cell, dtype),
        )


@dataclass(slots=True)
class Saved:
    """The tape: values for every step in the order of the steps, in the compute dtype.

    ``operands`` (T + 1, K, N) has x, r and 1 of every step, ``c`` (T + 1, H, N) the cell around every step, ``gates``
    (T, G H, N) is packed as in `Layout`, ``u`` (T, H, N) is the activated cell. The rest is there with its switch.
    """

    weights: Weights
    schedule: Schedule
    masks: Masks
    operands: Array
    c: Array
    gates: Array
    u: Array
    z: Array | None = None
    c_unclipped: Array | None = None
    h_unclipped: Array | None = None
    c_out: Array | None = None
    norm_x: Norm | None = None
    norm_h: Norm | None = None
    norm_c: Norm | None = None
