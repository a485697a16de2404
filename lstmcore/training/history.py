"""What a training run recorded, epoch by epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


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
        sequence, averaged over the validation set (over the training set where there is none).
    gradient_norm
        Mean global norm of the gradients before clipping.
    """

    number: int
    loss: float
    accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    drift: float
    gradient_norm: float


@dataclass(slots=True)
class History:
    """The epochs of a run, the best one (None: the last one was kept), and why the run ended early, if it did."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int | None = None
    stopped: str | None = None
    drift_threshold: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """The inverse of `to_dict`."""
        epochs = [Epoch(**epoch) for epoch in values["epochs"]]
        return cls(epochs, values["best"], values["stopped"], values["drift_threshold"])
