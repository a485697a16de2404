"""Means over a set: loss, accuracy, state drift and metrics of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lstmcore.arrays import as_number, device_of, namespace_of, read_number
from lstmcore.training.batches import chunks_by_length
from lstmcore.training.losses import Loss
from lstmcore.training.metrics import compute_metrics
from lstmcore.training.network import Batch, ExampleSet, Network, count_right, square_cells
from lstmcore.training.scaling import Standardizer

Array = Any


class Evaluation(NamedTuple):
    """Means over a set: the loss, the accuracy (None for a regression), the state drift, and metrics by name.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> from lstmcore.training import CrossEntropy, Readout, SequenceModel
    >>> model = SequenceModel(LSTM(2, 4, seed=0), Readout(4, 3, activation="softmax", seed=0))
    >>> evaluation = model.evaluate([np.ones((3, 2), np.float32)], np.array([1]), CrossEntropy())
    >>> evaluation.accuracy in (0.0, 1.0), evaluation.loss > 0
    (True, True)
    """

    loss: float
    accuracy: float | None
    drift: float
    metrics: dict[str, float] = {}  # noqa: RUF012  (no class attribute: the default of a field, which nobody changes)


class Judging(NamedTuple):
    """How a set is judged.

    Attributes
    ----------
    scaling
        The standardisation of targets, or None.
    raw
        Whether the targets are raw, so that `scaling` is undone on the outputs.
    metrics, batch_size
        Names of metrics, and how many sequences to run at once.
    """

    scaling: Standardizer | None
    raw: bool
    metrics: Sequence[str]
    batch_size: int


def judge(network: Network, examples: ExampleSet, loss: Loss, how: Judging) -> Evaluation:
    """Return the means over scaled inputs; dropout is off."""
    total, right, entries, drift = 0.0, 0.0, 0.0, 0.0  # of a device arrays (), which are read at the end
    answers, seen = True, list[tuple[Array, Array, Array]]()
    for chosen in chunks_by_length(examples.lengths, how.batch_size):
        batch, (count, _) = network.placed(Batch.of(*examples.take(chosen), network.readout), loss)
        outputs, read, last = network.run(batch.x, batch.lengths)
        if how.raw and how.scaling is not None and not loss.of_linear:
            outputs = how.scaling.undo(outputs)
        value, _ = loss(read.linear if loss.of_linear else outputs, batch.targets, batch.weights)
        hits = count_right(outputs, batch.targets, batch.weights, loss)
        answers = answers and hits is not None
        total, right, entries = total + value * count, right + (0.0 if hits is None else hits), entries + count
        cells = square_cells(last)  # the start is zero
        drift = drift + as_number(namespace_of(cells).sum(namespace_of(cells).sqrt(cells)))
        if how.metrics:
            seen.append(_flat_answers(outputs, batch, loss, how))
    found = compute_metrics(how.metrics, *map(_joined, zip(*seen, strict=True))) if how.metrics else {}
    total, right, drift = (read_number(number) for number in (total, right, drift))
    accuracy = right / (entries or 1) if answers else None
    return Evaluation(total / (entries or 1), accuracy, drift / examples.size, found)


def _joined(arrays: Sequence[Array]) -> Array:
    return namespace_of(*arrays).concat(arrays)


def _flat_answers(outputs: Array, batch: Batch, loss: Loss, how: Judging) -> tuple[Array, Array, Array]:
    """Return answers, targets and weights of all entries, flat; of a regression in the units of `predict`."""
    xp, count = namespace_of(outputs), math.prod(outputs.shape[:-1])
    if batch.weights is None:
        flat = xp.ones(count, dtype=xp.float64, device=device_of(outputs))
    else:
        flat = xp.astype(xp.reshape(batch.weights, (count,)), xp.float64, copy=False)
    if loss.of_linear:
        return xp.reshape(xp.argmax(outputs, axis=-1), (count,)), xp.reshape(batch.targets, (count,)), flat
    targets, scaling = batch.targets, how.scaling
    if scaling is not None and not how.raw:
        outputs, targets = scaling.undo(outputs), scaling.first(targets.shape[-1]).undo(targets)
    answers = loss.point(outputs)
    return xp.reshape(answers, (count, -1)), xp.reshape(targets, (count, -1)), flat
