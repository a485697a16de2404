"""An LSTM with a readout, on padded batches: outputs, and the loss of a batch with its gradients.

A batch is put together on the host. The network moves it to where the parameters of the readout are, see
`lstmcore.arrays`, and computes there; its lengths, which steer the computation, stay on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lstmcore.arrays import as_number, device_of, dtype_name, move_like, namespace_of
from lstmcore.backend import StackMasks, State
from lstmcore.layers import AttentionPooling, Embedding
from lstmcore.lstm import LSTM
from lstmcore.masks import BatchRows, stack_masks
from lstmcore.placement import drawing, place
from lstmcore.training.batches import pad
from lstmcore.training.entries import IGNORED
from lstmcore.training.losses import Loss
from lstmcore.training.readout import Readout, ReadoutGradients, ReadoutTape

Array = Any


class Examples(NamedTuple):
    """Checked sequences with one target each, and the weights of their entries, None for 1."""

    inputs: Sequence[Array]
    targets: Sequence[Array] | Array
    weights: Sequence[Array] | None = None

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self.inputs)

    @property
    def lengths(self) -> list[int]:
        """T of each example."""
        return [len(sequence) for sequence in self.inputs]

    def take(self, rows: npt.NDArray[np.intp]) -> Examples:
        """Return the sequences with these numbers, in this order."""
        weights = None if self.weights is None else [self.weights[row] for row in rows]
        return Examples([self.inputs[row] for row in rows], [self.targets[row] for row in rows], weights)


class ExampleSet(Protocol):
    """Examples that are in memory, or that are loaded when they are taken."""

    @property
    def size(self) -> int:
        """How many examples there are."""

    @property
    def lengths(self) -> list[int]:
        """T of each example."""

    def take(self, rows: npt.NDArray[np.intp], /) -> Examples:
        """Return the examples with these numbers, in this order."""


class Batch(NamedTuple):
    """Padded sequences x (T, N, I), or whole numbers (T, N) for an embedding, and lengths (N,) with their targets.

    Attributes
    ----------
    targets
        (N, ...), or (T, N, ...) if there is one at every step.
    weights
        The weight of each entry, (N,) or (T, N), bool or float; None if every sequence has one entry of weight 1.
    rows
        Which rows of a larger batch these are, whose random masks they get; None for a whole batch.
    counts
        The weight of all entries that count, and their number, of a batch that is on its device; None for the host.
    """

    x: Array
    lengths: Array
    targets: Array
    weights: Array | None
    rows: BatchRows | None = None
    counts: tuple[float, int] | None = None

    @classmethod
    def of(
        cls,
        inputs: Sequence[Array],
        targets: Sequence[Array] | Array,
        weights: Sequence[Array] | None,
        readout: Readout,
    ) -> Batch:
        """Return the batch of checked sequences; `weights` has one array a target, or None for 1.

        Raises
        ------
        ValueError
            A target at every step of another length than its sequence.
        """
        x, lengths = pad(inputs)
        if readout.steps != "every":
            return cls(x, lengths, np.asarray(targets), None if weights is None else np.asarray(weights))
        for row, (target, length) in enumerate(zip(targets, lengths, strict=True)):
            if len(target) != length:
                raise ValueError(f"targets[{row}]: expected {length} entries, one a step; got {len(target)}")
        counted = np.arange(len(x))[:, None] < lengths
        return cls(x, lengths, pad(list(targets))[0], counted if weights is None else pad(weights)[0])

    def counted(self, loss: Loss) -> Array | None:
        """Return the weights with 0 for entries that `loss` ignores."""
        if not loss.of_linear or not (ignored := self.targets == IGNORED).any():
            return self.weights
        return np.asarray(~ignored if self.weights is None else self.weights * ~ignored)

    def steps(self, start: int, stop: int) -> Batch:
        """Return the steps `start` to `stop`, for a readout at every step."""
        lengths = np.clip(self.lengths - start, 0, stop - start)
        weights = None if self.weights is None else self.weights[start:stop]
        return Batch(self.x[start:stop], lengths, self.targets[start:stop], weights, self.rows)


class Learned(NamedTuple):
    """The result of learning from one batch.

    Attributes
    ----------
    loss
        The mean over the entries, as a `Loss` gives it: of a device an array (), which nothing waits for.
    right
        The weight of the right answers, as the loss; None for a regression.
    entries, valid
        The weight of all entries, and the number of those with a weight above 0.
    gradients
        By the names of the model's parameters.
    state
        The final state.
    """

    loss: Any
    right: Any
    entries: float
    valid: int
    gradients: dict[str, Array]
    state: Any


class ReadTape(NamedTuple):
    """The records of the readout and of the attention before it, None without, and T."""

    readout: ReadoutTape
    attention: Any
    steps: int


class _Upstream(NamedTuple):
    """Gradients of the LSTM's outputs and final state, None for zero, of x by the readout, and of the attention."""

    dy: Array | None
    dlast: Any
    dx: Array | None
    attention: dict[str, Array]


