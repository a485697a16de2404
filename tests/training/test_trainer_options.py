"""Schedules, callbacks, metrics, a validation set of one's own, sequences in parts, progress."""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lstmcore.training import (
    SGD,
    Adam,
    Callback,
    Cosine,
    CrossEntropy,
    MeanSquaredError,
    MLflow,
    OnPlateau,
    Readout,
    StepDecay,
    TensorBoard,
    WarmUp,
)
from lstmcore.training.metrics import compute_metrics
from lstmcore.training.network import Batch
from small_models import NOISY, REGRESSION, data, make, nothing_to_learn, opened, trainer


def equal(left: Any, right: Any) -> None:
    for name, value in left.parameters.items():
        np.testing.assert_array_equal(value, right.parameters[name])


# Schedules ------------------------------------------------------------------------------------------------------------


def test_the_rate_of_a_batch_is_that_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four batches an epoch; the optimizer's own rate comes back, also after an error."""
    rule, seen, step = SGD(0.5), [], SGD.step
    monkeypatch.setattr(rule, "step", lambda *given: (seen.append(rule.settings["lr"]), step(rule, *given))[1])
    inputs, targets = data(20)
    settings: dict[str, Any] = {"validation": 0.0, "epochs": 3, "optimizer": rule, "schedule": WarmUp(2) * StepDecay(2)}
    history = trainer(make(), **settings).fit(inputs, targets)
    np.testing.assert_allclose(seen, [*(np.arange(8) / 16), *[0.05] * 4], rtol=1e-12)
    assert [epoch.lr for epoch in history.epochs] == [seen[3], seen[7], seen[11]]
    assert rule.settings["lr"] == 0.5


@pytest.mark.parametrize("schedule", [Cosine(6, end=0.1), OnPlateau(1, 0.5) * WarmUp(1)], ids=["cosine", "plateau"])
def test_a_resumed_run_has_the_same_rates(tmp_path: Path, schedule: Any) -> None:
    inputs, targets = nothing_to_learn()
    settings: dict[str, Any] = {"schedule": schedule, "metrics": ["f1"], "accumulate": 2, "class_weight": "balanced"}
    whole = make(**NOISY)
    history = trainer(whole, optimizer=Adam(0.05), epochs=7, **settings).fit(inputs, targets)
    path, part, again = tmp_path / "run", make(**NOISY), make(**NOISY)
    trainer(part, optimizer=Adam(0.05), epochs=4, checkpoint=path, **settings).fit(inputs, targets)
    resumed = trainer(again, optimizer=Adam(0.05), epochs=7, **settings).fit(inputs, targets, resume=path)
    assert resumed == history
    assert len({epoch.lr for epoch in history.epochs}) > 2
    equal(again, whole)
    for name, value in {"schedule": Cosine(9), "metrics": [], "accumulate": 1, "class_weight": None}.items():
        with pytest.raises(ValueError, match="checkpoint of another run"):
            trainer(make(**NOISY), optimizer=Adam(0.05), epochs=7, **(settings | {name: value})).fit(
                inputs, targets, resume=path
            )


@pytest.mark.parametrize("kind", [StepDecay, Cosine, WarmUp, OnPlateau])
def test_schedules_keep_numbers_of_python(kind: Any) -> None:
    """Numbers of NumPy would end a run at its first checkpoint, whose rates are in JSON."""
    schedule = kind(np.int64(3), np.float32(0.5))
    assert json.loads(json.dumps(schedule.to_dict())) == kind(3, 0.5).to_dict()
    assert type(schedule.factor(2.0, [])) is float


def test_a_step_decay_ends_at_0_however_late() -> None:
    assert StepDecay(3, np.float32(0.5)).factor(1e300, []) == 0


