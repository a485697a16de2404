"""The model, the trainer, and the files they write."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.files import check_writable
from lstmcore.lstm import LSTM
from lstmcore.training import (
    SGD,
    Adam,
    AdamW,
    CrossEntropy,
    DivergedError,
    History,
    Loss,
    MeanSquaredError,
    Optimizer,
    Readout,
    SequenceModel,
    Standardizer,
    Trainer,
    load_model,
    pad,
    plot_history,
)

STEP = 1e-6
LENGTHS = (3, 5, 4)


def make(
    *,
    bidirectional: bool = True,
    steps: Any = "last",
    x: bool = False,
    dtype: str = "float64",
    hidden: int = 4,
    **switches: Any,
) -> SequenceModel:
    lstm = LSTM(2, hidden, bidirectional=bidirectional, dtype=dtype, seed=1, backend="numpy", **switches)
    width = lstm.stack.num_directions * lstm.stack.output_size
    return SequenceModel(lstm, Readout(width, 3, steps=steps, x_size=2 if x else 0, dtype=dtype, seed=2))


def data(count: int = 24, seed: int = 0) -> tuple[list[Any], Any]:
    """Three classes of noisy sequences of different lengths."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    inputs = [random.standard_normal((int(random.integers(3, 8)), 2)) + np.array([2.0 * t, -t]) for t in targets]
    return inputs, targets


def nothing_to_learn() -> tuple[list[Any], Any]:
    """Sequences whose targets are drawn by lot, so that a validation loss must rise in the end."""
    inputs, targets = data(40)
    return inputs, np.random.default_rng(8).permutation(targets)


def trainer(model: SequenceModel, **settings: Any) -> Trainer:
    return Trainer(model, **({"epochs": 6, "batch_size": 5, "validation": 0.25, "quiet": True, "seed": 3} | settings))


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
    learn = model.learn
    monkeypatch.setattr(model, "learn", lambda x, *rest: (seen.append(np.stack(x)), learn(x, *rest))[1])
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 30, "validation": 0.0, "input_noise": 0.5}
    trainer(model, **settings).fit(inputs, np.zeros(30, np.int64))
    assert len(seen) == 2
    for values in seen:
        assert values.std() == pytest.approx(0.5, rel=0.1)  # 3000 draws: 0.1 is 7 standard errors
    assert abs(np.corrcoef(seen[0].ravel(), seen[1].ravel())[0, 1]) < 0.1  # 5 standard errors


