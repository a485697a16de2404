"""DataFrames of pandas and polars: as sequences and targets, and cut into windows."""

from __future__ import annotations

import doctest
import sys
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pytest

from lstmcore import LSTM
from lstmcore.datasets import FrameWindows, frame_windows, windows
from lstmcore.frames import open_frame
from lstmcore.notices import Notice
from lstmcore.training import Adam, Readout, SequenceModel, Trainer
from small_models import REGRESSION, data, make, trainer

LIBRARIES: list[Any] = [pandas.DataFrame, polars.DataFrame, pyarrow.table]


def columns(rows: int = 40) -> dict[str, Any]:
    """Two series under each other, of 40 and of 30 rows, with a date, two targets and a feature."""
    random = np.random.default_rng(0)
    days = [np.datetime64("2024-01-01") + np.arange(count) for count in (rows, rows - 10)]
    shop = ["north"] * rows + ["south"] * (rows - 10)
    values = random.standard_normal((3, len(shop))).cumsum(axis=1)
    return {"shop": shop, "day": np.concatenate(days), "sold": values[0], "price": values[1], "heat": values[2]}


@pytest.mark.parametrize("library", LIBRARIES, ids=["pandas", "polars", "pyarrow"])
def test_windows_by_hand(library: Any) -> None:
    made = windows(
        library(columns()), target=["sold", "price"], features=["heat"], series="shop", time="day", window=5, horizon=3
    )
    assert len(made) == (40 - 7) + (30 - 7) and made.inputs.shape == (56, 5, 3) and made.purge == 4
    table = np.stack([columns()[name] for name in ("sold", "price", "heat")], axis=1)
    series = {"north": table[:40], "south": table[40:]}
    for place, (number, row) in enumerate(made.places):
        own = series[made.series[place]]
        assert made.ids[number] == made.series[place]
        seen, after = own[row - 4 : row + 1].copy(), own[row + 1 : row + 4, :2]
        seen[:, :2] -= own[row, :2]
        np.testing.assert_array_equal(made.inputs[place], seen)
        np.testing.assert_array_equal(made.actual[place], after)
        np.testing.assert_array_equal(made.targets[place], (after - own[row, :2]).ravel())
    np.testing.assert_allclose(made.absolute(made.targets), made.actual, rtol=1e-12, atol=1e-12)
    assert made.series[-2:] == ["north", "south"] and made.places[-2:, 1].tolist() == [36, 26]
    learned, tested = made.split(6)
    assert len(learned) == 56 - 2 * 6 - 2 * 2 + 4 and len(tested) == 2 * 4
    ends = {"north": 34, "south": 24}
    assert all(row + 3 < ends[name] for name, row in zip(learned.series, learned.places[:, 1], strict=True))
    assert all(row + 1 >= ends[name] for name, row in zip(tested.series, tested.places[:, 1], strict=True))
    ahead = made.at_end()
    assert ahead.series == ["north", "south"] and ahead.inputs.shape == (2, 5, 3)
    np.testing.assert_array_equal(ahead.last, table[[39, 69], :2])
    with pytest.raises(ValueError, match="windows at the end of a series"):
        _ = ahead.targets


def test_rows_in_any_order_are_sorted() -> None:
    frame = pandas.DataFrame(columns())
    settings: dict[str, Any] = {"target": ["sold"], "series": "shop", "time": "day", "window": 4}
    wanted = windows(frame, **settings)
    mixed = frame.sample(frac=1, random_state=1)
    found = windows(mixed, sort=True, **settings)
    order = [found.ids.index(name) for name in wanted.ids]
    for number, table in zip(order, wanted.tables, strict=True):
        np.testing.assert_array_equal(found.tables[number], table)
    with pytest.raises(ValueError, match=r"series '\w+', column 'day': expected times that ascend; .*: use sort=True"):
        windows(mixed, **settings)
    texts = frame.assign(day=frame["day"].dt.strftime("%d.%m.%Y"))
    np.testing.assert_array_equal(windows(texts, **settings).inputs, wanted.inputs)


