"""Checkpoints: a resumed run is the same run, and a damaged file changes nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lstmcore.notices import Notice
from lstmcore.training import (
    SGD,
    Adam,
    AdamW,
    load_model,
)
from small_models import NOISY, data, make, opened, trainer


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
        (trainer(make(peephole=True)), r"expected model lstm\.config\.peephole=True; got False$"),
    ):
        with pytest.raises(ValueError, match=message):
            other.fit(inputs, targets, resume=path)
    with pytest.raises(ValueError, match="data_sha256"):
        trainer(make()).fit([sequence + 1 for sequence in inputs], targets, resume=path)
    with pytest.raises(ValueError, match="expected a file of format 'lstmcore-model'; got 'lstmcore-checkpoint'"):
        load_model(path)


def damaged_checkpoints() -> dict[  # long: one line for each damage
    str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]
]:
    """Return, by name, a change of (tensors, header) and the text of the error."""

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


def test_fewer_epochs_than_a_checkpoint_has_are_refused(tmp_path: Path) -> None:
    inputs, targets = data()
    path = tmp_path / "run"
    whole = trainer(make(), epochs=3, checkpoint=path).fit(inputs, targets)
    model = make()
    before = model.parameters
    with pytest.raises(ValueError, match="run: epochs: expected at least the 3 that the checkpoint has; got 2"):
        trainer(model, epochs=2).fit(inputs, targets, resume=path)
    assert all(model.parameters[name] is value for name, value in before.items()) and model.loss is None
    assert trainer(model, epochs=3).fit(inputs, targets, resume=path) == whole


def test_a_full_disk_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning names the file; the run and its model are those of a run without a checkpoint."""
    inputs, targets = data()
    path, plain, model = tmp_path / "run", make(), make()
    expected = trainer(plain, epochs=4).fit(inputs, targets)
    calls: list[int] = []
    fsync = os.fsync

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) in (2, 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr("lstmcore.files.os.fsync", full)
    with pytest.warns(Notice) as caught:
        found = trainer(model, epochs=4, checkpoint=path).fit(inputs, targets)
    assert [str(item.message) for item in caught] == [
        f"checkpoint: {path} could not be written after epoch {epoch} ([Errno 28] No space left on device: '{path}'); "
        "the run goes on, and tries again after the next epoch"
        for epoch in (2, 3)
    ]
    assert found == expected
    for name, value in plain.parameters.items():
        np.testing.assert_array_equal(value, model.parameters[name])
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert len(opened(path)[1]["history"]["epochs"]) == 4


def test_a_folder_that_vanishes_ends_no_run(tmp_path: Path) -> None:
    inputs, targets = data()
    folder = tmp_path / "folder"
    folder.mkdir()
    one = trainer(make(), epochs=1, checkpoint=folder / "run")
    folder.rmdir()
    with pytest.warns(
        Notice, match=r"^checkpoint: .*folder/run could not be written after epoch 1 \(expected a file in a folder that"
    ):
        assert len(one.fit(inputs, targets).epochs) == 1
