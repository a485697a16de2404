"""The model and the trainer: gradients, learning, stopping, pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.training import (
    SGD,
    AdamW,
    CrossEntropy,
    DivergedError,
    History,
    Loss,
    MeanSquaredError,
    Optimizer,
    load_model,
    pad,
    plot_history,
)
from lstmcore.training.network import Batch, Network
from small_models import REGRESSION, data, make, nothing_to_learn, trainer

STEP = 1e-6
LENGTHS = (3, 5, 4)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("steps", ["last", "every"])
@pytest.mark.parametrize("x", [False, True])
@pytest.mark.parametrize("loss", [CrossEntropy(), MeanSquaredError()], ids=lambda loss: loss.name)
def test_model_gradients(bidirectional: bool, steps: Any, x: bool, loss: Loss) -> None:
    random = np.random.default_rng(4)
    model = make(bidirectional=bidirectional, steps=steps, x=x, num_layers=2)
    inputs = [random.standard_normal((length, 2)) for length in LENGTHS]
    sizes = [(length,) for length in LENGTHS] if steps == "every" else [()] * 3
    targets: Any = [
        random.integers(0, 3, size) if loss.of_linear else random.standard_normal((*size, 3)) for size in sizes
    ]
    learned = model.learn(inputs, targets, loss)
    parameters = {name: np.array(value) for name, value in model.parameters.items()}
    assert set(learned.gradients) == set(parameters)
    for name, value in parameters.items():
        for flat in random.choice(value.size, min(value.size, 4), replace=False):
            index = np.unravel_index(flat, value.shape)
            kept, seen = value[index], []
            for sign in (1, -1):
                value[index] = kept + sign * STEP
                model.load_parameters(parameters)
                seen.append(model.evaluate(inputs, targets, loss).loss)
            value[index] = kept
            assert learned.gradients[name][index] == pytest.approx((seen[0] - seen[1]) / (2 * STEP), abs=1e-8), name


def test_last_means_that_both_directions_read_the_whole_sequence() -> None:
    model = make(x=True)
    inputs = [np.random.default_rng(k).standard_normal((length, 2)) for k, length in enumerate(LENGTHS)]
    x, lengths = pad(inputs)
    y, _ = model.lstm(x, lengths=lengths)
    for row, (output, sequence) in enumerate(zip(model.predict(inputs), inputs, strict=True)):
        features = np.concatenate((y[lengths[row] - 1, row, :4], y[0, row, 4:]))
        np.testing.assert_allclose(output, model.readout(features, sequence[-1]), rtol=1e-12)


def test_predictions_do_not_depend_on_the_batch() -> None:
    model = make(steps="every")
    inputs, _ = data()
    for alone, together in zip(model.predict(inputs, batch_size=1), model.predict(inputs, batch_size=7), strict=True):
        np.testing.assert_allclose(alone, together, rtol=1e-12)
    assert [len(output) for output in model.predict(inputs)] == [len(sequence) for sequence in inputs]


def test_drift_is_the_length_of_the_final_cell() -> None:
    model = make(num_layers=2)
    inputs, targets = data(4)
    wanted = []
    for sequence in inputs:
        _, (_, c) = model.lstm(sequence[:, None], lengths=np.array([len(sequence)]))
        wanted.append(float(np.linalg.norm(c)))
    found = model.evaluate(inputs, targets, CrossEntropy()).drift
    assert found == pytest.approx(np.mean(wanted), rel=1e-12)


def test_training_learns_and_records() -> None:
    model = make(dtype="float32")
    inputs, targets = data(60)
    history = trainer(model, epochs=30, optimizer=AdamW(0.02)).fit(inputs, targets)
    assert [epoch.number for epoch in history.epochs] == list(range(1, 31))
    losses = [epoch.validation_loss for epoch in history.epochs]
    assert history.best == 1 + int(np.argmin(losses))  # type: ignore[arg-type] # with a validation set none is None
    fresh, answers = data(60, seed=9)
    assert np.mean([output.argmax() for output in model.predict(fresh)] == answers) > 0.9


def test_per_step_regression_learns() -> None:
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((length, 2)) for length in random.integers(2, 9, 40)]
    targets = [np.stack([s.sum(1), s[:, 0], -s[:, 1]], 1) for s in inputs]
    model = make(steps="every", x=True)
    history = trainer(model, loss="mean-squared-error", epochs=40, optimizer=AdamW(0.02)).fit(inputs, targets)
    assert history.epochs[-1].accuracy is None
    assert history.epochs[-1].loss < 0.02 * history.epochs[0].loss


def test_best_weights_are_restored() -> None:
    inputs, targets = nothing_to_learn()
    model = make()
    history = trainer(model, epochs=30, optimizer=AdamW(0.05)).fit(inputs, targets)
    assert history.best is not None and history.best < 30
    again = make()
    trainer(again, epochs=history.best, optimizer=AdamW(0.05)).fit(inputs, targets)
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, again.parameters[name])


def test_input_noise_is_fresh_in_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input noise is fresh in every epoch and has the size that was asked for."""
    model = make()
    inputs = [np.zeros((50, 2))] * 30
    seen: list[Any] = []
    learn = Network.learn
    monkeypatch.setattr(Network, "learn", lambda own, batch, *rest: (seen.append(batch.x), learn(own, batch, *rest))[1])
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 30, "validation": 0.0, "input_noise": 0.5}
    trainer(model, **settings).fit(inputs, np.zeros(30, np.int64))
    assert len(seen) == 2
    for values in seen:
        assert values.std() == pytest.approx(0.5, rel=0.1)  # 3000 draws: 0.1 is 7 standard errors
    assert abs(np.corrcoef(seen[0].ravel(), seen[1].ravel())[0, 1]) < 0.1  # 5 standard errors