def test_what_is_wrong_with_a_frame_is_told() -> None:
    frame, settings = pandas.DataFrame(columns()), {"target": ["sold"], "window": 4}
    with pytest.raises(ValueError, match=r"column 'day': expected each time once; got one twice: .* name the column"):
        windows(frame, time="day", sort=True, **settings)  # type: ignore[arg-type]
    gone = frame.assign(sold=frame["sold"].where(frame.index != 45))
    with pytest.raises(ValueError, match="series 'south', column 'sold': expected numbers; got none in row 5 of the s"):
        windows(gone, series="shop", **settings)  # type: ignore[arg-type]
    with pytest.warns(Notice, match="series 'north', column 'day': expected even steps; got another before row 7"):
        windows(frame.drop(index=7), series="shop", time="day", **settings)  # type: ignore[arg-type]
    for changes, kind, message in (
        ({"target": "sold"}, TypeError, r"target: expected a sequence of columns; got the text 'sold': use \['sold'\]"),
        ({"target": []}, ValueError, "target, features: expected different columns, at least one target"),
        ({"features": ["sold"]}, ValueError, "target, features: expected different columns"),
        ({"features": ["cost"]}, ValueError, "frame: expected columns shop, day, sold, price, heat; got 'cost'"),
        ({"features": ["shop"]}, TypeError, "column 'shop': expected numbers; got .*: give each category a column"),
        ({"window": 39, "series": "shop"}, ValueError, "series 'south': expected at least 40 rows .*; got 30"),
        ({"frame": frame[:0], "series": "shop"}, ValueError, "frame: expected at least 5 rows; got 0"),
        ({"frame": frame[:0], "time": "day"}, ValueError, "frame: expected at least 5 rows; got 0"),
        ({"time": "shop"}, ValueError, "column 'shop': expected a date, or a number, in each row; got"),
        ({"frame": {}}, TypeError, "frame: expected a DataFrame; got dict"),
        ({"frame": frame["sold"]}, TypeError, r"frame: expected a DataFrame; got Series: use frame\.to_frame\(\)"),
        (
            {"frame": frame.set_index("day"), "time": "day"},
            ValueError,
            r"got 'day', which is the index: use frame\.reset_index\(\)",
        ),
    ):
        with pytest.raises(kind, match=message):
            windows(**({"frame": frame} | settings | changes))  # type: ignore[arg-type]
    made = windows(frame, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows: expected a number that leaves windows before the last rows; got 69"):
        made.split(69)


def test_forecasts_from_several_columns_learn() -> None:
    """The target follows a feature of the step before: a model that reads it beats the last value by far."""
    random = np.random.default_rng(2)
    signal = random.standard_normal(300)
    frame = polars.DataFrame({"y": np.concatenate(([0.0], signal[:-1])).cumsum(), "x": signal})
    learned, tested = windows(frame, target=["y"], features=["x"], window=4).split(60)
    lstm = LSTM(2, 8, seed=0, backend="numpy")
    model = SequenceModel(lstm, Readout.of(lstm, 1, seed=0))
    settings: dict[str, Any] = {"loss": "mean-squared-error", "standardize_targets": True, "chronological": True}
    Trainer(model, optimizer=Adam(0.02), purge=learned.purge, quiet=True, epochs=40, **settings).fit(
        learned.inputs, learned.targets
    )
    error = tested.absolute(np.stack(model.predict(tested.inputs))) - tested.actual
    assert np.sqrt(np.mean(error**2)) < 0.3 * np.sqrt(np.mean(tested.targets**2))


@pytest.mark.parametrize("library", LIBRARIES[:2], ids=["pandas", "polars"])
def test_frames_as_sequences_and_targets(library: Any) -> None:
    """Each sequence a DataFrame, targets a Series or, at every step, a DataFrame: the same run as with arrays."""
    inputs, _ = data(20)
    series = pandas.Series if library is pandas.DataFrame else polars.Series
    framed = [library({"a": x[:, 0], "b": x[:, 1]}) for x in inputs]
    values = np.random.default_rng(0).standard_normal(20)
    weights = np.linspace(0.5, 1, 20)
    runs = []
    for xs, ys, ws in ((inputs, values, weights), (framed, series(values), series(weights))):
        model = make(outputs=1)
        runs.append((trainer(model, **REGRESSION).fit(xs, ys, sample_weight=ws), model))
    assert [epoch.loss for epoch in runs[0][0].epochs] == pytest.approx([e.loss for e in runs[1][0].epochs], rel=1e-9)
    np.testing.assert_allclose(runs[0][1].predict(inputs), runs[0][1].predict(framed), rtol=1e-12)
    steps = [library({"p": x[:, 0], "q": x[:, 1], "r": x[:, 0]}) for x in inputs]
    model = make(steps="every")
    trainer(model, **REGRESSION).fit(framed, steps)
    assert model.evaluate(framed, steps).loss == pytest.approx(
        model.evaluate(inputs, [s.to_numpy() for s in steps]).loss
    )
    names = series(np.array(["a", "b", "c"])[np.arange(20) % 3].tolist())
    model = make()
    trainer(model).fit(framed, names)
    assert model.classes == ["a", "b", "c"]
    with pytest.raises(
        TypeError, match=r"inputs: expected a sequence of arrays .*; got one DataFrame: \[frame\] for one"
    ):
        trainer(model).fit(framed[0], names)


@pytest.mark.parametrize("value", [FrameWindows, windows])
def test_the_example_of_the_docstring_runs(value: Any) -> None:
    test = doctest.DocTestParser().get_doctest(value.__doc__, vars(frame_windows), value.__name__, None, None)
    result: list[str] = []
    doctest.DocTestRunner().run(test, out=result.append)
    assert test.examples and result == []


def test_the_column_that_was_meant_is_named_of_a_frame() -> None:
    frame = pandas.DataFrame({"load": [1.0, 2.0, 4.0], "heat": [5.0, 6.0, 7.0]})
    with pytest.raises(ValueError, match=r"got 'Laod'; did you mean 'load'\?"):
        windows(frame, target=["Laod"], window=1)


@pytest.mark.parametrize("kind", [pandas.DataFrame, pandas.Series, polars.DataFrame])
def test_a_frame_without_narwhals_names_the_extra(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setitem(sys.modules, "narwhals", None)
    library = kind.__module__.partition(".")[0]
    expected = rf"x: expected an array, or narwhals for a {kind.__name__} of {library}; .*: pip install "
    with pytest.raises(ImportError, match=expected):
        open_frame("x", kind({"a": [1.0]}))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_layer_takes_no_frame(library: Any) -> None:
    """It has no names of columns, and does not know which column is a feature."""
    with pytest.raises(TypeError, match="x: expected a NumPy array of float32; got "):
        LSTM(2, 3, backend="numpy")(library({"a": [1.0], "b": [2.0]}))
