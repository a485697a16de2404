"""Right kernels that do the same work in another order: rows in groups, steps in pieces, rows turned around in memory.

`right_variants.RIGHT` has them beside those that compute one thing by another formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore.backend import Array, Backend, Forward, Gradients, Masks, State, Tangents
from lstmcore_conformance.mutants.construction import backend_of
from lstmcore_conformance.oracle.naive import NaiveKernel

#: Rows above which a kernel of groups takes fewer and larger ones: a loop over 70,000 rows takes minutes.
MANY_ROWS: Final = 40

Rows = Sequence[Array]


def _at(value: Any, rows: Array, axis: int) -> Any:
    """Return some rows of an array, of a state or of masks; None stays None."""
    if value is None:
        return None
    if isinstance(value, State):
        return State(*(array[rows] for array in value))
    if isinstance(value, Masks):
        return Masks(_at(value.recurrent, rows, 0), *(_at(mask, rows, 1) for mask in value[1:]))
    return value[rows] if axis == 0 else value[:, rows]  # in the order of memory that it has


def _joined(arrays: Iterable[Array], groups: Rows, axis: int) -> Array:
    """Return arrays of groups of rows as one array, with the rows in their own places."""
    return np.concatenate(list(arrays), axis).take(np.argsort(np.concatenate(groups)), axis)


def _joined_states(states: Sequence[State], groups: Rows) -> State:
    return State(*(_joined(arrays, groups, 0) for arrays in zip(*states, strict=True)))


class GroupedKernel(NaiveKernel):
    """A kernel that runs groups of rows one after another."""

    def groups(self, batch: int, lengths: Any) -> Rows:
        """Return the rows of every group; one group at least, and every row in one."""
        raise NotImplementedError

    def _forward(  # noqa: PLR0913  (the contract's signature)
        self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None, *, record: bool, out: Any
    ) -> tuple[Array, State, Any]:
        groups = self.groups(x.shape[1], lengths)
        done = [
            super(GroupedKernel, self)._forward(weights, *call, record=record, out=None)
            for call in ((_at(x, g, 1), _at(state, g, 0), _at(lengths, g, 0), _at(masks, g, 0)) for g in groups)
        ]
        y = _joined((y for y, _, _ in done), groups, 1)
        if out is not None:
            out[...] = y
        last = _joined_states([last for _, last, _ in done], groups)
        return y if out is None else out, last, (groups, [tape for _, _, tape in done]) if record else None

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        groups, tapes = saved
        each = [
            super(GroupedKernel, self)._backward(weights, tape, _at(dy, rows, 1), _at(dstate, rows, 0))
            for rows, tape in zip(groups, tapes, strict=True)
        ]
        total = dict(each[0].parameters)
        for gradients in each[1:]:
            total = {name: total[name] + array for name, array in gradients.parameters.items()}
        state = _joined_states([gradients.state for gradients in each], groups)
        return Gradients(_joined((gradients.x for gradients in each), groups, 1), state, total)

    def _jvp(
        self, weights: Any, x: Array, state: Any, tangents: Tangents, lengths: Any, masks: Masks | None
    ) -> tuple[Forward, Forward]:
        groups, pairs = self.groups(x.shape[1], lengths), []
        for g in groups:
            moved = Tangents(_at(tangents.x, g, 1), _at(tangents.state, g, 0), tangents.parameters)
            call = (_at(x, g, 1), _at(state, g, 0), moved, _at(lengths, g, 0), _at(masks, g, 0))
            pairs.append(super()._jvp(weights, *call))
        done, along = (
            Forward(_joined((one.y for one in each), groups, 1), _joined_states([one.state for one in each], groups))
            for each in zip(*pairs, strict=True)
        )
        return done, along


class FiveRowsKernel(GroupedKernel):
    """A kernel that runs five rows at a time."""

    def groups(self, batch: int, lengths: Any) -> Rows:
        """Return blocks of five rows."""
        size = 5 if batch <= 3 * MANY_ROWS else batch // 2 + 1
        return [np.arange(start, min(start + size, batch)) for start in range(0, max(batch, 1), size)]


class SingleRowsKernel(GroupedKernel):
    """A kernel that runs one row after another."""

    def groups(self, batch: int, lengths: Any) -> Rows:
        """Return every row alone."""
        return [np.arange(batch)] if batch > MANY_ROWS else [np.array([n]) for n in range(batch)] or [np.arange(0)]


class SortedRowsKernel(GroupedKernel):
    """A kernel that runs the longest rows first, and rows of one length together."""

    def groups(self, batch: int, lengths: Any) -> Rows:
        """Return the rows of each length."""
        if lengths is None or not batch:
            return [np.arange(batch)]
        return [np.flatnonzero(lengths == length) for length in np.unique(lengths)[::-1]]


class PiecesKernel(NaiveKernel):
    """A kernel that runs two steps at a time and hands the state on."""

    def _pieces(self, steps: int) -> list[slice]:
        pieces = [slice(start, min(start + 2, steps)) for start in range(0, max(steps, 1), 2)]
        return pieces[::-1] if self.config.reverse else pieces

    @staticmethod
    def _call(piece: slice, lengths: Any, masks: Masks | None) -> tuple[Any, Masks | None]:
        """Return the lengths and the masks of a piece."""
        left = None if lengths is None else np.clip(lengths - piece.start, 0, piece.stop - piece.start)
        if masks is None:
            return left, None
        return left, Masks(masks.recurrent, *(None if mask is None else mask[piece] for mask in masks[1:]))

    def _forward(  # noqa: PLR0913  (the contract's signature)
        self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None, *, record: bool, out: Any
    ) -> tuple[Array, State, Any]:
        y = np.empty((*x.shape[:2], self.config.output_size), x.dtype) if out is None else out
        tapes = []
        for piece in self._pieces(len(x)):
            call = (x[piece], state, *self._call(piece, lengths, masks))
            y[piece], state, tape = super()._forward(weights, *call, record=record, out=None)
            tapes.append((piece, tape))
        if state is None:
            raise RuntimeError("expected one piece at least")
        return y, state, (tapes, x.shape, x.dtype) if record else None

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        tapes, shape, dtype = saved
        dx, total = np.empty(shape, dtype), None
        for piece, tape in reversed(tapes):
            gradients = super()._backward(weights, tape, None if dy is None else dy[piece], dstate)
            dx[piece], dstate, new = gradients.x, gradients.state, gradients.parameters
            total = dict(new) if total is None else {name: total[name] + array for name, array in new.items()}
        if dstate is None or total is None:
            raise RuntimeError("expected one piece at least")
        return Gradients(dx, dstate, total)

    def _jvp(
        self, weights: Any, x: Array, state: Any, tangents: Tangents, lengths: Any, masks: Masks | None
    ) -> tuple[Forward, Forward]:
        y, ty = np.empty((2, *x.shape[:2], self.config.output_size), x.dtype)
        for piece in self._pieces(len(x)):
            moved = tangents._replace(x=None if tangents.x is None else tangents.x[piece])
            done, along = super()._jvp(weights, x[piece], state, moved, *self._call(piece, lengths, masks))
            y[piece], ty[piece], state = done.y, along.y, done.state
            tangents = tangents._replace(state=along.state)
        return Forward(y, state), Forward(ty, along.state)


class TransposedKernel(NaiveKernel):
    """A kernel whose packed matrices are transposed in memory."""

    def _pack(self, parameters: Mapping[str, Array]) -> Any:
        return {name: np.asfortranarray(array) for name, array in super()._pack(parameters).items()}


class FortranKernel(NaiveKernel):
    """A kernel whose results are in Fortran order."""

    def _forward(self, *arguments: Any, out: Any, **options: Any) -> tuple[Array, State, Any]:
        y, last, tape = super()._forward(*arguments, out=out, **options)
        return np.asfortranarray(y) if out is None else y, State(*map(np.asfortranarray, last)), tape

    def _backward(self, *arguments: Any) -> Gradients:
        gradients = super()._backward(*arguments)
        named = {name: np.asfortranarray(array) for name, array in gradients.parameters.items()}
        return Gradients(np.asfortranarray(gradients.x), State(*map(np.asfortranarray, gradients.state)), named)


class TurnedKernel(NaiveKernel):
    """A kernel that turns reversed rows around within their lengths and runs them forward."""

    def _turned(self, array: Any, lengths: Any) -> Any:
        """Return (T, N, ...) with the steps of every row in the order in which they run."""
        if array is None or not self.config.reverse:
            return array
        steps = np.arange(len(array))[:, None]
        ends = np.full(array.shape[1], len(array)) if lengths is None else lengths
        order = np.where(steps < ends, ends - 1 - steps, steps)
        return array[order, np.arange(array.shape[1])]

    def _run(self, function: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.equations, function)(replace(self.config, reverse=False), *arguments, **options)

    def _masks(self, masks: Masks | None, lengths: Any) -> Masks | None:
        return masks and Masks(masks.recurrent, *(self._turned(mask, lengths) for mask in masks[1:]))

    def _forward(  # noqa: PLR0913  (the contract's signature)
        self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None, *, record: bool, out: Any
    ) -> tuple[Array, State, Any]:
        call = {"lengths": lengths, "masks": self._masks(masks, lengths), "precision": self.precision}
        y, last, tape = self._run("forward", weights, self._turned(x, lengths), state, **call)
        y = self._turned(self._stored(y), lengths)
        if out is not None:
            out[...] = y
        kept = (tape, None if lengths is None else np.array(lengths))
        return y if out is None else out, self._state(last), kept if record else None

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        tape, lengths = saved
        dx, state, named = self._run("backward", tape, self._turned(dy, lengths), dstate)
        stored = {name: self._stored(array) for name, array in named.items()}
        return Gradients(self._turned(self._stored(dx), lengths), self._state(state), stored)

    def _jvp(
        self, weights: Any, x: Array, state: Any, tangents: Tangents, lengths: Any, masks: Masks | None
    ) -> tuple[Forward, Forward]:
        call = {"lengths": lengths, "masks": self._masks(masks, lengths), "precision": self.precision}
        moved = tangents._replace(x=self._turned(tangents.x, lengths))
        done, along = (
            Forward(self._turned(self._stored(one.y), lengths), self._state(one.state))
            for one in self._run("jvp", weights, self._turned(x, lengths), state, moved, **call)
        )
        return done, along


#: Name -> function that makes a right backend.
ORDERS: Final[Mapping[str, Callable[[], Backend]]] = {
    "five rows at a time": lambda: backend_of(FiveRowsKernel),
    "one row at a time": lambda: backend_of(SingleRowsKernel),
    "rows of one length together": lambda: backend_of(SortedRowsKernel),
    "two steps at a time": lambda: backend_of(PiecesKernel),
    "weights transposed in memory": lambda: backend_of(TransposedKernel),
    "results in Fortran order": lambda: backend_of(FortranKernel),
    "reversed rows turned around in memory": lambda: backend_of(TurnedKernel),
}
