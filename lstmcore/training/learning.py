"""One epoch of learning: batches, noise, gradients, clipping and the optimizer's steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lstmcore.arrays import is_on_host, namespace_of, read_number
from lstmcore.training.batches import batches_by_length
from lstmcore.training.clipping import clip_by_global_norm, global_norm
from lstmcore.training.data_parallel import OneRank
from lstmcore.training.feeding import Feed, Piece
from lstmcore.training.history import Epoch, History
from lstmcore.training.losses import Loss
from lstmcore.training.model import SequenceModel
from lstmcore.training.network import Batch, ExampleSet, Learned
from lstmcore.training.optimizers import Optimizer
from lstmcore.training.schedules import Schedule

Array = Any


class DivergedError(ValueError):
    """The loss or a gradient is no longer finite.

    Attributes
    ----------
    history
        The epochs that were finished.
    restored
        The epoch whose weights the model has now: the best one, or the last one if none is. None: those that it
        had at the start.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> from lstmcore.training import SGD, Readout, Trainer
    >>> model = SequenceModel(LSTM(2, 4, seed=0), Readout(4, 1, seed=0))
    >>> trainer = Trainer(model, loss="mean-squared-error", optimizer=SGD(1e30), clip_norm=None, quiet=True)
    >>> inputs = [np.full((length, 2), 0.1 * length) for length in range(3, 13)]
    >>> trainer.fit(inputs, [x.mean(axis=0)[:1] for x in inputs])
    Traceback (most recent call last):
    lstmcore.training.learning.DivergedError: training diverged in epoch 1: ...
    """

    history: History
    restored: int | None = None
    #: Every rank of a distributed training raises it, as `DistributedError.told`.
    told = True


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of an epoch; their meaning is in the docstring of `Trainer`."""

    batch_size: int
    clip_norm: float | None
    input_noise: float
    seed: int
    accumulate: int = 1
    truncate: int | None = None
    gradient_checkpointing: bool = False
    loss_every: int | None = None
    ranks: OneRank = field(default_factory=OneRank)


class EpochMeans(NamedTuple):
    """Means over an epoch of learning, and its last learning rate; `accuracy` is None for a regression."""

    loss: float
    accuracy: float | None
    gradient_norm: float
    lr: float