def test_a_checkpoint_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Before, epochs had neither a rate nor metrics, and `patience` was among the settings."""
    inputs, targets = data()
    path, model, again = tmp_path / "run", make(), make()
    trainer(make(), epochs=2, checkpoint=path).fit(inputs, targets)
    history = trainer(model, epochs=4).fit(inputs, targets)
    header = opened(path)[1]
    for epoch in header["history"]["epochs"]:
        del epoch["lr"], epoch["metrics"]
    header["settings"]["patience"] = None
    save_file(opened(path)[0], path, metadata={"lstmcore": json.dumps(header)})
    resumed = trainer(again, epochs=4).fit(inputs, targets, resume=path)
    assert [epoch.loss for epoch in resumed.epochs] == [epoch.loss for epoch in history.epochs]
    assert resumed.epochs[0].lr is None and resumed.epochs[3] == history.epochs[3]
    equal(again, model)


def test_a_run_goes_on_after_an_early_stop(tmp_path: Path) -> None:
    """With more patience it is the run that had that patience from the start; with the same it stays stopped."""
    inputs, targets = nothing_to_learn()
    settings: dict[str, Any] = {"epochs": 30, "optimizer": None}
    path = tmp_path / "run"

    def run(patience: int, **more: Any) -> Any:
        model = make()
        one = trainer(model, **settings | {"optimizer": Adam(0.05), "patience": patience, "checkpoint": path})
        return one.fit(inputs, targets, **more), model

    stopped, _ = run(2)
    assert stopped.stopped is not None and len(stopped.epochs) < 20
    assert run(2, resume=path)[0] == stopped
    longer, model = run(9, resume=path)
    whole, other = run(9)
    assert longer == whole and len(longer.epochs) > len(stopped.epochs)
    equal(model, other)


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: StepDecay(0), "StepDecay epochs: expected at least 1; got 0"),
        (lambda: Cosine(5, end=2.0), r"Cosine end: expected a number in \[0, 1\]; got 2.0"),
        (lambda: WarmUp(1.5), "WarmUp epochs: expected a whole number; got 1.5"),
        (lambda: OnPlateau(2, -1.0), "OnPlateau gamma: expected a number in"),
    ],
)
def test_schedules_refuse(make_one: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make_one()


# Callbacks ------------------------------------------------------------------------------------------------------------


class Recorder(Callback):
    """Keeps what it saw, and ends the run after an epoch."""

    def __init__(self, last: int = 99) -> None:
        self.last, self.seen = last, list[Any]()

    def on_fit_start(self, model: Any, history: Any) -> None:
        self.seen.append(("start", len(history.epochs)))

    def on_epoch_end(self, model: Any, history: Any) -> str | None:
        self.seen.append((history.epochs[-1].number, model.parameters))
        return "enough" if history.epochs[-1].number == self.last else None

    def on_fit_end(self, model: Any, history: Any) -> None:
        self.seen.append(("end", model.parameters))


class Onward(Callback):
    """Lets a run go on that another callback stopped."""

    def on_fit_start(self, model: Any, history: Any) -> None:
        history.stopped = None


def test_callbacks_see_each_epoch_and_end_the_run(tmp_path: Path) -> None:
    inputs, targets = data()
    model, recorder, path = make(), Recorder(last=3), tmp_path / "run"
    history = trainer(model, callbacks=[recorder, Callback()], checkpoint=path).fit(inputs, targets)
    assert [what for what, _ in recorder.seen] == ["start", 1, 2, 3, "end"]
    assert history.stopped == "enough" and len(history.epochs) == 3
    kept = recorder.seen[-1][1]
    assert all(value is model.parameters[name] for name, value in kept.items())
    changed = [not np.array_equal(recorder.seen[1][1][name], value) for name, value in recorder.seen[2][1].items()]
    assert all(changed)
    again, whole = make(), make()
    assert trainer(make()).fit(inputs, targets, resume=path).stopped == "enough"
    resumed = trainer(again, callbacks=[later := Recorder(), Onward()]).fit(inputs, targets, resume=path)
    assert later.seen[0] == ("start", 3)
    assert resumed == trainer(whole).fit(inputs, targets)
    equal(again, whole)


def test_an_error_in_a_callback_leaves_the_best_weights() -> None:
    class Broken(Callback):
        def on_epoch_end(self, model: Any, history: Any) -> None:
            if len(history.epochs) == 4:
                raise OSError("no room")

    inputs, targets = nothing_to_learn()
    model, other = make(), make()
    with pytest.raises(OSError, match="no room"):
        trainer(model, optimizer=Adam(0.05), callbacks=[Broken()]).fit(inputs, targets)
    trainer(other, optimizer=Adam(0.05), epochs=4).fit(inputs, targets)
    equal(model, other)


def test_trackers_get_the_numbers_of_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins of the libraries, which no session installs, with their functions."""
    told: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            told.append(folder)

        def add_scalar(self, *given: Any) -> None:
            told.append(given)

        def close(self) -> None:
            told.append("closed")

    board = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    flow = types.SimpleNamespace(
        active_run=lambda: None,
        start_run=lambda: told.append("started"),
        log_metrics=lambda values, step: told.append((values, step)),
        end_run=lambda: told.append("ended"),
    )
    monkeypatch.setitem(sys.modules, "tensorboardX", board)
    monkeypatch.setitem(sys.modules, "mlflow", flow)
    inputs, targets = data()
    settings: dict[str, Any] = {"epochs": 2, "metrics": ["f1"], "callbacks": [TensorBoard("runs"), MLflow()]}
    first, second = trainer(make(), **settings).fit(inputs, targets).epochs
    assert told[:2] == ["runs", "started"] and told[-2:] == ["closed", "ended"]
    assert ("validation_loss", second.validation_loss, 2) in told
    logged = [step for given in told if isinstance(given[0], dict) for step in given[1:]]
    assert logged == [1, 2] and ("metrics/f1", first.metrics["f1"], 1) in told
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match="it is not installed: pip install mlflow"):
        trainer(make(), callbacks=[MLflow()]).fit(inputs, targets)