class Network(NamedTuple):
    """The layers of a model; `lstm` is an `LSTM` or a `Chain`, whose tapes and states are of different types.

    The embedding is below the LSTM, the attention above it: with a readout at every step each step attends to all,
    with one at the last step the last output does.
    """

    lstm: Any
    readout: Readout
    embedding: Embedding | None = None
    pooling: AttentionPooling | None = None

    def laid_out(self, array: Array) -> Array:
        """Return (T, N, ...) in the layout of the LSTM, or back: a view."""
        return array.swapaxes(0, 1) if self.lstm.batch_first else array

    def _moved(self, array: Any) -> Any:
        """Return an array of the host where the network computes, None as it is."""
        return None if array is None else move_like(array, self.readout.parameters["weight"])

    def placed(self, batch: Batch, loss: Loss) -> tuple[Batch, tuple[float, int]]:
        """Return a batch where the network computes, with the weights of what `loss` counts, and counts."""
        if batch.counts is not None:
            return batch, batch.counts
        weights = batch.counted(loss)
        x, targets = self._moved(batch.x), self._moved(batch.targets)
        placed = batch._replace(x=x, targets=targets, weights=self._moved(weights))
        return placed, count_entries(weights, len(batch.lengths))

    def _embed(self, x: Array) -> tuple[Array, Any]:
        """Return what the LSTM reads of padded x, and the record of the embedding."""
        return (x, None) if self.embedding is None else self.embedding.record(x)

    def run(self, x: Array, lengths: Array) -> tuple[Array, ReadoutTape, Any]:
        """Return the outputs for padded x, the record of the readout, and the final state."""
        x, _ = self._embed(self._moved(x))
        h, last = self.lstm(self.laid_out(x), lengths=lengths)
        outputs, read = self._read(x, lengths, self.laid_out(h), last)
        return outputs, read.readout, last

    def learn(self, batch: Batch, loss: Loss, state: Any = None) -> Learned:
        """Return the loss of a batch and its gradient for every parameter, from `state` on; dropout is on."""
        batch, counts = self.placed(batch, loss)
        (x, rows), lengths = self._embed(batch.x), batch.lengths
        h, last, tape = self.lstm.record(self.laid_out(x), state, lengths, masks=self._masks_of_rows(batch))
        outputs, read = self._read(x, lengths, self.laid_out(h), last)
        value, right, of_readout = self._judge(batch, loss, outputs, read.readout)
        up = self._to_lstm(of_readout, read, lengths, last)
        found = self.lstm.backward(tape, None if up.dy is None else self.laid_out(up.dy), up.dlast)
        gradients = self._named(found.parameters, of_readout, up, rows, self.laid_out(found.x))
        return Learned(value, right, *counts, gradients, last)

    def learn_by_parts(self, batch: Batch, loss: Loss) -> Learned:
        """Return what `learn` returns, with the tape of sqrt(T) steps at a time, for one more forward pass.

        The first pass keeps the state at the start of each part; backward, each part is recorded again.
        """
        lstm, lengths = self.lstm, batch.lengths
        batch, counts = self.placed(batch, loss)
        x, rows = self._embed(batch.x)
        embedded = batch._replace(x=x)
        size = max(1, math.isqrt(max(x.shape[0] - 1, 0)) + 1)
        starts = range(0, max(x.shape[0], 1), size)
        first, state, masks = lstm.step, None, None
        states, outputs_of_lstm = list[Any](), list[Array]()
        for start in starts:
            states.append(state)
            h, state, tape = self._record_part(_inputs_of(embedded, start, size), state, masks)
            masks = tape.masks if masks is None else masks
            outputs_of_lstm.append(self.laid_out(h))
            del tape  # its memory is what this saves
        whole = namespace_of(*outputs_of_lstm).concat(outputs_of_lstm)
        outputs, read = self._read(x, lengths, whole, state)
        value, right, of_readout = self._judge(batch, loss, outputs, read.readout)
        up = self._to_lstm(of_readout, read, lengths, state)
        dy, dstate = up.dy, up.dlast
        total: dict[str, Array] = {}
        dx = x[:0] if self.embedding is None else namespace_of(x).empty_like(x)  # only an embedding needs it
        for number, start in reversed(list(enumerate(starts))):
            part = slice(start, start + size)
            lstm.step = first + number  # the masks follow from it
            *_, tape = self._record_part(_inputs_of(embedded, start, size), states[number], masks)
            found = lstm.backward(tape, None if dy is None else self.laid_out(dy[part]), dstate)
            dstate = found.state
            if self.embedding is not None:
                dx[part] = self.laid_out(found.x)
            total = {name: value + total[name] if total else value for name, value in found.parameters.items()}
        lstm.step = first + len(starts)
        gradients = self._named(total, of_readout, up, rows, dx)
        return Learned(value, right, *counts, gradients, state)

    def _masks_of_rows(self, batch: Batch) -> Any:
        """Return the masks of each LSTM for rows of a larger batch; None for a whole one, which draws them itself."""
        if batch.rows is None:
            return None
        drawn = [self._masks(lstm, batch) for lstm in getattr(self.lstm, "lstms", (self.lstm,))]
        return drawn if hasattr(self.lstm, "lstms") else drawn[0]

    @staticmethod
    def _masks(lstm: LSTM, batch: Batch) -> StackMasks | None:
        """Return the masks of the next recorded call of `lstm`."""
        size, draw = (batch.x.shape[0], len(batch.lengths)), drawing(*place("x", batch.x, lstm.backend))
        return stack_masks(
            lstm.stack, lstm.precision, *size, seed=lstm.seed, step=lstm.step, rows=batch.rows, draw=draw
        )

    def _record_part(self, batch: Batch, state: Any, first: Any) -> tuple[Array, Any, Any]:
        """Record one part; its recurrent dropout is that of the masks of the `first` part, as in one call."""
        lstm: LSTM = self.lstm
        drawn = self._masks(lstm, batch)
        if drawn is not None and first is not None:
            pairs = zip(drawn.layers, first.layers, strict=True)
            drawn = drawn._replace(layers=tuple(own._replace(recurrent=whole.recurrent) for own, whole in pairs))
        return lstm.record(self.laid_out(batch.x), state, batch.lengths, masks=drawn)

    def _judge(self, batch: Batch, loss: Loss, outputs: Array, read: ReadoutTape) -> tuple[Any, Any, ReadoutGradients]:
        value, dy = loss(read.linear if loss.of_linear else outputs, batch.targets, batch.weights)
        right = count_right(outputs, batch.targets, batch.weights, loss)
        return value, right, self.readout.backward(read, dy, of_linear=loss.of_linear)

    def _named(
        self, of_lstm: dict[str, Array], of_readout: ReadoutGradients, up: _Upstream, rows: Any, dx: Array
    ) -> dict[str, Array]:
        """Return all gradients by the names of the model's parameters; `rows` is the record of the embedding."""
        parts = {"lstm": of_lstm, "readout": of_readout.parameters}
        if self.embedding is not None:
            parts["embedding"] = self.embedding.backward(rows, dx if up.dx is None else dx + up.dx).parameters
        if self.pooling is not None:
            parts["pooling"] = up.attention
        return {f"{part}.{name}": value for part, named in parts.items() for name, value in named.items()}

    def _read(self, x: Array, lengths: Array, h: Array, last: Any) -> tuple[Array, ReadTape]:
        features, attention = self._features(lengths, h, last)
        beside = None
        if self.readout.x_size:
            steps = self.readout.steps
            beside = x if steps == "every" else _at_ends(x, lengths) if steps == "last" else _mean(x, lengths)
        outputs, tape = self.readout.record(features, beside)
        return outputs, ReadTape(tape, attention, x.shape[0])

    def _features(self, lengths: Array, h: Array, last: Any) -> tuple[Array, Any]:
        """Return what the readout reads of the LSTM's outputs, and the record of the attention."""
        steps, pooling = self.readout.steps, self.pooling
        if steps == "mean":
            return _mean(h, lengths), None
        features = h if steps == "every" else self.lstm.last_output(last)
        if pooling is None:
            return features, None
        if steps == "every":
            return pooling.record(h, lengths)
        found, tape = pooling.record(h, lengths, features[None])
        return found[0], tape

    def _to_lstm(self, found: ReadoutGradients, read: ReadTape, lengths: Array, last: Any) -> _Upstream:
        """Return the gradients of what the readout and the attention read."""
        kind, dx = self.readout.steps, self._to_x(found, read, lengths)
        if kind == "mean":
            return _Upstream(_spread(found.h, lengths, read.steps), None, dx, {})
        dy, dlast, of_attention = (found.h, None, {}) if kind == "every" else (None, found.h, {})
        if self.pooling is not None:
            back = self.pooling.backward(read.attention, found.h if kind == "every" else found.h[None])
            dy, of_attention = back.x, back.parameters
            dlast = None if back.queries is None else back.queries[0]
        if dlast is not None:
            dlast = self.lstm.last_output_gradient(last, dlast)
        return _Upstream(dy, dlast, dx, of_attention)

    def _to_x(self, found: ReadoutGradients, read: ReadTape, lengths: Array) -> Array | None:
        """Return the gradient of x by the readout; None if the readout does not read it, or nothing is below it."""
        if found.x is None or self.embedding is None or self.readout.steps == "every":
            return found.x
        if self.readout.steps == "mean":
            return _spread(found.x, lengths, read.steps)
        ends = move_like(np.arange(read.steps)[:, None] == lengths - 1, found.x)
        return namespace_of(found.x).where(ends[..., None], found.x, 0.0)