def test_patience_stops() -> None:
    inputs, targets = nothing_to_learn()
    history = trainer(make(), epochs=50, optimizer=AdamW(0.05), patience=2).fit(inputs, targets)
    assert len(history.epochs) < 50
    assert history.best == len(history.epochs) - 2
    assert history.stopped == "no lower validation loss for 2 epochs"


def test_drift_threshold_stops_and_is_never_best() -> None:
    inputs, targets = data(60)
    free = trainer(make(), epochs=20, optimizer=AdamW(0.05)).fit(inputs, targets)
    drifts = [epoch.drift for epoch in free.epochs]
    threshold = (min(drifts) + max(drifts)) / 2
    first = next(k for k, drift in enumerate(drifts, 1) if drift > threshold)
    history = trainer(make(), epochs=20, optimizer=AdamW(0.05), drift_threshold=threshold).fit(inputs, targets)
    assert len(history.epochs) == first
    assert history.stopped is not None and history.stopped.startswith("state drift")
    assert history.best != first


def test_without_validation_the_last_epoch_stays() -> None:
    inputs, targets = data()
    history = trainer(make(), validation=0.0).fit(inputs, targets)
    assert history.best is None
    assert history.epochs[-1].validation_loss is None and history.epochs[-1].drift > 0


def test_divergence_is_said() -> None:
    inputs, targets = data()
    model = make(dtype="float32")
    values = [np.full(3, 1e30) for _ in targets]
    with pytest.raises(DivergedError, match="training diverged in epoch 1"), np.errstate(over="ignore"):
        trainer(model, loss="mean-squared-error").fit(inputs, values)


class Breaking(SGD):
    """A rule whose step `at` is no number."""

    def __init__(self, at: int) -> None:
        super().__init__(0.05)
        self.at = at

    def step(self, parameters: Any, gradients: Any) -> Any:
        stepped = super().step(parameters, gradients)
        return stepped if self.steps < self.at else {name: value * np.nan for name, value in stepped.items()}


