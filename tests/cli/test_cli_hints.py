"""What newcomers are told: names that they perhaps meant, columns of dates, findings, cards, pictures of gaps."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from cli_runs import error, run, succeed
from lstmcore import LSTM
from lstmcore.chain import Chain
from lstmcore.config import LSTMConfig
from lstmcore.datasets import read_columns
from lstmcore.datasets.csv_table import TIME_NAMES
from lstmcore.datasets.csvfile import Layout
from lstmcore.training import SequenceModel
from lstmcore.training.forecast import ForecastTask, forecasts

SMALL = ("--hidden-size", "4", "--epochs", "1", "--backend", "numpy", "--window", "8")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str = "shop.csv", count: int = 60, gaps: tuple[int, ...] = (), sign: str = ",") -> Path:
    """Write days with two columns of numbers and the name of a shop; `gaps` have no sales."""
    rows = ["day,Sales,heat,shop"]
    for row in range(count):
        sales = "" if row in gaps else f"{row % 7 + 0.1 * row:.2f}"
        rows.append(f"{date(2021, 3, 1) + timedelta(row)},{sales},{20 - row % 5},north")
    Path(name).write_text("\n".join(rows).replace(",", sign) + "\n")
    return Path(name)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--target", "sale"), "Sales"),
        (("--target", "sales"), "Sales"),
        (("--target", "Sales,haet"), "heat"),
        (("--target", "Sales", "--features", "Heat"), "heat"),
        (("--target", "Sales", "--series", "shops"), "shop"),
        (("--target", "Sales", "--time", "days"), "day"),
        (("--label", "shop", "--id", "dya"), "day"),
        (("--target", "temperature,Salesmen", "--features", "heat"), None),
        (("--target", "Sales_in_euros"), "Sales"),
        (("--target", "Sales", "--features", "hea"), "heat"),
    ],
)
def test_the_column_that_was_meant_is_named(words: tuple[str, ...], meant: str | None) -> None:
    """Also if it is a beginning of the name, or the other way around, and no other one is."""
    told = error("train", write(), *words)
    hint = f"; did you mean {meant!r}?" if meant else ""
    assert told.endswith(f"no such column in day, Sales, heat, shop{hint}")


def test_the_data_set_that_was_meant_is_named() -> None:
    assert error("train", "japanes-vowels").endswith("which is not there; did you mean 'japanese-vowels'?")
    assert error("train", "sales.csv").endswith("got 'sales.csv', which is not there")


def test_a_name_like_no_other_gets_no_hint() -> None:
    assert error("train", write(), "--target", "profit").endswith("got no such column in day, Sales, heat, shop")


def test_an_unknown_switch_gets_a_hint() -> None:
    with pytest.raises(ValueError, match=r"unknown switch peepholes; known are .*; did you mean 'peephole'\?"):
        LSTMConfig.from_dict({**LSTMConfig(input_size=2, hidden_size=3).to_dict(), "peepholes": True})


@pytest.mark.parametrize("words", [("--target", "day"), ("--target", "Sales", "--features", "heat,day")])
def test_a_column_of_dates_is_no_target(words: tuple[str, ...]) -> None:
    path = write(gaps=(0,))
    path.write_text(path.read_text().replace("2021-03-01,", ",", 1))
    told = error("train", path, *words)
    assert told == (
        "shop.csv, column 'day': expected numbers; got times such as '2021-03-02': name this column with --time, and "
        "choose from Sales, heat, shop"
    )


def test_the_rule_for_the_time_column_is_in_help() -> None:
    for command in ("train", "predict", "evaluate", "plot", "export"):
        shown = " ".join(succeed(command, "--help").split())
        names = ", ".join(sorted(TIME_NAMES))
        assert f"the first named {names} if its cells are times, else the first with dates" in shown, command


def test_findings_are_silent_under_quiet() -> None:
    """A notice about what goes wrong is not."""
    path = write(sign=";")
    words = ("train", path, "--target", "heat", "--out", "m", *SMALL)
    assert "found ';' between cells" in run(*words).stderr
    assert run(*words, "--quiet").stderr == ""
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:20] + rows[22:]) + "\n")
    told = run(*words, "--quiet").stderr
    assert "found" not in told and told.startswith("lstmcore: warning: shop.csv, line")


def test_weights_alone_have_a_card() -> None:
    LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True, seed=0).save("layer")
    shown = " ".join(succeed("info", "layer").split())
    for part in ("format lstmcore-lstm 1", "without a readout", "sequences of 3 numbers a step", "8 numbers at every",
                 "LSTM 3 to 4, 2 layers, both directions", "rows, then steps"):  # fmt: skip
        assert part in shown, part
    count = sum(value.size for value in LSTM(3, 4, num_layers=2, bidirectional=True).parameters.values())
    assert f"{count:,} in float32" in shown and "{" not in shown
    assert succeed("info", "layer", "--json")["stack"]
    Chain([LSTM(3, 4, seed=0), LSTM(4, 5, seed=1)]).save("chain")
    shown = " ".join(succeed("info", "chain").split())
    assert "LSTM 3 to 4; LSTM 4 to 5" in shown and "5 numbers at every" in shown and "{" not in shown


def test_a_gap_at_the_end_is_drawn_as_it_is_read() -> None:
    """The forecast begins from the filled value, and test forecasts reach the last row whatever the horizon."""
    pytest.importorskip("matplotlib")
    from lstmcore.training.forecast_plot import forecast_pictures, plot_forecast

    path = write(count=60, gaps=(40, 58, 59))
    succeed("train", path, "--target", "Sales", "--horizon", 3, "--fill", "previous", "--out", "m", *SMALL)
    model = SequenceModel.load("m", backend="numpy")
    task = ForecastTask.from_dict(model.task)
    (series,) = read_columns(path, ["Sales"], Layout())[0]
    (picture,) = forecast_pictures(model, task, (series,), 25)
    assert np.isnan(picture.history.values[[5, 23, 24]]).all() and np.isfinite(picture.filled).all()
    assert picture.filled[-1] == series.values[57]
    measured = np.flatnonzero(np.isfinite(picture.tested))
    assert measured[-1] == 22  # the last row that was measured; whole horizons end two rows before
    one = replace(task, horizon=1).held_out(series)
    np.testing.assert_array_equal(picture.tested[measured], forecasts(model, one)[-len(measured) :, 0, 0])
    plot_forecast([picture], "f.svg")
    assert "<svg" in Path("f.svg").read_text()
    succeed("plot", "m", path, "--out", "g.svg")
    assert not math.isnan(picture.ahead[0])
