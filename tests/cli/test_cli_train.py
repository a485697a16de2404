"""The commands train, evaluate and predict."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lstmcore.cli import main
from lstmcore.training import SequenceModel, Trainer

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
    assert isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.strip().splitlines()
    assert message in lines[-1], result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines) == 1 and lines[0].startswith("lstmcore: error: "), result.stderr
    assert sorted(folder.iterdir()) == before


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))  # a model without --out goes there


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
    judged = report("evaluate", out, series, "--backend", "numpy")
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
    refused(
        tmp_path,
        "--target: only for forecasting; got it with japanese-vowels",
        *train,
        "japanese-vowels",
        "--target",
        "x",
    )
    refused(tmp_path, "--fill: only for a file of your own", *train, "japanese-vowels", "--fill", "linear")
    refused(tmp_path, "nope", "train", "--out", out, "japanese-vowels", "--backend", "nope")
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
        ("t,column\n1,5\n2,3\n3,9\n", "expected at least 12 rows to learn from, to validate and to test; got 3"),
    ],
)
def test_bad_csv_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    words = ("--target", "column", "--out", tmp_path / "out", "--window", 8)
    refused(tmp_path, message, "train", path, *words, *SMALL)


@pytest.mark.parametrize(
    ("rows", "words", "window"),
    [
        (400, ("--season", 4), 8),
        (400, ("--season", 26), 52),
        (400, ("--season", 27), 27),
        (400, ("--season", 1), 52),
        (400, (), 52),
        (50, (), 20),
        (50, ("--season", 12), 20),
        (50, ("--test-fraction", 0.5), 12),
        (5, (), 2),
    ],
)
def test_the_window_follows_season_and_rows(tmp_path: Path, rows: int, words: tuple[Any, ...], window: int) -> None:
    """Two seasons, or one long one; 52 rows without one; at most half of the rows that are learned from."""
    path, out = tmp_path / "series.csv", tmp_path / "m"
    path.write_text("column\n" + "".join(f"{row % 4}\n" for row in range(rows)))
    assert run("train", path, "--target", "column", "--out", out, *words, *SMALL).exit_code == 0
    assert (SequenceModel.load(out).task or {})["window"] == window


def test_bad_model_files(tmp_path: Path, vowels: Path, series: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(vowels.read_bytes()[:-9])
    for command in ("evaluate", "predict"):
        refused(tmp_path, "short: expected a whole safetensors file", command, short, "japanese-vowels")
        refused(tmp_path, "my.csv: expected a whole safetensors file", command, series, "japanese-vowels")
        refused(tmp_path, "expected a file that is there", command, tmp_path / "none", "japanese-vowels")
        refused(tmp_path, "expected a model to forecast co2; got one to classify", command, vowels, "co2")
        refused(
            tmp_path,
            "expected japanese-vowels, which the model was trained on, or another NumPy archive; got",
            command,
            vowels,
            series,
        )
        refused(tmp_path, "got 'nofile', which is not there", command, vowels, "nofile")
    refused(tmp_path, "short: expected a whole safetensors file", "train", "japanese-vowels", "--resume", short, *SMALL)


def test_files_that_cannot_be_written_are_told_before_training(
    tmp_path: Path, series: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("trained"))
    train = ("train", series, "--target", "column", "--window", 8, *SMALL)
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    (tmp_path / "to_pipe").symlink_to(pipe)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for option in ("--out", "--checkpoint"):
        for special in (pipe, tmp_path / "to_pipe", "/dev/null"):
            refused(
                tmp_path, f"{option}: expected a file; got '{special}', a pipe or a device", *train, option, special
            )
        refused(tmp_path, f"{option}: expected a file; got the folder", *train, option, tmp_path)
        refused(tmp_path, f"{option}: expected a file; got the folder", *train, option, f"{tmp_path}/new/")
        refused(tmp_path, f"{option}: expected a file that can be written", *train, option, tmp_path / "loop")
        refused(tmp_path, f"{option}: expected a file that can be written", *train, option, tmp_path / ("a" * 256))
        refused(tmp_path, f"{option}: expected a file in a folder that exists", *train, option, "/no/such/m")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    refused(tmp_path, "--checkpoint: expected a file of its own", *train, "--out", out, "--checkpoint", out)
    (tmp_path / "link").symlink_to(out)
    refused(tmp_path, "which is that of --out", *train, "--out", out, "--checkpoint", tmp_path / "link")
    refused(tmp_path, "--out: expected a file of its own", *train, "--out", series)
    pytest.importorskip("matplotlib")
    refused(tmp_path, "--plot: expected a file ending in one of", *train, "--plot", tmp_path / "x.xyz")


def test_a_run_goes_on_in_its_own_checkpoint(tmp_path: Path) -> None:
    check = tmp_path / "run"
    base = ("train", "japanese-vowels", "--hidden-size", 5, "--quiet", "--checkpoint", check)
    assert run(*base, "--epochs", 1).exit_code == 0
    before = check.read_bytes()
    assert run(*base, "--epochs", 2, "--resume", check).exit_code == 0
    assert check.read_bytes() != before
    refused(tmp_path, "which is that of --resume", *base[:-2], "--resume", check, "--out", check)


def test_predictions_replace_neither_model_nor_data(tmp_path: Path, series: Path) -> None:
    out = tmp_path / "m"
    assert run("train", series, "--target", "column", "--window", 8, "--out", out, *SMALL).exit_code == 0
    refused(tmp_path, "which is that of the model", "predict", out, series, "--out", out)
    refused(tmp_path, "which is that of the data", "predict", out, series, "--out", series)


@pytest.mark.parametrize("name", ["a[/v1].csv", "[bold]b:smile:.csv", "$x_{$.csv"])
def test_brackets_and_dollars_in_names_are_text(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("[/day],[c]\n" + "".join(f"[/i]{row},{row % 7}\n" for row in range(60)))
    out = f"{name}.st"
    plot = ("--plot", f"{name}.png") if importlib.util.find_spec("matplotlib") else ()
    options = ("--target", "[c]", "--window", 8, "--hidden-size", 4, "--epochs", 1, "--out", out)
    done = run("train", path, *options, *plot)
    assert done.exit_code == 0, done.output
    assert f"wrote {out}" in done.stdout
    done = run("evaluate", out, path)
    assert done.exit_code == 0, done.output
    assert "[/i]48 to [/i]59" in done.stdout
    done = run("predict", out, path)
    assert done.stdout.startswith("after,step,[c]\n[/i]59,1,")


def test_a_title_is_text(vowels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(vowels.parent)
    odd = Path("m[/v]:smile:.st")
    odd.parent.mkdir()
    odd.write_bytes(vowels.read_bytes())
    done = run("evaluate", odd, "japanese-vowels")
    assert done.exit_code == 0, done.output
    assert f"{odd} on japanese-vowels" in " ".join(done.stdout.split())


@pytest.mark.parametrize("column", ["step", "after"])
def test_a_column_keeps_its_place_whatever_its_name(tmp_path: Path, column: str) -> None:
    path, out = tmp_path / "s.csv", tmp_path / "m"
    path.write_text(f"day,{column}\n" + "".join(f"{row},{row % 7 + 0.5}\n" for row in range(60)))
    assert run("train", path, "--target", column, "--window", 8, "--horizon", 2, "--out", out, *SMALL).exit_code == 0
    rows = list(csv.DictReader(io.StringIO(run("predict", out, path).stdout)))
    assert [(row["after"], row["step"]) for row in rows] == [("59", "1"), ("59", "2")]
    assert all(np.isfinite(float(row[f"{column} (forecast)"])) for row in rows)


def test_options_of_the_other_kind_of_data_are_refused(tmp_path: Path) -> None:
    for option, value in (("--window", 52), ("--horizon", 1), ("--series", "x"), ("--season", 3)):
        refused(
            tmp_path, f"{option}: only for forecasting", "train", "japanese-vowels", option, value, "--out", "m", *SMALL
        )


def test_numbers_beyond_reason(tmp_path: Path, series: Path) -> None:
    train = ("train", series, "--target", "column", "--out", tmp_path / "out", "--quiet", "--epochs", 1)
    small = (*train, "--window", 8, "--hidden-size", 4)
    huge = 10**20
    refused(tmp_path, "--horizon: expected at most 36 for 120 rows of", *small, "--horizon", huge)
    refused(tmp_path, "--season: expected at most 96, the rows of history", *small, "--season", 97)
    refused(tmp_path, "--season: expected at most 96, the rows of history", *small, "--season", huge)
    refused(tmp_path, "input_size, hidden_size: expected sizes", *train, "--window", 8, "--hidden-size", huge)
    refused(tmp_path, "training diverged in epoch 1", *small, "--lr", 1e300)
    refused(tmp_path, "patience: needs a validation set", *small, "--validation", 0, "--patience", 3)
    big = tmp_path / "big.csv"
    big.write_text("column\n" + "".join(f"{1e308 * (-1) ** row}\n" for row in range(60)))
    refused(tmp_path, "big.csv, line 2, column 'column': expected a number of at most", *small[:1], big, *small[2:])
    one = tmp_path / "one.csv"
    one.write_text("column\n1\n")
    refused(tmp_path, "one.csv: expected at least 12 rows", *small[:1], one, *small[2:])


def test_too_little_memory_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 597. GiB")

    monkeypatch.setattr("lstmcore.lstm.initial_parameters", full)
    refused(tmp_path, "out of memory: Unable to allocate 597. GiB: choose a smaller model", "train", "japanese-vowels")


def test_targets_are_standardised_on_the_training_part(series: Path, tmp_path: Path) -> None:
    """No number of a model that trains with `--validation` may change with the values it validates on."""
    text = series.read_text().splitlines()
    # 120 rows, 24 held out: 80 windows of 8 + 9 rows before them, 8 of them to validate, 8 purged
    options = ("--target", "column", "--window", 8, "--horizon", 9, "--hidden-size", 4, "--epochs", 1, "--quiet")
    models = []
    for factor in (1, 3):
        changed = [f"{k},{factor if k >= 80 else 1}{line[line.index(',') + 1:].lstrip('-')}" for k, line in
                   enumerate(text[1:])]  # fmt: skip
        series.write_text("\n".join(["day,column", *changed]) + "\n")
        out = tmp_path / f"{factor}"
        assert run("train", series, *options, "--out", out).exit_code == 0
        models.append(SequenceModel.load(out))
    one, two = models
    assert one.target_scaling is not None and two.target_scaling is not None
    np.testing.assert_array_equal(one.target_scaling.mean, two.target_scaling.mean)
    np.testing.assert_array_equal(one.target_scaling.scale, two.target_scaling.scale)
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(value, two.parameters[name])


def test_a_season_longer_than_the_history_is_told(series: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    train = ("train", series, "--target", "column", "--window", 8, "--season", 50, "--out", out)
    assert run(*train, *SMALL).exit_code == 0
    assert report("evaluate", out, series)["notes"] == []
    result = run("evaluate", out, series, "--test-rows", 90)
    assert "seasonal naive left out: a season has 50 rows, the history 30" in result.stdout
    assert "seasonal naive (50" in run("evaluate", out, series).stdout


def test_a_forecast_of_other_data(series: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert run("train", series, "--target", "column", "--window", 8, "--out", out, *SMALL).exit_code == 0
    for command in ("evaluate", "predict"):
        refused(tmp_path, "to classify japanese-vowels; got one to forecast", command, out, "japanese-vowels")
        refused(tmp_path, "to forecast 'co2' of co2; got one of 'column'", command, out, "co2")
        refused(tmp_path, "got 'nofile', which is not there", command, out, "nofile")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "expected a model whose task has the kind classify or forecast; got None: train it with"),
        ({"kind": "forecast"}, "task: expected kind, target, window, horizon"),
        ({"horizon": 3}, "horizon=3; got {'input_size': 1, 'output_size': 1}"),
        ({"window": "8"}, "task window: expected a whole number"),
        ({"kind": "classify", "classes": 3}, "task classes: expected a list of 1, one an output; got 3"),
    ],
)
def test_models_with_a_task_of_no_use(series: Path, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "m"
    assert run("train", series, "--target", "column", "--window", 8, "--out", path, *SMALL).exit_code == 0
    model = SequenceModel.load(path)
    model.task = {} if change is None else change if len(change) == 1 and "kind" in change else model.task | change
    model.save(path)
    for command in ("evaluate", "predict"):
        refused(tmp_path, message, command, path, series)
        assert f"{path}: " in run(command, path, series).stderr


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
