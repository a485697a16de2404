"""What --help says of defaults, and the numbers in it, are what the code does."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from lstmcore.cli import main
from lstmcore.cli._folder import FolderRun
from lstmcore.cli._runs import Run, make_run, make_trainer
from lstmcore.datasets.csv_table import TIME_NAMES
from lstmcore.distributed.launcher import STARTERS
from lstmcore.notices import Finding
from lstmcore.stored_weights import FORMATS
from lstmcore.training import Trainer, forecast_plot
from lstmcore_conformance.bench.run import PLANS
from lstmcore_conformance.suite.backend_under_test import Draws

CONTEXT = click.Context(main)
COMMANDS = {name: main.get_command(CONTEXT, name) for name in main.list_commands(CONTEXT)}
OPTIONS = [
    (name, option)
    for name, command in COMMANDS.items()
    if command is not None
    for option in command.params
    if isinstance(option, click.Option)
]
DEFAULT = re.compile(r"  \[default: ([^\]]*)\]")
#: Defaults without a number, which are what happens if nothing is given; the tests of each command have them.
IN_WORDS = frozenset(
    {
        *("all", "all that the backend declares", "as in training", "as trained, or float64 if the backend refuses it"),
        *("by its name", "by the dates, or the window", "found", "found from the file", "a free name, after DATA"),
        *("no limit", "print", "the fastest", "the fastest that has the format", "the first ones", "told by it"),
        *("the name of the folder", "the test rows or a window", "those held out in training"),
        "to classify, all others",
    }
)
#: Numbers outside of defaults that are names, values to give or exit codes: text -> the commands that say it.
NAMES = {
    "0 for no limit": {"train"},
    "0 for never": {"train"},
    "0 for none": {"train"},
    "alpha=0.2": {"train"},
    "cp1252": {"compress", "evaluate", "export", "plot", "predict", "train"},
    "co2": {"train"},
    "passes up to 1": {"conform"},
    "exit code is 0 if": {"bench", "conform"},
    "1 if a check failed, and 2 if": {"conform"},
    "It is 1 if not, and 2 if": {"bench"},
    ".weights.h5": {"convert"},
    "bfloat16 and float16 take half of the bytes of float32, int8 and int8a16 a quarter. int8a16 is": {"compress"},
    "to 16 bits": {"compress"},
    "holds 80 % of": {"plot"},
}


def run_of(data: object, *words: object) -> tuple[Run, Trainer]:
    """Return what ``lstmcore train`` trains with these words and all else by default."""
    command = COMMANDS["train"]
    assert command is not None
    options = dict(command.make_context("train", [str(data), "--backend", "numpy", *map(str, words)]).params)
    own = {name: options.pop(name) for name in ("data", "out", "as_json", "quiet", "plot", "resume", "ranks", "engine")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Finding)  # that no season is known
        run = make_run(own["data"], options)
    return run, make_trainer(run, quiet=True)


@pytest.fixture(scope="module")
def both() -> list[tuple[Run, Trainer]]:
    """A run to classify, and one to forecast."""
    return [run_of("japanese-vowels"), run_of("co2", "--fill", "linear")]


def write(folder: Path, rows: int, dates: list[str] | None = None) -> Path:
    path = folder / "own.csv"
    names = [f"{date}," for date in dates] if dates else [""] * rows
    lines = [f"{names[k]}{(k % 7) + 0.1 * k:.1f}" for k in range(rows)]
    path.write_text("\n".join(["date,y" if dates else "y", *lines]) + "\n")
    return path


def quarters(rows: int) -> list[str]:
    return [f"{1900 + k // 4}-{1 + 3 * (k % 4):02}-01" for k in range(rows)]


SHOWN = {None: "never", True: "both", False: "forwards"}

#: Options of ``lstmcore train`` whose default may depend on the kind of task -> where it is.
OF_RUNS: dict[str, Callable[[Run, Trainer], Any]] = {
    "hidden_size": lambda run, trainer: run.model.lstm.stack.hidden_size,
    "bidirectional": lambda run, trainer: run.model.lstm.stack.num_directions == 2,
    "epochs": lambda run, trainer: trainer.epochs,
    "batch_size": lambda run, trainer: trainer.batch_size,
    "optimizer": lambda run, trainer: trainer.optimizer.name,
    "lr": lambda run, trainer: trainer.optimizer.settings["lr"],
    "weight_decay": lambda run, trainer: trainer.optimizer.settings["weight_decay"],
    "input_noise": lambda run, trainer: trainer.input_noise,
    "patience": lambda run, trainer: trainer.patience,
}


def help_of(command: str, option: str) -> str:
    return next(one.help or "" for name, one in OPTIONS if (name, one.name) == (command, option))


def stated(command: str, option: str) -> str:
    (default,) = DEFAULT.findall(help_of(command, option))
    return str(default)


@pytest.mark.parametrize("name", OF_RUNS)
def test_defaults_of_a_training(name: str, both: list[tuple[Run, Trainer]]) -> None:
    classify, forecast = (OF_RUNS[name](*one) for one in both)
    classify, forecast = (SHOWN[v] if v is None or isinstance(v, bool) else v for v in (classify, forecast))
    said = str(classify) if classify == forecast else f"{classify} to classify, {forecast} to forecast"
    assert stated("train", name) == said


def test_defaults_of_a_forecast(tmp_path: Path) -> None:
    """The window: two seasons, one season if two are too long, without dates a fixed number; half of the rows."""
    assert stated("train", "horizon") == str(run_of(write(tmp_path, 300), "--target", "y")[0].task.horizon)
    window = re.fullmatch(
        r"two seasons, one if two exceed (\d+), or (\d+) without a season; half of the rows at most",
        stated("train", "window"),
    )
    assert window is not None and window[1] == window[2]
    most, season = int(window[1]), 4

    def windows(rows: int, *words: object, dates: list[str] | None = None) -> int:
        return run_of(write(tmp_path, rows, dates), "--target", "y", *words)[0].task.window

    assert windows(300) == most
    assert windows(300, dates=quarters(300)) == 2 * season
    assert [windows(300, "--season", s) for s in (most // 2, most // 2 + 1)] == [most, most // 2 + 1]
    assert windows(60) == 48 // 2


def test_defaults_of_what_is_held_out(tmp_path: Path, both: list[tuple[Run, Trainer]]) -> None:
    fraction = float(stated("train", "test_fraction"))
    run, _ = run_of(path := write(tmp_path, 305), "--target", "y")
    assert run.task.test_rows == round(fraction * 305)
    assert stated("train", "test_rows") == f"{both[1][0].task.test_rows} for co2"
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("id,t,x,kind\n" + "".join(f"{k},{t},{k + t},{k % 2}\n" for k in range(40) for t in range(3)))
    run, _ = run_of(labelled, "--label", "kind", "--id", "id")
    assert run.held_out is not None and len(run.held_out) == fraction * 40 == 8
    train = COMMANDS["train"]
    assert train is not None and "A fifth of the sequences is kept" in " ".join((train.help or "").split())
    assert stated("train", "fill") == run.settings["fill"] == run_of(path, "--target", "y")[0].settings["fill"]


def test_the_momentum_is_that_of_sgd(tmp_path: Path) -> None:
    _, trainer = run_of(write(tmp_path, 100), "--target", "y", "--optimizer", "sgd")
    assert stated("train", "momentum") == str(trainer.optimizer.settings["momentum"])


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_defaults_of_a_folder(command: str) -> None:
    run: FolderRun[str] = FolderRun(command, [], {"jobs": None, "engine": None})
    assert stated(command, "jobs") == f"{run.jobs}, without workers"
    assert stated(command, "engine") == run.engine


def test_defaults_of_the_suite_and_the_benchmark() -> None:
    bench = {option.name: option for name, option in OPTIONS if name == "bench"}
    grids = bench["grid"].type
    assert isinstance(grids, click.Choice)
    assert stated("bench", "rounds") == ", ".join(str(PLANS[grid].rounds) for grid in grids.choices)
    quick, full, smoke = (Draws.of(name) for name in ("quick", "full", "smoke"))
    assert quick == full
    assert stated("conform", "max_examples") == f"{quick.max_examples}; {smoke.max_examples} in smoke"
    assert stated("conform", "seed") == str(quick.seed) == str(smoke.seed)


def test_ranks_are_of_mpi_by_default() -> None:
    assert stated("train", "engine") == STARTERS[0]


def test_names_of_columns_with_times() -> None:
    names = ", ".join(sorted(TIME_NAMES))
    assert stated("train", "time") == f"the first named {names} if its cells are times, else the first with dates"


def test_numbers_outside_of_defaults() -> None:
    assert forecast_plot._BAND == 0.8
    assert FORMATS == {"bfloat16": 2, "float16": 2, "int8": 1, "int8a16": 1}  # of the 4 bytes of float32


TESTED = {
    *(("train", name) for name in (*OF_RUNS, "horizon", "window", "test_fraction", "test_rows", "fill", "momentum")),
    *((command, name) for command in ("predict", "evaluate") for name in ("jobs", "engine")),
    *(("train", "engine"), ("bench", "rounds"), ("conform", "max_examples"), ("conform", "seed")),
}


def test_every_default_has_a_test() -> None:
    """A new one is either in `IN_WORDS` or in a test of this file; click shows the others itself."""
    found = {(name, option.name): DEFAULT.findall(option.help or "") for name, option in OPTIONS}
    assert all(len(defaults) < 2 for defaults in found.values())
    assert all("default" not in DEFAULT.sub("", option.help or "") for _, option in OPTIONS)
    left = {where for where, defaults in found.items() if defaults and defaults[0] not in IN_WORDS}
    assert left - {where for where in left if where[1] == "time"} == TESTED
    twice = [option.name for _, option in OPTIONS if option.show_default and DEFAULT.search(option.help or "")]
    assert twice == []


def test_every_number_has_a_test() -> None:
    """Numbers of examples aside, which are values to give."""
    found: dict[str, set[str]] = {}
    for name, command in COMMANDS.items():
        assert command is not None
        text = re.sub(r"\n\s*\x08.*", "", command.help or "", flags=re.DOTALL)
        texts = (text, *(option.help or "" for other, option in OPTIONS if other == name))
        rest = " ".join(DEFAULT.sub("", " ".join(text.split("\n"))) for text in texts)
        rest = " ".join(rest.split())
        for known, commands in NAMES.items():
            if known in rest:
                found.setdefault(known, set()).add(name)
                rest = rest.replace(known, "")
            else:
                assert name not in commands, (name, known)
        assert re.findall(r"\S*\d\S*", rest) == [], name
    assert found == NAMES