def _inputs_of(batch: Batch, start: int, size: int) -> Batch:
    """Return the batch with `size` of its steps from `start` on, and targets of all."""
    return batch._replace(x=batch.x[start : start + size], lengths=np.clip(batch.lengths - start, 0, size))


def _spread(gradient: Array, lengths: Array, steps: int) -> Array:
    """Return (T, N, W): the gradient of the values from that of their means (N, W)."""
    shares = (np.arange(steps)[:, None] < lengths) / np.maximum(lengths, 1)
    return move_like(shares.astype(dtype_name(gradient.dtype)), gradient)[..., None] * gradient


def _at_ends(x: Array, lengths: Array) -> Array:
    """Return (N, I): x at the last valid step of each row, 0 for a row of none."""
    xp, (steps, rows, width) = namespace_of(x), x.shape
    if not steps:
        return xp.zeros((rows, width), dtype=x.dtype, device=device_of(x))
    places = np.maximum(lengths - 1, 0) * rows + np.arange(rows)
    ends = xp.take(xp.reshape(x, (steps * rows, width)), move_like(places, x), axis=0)
    return xp.where(move_like(lengths[:, None] > 0, x), ends, 0.0)


def _mean(values: Array, lengths: Array) -> Array:
    """Return (N, W): the mean of values (T, N, W) over the valid steps of each row, 0 for a row of none."""
    xp, valid = namespace_of(values), move_like(np.arange(values.shape[0])[:, None] < lengths, values)
    total = xp.sum(xp.where(valid[..., None], values, 0.0), axis=0, dtype=xp.float64)
    counts = move_like(np.maximum(lengths, 1)[:, None].astype(np.float64), values)
    return xp.astype(total / counts, values.dtype)


def count_right(outputs: Array, targets: Array, weights: Array | None, loss: Loss) -> Any:
    """Return the weight of the entries whose largest output is the target's; None for a regression.

    A float, or an array () of a device.
    """
    if not loss.of_linear:
        return None
    xp = namespace_of(outputs=outputs, targets=targets, weights=weights)
    hits = xp.astype(xp.argmax(outputs, axis=-1) == targets, xp.float64)
    return as_number(xp.sum(hits if weights is None else hits * xp.astype(weights, xp.float64, copy=False)))


def count_entries(weights: npt.NDArray[Any] | None, rows: int) -> tuple[float, int]:
    """Return the weight of all entries, and the number of those with a weight; `rows` of them if it is None."""
    return (float(rows), rows) if weights is None else (float(weights.sum()), int(np.count_nonzero(weights)))


def square_cells(state: Any) -> Array:
    """Return (N,): the sum of the squares of all final cells of a row, of an LSTM or of each LSTM of a chain."""
    pairs = [state] if isinstance(state, State) else state
    xp = namespace_of(*(c for _, c in pairs))
    return sum(xp.sum(xp.square(xp.astype(c, xp.float64)), axis=(0, 2)) for _, c in pairs)