NOISY: dict[str, Any] = {"num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.2, "zoneout_cell": 0.1}


def test_same_seed_same_run_and_other_seed_another() -> None:
    inputs, targets = data()
    runs = [trainer(make(**NOISY), seed=seed, input_noise=0.3).fit(inputs, targets) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0].epochs != runs[2].epochs


@pytest.mark.parametrize("optimizer", [lambda: AdamW(0.02), lambda: SGD(0.1, momentum=0.9)])
def test_resumed_is_bit_for_bit_uninterrupted(tmp_path: Path, optimizer: Any) -> None:
    inputs, targets = data()
    whole, path = make(dtype="float32", **NOISY), tmp_path / "run.checkpoint"
    expected = trainer(whole, optimizer=optimizer(), epochs=7, input_noise=0.3).fit(inputs, targets)
    cut = make(dtype="float32", **NOISY)
    trainer(cut, optimizer=optimizer(), epochs=3, input_noise=0.3, checkpoint=path).fit(inputs, targets)
    resumed = make(dtype="float32", **NOISY)
    found = trainer(resumed, optimizer=optimizer(), epochs=7, input_noise=0.3).fit(inputs, targets, resume=path)
    assert found == expected
    for name, value in whole.parameters.items():
        np.testing.assert_array_equal(value, resumed.parameters[name])


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    inputs, targets = data()
    path = tmp_path / "run.checkpoint"
    trainer(make(), epochs=1, checkpoint=path).fit(inputs, targets)
    for other, message in (
        (
            trainer(make(), batch_size=6),
            "run.checkpoint: checkpoint of another run: expected settings batch_size=6; got 5",
        ),
        (trainer(make(), optimizer=SGD()), "settings optimizer='sgd'; got 'adam'"),
        (trainer(make(peephole=True)), "expected model lstm="),
    ):
        with pytest.raises(ValueError, match=message):
            other.fit(inputs, targets, resume=path)
    with pytest.raises(ValueError, match="data_sha256"):
        trainer(make()).fit([sequence + 1 for sequence in inputs], targets, resume=path)
    with pytest.raises(ValueError, match="expected a file of format 'lstmcore-model'; got 'lstmcore-checkpoint'"):
        load_model(path)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, "loss: expected one of cross-entropy, mean-squared-error; got 'hinge'"),
        ({"epochs": 0}, "epochs: expected at least 1; got 0"),
        ({"clip_norm": float("nan")}, "clip_norm"),
        ({"validation": 1.0}, "validation"),
        ({"validation": 0.0, "patience": 3}, "patience: needs a validation set"),
        ({"input_noise": -1.0}, "input_noise"),
        ({"seed": -1}, "seed"),
        ({"epochs": 1.5}, "epochs: expected a whole number; got 1.5"),
        ({"epochs": "3"}, "epochs: expected a whole number; got '3'"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number; got 2.5"),
        ({"patience": True}, "patience: expected a whole number; got True"),
        ({"seed": 1.5}, "seed: expected a whole number; got 1.5"),
        ({"clip_norm": "1"}, "clip_norm: expected a number; got '1'"),
        ({"input_noise": None}, "input_noise: expected a number; got None"),
        ({"loss": 3}, "loss: expected one of cross-entropy, mean-squared-error, or a Loss; got int"),
        ({"optimizer": "adam"}, r"optimizer: expected an Optimizer such as Adam\(0.001\), or None; got 'adam'"),
        ({"model": None}, "model: expected a SequenceModel; got NoneType"),
        ({"purge": 2}, "purge: needs chronological=True"),
        ({"checkpoint": "/no/such/folder/run"}, "checkpoint: expected a file in a folder that exists"),
        ({"standardize_targets": True}, "standardize_targets: expected no target_scaling of class numbers"),
    ],
)
def test_trainer_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Trainer(**({"model": make(), "quiet": True} | settings))


def test_settings_may_be_numbers_of_any_type(tmp_path: Path) -> None:
    inputs, targets = data()
    settings: dict[str, Any] = {"epochs": np.int64(2), "batch_size": np.uint8(5), "input_noise": np.float32(0.5)}
    settings |= {"clip_norm": np.float64(1), "checkpoint": tmp_path / "run", "seed": np.int32(3)}
    whole = trainer(make(), **settings).fit(inputs, targets)
    plain: dict[str, Any] = {"epochs": 2, "batch_size": 5, "input_noise": 0.5, "clip_norm": 1.0}
    assert trainer(make(), **plain).fit(inputs, targets, resume=tmp_path / "run") == whole


REGRESSION: dict[str, Any] = {"loss": "mean-squared-error"}


@pytest.mark.parametrize("steps", ["last", "every"])
@pytest.mark.parametrize("kind", ["classes", "values"])
def test_targets_are_checked_as_inputs_are(steps: Any, kind: str) -> None:
    inputs, classes = data(12)
    every = steps == "every"
    lead = [(len(sequence),) if every else () for sequence in inputs]
    good = [
        np.full(shape, c) if kind == "classes" else np.ones((*shape, 3)) for shape, c in zip(lead, classes, strict=True)
    ]
    wrong: list[tuple[Any, type[Exception], str]] = [
        (good[:11], ValueError, "targets: expected 12, one a sequence; got 11"),
        (7, TypeError, "targets: expected an array, or a sequence of them; got int"),
    ]

    def third(value: Any, error: type[Exception], message: str) -> None:
        wrong.append(([*good[:3], value, *good[4:]], error, rf"^targets\[3\]: {message}"))

    if kind == "classes":
        third(good[3] * 1.0, TypeError, "expected class numbers of an integer dtype; got float64")
        third(np.eye(3, dtype=int)[good[3]], ValueError, r"expected shape .* got .*: use targets.argmax\(axis=-1\)")
        third(good[3] + 3, ValueError, "expected class numbers 0 to 2; got 3")
        third(good[3] * 0 - 1, ValueError, "expected class numbers 0 to 2; got -1")
        third(good[3].astype(str), TypeError, "expected class numbers of an integer dtype; got <U")
    else:
        third(good[3] * np.nan, ValueError, "expected finite numbers; got NaN or infinity")
        third(good[3] * np.inf, ValueError, "expected finite numbers")
        third(
            good[3][..., 0], ValueError, r"expected shape \((5, )?3,?\)" if not every else r"expected shape \(\d, 3\)"
        )
        third(good[3].astype(str), TypeError, "expected numbers; got <U")
    third(np.ma.masked_array(good[3], mask=good[3] == 0), TypeError, "expected a plain array; got a masked one")
    third([[1], [2, 3]], ValueError, "expected an array; got rows of different lengths")
    model = make(steps=steps)
    before = model.parameters
    settings = {} if kind == "classes" else REGRESSION
    for targets, error, message in wrong:
        with pytest.raises(error, match=message):
            trainer(model, **settings).fit(inputs, targets)
        with pytest.raises(error, match=message):
            model.evaluate(inputs, targets, CrossEntropy() if kind == "classes" else MeanSquaredError())
    assert model.input_scaling is None and all(model.parameters[name] is value for name, value in before.items())
    listed = [target.tolist() for target in good]
    histories = [trainer(make(steps=steps), **settings).fit(inputs, targets) for targets in (good, listed)]
    assert histories[0].epochs == histories[1].epochs


