"""Times in CSV files: rows out of order, twice, missing, of several series; files that never end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.datasets import LabelLayout, Layout, Series, read_csv, read_labelled, read_panel
from lstmcore.datasets.series import next_labels
from lstmcore.notices import Notice
from lstmcore.training.batches import split
from lstmcore.training.forecast import ForecastTask, training_set

START = date(2019, 12, 30)  # a Monday


def days(count: int) -> list[date]:
    return [START + timedelta(day) for day in range(count)]


def months(count: int, step: int = 1, day: int = 1) -> list[date]:
    return [date(2018 + k * step // 12, k * step % 12 + 1, day) for k in range(count)]


def texts(form: str, dates: Sequence[date]) -> list[str]:
    return [moment.strftime(form) for moment in dates]


def hours(count: int) -> list[datetime]:
    return [datetime(2020, 3, 28, 20) + timedelta(hours=hour) for hour in range(count)]


#: Columns of times that ascend evenly, by what is special about them; all with at least 30 rows.
EVEN: dict[str, list[str]] = {
    "ISO days": texts("%Y-%m-%d", days(40)),
    "compact days": texts("%Y%m%d", days(40)),
    "slashed days": texts("%Y/%m/%d", days(40)),
    "German days": texts("%d.%m.%Y", days(40)),
    "American days": texts("%m/%d/%Y", days(40)),
    "British days": texts("%d/%m/%Y", days(40)),
    "business days": texts("%Y-%m-%d", [day for day in days(60) if day.weekday() < 5]),
    "weeks": texts("%Y-%m-%d", days(280)[::7]),
    "hours": texts("%Y-%m-%d %H:%M", hours(40)),
    "hours of UTC": texts("%Y-%m-%dT%H:%M:%SZ", hours(40)),
    "days over a change of the clock": [f"{day}T00:00:00+0{1 + (day >= date(2020, 1, 15))}:00" for day in days(40)],
    "months": texts("%Y-%m", months(40)),
    "ends of months": texts("%Y-%m-%d", [day - timedelta(1) for day in months(40)]),
    "named months": texts("%b %Y", months(40)),
    "British months": texts("%d/%m/%Y", months(40)),
    "American months": texts("%m/%d/%Y", months(40)),
    "months of spreadsheets": texts("%b-%y", months(40)),
    "coded months": [f"{day.year}M{day.month:02}" for day in months(40)],
    "bare months": texts("%Y%m", months(40)),
    "days of spreadsheets": texts("%d-%b-%y", days(40)),
    "short years": texts("%d.%m.%y", days(40)),
    "hours of twelve": texts("%m/%d/%Y %I:%M %p", hours(40)),
    "written days": texts("%d %B %Y", days(40)),
    "quarters first": [f"Q{k % 4 + 1} {1959 + k // 4}" for k in range(40)],
    "unpadded days": [f"{day.year}-{day.month}-{day.day}" for day in days(40)],
    "quarters": [f"{1959 + k // 4}Q{k % 4 + 1}" for k in range(40)],
    "years": [f"{1700 + k}" for k in range(40)],
    "float years": [f"{1700 + k}.0" for k in range(40)],
    "decimal years": [f"{1958 + 0.0833 * k + 0.002 * (k % 3):.4f}" for k in range(40)],
}


#: Columns whose cells strptime reads and strftime writes otherwise, or whose steps are not quite even.
UNPADDED = ("unpadded days", "decimal years", "days over a change of the clock")


def table(folder: Path, times: Sequence[str], values: Sequence[object] | None = None, head: str = "date,y") -> Path:
    path = folder / "my.csv"
    values = range(len(times)) if values is None else values
    path.write_text("\n".join([head, *(f"{time},{value}" for time, value in zip(times, values, strict=True))]) + "\n")
    return path


@pytest.mark.parametrize("kind", EVEN)
def test_rows_in_another_order_are_refused_or_sorted(tmp_path: Path, kind: str) -> None:
    times = EVEN[kind]
    series = read_csv(table(tmp_path, times), "y")
    count = len(times)
    order = [*range(5, count), *range(5)]
    for rows, line, got, after in (
        (list(range(count))[::-1], 3, count - 2, count - 1),
        (order, count - 3, 0, count - 1),
    ):
        path = table(tmp_path, [times[row] for row in rows], rows)
        wanted = rf"line {line}, column 'date': expected times that ascend; got '{times[got]}' after '{times[after]}'"
        with pytest.raises(ValueError, match=wanted.replace("+", r"\+") + ": sort the rows with --sort"):
            read_csv(path, "y")
        found = read_csv(path, "y", sort=True)
        for name in ("values", "times"):
            np.testing.assert_array_equal(getattr(found, name), getattr(series, name))
        assert found.labels == series.labels
        assert [rows[line - 2] for line in found.lines] == list(range(count))
        plain = read_csv(path, "y", time="-")  # the rows as they stand
        assert plain.values.tolist() == rows and plain.times.tolist() == list(range(count))


@pytest.mark.parametrize("kind", EVEN)
@pytest.mark.parametrize("hole", [1, 3])
def test_a_hole_is_told_and_filled(tmp_path: Path, kind: str, hole: int) -> None:
    times = EVEN[kind]
    kept = [row for row in range(len(times)) if not 10 <= row < 10 + hole]
    path = table(tmp_path, [times[row] for row in kept], kept)
    wanted = (
        f"line 12, column 'date': expected even steps; got {hole} missing between .* \\({hole} in all\\): every row"
    )
    with pytest.warns(Notice, match=wanted) as caught:
        series = read_csv(path, "y")
    assert len(caught) == 1 and len(series) == len(kept)
    filled = read_csv(path, "y", insert=True)
    assert np.flatnonzero(filled.gaps).tolist() == list(range(10, 10 + hole))
    assert filled.lines[9:12].tolist() == [11, 12, 12]
    np.testing.assert_allclose(filled.filled("linear").values, range(len(times)), rtol=1e-14)
    assert (np.diff(filled.times) > 0).all()
    assert filled.labels[:10] + filled.labels[10 + hole :] == series.labels
    if kind not in UNPADDED:
        assert list(filled.labels) == times  # what is put in is written as its neighbours are
        assert next_labels(series.head(9), 3) == tuple(times[9:12])
    assert filled.times.tolist() == read_csv(table(tmp_path, filled.labels), "y").times.tolist()


def test_a_hole_of_sixty_days_and_one_without_end(tmp_path: Path) -> None:
    times = texts("%Y-%m-%d", [*days(30), *days(130)[90:]])
    filled = read_csv(table(tmp_path, times), "y", insert=True)
    assert (len(filled), int(filled.gaps.sum())) == (130, 60)
    path = table(tmp_path, [*times, "2919-01-01"])
    with pytest.raises(ValueError, match=r"line 32, .* and \d+ in all, too many for 71 rows: mend the dates"):
        read_csv(path, "y", insert=True)


def test_uneven_times_are_told_once(tmp_path: Path) -> None:
    moments = [datetime(2020, 1, 1) + timedelta(minutes=minute) for minute in (0, 10, 20, 34, 40, 50, 60, 99, 110)]
    path = table(tmp_path, texts("%Y-%m-%d %H:%M", moments))
    for insert in (False, True):
        with pytest.warns(Notice, match="line 5, column 'date': expected even steps; got another distance") as caught:
            assert len(read_csv(path, "y", insert=insert)) == 9
        assert len(caught) == 1


def test_a_time_that_comes_twice(tmp_path: Path) -> None:
    rows = [f"{day},{key}" for key in ("a", "b") for day in days(12)]
    path = table(tmp_path, rows, head="date,shop,y")
    wanted = (
        r"line 14, column 'date': expected each time once; got '2019-12-30' again, as on line 2: if the file holds "
    )
    for sort in (False, True):
        with pytest.raises(ValueError, match=wanted + r"several series, .* with --series \(shop\)"):
            read_csv(path, "y", sort=sort)
    plain = table(tmp_path, [*texts("%Y-%m-%d", days(12)), "2019-12-31"])
    with pytest.raises(ValueError, match=r"line 14, .* got '2019-12-31' again, as on line 3: remove one of them$"):
        read_csv(plain, "y")
    twice = table(tmp_path, [*rows, f"{days(12)[3]},b"], head="date,shop,y")
    with pytest.raises(ValueError, match=r"my.csv, series 'b', line 26, .*as on line 17: remove one of them"):
        read_panel(twice, "y", Layout("shop"))


def test_each_series_has_its_own_times(tmp_path: Path) -> None:
    """Beside a week, steps that each shop counts were taken for a part of the time, and rows were not put in order."""
    rows = [f"{shop},{k},{k % 52},{k}" for k in range(40) for shop in "ab"]
    (path := tmp_path / "panel.csv").write_text("\n".join(["shop,t,week,y", *reversed(rows)]) + "\n")
    with pytest.raises(ValueError, match="column 't'"):
        read_panel(path, "y", Layout("shop"))
    panel = read_panel(path, "y", Layout("shop", sort=True))
    assert [series.values.tolist() for series in panel] == [list(range(40))] * 2
    labelled = read_labelled(path, LabelLayout("shop", rows=Layout(sort=True), features=("y",)), needs_label=False)
    assert [values[:, 0].tolist() for values in labelled.inputs] == [list(range(40))] * 2


def test_a_year_beside_a_quarter_is_no_time(tmp_path: Path) -> None:
    rows = [f"{1959 + k // 4}.0,{k % 4 + 1}" for k in range(20)]
    with pytest.warns(
        Notice, match=r"column 'year': expected each time once; got only a part .* beside 'quarter': order"
    ):
        assert len(read_csv(table(tmp_path, rows, head="year,quarter,y"), "y")) == 20
    assert len(read_csv(table(tmp_path, rows, head="year,quarter,y"), "y", time="-")) == 20
    with pytest.raises(ValueError, match=r"column 'year': expected each time once; got '1959\.0' again"):
        read_csv(table(tmp_path, rows, head="year,quarter,y"), "y", time="year")
    with pytest.raises(ValueError, match=r"column 'year': expected each time once.*--series \(land\)"):
        read_csv(table(tmp_path, rows, head="year,land,y"), "y")


def test_which_column_holds_the_times(tmp_path: Path) -> None:
    backwards = texts("%Y-%m-%d", days(9)[::-1])
    rows = [f"{born},{number},{day}" for born, number, day in zip(backwards, range(9), days(9), strict=True)]
    path = table(tmp_path, rows, head="born,number,date,y")
    assert read_csv(path, "y").labels == tuple(map(str, days(9)))  # the name says it, wherever it stands
    with pytest.raises(ValueError, match="column 'born': expected times that ascend"):
        read_csv(path, "y", time="born")
    assert read_csv(path, "y", time="number").labels == tuple(map(str, range(9)))
    assert read_csv(path, "y", time="-").labels == tuple(backwards)
    with pytest.raises(ValueError, match="line 1: expected one column 'when'; got no such column"):
        read_csv(path, "y", time="when")
    wrong = table(tmp_path, ["2020-01-01", "2020-01-02", "soon", "2020-01-04"])
    with pytest.raises(ValueError, match="line 4, column 'date': expected a time as in the other rows; got 'soon'"):
        read_csv(wrong, "y")
    words = table(tmp_path, ["north", "south", "east"])
    with pytest.warns(Notice, match="line 2, column 'date': expected times in a known format, .*; got 'north': order"):
        assert read_csv(words, "y").labels == ("north", "south", "east")
    assert read_csv(words, "y", time="-").labels == ("north", "south", "east")
    with pytest.raises(ValueError, match="line 2, column 'date': expected a time as in the other rows; got 'north'"):
        read_csv(words, "y", time="date")
    assert read_csv(table(tmp_path, ["north", "south"], head="where,y"), "y").labels == ("north", "south")


@pytest.mark.parametrize("row", [0, 7, 11])
@pytest.mark.parametrize("cell", ["", "soon", "2020-13-45", "TBD"])
def test_one_broken_cell_does_not_end_the_checks(tmp_path: Path, row: int, cell: str) -> None:
    """Wherever it stands; also in a column whose name does not say that it has times."""
    times = [*map(str, days(12))]
    times[row] = cell
    for head in ("date,y", "when,y"):
        message = f"line {row + 2}, column '{head[:-2]}': expected a time as in the other rows; got '{cell}'"
        with pytest.raises(ValueError, match=message):
            read_csv(table(tmp_path, times, head=head), "y")


@pytest.mark.parametrize(
    ("head", "cells"),
    [
        ("date", ["1er janvier 2020", "2 janvier 2020", "3 janvier 2020"]),
        ("when", ["1. Januar 2020", "2. Januar 2020", "3. Januar 2020"]),
        ("when", ["2020.1.1-00", "2020.1.2-00", "2020.1.3-00"]),
        ("hour", ["24:00", "25:00", "26:00"]),
        ("ds", ["first", "second", "third"]),
    ],
)
def test_times_in_an_unknown_format_are_told(tmp_path: Path, head: str, cells: list[str]) -> None:
    path = table(tmp_path, cells, head=f"{head},y")
    with pytest.warns(
        Notice, match=rf"line 2, column '{head}': expected times in a known .* got '{cells[0]}'"
    ) as caught:
        assert len(read_csv(path, "y")) == 3
    assert len(caught) == 1
    assert len(read_csv(path, "y", time="-")) == 3


@pytest.mark.parametrize("cells", [["shop 12", "shop 13"], ["AB-1", "AB-2"], ["192", "168"], ["4 apples", "3 plums"]])
def test_names_with_numbers_are_no_times(tmp_path: Path, cells: list[str]) -> None:
    assert read_csv(table(tmp_path, cells, head="what,y"), "y").labels == tuple(cells)


def test_months_that_begin_with_the_day(tmp_path: Path) -> None:
    """Read as month first, these ascend too, day by day for a year: the even steps decide."""
    british, american = texts("%d/%m/%Y", months(40)), texts("%m/%d/%Y", months(40))
    one, two = (read_csv(table(tmp_path, cells), "y") for cells in (british, american))
    assert one.times.tolist() == two.times.tolist()
    assert next_labels(one, 2) == ("01/05/2021", "01/06/2021")
    assert next_labels(two, 2) == ("05/01/2021", "06/01/2021")
    with pytest.warns(Notice, match="'01/01/2018' was read as %m/%d/%Y, and %d/%m/%Y fits all rows too"):
        read_csv(table(tmp_path, british[:12]), "y")


def test_times_go_on_as_they_are_written(tmp_path: Path) -> None:
    """Ends of months stay ends of months; business days skip weekends; a step of two weeks is two weeks."""

    def after(cells: list[str], count: int = 3) -> tuple[str, ...]:
        return next_labels(read_csv(table(tmp_path, cells), "y"), count)

    ends = texts("%Y-%m-%d", [day - timedelta(1) for day in months(26)])
    assert after(ends) == ("2020-02-29", "2020-03-31", "2020-04-30")
    assert after(texts("%Y-%m-%d", months(26, day=28))) == ("2020-03-28", "2020-04-28", "2020-05-28")
    workdays = texts("%Y-%m-%d", [day for day in days(40) if day.weekday() < 5])
    assert workdays[-1] == "2020-02-07" and after(workdays) == ("2020-02-10", "2020-02-11", "2020-02-12")
    assert after(texts("%d.%m.%Y", days(57)[::14])) == ("09.03.2020", "23.03.2020", "06.04.2020")
    assert after(texts("%Y-%m-%dT%H:%M:%SZ", hours(10))) == tuple(texts("%Y-%m-%dT%H:%M:%SZ", hours(13)[10:]))
    assert after([f"{moment}+02:00" for moment in hours(10)], 1) == (f"{hours(11)[10]}+02:00",)
    assert after(["2019Q3", "2019Q4", "2020Q1"]) == ("2020Q2", "2020Q3", "2020Q4")
    assert after(["1998.0", "1999.0", "2000.0"], 2) == ("2001.0", "2002.0")
    words = read_csv(table(tmp_path, ["north", "south"], head="where,y"), "y")
    assert next_labels(words, 3) == ()


def panel_file(folder: Path, order: Callable[[list[tuple[int, int]]], list[tuple[int, int]]]) -> Path:
    """Three series of 30, 33 and 36 days; the value is 1000 times the series plus the day's square."""
    rows = [(key, day) for key in range(3) for day in range(30 + 3 * key)]
    lines = [f"{START + timedelta(day)},shop {key},{1000 * key + day * day / 100}" for key, day in order(rows)]
    path = folder / "panel.csv"
    path.write_text("\n".join(["date,shop,y", *lines]) + "\n")
    return path


