"""The state of a training run between two epochs, as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.training.files import model_header, read_tensors, scaling_tensors, write_tensors
from lstmcore.training.history import History
from lstmcore.training.model import SequenceModel
from lstmcore.training.optimizers import Optimizer
from lstmcore.training.scaling import Standardizer

Array = npt.NDArray[Any]
CHECKPOINT_FORMAT: Final = "lstmcore-checkpoint"


@dataclass(slots=True)
class Progress:
    """How far a run came: its history and the parameters of its best epoch so far (None: none yet)."""

    history: History
    best: dict[str, Array] | None = None


def save_checkpoint(
    path: str | Path, model: SequenceModel, optimizer: Optimizer, progress: Progress, settings: Mapping[str, Any]
) -> None:
    """Write all that a run needs to go on as if it had not been cut."""
    tensors = {f"model.{name}": value for name, value in model.parameters.items()}
    tensors |= {f"best.{name}": value for name, value in (progress.best or {}).items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.state().items()}
    tensors |= {f"scaling.{name}": value for name, value in scaling_tensors(model).items()}
    header = {
        "model": model_header(model),
        "settings": dict(settings),
        "history": progress.history.to_dict(),
        "optimizer_steps": optimizer.steps,
        "lstm_step": model.lstm.step,
    }
    write_tensors(path, CHECKPOINT_FORMAT, tensors, header)


def load_checkpoint(
    path: str | Path, model: SequenceModel, optimizer: Optimizer, settings: Mapping[str, Any]
) -> Progress:
    """Put `model` and `optimizer` into the state of a checkpoint.

    Raises
    ------
    ValueError
        A truncated or foreign file, a newer version, another model, other settings or other data than those of the
        run; the message names the file and the first difference.
    """
    tensors, header = read_tensors(path, CHECKPOINT_FORMAT)
    try:
        _check_same("model", model_header(model), header["model"])
        _check_same("settings", dict(settings), header["settings"])
        groups: dict[str, dict[str, Array]] = {"model": {}, "best": {}, "optimizer": {}, "scaling": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            if not np.isfinite(value).all():
                raise ValueError(f"tensor {key!r}: expected finite numbers; got NaN or infinity")
            groups[part][name] = value
        for scaling in ("input_scaling", "target_scaling"):
            if f"{scaling}.mean" in groups["scaling"]:
                parts = (groups["scaling"][f"{scaling}.{part}"] for part in ("mean", "scale"))
                setattr(model, scaling, Standardizer(*parts))
        history = History.from_dict(header["history"])
        steps, lstm_step = int(header["optimizer_steps"]), int(header["lstm_step"])
        model.load_parameters(groups["model"])
        optimizer.load_state(steps, groups["optimizer"])
    except (KeyError, TypeError, ValueError) as error:
        text = f"{error} is not part of a checkpoint, or missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {text}") from error
    model.lstm.step = lstm_step
    return Progress(history, groups["best"] or None)


def _check_same(what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for key in sorted(set(wanted) | set(found)):
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"checkpoint of another run: expected {what} {key}={wanted.get(key)!r}; got {found.get(key)!r}"
            )
