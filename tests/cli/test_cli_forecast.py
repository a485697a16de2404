"""Forecasts of several columns with features, their dates, pictures, cards and folders."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_runs import error, run, succeed
from lstmcore.datasets import Series, read_columns
from lstmcore.datasets.csvfile import Layout
from lstmcore.training import SequenceModel
from lstmcore.training.forecast import ForecastTask, errors, forecasts

SMALL = ("--hidden-size", "6", "--epochs", "2", "--backend", "numpy", "--window", "9", "--quiet")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def days(count: int, start: date = date(2021, 1, 4)) -> list[str]:
    return [str(start + timedelta(day)) for day in range(count)]


def table(count: int = 90) -> np.ndarray[Any, Any]:
    """(count, 3): load, heat and wind, asymmetric and not in step."""
    random, rows = np.random.default_rng(5), np.arange(count)
    wind = random.normal(size=count)
    load = 50 + 0.2 * rows + 4 * np.sin(rows / 1.7) + wind
    return np.round(np.stack([load, 20 - 3 * np.cos(rows / 3.1), wind], axis=1), 4)


def write(name: str = "my.csv", count: int = 90) -> Path:
    rows = [f"{day},{a},{b},{c}" for day, (a, b, c) in zip(days(count), table(count).tolist(), strict=True)]
    Path(name).write_text("\n".join(["day,load,heat,wind", *rows]) + "\n")
    return Path(name)


def task(**changes: Any) -> ForecastTask:
    values = {"target": "load", "other_targets": ("heat",), "features": ("wind",), "window": 4, "horizon": 3}
    return ForecastTask(**(values | {"season": 4, "test_rows": 20, "fill": "linear"} | changes))


def columns(path: Path = Path("my.csv")) -> tuple[Series, ...]:
    return read_columns(path, ["load", "heat", "wind"], Layout())[0]


def test_windows_of_several_columns() -> None:
    """Targets relative to their last values, features as they stand, targets one after the other."""
    write()
    values, windows = table(), task().training(*columns())
    assert len(windows) == 90 - 20 - 4 - 3 + 1
    for number in (0, 17, len(windows) - 1):
        last = int(windows.origins[number])
        rows = values[last - 3 : last + 1]
        expected = np.concatenate([rows[:, :2] - rows[-1:, :2], rows[:, 2:]], axis=1)
        np.testing.assert_allclose(windows.inputs[number], expected, atol=1e-12)
        ahead = values[last + 1 : last + 4, :2] - values[last, :2]
        np.testing.assert_allclose(windows.targets[number], ahead.T.reshape(-1), atol=1e-12)
        np.testing.assert_allclose(windows.actual[number], values[last + 1 : last + 4, :2].T)
        np.testing.assert_allclose(windows.last_value_forecast()[number], np.repeat(values[last, :2, None], 3, 1))
        np.testing.assert_allclose(windows.seasonal_naive_forecast(4)[number], values[last - 3 : last, :2].T)
    np.testing.assert_allclose(windows.absolute(windows.targets), windows.actual)


def test_gaps_of_any_column_leave_windows_out() -> None:
    """No window ends in a gap of a feature, which a straight line would fill from the future."""
    path = write()
    rows = path.read_text().splitlines()
    rows[30] = rows[30].rpartition(",")[0] + ","  # wind of row 29
    rows[50] = rows[50].replace(rows[50].split(",")[2], "", 1)  # heat of row 49
    path.write_text("\n".join(rows) + "\n")
    origins = set(task().training(*columns()).origins.tolist())
    assert set(range(3, 67)) - origins == {29, 46, 47, 48, 49}
    before = task().training(*columns()).inputs
    path.write_text("\n".join([*rows[:71], *(row.replace(",", ",9", 1) for row in rows[71:])]) + "\n")
    np.testing.assert_array_equal(task().training(*columns()).inputs, before)  # test rows reach no training window


def test_several_targets_with_features() -> None:
    path = write()
    train = ("train", path, "--target", "load,heat", "--features", "wind", "--horizon", 2, "--out", "m", *SMALL)
    told = succeed(*train, "--json")
    assert [(score["target"], score["name"].split(" ")[0]) for score in told["held_out"]] == [
        (target, name) for target in ("load", "heat") for name in ("model", "seasonal", "last")
    ]
    report = succeed("evaluate", "m", path, "--backend", "numpy", "--json")
    assert report["scores"] == told["held_out"]
    model = SequenceModel.load("m", backend="numpy")
    found = ForecastTask.from_dict(model.task)
    assert (found.targets, found.features, model.lstm.input_size, model.readout.output_size) == (
        ("load", "heat"), ("wind",), 3, 4,
    )  # fmt: skip
    windows = found.held_out(*columns())
    wrong = errors(model, windows, found.season)["model"]
    for number, name in enumerate(("load", "heat")):
        score = next(one for one in report["scores"] if (one["target"], one["name"]) == (name, "model"))
        assert score["rmse"] == pytest.approx(np.sqrt(np.mean(wrong[:, number] ** 2)))
    rows = list(csv.DictReader(io.StringIO(succeed("predict", "m", path, "--backend", "numpy"))))
    ahead = forecasts(model, found.at_end(*columns()))[0]
    np.testing.assert_allclose([[float(row[name]) for row in rows] for name in ("load", "heat")], ahead, rtol=1e-12)
    assert "load model" in run(*train[:-1]).stdout
    shown = succeed("evaluate", "m", path)
    assert "heat" in shown and "column" in shown
    assert error("train", path, "--target", "load", "--features", "load").startswith(
        "--features: expected columns besi"
    )
    assert error("train", path, "--target", "load,load").startswith("columns: expected each once; got 'load' twice")


def test_a_forecast_has_dates() -> None:
    path = write()
    succeed("train", path, "--target", "load", "--horizon", 3, "--out", "m", *SMALL)
    assert succeed("predict", "m", path, "--out", "forecast.csv") == "wrote forecast.csv, 3 rows\n"
    rows = list(csv.DictReader(Path("forecast.csv").read_text().splitlines()))
    assert list(rows[0]) == ["after", "step", "time", "load"]
    assert [row["time"] for row in rows] == days(93)[90:] and {row["after"] for row in rows} == {days(90)[-1]}
    told = succeed("predict", "m", path, "--json")
    assert [row["time"] for row in told] == days(93)[90:]
    assert error("predict", "m", path, "--probabilities").startswith("--probabilities: only for classifying; m is a")


def test_a_season_follows_from_the_dates() -> None:
    """A week of days, a year of months; rows without dates have the window, and --season holds."""

    def season(name: str, times: list[str], *options: object) -> int:
        Path(name).write_text("date,y\n" + "".join(f"{time},{row % 5}\n" for row, time in enumerate(times)))
        succeed("train", name, "--target", "y", "--out", "m", *SMALL, *options)
        return int(SequenceModel.load("m").task["season"])

    months = [f"{2000 + k // 12}-{k % 12 + 1:02}" for k in range(60)]
    assert season("days.csv", days(60)) == 7
    assert season("months.csv", months) == 12
    assert season("quarters.csv", [f"{2000 + k // 4}Q{k % 4 + 1}" for k in range(60)]) == 4
    assert season("years.csv", [f"{1900 + k}" for k in range(60)]) == 9
    assert season("months.csv", months, "--season", 6) == 6


def test_no_season_is_told() -> None:
    """Where the baseline's season is a guess; ``--quiet`` leaves it out, as all that was found in the data."""
    words = ("train", "my.csv", "--target", "y", "--epochs", 1, "--hidden-size", 3, "--backend", "numpy", "--out", "m")
    Path("my.csv").write_text("y\n" + "".join(f"{row % 5}\n" for row in range(60)))
    told = "lstmcore: warning: --season: none is known for my.csv: its seasonal-naive forecast repeats the values one "
    result = run(*words)
    assert f"{told}window (24 rows) before; give --season" in result.stderr
    assert "seasonal naive (24 rows ago)" in result.stdout
    assert "--season" not in run(*words, "--season", 5).stderr
    assert run(*words, "--quiet").stderr == ""
    write()
    assert "--season" not in run(*words, "--target", "load").stderr