@pytest.mark.parametrize("order", ["stacked", "interleaved"])
def test_several_series_in_one_file(tmp_path: Path, order: str) -> None:
    path = panel_file(tmp_path, list if order == "stacked" else lambda rows: sorted(rows, key=lambda row: row[1]))
    panel = read_panel(path, "y", Layout("shop"))
    assert [series.id for series in panel] == ["shop 0", "shop 1", "shop 2"]
    for key, series in enumerate(panel):
        np.testing.assert_allclose(series.values, 1000 * key + np.arange(30 + 3 * key) ** 2 / 100)
        assert series.labels == tuple(map(str, days(30 + 3 * key)))
    backwards = panel_file(tmp_path, lambda rows: rows[::-1])
    with pytest.raises(ValueError, match="series 'shop 2', line 3, column 'date': expected times that ascend"):
        read_panel(backwards, "y", Layout("shop"))
    for series, one in zip(read_panel(backwards, "y", Layout("shop", sort=True))[::-1], panel, strict=True):
        np.testing.assert_array_equal(series.values, one.values)
    text = path.read_text().replace("shop 1", "")
    path.write_text(text)
    with pytest.raises(ValueError, match=r"line \d+, column 'shop': expected the name of a series; got an empty cell"):
        read_panel(path, "y", Layout("shop"))


