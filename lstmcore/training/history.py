"""The record of a training run, epoch by epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from lstmcore.config import finite, integer

#: How the trainer's own reasons to end a run begin.
_DRIFT: Final = "state drift"
_PATIENCE: Final = "no lower validation loss for"


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch.

    Attributes
    ----------
    number
        From 1.
    loss, accuracy
        Means over the training set while its batches were learned from (dropout and input noise on); `accuracy`
        is None for a regression.
    validation_loss, validation_accuracy
        After the epoch; None without a validation set.
    drift
        State drift after the epoch: the L2 distance between the memory cell at the start and at the end of a
        sequence, averaged over the validation set (over the training set without one).
    gradient_norm
        Mean global norm of the gradients before clipping.
    lr
        The learning rate at the end of the epoch; None in the file of an older version.
    metrics
        Name -> value of the trainer's `metrics`, on the validation set (on the training set without one).

    Examples
    --------
    >>> epoch = Epoch(1, loss=0.7, accuracy=None, validation_loss=0.9, validation_accuracy=None,
    ...               drift=0.4, gradient_norm=0.2)
    >>> epoch.validation_loss
    0.9
    """

    number: int
    loss: float
    accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    drift: float
    gradient_norm: float
    lr: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class History:
    """The epochs of a run, the best one, and why the run ended early, if it did.

    `best` is None if the weights of the last epoch were kept: without a validation set, or if the drift was
    above its threshold from the first epoch on.

    Examples
    --------
    >>> history = History([Epoch(1, 0.7, None, 0.9, None, 0.4, 0.2)], best=1)
    >>> History.from_dict(history.to_dict()) == history
    True
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: int | None = None
    stopped: str | None = None
    drift_threshold: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """Return the history that `to_dict` described.

        Raises
        ------
        TypeError, ValueError
            Not what `to_dict` gives.
        """
        if not isinstance(values, dict) or set(values) != {item.name for item in fields(cls)}:
            raise ValueError(f"history: expected {', '.join(item.name for item in fields(cls))}; got something else")
        listed, best, stopped, threshold = (values[item.name] for item in fields(cls))
        if not isinstance(listed, list):
            raise TypeError(f"history epochs: expected a list; got {type(listed).__name__}")
        epochs = [_epoch(number, epoch) for number, epoch in enumerate(listed, 1)]
        if best is not None and integer("history best", best, 1) > len(epochs):
            raise ValueError(f"history best: expected one of {len(epochs)} epochs, or null; got {best}")
        if best is not None and epochs[best - 1].validation_loss is None:
            raise ValueError(f"history best: expected an epoch with a validation loss; got {best}")
        if stopped is not None and not isinstance(stopped, str):
            raise TypeError(f"history stopped: expected a text or null; got {type(stopped).__name__}")
        if threshold is not None:
            finite("history drift_threshold", threshold)
        return cls(epochs, best, stopped, threshold)

    def within(self, epoch: Epoch) -> bool:
        """Return whether the drift of an epoch is not above the threshold."""
        return self.drift_threshold is None or epoch.drift <= self.drift_threshold

    def reason(self, patience: int | None) -> str | None:
        """Return why the trainer ends the run after its last epoch, if it does."""
        if not self.epochs:
            return None
        epoch = self.epochs[-1]
        if not self.within(epoch):
            return f"{_DRIFT} {epoch.drift:.4g} above the threshold {self.drift_threshold:.4g}"
        waited = epoch.number - (self.best or 0)
        if patience is not None and epoch.validation_loss is not None and waited >= patience:
            return f"{_PATIENCE} {patience} epochs"
        return None

    def resume(self, patience: int | None) -> None:
        """Judge the last epoch by another patience; what a callback said stays."""
        if self.stopped is None or self.stopped.startswith((_DRIFT, _PATIENCE)):
            self.stopped = self.reason(patience)


def _epoch(number: int, values: Any) -> Epoch:
    names = [item.name for item in fields(Epoch)]
    later = {"lr", "metrics"}  # an older version did not write them
    if not isinstance(values, dict) or not set(names) - later <= set(values) <= set(names):
        raise ValueError(f"history epoch {number}: expected {', '.join(names)}; got something else")
    if values["number"] != number:
        raise ValueError(f"history epoch {number}: expected number={number}; got {values['number']!r}")
    metrics = values.get("metrics", {})
    if not isinstance(metrics, dict):
        raise TypeError(f"history epoch {number} metrics: expected a mapping; got {type(metrics).__name__}")
    for name, value in {**values, **metrics}.items():
        if name not in ("number", "metrics") and (value is not None or name in ("loss", "drift", "gradient_norm")):
            finite(f"history epoch {number} {name}", value)
    return Epoch(**values)
