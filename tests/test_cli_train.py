"""The commands train, evaluate and predict."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lstmcore.cli import main
from lstmcore.training import SequenceModel

SMALL = ("--hidden-size", "5", "--epochs", "2", "--backend", "numpy", "--quiet")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def report(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(folder: Path, message: str, *arguments: object) -> None:
    """Exit code 2, one line that holds `message`, and no new file."""
    before = sorted(folder.iterdir())
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert message in lines[-1], result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines) == 1 or lines[0].startswith("Usage:"), result.stderr
    assert sorted(folder.iterdir()) == before


@pytest.fixture
def series(tmp_path: Path) -> Path:
    rows = np.arange(120)
    values = 0.05 * rows + np.sin(2 * np.pi * rows / 12)
    path = tmp_path / "my.csv"
    path.write_text("day,column\n" + "".join(f"{row},{value:.6f}\n" for row, value in zip(rows, values, strict=True)))
    return path


@pytest.fixture
def vowels(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    assert run("train", "japanese-vowels", "--out", path, *SMALL).exit_code == 0
    return path


def test_vowels_from_training_to_predictions(vowels: Path, tmp_path: Path) -> None:
    found = report("evaluate", vowels, "japanese-vowels")
    assert found["sequences"] == 370
    right = sum(counts["right"] for counts in found["classes"].values())
    assert found["accuracy"] == pytest.approx(right / 370)
    text = run("predict", vowels, "japanese-vowels").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 370
    assert sum(row["class"] == row["actual"] for row in rows) == right
    assert run("predict", vowels, "japanese-vowels", "--json", "--out", tmp_path / "p.json").exit_code == 0
    assert len(json.loads((tmp_path / "p.json").read_text())) == 370


def test_another_backend_gives_the_same(vowels: Path) -> None:
    one, two = (report("evaluate", vowels, "japanese-vowels", "--backend", name) for name in ("numpy", "reference"))
    assert (one["backend"], one["dtype"], two["backend"], two["dtype"]) == ("numpy", "float32", "reference", "float64")
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert abs(one["accuracy"] - two["accuracy"]) <= 1 / 370


def test_forecast_of_a_csv(series: Path, tmp_path: Path) -> None:
    out = tmp_path / "forecast.safetensors"
    trained = report("train", series, "--target", "column", "--window", 12, "--horizon", 2, "--out", out, *SMALL)
    judged = report("evaluate", out, series)
    assert judged["windows"] == 24 - 1  # a fifth of 120 rows, two steps ahead
    assert judged["scores"] == trained["held_out"]
    by_name = {score["name"]: score for score in judged["scores"]}
    assert by_name["seasonal naive (12 rows ago)"]["rmse"] == pytest.approx(12 * 0.05, rel=1e-4)
    assert set(by_name) == {"model", "seasonal naive (12 rows ago)", "last value"}
    rows = json.loads(run("predict", out, series, "--json").stdout)
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["after"] == "119"


def test_as_written_in_the_issue(series: Path) -> None:
    assert run("train", series, "--target", "column", "--window", "52", "--horizon", "1", *SMALL).exit_code == 0


def test_switches_reach_the_model(tmp_path: Path) -> None:
    out = tmp_path / "m"
    switches = ("--peephole", "--num-layers", 2, "--proj-size", 3, "--unidirectional", "--zoneout-hidden", 0.1)
    assert run("train", "japanese-vowels", "--out", out, *SMALL, *switches, "--dtype", "float64").exit_code == 0
    stack = SequenceModel.load(out).lstm.stack
    config = stack.layers[1][0]
    assert (stack.num_layers, stack.num_directions, config.proj_size, config.peephole) == (2, 1, 3, True)
    assert config.zoneout_hidden == 0.1


def test_resume_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    whole, cut, check = tmp_path / "whole", tmp_path / "cut", tmp_path / "run"
    base = ("train", "japanese-vowels", "--hidden-size", 5, "--quiet", "--dropout", 0.2, "--num-layers", 2)
    assert run(*base, "--epochs", 3, "--out", whole).exit_code == 0
    assert run(*base, "--epochs", 1, "--checkpoint", check).exit_code == 0
    result = run(*base, "--epochs", 3, "--resume", check, "--out", cut, "--plot", tmp_path / "curve.svg")
    assert result.exit_code == 0, result.output
    assert whole.read_bytes() == cut.read_bytes()
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_help_shows_an_example() -> None:
    for command in ("train", "evaluate", "predict"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"lstmcore {command} " in result.output.replace("\n", " ").split("Options:")[0].split("Examples:")[1]


def test_bad_data_arguments(tmp_path: Path, series: Path) -> None:
    out = tmp_path / "out"
    train = ("train", "--out", out, *SMALL)
    refused(tmp_path, "expected one of japanese-vowels, co2 or a CSV file; got 'nope'", *train, "nope")
    refused(tmp_path, "expected --target", *train, series)
    refused(tmp_path, "expected one column 'x'; got no such column in day, column", *train, series, "--target", "x")
    refused(tmp_path, "co2, line 8, column 'co2': expected a number; got a gap (59 of 2284", *train, "co2")
    refused(tmp_path, "--target: japanese-vowels has no column", *train, "japanese-vowels", "--target", "x")
    refused(tmp_path, "--fill: only for forecasting", *train, "japanese-vowels", "--fill", "linear")
    refused(tmp_path, "nope", *train, "japanese-vowels", "--backend", "nope")
    refused(tmp_path, "--hidden-size", *train, "japanese-vowels", "--hidden-size", "0")
    refused(tmp_path, "activation", *train, "japanese-vowels", "--gate-activation", "x")
    refused(
        tmp_path, "--out: expected a file in a folder that exists", "train", "japanese-vowels", "--out", "/no/such/m"
    )
    refused(tmp_path, "--momentum: only for sgd", *train, "japanese-vowels", "--momentum", "0.5")
    refused(tmp_path, "expected one of the two", *train, series, "--target", "column", "--test-rows", 5,
            "--test-fraction", 0.1)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header row"),
        ("t,column\n", "expected rows after the header; got none"),
        ("t,column\n1,5\n", "got 1"),
        ("t,column\n1,5\n2,\n3,4\n", "line 3, column 'column': expected a number; got a gap"),
        ("t,column\n1,5\n2,x\n", "line 3, column 'column': expected a number; got 'x'"),
        ("t,column\n1,5\n2,3\n3,9\n", "expected at least 53 measured rows for window=52, horizon=1"),
    ],
)
def test_bad_csv_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    refused(tmp_path, message, "train", path, "--target", "column", "--out", tmp_path / "out", *SMALL)


def test_bad_model_files(tmp_path: Path, vowels: Path, series: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(vowels.read_bytes()[:-9])
    for command in ("evaluate", "predict"):
        refused(tmp_path, "short: expected a whole safetensors file", command, short, "japanese-vowels")
        refused(tmp_path, "my.csv: expected a whole safetensors file", command, series, "japanese-vowels")
        refused(tmp_path, "No such file", command, tmp_path / "none", "japanese-vowels")
        refused(tmp_path, "expected a model to forecast co2; got one to classify", command, vowels, "co2")
    refused(tmp_path, "short: expected a whole safetensors file", "train", "japanese-vowels", "--resume", short, *SMALL)


@pytest.mark.slow
def test_vowels_reach_96_percent_over_three_seeds(tmp_path: Path) -> None:
    accuracies = []
    for seed in range(3):
        out = tmp_path / f"{seed}"
        assert run("train", "japanese-vowels", "--out", out, "--seed", seed, "--quiet").exit_code == 0
        accuracies.append(report("evaluate", out, "japanese-vowels")["accuracy"])
    assert np.mean(accuracies) >= 0.96, accuracies


@pytest.mark.slow
def test_co2_beats_the_seasonal_naive_forecast(tmp_path: Path) -> None:
    out = tmp_path / "co2.safetensors"
    command = ("train", "co2", "--fill", "linear", "--window", 52, "--horizon", 1, "--out", out, "--quiet")
    assert run(*command).exit_code == 0
    found = report("evaluate", out, "co2")
    assert found["windows"] == 104 and found["to"] == "20011229"
    by_name = {score["name"]: score["rmse"] for score in found["scores"]}
    assert by_name["model"] < by_name["seasonal naive (52 rows ago)"]
