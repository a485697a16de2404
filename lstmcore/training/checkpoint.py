"""The state of a training run between two epochs, as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.config import integer
from lstmcore.files import UnwritableError
from lstmcore.notices import notify
from lstmcore.tensor_file import check_tensors, read_tensors, write_tensors
from lstmcore.training.history import History
from lstmcore.training.model import SequenceModel
from lstmcore.training.model_file import SCALINGS, model_header, scaling_tensors, take_scalings
from lstmcore.training.optimizers import Optimizer
from lstmcore.training.placing import on_host

Array = npt.NDArray[Any]
CHECKPOINT_FORMAT: Final = "lstmcore-checkpoint"
_MOMENTS: Final = "optimizer."
#: A setting that may differ, which older versions wrote.
_FREE: Final = "patience"


@dataclass(slots=True)
class Progress:
    """The state of a run: its history, and the parameters of its best epoch so far, on the host (None: none yet)."""

    history: History
    best: dict[str, Array] | None = None


def save_checkpoint(
    path: str | Path, model: SequenceModel, optimizer: Optimizer, progress: Progress, settings: Mapping[str, Any]
) -> None:
    """Write all that a run needs to go on as if it had not been interrupted.

    Parameters
    ----------
    path
        The file to write.
    model, optimizer, progress
        The state of the run.
    settings
        All that must be the same when the run goes on, in JSON types.

    Raises
    ------
    ValueError
        A path that cannot be written.
    """
    tensors = {f"model.{name}": value for name, value in on_host(model.parameters).items()}
    tensors |= {f"best.{name}": value for name, value in (progress.best or {}).items()}
    tensors |= {f"optimizer.{name}": value for name, value in on_host(optimizer.state()).items()}
    tensors |= {f"scaling.{name}": value for name, value in scaling_tensors(model.parts.scalings).items()}
    header = {
        "model": model_header(model.parts),
        "settings": dict(settings),
        "history": progress.history.to_dict(),
        "optimizer_steps": optimizer.steps,
        "lstm_step": model.lstm.step,
    }
    write_tensors(path, CHECKPOINT_FORMAT, tensors, header)


def try_to_save(
    path: str | Path, model: SequenceModel, optimizer: Optimizer, progress: Progress, settings: Mapping[str, Any]
) -> None:
    """Do what `save_checkpoint` does; a file that cannot be written is a warning, since the run itself goes on."""
    try:
        save_checkpoint(path, model, optimizer, progress, settings)
    except (OSError, UnwritableError) as error:
        notify(
            f"checkpoint: {path} could not be written after epoch {len(progress.history.epochs)} "
            f"({getattr(error, 'problem', error)}); the run goes on, and tries again after the next epoch",
            3,
        )


def load_checkpoint(
    path: str | Path, model: SequenceModel, optimizer: Optimizer, settings: Mapping[str, Any], epochs: int
) -> Progress:
    """Put `model` and `optimizer` into the state of a checkpoint; if it is refused, both stay as they are.

    Parameters
    ----------
    path
        A file that `save_checkpoint` wrote.
    model, optimizer
        Those of the run, as it started.
    settings
        Those of the run.
    epochs
        How many epochs the run shall have.

    Raises
    ------
    ValueError
        A truncated, damaged or foreign file, a newer version, another model, other settings or other data than those
        of the run, or more than `epochs` epochs; the message names the file and the first difference.
    """
    tensors, header = read_tensors(path, CHECKPOINT_FORMAT)
    try:
        for key in ("model", "settings", "history", "optimizer_steps", "lstm_step"):
            if key not in header:
                raise ValueError(f"{key!r} missing in the header")
        _check_same("model", model_header(model.parts), header["model"])
        _check_same("settings", dict(settings), header["settings"])
        history = _read_history(header["history"], epochs)
        steps = integer("optimizer_steps", header["optimizer_steps"], len(history.epochs))
        lstm_step = integer("lstm_step", header["lstm_step"], len(history.epochs))
        if lstm_step >= 2**32:
            raise ValueError(f"lstm_step: expected at most 2**32 - 1; got {lstm_step}")
        parameters = model.parameters
        moments = {key.removeprefix(_MOMENTS): tensors.pop(key) for key in list(tensors) if key.startswith(_MOMENTS)}
        for name, value in moments.items():
            if not np.isfinite(value).all():
                raise ValueError(f"tensor {_MOMENTS + name!r}: expected finite numbers; got NaN or infinity")
        scalings = take_scalings(tensors, "scaling.")
        widths = (model.lstm.input_size, model.readout.output_size)
        for (name, scaling), width, fitted in zip(
            scalings.items(), widths, ("standardize", "standardize_targets"), strict=True
        ):
            if (scaling is not None) != (settings[fitted] or getattr(model, name) is not None):
                raise ValueError(f"{name}: expected {'none' if scaling else 'mean and scale'} for this run")
            if scaling is not None and scaling.mean.shape != (width,):
                raise ValueError(f"{name}: expected mean and scale of shape ({width},); got {scaling.mean.shape}")
        parts = ("model.", "best.") if history.best is not None else ("model.",)
        shapes = {part + name: value.shape for part in parts for name, value in parameters.items()}
        check_tensors(tensors, shapes, model.readout.dtype)
        optimizer.load_state(steps, moments, parameters)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    values = {part: {n.removeprefix(part): v for n, v in tensors.items() if n.startswith(part)} for part in parts}
    model.load_parameters(values["model."])
    model.lstm.step = lstm_step
    model.input_scaling, model.target_scaling = (scalings[name] for name in SCALINGS)
    return Progress(history, values.get("best."))


def _read_history(values: Any, epochs: int) -> History:
    """Return the history of a header; more than `epochs` epochs are a ValueError."""
    history = History.from_dict(values)
    if (done := len(history.epochs)) > epochs:
        raise ValueError(f"epochs: expected at least the {done} that the checkpoint has; got {epochs}")
    return history


def _check_same(what: str, wanted: Mapping[str, Any], found: Any) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{what} in the header: expected a JSON object; got {type(found).__name__}")
    for key in sorted((set(wanted) | set(found)) - {_FREE}):
        if wanted.get(key) != found.get(key):
            place, want, got = _first_difference(key, wanted.get(key), found.get(key))
            raise ValueError(f"checkpoint of another run: expected {what} {place}={want!r}; got {got!r}")


def _first_difference(place: str, want: Any, got: Any) -> tuple[str, Any, Any]:
    """Return where two unequal values differ first, such as ``lstm.config.hidden_size``, and both values there."""
    if isinstance(want, dict) and isinstance(got, dict):
        for key in sorted({*want, *got}):
            if want.get(key) != got.get(key):
                return _first_difference(f"{place}.{key}", want.get(key), got.get(key))
    return place, want, got
