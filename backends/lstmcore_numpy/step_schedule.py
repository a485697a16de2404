"""The order of the steps and the columns past their end.

Time-major arrays (T, N, .) become steps of columns (T, ., N) here and nowhere else, and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lstmcore.backend import Masks
from lstmcore.config import LSTMConfig
from lstmcore_numpy.packing import Array

_NO_MASKS: Final = Masks()


@dataclass(slots=True)
class StepSchedule:
    """The steps of one call in the order in which they run.

    Attributes
    ----------
    reverse
        Whether the last step runs first.
    active
        (T, 1, N), True up to a row's end; None if every row has all steps.
    past
        For every step the columns (1, N) past their end, None if the step has none.
    empty
        (N,), True for rows without steps; None if every row has all steps.
    """

    reverse: bool
    active: Array | None
    past: list[Array | None]
    empty: Array | None

    @classmethod
    def of(cls, config: LSTMConfig, lengths: Any, steps: int) -> StepSchedule:
        """Return the schedule of a call with these lengths, (N,) or None."""
        if lengths is None:
            return cls(config.reverse, None, [None] * steps, None)
        order = np.arange(steps)[:: -1 if config.reverse else 1]
        active = order[:, None, None] < lengths
        return cls(config.reverse, active, [None if step.all() else ~step for step in active], lengths == 0)

    def ordered(self, array: Array) -> Array:
        """Return a view of `array` (T, ...) with the steps in their order. Applied twice, it gives `array`."""
        return array[::-1] if self.reverse else array

    def read(self, array: Array, columns: Array, first: int = 0) -> None:
        """Copy steps of `array` (T, N, .) from `first` on into `columns`; padding becomes 0."""
        steps = slice(first, first + len(columns))
        source = self.ordered(array)[steps].transpose(0, 2, 1)
        if self.active is None:
            columns[...] = source
        else:
            columns[...] = 0
            np.copyto(columns, source, where=self.active[steps])

    def write(self, columns: Array, array: Array, first: int = 0) -> None:
        """Copy `columns` into the steps of `array` (T, N, .) from `first` on; padding becomes 0."""
        steps = slice(first, first + len(columns))
        target = self.ordered(array)[steps].transpose(0, 2, 1)
        target[...] = columns
        if self.active is not None:
            np.copyto(target, 0, where=~self.active[steps])

    def rows(self, array: Array, first: int, count: int, dtype: np.dtype[Any]) -> Array:
        """Return steps of `array` as one matrix, a view if nothing has to change.

        Parameters
        ----------
        array
            (T, N, .).
        first, count
            The steps, counted in their order.
        dtype
            That of the result.

        Returns
        -------
        Array
            (count N, .), the rows of a step one after another, 0 in padding.
        """
        steps = slice(first, first + count)
        part = self.ordered(array)[steps]
        if self.active is not None:
            part = np.where(self.active[steps].transpose(0, 2, 1), part, part.dtype.type(0))
        return np.asarray(part, dtype).reshape(count * part.shape[1], part.shape[2])

    def columns(self, array: Array, dtype: np.dtype[Any]) -> Array:
        """Return a copy of `array` (T, N, .) as columns, 0 in padding."""
        steps, batch, width = array.shape
        result = np.empty((steps, width, batch), dtype)
        self.read(array, result)
        return result

    def masks(self, masks: Masks | None, dtype: np.dtype[Any]) -> Masks:
        """Return a copy of the masks as columns, the recurrent one (R, N)."""
        if masks is None:
            return _NO_MASKS
        recurrent, hidden, cell = masks
        return Masks(
            None if recurrent is None else np.array(recurrent.T, dtype, order="C"),
            None if hidden is None else self.columns(hidden, dtype),
            None if cell is None else self.columns(cell, dtype),
        )
