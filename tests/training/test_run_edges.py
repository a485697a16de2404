"""Runs at the edges: one sequence, entries that do not count, and what a resumed run keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.training import CrossEntropy, GaussianLoss, Loss, MeanSquaredError, QuantileLoss
from small_models import data, make, trainer

LOSSES = [(CrossEntropy(), 3), (MeanSquaredError(), 1), (QuantileLoss((0.1, 0.5, 0.9)), 3), (GaussianLoss(), 2)]


@pytest.mark.parametrize(("loss", "outputs"), LOSSES, ids=lambda case: getattr(case, "name", case))
def test_one_sequence_is_a_batch(loss: Loss, outputs: int) -> None:
    """The loss of (T, 1, outputs), one sequence at every step, is that of its T entries (T, outputs)."""
    random = np.random.default_rng(0)
    z = random.standard_normal((5, 1, outputs))
    targets = random.integers(0, 3, (5, 1)) if loss.of_linear else random.standard_normal((5, 1, 1))
    value, gradient = loss(z, targets)
    wanted, of_entries = loss(z[:, 0], targets[:, 0])
    assert value == pytest.approx(wanted, rel=1e-14)
    np.testing.assert_allclose(gradient[:, 0], of_entries, rtol=1e-14)


HIDDEN = {
    "weights": ("sample_weight, class_weight: expected a weight above 0 in the validation part", {}),
    "classes": ("targets: expected a class with a weight above 0 in the validation part; got -100 only", {}),
    "class_weight": ("sample_weight, class_weight: expected a weight above 0", {"class_weight": [1.0, 1.0, 0.0]}),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_validation_part_has_an_entry_that_counts(kind: str) -> None:
    """A validation loss of no entry would be 0, and epoch 1 the best one."""
    inputs, targets = data()
    message, settings = HIDDEN[kind]
    settings = settings | {"chronological": True}
    weights = None if kind != "weights" else np.append(np.ones(18), np.zeros(6))
    if kind == "classes":
        targets[18:] = -100
    if kind == "class_weight":
        targets[18:] = 2
    with pytest.raises(ValueError, match=message):
        trainer(make(), **settings).fit(inputs, targets, sample_weight=weights)


def test_a_training_part_has_an_entry_that_counts() -> None:
    inputs, targets = data()
    with pytest.raises(ValueError, match="targets: expected a class with a weight above 0 in the training part"):
        trainer(make()).fit(inputs, np.full_like(targets, -100), validation_data=(inputs, targets))


def test_patience_needs_a_validation_set_of_any_kind() -> None:
    inputs, targets = data()
    settings: dict[str, Any] = {"validation": 0.0, "patience": 3, "epochs": 1, "callbacks": None}
    with pytest.raises(ValueError, match="patience: needs a validation set; got validation=0 without validation_data"):
        trainer(make(), **settings).fit(inputs, targets)
    history = trainer(make(), **settings).fit(inputs, targets, validation_data=(inputs, targets))
    assert history.best == 1


def test_a_resumed_run_has_the_same_validation_weights(tmp_path: Path) -> None:
    """Weights of the validation set alone are part of the run too."""
    inputs, targets = data()
    path, weights = tmp_path / "run", np.linspace(1, 2, len(inputs))

    def fit(weights: Any, **settings: Any) -> Any:
        watched = (inputs, targets, weights)
        return trainer(make(), epochs=2, **settings).fit(inputs, targets, validation_data=watched, **resume)

    resume: dict[str, Any] = {}
    history = fit(weights, checkpoint=path)
    resume = {"resume": path}
    assert fit(weights) == history
    for others in (weights[::-1], None):
        with pytest.raises(ValueError, match="checkpoint of another run: expected settings validation_weights_sha256"):
            fit(others)
