"""The data that ships, CSV files of one's own, and windows."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore import datasets
from lstmcore.datasets import Windows
from lstmcore.training.forecast import ForecastTask


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_japanese_vowels() -> None:
    data = datasets.load("japanese-vowels")
    assert (len(data.train), len(data.test), data.input_size, len(data.classes)) == (270, 370, 12, 9)
    lengths = [len(sequence) for sequence in (*data.train.inputs, *data.test.inputs)]
    assert (min(lengths), max(lengths), sum(lengths)) == (7, 29, 9961)
    assert np.bincount(data.train.targets).tolist() == [30] * 9
    assert np.bincount(data.test.targets).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]  # as the source states


def test_co2() -> None:
    series = datasets.load("co2")
    assert (len(series), int(series.gaps.sum())) == (2284, 59)
    assert (series.labels[0], series.labels[-1]) == ("19580329", "20011229")
    assert (series.values[0], series.values[-1]) == (316.1, 371.5)


def test_the_licences_ship() -> None:
    text = (files("lstmcore.datasets") / "data" / "SOURCES.md").read_text()
    assert "CC BY 4.0" in text and "public domain" in text
    assert set(datasets.names()) == {"japanese-vowels", "co2"}
    with pytest.raises(ValueError, match="expected one of japanese-vowels, co2; got 'mnist'"):
        datasets.load("mnist")


def test_read_csv(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffday, y ,note\n1,2.5,"a, b"\n\n2, 3e1 ,\n')
    series = datasets.read_csv(path, "y")
    assert series.values.tolist() == [2.5, 30.0]
    assert series.lines.tolist() == [2, 4]
    assert series.labels == ("1", "2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.csv: expected a header row.*empty"),
        ("x,y\n", "my.csv: expected rows after the header; got none"),
        ("x,z\n1,2\n", "line 1: expected one column 'y'; got no such column in x, z"),
        ("y,y\n1,2\n", "line 1: expected one column 'y'; got 2 of them"),
        ('"x;z"\n"1;2"\n', r"no such column in x;z \(it is one cell: if ';' separates cells, choose it with --sep"),
        ('"x,y"\n"1,2"\n', r"no such column in x,y \(the whole row is in quotes"),
        ("x,y\n1,2\n3,high\n", "line 3, column 'y': expected a number; got 'high'"),
        ("x,y\n1,2\n3,inf\n", "line 3, column 'y': expected a finite number; got 'inf'"),
        ("x,y\n1,2\n3\n", "line 3: expected 2 cells as in the header; got 1"),
        ('x,y\n1,2\n3,"4\n', "line 3: expected CSV"),
        (b"x,y\n1,\x81\xfe\n", "expected UTF-8 text; got other bytes: name the encoding with --encoding"),
        (b"x,y\n" + b"1,2\n" * 300_000 + b"1,\xe9\n", "after line .*: expected utf-8-sig text; got .*--encoding"),
        (b"PK\x03\x04rest", "expected a CSV file; got a zip or Excel file: save the sheet as CSV"),
        ("x,y\n1,2\n3,1_000\n", "line 3, column 'y': expected a number; got '1_000'"),
        ("x,y\n1,2\n3,-1e308\n", r"line 3, column 'y': expected a number of at most 1e\+150 in size; got '-1e308'"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        datasets.read_csv(write(tmp_path, text), "y")
    assert "\n" not in str(caught.value)


def test_gaps_are_never_filled_silently(tmp_path: Path) -> None:
    series = datasets.read_csv(write(tmp_path, "y\n1\nNA\nnan\n4\n"), "y")
    with pytest.raises(ValueError, match=r"line 3, column 'y': expected a number; got a gap \(2 of 4 rows"):
        series.filled("error")
    with pytest.raises(ValueError, match="without gaps"):
        Windows.cut(series, 1, 1)
    assert series.filled("linear").values.tolist() == [1, 2, 3, 4]
    assert series.filled("previous").values.tolist() == [1, 1, 1, 4]
    assert series.filled("linear").gaps.tolist() == [False, True, True, False]
    wrong: Any = "mean"
    with pytest.raises(ValueError, match="fill: expected one of error, linear, previous; got 'mean'"):
        series.filled(wrong)


def test_empty_lines_of_one_column_are_gaps(tmp_path: Path) -> None:
    """Empty lines of one column are gaps, except those at the end."""
    series = datasets.read_csv(write(tmp_path, "y\n1\n\n\n4\nNA\n6\n\n\n"), "y")
    np.testing.assert_array_equal(series.values, [1, np.nan, np.nan, 4, np.nan, 6])
    assert series.gaps.tolist() == [False, True, True, False, True, False]
    assert series.lines.tolist() == [2, 3, 4, 5, 6, 7]
    assert series.labels == ("0", "1", "2", "3", "4", "5")
    with pytest.raises(ValueError, match=r"line 3, column 'y': expected a number; got a gap \(3 of 6 rows"):
        series.filled("error")
    first = datasets.read_csv(write(tmp_path, "y\n\n2\n"), "y")
    assert first.gaps.tolist() == [True, False]


def test_gaps_at_the_ends(tmp_path: Path) -> None:
    end = datasets.read_csv(write(tmp_path, "y,x\n1,0\n2,0\n,0\n"), "y")
    assert end.filled("previous").values.tolist() == [1, 2, 2]
    with pytest.raises(ValueError, match="line 4, column 'y': expected a value after the gap"):
        end.filled("linear")
    start = datasets.read_csv(write(tmp_path, "y,x\n,0\n2,0\n"), "y")
    for method in ("linear", "previous"):
        with pytest.raises(ValueError, match="line 2, column 'y': expected a value before the gap"):
            start.filled(method)  # type: ignore[arg-type] # a loop over literals


def series_of(tmp_path: Path, values: list[str]) -> datasets.Series:
    return datasets.read_csv(write(tmp_path, "i,y\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values))), "y")


def test_windows_by_hand(tmp_path: Path) -> None:
    series = series_of(tmp_path, ["0", "1", "4", "9", "16", "25"])
    windows = Windows.cut(series, 3, 2)
    assert windows.origins.tolist() == [2, 3]
    assert windows.inputs[..., 0].tolist() == [[-4, -3, 0], [-8, -5, 0]]
    assert windows.targets.tolist() == [[5, 12], [7, 16]]
    assert windows.absolute(windows.targets).tolist() == windows.actual.tolist() == [[9, 16], [16, 25]]
    assert windows.last_value_forecast().tolist() == [[4, 4], [9, 9]]
    assert windows.seasonal_naive_forecast(1).tolist() == [[4, 4], [9, 9]]
    assert windows.seasonal_naive_forecast(3).tolist() == [[0, 1], [1, 4]]
    with pytest.raises(ValueError, match=r"season: expected at most 3, the rows of history .*; got 4"):
        windows.seasonal_naive_forecast(4)


def test_held_out_windows_read_the_past_but_have_no_target_in_it(tmp_path: Path) -> None:
    series = series_of(tmp_path, [str(n) for n in range(20)])
    windows = Windows.cut(series, 4, 1, start=15)
    assert (windows.origins + 1).tolist() == [15, 16, 17, 18, 19]
    training = Windows.cut(series, 4, 1, stop=15)
    assert int(training.origins[-1]) + 1 == 14


def test_filled_values_are_neither_targets_nor_origins(tmp_path: Path) -> None:
    series = series_of(tmp_path, ["0", "1", "2", "", "4", "5", "6"]).filled("linear")
    assert Windows.cut(series, 2, 1).origins.tolist() == [1, 4, 5]


def test_too_short_a_series(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected at least 4 measured rows for window=3, horizon=1.*got 1"):
        Windows.cut(series_of(tmp_path, ["1"]), 3, 1)
    for window, horizon in ((10**20, 1), (1, 10**20)):
        with pytest.raises(ValueError, match=f"window={window}, horizon={horizon} and targets from row 0; got 2"):
            Windows.cut(series_of(tmp_path, ["1", "2"]), window, horizon)
    with pytest.raises(ValueError, match=r"season: expected at most 1, .*got 100000000000000000000"):
        Windows.cut(series_of(tmp_path, ["1", "2"]), 1, 1).seasonal_naive_forecast(10**20)
    with pytest.raises(ValueError, match="got 4, 2 of them gaps"):
        Windows.cut(series_of(tmp_path, ["1", "2", "", ""]).filled("previous"), 2, 1)
    with pytest.raises(ValueError, match="window: expected at least 1; got 0"):
        Windows.cut(series_of(tmp_path, ["1", "2"]), 0, 1)
    assert Windows.at_end(series_of(tmp_path, ["1", "2", "4"]), 2).inputs.tolist() == [[[-2.0], [0.0]]]
    with pytest.raises(ValueError, match="expected at least 4 rows for window=4; got 3"):
        Windows.at_end(series_of(tmp_path, ["1", "2", "4"]), 4)


def forecast_task(**changes: Any) -> ForecastTask:
    values = {"target": "y", "window": 2, "horizon": 1, "season": 2, "test_rows": 4, "fill": "linear"}
    return ForecastTask(**(values | changes))


@pytest.mark.parametrize("gap", [(4, 5), (5, 6), (5,), (6,), (2, 3, 4, 5, 6, 7)])
@pytest.mark.parametrize("fill", ["linear", "previous"])
def test_a_gap_at_the_held_out_rows(tmp_path: Path, gap: tuple[int, ...], fill: str) -> None:
    """Rows 6 to 9 are held out: what is filled in the training rows does not depend on them."""
    rows = [str(row * row) for row in range(10)]
    for row in gap:
        rows[row] = ""
    if len(gap) > 3:
        with pytest.raises(ValueError, match="expected at least 3 measured rows for window=2"):
            forecast_task(fill=fill).training(series_of(tmp_path, rows))
        return
    task = forecast_task(fill=fill)
    windows = task.training(series_of(tmp_path, rows))
    measured = [row for row in range(6) if row not in gap]
    assert windows.origins.tolist() == [row for row in measured if row >= 1 and row + 1 in measured]
    other = task.training(series_of(tmp_path, [*rows[:6], *("" if v == "" else "7" for v in rows[6:])]))
    np.testing.assert_array_equal(windows.inputs, other.inputs)
    np.testing.assert_array_equal(windows.targets, other.targets)
    held_out = task.held_out(series_of(tmp_path, rows))
    assert not set((held_out.origins + 1).tolist()) & set(gap)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": "8"}, "task window: expected a whole number; got '8'"),
        ({"horizon": 0}, "task horizon: expected at least 1; got 0"),
        ({"target": 3}, "task target: expected the name of a column; got 3"),
        ({"fill": []}, "task fill: expected one of error, linear, previous"),
        ({"series": 3}, "task series: expected the name of a column; got 3"),
        ({"sort": 1}, "task sort: expected True or False; got 1"),
        ({"trained_to": [3]}, "task trained_to: expected a mapping; got list"),
        ({"trained_to": {"": "x"}}, "task trained_to '': expected a number; got 'x'"),
        ({"more": 1}, "task: expected kind, target, window, horizon, season, test_rows, fill, series.*; got .*more"),
    ],
)
def test_a_damaged_task_is_told(values: dict[str, Any], message: str) -> None:
    task = forecast_task()
    assert ForecastTask.from_dict(task.to_dict()) == task
    with pytest.raises((TypeError, ValueError), match=message):
        ForecastTask.from_dict(task.to_dict() | values)
    for name in ("kind", "target", "window", "horizon", "season", "test_rows", "fill"):
        with pytest.raises(ValueError, match="task: expected kind, target"):
            ForecastTask.from_dict({key: value for key, value in task.to_dict().items() if key != name})


def test_a_series_of_one_row_has_nothing_to_hold_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least 2 rows, to train on and to hold out; got 1"):
        forecast_task().training(series_of(tmp_path, ["1"]))
