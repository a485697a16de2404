"""The training loop."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lstmcore.config import finite, integer
from lstmcore.files import UnwritableError, check_writable
from lstmcore.notices import notify
from lstmcore.training import checkpoint as checkpoints
from lstmcore.training.batches import batches_by_length, split
from lstmcore.training.data_checks import Targets
from lstmcore.training.history import Epoch, History
from lstmcore.training.losses import Loss, make_loss
from lstmcore.training.model import SequenceModel
from lstmcore.training.optimizers import Adam, Optimizer, clip_by_global_norm, global_norm
from lstmcore.training.scaling import Standardizer

Array = npt.NDArray[Any]


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
    >>> from lstmcore.training import SGD, Readout
    >>> model = SequenceModel(LSTM(2, 4, seed=0), Readout(4, 1, seed=0))
    >>> trainer = Trainer(model, loss="mean-squared-error", optimizer=SGD(1e30), clip_norm=None, quiet=True)
    >>> inputs = [np.full((length, 2), 0.1 * length) for length in range(3, 13)]
    >>> trainer.fit(inputs, [x.mean(axis=0)[:1] for x in inputs])
    Traceback (most recent call last):
    lstmcore.training.trainer.DivergedError: training diverged in epoch 1: ...
    """

    history: History
    restored: int | None = None


