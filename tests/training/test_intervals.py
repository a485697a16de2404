"""Losses with intervals: their gradients, their scaling, the intervals of `predict`, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lstmcore import LSTM
from lstmcore.training import Adam, GaussianLoss, Loss, QuantileLoss, Readout, SequenceModel, Trainer, load_model
from small_models import make, opened, trainer

LOSSES = [QuantileLoss((0.1, 0.5, 0.8)), GaussianLoss()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("lead", [(5,), (3, 5)])
def test_gradients(loss: Loss, lead: tuple[int, ...]) -> None:
    """Against central differences, with weights; a masked entry may hold anything."""
    random = np.random.default_rng(3)
    z, weights = random.standard_normal((*lead, 12)), random.random(lead) * (random.random(lead) < 0.7)
    targets = random.standard_normal((*lead, loss.target_size(12)))
    value, gradient = loss(z, targets, weights)
    for flat in range(z.size):
        index = np.unravel_index(flat, z.shape)
        kept, seen = z[index], []
        for sign in (1, -1):
            z[index] = kept + sign * 1e-6
            seen.append(loss(z, targets, weights)[0])
        z[index] = kept
        assert gradient[index] == pytest.approx((seen[0] - seen[1]) / 2e-6, abs=1e-8)
    z[weights == 0], targets[weights == 0] = np.nan, np.nan
    again, same = loss(z, targets, weights)
    assert again == value
    np.testing.assert_array_equal(same, gradient)
    assert loss(z, targets, np.zeros(lead))[0] == 0


def test_quantiles_by_hand() -> None:
    loss = QuantileLoss((0.1, 0.5, 0.9))
    outputs = np.array([[3.0, 1.0, 5.0, 2.0, 4.0, 9.0]])  # two targets; the quantiles of the first cross
    assert loss.point(outputs).tolist() == [[4.0, 2.0]]
    assert loss.interval(outputs, 0.8).tolist() == [[[3.0, 1.0], [4.0, 2.0], [5.0, 9.0]]]
    with pytest.raises(ValueError, match=r"coverage: expected the quantiles 0.25 and 0.75; got \(0.1, 0.5, 0.9\)"):
        loss.interval(outputs, 0.5)


def test_the_normal_interval_by_hand() -> None:
    outputs = np.array([[2.0, 7.0, np.log(9.0), 0.0]])
    wanted = [[[2 - 3 * 1.959964, 7 - 1.959964], [2.0, 7.0], [2 + 3 * 1.959964, 7 + 1.959964]]]
    np.testing.assert_allclose(GaussianLoss().interval(outputs, 0.95), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "loss", ["quantile", "gaussian", QuantileLoss((0.2, 0.5, 0.8))], ids=["quantile", "gaussian", "own"]
)
def test_intervals_hold_what_they_promise(loss: Any, tmp_path: Path) -> None:
    """Noise of two sizes around 5000, by the sign of the input: fresh targets lie in the intervals as often as said.

    A share of 400 has a standard error of at most 2.5 %; the bounds are four of them.
    """

    def draw(seed: int) -> tuple[Any, Any]:
        random = np.random.default_rng(seed)
        kinds = random.integers(0, 2, 400)
        inputs = [np.full((3, 1), 2.0 * kind - 1) for kind in kinds]
        return inputs, 5000 + 100 * kinds + np.where(kinds == 1, 30, 3) * random.standard_normal(400)

    coverage = 0.6 if isinstance(loss, QuantileLoss) else 0.9
    lstm = LSTM(1, 6, seed=0, dtype="float64", backend="numpy")
    model = SequenceModel(lstm, Readout.of(lstm, 2 if loss == "gaussian" else 3, seed=0))
    settings: dict[str, Any] = {"loss": loss, "standardize_targets": True, "optimizer": Adam(0.03), "epochs": 60}
    inputs, targets = draw(0)
    history = Trainer(model, batch_size=64, quiet=True, metrics=["mae"], **settings).fit(inputs, targets)
    fresh, answers = draw(1)
    found = np.stack(model.predict(fresh, coverage=coverage))
    assert found.shape == (400, 3, 1)
    np.testing.assert_array_equal(found[:, 1], np.stack(model.predict(fresh)))
    inside = (found[:, 0, 0] < answers) & (answers < found[:, 2, 0])
    assert abs(inside.mean() - coverage) < 0.1
    widths = (found[:, 2] - found[:, 0])[:, 0]
    high = np.array([sequence[0, 0] > 0 for sequence in fresh])
    assert widths[high].mean() > 4 * widths[~high].mean()
    mae = np.abs(found[:, 1, 0] - answers).mean()
    assert model.evaluate(fresh, answers, metrics=["mae"]).metrics["mae"] == pytest.approx(mae)
    assert history.epochs[-1].metrics["mae"] == pytest.approx(mae, rel=0.5)
    model.save(tmp_path / "m")
    again = load_model(tmp_path / "m", backend="numpy")
    np.testing.assert_array_equal(np.stack(again.predict(fresh, coverage=coverage)), found)
    assert again.evaluate(fresh, answers) == model.evaluate(fresh, answers)


def test_a_resumed_run_has_the_same_quantiles(tmp_path: Path) -> None:
    inputs, targets = [np.full((3, 2), float(k)) for k in range(20)], np.arange(20.0)
    first = QuantileLoss((0.1, 0.5, 0.9))
    trainer(make(), loss=first, epochs=1, checkpoint=tmp_path / "run").fit(inputs, targets)
    trainer(make(), loss=first, epochs=2).fit(inputs, targets, resume=tmp_path / "run")
    with pytest.raises(ValueError, match=r"expected settings loss_settings.quantiles=\[0.2"):
        trainer(make(), loss=QuantileLoss((0.2, 0.5, 0.9))).fit(inputs, targets, resume=tmp_path / "run")


def test_what_has_no_intervals_says_so(tmp_path: Path) -> None:
    model, x = make(), [np.zeros((3, 2))]
    with pytest.raises(ValueError, match=r"coverage: expected a model trained with a quantile .*; got one of no loss"):
        model.predict(x, coverage=0.9)
    trainer(model, epochs=1, loss="mean-squared-error", validation=0.0).fit(x * 2, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"coverage: expected a model .*; got mean-squared-error"):
        model.predict(x, coverage=0.9)
    with pytest.raises(ValueError, match="readout output_size: expected a multiple of 2 for the loss gaussian"):
        trainer(model, loss="gaussian")
    for quantiles in ((), (0.5, 0.5), (0.9, 0.1), (0.0, 0.5)):
        with pytest.raises(ValueError, match="quantiles: expected"):
            QuantileLoss(quantiles)
    with pytest.raises(ValueError, match="coverage: expected a share between 0 and 1; got 90"):
        GaussianLoss().interval(np.zeros((1, 2)), 90)
    trainer(model, loss=QuantileLoss((0.1, 0.5, 0.9)), epochs=1, validation=0.0).fit(x * 2, np.ones(2))
    model.save(tmp_path / "m")
    header = opened(tmp_path / "m")[1]
    for damage in ({"name": "quantile"}, {"name": "gaussian", "quantiles": [0.5]}, {"quantiles": [0.5]}, 7):
        _with_loss(tmp_path / "m", header, damage)
        with pytest.raises(ValueError, match="loss: expected"):
            load_model(tmp_path / "m")


def _with_loss(path: Path, header: dict[str, Any], loss: Any) -> None:
    save_file(load_file(path), path, metadata={"lstmcore": json.dumps(header | {"loss": loss})})
