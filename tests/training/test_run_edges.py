"""Runs at the edges: one sequence, entries that do not count, and what a resumed run keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.training import Callback, CrossEntropy, GaussianLoss, Loss, MeanSquaredError, QuantileLoss
from small_models import REGRESSION, data, make, trainer

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