class Trainer:
    """Trains a `SequenceModel`.

    The same seed, data and settings on the same machine give the same run again, bit for bit, also if the run
    was interrupted and resumed from a checkpoint.

    Parameters
    ----------
    model
        Training starts from its weights.
    loss
        ``"cross-entropy"`` (class numbers; the readout's activation is softmax or none) or ``"mean-squared-error"``.
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
        Fit ``model.input_scaling`` on the training part if the model has none.
    standardize_targets
        The same for ``model.target_scaling``, of a regression.
    seed
        Order of the batches, validation split and input noise. (Weights and dropout follow from the LSTM's seed.)
    checkpoint
        File to write after every epoch; None for none. If it cannot be written, for example on a full disk, that is
        a warning: the file before it stays, and the run goes on.
    quiet
        No progress bar.

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
    ) -> None:
        if not isinstance(model, SequenceModel):
            raise TypeError(f"model: expected a SequenceModel; got {type(model).__name__}")
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an Optimizer such as Adam(0.001), or None; got {optimizer!r}")
        self.model, self.optimizer = model, optimizer
        self.loss = _checked_loss(loss, model, standardize_targets)
        self.epochs, self.batch_size = integer("epochs", epochs, 1), integer("batch_size", batch_size, 1)
        self.patience = None if patience is None else integer("patience", patience, 1)
        self.purge, self.seed = integer("purge", purge, 0), integer("seed", seed, 0)
        self.clip_norm = _bound("clip_norm", clip_norm)
        self.drift_threshold = _bound("drift_threshold", drift_threshold)
        self.input_noise, self.validation = finite("input_noise", input_noise), finite("validation", validation)
        if self.input_noise < 0:
            raise ValueError(f"input_noise: expected a finite number >= 0; got {input_noise!r}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation: expected a fraction in [0, 1); got {validation!r}")
        if patience is not None and self.validation == 0:
            raise ValueError("patience: needs a validation set; got validation=0")
        if self.purge and not chronological:
            raise ValueError(f"purge: needs chronological=True; got purge={purge} with chronological=False")
        if checkpoint is not None:
            check_writable("checkpoint", checkpoint)
        self.chronological, self.checkpoint, self.quiet = bool(chronological), checkpoint, bool(quiet)
        self.standardize, self.standardize_targets = bool(standardize), bool(standardize_targets)

    def fit(self, inputs: Sequence[Array], targets: Targets, *, resume: str | Path | None = None) -> History:
        """Train, then put the best epoch's weights (lowest validation loss) into the model.

        Without a validation set the last epoch's weights stay. An error or Ctrl-C leaves the best epoch's weights too.
        `SequenceModel.loss` becomes the loss of the run. The same weights give the same run: it begins at step 0.

        Parameters
        ----------
        inputs
            One finite array (T, I) a sequence; T may differ.
        targets
            One a sequence: class numbers, or values (K,) in the units of the model's `predict`. With a readout at
            every step one array (T,) or (T, K) a sequence.
        resume
            A checkpoint of the same model, settings and data to go on from; only `epochs` may differ.

        Raises
        ------
        TypeError, ValueError
            Data that do not fit the model, a checkpoint of another run, or one of more than `epochs` epochs.
        DivergedError
            The loss is no longer finite. The model has the best epoch's weights, see `DivergedError.restored`.
        """
        model = self.model
        model.check_inputs(inputs)
        checked = model.check_targets(targets, inputs, self.loss)
        classes = np.asarray(checked) if self.loss.of_linear and model.readout.steps == "last" else None
        fit_rows, check_rows = split(
            len(inputs),
            self.validation,
            seed=self.seed,
            classes=classes,
            chronological=self.chronological,
            purge=self.purge,
        )
        optimizer = Adam() if self.optimizer is None else self.optimizer
        if resume is None and optimizer.steps:
            raise ValueError(
                f"optimizer: expected a new one for a new run; got one after {optimizer.steps} steps: make another, or "
                "go on with resume="
            )
        progress = checkpoints.Progress(History(drift_threshold=self.drift_threshold))
        settings = self._settings(inputs, checked, optimizer)
        if resume is not None:
            progress = checkpoints.load_checkpoint(resume, model, optimizer, settings, self.epochs)
        else:
            self._start([inputs[row] for row in fit_rows], [checked[row] for row in fit_rows])
        scaled, wanted = model.scaled(inputs), self._scaled_targets(checked)
        model.loss = self.loss
        history = progress.history
        try:
            with self._bar() as bar:
                task = bar.add_task("training", total=self.epochs, completed=len(history.epochs), numbers="")
                while len(history.epochs) < self.epochs and history.stopped is None:
                    self._epoch(progress, optimizer, scaled, wanted, fit_rows, check_rows)
                    if self.checkpoint is not None:
                        self._save_checkpoint(self.checkpoint, optimizer, progress, settings)
                    bar.update(task, advance=1, numbers=_numbers(history.epochs[-1]))
        finally:
            if progress.best is not None:
                model.load_parameters(progress.best)
        return history

    def _start(self, inputs: list[Array], targets: list[Array]) -> None:
        """Fit the standardisations that the model lacks to the training part, and set its LSTM to step 0."""
        model = self.model
        if self.standardize and model.input_scaling is None:
            model.input_scaling = Standardizer.fit(inputs)
        if self.standardize_targets and model.target_scaling is None:
            model.target_scaling = Standardizer.fit(targets)
        model.lstm.step = 0

    def _save_checkpoint(
        self, path: str | Path, optimizer: Optimizer, progress: checkpoints.Progress, settings: dict[str, Any]
    ) -> None:
        """Write the checkpoint; a file that cannot be written is a warning, since the run itself goes on."""
        try:
            checkpoints.save_checkpoint(path, self.model, optimizer, progress, settings)
        except (OSError, UnwritableError) as error:
            notify(
                f"checkpoint: {path} could not be written after epoch {len(progress.history.epochs)} "
                f"({error}); the run goes on, and tries again after the next epoch",
                3,
            )

    def _epoch(
        self,
        progress: checkpoints.Progress,
        optimizer: Optimizer,
        inputs: list[Array],
        targets: list[Array],
        fit_rows: npt.NDArray[np.intp],
        check_rows: npt.NDArray[np.intp],
    ) -> None:
        history, before = progress.history, self.model.parameters
        number, rows = len(history.epochs) + 1, check_rows if check_rows.size else fit_rows
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # it ends in a DivergedError
                loss, accuracy, norm = self._learn(number, optimizer, inputs, targets, fit_rows)
                seen = self.model.measure([inputs[row] for row in rows], [targets[row] for row in rows], self.loss)
            if not math.isfinite(seen.loss):
                raise _diverged(number, "loss", seen.loss)
        except DivergedError as error:
            self.model.load_parameters(before)
            raise _restored(error, history) from None
        held = (seen.loss, seen.accuracy) if check_rows.size else (None, None)
        history.epochs.append(Epoch(number, loss, accuracy, held[0], held[1], seen.drift, norm))
        within = self.drift_threshold is None or seen.drift <= self.drift_threshold
        if not within:
            history.stopped = f"state drift {seen.drift:.4g} above the threshold {self.drift_threshold:.4g}"
        if check_rows.size and within:
            best = history.epochs[history.best - 1].validation_loss if history.best else None
            if best is None or seen.loss < best:
                history.best, progress.best = number, self.model.parameters
            elif self.patience is not None and number - (history.best or 0) >= self.patience:
                history.stopped = f"no lower validation loss for {self.patience} epochs"

    def _learn(
        self,
        number: int,
        optimizer: Optimizer,
        inputs: list[Array],
        targets: list[Array],
        rows: npt.NDArray[np.intp],
    ) -> tuple[float, float | None, float]:
        noise = np.random.default_rng(np.random.SeedSequence((self.seed, number, 1)))
        total, right, entries, norms = 0.0, 0, 0, 0.0
        known = True
        batches = batches_by_length([len(inputs[row]) for row in rows], self.batch_size, seed=self.seed, epoch=number)
        for batch in batches:
            chosen = rows[batch]
            x = [inputs[row] for row in chosen]
            if self.input_noise:
                x = [s + (self.input_noise * noise.standard_normal(s.shape)).astype(s.dtype) for s in x]
            learned = self.model.learn(x, [targets[row] for row in chosen], self.loss)
            gradients, norm = learned.gradients, global_norm(learned.gradients)
            if not (math.isfinite(learned.loss) and math.isfinite(norm)):
                raise _diverged(number, "loss and gradient norm", (learned.loss, norm))
            if self.clip_norm is not None:
                gradients, _ = clip_by_global_norm(gradients, self.clip_norm)
            stepped = optimizer.step(self.model.parameters, gradients)
            for name, value in stepped.items():
                if not np.isfinite(value).all():
                    raise _diverged(number, "parameter", f"{name} is no longer finite")
            self.model.load_parameters(stepped)
            known = known and learned.right is not None
            total, right = total + learned.loss * learned.entries, right + (learned.right or 0)
            entries, norms = entries + learned.entries, norms + norm
        entries = max(entries, 1)
        return total / entries, right / entries if known else None, norms / len(batches)

    def _scaled_targets(self, targets: list[Array]) -> list[Array]:
        if self.loss.of_linear:
            return targets
        dtype, scaling = self.model.readout.dtype, self.model.target_scaling
        with np.errstate(over="ignore"):
            scaled = [t.astype(dtype) if scaling is None else scaling.apply(t, dtype) for t in targets]
        for index, target in enumerate(scaled):
            if not np.isfinite(target).all():
                raise ValueError(
                    f"targets[{index}]: expected numbers that fit into {dtype}, standardised where the model does; got "
                    f"up to {np.abs(targets[index]).max():.3g}: bring them nearer to 1, or use standardize_targets=True"
                )
        return scaled

    def _settings(self, inputs: Sequence[Array], targets: list[Array], optimizer: Optimizer) -> dict[str, Any]:
        """Return all that must be the same for a resumed run to be the same run."""
        digest = hashlib.sha256()
        for array in (*inputs, *targets):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        names = ["batch_size", "clip_norm", "validation", "chronological", "purge", "patience", "drift_threshold"]
        names += ["input_noise", "standardize", "standardize_targets", "seed"]
        return {
            **{name: getattr(self, name) for name in names},
            "loss": self.loss.name,
            "optimizer": optimizer.name,
            "optimizer_settings": optimizer.settings,
            "lstm_seed": self.model.lstm.seed,
            "data_sha256": digest.hexdigest(),
        }

    def _bar(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        return Progress(*columns, console=Console(stderr=True), disable=self.quiet)


def _checked_loss(loss: str | Loss, model: SequenceModel, standardize_targets: bool) -> Loss:
    """Return the loss of a name, or the loss; raise unless it suits the readout and the scaling of the targets."""
    made = make_loss(loss)
    if made.of_linear and model.readout.activation not in ("softmax", "none"):
        raise ValueError(
            f"loss: {made.name} needs a readout with activation softmax or none; got {model.readout.activation!r}"
        )
    if made.of_linear and (standardize_targets or model.target_scaling is not None):
        raise ValueError(f"standardize_targets: expected no target_scaling of class numbers, for {made.name}")
    return made


def _bound(name: str, value: object) -> float | None:
    """Check a number > 0, or None."""
    if value is None:
        return None
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a finite number > 0, or None for none; got {number!r}")
    return number


def _diverged(epoch: int, what: str, value: object) -> DivergedError:
    return DivergedError(f"training diverged in epoch {epoch}: {what} {value}: lower the learning rate or clip_norm")


def _restored(error: DivergedError, history: History) -> DivergedError:
    """Return the error with the epoch whose weights the model has again."""
    restored = history.best or len(history.epochs) or None
    kept = f"epoch {restored}" if restored else "the start"
    diverged = DivergedError(f"{error}; the model has the weights of {kept} again: go on from them in a new run")
    diverged.history, diverged.restored = history, restored
    return diverged


def _numbers(epoch: Epoch) -> str:
    text = f"loss {epoch.loss:.4f}"
    if epoch.validation_loss is not None:
        text += f"  validation {epoch.validation_loss:.4f}"
    if epoch.validation_accuracy is not None:
        text += f"  accuracy {epoch.validation_accuracy:.1%}"
    return text + f"  drift {epoch.drift:.2f}"