@pytest.mark.parametrize("horizon", [1, 4])
def test_no_window_crosses_a_series(tmp_path: Path, horizon: int) -> None:
    """Every window is that of one series, and validation windows share no target with windows that are learned from."""
    panel = read_panel(panel_file(tmp_path, list), "y", Layout("shop"))
    task = ForecastTask(target="y", window=5, horizon=horizon, season=5, test_rows=6, fill="error", series="shop")
    inputs, targets, purge = training_set(task, [(series,) for series in panel])
    known: set[tuple[float, ...]] = set()
    spans: list[tuple[int, int]] = []
    for key, series in enumerate(panel):
        stop = len(series) - 6
        for last in range(4, stop - horizon):
            values = series.values[last - 4 : last + horizon + 1] - series.values[last]
            known.add(tuple(np.round(values, 9)))
            spans.append((key, last))
    where = dict(zip(sorted(known), range(len(known)), strict=True))
    assert len(known) <= len(inputs) == len(spans)
    for window, target in zip(inputs, targets, strict=True):
        assert tuple(np.round(np.concatenate((window[:, 0], target)), 9)) in where
    rows, held = split(len(inputs), 0.2, seed=0, chronological=True, purge=purge)
    ends = {key: [] for key in range(3)}  # type: dict[int, list[tuple[int, bool]]]
    lasts = {key: len(series) - 6 - horizon - 1 for key, series in enumerate(panel)}
    ordered = sorted(spans, key=lambda span: span[1] - lasts[span[0]])
    for number, (key, last) in enumerate(ordered):
        if number in set(rows.tolist()) | set(held.tolist()):
            ends[key].append((last, number in set(held.tolist())))
    for windows in ends.values():
        first_held = min(last for last, is_held in windows if is_held)
        assert max(last for last, is_held in windows if not is_held) + horizon <= first_held