@pytest.mark.parametrize("series", [1, 2])
@pytest.mark.parametrize("horizon", [12, 15, 30])
def test_too_few_rows_say_what_would_do(series: int, horizon: int) -> None:
    """The horizon and the rows of the message do, and one more or one fewer do not."""

    def trained(rows: int, ahead: int) -> str:
        values = np.random.default_rng(3).normal(size=(series, rows)).cumsum(axis=1).round(3)
        lines = [f"{number},{value}" for number, line in enumerate(values) for value in line]
        Path("short.csv").write_text("\n".join(["shop,y", *lines]) + "\n")
        words = ("--epochs", 1, "--hidden-size", 3, "--backend", "numpy", "--out", "m", "--quiet")
        result = run("train", "short.csv", "--target", "y", "--horizon", ahead, "--series", "shop", *words)
        return result.stderr if result.exit_code else ""

    told = trained(50, horizon)
    found = re.match(r"lstmcore: error: --horizon: expected at most (\d+) for .*, or give at least (\d+) rows", told)
    assert found is not None, told
    most, enough = int(found[1]), int(found[2])
    assert 0 < most < horizon and 50 < enough < 50 * 4
    assert trained(50, most) == "" and "--horizon: expected at most" in trained(50, most + 1)
    assert trained(enough, horizon) == "" and "--horizon: expected at most" in trained(enough - 1, horizon)


