"""The layout of a call of `LSTM`: from the caller's axes to the kernels' (T, N, ...) and back, as views."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore import placement, validation
from lstmcore.config import StackConfig
from lstmcore.containers import StackMasks, State
from lstmcore.kernels import LayerBackend
from lstmcore.precision import Precision

Array: TypeAlias = npt.NDArray[Any]
StateLike: TypeAlias = tuple[Array, Array] | State


class CallLayout:
    """The checked arguments of a call, time-major, and how the caller's arrays are laid out.

    Attributes
    ----------
    x
        (T, N, I), a view of the caller's array.
    steps, batch
        T and N.
    batched, batch_first
        False without a batch axis; True if the caller's arrays are (N, T, ...).
    state
        The initial state as (L * D, N, ...), or None.
    lengths
        (N,), or None for T everywhere.
    place
        Where the arrays of the call are; None for the host.
    given
        The caller's own x.
    """

    __slots__ = (
        "batch",
        "batch_first",
        "batched",
        "given",
        "lengths",
        "place",
        "precision",
        "stack",
        "state",
        "steps",
        "x",
    )

    def __init__(
        self, x: Array, stack: StackConfig, precision: Precision, batch_first: bool, backend: LayerBackend
    ) -> None:
        """Check `x`: (T, N, I), (N, T, I) with `batch_first`, or (T, I); storage dtype.

        Parameters
        ----------
        x
            The argument of the call.
        stack, precision
            Those of the `LSTM`.
        batch_first
            Whether x with a batch axis is (N, T, I).
        backend
            The backend of the call; it says which arrays of a device it takes.

        Raises
        ------
        TypeError, ValueError
            `x` of another type, dtype or shape.
        """
        width, storage = stack.layers[0][0].input_size, precision.storage
        self.batch_first, self.given = batch_first, x
        self.place: placement.Placement | None = None
        if type(x) is not np.ndarray:
            self.place, x = placement.place("x", x, backend)
        if (self.place is not None or isinstance(x, np.ndarray)) and x.ndim == 2:
            validation.check_array("x", x, (None, width), storage, letters="(T, I)")
            self.batched, self.x = False, x[:, None]
        else:
            # The first line passes most calls, and saves a microsecond of the check.
            known = type(x) is np.ndarray and x.dtype is validation.DTYPES.get(storage)
            if not (known and x.ndim == 3 and x.shape[2] == width):
                letters = "(N, T, I)" if batch_first else "(T, N, I)"
                check = validation.check_numpy if self.place is None else validation.check_array
                check("x", x, (None, None, width), storage, letters=letters)
            self.batched, self.x = True, x.swapaxes(0, 1) if batch_first else x
        self.steps, self.batch = self.x.shape[:2]
        self.stack, self.precision = stack, precision
        self.state: State | None = None
        self.lengths: Array | None = None

    def to_time_major(self, array: Array) -> Array:
        """Return the caller's array as (T, N, ...), a view."""
        if not self.batched:
            return array[:, None]
        return array.swapaxes(0, 1) if self.batch_first else array

    def from_time_major(self, y: Array, last: State) -> tuple[Array, State]:
        """Return (T, N, ...) and a state of (L * D, N, ...) in the caller's layout, as views."""
        if not self.batched:
            return y[:, 0], State(last[0][:, 0], last[1][:, 0])
        return (y.swapaxes(0, 1) if self.batch_first else y), last

    def check_masks(self, masks: StackMasks | None) -> StackMasks | None:
        """Check random masks and return them where the call computes; None stays None."""
        if masks is None:
            return None
        validation.check_stack_masks(masks, self.steps, self.batch, self.stack, self.precision)
        # The next two lines pass the masks of most calls, and save microseconds of the names that `take` makes.
        every = (mask for some in (*masks.layers, masks.dropout) for mask in some)
        if self.place is None and all(mask is None or type(mask) is np.ndarray for mask in every):
            return masks
        taken: StackMasks = placement.take(self.place, "masks", masks)
        return taken

    def check_tangents(self, parameters: Any) -> Any:
        """Check directions of parameters and return them where the call computes; None stays None."""
        if parameters is None:
            return None
        parameters = placement.take(self.place, "tparameters", parameters)
        shapes = self.stack.parameter_shapes
        validation.check_parameters("tparameters", parameters, shapes, self.precision, partial=True)
        return parameters

    def check_state(self, name: str, state: StateLike | None) -> State | None:
        """Check a pair (h, c) in the caller's layout and return it as (L * D, N, ...), views; None stays None."""
        rows = (self.batch,) if self.batched else ()
        if self.place is None:  # as `placement.check_state` does: a step of one row notices the call between
            pair = validation.check_stack_state(name, state, self.stack, rows, self.precision)
        else:
            pair = placement.check_state(self.place, name, state, self.stack, rows, self.precision)
        if pair is None:
            return None
        return State(*pair) if self.batched else State(pair[0][:, None], pair[1][:, None])

    def check_y(self, name: str, array: Array) -> Array:
        """Check an array that is like y and return it as (T, N, D * P), a view."""
        return self._check_like(name, array, self._y_shape(), "D * P")

    def check_x(self, name: str, array: Array) -> Array:
        """Check an array that is like x and return it as (T, N, I), a view."""
        return self._check_like(name, array, self._shape(self.x.shape[2]), "I")

    def _check_like(self, name: str, array: Array, shape: tuple[int, ...], width: str) -> Array:
        storage, letters = self.precision.storage, self.letters(width)
        return self.to_time_major(placement.check(self.place, name, array, shape, storage, letters))

    def check_out(self, out: Array) -> Array:
        """Check the array that y is written to and return it as (T, N, D * P), a view."""
        if out is self.given:  # its view may be of a library whose arrays do not tell their addresses
            raise ValueError(validation.OVERLAP)
        out, inputs = placement.take_out(self.place, out), (self.x, self.state)
        validation.check_out(out, self._y_shape(), self.precision, inputs, letters=self.letters("D * P"))
        return self.to_time_major(out)

    def letters(self, width: str) -> str:
        """Return the letters of the caller's shape for messages; `width` is that of the last axis."""
        rows = "T" if not self.batched else "N, T" if self.batch_first else "T, N"
        return f"({rows}, {width})"

    def _y_shape(self) -> tuple[int, ...]:
        return self._shape(self.stack.num_directions * self.stack.output_size)

    def _shape(self, width: int) -> tuple[int, ...]:
        """Return the caller's shape of an array of every step."""
        if not self.batched:
            return self.steps, width
        return (*((self.batch, self.steps) if self.batch_first else (self.steps, self.batch)), width)