def test_series_without_times_have_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("shop,y\n" + "".join(f"{'ab'[row % 2]},{row}\n" for row in range(10)))
    one, two = read_panel(path, "y", Layout("shop"))
    assert (one.values.tolist(), two.values.tolist()) == ([0, 2, 4, 6, 8], [1, 3, 5, 7, 9])
    assert one.times.tolist() == two.times.tolist() == [0, 1, 2, 3, 4]


def test_holes_of_many_series_are_one_warning(tmp_path: Path) -> None:
    rows = [f"{day},{key}" for key in "abc" for day in days(12) if key == "a" or day != days(12)[5]]
    path = table(tmp_path, rows, head="date,shop,y")
    with pytest.warns(Notice, match=r"series 'b', line 19, .* \(and in 1 more series\)") as caught:
        read_panel(path, "y", Layout("shop"))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        panel: tuple[Series, ...] = read_panel(path, "y", Layout("shop", insert=True))
    assert [int(series.gaps.sum()) for series in panel] == [0, 1, 1]


def test_files_that_never_end_are_refused(tmp_path: Path) -> None:
    """In a process of its own with little memory and a limit of time: a pipe, a device, and a line without end."""
    pipe, sparse, folder = tmp_path / "pipe", tmp_path / "sparse.csv", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    with sparse.open("wb") as stream:
        stream.write(b"t,y\n")
        stream.truncate(1 << 36)  # 64 GiB, which take no room
    code = """
        import resource, sys
        from click.testing import CliRunner
        from lstmcore.cli import main
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        for path in sys.argv[1:]:
            result = CliRunner().invoke(main, ["train", path, "--target", "y"])
            print(result.exit_code, result.stderr.strip())
    """
    paths = [str(pipe), "/dev/zero", str(sparse), str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *paths],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    lines: list[Any] = done.stdout.splitlines()
    assert lines[:2] == [f"2 lstmcore: error: {path}: expected a file; got a pipe or a device" for path in paths[:2]]
    assert f"2 lstmcore: error: {sparse}, line 2: expected a row of at most 1048576 characters" in lines[2]
    assert lines[3] == f"2 lstmcore: error: {folder}: expected a file; got a folder"


@pytest.mark.parametrize(
    "text",
    ["t,y\n1," + "2" * 1_100_000, 't,y\n1,"' + "2\n" * 600_000, "t,y\n1" + ',"\n"' * 300_000],
    ids=["a line", "a quotation", "a row of many lines"],
)
def test_long_rows_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "long.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"long.csv, line \d+: expected (a row of at most 1048576|CSV; field larger)"):
        read_csv(path, "y")