def test_a_target_for_one_output_needs_its_axis() -> None:
    inputs, _ = data(12)
    lstm = LSTM(2, 4, dtype="float64", seed=1, backend="numpy")
    model = SequenceModel(lstm, Readout(4, 1, dtype="float64", seed=2))
    with pytest.raises(ValueError, match=r"targets\[0\]: expected shape \(1,\); got \(\): use targets\[..., None\]"):
        trainer(model, **REGRESSION).fit(inputs, np.ones(12))


def test_numbers_that_the_dtype_cannot_hold_are_told() -> None:
    inputs, targets = data(12)
    model = make(dtype="float32")
    with pytest.raises(ValueError, match=r"inputs\[0\]: expected numbers that fit into float32"):
        trainer(model, standardize=False).fit([sequence * 1e300 for sequence in inputs], targets)
    with pytest.raises(ValueError, match=r"inputs\[0\]: expected numbers that fit into float32"):
        model.predict([inputs[0] * 1e300])
    with pytest.raises(ValueError, match=r"targets\[0\]: expected numbers that fit into float32"):
        trainer(model, **REGRESSION).fit(inputs, np.full((12, 3), 1e300))
    values = np.random.default_rng(0).standard_normal((12, 3)) * 1e300
    history = trainer(make(dtype="float32"), standardize_targets=True, **REGRESSION).fit(inputs, values)
    assert history.epochs[0].loss < 10


def test_evaluate_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="inputs: expected at least one sequence; got none"):
        make().evaluate([], [], CrossEntropy())


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
    learn = model.learn
    numbers = {sequence.tobytes(): number for number, sequence in enumerate(inputs)}

    def spy(x: Any, *rest: Any) -> Any:
        seen.update(numbers[sequence.tobytes()] for sequence in x)
        return learn(x, *rest)

    monkeypatch.setattr(model, "learn", spy)
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