# Metrics --------------------------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    targets, answers, ones = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 1]), np.ones(5)
    found = compute_metrics(("accuracy", "balanced-accuracy", "f1"), answers, targets, ones)
    assert found == pytest.approx({"accuracy": 0.6, "balanced-accuracy": 5 / 9, "f1": (0.8 + 0.5 + 0) / 3})
    weights = np.array([1.0, 0.0, 2.0, 1.0, 0.0])
    assert compute_metrics(("accuracy",), answers, targets, weights) == {"accuracy": 0.5}
    values, wanted = np.array([[1.0], [2.0], [6.0]]), np.array([[1.0], [3.0], [5.0]])
    found = compute_metrics(("mae", "rmse", "r2"), values, wanted, np.ones(3))
    assert found == pytest.approx({"mae": 2 / 3, "rmse": (2 / 3) ** 0.5, "r2": 1 - 2 / 8})
    assert compute_metrics(("mae",), values, wanted, np.zeros(3)) == {}


@pytest.mark.parametrize("steps", ["last", "every"])
def test_metrics_are_of_the_validation_set(steps: Any) -> None:
    """In the units of `predict`, and the same as `evaluate` gives."""
    random = np.random.default_rng(3)
    inputs, _ = data(30)
    targets: Any = [5e3 + 100 * random.standard_normal((*(len(s),) * (steps == "every"), 3)) for s in inputs]
    settings: dict[str, Any] = {**REGRESSION, "standardize_targets": True, "metrics": ["mae", "rmse"]}
    model = make(steps=steps)
    held_out = (inputs[20:], targets[20:])
    one = trainer(model, epochs=1, **settings)
    history = one.fit(inputs[:20], targets[:20], validation_data=held_out)
    errors = [o - t for o, t in zip(model.predict(held_out[0]), held_out[1], strict=True)]
    flat = np.concatenate([np.atleast_2d(error) for error in errors])
    wanted = {"mae": np.abs(flat).mean(), "rmse": np.sqrt(np.square(flat).mean())}
    assert history.epochs[0].metrics == pytest.approx(wanted, rel=1e-9)
    assert model.evaluate(*held_out, metrics=["mae", "rmse"]).metrics == pytest.approx(wanted, rel=1e-9)


