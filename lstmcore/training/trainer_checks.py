"""Checks of the settings of a `Trainer`. Each error names the setting."""

from __future__ import annotations

from collections.abc import Iterable, Sized

from lstmcore.lstm import LSTM
from lstmcore.scalars import finite
from lstmcore.training.callbacks import Callback
from lstmcore.training.losses import Loss, make_loss, require_weighted
from lstmcore.training.model import SequenceModel
from lstmcore.training.network import Examples, ExampleSet
from lstmcore.training.schedules import Schedule
from lstmcore.training.streams import is_source


def check_loss(loss: str | Loss, model: SequenceModel, standardize_targets: bool) -> Loss:
    """Return the loss of a name, or the loss; raise unless it suits the readout and the scaling of the targets."""
    made = make_loss(loss)
    if made.of_linear and model.readout.activation not in ("softmax", "none"):
        raise ValueError(
            f"loss: {made.name} needs a readout with activation softmax or none; got {model.readout.activation!r}"
        )
    if made.of_linear and (standardize_targets or model.target_scaling is not None):
        raise ValueError(f"standardize_targets: expected no target_scaling of class numbers, for {made.name}")
    made.target_size(model.readout.output_size)
    return made


def bound(name: str, value: object) -> float | None:
    """Check a number > 0, or None."""
    if value is None:
        return None
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a finite number > 0, or None for none; got {number!r}")
    return number


def check_noise(value: object, model: SequenceModel) -> float:
    """Check a number >= 0, 0 for a model that reads whole numbers, and return it as a float."""
    number = finite("input_noise", value)
    if number < 0:
        raise ValueError(f"input_noise: expected a finite number >= 0; got {value!r}")
    if number and model.embedding is not None:
        raise ValueError(f"input_noise: expected 0 with an embedding, which reads whole numbers; got {value!r}")
    return number


def check_validation(validation: object, purge: int, chronological: bool) -> float:
    """Check the fraction that is held out, and what needs it; return it as a float."""
    fraction = finite("validation", validation)
    if not 0 <= fraction < 1:
        raise ValueError(f"validation: expected a fraction in [0, 1); got {validation!r}")
    if purge and not chronological:
        raise ValueError(f"purge: needs chronological=True; got purge={purge} with chronological=False")
    return fraction


def check_validation_data(validation_data: object, data: tuple[object, object, object]) -> None:
    """Raise unless this is None or like `data`, the inputs, targets and weights of a run: of a source, a source."""
    _, targets, sample_weight = data
    if targets is None:
        if sample_weight is not None:
            raise ValueError("sample_weight: expected None with a source of sequences; got weights")
        if validation_data is not None and not is_source(validation_data):
            kind = type(validation_data).__name__
            raise TypeError(f"validation_data: expected a source, as the training data are, or None; got {kind}")
    elif validation_data is not None and (
        not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3)
    ):
        raise TypeError(
            "validation_data: expected (inputs, targets) or (inputs, targets, sample_weight); got "
            f"{type(validation_data).__name__}"
        )


def check_helpers(schedule: object, callbacks: object) -> tuple[Callback, ...]:
    """Return the callbacks; raise TypeError unless these are a `Schedule` or None, and `Callback` objects or None."""
    if schedule is not None and not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected a Schedule such as Cosine(60), or None; got {schedule!r}")
    if callbacks is None:
        return ()
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks: expected a sequence of Callback objects, or None; got {type(callbacks).__name__}")
    checked = tuple(callbacks)
    for callback in checked:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks: expected Callback objects; got {callback!r}")
    return checked


def check_class_weight(class_weight: object, loss: Loss) -> None:
    """Raise unless these are weights of classes, for a loss that has classes and takes weights; or None."""
    if class_weight is None:
        return
    if not isinstance(class_weight, Sized):
        kind = type(class_weight).__name__
        raise TypeError(f"class_weight: expected 'balanced', a mapping or a number for each class; got {kind}")
    require_weighted(loss)
    if not loss.of_linear:
        raise ValueError(f"class_weight: expected a loss of classes; got {loss.name}")


def check_parts(model: SequenceModel, truncate: int | None, gradient_checkpointing: bool, accumulate: int) -> None:
    """Raise ValueError if sequences are to be learned in parts, and the model or another setting does not allow it."""
    if truncate and accumulate > 1:
        raise ValueError(f"truncate, accumulate: expected one of the two; got truncate={truncate} with {accumulate=}")
    if truncate and gradient_checkpointing:
        raise ValueError("truncate, gradient_checkpointing: expected one of the two; got both")
    name = "truncate" if truncate else "gradient_checkpointing"
    if not truncate and not gradient_checkpointing:
        return
    if not isinstance(model.lstm, LSTM) or model.lstm.stack.num_directions == 2:
        raise ValueError(f"{name}: expected an LSTM in one direction, which can read parts; got {model.lstm}")
    if truncate and model.readout.steps != "every":
        raise ValueError(f"truncate: expected a readout with steps='every'; got {model.readout.steps!r}")
    if truncate and model.pooling is not None:
        raise ValueError("truncate: expected a model without attention pooling, which reads all steps; got one with it")


def check_ranks(size: int, batch_size: int, fit: ExampleSet) -> None:
    """Raise ValueError if there are more ranks than rows of a batch, or several and a source of sequences."""
    if size > 1 and not isinstance(fit, Examples):
        raise ValueError(
            f"distributed: expected inputs and targets in memory; got a source that loads them, with {size} ranks: "
            "train in one process, or give the arrays"
        )
    if size > (rows := min(batch_size, fit.size)):
        raise ValueError(
            f"distributed: expected at most {rows} ranks, one a row of a batch ({batch_size=}, {fit.size} training "
            f"sequences); got {size}: start fewer"
        )