class Learner:
    """A model that learns one epoch after the other.

    Parameters
    ----------
    model, loss, optimizer
        Those of the run; the optimizer goes on from where it is.
    recipe
        The settings.
    schedule
        The factor of the optimizer's learning rate; None for 1.

    Attributes
    ----------
    feed
        The way of batches to where the model computes: that of the host.
    """

    def __init__(
        self, model: SequenceModel, loss: Loss, optimizer: Optimizer, recipe: Recipe, schedule: Schedule | None = None
    ) -> None:
        self.model, self.loss, self.optimizer, self.recipe, self.schedule = model, loss, optimizer, recipe, schedule
        self.feed = Feed()

    def learn_epoch(self, number: int, examples: ExampleSet, done: Sequence[Epoch] = ()) -> EpochMeans:
        """Learn from all examples once.

        Parameters
        ----------
        number
            From 1; with the seed it fixes the order of the batches and the noise.
        examples
            Scaled inputs, targets and weights.
        done
            The epochs before this one, for the schedule.

        Raises
        ------
        DivergedError
            A loss, a gradient or a parameter that is not finite; on a device this is seen every `Recipe.loss_every`
            steps and at the end of the epoch.
        """
        settings, base = self.optimizer.settings, self.optimizer.settings["lr"]
        pending: list[Learned] = []
        total, right, entries, norms, steps = 0.0, 0.0, 0.0, 0.0, 0  # of a device arrays (), which are read at the end
        known, rate = True, base
        try:
            for piece, learned in self._learned(number, self.feed.examples(examples)):
                pending.append(learned)
                known = known and learned.right is not None
                total, right = total + learned.loss * learned.entries, right + (learned.right if known else 0.0)
                entries += learned.entries
                if piece.last or len(pending) == self.recipe.accumulate:
                    if self.schedule is not None:
                        rate = settings["lr"] = base * self.schedule.factor(piece.position, done)
                    norms, steps = norms + self._step(number, pending), steps + 1
                    if self.recipe.loss_every is not None and steps % self.recipe.loss_every == 0:
                        _check_device(number, steps, total, norms)
                    pending = []
        finally:
            settings["lr"] = base
        total, right, norms = self._read(number, total, right, norms)
        total, right, entries = self.recipe.ranks.add(total, right, entries)
        entries = entries or 1
        return EpochMeans(total / entries, right / entries if known else None, norms / steps, rate)

    def _learned(self, number: int, examples: ExampleSet) -> Iterator[tuple[Piece, Learned]]:
        """Yield each piece of an epoch and what was learned from it."""
        recipe, network, state = self.recipe, self.model.network, None
        for piece in self.feed.pieces(self._pieces(number, examples), self.loss):
            if recipe.truncate is None and recipe.gradient_checkpointing:
                learned = network.learn_by_parts(piece.batch, self.loss)
            else:
                learned = network.learn(piece.batch, self.loss, None if piece.first else state)
            state = None if recipe.truncate is None else learned.state
            yield piece, learned

    def _pieces(self, number: int, examples: ExampleSet) -> Iterator[Piece]:
        """Yield the batches of an epoch, or their parts, on the host."""
        recipe, readout = self.recipe, self.model.readout
        noise = np.random.default_rng(np.random.SeedSequence((recipe.seed, number, 1)))
        batches = batches_by_length(examples.lengths, recipe.batch_size, seed=recipe.seed, epoch=number)
        for index, rows in enumerate(batches):
            position, final = number - 1 + index / len(batches), index == len(batches) - 1
            inputs, targets, weights = examples.take(rows)
            if recipe.input_noise:
                inputs = [s + (recipe.input_noise * noise.standard_normal(s.shape)).astype(s.dtype) for s in inputs]
            parted = recipe.truncate is not None or recipe.gradient_checkpointing
            batch = recipe.ranks.own_rows(Batch.of(inputs, targets, weights, readout), cut=not parted)
            if recipe.truncate is None:
                yield Piece(position, batch, True, final)
                continue
            starts = range(0, max(len(batch.x), 1), recipe.truncate)
            for start in starts:
                part = batch.steps(start, start + recipe.truncate)
                yield Piece(position, part, start == 0, final and start == starts[-1])

    def _step(self, number: int, pieces: Sequence[Learned]) -> Any:
        """Take a step along the gradient of some pieces, and return its norm before it was clipped."""
        loss, gradients = self.recipe.ranks.combine(pieces)
        _check_finite(number, "loss", loss)
        backend = self.model.lstm.backend
        if self.recipe.clip_norm is None:
            norm = global_norm(gradients, backend=backend)
        else:
            gradients, norm = clip_by_global_norm(gradients, self.recipe.clip_norm, backend=backend)
        _check_finite(number, "gradient norm", norm)
        stepped = self.optimizer.step(self.model.parameters, gradients)
        self._check_parameters(number, stepped, on_host=True)
        self.model.load_parameters(stepped)
        return norm

    def _read(self, number: int, total: Any, right: Any, norms: Any) -> tuple[float, float, float]:
        """Return the sums of an epoch on the host; what was not checked in its steps, on a device, is checked here."""
        found = read_number(total), read_number(right), read_number(norms)
        _check_finite(number, "loss", found[0])
        _check_finite(number, "gradient norm", found[2])
        self._check_parameters(number, self.model.parameters, on_host=False)
        return found

    @staticmethod
    def _check_parameters(number: int, parameters: Mapping[str, Array], *, on_host: bool) -> None:
        """Check the parameters that are on the host, or those that are not."""
        for name, value in parameters.items():
            xp = namespace_of(value)
            if is_on_host(value) == on_host and not xp.all(xp.isfinite(value)):
                raise diverged(number, "parameter", f"{name} is no longer finite")


def _check_finite(epoch: int, what: str, value: Any) -> None:
    """Raise DivergedError for a float that is not finite; an array of a device is not waited for."""
    if isinstance(value, float) and not math.isfinite(value):
        raise diverged(epoch, what, value)


def _check_device(epoch: int, step: int, total: Any, norms: Any) -> None:
    """Raise DivergedError if sums over the steps of an epoch are no longer finite; a device is waited for.

    On the host, where they are floats, each step was checked.
    """
    if isinstance(total, float) or math.isfinite(read_number(total + norms)):
        return
    for what, value in (("loss", read_number(total)), ("gradient norm", read_number(norms))):
        if not math.isfinite(value):
            raise diverged(epoch, what, value, step)


def diverged(epoch: int, what: str, value: object, step: int | None = None) -> DivergedError:
    """Return the error of an epoch in which `what` is no longer finite; `step` is the one before it was read."""
    place = f"epoch {epoch}" if step is None else f"epoch {epoch}, by its step {step}"
    return DivergedError(f"training diverged in {place}: {what} {value}: lower the learning rate or clip_norm")


def restored(error: DivergedError, history: History) -> DivergedError:
    """Return the error with the epoch whose weights the model has again."""
    epoch = history.best or len(history.epochs) or None
    kept = f"epoch {epoch}" if epoch else "the start"
    told = DivergedError(f"{error}; the model has the weights of {kept} again: go on from them in a new run")
    told.history, told.restored = history, epoch
    return told