@pytest.mark.parametrize("rows", [2, 3])
def test_a_handful_of_rows_says_how_many_would_do(rows: int) -> None:
    words = ("train", "few.csv", "--target", "y", "--epochs", 1, "--hidden-size", 3, "--backend", "numpy", "--out", "m")
    Path("few.csv").write_text("y\n" + "".join(f"{row * row}\n" for row in range(rows)))
    assert error(*words) == f"few.csv: expected at least 4 rows to learn from, to validate and to test; got {rows}"
    Path("few.csv").write_text("y\n1\n3\n2\n5\n")
    assert run(*words).exit_code == 0


def test_without_a_target_the_columns_are_named() -> None:
    assert error("train", write()).endswith("got none. It has day, load, heat, wind")


def test_how_a_file_is_written_is_kept_with_the_model() -> None:
    """What is said in training holds for the other commands, and may be said again for another file."""
    path = write()
    text = path.read_text().replace(".", "#").replace(",", ";").replace("#", ",")
    Path("eu.csv").write_text(text.replace("day", "größe"), encoding="cp1252")
    said = ("--separator", ";", "--decimal", ",", "--encoding", "cp1252")
    result = run("train", "eu.csv", "--target", "load", "--out", "m", *SMALL, *said)
    assert (result.exit_code, result.stderr) == (0, "")
    found = run("train", "eu.csv", "--target", "load", "--out", "n", *SMALL[:-1])
    assert found.stderr.startswith(
        "lstmcore: warning: eu.csv: found cp1252 text, ';' between cells, ',' as the decimal"
    )
    one, two = (SequenceModel.load(name) for name in "mn")
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(value, two.parameters[name])
    result = run("predict", "m", "eu.csv", "--backend", "numpy")
    assert (result.exit_code, result.stderr) == (0, "")
    other = run("predict", "m", path, "--backend", "numpy", "--separator", ",", "--decimal", ".", "--encoding", "utf-8")
    assert other.stdout == result.stdout
    assert "no such column" in error("predict", "m", path)


