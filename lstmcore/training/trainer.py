"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import integer
from lstmcore.distributed.engine import Engine
from lstmcore.files import check_writable
from lstmcore.ranks import DistributedError
from lstmcore.scalars import flag
from lstmcore.training import checkpoint as checkpoints
from lstmcore.training.batches import split
from lstmcore.training.callbacks import Callback
from lstmcore.training.data_checks import Targets, find_classes
from lstmcore.training.data_parallel import ranks_of
from lstmcore.training.feeding import feeding
from lstmcore.training.history import Epoch, History
from lstmcore.training.learning import DivergedError, Learner, Recipe, diverged, restored
from lstmcore.training.losses import Loss
from lstmcore.training.metrics import check_metrics
from lstmcore.training.model import SequenceModel
from lstmcore.training.model_file import json_types
from lstmcore.training.network import ExampleSet
from lstmcore.training.optimizers import Adam, Optimizer
from lstmcore.training.placing import check_placing, computing_on, on_host
from lstmcore.training.progress import shown_progress
from lstmcore.training.schedules import Schedule
from lstmcore.training.sets import Rows, Sets, check_examples, make_sets, scale_examples, weigh
from lstmcore.training.streams import StreamedSets, StreamPlan, stream_sets
from lstmcore.training.trainer_checks import (
    bound,
    check_class_weight,
    check_helpers,
    check_loss,
    check_noise,
    check_parts,
    check_ranks,
    check_validation,
    check_validation_data,
)
from lstmcore.training.weights import ClassWeight

__all__ = ["DivergedError", "Trainer"]

Array = npt.NDArray[Any]
AnySets: TypeAlias = Sets | StreamedSets

#: Settings whose default is left out of checkpoints, so that those of older versions stay readable.
_LATER: Final = {"accumulate": 1, "truncate": None, "gradient_checkpointing": False, "metrics": ()}