def test_fit_refuses_bad_data() -> None:
    inputs, targets = data(6)
    for bad, message in (
        ([], "inputs: expected at least one sequence"),
        ([*inputs[:5], np.zeros((3, 4))], r"inputs\[5\]: expected shape \(T, 2\); got \(3, 4\)"),
        (
            [*inputs[:5], np.full((3, 2), np.nan)],
            r"inputs\[5\]: expected finite numbers; got NaN or infinity at step 0",
        ),
        (inputs[:5], "targets: expected 5, one a sequence; got 6"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(make()).fit(bad, targets)
    with pytest.raises(TypeError, match=r"inputs\[0\]: expected an array of numbers"):
        trainer(make()).fit([np.array([["a", "b"]])] * 6, targets)


def test_model_refuses_layers_that_do_not_fit() -> None:
    lstm = LSTM(2, 4, dtype="float64", seed=0, backend="numpy")
    for readout, message in (
        (Readout(5, 1, dtype="float64"), "readout hidden_size: expected 4.*got 5"),
        (Readout(4, 1, x_size=3, dtype="float64"), "readout x_size: expected 0 or input_size=2; got 3"),
        (Readout(4, 1), "readout dtype: expected float64"),
    ):
        with pytest.raises(ValueError, match=message):
            SequenceModel(lstm, readout)


def saved(tmp_path: Path, **switches: Any) -> tuple[SequenceModel, Path]:
    model = make(**switches)
    model.input_scaling = Standardizer(np.array([1.0, -2.0]), np.array([0.5, 3.0]))
    model.target_scaling = Standardizer(np.arange(3.0), np.ones(3))
    model.task = {"kind": "classify", "classes": ["a", "b", "c"]}
    path = tmp_path / "model.safetensors"
    model.save(path)
    return model, path


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"num_layers": 2, "proj_size": 3, "peephole": True, "dropout": 0.2},
        {"layer_norm": True, "coupling": "input_from_forget"},
    ],
)
def test_models_come_back_whole_and_on_any_backend(tmp_path: Path, switches: dict[str, Any]) -> None:
    model, path = saved(tmp_path, **switches)
    inputs, _ = data(5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    for backend in ("numpy", "reference"):
        loaded = SequenceModel.load(path, backend=backend)
        assert loaded.task == model.task
        for name, value in model.parameters.items():
            np.testing.assert_array_equal(value, loaded.parameters[name])
        for left, right in zip(model.predict(inputs), loaded.predict(inputs), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-12)


def test_a_float32_model_runs_on_the_float64_reference(tmp_path: Path) -> None:
    model, path = saved(tmp_path, dtype="float32")
    inputs, _ = data(5)
    loaded = SequenceModel.load(path, backend="reference")
    assert (model.readout.dtype, loaded.readout.dtype) == ("float32", "float64")
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, loaded.parameters[name])
    for left, right in zip(model.predict(inputs), loaded.predict(inputs), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the header of a file."""
    with safe_open(path, framework="numpy") as stream:
        return load_file(path), json.loads(stream.metadata()["lstmcore"])


def rewrite(path: Path, *, drop: str | None = None, version: int = 1, kind: str = "lstmcore-model", **new: Any) -> None:
    tensors, header = opened(path)
    tensors |= {name.replace("__", "."): value for name, value in new.items()}
    if drop is not None:
        tensors.pop(drop, None)
        header.pop(drop, None)
    save_file(tensors, path, metadata={"lstmcore": json.dumps(header | {"format": kind, "version": version})})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version: expected at most 1; got 2, written by a newer lstmcore"),
        ({"kind": "pt"}, "expected a file of format 'lstmcore-model'; got 'pt'"),
        ({"drop": "readout.weight"}, r"tensor 'readout.weight': expected shape \(3, 8\); got none"),
        ({"drop": "lstm.weight_h_l0"}, r"tensor 'lstm.weight_h_l0': expected shape \(16, 4\); got none"),
        ({"drop": "lstm"}, "'lstm' missing in the header"),
        ({"drop": "input_scaling.mean"}, "input_scaling: expected both mean and scale"),
        ({"readout__bias": np.array([0.0, np.nan, 0.0])}, "tensor 'readout.bias': expected finite numbers; got NaN"),
        ({"lstm__bias_l0": np.full(16, np.inf)}, "tensor 'lstm.bias_l0': expected finite numbers"),
        (
            {"readout__bias": np.zeros(4)},
            r"'bias'\]: expected shape \(3\); got \(4,\)|expected shape \(3,?\); got \(4,\)",
        ),
        ({"lstm__weight_x_l0": np.zeros((16, 3))}, r"expected shape \(16, 2\); got \(16, 3\)"),
        ({"lstm__weight_x_l0": np.zeros((16, 2), np.float32)}, "expected dtype float64; got float32"),
        ({"extra": np.zeros(1)}, "got 'extra'"),
    ],
)
def test_damaged_models_are_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _, path = saved(tmp_path)
    rewrite(path, **change)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path)
    assert "model.safetensors" in str(caught.value) and "\n" not in str(caught.value)


HUGE = 10**12


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("lstm", [], "lstm in the header: expected a JSON object; got list"),
        ("lstm.config", None, "lstm config in the header: expected a JSON object; got NoneType"),
        ("lstm.config.hidden_size", HUGE, r"tensor 'lstm.\w+': expected shape \(4000000000000,"),
        ("lstm.config.input_size", HUGE, "input_scaling: expected mean and scale of shape"),
        ("lstm.config.hidden_size", "4", "hidden_size: expected a whole number; got '4'"),
        ("lstm.config.gate_activation", "gelu", "activation: expected one of"),
        ("lstm.config.version", 99, "config version: expected at most 1; got 99"),
        ("lstm.config.reverse", True, "reverse: expected False here"),
        ("lstm.num_layers", HUGE, "num_layers: expected at most 6, as many as there are tensors; got 1000000000000"),
        ("lstm.num_layers", 2, "tensor 'lstm.weight_x_l1': expected shape .*; got none"),
        ("lstm.num_layers", 1.0, "num_layers: expected a whole number; got 1.0"),
        ("lstm.bidirectional", 1, "bidirectional: expected True or False; got 1"),
        ("lstm.dtype", "float32", "readout dtype: expected .* as the LSTM's 'float32' stores; got 'float64'"),
        ("lstm.dtype", ["x"], "dtype: expected one of"),
        ("lstm.more", 1, "lstm in the header: expected config, .*; got 'more', which is unknown"),
        ("more", 1, "the header: expected lstm, readout, task; got 'more'"),
        ("readout", "x", "readout in the header: expected a JSON object; got str"),
        ("readout.output_size", HUGE, "target_scaling: expected mean and scale"),
        ("readout.hidden_size", HUGE, r"tensor 'readout.weight': expected shape \(3, 1000000000000\)"),
        ("readout.x_size", HUGE, "tensor 'readout.weight': expected shape"),
        ("readout.dtype", [], r"readout dtype: expected float32 or float64, .*; got \[\]"),
        ("readout.hidden_size", 7, "readout"),
        ("readout.activation", "gelu", "readout activation: expected one of"),
        ("readout.steps", 3, "readout steps: expected one of"),
        ("readout.more", 3, "readout in the header: expected .*; got 'more'"),
        ("task", [1], "task in the header: expected a JSON object; got list"),
    ],
)
def test_damaged_headers_are_refused_in_one_line(tmp_path: Path, where: str, value: Any, message: str) -> None:
    """At once: nothing of a size that the file only claims is made."""
    _, path = saved(tmp_path)
    tensors, header = opened(path)
    *parents, last = where.split(".")
    spot = header
    for name in parents:
        spot = spot[name]
    spot[last] = value
    save_file(tensors, path, metadata={"lstmcore": json.dumps(header)})
    with pytest.raises(ValueError, match=f"model.safetensors: .*{message}") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    if last not in ("more", "version"):
        header = opened(saved(tmp_path)[1])[1]
        spot = header
        for name in parents:
            spot = spot[name]
        del spot[last]
        save_file(tensors, path, metadata={"lstmcore": json.dumps(header)})
        if parents[1:] != ["config"] or last == "hidden_size":
            with pytest.raises(ValueError, match=rf"model.safetensors: .*{last}'? missing"):
                load_model(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON header; Expecting"),
        ("[1]", "expected a JSON object as header; got list"),
        ('{"a": NaN}', "expected a JSON header; NaN is no JSON"),
        ("[" * 100_000, "expected a JSON header; it is nested too deep"),
        ('{"a": ' + "1" * 5000 + "}", "expected a JSON header; Exceeds"),
    ],
)
def test_headers_that_are_no_json(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd"
    save_file({"a": np.zeros(1)}, path, metadata={"lstmcore": text})
    with pytest.raises(ValueError, match=f"odd: {message}"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_scaling__scale": np.zeros(2)}, "input_scaling scale: expected numbers > 0; got 0.0"),
        ({"input_scaling__scale": np.ones((2, 1))}, "input_scaling scale: expected shape"),
        ({"input_scaling__mean": np.zeros(2, np.float32)}, "input_scaling mean: expected dtype float64"),
        ({"target_scaling__mean": np.full(3, np.nan)}, "target_scaling mean: expected finite numbers"),
        (
            {"lstm__bias_l0": np.zeros(16, np.int64)},
            "tensor 'lstm.bias_l0': expected dtype float32 or float64; got I64",
        ),
    ],
)
def test_damaged_tensors(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _, path = saved(tmp_path)
    rewrite(path, **change)
    with pytest.raises(ValueError, match=f"model.safetensors: {message}"):
        load_model(path)


def test_saving_checks_what_loading_checks(tmp_path: Path) -> None:
    path = tmp_path / "m"
    model = make()
    model.input_scaling = Standardizer(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="input_scaling: expected mean and scale of shape"):
        model.save(path)
    config = LSTMConfig(input_size=2, hidden_size=4)
    other = LSTMConfig(input_size=4, hidden_size=4, peephole=True)
    lstm = LSTM.from_config(StackConfig(((config,), (other,))), dtype="float64", backend="numpy")
    with pytest.raises(ValueError, match="lstm: expected the same switches in every layer"):
        SequenceModel(lstm, Readout(4, 3, dtype="float64")).save(path)
    assert not list(tmp_path.iterdir())


def test_a_task_is_what_json_gives_back(tmp_path: Path) -> None:
    inputs, targets = data()
    task = {"classes": ("a", "b"), "size": np.int64(3), "rates": np.array([0.5, 1.0]), 7: None}
    plain = {"classes": ["a", "b"], "size": 3, "rates": [0.5, 1.0], "7": None}
    model = make()
    model.task = task  # type: ignore[assignment] # any mapping
    assert model.task == plain
    model.save(tmp_path / "m")
    assert load_model(tmp_path / "m").task == plain
    trainer(model, epochs=1, checkpoint=tmp_path / "run").fit(inputs, targets)
    again = make()
    again.task = task  # type: ignore[assignment] # any mapping
    trainer(again, epochs=2).fit(inputs, targets, resume=tmp_path / "run")
    lstm, readout = model.lstm, model.readout
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for wrong in ({"a": float("nan")}, {"a": object()}, {"a": {1, 2}}, [1], {"a": 1j}, {"a": deep}):
        with pytest.raises((TypeError, ValueError), match=r"^task: expected"):
            SequenceModel(lstm, readout, task=wrong)  # type: ignore[arg-type] # that is the test


def test_models_are_copied_and_pickled() -> None:
    inputs, _ = data(5)
    model = make(num_layers=2, dropout=0.2)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for left, right in zip(model.predict(inputs), other.predict(inputs), strict=True):
            np.testing.assert_array_equal(left, right)


def damaged_checkpoints() -> dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]]:
    """What is done to (tensors, header) -> what is said."""

    def drop(prefix: str) -> Callable[[dict[str, Any], dict[str, Any]], object]:
        return lambda tensors, _: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]

    def put(path: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
        *parents, last = path.split(".")

        def change(_: dict[str, Any], header: dict[str, Any]) -> None:
            spot: Any = header
            for name in parents:
                spot = spot[int(name) if isinstance(spot, list) else name]
            spot[last] = value

        return change

    return {
        "model list": (put("model", [1]), "model in the header: expected a JSON object; got list"),
        "settings": (put("settings", None), "settings in the header: expected a JSON object; got NoneType"),
        "no history": (lambda _, header: header.pop("history"), "'history' missing in the header"),
        "history": (put("history", None), "history: expected epochs, best, stopped, drift_threshold"),
        "epochs": (put("history.epochs", 3), "history epochs: expected a list; got int"),
        "epoch": (put("history.epochs", [1]), "history epoch 1: expected number, loss"),
        "loss": (put("history.epochs.1.loss", "x"), "history epoch 2 loss: expected a number; got 'x'"),
        "number": (put("history.epochs.1.number", 7), "history epoch 2: expected number=2; got 7"),
        "best": (put("history.best", 99), "history best: expected one of 2 epochs, or null; got 99"),
        "best null": (put("history.best", None), "expected none but those that the header asks for; got 'best."),
        "best 0": (put("history.best", 0), "history best: expected at least 1; got 0"),
        "stopped": (put("history.stopped", 1), "history stopped: expected a text or null; got int"),
        "steps": (put("optimizer_steps", 0), "optimizer_steps: expected at least 2; got 0"),
        "steps text": (put("optimizer_steps", "7x"), "optimizer_steps: expected a whole number; got '7x'"),
        "lstm step": (put("lstm_step", -1), "lstm_step: expected at least 2; got -1"),
        "lstm step large": (put("lstm_step", 2**32), "lstm_step: expected at most"),
        "no first": (drop("optimizer.first."), "optimizer state: expected the moment 'first' of 'lstm.weight_x_l0'"),
        "no second": (drop("optimizer.second."), "optimizer state: expected the moment 'second' of 'lstm.weight_x_l0'"),
        "no moments": (drop("optimizer."), "optimizer state: expected the moment 'first'"),
        "moment shape": (
            lambda tensors, _: tensors.update({"optimizer.first.lstm.bias_l0": np.zeros(1)}),
            r"expected the moment 'first' of 'lstm.bias_l0' to be float64 of \(16,\), .*; got float64 of \(1,\)",
        ),
        "moment NaN": (
            lambda tensors, _: tensors.update({"optimizer.first.lstm.bias_l0": np.full(16, np.nan)}),
            "tensor 'optimizer.first.lstm.bias_l0': expected finite numbers",
        ),
        "no best": (drop("best."), "tensor 'best.lstm.weight_x_l0': expected shape .*; got none"),
        "part of best": (drop("best.lstm.bias_l0"), "tensor 'best.lstm.bias_l0': expected shape .*; got none"),
        "part of model": (drop("model.readout.bias"), "tensor 'model.readout.bias': expected shape .*; got none"),
        "no scaling": (drop("scaling."), "input_scaling: expected mean and scale for this run"),
        "half a scaling": (drop("scaling.input_scaling.mean"), "input_scaling: expected both mean and scale"),
        "more": (lambda tensors, _: tensors.update(more=np.zeros(1)), "expected none but .*; got 'more'"),
        "scaling of targets": (
            lambda tensors, _: tensors.update({f"scaling.target_scaling.{k}": np.ones(3) for k in ("mean", "scale")}),
            "target_scaling: expected none for this run",
        ),
    }


@pytest.mark.parametrize("damage", damaged_checkpoints())
def test_damaged_checkpoints_are_refused_and_change_nothing(tmp_path: Path, damage: str) -> None:
    inputs, targets = data()
    path = tmp_path / "run"
    trainer(make(), epochs=2, checkpoint=path).fit(inputs, targets)
    change, message = damaged_checkpoints()[damage]
    tensors, header = opened(path)
    change(tensors, header)
    save_file(tensors, path, metadata={"lstmcore": json.dumps(header)})
    model, optimizer = make(), Adam()
    before = model.parameters
    with pytest.raises(ValueError, match=f"run: .*{message}") as caught:
        trainer(model, optimizer=optimizer, epochs=3).fit(inputs, targets, resume=path)
    assert "\n" not in str(caught.value)
    assert all(value is before[name] for name, value in model.parameters.items())
    assert (optimizer.steps, optimizer.state(), model.lstm.step, model.input_scaling) == (0, {}, 0, None)


def test_special_files_and_links_are_never_replaced(tmp_path: Path) -> None:
    model = make()
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "folder" / "target"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"path: expected a file; got .*, a pipe or a device"):
        model.save(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(ValueError, match="path: expected a file; got '/dev/null', a pipe or a device"):
        check_writable("path", "/dev/null")  # nothing is written where this test fails
    with pytest.raises(ValueError, match="pipe: expected a file; got a pipe or a device"):
        load_model(pipe)
    target.parent.mkdir()
    link.symlink_to(target)
    model.save(link)
    assert link.is_symlink() and target.is_file() and not target.is_symlink()
    target.chmod(0o600)
    before = target.stat().st_ino
    model.save(link)
    assert target.stat().st_ino != before and stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "link", "pipe"]
    model.save(tmp_path / ("a" * 255))  # the longest name that a folder takes
    with pytest.raises(ValueError, match="File name too long"):
        model.save(tmp_path / ("a" * 256))


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_models_are_refused(tmp_path: Path, keep: int) -> None:
    _, path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors: expected a whole safetensors file; got"):
        load_model(path)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="foreign: expected a whole safetensors file"):
        load_model(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="expected a file of format 'lstmcore-model'; got None"):
        load_model(path)
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "missing")


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = saved(tmp_path)
    before = path.read_bytes()
    model.task = {"kind": "changed"}

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("lstmcore.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        model.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


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
    with pytest.raises(ImportError, match=r"pip install 'lstmcore\[plot\]'"):
        plot_history(History(), tmp_path / "curve.png")


class Missing:
    """An import system that has no matplotlib."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
