"""Nothing is wrong or lost without a word: models without a name, options given twice, rows that were trained on."""

from __future__ import annotations

import csv
import errno
import io
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from lstmcore.cli import COMMANDS, main
from lstmcore.training import SequenceModel, Trainer

SMALL = ("--hidden-size", "4", "--epochs", "1", "--backend", "numpy", "--window", "8")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error(*arguments: object) -> str:
    """The one line of an error."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("lstmcore: error: ")


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def days(count: int) -> list[str]:
    return [str(date(2020, 1, 1) + timedelta(day)) for day in range(count)]


def write(name: str, rows: list[str], head: str = "date,y") -> Path:
    Path(name).write_text("\n".join([head, *rows]) + "\n")
    return Path(name)


def wave(count: int = 90) -> list[str]:
    return [f"{day},{row % 7 + 0.1 * row:.3f}" for row, day in enumerate(days(count))]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_without_a_name_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name of the data; another model keeps its file. The name is told before the training."""
    sub = folder / "sub"
    sub.mkdir()
    train = ("train", write("sub/my.csv", wave()), "--target", "y", *SMALL)
    for name in ("my.safetensors", "my-2.safetensors"):
        result = succeed(*train)
        assert f"lstmcore: the model goes to {name}" in result.stderr.splitlines()
        assert f"wrote {name}" in result.stdout.splitlines()
        assert SequenceModel.load(name).task["target"] == "y"
    assert json.loads(succeed(*train, "--json").stdout)["model"] == "my-3.safetensors"
    assert succeed(*train, "--quiet").output == "" and Path("my-4.safetensors").is_file()
    succeed("train", "japanese-vowels", *SMALL[:-2], "--quiet")
    assert Path("japanese-vowels.safetensors").is_file()

    def stop(*_: Any, **__: Any) -> None:
        raise ValueError("stopped")

    monkeypatch.setattr(Trainer, "fit", stop)
    lines = run(*train).stderr.splitlines()
    assert lines == ["lstmcore: the model goes to my-5.safetensors", "lstmcore: error: stopped"]
    assert not Path("my-5.safetensors").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_given_twice_is_refused(name: str) -> None:
    """Click would take the last one. Flags that only switch on, and options of many values, may come twice."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    needed = [word for item in command.params if isinstance(item, click.Argument) for word in ("x",) * item.nargs]
    refused = 0
    for option in command.params:
        if isinstance(option, click.Option) and not option.multiple and option.opts[0].startswith("--"):
            if option.is_flag and not option.secondary_opts:
                assert "expected once" not in run(name, *needed, option.opts[0], option.opts[0], "--nothing").output
                continue
            words = [option.opts[0]] if option.is_flag else [option.opts[0], "1"]
            listed = option.opts[0] in {"train": ("--target", "--features"), "bench": ("--threads", "--peers")}.get(
                name, ()
            )
            hint = ": put commas between several values" if listed else ""
            assert error(name, *needed, *words, *words) == f"{option.opts[0]}: expected once; got 2 times{hint}"
            refused += 1
    assert refused or name in ("backends", "info")
    if name == "train":
        both = error(name, "x", "--bidirectional", "--unidirectional")
        assert both == "--bidirectional: expected once; got 2 times"


def test_newest_first_twice_and_several_series() -> None:
    """Each error says what to do, and doing it works, in each command."""
    rows = wave()
    path = write("back.csv", rows[::-1])
    train = ("--target", "y", *SMALL, "--quiet", "--out")
    wanted = "back.csv, line 3, column 'date': expected times that ascend; got '2020-03-29' after '2020-03-30': sort "
    assert error("train", path, *train, "m").startswith(wanted)
    succeed("train", path, *train, "m", "--sort")
    succeed("train", write("on.csv", rows), *train, "n")
    one, two = (SequenceModel.load(name) for name in "mn")
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(value, two.parameters[name])
    assert succeed("predict", "m", path).stdout == succeed("predict", "n", "on.csv").stdout
    assert error("predict", "n", path).startswith(wanted)
    assert succeed("predict", "n", path, "--sort").stdout == succeed("predict", "n", "on.csv").stdout
    shops = write("shops.csv", [f"{row},{key}" for key in "ab" for row in rows], head="date,y,shop")
    assert error("train", shops, *train, "s").endswith("name the column that tells them apart with --series (shop)")
    assert not Path("s").exists()
    refused = error("train", "co2", "--series", "shop", "--quiet")
    assert refused == "--series: only for a CSV file; co2 is read as it stands"
    refused = error("train", "japanese-vowels", "--sort", "--quiet")
    assert refused == "--sort: only for a CSV file; japanese-vowels is read as it stands"


def test_forecasts_of_several_series() -> None:
    """Each series gives the forecast that it gives alone; --only picks one; errors are told for all and for each."""
    other = [f"{day},{50 - row * row / 100:.3f}" for row, day in enumerate(days(80))]
    both = write("both.csv", [*(f"{row},a" for row in wave()), *(f"{row},b" for row in other)], head="date,y,shop")
    alone = {"a": write("a.csv", wave()), "b": write("b.csv", other)}
    succeed("train", both, "--target", "y", "--series", "shop", "--horizon", 2, "--out", "m", *SMALL, "--quiet")
    rows = list(csv.DictReader(io.StringIO(succeed("predict", "m", both).stdout)))
    assert [(row["series"], row["after"], row["step"]) for row in rows] == [
        ("a", days(90)[-1], "1"), ("a", days(90)[-1], "2"), ("b", days(80)[-1], "1"), ("b", days(80)[-1], "2"),
    ]  # fmt: skip
    only = json.loads(succeed("predict", "m", both, "--only", "b", "--json").stdout)
    assert [str(row["y"]) for row in only] == [row["y"] for row in rows[2:]]
    succeed("train", alone["b"], "--target", "y", "--horizon", 2, "--out", "one", *SMALL, "--quiet")
    model, single = SequenceModel.load("m"), SequenceModel.load("one")
    model.task = single.task
    model.save("as-one")
    apart = json.loads(succeed("predict", "as-one", alone["b"], "--json").stdout)
    np.testing.assert_allclose([row["y"] for row in apart], [row["y"] for row in only], rtol=1e-6)
    report = json.loads(succeed("evaluate", "m", both, "--json").stdout)
    assert report["windows"] == 30 and report["notes"] == []  # a fifth of 80 rows of each, two steps ahead
    assert (report["from"], report["to"]) == (days(80)[64], days(90)[-1])
    by_series = {name: {s["name"]: s for s in judged["scores"]} for name, judged in report["series"].items()}
    for score in report["scores"]:
        parts = [by_series[name][score["name"]]["rmse"] for name in "ab"]
        assert score["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(parts))))
    shown = succeed("evaluate", "m", both, "--only", "a").stdout
    assert "a: 15 forecasts, RMSE of model" in shown and "b: 15" not in shown
    assert error("evaluate", "m", both, "--only", "c") == "--only: expected one of a, b; got 'c'"
    assert error("predict", "one", alone["b"], "--only", "c").startswith("--only: expected --series with the column")


def test_a_hole_is_told_by_each_command() -> None:
    rows = wave()
    path = write("hole.csv", rows[:30] + rows[37:])
    train = ("train", path, "--target", "y", "--quiet", *SMALL)
    wanted = "lstmcore: warning: hole.csv, line 32, column 'date': expected even steps; got 7 missing between"
    on_numpy = (path, "--backend", "numpy")
    told = [succeed(*train, "--out", "m"), succeed("evaluate", "m", *on_numpy), succeed("predict", "m", *on_numpy)]
    for result in told:
        (line,) = result.stderr.splitlines()
        assert line.startswith(wanted) and line.endswith("--fill linear or --fill previous puts the missing rows in")
    filled = [succeed(*train, "--out", "n", "--fill", "linear"), succeed("predict", "n", *on_numpy)]
    assert all(result.stderr == "" for result in filled)


def test_rows_that_were_trained_on_are_told() -> None:
    """By time, so that a file that has grown or lost its first rows is judged rightly."""
    rows = wave(100)
    path = write("my.csv", rows)
    succeed("train", path, "--target", "y", "--test-rows", 20, "--out", "m", *SMALL, "--quiet")
    note = "{} of the {} forecasts are of rows that the model was trained on (the last 20 were held out): their errors"

    def notes(data: Path, *options: object) -> list[str]:
        found: list[str] = json.loads(succeed("evaluate", "m", data, "--json", *options).stdout)["notes"]
        return found

    assert notes(path) == notes(path, "--test-rows", 20) == notes(path, "--test-rows", 5) == []
    assert notes(path, "--test-rows", 21) == [note.format(1, 21) + " are too low"]
    assert notes(path, "--test-rows", 33) == [note.format(13, 33) + " are too low"]
    assert notes(write("grown.csv", wave(130)), "--test-rows", 50) == []
    assert notes(write("later.csv", wave(130)[40:]), "--test-rows", 50) == []
    assert notes(write("shrunk.csv", rows[:90])) == [note.format(10, 20) + " are too low"]
    assert note.format(13, 33) in " ".join(succeed("evaluate", "m", path, "--test-rows", 33).stdout.split())
    plain = write("plain.csv", [row.partition(",")[2] for row in rows], head="y")
    succeed("train", plain, "--target", "y", "--test-rows", 20, "--out", "m", *SMALL, "--quiet")
    assert notes(plain) == [] and notes(plain, "--test-rows", 33) == [note.format(13, 33) + " are too low"]


@pytest.mark.parametrize("value", ["1e-6", "-3", "0", "12345678.9"])
def test_a_constant_series_stays_constant(value: str) -> None:
    path = write("flat.csv", [f"{day},{value}" for day in days(60)])
    succeed("train", path, "--target", "y", "--horizon", 2, "--out", "m", *SMALL, "--quiet")
    rows = json.loads(succeed("predict", "m", path, "--json").stdout)
    assert [row["y"] for row in rows] == [float(value)] * 2


def test_settings_without_effect() -> None:
    path = write("my.csv", wave())
    train = ("train", path, "--target", "y", *SMALL[:2], *SMALL[4:], "--quiet", "--out", "m")
    (line,) = succeed(*train, "--epochs", 1, "--dropout", 0.5).stderr.splitlines()
    assert line.startswith("lstmcore: warning: dropout: 0.5 does nothing with num_layers=1")
    succeed(*train, "--epochs", 3, "--checkpoint", "run")
    before = Path("m").read_bytes()
    refused = error(*train, "--epochs", 2, "--resume", "run")
    assert refused == "run: epochs: expected at least the 3 that the checkpoint has; got 2"
    assert Path("m").read_bytes() == before


def test_a_run_that_diverges_leaves_its_best_model(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("my.csv", wave())
    train = ("train", path, "--target", "y", *SMALL[:2], *SMALL[4:], "--quiet", "--epochs")
    succeed(*train, 3, "--out", "three")
    measure, calls = SequenceModel.measure, [0]

    def breaks(self: SequenceModel, *arguments: Any) -> Any:
        calls[0] += 1
        found = measure(self, *arguments)
        return found._replace(loss=float("nan")) if calls[0] == 4 else found

    monkeypatch.setattr(SequenceModel, "measure", breaks)
    text = error(*train, 9, "--out", "m")
    assert "training diverged in epoch 4: loss nan" in text
    assert text.endswith("go on from them in a new run with a lower --lr or --clip-norm; wrote m")
    found, wanted = (SequenceModel.load(name) for name in ("m", "three"))
    for name, value in wanted.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], value)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("my.csv", wave())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lstmcore.files.os.fsync", full)
    result = run("train", path, "--target", "y", *SMALL, "--quiet", "--checkpoint", "run", "--out", "m")
    warning, last = result.stderr.splitlines()
    assert warning.startswith("lstmcore: warning: checkpoint: run could not be written after epoch 1 (")
    assert last == "lstmcore: error: [Errno 28] No space left on device: 'm'"
    assert sorted(entry.name for entry in Path().iterdir()) == ["my.csv"]


@pytest.mark.parametrize("option", ["--out", "--plot", "--checkpoint"])
def test_a_folder_that_goes_away_in_a_run_is_told_by_its_option(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """A checkpoint that cannot be written ends no run; the others end in an error, after the work."""
    if option == "--plot":
        pytest.importorskip("matplotlib")
    write("d.csv", wave())
    away = Path("away")
    away.mkdir()
    fit = Trainer.fit

    def vanishing(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
        away.rmdir()
        return fit(trainer, *arguments, **named)

    monkeypatch.setattr(Trainer, "fit", vanishing)
    outputs = {"--out": "m", option: away / "file.svg"}
    words = [word for pair in outputs.items() for word in pair]
    result = run("train", "d.csv", "--target", "y", *SMALL, "--quiet", *words)
    (line,) = result.stderr.splitlines()
    problem = f"expected a file in a folder that exists; got '{outputs[option]}': make the folder first"
    if option == "--checkpoint":
        assert result.exit_code == 0
        assert line.startswith(f"lstmcore: warning: checkpoint: {outputs[option]} could not be written after epoch 1 (")
        assert problem in line
    else:
        assert result.exit_code == 2
        assert line == f"lstmcore: error: {option}: {problem}"
