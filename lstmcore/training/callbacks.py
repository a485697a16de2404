"""Callbacks of the trainer, and trackers of experiments as such."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmcore.training.history import Epoch, History

if TYPE_CHECKING:
    from lstmcore.training.model import SequenceModel


class Callback:
    """Work of one's own at the start, after each epoch and at the end of a run. Each method may be left out.

    An exception in one ends the run; the model has its best weights then.

    Examples
    --------
    >>> class Printer(Callback):
    ...     def on_epoch_end(self, model, history):
    ...         print(f"{history.epochs[-1].loss:.1f}")
    ...         return "it is good enough" if history.epochs[-1].loss < 0.5 else None
    >>> Printer().on_epoch_end(None, History([Epoch(1, 0.4, None, None, None, 0.1, 1.0)]))
    0.4
    'it is good enough'
    """

    def on_fit_start(self, model: SequenceModel, history: History) -> None:
        """Run before the first epoch; `history` has the epochs of a resumed run.

        A run that a callback stopped stays stopped if it is resumed; ``history.stopped = None`` here lets it go on.
        """

    def on_epoch_end(self, model: SequenceModel, history: History) -> str | None:
        """Run after the epoch ``history.epochs[-1]``; a text ends the run, and is kept as `History.stopped`.

        The model has the weights of that epoch.
        """
        return None

    def on_fit_end(self, model: SequenceModel, history: History) -> None:
        """Run after the last epoch; the model has the weights that it keeps."""


def epoch_numbers(epoch: Epoch) -> dict[str, float]:
    """Return the numbers of an epoch by name; those that it lacks are left out.

    Examples
    --------
    >>> epoch_numbers(Epoch(1, 0.4, None, None, None, 0.1, 1.0, metrics={"f1": 0.5}))
    {'loss': 0.4, 'drift': 0.1, 'gradient_norm': 1.0, 'metrics/f1': 0.5}
    """
    values = {name: value for name, value in asdict(epoch).items() if name not in ("number", "metrics")}
    metrics = {f"metrics/{name}": value for name, value in epoch.metrics.items()}
    return {name: value for name, value in values.items() if value is not None} | metrics


class TensorBoard(Callback):
    """The numbers of each epoch in a folder that TensorBoard shows; by tensorboardX, which must be installed.

    Parameters
    ----------
    folder
        Where the event file goes.

    Examples
    --------
    >>> tracker = TensorBoard("runs/first")
    >>> tracker.folder
    'runs/first'
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        self._writer: Any = None

    def on_fit_start(self, model: SequenceModel, history: History) -> None:
        """Open the event file."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard: expected tensorboardX; it is not installed: pip install tensorboardX"
            ) from error
        self._writer = SummaryWriter(self.folder)

    def on_epoch_end(self, model: SequenceModel, history: History) -> None:
        """Write the numbers of the epoch."""
        epoch = history.epochs[-1]
        for name, value in epoch_numbers(epoch).items():
            self._writer.add_scalar(name, value, epoch.number)

    def on_fit_end(self, model: SequenceModel, history: History) -> None:
        """Close the event file."""
        self._writer.close()


class MLflow(Callback):
    """The numbers of each epoch in the active run of MLflow, which must be installed.

    Without an active run one is started, and ended after the last epoch. A run that fails leaves it open.

    Examples
    --------
    >>> isinstance(MLflow(), Callback)
    True
    """

    def __init__(self) -> None:
        self._library: Any = None
        self._own = False

    def on_fit_start(self, model: SequenceModel, history: History) -> None:
        """Start a run of MLflow if none is active."""
        try:
            import mlflow
        except ImportError as error:
            raise ImportError("MLflow: expected mlflow; it is not installed: pip install mlflow") from error
        self._library, self._own = mlflow, mlflow.active_run() is None
        if self._own:
            mlflow.start_run()

    def on_epoch_end(self, model: SequenceModel, history: History) -> None:
        """Log the numbers of the epoch."""
        epoch = history.epochs[-1]
        self._library.log_metrics(epoch_numbers(epoch), step=epoch.number)

    def on_fit_end(self, model: SequenceModel, history: History) -> None:
        """End the run of MLflow, if it was started here."""
        if self._own:
            self._library.end_run()
