"""Training on one rank or on several: who computes which rows, and what all ranks decide together."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from lstmcore.arrays import namespace_of
from lstmcore.distributed.agreement import agree, share_text
from lstmcore.distributed.engine import Engine
from lstmcore.distributed.finding import get_engine
from lstmcore.masks import BatchRows
from lstmcore.plugin_calls import format_error
from lstmcore.ranks import DistributedError
from lstmcore.training.batches import chunks_by_length
from lstmcore.training.digests import digest_of
from lstmcore.training.judging import Evaluation
from lstmcore.training.losses import Loss
from lstmcore.training.model import SequenceModel
from lstmcore.training.model_file import model_header
from lstmcore.training.network import Batch, Examples, ExampleSet, Learned, count_entries

Array = npt.NDArray[Any]
R = TypeVar("R")
#: Rows whose entries are counted at a time.
_COUNTED: Final = 256


class OneRank:
    """The whole of a training in one process."""

    rank = 0
    size = 1

    def own_rows(self, batch: Batch, *, cut: bool) -> Batch:
        """Return the rows of a batch that this rank learns from; `cut` leaves out steps past their ends."""
        return batch

    def combine(self, pieces: Sequence[Learned]) -> tuple[float, dict[str, Array]]:
        """Return a loss that is finite if all are, and the gradient of the mean over the entries of all pieces.

        Weights have the mean 1 over the training set, so that a batch of heavy entries counts for more than one of
        light ones.
        """
        loss = sum(piece.loss for piece in pieces)
        count = sum(piece.valid for piece in pieces) or 1
        factors = [piece.entries / count for piece in pieces]
        return loss, pieces[0].gradients if factors == [1.0] else _add_up(factors, pieces)

    def add(self, *values: float) -> tuple[float, ...]:
        """Return the sums of the values over all ranks, in float64."""
        return values

    def measure(self, model: SequenceModel, examples: ExampleSet, loss: Loss, metrics: Sequence[str]) -> Evaluation:
        """Return what `SequenceModel.measure` returns."""
        return model.measure(examples, loss, metrics)

    def agree(self, action: Callable[[], R]) -> R:
        """Return the result of `action`, which is done on every rank, or raise on all."""
        return action()

    def check_same(self, model: SequenceModel, state: Mapping[str, Any]) -> None:
        """Raise on all ranks if one has other parameters, or another state in JSON types, than rank 0."""

    def decide(self, text: str | None, model: SequenceModel) -> str | None:
        """Return the text of rank 0, after a check that all have the same parameters."""
        return text

    @contextmanager
    def one_end(self) -> Iterator[None]:
        """End all ranks if this one alone ends with an error."""
        yield


class DataParallel(OneRank):
    """One of several ranks, each with a copy of the model; every step adds up one flat buffer of gradients.

    Parameters
    ----------
    engine
        The ranks, of which there are at least two.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.rank, self.size = engine, engine.rank, engine.size

    def own_rows(self, batch: Batch, *, cut: bool) -> Batch:
        """See `OneRank`. A rank without rows gets the first one, none of whose entries counts."""
        whole = len(batch.lengths)
        rows = share_rows(batch.lengths, self.size)[self.rank]
        idle = not rows.size
        if idle:
            rows = np.zeros(1, np.intp)
        every = batch.weights is not None and batch.weights.ndim == 2
        lengths = batch.lengths[rows]
        steps = slice(max(int(lengths.max()), 1)) if cut else slice(None)

        def own(array: Array) -> Array:
            return array[steps].take(rows, axis=1) if every else array[rows]

        targets, weights = own(batch.targets), None if batch.weights is None else own(batch.weights)
        if idle:
            weights = np.zeros(targets.shape[: 2 if every else 1], np.bool_)
        return Batch(batch.x[steps].take(rows, axis=1), lengths, targets, weights, BatchRows(rows, whole))

    def combine(self, pieces: Sequence[Learned]) -> tuple[float, dict[str, Array]]:
        """See `OneRank`: the sum over the pieces of all ranks, divided by the number of all entries that count."""
        gradients = _add_up([piece.entries for piece in pieces], pieces)
        dtype = next(iter(gradients.values())).dtype
        tail = np.array([sum(piece.loss for piece in pieces), sum(piece.valid for piece in pieces)], dtype)
        flat = np.concatenate([*(value.reshape(-1) for value in gradients.values()), tail])
        self.engine.allreduce_sum(flat)
        loss, count = float(flat[-2]), float(flat[-1])
        flat /= count or 1
        ends = np.cumsum([value.size for value in gradients.values()])
        parts = np.split(flat[:-2], ends[:-1])
        return loss, {
            name: part.reshape(value.shape) for (name, value), part in zip(gradients.items(), parts, strict=True)
        }

    def add(self, *values: float) -> tuple[float, ...]:
        """See `OneRank`."""
        buffer = np.array(values, np.float64)
        self.engine.allreduce_sum(buffer)
        return tuple(buffer.tolist())

    def measure(self, model: SequenceModel, examples: ExampleSet, loss: Loss, metrics: Sequence[str]) -> Evaluation:
        """See `OneRank`: each rank measures a share of the examples; all of them if a metric needs all answers."""
        if metrics or not isinstance(examples, Examples):
            return model.measure(examples, loss, metrics)
        rows = share_rows([len(sequence) for sequence in examples.inputs], self.size)[self.rank]
        sums = (0.0, 0.0, 0.0, 0.0)
        if rows.size:
            own = examples.take(rows)
            seen, entries = model.measure(own, loss), _entries_of(own, model, loss)
            sums = (seen.loss * entries, (seen.accuracy or 0.0) * entries, entries, seen.drift * rows.size)
        total, right, weight, drift = self.add(*sums)
        accuracy = right / (weight or 1) if loss.of_linear else None
        return Evaluation(total / (weight or 1), accuracy, drift / len(examples.inputs), {})

    def agree(self, action: Callable[[], R]) -> R:
        """See `OneRank`."""
        return agree(self.engine, action)

    def check_same(self, model: SequenceModel, state: Mapping[str, Any]) -> None:
        """See `OneRank`."""
        header = {f"model {key}": value for key, value in model_header(model.parts).items()}
        own = {**header, **state, "parameters": digest_of(model.parameters.values()), "step": model.lstm.step}
        wanted = json.loads(share_text(self.engine, json.dumps(own)))

        def check() -> None:
            for key in sorted(set(own) | set(wanted)):
                if json.dumps(own.get(key)) != json.dumps(wanted.get(key)):
                    raise ValueError(
                        f"expected {key}={wanted.get(key)!r} as on rank 0; got {own.get(key)!r}: give every rank the "
                        "same files and settings"
                    )

        self.agree(check)

    def decide(self, text: str | None, model: SequenceModel) -> str | None:
        """See `OneRank`."""
        own = digest_of(model.parameters.values())
        decided = json.loads(share_text(self.engine, json.dumps([text, own])))
        if decided[1] != own:
            raise DistributedError(
                f"rank {self.rank}: expected the parameters of rank 0; got others: callbacks run on rank 0 alone, and "
                "may not change the model or the optimizer"
            )
        return None if decided[0] is None else str(decided[0])

    @contextmanager
    def one_end(self) -> Iterator[None]:
        """See `OneRank`."""
        try:
            yield
        except Exception as error:  # whatever it is, the other ranks wait for this one
            if not getattr(error, "told", False):
                distributed = isinstance(error, DistributedError)
                self.engine.abort(str(error) if distributed else f"rank {self.rank}: {format_error(error)}")
            raise