@pytest.mark.parametrize(("validation", "epochs"), [(0.25, 3), (0.0, 3), (0.25, 0), (0.0, 0)])
def test_divergence_restores_the_best_weights(validation: float, epochs: int) -> None:
    """The best epoch's; the last one's without validation; those of the start in the first epoch."""
    inputs, targets = nothing_to_learn()
    steps = -(-round(40 * (1 - validation)) // 5)  # in an epoch
    model, other = make(), make()
    start = model.parameters
    with pytest.raises(DivergedError) as caught:
        trainer(model, optimizer=Breaking(steps * epochs + 2), validation=validation, epochs=9).fit(inputs, targets)
    history = History()
    if epochs:
        history = trainer(other, optimizer=SGD(0.05), validation=validation, epochs=epochs).fit(inputs, targets)
    assert caught.value.history == history
    assert caught.value.restored == (history.best or epochs or None)
    kept = f"epoch {caught.value.restored}" if epochs else "the start"
    assert f"diverged in epoch {epochs + 1}: " in str(caught.value)
    assert str(caught.value).endswith(f"; the model has the weights of {kept} again: go on from them in a new run")
    for name, value in (other.parameters if epochs else start).items():
        np.testing.assert_array_equal(model.parameters[name], value)
    model.load_parameters(other.parameters)
    assert len(trainer(model, optimizer=SGD(0.01), epochs=1).fit(inputs, targets).epochs) == 1


def test_an_interrupted_run_leaves_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = nothing_to_learn()
    model, other = make(), make()
    measure, calls = model.measure, [0]

    def stop(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(model, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer(model, epochs=9).fit(inputs, targets)
    trainer(other, epochs=3).fit(inputs, targets)
    for name, value in other.parameters.items():
        np.testing.assert_array_equal(model.parameters[name], value)


@pytest.mark.parametrize("steps", ["last", "every"])
def test_evaluate_takes_what_predict_takes(tmp_path: Path, steps: Any) -> None:
    """Raw inputs and targets far from 0 and 1; the loss is that of the training, also from a file."""
    inputs, classes = data(30)
    raw = [sequence * [1e3, 1e-3] + [5e4, 7.0] for sequence in inputs]
    every = steps == "every"
    model = make(steps=steps)
    labels: Any = [np.full(len(s), c) for s, c in zip(raw, classes, strict=True)] if every else classes
    trainer(model, epochs=3, optimizer=AdamW(0.02)).fit(raw, labels)
    outputs = model.predict(raw)
    hits = np.concatenate([np.atleast_1d(o.argmax(axis=-1) == t) for o, t in zip(outputs, labels, strict=True)])
    found = model.evaluate(raw, labels)
    assert found.accuracy == hits.mean() and found.accuracy > 0
    assert found == model.evaluate(raw, labels, "cross-entropy") == model.evaluate(raw, labels, CrossEntropy())
    model.save(tmp_path / "m")
    again = load_model(tmp_path / "m", backend="numpy")
    assert again.evaluate(raw, labels) == found

    wanted = [np.stack([s.sum(1), s[:, 0], s[:, 1] ** 2], 1) * 1e3 for s in raw]
    values: Any = wanted if every else np.stack([value[-1] for value in wanted])
    model = make(steps=steps)
    settings: dict[str, Any] = {**REGRESSION, "standardize_targets": True, "epochs": 2}
    trainer(model, **settings).fit(raw, values)
    errors = [np.square(o - v) for o, v in zip(model.predict(raw), values, strict=True)]
    mean = np.mean(np.concatenate([np.atleast_2d(error) for error in errors]))
    assert model.evaluate(raw, values).loss == pytest.approx(mean, rel=1e-12)


def test_a_loss_of_ones_own_is_in_no_file(tmp_path: Path) -> None:
    class Mine(MeanSquaredError):
        """The same, by another class of the same name."""

    inputs, _ = data(12)
    model = make()
    trainer(model, loss=Mine(), epochs=1).fit(inputs, np.ones((12, 3)))
    assert isinstance(model.loss, Mine)
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match="or with a loss of your own, which no file holds"):
        load_model(tmp_path / "m").evaluate(inputs, np.ones((12, 3)))


def test_a_constant_target_is_forecast_exactly() -> None:
    inputs, _ = data(20)
    values = np.stack([np.full(20, 1e-6), np.arange(20.0), np.full(20, -3e7)], axis=1)
    model = make()
    trainer(model, standardize_targets=True, **REGRESSION).fit(inputs, values)
    outputs = np.stack(model.predict(inputs))
    np.testing.assert_array_equal(outputs[:, [0, 2]], values[:, [0, 2]])
    assert len(set(outputs[:, 1])) == 20


def test_empty_sequences() -> None:
    inputs, targets = data(12)
    empty = [np.zeros((0, 2))] * 12
    model = make()
    with pytest.raises(ValueError, match="expected at least one step in all sequences together; got empty"):
        trainer(model).fit(empty, targets)
    assert model.input_scaling is None
    every = make(steps="every")
    settings: dict[str, Any] = {"batch_size": 1, "validation": 0.0, "epochs": 2}
    mixed = [*inputs[:3], *empty[:3]]
    labels = [np.full(len(sequence), 1) for sequence in inputs[:3]] + [np.zeros(0, int)] * 3
    history = trainer(every, **settings).fit(mixed, labels)
    assert np.isfinite(history.epochs[-1].loss)
    again = trainer(make(steps="every"), **settings).fit(mixed, [*labels[:3], [], [], []])
    assert again == history


def test_an_optimizer_goes_with_one_run() -> None:
    inputs, targets = data(12)
    optimizer = AdamW(0.01)
    trainer(make(), optimizer=optimizer, epochs=1).fit(inputs, targets)
    model = make(hidden=5)
    before = model.parameters
    with pytest.raises(ValueError, match=r"optimizer: expected a new one for a new run; got one after \d+ steps"):
        trainer(model, optimizer=optimizer).fit(inputs, targets)
    assert model.input_scaling is None and model.parameters["readout.bias"] is before["readout.bias"]


@pytest.mark.parametrize("switches", [{}, {"num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.2}])
def test_a_trainer_gives_the_same_run_twice(switches: dict[str, Any]) -> None:
    inputs, targets = data()
    model = make(**switches)
    start = model.parameters
    one = trainer(model, input_noise=0.3)
    first, after = one.fit(inputs, targets), model.parameters
    model.load_parameters(start)
    assert one.fit(inputs, targets) == first
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, after[name])


def test_drift_from_the_first_epoch_on_keeps_the_only_weights() -> None:
    inputs, targets = data()
    model = make()
    history = trainer(model, drift_threshold=1e-9).fit(inputs, targets)
    assert (history.best, len(history.epochs)) == (None, 1)
    assert history.stopped is not None and history.stopped.startswith("state drift")
    other = make()
    trainer(other, epochs=1).fit(inputs, targets)
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, other.parameters[name])


@pytest.mark.parametrize("optimizer", [SGD(1e300), SGD(1e38, momentum=0.9), AdamW(1e300)])
def test_a_step_beyond_all_numbers_is_divergence(optimizer: Optimizer) -> None:
    inputs, targets = data()
    with pytest.raises(DivergedError, match="training diverged in epoch 1: "):
        trainer(make(dtype="float32"), optimizer=optimizer, clip_norm=None).fit(inputs, targets)


def test_purged_windows_are_in_neither_set(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = data(20)
    model = make()
    seen: set[int] = set()
    learn = Network.learn
    numbers = {sequence.tobytes(): number for number, sequence in enumerate(inputs)}

    def spy(own: Network, batch: Batch, *rest: Any) -> Any:
        seen.update(numbers[batch.x[:length, row].tobytes()] for row, length in enumerate(batch.lengths))
        return learn(own, batch, *rest)

    monkeypatch.setattr(Network, "learn", spy)
    trainer(model, chronological=True, purge=3, epochs=1, standardize=False).fit(inputs, targets)
    assert seen == set(range(12))  # the last 5 validate, 3 before them are left out


def test_targets_are_standardised_on_the_training_part_alone() -> None:
    inputs, _ = data(20)
    values = np.random.default_rng(0).standard_normal((20, 3))
    model = make()
    settings: dict[str, Any] = {**REGRESSION, "chronological": True, "purge": 3, "epochs": 1}
    trainer(model, standardize_targets=True, **settings).fit(inputs, values)
    assert model.target_scaling is not None
    np.testing.assert_allclose(model.target_scaling.mean, values[:12].mean(axis=0))
    np.testing.assert_allclose(model.target_scaling.scale, values[:12].std(axis=0))


def test_history_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    inputs, targets = data()
    history = trainer(make(), drift_threshold=100.0).fit(inputs, targets)
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))) == history
    plot_history(history, tmp_path / "curve.png", title="test")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="plot: expected a file ending in one of"):
        plot_history(history, tmp_path / "curve.docx")
    with pytest.raises(ValueError, match="at least one epoch"):
        plot_history(History(), tmp_path / "curve.png")


def test_without_matplotlib_the_install_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"pip install .*plot.*"):
        plot_history(History(), tmp_path / "curve.png")


class Missing:
    """An import system that has no matplotlib."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
