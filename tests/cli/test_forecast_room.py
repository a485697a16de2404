"""The advice of ``lstmcore train`` where rows are too few: whoever follows it gets a run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from lstmcore.cli import main
from lstmcore.cli._runs import make_run
from lstmcore.notices import Finding
from lstmcore.training.batches import split

ADVICE = re.compile(
    r"--(?P<option>horizon|window): expected at most (?P<most>\d+)|expected at least (?P<only>\d+) rows"
)
ROWS = re.compile(r"at least (\d+) rows")
HELD = re.compile(r"the last (\d+) of which are kept for the test")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(lengths: Sequence[int], options: dict[str, Any], dates: bool = False) -> tuple[str, int]:
    """Return the error of a run on series of these lengths with its validation split, and its test rows."""
    cells = [[f"{date(2020, 1, 1) + timedelta(row)}" if dates else f"{row}" for row in range(n)] for n in lengths]
    lines = [f"{shop},{day},{row % 7}" for shop, days in enumerate(cells) for row, day in enumerate(days)]
    Path("room.csv").write_text("\n".join(["shop,time,y", *lines]) + "\n")
    words = ["room.csv", "--target", "y", "--series", "shop", "--time", "time", "--backend", "numpy"]
    words += ["--hidden-size", "1", *(f"--{name}={value}" for name, value in options.items())]
    command = main.get_command(click.Context(main), "train")
    assert command is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Finding)  # that no season is known
            run = make_run("room.csv", command.make_context("train", words).params)
        split(len(run.targets), run.settings["validation"], seed=0, chronological=True, purge=run.purge)
    except ValueError as error:
        return str(error), 0
    return "", run.task.to_dict()["test_rows"]


def follow(told: str, lengths: Sequence[int], options: dict[str, Any], dates: bool = False) -> set[str]:
    """Follow each advice of a message; return what was advised."""
    bound = ADVICE.search(told)
    case, advised = f"{lengths} {options}: {told}", set()
    if bound is None:
        assert "change several of" in told, case
        return {"several"}
    if name := bound["option"]:
        most = int(bound["most"])
        assert 0 < most < options[name], case
        for value in {1, most}:
            error, held = refusal(lengths, {**options, name: value}, dates)
            assert error == "", f"{case}; with {value}: {error}"
            if name == "horizon" and value == most:
                assert HELD.findall(told) == [str(held)], case
        assert refusal(lengths, {**options, name: most + 1}, dates)[0], case
        advised.add(name)
    if rows := ROWS.search(told):
        enough = int(rows[1])
        for more in (0, 13):
            error, _ = refusal([max(enough + more, length) for length in lengths], options, dates)
            assert error == "", f"{case}; with {more} more: {error}"
        assert refusal([enough - 1] * len(lengths), options, dates)[0], case
        advised.add("rows")
    return advised


def draw(rng: np.random.Generator) -> tuple[list[int], dict[str, Any], bool]:
    lengths = [int(n) for n in rng.integers(2, 70, size=rng.integers(1, 4))]
    options: dict[str, Any] = {"horizon": int(rng.integers(1, 40))}
    choices: dict[str, Any] = {
        "validation": float(rng.choice([0, 0.03, 0.3, 0.7])),
        "window": int(rng.integers(1, 60)),
        "season": int(rng.integers(1, 30)),
        rng.choice(["test-rows", "test-fraction"]): 0,
    }
    options |= {name: value for name, value in choices.items() if rng.random() < 0.4}
    options |= {"test-rows": int(rng.integers(1, 30))} if "test-rows" in options else {}
    options |= {"test-fraction": round(float(rng.uniform(0.05, 0.6)), 2)} if "test-fraction" in options else {}
    return lengths, options, bool(rng.integers(2))


def test_advice_that_is_followed_gives_a_run() -> None:
    """Windows, test rows, the history of a season and the validation split: the run itself judges."""
    rng, advised, refused = np.random.default_rng(9), set(), 0
    while refused < 60:
        lengths, options, dates = draw(rng)
        told, _ = refusal(lengths, options, dates)
        if told and not told.startswith("--season"):
            advised |= follow(told, lengths, options, dates)
            refused += 1
    assert advised >= {"horizon", "window", "rows"}


@pytest.mark.parametrize(
    ("lengths", "options", "advice"),
    [
        ([8, 31], {"horizon": 22}, {"horizon", "rows"}),
        ([39], {"horizon": 28, "validation": 0}, {"horizon", "rows"}),
        ([11], {"horizon": 25, "test-fraction": 0.05}, {"horizon", "rows"}),
        ([20], {"horizon": 5, "test-rows": 3, "window": 9}, {"horizon"}),
        ([30], {"horizon": 3, "window": 40, "test-rows": 29}, {"rows"}),
        ([30], {"horizon": 2, "window": 40, "test-rows": 28}, {"rows"}),
        ([20], {"horizon": 1, "window": 40}, {"window", "rows"}),
        ([8], {"horizon": 5, "window": 30, "test-rows": 3}, {"several"}),
    ],
)
def test_sizes_of_which_some_were_misjudged(lengths: list[int], options: dict[str, Any], advice: set[str]) -> None:
    assert follow(refusal(lengths, options)[0], lengths, options) == advice


@pytest.mark.parametrize(("rows", "hint"), [(9, "window"), (2, "horizon, or more rows")])
def test_a_shorter_window_is_advised_where_it_helps(rows: int, hint: str) -> None:
    from lstmcore.datasets import read_csv
    from lstmcore.datasets.series_windows import Windows

    Path("few.csv").write_text("y\n" + "1\n" * rows)
    with pytest.raises(ValueError, match=f": use a shorter {hint}$"):
        Windows.cut(read_csv("few.csv", "y"), 9, 2)