def ranks_of(distributed: object) -> OneRank:
    """Return the ranks of a training: one, or those of an engine or of the engine of a name.

    Raises
    ------
    TypeError
        Neither an engine nor a name nor None.
    ValueError, PluginError, UnavailableError
        As `lstmcore.distributed.get_engine`.
    """
    if isinstance(distributed, str):
        distributed = get_engine(distributed)
    if distributed is not None and not isinstance(distributed, Engine):
        kind = type(distributed).__name__
        raise TypeError(f"distributed: expected an Engine, the name of one, or None; got {kind}")
    return OneRank() if distributed is None or distributed.size == 1 else DataParallel(distributed)


def share_rows(lengths: Any, size: int) -> list[npt.NDArray[np.intp]]:
    """Return the rows of each rank, ascending, so that all have about the same sum of lengths.

    The longest row goes first, to the rank with the least work. The same arguments give the same shares.

    Examples
    --------
    >>> [rows.tolist() for rows in share_rows([9, 3, 5, 2], 2)]
    [[0], [1, 2, 3]]
    """
    shares, work = [list[int]() for _ in range(size)], [(0, rank) for rank in range(size)]
    for row in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        done, rank = work[0]
        heapq.heapreplace(work, (done + int(lengths[row]) + 1, rank))  # a row of no steps has its readout
        shares[rank].append(row)
    return [np.array(sorted(share), np.intp) for share in shares]


def _add_up(factors: Sequence[float], pieces: Sequence[Learned]) -> dict[str, Array]:
    """Return the sum of factor times gradient, in the dtype of the gradients."""
    return {
        name: namespace_of(value).astype(
            sum(factor * piece.gradients[name] for factor, piece in zip(factors, pieces, strict=True)),
            value.dtype,
            copy=False,
        )
        for name, value in pieces[0].gradients.items()
    }


def _entries_of(examples: Examples, model: SequenceModel, loss: Loss) -> float:
    """Return the weight of all entries."""
    total = 0.0
    for rows in chunks_by_length(examples.lengths, _COUNTED):
        batch = Batch.of(*examples.take(rows), model.readout)
        total += count_entries(batch.counted(loss), len(rows))[0]
    return total