def test_validation_data_watch_the_run_and_are_not_learned() -> None:
    inputs, targets = data(30)
    given = (inputs[24:], targets[24:])
    model, other, third = make(), make(), make()
    history = trainer(model, epochs=3).fit(inputs[:24], targets[:24], validation_data=given)
    alone = trainer(other, epochs=history.best, validation=0.0).fit(inputs[:24], targets[:24])
    assert [epoch.loss for epoch in alone.epochs] == [epoch.loss for epoch in history.epochs[: history.best]]
    equal(model, other)
    best = history.epochs[history.best - 1]  # type: ignore[operator]  # there is a validation set
    assert best.validation_loss == pytest.approx(model.evaluate(*given).loss, rel=1e-12)
    weights = np.array([0, 0, 0, 1, 1, 1.0])
    found = trainer(third, epochs=3).fit(inputs[:24], targets[:24], validation_data=(*given, weights))
    half = model.evaluate(inputs[27:], targets[27:]).loss
    assert found.epochs[best.number - 1].validation_loss == pytest.approx(half, rel=1e-12)
    with pytest.raises(TypeError, match=r"validation_data: expected .*; got list"):
        trainer(third).fit(inputs, targets, validation_data=[inputs])


# Sequences in parts ---------------------------------------------------------------------------------------------------

DROPPED: dict[str, Any] = {"num_layers": 2, "recurrent_dropout": 0.3, "bidirectional": False, "hidden": 6}


