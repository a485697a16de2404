"""Weights of entries and classes, entries that do not count, and the forms that a class may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.training import SGD, CrossEntropy, Loss, MeanSquaredError, load_model
from small_models import REGRESSION, data, make, trainer

LOSSES = [CrossEntropy(), MeanSquaredError()]
PLAIN: dict[str, Any] = {"validation": 0.0, "standardize": False, "clip_norm": None, "epochs": 1, "batch_size": 40}


def case(loss: Loss, count: int) -> tuple[Any, Any]:
    random = np.random.default_rng(5)
    z = random.standard_normal((count, 3))
    return z, random.integers(0, 3, count) if loss.of_linear else random.standard_normal(z.shape)


def equal(left: Any, right: Any) -> None:
    for name, value in left.parameters.items():
        np.testing.assert_array_equal(value, right.parameters[name])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_weight_is_a_repetition(loss: Loss) -> None:
    """The weights 2, 0, 3 give the loss of a set in which the entries are 2, 0 and 3 times."""
    z, targets = case(loss, 5)
    weights = np.array([2.0, 0.0, 3.0, 1.0, 1.0])
    rows = np.repeat(np.arange(5), weights.astype(int))
    value, gradient = loss(z, targets, weights)
    repeated, each = loss(z[rows], targets[rows])
    assert value == pytest.approx(repeated, rel=1e-14)
    summed = np.zeros_like(z)
    np.add.at(summed, rows, each)
    np.testing.assert_allclose(gradient, summed, rtol=1e-13, atol=1e-17)


def test_a_class_that_is_ignored_does_not_count() -> None:
    z, targets = case(CrossEntropy(), 6)
    some = targets.copy()
    some[[1, 4]] = -100
    kept = np.array([0, 2, 3, 5])
    value, gradient = CrossEntropy()(z, some)
    wanted, of_kept = CrossEntropy()(z[kept], targets[kept])
    assert value == pytest.approx(wanted, rel=1e-15)
    np.testing.assert_allclose(gradient[kept], of_kept, rtol=1e-15)
    assert not gradient[[1, 4]].any()


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_a_mask_is_a_weight_and_hides_what_it_masks(kind: str) -> None:
    """Steps with a weight of 0 may hold anything, and change neither the run nor its numbers."""
    random = np.random.default_rng(1)
    inputs, _ = data(20)
    if kind == "classes":
        targets: Any = [random.integers(0, 3, len(s)) for s in inputs]
    else:
        targets = [random.standard_normal((len(s), 3)) for s in inputs]
    masks = [random.random(len(s)) < 0.7 for s in inputs]
    settings = {"standardize_targets": True, **REGRESSION} if kind == "values" else {}
    runs = []
    for junk in (0.0, np.nan):
        hidden = [t.copy() for t in targets]
        for target, mask in zip(hidden, masks, strict=True):
            target[~mask] = 0 if kind == "classes" else junk
        model = make(steps="every")
        runs.append((trainer(model, **settings).fit(inputs, hidden, sample_weight=masks), model))
    assert runs[0][0] == runs[1][0]
    equal(runs[0][1], runs[1][1])
    if kind == "classes":
        ignored = [np.where(mask, target, -100) for target, mask in zip(targets, masks, strict=True)]
        model = make(steps="every")
        history = trainer(model).fit(inputs, ignored)
        assert [epoch.loss for epoch in history.epochs] == pytest.approx([e.loss for e in runs[0][0].epochs], rel=1e-9)
    found = runs[0][1].evaluate(inputs, targets, sample_weight=masks)
    assert found.loss != runs[0][1].evaluate(inputs, targets).loss


def test_weights_of_one_change_no_bit_and_their_size_does_not_matter() -> None:
    inputs, targets = data(21)
    runs = []
    for weights in (None, np.ones(21), np.full(21, 8.0)):
        model = make(dtype="float32")
        runs.append((trainer(model).fit(inputs, targets, sample_weight=weights), model))
    for history, model in runs[1:]:
        assert history == runs[0][0]
        equal(model, runs[0][1])


def test_a_light_batch_moves_less_than_a_heavy_one() -> None:
    """The step of a batch is as large as its weight: two batches of weights 1 and 3 add up to the whole gradient."""
    inputs, targets = data(8)
    weights = np.where(np.arange(8) % 2 == 0, 3.0, 1.0)
    moved = {}
    for size in (1, 8):
        model = make(bidirectional=False)
        before = model.parameters
        settings = PLAIN | {"batch_size": size, "accumulate": 8 // size, "optimizer": SGD(0.1)}
        trainer(model, **settings).fit(inputs, targets, sample_weight=weights)
        moved[size] = {name: model.parameters[name] - value for name, value in before.items()}
    for name, value in moved[8].items():
        np.testing.assert_allclose(moved[1][name], value, rtol=1e-9, atol=1e-14)


def test_class_weights_are_weights_of_their_entries() -> None:
    inputs, targets = data(30)
    targets = np.where(np.arange(30) < 21, 0, np.where(np.arange(30) < 27, 1, 2))
    balanced = (10 / np.bincount(targets))[targets]
    wanted = make()
    trainer(wanted, validation=0.0).fit(inputs, targets, sample_weight=balanced)
    for weight in ("balanced", {0: 10 / 21, 1: 10 / 6, 2: 10 / 3}, [10 / 21, 10 / 6, 10 / 3]):
        model = make()
        trainer(model, validation=0.0, class_weight=weight).fit(inputs, targets)
        for name, value in model.parameters.items():
            np.testing.assert_allclose(value, wanted.parameters[name], rtol=1e-7, atol=1e-12)


def test_a_class_is_a_number_a_name_or_a_row(tmp_path: Path) -> None:
    inputs, targets = data(24)
    names = np.array(["ash", "birch", "cedar"])
    forms: list[Any] = [targets, targets[:, None], np.eye(3)[targets], np.eye(3, dtype=bool)[targets], names[targets]]
    forms.append(names[targets].astype(object))
    models = []
    for form in forms:
        models.append(make())
        trainer(models[-1], epochs=2).fit(inputs, form)
        equal(models[-1], models[0])
    assert [model.classes for model in models[3:5]] == [[], list(names)]
    models[4].save(tmp_path / "m")
    loaded = load_model(tmp_path / "m", backend="numpy")
    assert loaded.evaluate(inputs, names[targets]) == models[0].evaluate(inputs, targets)
    with pytest.raises(ValueError, match=r"targets\[0\]: expected one of 'ash', 'birch', 'cedar'; got 'elm'"):
        loaded.evaluate(inputs, np.full(24, "elm"))
    with pytest.raises(ValueError, match=r"targets\[0\]: expected an array; got rows of different lengths"):
        trainer(make()).fit(inputs, [[[1], [2, 3]], *targets[1:]])
    other = make()
    with pytest.raises(ValueError, match="targets: expected 3 different names of classes, one for each output"):
        trainer(other).fit(inputs, names[targets % 2])
    with pytest.raises(ValueError, match="batch"):
        trainer(other, batch_size=3).fit(inputs, names[targets], resume=_checkpoint(tmp_path, inputs, names[targets]))
    assert other.classes == []


def _checkpoint(folder: Path, inputs: Any, targets: Any) -> Path:
    trainer(make(), epochs=1, checkpoint=folder / "run").fit(inputs, targets)
    return folder / "run"


def test_a_target_of_one_output_needs_no_axis() -> None:
    inputs, _ = data(12)
    models = [make(outputs=1), make(outputs=1)]
    for model, targets in zip(models, (np.arange(12.0), np.arange(12.0)[:, None]), strict=True):
        trainer(model, **REGRESSION).fit(inputs, targets)
    equal(*models)


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [
        ({}, np.ones(3), "sample_weight: expected 24, one a sequence; got 3"),
        ({}, 1.0, "sample_weight: expected a number or an array a sequence; got float"),
        ({}, -np.ones(24), r"sample_weight\[0\]: expected finite numbers >= 0; got -1"),
        ({}, np.full(24, np.nan), r"sample_weight\[0\]: expected finite numbers >= 0; got nan"),
        ({}, np.zeros(24), "sample_weight: expected at least one number above 0; got zeros only"),
        ({}, ["a"] * 24, r"sample_weight\[0\]: expected numbers >= 0; got <U1"),
        ({}, np.ones((24, 2)), r"sample_weight\[0\]: expected one number; got \(2,\)"),
        ({"class_weight": "even"}, None, "class_weight: expected 'balanced', a mapping or 3 numbers; got 'even'"),
        ({"class_weight": [1, 2]}, None, "class_weight: expected 3 numbers, one a class; got 2"),
        ({"class_weight": {3: 1.0}}, None, "class_weight: expected classes 0, 1, 2; got 3"),
        ({"class_weight": {0: -1.0}}, None, "class_weight: expected numbers >= 0; got -1"),
    ],
)
def test_weights_are_checked(settings: Any, weights: Any, message: str) -> None:
    inputs, targets = data()
    with pytest.raises((TypeError, ValueError), match=message):
        trainer(make(), **settings).fit(inputs, targets, sample_weight=weights)


def test_a_loss_without_weights_is_told() -> None:
    class Mine(CrossEntropy):
        weighted = False

    inputs, targets = data()
    with pytest.raises(ValueError, match="expected a loss that takes weights as its mask; got cross-entropy"):
        trainer(make(), loss=Mine()).fit(inputs, targets, sample_weight=np.ones(24))
