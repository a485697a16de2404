"""Models as files: they come back whole, and a damaged one is refused in one line."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.files import check_writable
from lstmcore.lstm import LSTM
from lstmcore.training import (
    Readout,
    SequenceModel,
    Standardizer,
    load_model,
)
from small_models import data, make, opened, rewrite, saved, trainer


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
        ("loss", "hinge", r"loss: expected one of cross-entropy, mean-squared-error, .*; got 'hinge'"),
        ("loss", 3, r"loss: expected one of cross-entropy, mean-squared-error, .*, or a Loss; got int"),
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
    if last not in ("more", "version", "loss"):
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
        ({"input_scaling__scale": np.full(2, -1.0)}, "input_scaling scale: expected numbers >= 0; got -1.0"),
        ({"input_scaling__scale": np.ones((2, 1))}, "input_scaling scale: expected shape"),
        ({"input_scaling__mean": np.zeros(2, np.float32)}, "input_scaling mean: expected dtype float64"),
        ({"target_scaling__mean": np.full(3, np.nan)}, "target_scaling mean: expected finite numbers"),
        (
            {"lstm__bias_l0": np.zeros(16, np.int64)},
            "tensor 'lstm.bias_l0': expected dtype F32 or F64 or F16 or U16 or I8; got I64",
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
