"""The model, the trainer, and the files they write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lstmcore.lstm import LSTM
from lstmcore.training import (
    SGD,
    AdamW,
    CrossEntropy,
    DivergedError,
    History,
    Loss,
    MeanSquaredError,
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
    *, bidirectional: bool = True, steps: Any = "last", x: bool = False, dtype: str = "float64", **switches: Any
) -> SequenceModel:
    lstm = LSTM(2, 4, bidirectional=bidirectional, dtype=dtype, seed=1, backend="numpy", **switches)
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


def test_input_noise_is_fresh_in_every_epoch_and_of_the_size_asked(monkeypatch: pytest.MonkeyPatch) -> None:
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
    ],
)
def test_trainer_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(make(), **settings)


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


def rewrite(path: Path, *, drop: str | None = None, version: int = 1, kind: str = "lstmcore-model", **new: Any) -> None:
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as stream:
        header = json.loads(stream.metadata()["lstmcore"])
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

    monkeypatch.setattr("lstmcore.training.files.os.fsync", full)
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
