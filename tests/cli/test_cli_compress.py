"""``lstmcore compress``: a smaller model, with its error on data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lstmcore.chain import Chain
from lstmcore.cli import main
from lstmcore.lstm import LSTM
from lstmcore.stored_weights import FORMATS
from lstmcore.training import SequenceModel

TRAIN = ("--epochs", "3", "--hidden-size", "24", "--seed", "1", "--quiet", "--backend", "numpy")


def _run(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "vowels.safetensors"
    _run("train", "japanese-vowels", "--out", path, *TRAIN)
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_it_tells_size_and_error(model: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "small.safetensors"
    words = ("compress", model, "--weights", form, "--out", out, "--data", "japanese-vowels")
    report: dict[str, Any] = json.loads(_run(*words, "--json"))
    assert report["bytes"]["after"] == out.stat().st_size < report["bytes"]["before"] == model.stat().st_size
    assert report["decisions"] == 370
    assert report["decisions_changed"] <= 3
    assert 0 < report["largest_difference"] < 0.1
    before, after = (json.loads(_run("evaluate", path, "japanese-vowels", "--json")) for path in (model, out))
    assert report["scores"]["accuracy"] == pytest.approx([before["accuracy"], after["accuracy"]])
    shown = _run(*words)
    assert f"{form} weights, {report['bytes']['after']:,} bytes in place of {report['bytes']['before']:,}" in shown
    assert f"{report['decisions_changed']} of 370 decisions changed" in shown
    small = SequenceModel.load(out)
    assert small.lstm.precision.weights == form


def test_a_forecast_has_its_errors_before_and_after(tmp_path: Path) -> None:
    model, out = tmp_path / "co2.safetensors", tmp_path / "small.safetensors"
    _run("train", "co2", "--fill", "linear", "--out", model, "--window", "12", *TRAIN)
    report = json.loads(_run("compress", model, "--weights", "int8", "--out", out, "--data", "co2", "--json"))
    before, after = report["scores"]["rmse"]
    assert after == pytest.approx(before, rel=0.1)
    assert "decisions" not in report
    assert report["largest_difference"] > 0


def test_what_it_refuses(model: Path, tmp_path: Path) -> None:
    """Another format, no format, the model's own file, options without data, a model that is compressed already."""
    out = tmp_path / "small.safetensors"
    assert "int4" in _run("compress", model, "--weights", "int4", "--out", out, code=2)
    assert "--weights" in _run("compress", model, "--out", out, code=2)
    assert "--out: expected a file of its own" in _run("compress", model, "--weights", "int8", "--out", model, code=2)
    refused = _run("compress", model, "--weights", "int8", "--out", out, "--fill", "linear", code=2)
    assert "--fill: only with --data" in refused
    assert not out.exists()
    _run("compress", model, "--weights", "int8", "--out", out)
    again = _run("compress", out, "--weights", "float16", "--out", tmp_path / "again", code=2)
    assert "compress the original one" in again
    assert not (tmp_path / "again").exists()


def test_each_model_predicts_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    predict = SequenceModel.predict

    def counted(self: SequenceModel, *args: Any, **options: Any) -> Any:
        calls.append(self.lstm.precision.weights)
        return predict(self, *args, **options)

    monkeypatch.setattr(SequenceModel, "predict", counted)
    out = tmp_path / "small.safetensors"
    _run("compress", model, "--weights", "int8", "--out", out, "--data", "japanese-vowels")
    assert sorted(calls) == ["int8", "same"]
    forecast = tmp_path / "co2.safetensors"
    _run("train", "co2", "--fill", "linear", "--out", forecast, "--window", "12", *TRAIN)
    calls.clear()
    _run("compress", forecast, "--weights", "int8", "--out", out, "--data", "co2")
    assert sorted(calls) == ["int8", "same"]


def test_a_chain_is_no_model(tmp_path: Path) -> None:
    """Only the hint for a chain names `Chain.load`."""
    chain = tmp_path / "chain.safetensors"
    Chain([LSTM(3, 4, seed=0, backend="numpy")]).save(chain)
    told = _run("compress", chain, "--weights", "int8", "--out", tmp_path / "small", code=2)
    assert "SequenceModel(Chain.load(path), Readout(...))" in told