class Trainer:
    """Trains a `SequenceModel`.

    The same seed, data and settings on the same machine give the same run again, bit for bit, also if the run
    was interrupted and resumed from a checkpoint.

    Parameters
    ----------
    model
        Training starts from its weights.
    loss
        ``"cross-entropy"`` (classes; the readout's activation is softmax or none), ``"mean-squared-error"``,
        ``"quantile"`` or ``"gaussian"`` (these give intervals in `predict`), or a `Loss`.
    optimizer
        Adam with its defaults if None. Its moments go with one run: make a new one for another, which `fit` asks
        for.
    epochs, batch_size
        At least 1.
    clip_norm
        Bound of the global norm of the gradients; None for none.
    validation
        Share of the data that is held out to watch the run, in [0, 1). By class if the targets are classes.
    chronological
        Hold out the last sequences instead of random ones: for windows of a series, which overlap.
    purge
        With `chronological`, how many sequences just before those held out are left out of both sets: ``horizon - 1``
        for windows with `horizon` targets each, so that no held-out target is learned from.
    patience
        Stop after that many epochs without a lower validation loss; None never does.
    drift_threshold
        Stop after an epoch whose state drift (`Epoch.drift`) is above it; None never does. Such an epoch is never
        the best one: if it is the first, `History.best` is None and its weights, the only ones, stay.
    input_noise
        Standard deviation of Gaussian noise on the standardised inputs while learning (a regulariser).
    standardize
        Fit ``model.input_scaling`` on the training part if the model has none; without effect with an embedding.
    standardize_targets
        The same for ``model.target_scaling``, of a regression.
    seed
        Order of the batches, validation split and input noise. (Weights and dropout follow from the LSTM's seed.)
    checkpoint
        File to write after every epoch; None for none. If it cannot be written, for example on a full disk, that is
        a warning: the file before it stays, and the run goes on.
    quiet
        Show no progress. Else it is a bar on a terminal, and a line for each epoch in a file or a pipe.
    class_weight
        Weights of the classes in the loss and the accuracy: a mapping from a class to its weight, one number a class,
        or ``"balanced"`` for weights that give every class of the training part the same total.
    schedule
        Factor of the optimizer's learning rate along the run, for example ``WarmUp(2) * Cosine(60)``; None for 1.
    callbacks
        Run at the start, after each epoch and at the end; None for none.
    metrics
        Names of metrics for `Epoch.metrics`: accuracy, balanced-accuracy, f1 of classes; mae, rmse, r2 of values, in
        the units of `predict`.
    accumulate
        How many batches give one step of the optimizer; the gradient is that of their mean. Not with `truncate`.
    truncate
        Steps of truncated backpropagation through time: a batch is learned in parts of so many steps, with a step of
        the optimizer after each. The state is carried from part to part, the gradient is not. None for whole sequences.
    gradient_checkpointing
        Keep the tape of about sqrt(T) steps in place of T, for one more forward pass.
    distributed
        An `lstmcore.distributed.Engine` or its name, such as ``"mpi"``: each rank learns its rows of every batch. All
        ranks call `fit` with the same data; rank 0 alone shows progress, writes checkpoints and runs the callbacks.
    device
        ``"cuda"`` or ``"cuda:0"``, of the backend of the model's LSTM, which trains there; no step waits. None: host.
    resident_bytes
        Inputs of at most so many bytes stay on the device; None for a quarter of its free memory at the start.
    loss_every
        Steps on a device between two looks at the loss, which wait for it; a run that diverged ends there. None for
        the end of each epoch.

    Raises
    ------
    TypeError, ValueError
        A setting of another type or outside its domain.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> from lstmcore.training import Readout
    >>> model = SequenceModel(LSTM(2, 4, seed=0), Readout(4, 1, seed=0))
    >>> inputs = [np.full((length, 2), 0.1 * length) for length in range(3, 13)]
    >>> trainer = Trainer(model, loss="mean-squared-error", optimizer=Adam(0.01), epochs=2, quiet=True)
    >>> history = trainer.fit(inputs, [x.mean(axis=0)[:1] for x in inputs])
    >>> [epoch.number for epoch in history.epochs]
    [1, 2]
    """

    def __init__(  # long: one line for each setting  # noqa: PLR0913  (a public constructor)
        self,
        model: SequenceModel,
        *,
        loss: str | Loss = "cross-entropy",
        optimizer: Optimizer | None = None,
        epochs: int = 60,
        batch_size: int = 32,
        clip_norm: float | None = 1.0,
        validation: float = 0.1,
        chronological: bool = False,
        purge: int = 0,
        patience: int | None = None,
        drift_threshold: float | None = None,
        input_noise: float = 0.0,
        standardize: bool = True,
        standardize_targets: bool = False,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        quiet: bool = False,
        class_weight: ClassWeight | None = None,
        schedule: Schedule | None = None,
        callbacks: Sequence[Callback] | None = (),
        metrics: Sequence[str] = (),
        accumulate: int = 1,
        truncate: int | None = None,
        gradient_checkpointing: bool = False,
        distributed: Engine | str | None = None,
        device: str | None = None,
        resident_bytes: int | None = None,
        loss_every: int | None = None,
    ) -> None:
        if not isinstance(model, SequenceModel):
            raise TypeError(f"model: expected a SequenceModel; got {type(model).__name__}")
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an Optimizer such as Adam(0.001), or None; got {optimizer!r}")
        self.model, self.optimizer = model, optimizer
        self.loss = check_loss(loss, model, standardize_targets)
        self.epochs, self.batch_size = integer("epochs", epochs, 1), integer("batch_size", batch_size, 1)
        self.patience = None if patience is None else integer("patience", patience, 1)
        self.purge, self.seed = integer("purge", purge, 0), integer("seed", seed, 0)
        self.clip_norm = bound("clip_norm", clip_norm)
        self.drift_threshold = bound("drift_threshold", drift_threshold)
        self.input_noise = check_noise(input_noise, model)
        self.validation = check_validation(validation, self.purge, chronological)
        if checkpoint is not None:
            check_writable("checkpoint", checkpoint)
        self.chronological, self.checkpoint, self.quiet = bool(chronological), checkpoint, bool(quiet)
        self.standardize = bool(standardize) and model.embedding is None
        self.standardize_targets = bool(standardize_targets)
        self.class_weight, self.schedule = class_weight, schedule
        self.callbacks = check_helpers(schedule, callbacks)
        check_class_weight(class_weight, self.loss)
        self.metrics = check_metrics(metrics, self.loss.of_linear)
        self.accumulate = integer("accumulate", accumulate, 1)
        self.truncate = None if truncate is None else integer("truncate", truncate, 1)
        self.gradient_checkpointing = flag("gradient_checkpointing", gradient_checkpointing)
        check_parts(model, self.truncate, self.gradient_checkpointing, self.accumulate)
        self.ranks = ranks_of(distributed)
        self.device, self.resident_bytes = check_placing(device, resident_bytes, model, self.ranks.size)
        self.loss_every = None if loss_every is None else integer("loss_every", loss_every, 1)

    def fit(
        self,
        inputs: Any,
        targets: Targets | None = None,
        *,
        sample_weight: Any = None,
        validation_data: Any = None,
        resume: str | Path | None = None,
    ) -> History:
        """Train, then put the best epoch's weights (lowest validation loss) into the model.

        Without a validation set the last epoch's weights stay. An error or Ctrl-C leaves the best epoch's weights too.
        `SequenceModel.loss` becomes the loss of the run. The same weights give the same run: it begins at step 0.

        Parameters
        ----------
        inputs
            One finite array (T, I), or DataFrame, a sequence; T may differ. Or a `SequenceSource`, which is loaded a
            batch at a time, and once before the first epoch, to check and to standardise it.
        targets
            One a sequence: a class, or values (K,) in the units of the model's `predict`. With a readout at
            every step one array (T,) or (T, K) a sequence. A class is its number, its name or a one-hot row; entries
            of the class -100 do not count. Names are kept in the model's task, sorted, as ``classes``. None for a
            source, which has them; its classes are numbers, or names that the task has.
        sample_weight
            The weight of each sequence in the loss and the accuracy, at least 0. With a readout at every step it may be
            an array (T,) for each: of numbers, or of bool, a mask.
        validation_data
            ``(inputs, targets)`` or ``(inputs, targets, sample_weight)`` to watch the run, in place of the fraction
            `validation`; another source if `inputs` is one.
        resume
            A checkpoint of the same model, settings and data to go on from; `epochs` may differ, and `patience`: a run
            that it stopped goes on with a larger one. A run that a callback stopped stays stopped, unless the
            `on_fit_start` of a callback sets ``history.stopped = None``.

        Raises
        ------
        TypeError, ValueError
            Data that do not fit the model, a checkpoint of another run, or one of more than `epochs` epochs.
        DivergedError
            The loss is no longer finite. The model has the best epoch's weights, see `DivergedError.restored`.
        """
        model, optimizer = self.model, Adam() if self.optimizer is None else self.optimizer
        task, scalings, step = model.task, (model.input_scaling, model.target_scaling), model.lstm.step
        named = targets is not None and self.loss.of_linear and not model.classes
        if named and (names := find_classes(targets, model.readout.output_size)):
            model.task = model.task | {"classes": names}
        try:
            progress, sets, settings = self.ranks.agree(
                lambda: self._prepare((inputs, targets, sample_weight), validation_data, optimizer, resume)
            )
            self.ranks.check_same(
                model, {**settings, **progress.history.to_dict(), "epochs, patience": (self.epochs, self.patience)}
            )
        except (TypeError, ValueError, DistributedError):
            model.task, (model.input_scaling, model.target_scaling), model.lstm.step = task, scalings, step
            raise
        return self._run(progress, optimizer, sets, settings)

    def _prepare(
        self, data: tuple[Any, Any, Any], validation_data: Any, optimizer: Optimizer, resume: str | Path | None
    ) -> tuple[checkpoints.Progress, AnySets, dict[str, Any]]:
        """Return the start of the run, the sets, and what a resumed run must have in common with it."""
        sets = self._sets(data, validation_data)
        if self.patience is not None and not sets.held_out.size:
            raise ValueError("patience: needs a validation set; got validation=0 without validation_data")
        if resume is None and optimizer.steps:
            raise ValueError(
                f"optimizer: expected a new one for a new run; got one after {optimizer.steps} steps: make "
                "another, or go on with resume="
            )
        check_ranks(self.ranks.size, self.batch_size, sets.fit)
        settings = self._settings(sets, optimizer)
        if resume is None:
            progress = checkpoints.Progress(History(drift_threshold=self.drift_threshold))
            self._start(sets)
        else:
            progress = checkpoints.load_checkpoint(resume, self.model, optimizer, settings, self.epochs)
            progress.history.resume(self.patience)
        return progress, sets, settings

    def _run(
        self, progress: checkpoints.Progress, optimizer: Optimizer, sets: AnySets, settings: dict[str, Any]
    ) -> History:
        """Run the epochs that are left."""
        model, history = self.model, progress.history
        fit, held_out = (scale_examples(part, model, self.loss) for part in (sets.fit, sets.held_out))
        model.loss = self.loss
        recipe = Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})
        learner = Learner(model, self.loss, optimizer, recipe, self.schedule)
        ranks, leads = self.ranks, self.ranks.rank == 0
        callbacks = self.callbacks if leads else ()
        try:
            shown = shown_progress(self.epochs, len(history.epochs), self.quiet or not leads)
            run = feeding(self.device, model, fit, 0 if self.input_noise else self.resident_bytes)
            with ranks.one_end(), computing_on(self.device, model, optimizer), run as learner.feed, shown as show:
                for callback in callbacks:
                    callback.on_fit_start(model, history)
                history.stopped = ranks.decide(history.stopped, model)
                while len(history.epochs) < self.epochs and history.stopped is None:
                    self._epoch(progress, learner, fit, held_out)
                    for callback in callbacks:
                        history.stopped = callback.on_epoch_end(model, history) or history.stopped
                    history.stopped = ranks.decide(history.stopped, model)
                    if self.checkpoint is not None and leads:
                        checkpoints.try_to_save(self.checkpoint, model, optimizer, progress, settings)
                    show(history.epochs[-1])
        finally:
            if progress.best is not None:
                model.load_parameters(progress.best)
        for callback in callbacks:
            callback.on_fit_end(model, history)
        return history

    def _sets(self, data: tuple[Any, Any, Any], validation_data: Any) -> AnySets:
        """Return the checked and weighted training and validation sets."""
        model, loss = self.model, self.loss

        def divide(count: int, classes: Array | None) -> tuple[Rows, Rows]:
            options: dict[str, Any] = {"chronological": self.chronological, "purge": self.purge}
            return split(count, self.validation, seed=self.seed, classes=classes, **options)

        check_validation_data(validation_data, data)
        if data[1] is None:
            scalings = (self.standardize and model.input_scaling is None,
                        self.standardize_targets and model.target_scaling is None)  # fmt: skip
            plan = StreamPlan(divide, self.class_weight, *scalings)
            return stream_sets(model, loss, data[0], validation_data, plan)
        given = None if validation_data is None else check_examples(model, loss, *validation_data)
        classes = loss.of_linear and model.readout.steps != "every"
        sets = make_sets(check_examples(model, loss, *data), given, divide, classes)
        return weigh(sets, model, loss, self.class_weight)

    def _start(self, sets: AnySets) -> None:
        """Fit the standardisations that the model lacks to the training part, and set its LSTM to step 0."""
        model = self.model
        if self.standardize and model.input_scaling is None:
            model.input_scaling = sets.input_scaling()
        if self.standardize_targets and model.target_scaling is None:
            model.target_scaling = sets.target_scaling(self.loss)
        model.lstm.step = 0

    def _epoch(self, progress: checkpoints.Progress, learner: Learner, fit: ExampleSet, held_out: ExampleSet) -> None:
        history, before, held = progress.history, self.model.parameters, held_out.size > 0
        number = len(history.epochs) + 1
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # it ends in a DivergedError
                means = learner.learn_epoch(number, fit, history.epochs)
                seen = self.ranks.measure(self.model, held_out if held else fit, self.loss, self.metrics)
            if not math.isfinite(seen.loss):
                raise diverged(number, "loss", seen.loss)
        except DivergedError as error:
            self.model.load_parameters(before)
            raise restored(error, history) from None
        watched = (seen.loss, seen.accuracy) if held else (None, None)
        loss, accuracy, norm, lr = means
        epoch = Epoch(number, loss, accuracy, watched[0], watched[1], seen.drift, norm, lr, seen.metrics)
        history.epochs.append(epoch)
        if held and history.within(epoch):
            best = history.epochs[history.best - 1].validation_loss if history.best else None
            if best is None or seen.loss < best:
                history.best, progress.best = number, on_host(self.model.parameters)
        history.stopped = history.reason(self.patience)

    def _settings(self, sets: AnySets, optimizer: Optimizer) -> dict[str, Any]:
        """Return all that must be the same for a resumed run to be the same run."""
        names = ["batch_size", "clip_norm", "validation", "chronological", "purge", "drift_threshold"]
        names += ["input_noise", "standardize", "standardize_targets", "seed"]
        later: dict[str, Any] = {
            name: getattr(self, name) for name, default in _LATER.items() if getattr(self, name) != default
        }
        if self.schedule is not None:
            later["schedule"] = self.schedule.to_dict()
        if self.loss.settings:
            later["loss_settings"] = self.loss.settings
        settings: dict[str, Any] = json_types(
            "settings",
            {
                **{name: getattr(self, name) for name in names},
                "loss": self.loss.name,
                "optimizer": optimizer.name,
                "optimizer_settings": dict(optimizer.settings),
                "lstm_seed": self.model.lstm.seed,
                **sets.digests(),
                **later,
            },
        )
        return settings