def test_a_picture_of_the_forecast(folder: Path) -> None:
    """Its lines are the history, the test forecasts and what predict prints; the band has the test errors."""
    pytest.importorskip("matplotlib")
    from lstmcore.training.forecast_plot import forecast_pictures

    path = write()
    succeed("train", path, "--target", "load,heat", "--features", "wind", "--horizon", 2, "--out", "m", *SMALL)
    assert succeed("plot", "m", path, "--out", "f.svg") == "wrote f.svg\n"
    svg = (folder / "f.svg").read_text()
    assert "<svg" in svg and svg.count('id="axes_') == 2
    assert succeed("plot", "m", path) == "wrote my-forecast.png\n" and (folder / "my-forecast.png").is_file()
    model = SequenceModel.load("m", backend="numpy")
    found = ForecastTask.from_dict(model.task)
    load, heat = forecast_pictures(model, found, columns(), 30)
    assert (load.title, heat.title, len(load.history)) == ("load", "heat", 30)
    rows = succeed("predict", "m", path, "--backend", "numpy", "--json")
    np.testing.assert_allclose(heat.ahead, [row["heat"] for row in rows], rtol=1e-12)
    windows = found.held_out(*columns())
    given = forecasts(model, windows)
    row = int(windows.origins[4]) + 1 - 60
    assert load.tested[row] == given[4, 0, 0]
    spread = (windows.actual - given)[:, 1]
    assert heat.low is not None and heat.high is not None
    inside = (heat.ahead + spread >= heat.low) & (heat.ahead + spread <= heat.high)
    assert 0.7 < inside.mean() < 0.9
    assert error("plot", "m", path, "--out", "f.xyz").startswith("--out: expected a file ending in one of")


def test_info_of_each_kind_of_file() -> None:
    path = write()
    succeed("train", path, "--target", "load,heat", "--features", "wind", "--out", "m", "--checkpoint", "run", *SMALL)
    shown = " ".join(succeed("info", "m").split())
    for part in ("forecast load, heat: the next 1 row from the last 9", "wind", "sequences of 3 numbers a step",
                 "the last 18 rows were held out", "inputs and targets", "mean-squared-error"):  # fmt: skip
        assert part in shown, part
    assert succeed("info", "m", "--json")["task"]["target"] == "load"
    assert "epochs done: 2, the best" in succeed("info", "run")
    SequenceModel.load("m").lstm.save("layer")
    assert "lstmcore-lstm" in succeed("info", "layer")
    assert error("info", path).startswith("my.csv: expected a whole safetensors file")
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3)}, "foreign")
    assert error("info", "foreign") == "foreign: expected a file of lstmcore; got safetensors of another program"


def test_a_folder_for_the_hub(folder: Path) -> None:
    """Every command reads the folder as it reads the file; the card has the scores that evaluate prints."""
    path = write()
    succeed("train", path, "--target", "load", "--out", "m", *SMALL)
    assert succeed("export", "m", "--out", "hub", "--data", path, "--title", "Load").startswith("wrote hub: upload it")
    assert sorted(file.name for file in (folder / "hub").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "hub" / "model.safetensors").read_bytes() == (folder / "m").read_bytes()
    card = (folder / "hub" / "README.md").read_text()
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert "library_name: lstmcore" in front and "pipeline_tag: time-series-forecasting" in front
    scores = succeed("evaluate", "m", path, "--json")["scores"]
    assert body.startswith("\n# Load\n") and f"load, model: RMSE {scores[0]['rmse']:.4g}" in body
    config = json.loads((folder / "hub" / "config.json").read_text())
    assert config["library_name"] == "lstmcore" and config["task"]["target"] == "load"
    for words in (("evaluate",), ("predict",)):
        one, two = (succeed(*words, name, path, "--json", "--backend", "numpy") for name in ("m", "hub"))
        assert one == two or one | {"model": ""} == two | {"model": ""}
    assert "forecast load" in succeed("info", "hub")
    assert error("export", "m", "--out", "hub") == "--out: expected a new or an empty one; got 'hub', which has files"
    (folder / "empty").mkdir()
    assert (
        error("predict", "empty", path)
        == "empty: expected a model file, or a folder with model.safetensors; got neither"
    )
    assert error("export", "m", "--out", "no/such").startswith(
        "--out: expected a folder that can be made; got 'no/such'"
    )


def test_columns_that_the_first_series_lacks_are_written() -> None:
    from lstmcore.cli.predict import _csv

    assert _csv([{"step": 1}, {"step": 2, "time": "2020-01-02"}]) == "step,time\n1,\n2,2020-01-02\n"