@pytest.mark.parametrize("steps", ["last", "every", "mean"])
@pytest.mark.parametrize("longest", [1, 12, 16, 23])
def test_gradient_checkpointing_gives_the_same_gradients(steps: Any, longest: int) -> None:
    """Also with recurrent dropout, whose mask is one for the whole sequence, and for rows that end early."""
    random = np.random.default_rng(2)
    lengths = [longest, max(longest // 3, 0), longest]
    inputs = [random.standard_normal((length, 2)) for length in lengths]
    targets: Any = [random.integers(0, 3, length if steps == "every" else ()) for length in lengths]
    batch = Batch.of(inputs, targets, None, Readout(6, 3, steps=steps))
    models = [make(steps=steps, x=True, **DROPPED) for _ in range(2)]
    whole = models[0].network.learn(batch, CrossEntropy())
    parts = models[1].network.learn_by_parts(batch, CrossEntropy())
    assert parts.loss == pytest.approx(whole.loss, rel=1e-13)
    assert parts[1:4] == whole[1:4]  # right answers, entries, valid ones
    assert list(parts.gradients) == list(whole.gradients)
    for name, value in whole.gradients.items():
        np.testing.assert_allclose(parts.gradients[name], value, rtol=1e-11, atol=1e-14)


def test_gradient_checkpointing_with_fresh_masks_in_each_part() -> None:
    """With zoneout each part draws its masks twice, the same: the directional derivative agrees."""
    random = np.random.default_rng(2)
    inputs, targets = [random.standard_normal((11, 2)) for _ in range(3)], np.array([0, 2, 1])
    model = make(num_layers=2, zoneout_cell=0.3, zoneout_hidden=0.2, dropout=0.4, bidirectional=False)
    batch, loss = Batch.of(inputs, targets, None, model.readout), CrossEntropy()

    def at(step: float) -> Any:
        model.load_parameters({name: value + step * along[name] for name, value in before.items()})
        model.lstm.step = 7
        return model.network.learn_by_parts(batch, loss)

    before = model.parameters
    along = {name: random.standard_normal(value.shape) for name, value in before.items()}
    slope = (at(1e-6).loss - at(-1e-6).loss) / 2e-6
    found = at(0.0).gradients
    assert sum(float(np.sum(along[name] * found[name])) for name in along) == pytest.approx(slope, rel=1e-6)
    assert model.lstm.step == 7 + 3


def test_gradient_checkpointing_records_few_steps_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(steps="every", bidirectional=False)
    recorded: list[int] = []
    record = model.lstm.record
    monkeypatch.setattr(model.lstm, "record", lambda x, *a, **k: (recorded.append(len(x)), record(x, *a, **k))[1])
    inputs = [np.random.default_rng(0).standard_normal((100, 2))] * 2
    model.network.learn_by_parts(Batch.of(inputs, [np.zeros(100, int)] * 2, None, model.readout), CrossEntropy())
    assert recorded == [10] * 20


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return how many bytes `work` has at the same time, beside those of its result and of before; NumPy's count."""
    work()  # what is kept from call to call
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("steps", ["last", "every"])
def test_gradient_checkpointing_uses_fewer_bytes(steps: Any) -> None:
    """Four times the steps: the tape grows as their root, and beside it only the outputs are kept whole."""
    random = np.random.default_rng(4)
    found: dict[int, tuple[int, int]] = {}
    for length in (100, 400):
        inputs = [random.standard_normal((length, 2)) for _ in range(6)]
        targets: Any = [random.integers(0, 3, length if steps == "every" else ()) for _ in inputs]
        model = make(steps=steps, hidden=24, num_layers=2, bidirectional=False)
        batch, loss = Batch.of(inputs, targets, None, model.readout), CrossEntropy()
        network = model.network
        whole, parts = (partial(way, batch, loss) for way in (network.learn, network.learn_by_parts))
        found[length] = (peak_bytes(whole), peak_bytes(parts))
    (long, long_parts), (short, short_parts) = found[400], found[100]
    assert 3.5 < long / short < 4.5
    assert long_parts < long / 4
    kept = 8 * 300 * 6 * 24 * (3 if steps == "every" else 2)  # outputs by parts, joined, and their gradient
    assert long_parts - kept < 2.5 * short_parts


@pytest.mark.parametrize("steps", ["last", "every"])
def test_checkpointed_gradients_in_float32(steps: Any) -> None:
    """The same bits again, and within six times the error of the whole sequence, as the budgets of the suite are."""
    random = np.random.default_rng(6)
    lengths = [37, 12, 30]
    inputs = [random.standard_normal((length, 2)).astype(np.float32) for length in lengths]
    targets: Any = [random.integers(0, 3, length if steps == "every" else ()) for length in lengths]
    switches: dict[str, Any] = {"steps": steps, "hidden": 17, "num_layers": 2, "bidirectional": False}
    model, exact = make(dtype="float32", **switches), make(**switches)
    exact.load_parameters({name: value.astype(np.float64) for name, value in model.parameters.items()})
    batch, loss = Batch.of(inputs, targets, None, model.readout), CrossEntropy()
    first, again = (model.network.learn_by_parts(batch, loss).gradients for _ in range(2))
    whole = model.network.learn(batch, loss).gradients
    wanted = exact.network.learn(batch._replace(x=batch.x.astype(np.float64)), loss).gradients
    for name, value in wanted.items():
        assert first[name].dtype == np.float32
        np.testing.assert_array_equal(first[name], again[name])
        scale, eps = np.abs(value).max(), np.finfo(np.float32).eps
        budget = 6 * (np.abs(whole[name] - value).max() + eps * scale)
        assert np.abs(first[name] - value).max() <= budget, name


def test_a_run_with_gradient_checkpointing_has_the_same_bits_again(tmp_path: Path) -> None:
    inputs, targets = data(20)
    switches: dict[str, Any] = {**DROPPED, "dtype": "float32", "zoneout_cell": 0.1}
    runs = [make(**switches) for _ in range(3)]
    settings: dict[str, Any] = {"gradient_checkpointing": True, "checkpoint": tmp_path / "run"}
    histories = [trainer(model, epochs=4, **settings).fit(inputs, targets) for model in runs[:2]]
    trainer(make(**switches), epochs=2, **settings).fit(inputs, targets)
    histories.append(trainer(runs[2], epochs=4, **settings).fit(inputs, targets, resume=tmp_path / "run"))
    for history, model in zip(histories[1:], runs[1:], strict=True):
        assert history == histories[0]
        equal(model, runs[0])


def test_truncated_backpropagation_by_hand() -> None:
    """One sequence in parts of 3 steps: each part starts from the state of the one before, and takes a step."""
    random = np.random.default_rng(6)
    x, target = random.standard_normal((8, 2)), random.standard_normal((8, 3))
    model, by_hand = (make(steps="every", bidirectional=False) for _ in range(2))
    settings: dict[str, Any] = {**REGRESSION, "validation": 0.0, "standardize": False, "clip_norm": None}
    rule = SGD(0.1)
    history = trainer(model, epochs=1, truncate=3, optimizer=SGD(0.1), **settings).fit([x], [target])
    state, total, loss = None, 0.0, MeanSquaredError()
    for start in (0, 3, 6):
        part = x[start : start + 3, None]
        h, last, tape = by_hand.lstm.record(part, state)
        outputs, read = by_hand.readout.record(h)
        value, dy = loss(outputs, target[start : start + 3, None])
        of_readout = by_hand.readout.backward(read, dy)
        found = by_hand.lstm.backward(tape, of_readout.h)
        gradients = {f"lstm.{n}": v for n, v in found.parameters.items()}
        gradients |= {f"readout.{n}": v for n, v in of_readout.parameters.items()}
        by_hand.load_parameters(rule.step(by_hand.parameters, gradients))
        state, total = last, total + value * len(part)
    for name, value in by_hand.parameters.items():
        np.testing.assert_allclose(model.parameters[name], value, rtol=1e-12)
    assert history.epochs[0].loss == pytest.approx(total / 8, rel=1e-12)


def test_truncation_beyond_the_end_changes_no_bit() -> None:
    inputs, _ = data(20)
    targets = [np.cumsum(s, axis=0)[:, [0, 1, 0]] for s in inputs]
    models = [make(steps="every", bidirectional=False, num_layers=2, dropout=0.2) for _ in range(2)]
    runs = [
        trainer(model, truncate=truncate, **REGRESSION).fit(inputs, targets)
        for model, truncate in zip(models, (None, 9), strict=True)
    ]
    assert runs[0] == runs[1]
    equal(*models)


def test_accumulated_batches_are_one_batch() -> None:
    inputs, targets = data(24)
    moved = []
    for size, accumulate in ((24, 1), (4, 6), (5, 5)):
        model = make(bidirectional=False)
        settings: dict[str, Any] = {"validation": 0.0, "batch_size": size, "accumulate": accumulate, "epochs": 3}
        trainer(model, optimizer=Adam(0.01), **settings).fit(inputs, targets)
        moved.append(model.parameters)
    for parameters in moved[1:]:
        for name, value in moved[0].items():
            np.testing.assert_allclose(parameters[name], value, rtol=1e-6, atol=1e-10)


def test_the_mean_readout_is_the_mean_of_all_steps() -> None:
    """By hand, with x, for rows that end early; its gradients against central differences."""
    random = np.random.default_rng(4)
    model = make(steps="mean", x=True)
    inputs = [random.standard_normal((length, 2)) for length in (3, 5, 1)]
    for output, sequence in zip(model.predict(inputs), inputs, strict=True):
        h, _ = model.lstm(sequence[:, None])
        np.testing.assert_allclose(output, model.readout(h[:, 0].mean(axis=0), sequence.mean(axis=0)), rtol=1e-12)
    targets, loss = np.array([0, 2, 1]), CrossEntropy()
    found = model.learn(inputs, targets, loss).gradients
    parameters = {name: np.array(value) for name, value in model.parameters.items()}
    for name in ("lstm.weight_h_l0", "lstm.bias_l0_reverse", "readout.weight"):
        value = parameters[name]
        for flat in random.choice(value.size, 3, replace=False):
            index = np.unravel_index(flat, value.shape)
            kept, seen = value[index], []
            for sign in (1, -1):
                value[index] = kept + sign * 1e-6
                model.load_parameters(parameters)
                seen.append(model.evaluate(inputs, targets, loss).loss)
            value[index] = kept
            assert found[name][index] == pytest.approx((seen[0] - seen[1]) / 2e-6, abs=1e-8), name


# Progress -------------------------------------------------------------------------------------------------------------


def test_progress_in_a_file_is_a_line_for_each_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    inputs, targets = data()
    trainer(make(), epochs=2, quiet=False, metrics=["f1", "balanced-accuracy"]).fit(inputs, targets)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("f1 " in line and len(line) > 80 for line in lines)
    trainer(make(), epochs=2).fit(inputs, targets)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    inputs, targets = data()
    trainer(make(), epochs=2, quiet=False).fit(inputs, targets)
    shown = capsys.readouterr().err
    assert "2/2" in shown and "epoch 1/2" not in shown


def test_a_readout_finds_its_input_size() -> None:
    lstm = make(dtype="float32").lstm
    readout = Readout.of(lstm, 3, with_x=True, steps="mean", activation="softmax", seed=4)
    other = Readout(lstm.output_width, 3, x_size=2, steps="mean", activation="softmax", dtype="float32", seed=4)
    assert readout.to_dict() == other.to_dict()
    np.testing.assert_array_equal(readout.parameters["weight"], other.parameters["weight"])
