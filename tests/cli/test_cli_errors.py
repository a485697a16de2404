"""Every error is one line of one form, whoever finds it; a run that is stopped says how to go on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from lstmcore.cli import COMMANDS, main
from lstmcore.training import SequenceModel

SMALL = ("--hidden-size", "4", "--backend", "numpy", "--window", "8")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("lstmcore: error: ")
    return line.removeprefix("lstmcore: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "x", "--window", "abc"], "--window: expected a whole number >= 1; got 'abc' (see lstmcore train"),
        (["train", "x", "--window", "0"], "--window: expected a whole number >= 1; got '0'"),
        (["train", "x", "--lr", "fast"], "--lr: expected a number > 0; got 'fast'"),
        (["train", "x", "--validation", "1"], "--validation: expected a number >= 0 and < 1; got '1.0'"),
        (["train", "x", "--fill", "mean"], "--fill: expected one of error, linear, previous; got 'mean'"),
        (["train", "x", "--window"], "--window: expected a value; got none"),
        (["train"], "DATA: expected an argument; got none (see lstmcore train --help)"),
        (["compress", "m", "--out", "n"], "--weights: expected this option; got none"),
        (["predict", "m", "x", "y"], "expected no more arguments; got 'y'"),
        (["train", "x", "--windw", "8"], "expected an option of lstmcore train; got '--windw'; did you mean '--win"),
        (["trian"], "expected one of the commands backends, conform, bench, train, "),
        (["trian"], "got 'trian'; did you mean 'train'? (see lstmcore --help)"),
        (["--verbos"], "expected an option of lstmcore; got '--verbos'"),
        (["train", "no such file"], "data: expected one of japanese-vowels, co2 or a CSV file; got 'no such file'"),
    ],
)  # fmt: skip
def test_one_form_of_errors(words: list[str], message: str) -> None:
    assert message in error(*words)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_that_is_a_number_says_what_it_takes(name: str) -> None:
    """No message of click gets through, whatever the type of the option."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    counts = [max(item.nargs, 0) for item in command.params if isinstance(item, click.Argument)]
    needed = ["x"] * sum(counts)
    kinds = click.types.IntParamType | click.types.FloatParamType | click.Choice
    for option in command.params:
        if isinstance(option, click.Option) and isinstance(option.type, kinds):
            text = error(name, *needed, option.opts[0], "a b")
            assert text.startswith(f"{option.opts[0]}: expected ") and "; got 'a b' (see lstmcore" in text, text
            assert "is not" not in text


def test_without_a_command_there_is_help() -> None:
    result = run()
    assert "Usage:" in result.output and "Commands:" in result.output and "lstmcore: error" not in result.stderr


def test_a_folder_is_no_data(tmp_path: Path) -> None:
    assert error("train", tmp_path, "--target", "y") == f"{tmp_path}: expected a file; got a folder"
    path = tmp_path / "m"
    path.write_bytes(b"")
    assert error("predict", path, tmp_path).startswith(f"{path}: expected a whole safetensors file")


def test_ctrl_c_names_the_command_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That command, run as it is told, gives the model of a run that was not stopped."""
    monkeypatch.chdir(tmp_path)
    rows = np.arange(80)
    Path("my data.csv").write_text("t,y\n" + "".join(f"{row},{row % 7}\n" for row in rows))
    base = ("train", "my data.csv", "--target", "y", *SMALL, "--quiet", "--epochs", 4)
    assert run(*base, "--out", "whole").exit_code == 0
    measure, calls = SequenceModel.measure, [0]

    def stops(self: SequenceModel, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(SequenceModel, "measure", stops)
    result = run(*base, "--out", "a model", "--checkpoint", "a run")
    assert result.exit_code == 130 and not Path("a model").exists()
    (line,) = result.stderr.splitlines()
    told, _, command = line.partition("go on with: ")
    assert told == "lstmcore: stopped; "
    words = shlex.split(command)
    assert words[:2] == ["lstmcore", "train"] and words[-2:] == ["--resume", "a run"]
    calls[0] = 2
    assert run(*words[1:]).stderr == result.stderr  # stopped again: --resume is there once
    assert run(*words[1:]).exit_code == 0
    assert Path("a model").read_bytes() == Path("whole").read_bytes()
    calls[0] = 2
    result = run(*base, "--out", "b")
    assert result.stderr == "lstmcore: stopped; nothing was written: with --checkpoint FILE a stopped run can go on\n"


def test_ctrl_c_before_the_first_checkpoint_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SequenceModel, "measure", stops)
    result = run("train", "co2", "--fill", "linear", *SMALL, "--quiet", "--checkpoint", "a run")
    assert result.exit_code == 130 and not Path("a run").exists()
    assert result.stderr == (
        "lstmcore: stopped; nothing was written, since no epoch had ended: the same command starts again\n"
    )


def test_ctrl_c_before_the_first_checkpoint_names_none_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It named the file that a run with other settings had left, from which this one cannot go on."""

    def stops(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    command = ("train", "co2", "--fill", "linear", *SMALL, "--quiet", "--checkpoint", "a run")
    assert run(*command, "--epochs", 1).exit_code == 0
    content = Path("a run").read_bytes()
    Path("old").write_bytes(content)
    monkeypatch.setattr(SequenceModel, "measure", stops)
    for words in (("--lr", 0.5), ("--epochs", 3, "--resume", "old")):
        result = run(*command, *words)
        assert result.exit_code == 130 and Path("a run").read_bytes() == content
        assert result.stderr == (
            "lstmcore: stopped; nothing was written, since no epoch had ended: the same command starts again\n"
        )
