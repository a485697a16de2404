"""The layers of a `Chain` beside LSTMs, and the checked arguments of its calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from lstmcore import placement, validation
from lstmcore.arrays import move_like, namespace_of
from lstmcore.backend import StackMasks, State
from lstmcore.layer_file import MODES
from lstmcore.lstm import LSTM
from lstmcore.scalars import choice

Array: TypeAlias = npt.NDArray[Any]
Mode = Literal["concat", "sum", "mul", "average"]
#: One state for each LSTM of a chain; None stands for zeros.
ChainState: TypeAlias = Sequence[tuple[Array, Array] | State | None]


@dataclass(frozen=True, slots=True)
class Reversed:
    """An `LSTM` in one direction that reads each row from its end to its start.

    Its outputs stand in the order of the input, and its final state is that after step 0.

    Examples
    --------
    >>> Reversed(LSTM(3, 5, seed=0)).lstm.output_width
    5
    """

    lstm: LSTM

    def __post_init__(self) -> None:
        if not isinstance(self.lstm, LSTM):
            raise TypeError(f"lstm: expected an LSTM; got {type(self.lstm).__name__}")
        if self.lstm.stack.num_directions != 1:
            raise ValueError("lstm: expected an LSTM in one direction to reverse; got one with bidirectional=True")


@dataclass(frozen=True, slots=True)
class Merge:
    """The merge of both directions of the LSTM before it; ``"concat"`` leaves them side by side.

    Examples
    --------
    >>> Merge("sum")(np.array([[1.0, 2.0, 10.0, 20.0]])).tolist()
    [[11.0, 22.0]]
    """

    mode: Mode

    def __post_init__(self) -> None:
        choice("mode", self.mode, MODES)

    def __call__(self, y: Array) -> Array:
        """Return (..., P) from (..., 2 * P), or y for ``"concat"``."""
        if self.mode == "concat":
            return y
        forward, reverse = _halves(y)
        if self.mode == "mul":
            return forward * reverse
        return cast(Array, (forward + reverse) * y.dtype.type(1.0 if self.mode == "sum" else 0.5))

    def along(self, y: Array, ty: Array) -> Array:
        """Return the derivative of the merge of y along ty."""
        if self.mode != "mul":
            return self(ty)
        (forward, reverse), (tforward, treverse) = _halves(y), _halves(ty)
        return cast(Array, tforward * reverse + forward * treverse)

    def backward(self, y: Array, dy: Array) -> Array:
        """Return the gradient of y (..., 2 * P) from that of its merge."""
        if self.mode == "concat":
            return dy
        if self.mode == "mul":
            forward, reverse = _halves(y)
            return cast(Array, namespace_of(y=y, dy=dy).concat((dy * reverse, dy * forward), axis=-1))
        half = dy * dy.dtype.type(1.0 if self.mode == "sum" else 0.5)
        return cast(Array, namespace_of(dy).concat((half, half), axis=-1))


def _halves(y: Array) -> tuple[Array, Array]:
    """Return the outputs of both directions, as views."""
    width = y.shape[-1] // 2
    return y[..., :width], y[..., width:]


Layer: TypeAlias = LSTM | Reversed | Merge


def lstm_of(layer: LSTM | Reversed) -> LSTM:
    """Return the LSTM of a layer that is no merge."""
    return layer.lstm if isinstance(layer, Reversed) else layer


def with_lstm(layer: LSTM | Reversed, lstm: LSTM) -> LSTM | Reversed:
    """Return a layer of the same kind with another LSTM."""
    return Reversed(lstm) if isinstance(layer, Reversed) else lstm


def one_for_each(name: str, values: Any, count: int) -> Sequence[Any]:
    """Return `values`, one for each of `count` LSTMs; None for each if it is None.

    Raises
    ------
    TypeError
        No tuple, or one of another length.
    """
    if values is None:
        return [None] * count
    if not isinstance(values, tuple | list) or len(values) != count:
        got = f"{len(values)}" if isinstance(values, tuple | list) else type(values).__name__
        raise TypeError(f"{name}: expected a tuple of {count}, one for each LSTM; got {got}")
    return values


class ChainCall:
    """The checked arguments of a call, time-major or without a batch axis.

    Attributes
    ----------
    x
        (T, N, I), or (T, I) without a batch axis.
    state
        One pair or None for each LSTM.
    lengths
        (N,), or None for T everywhere.
    place
        Where the arrays of the call are; None for the host.
    """

    def __init__(
        self, lstms: Sequence[LSTM], batch_first: bool, width: int, x: Array, state: ChainState | None, lengths: Any
    ) -> None:
        """Check the arguments of a call.

        Parameters
        ----------
        lstms, batch_first, width
            Those of the chain; `width` is that of y.
        x, state, lengths
            The arguments of the call.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong type, dtype, shape or range.
        """
        self.lstms, self.batch_first, self.width = lstms, batch_first, width
        self.precision, input_size = lstms[0].precision, lstms[0].input_size
        self.lengths: Array | None = None
        self.place, own = self._place(x)
        self.batched = getattr(own, "ndim", 0) != 2
        sizes = (None, input_size) if not self.batched else (None, None, input_size)
        check = validation.check_numpy if self.place is None else validation.check_array
        check("x", own, sizes, self.precision.storage, letters=self.letters("I"))
        self.x = self.to_time_major(own)
        self.rows = self.x.shape[1:-1]
        if lengths is not None and not self.batched:
            raise ValueError("lengths: expected None for x of shape (T, I), which has no batch axis; got lengths")
        if lengths is not None:
            self.lengths = validation.check_lengths(lengths, len(self.x), self.rows[0])
        self.state = self.check_state("state", state)

    def _place(self, x: Any) -> tuple[placement.Placement | None, Any]:
        """Return where x is, and x as an array of the backend; the backend of each LSTM has to take it there."""
        found, own = placement.place("x", x, self.lstms[0].backend)
        for lstm in self.lstms[1:] if found is not None else ():
            placement.place("x", x, lstm.backend)
        return found, own

    def letters(self, width: str) -> str:
        """Return the letters of the caller's shape for messages."""
        rows = "T" if not self.batched else "N, T" if self.batch_first else "T, N"
        return f"({rows}, {width})"

    def to_time_major(self, array: Array) -> Array:
        """Return the caller's array with the time first, a view."""
        return array.swapaxes(0, 1) if self.batched and self.batch_first else array

    to_caller = to_time_major

    def check_state(self, name: str, state: ChainState | None) -> list[tuple[Array, Array] | None]:
        """Check a state and return a pair or None for each LSTM."""
        each = one_for_each(name, state, len(self.lstms))
        return [
            placement.check_state(self.place, f"{name}[{k}]", one, lstm.stack, self.rows, self.precision)
            for k, (one, lstm) in enumerate(zip(each, self.lstms, strict=True))
        ]

    def check_masks(self, masks: Sequence[StackMasks | None] | None) -> Sequence[StackMasks | None]:
        """Check the masks of all LSTMs, before any of them runs; return one or None for each."""
        each: Sequence[StackMasks | None] = one_for_each("masks", masks, len(self.lstms))
        rows = self.rows[0] if self.batched else 1
        for one, lstm in zip(each, self.lstms, strict=True):
            validation.check_stack_masks(one, len(self.x), rows, lstm.stack, self.precision)
        return [placement.take(self.place, f"masks[{k}]", one) for k, one in enumerate(each)]

    def check_y(self, name: str, array: Array) -> Array:
        """Check an array that is like y and return it with the time first."""
        return self._check_like(name, array, self._y_shape(), "width")

    def check_x(self, name: str, array: Array) -> Array:
        """Check an array that is like x and return it with the time first."""
        return self._check_like(name, array, self.to_caller(self.x).shape, "I")

    def _check_like(self, name: str, array: Array, shape: tuple[int, ...], width: str) -> Array:
        storage, letters = self.precision.storage, self.letters(width)
        return self.to_time_major(placement.check(self.place, name, array, shape, storage, letters))

    def check_out(self, out: Array, inputs: tuple[Any, ...]) -> Array:
        """Check the array that y is written to and return it as one of the backend's."""
        out = placement.take_out(self.place, out)
        validation.check_out(out, self._y_shape(), self.precision, inputs, letters=self.letters("width"))
        return out

    def _y_shape(self) -> tuple[int, ...]:
        shape = (len(self.x), *self.rows)
        return (*(shape[::-1] if self.batch_first and self.batched else shape), self.width)

    def turned(self, layer: Layer, array: Array) -> Array:
        """Return (T, N, ...) with the steps of each row in the order in which `layer` reads them, or back."""
        if not isinstance(layer, Reversed):
            return array
        if self.lengths is None:
            return array[::-1]
        steps = np.arange(len(array))[:, None]
        places = np.where(steps < self.lengths, self.lengths - 1 - steps, steps)[..., None]
        return cast(Array, namespace_of(array).take_along_axis(array, move_like(places, array), axis=0))
