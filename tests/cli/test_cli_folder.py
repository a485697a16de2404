"""Every file of a folder: the results of single commands, files that fail, and workers that die."""

from __future__ import annotations

import errno
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import job_tasks
from cli_runs import error, run, succeed
from lstmcore import registry
from lstmcore.cli import _folder, _workers
from lstmcore.cli._workers import Outcome, Run, open_workers, run_tasks
from lstmcore.cli.predict import predict_file

SMALL = ("--hidden-size", "5", "--epochs", "1", "--backend", "numpy", "--quiet")
NAMES = ("b.csv", "a.csv", "c.csv")


def write(path: Path, seed: int, rows: int = 70) -> None:
    values = np.random.default_rng(seed).normal(size=rows).cumsum().round(4).tolist()
    path.write_text("\n".join(["load", *map(str, values)]) + "\n")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model ``m`` and three files in ``shops``, which were not written in the order of their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(registry.BACKEND_VARIABLE, "numpy")
    monkeypatch.setenv(job_tasks.LOG, str(tmp_path / "log"))
    Path("shops", "below").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        write(Path("shops", name), seed, 60 + 7 * seed)
    Path("shops", ".hidden").write_text("no table")
    succeed("train", "shops/a.csv", "--target", "load", "--window", 8, "--horizon", 3, "--out", "m", *SMALL)
    return tmp_path


def contents(path: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_a_folder_gives_what_its_files_give(words: tuple[str, ...]) -> None:
    result = run("predict", "m", "shops", "--out", "found", *words)
    assert (result.exit_code, result.stdout) == (0, "")
    ending = "json" if words else "csv"
    wanted = {f"{name[0]}.{ending}": run("predict", "m", f"shops/{name}", *words).stdout.encode() for name in NAMES}
    assert contents("found") == wanted
    assert len(set(wanted.values())) == 3
    assert "1 of 3 done, now a.csv" in result.stderr


def test_reports_are_in_the_order_of_names() -> None:
    found = succeed("evaluate", "m", "shops", "--json")
    assert [report["data"] for report in found] == ["shops/a.csv", "shops/b.csv", "shops/c.csv"]
    assert found == [succeed("evaluate", "m", report["data"], "--json") for report in found]
    shown = succeed("evaluate", "m", "shops")
    assert [shown.index(f"shops/{name}") for name in sorted(NAMES)] == sorted(shown.index(f"shops/{n}") for n in NAMES)


def test_a_file_that_fails_is_named_and_the_others_are_done() -> None:
    Path("shops", "b.csv").write_text("heat\n1\n")
    result = run("predict", "m", "shops", "--out", "found")
    assert result.exit_code == 2
    (line,) = (text for text in result.stderr.splitlines() if text.startswith("lstmcore: error"))
    begin = "lstmcore: error: shops: 1 of 3 files failed, the others are done: shops/b.csv, line 1: expected"
    assert line.startswith(begin), line
    assert sorted(contents("found")) == ["a.csv", "c.csv"]
    judged = run("evaluate", "m", "shops", "--json")
    assert judged.exit_code == 2
    assert [report["data"] for report in json.loads(judged.stdout)] == ["shops/a.csv", "shops/c.csv"]


def test_an_output_of_an_earlier_run_is_named() -> None:
    """It is kept, as make keeps a target whose rule fails before it writes; new ones are beside it, so it is said."""
    assert run("predict", "m", "shops", "--out", "found").exit_code == 0
    before = contents("found")
    write(Path("shops", "a.csv"), 9)
    Path("shops", "b.csv").write_text("heat\n1\n")
    Path("shops", "d.csv").write_text("heat\n1\n")
    told = run("predict", "m", "shops", "--out", "found").stderr.splitlines()[-1]
    assert "shops: 2 of 4 files failed" in told
    assert told.endswith("; still there from an earlier run: found/b.csv"), told
    after = contents("found")
    assert sorted(after) == sorted(before) and after["b.csv"] == before["b.csv"] and after["a.csv"] != before["a.csv"]


def test_a_notice_names_its_file() -> None:
    Path("shops", "c.csv").write_text("time,load\n" + "".join(f"2024-01-{d:02},{d}\n" for d in range(1, 29) if d != 9))
    told = run("predict", "m", "shops", "--out", "found").stderr
    lines = [line for line in told.splitlines() if line.startswith("lstmcore: warning: shops/c.csv: ")]
    assert lines, told
    assert all(line.count("c.csv") == 1 for line in lines)


def test_a_file_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are written."""

    def write_all_but_one(path: Path, content: bytes) -> None:
        if path.name == "b.csv":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_bytes(content)

    monkeypatch.setattr("lstmcore.cli.predict.write_atomically", write_all_but_one)
    result = run("predict", "m", "shops", "--out", "found")
    assert result.exit_code == 2
    assert "shops: 1 of 3 files failed, the others are done: " in result.stderr
    assert {path.name for path in Path("found").iterdir() if path.is_file()} == {"a.csv", "c.csv"}


def test_warnings_that_are_no_notices_are_told() -> None:
    with open_workers(1, "joblib") as workers, pytest.warns(RuntimeWarning, match="overflow"):
        (found,) = results(["warns"], workers).values()
    assert found.value == "snraw"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("predict m shops --out x --engine dask", "--engine: only with --jobs of 2 or more; got 'dask'"),
        ("predict m shops", "--out: expected a folder for the predictions of each file of shops; got none"),
        ("predict m shops --out shops", "--out: expected another folder than that of the data; got 'shops'"),
        ("predict m shops --out m", "--out: expected a folder, or a new one in a folder that exists; got 'm'"),
        ("predict m shops --out x/y", "--out: expected a folder, or a new one in a folder that exists; got 'x/y'"),
        ("predict m shops/below --out x", "data: expected a folder with files; got 'shops/below'"),
        ("predict gone shops --out x", "gone: expected a file that is there"),
        ("predict shops/a.csv shops --out x", "shops/a.csv: "),
        ("predict m shops --out x --jobs 0", "--jobs: expected a whole number >= 1; got '0'"),
        ("predict m shops --out x --engine ray", "--engine: expected one of joblib, dask; got 'ray'"),
        ("predict m shops/a.csv --jobs 2", "--jobs: only for a folder of files; got 'shops/a.csv'"),
        ("evaluate m shops/a.csv --engine dask", "--engine: only for a folder of files; got 'shops/a.csv'"),
        ("predict m twins --out x", "twins: expected files of different stems; got a.csv and a.txt: both"),
        ("predict m shops --out links", "--out a.csv: expected a file of its own; got 'links/a.csv', which"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words: str, message: str) -> None:
    Path("twins").mkdir()
    Path("links").mkdir()
    for name in ("a.csv", "a.txt"):
        write(Path("twins", name), 1)
    Path("links", "a.csv").symlink_to(Path("shops", "a.csv").resolve())
    before = {path: path.read_bytes() for path in Path("shops").glob("*.csv")}
    assert error(*words.split()).startswith(message)
    assert not Path("x").exists()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("engine", "missing"), [("joblib", "joblib"), ("dask", "distributed")])
def test_a_missing_engine_is_one_line(engine: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workers, "find_spec", lambda name: None if name == missing else object())
    told = error("predict", "m", "shops", "--out", "x", "--jobs", 2, "--engine", engine)
    assert told.startswith(f"--jobs: {missing} is not installed: pip install ")


def test_another_model_in_its_place_is_refused() -> None:
    """A worker reads the model later than the command."""
    file = _folder.ModelFile.of("m", "numpy", None)
    succeed("train", "shops/b.csv", "--target", "load", "--window", 8, "--out", "m", *SMALL)
    _folder._load.cache_clear()  # as in a process that has not read it
    with pytest.raises(ValueError, match="m: expected the model with which the command began; got another"):
        predict_file(file, "shops/a.csv", as_json=False, options={"probabilities": False})


def results(texts: list[str], workers: Run) -> dict[str, Outcome[str]]:
    return {texts[number]: outcome for number, outcome in run_tasks(job_tasks.work, texts, workers)}


def test_a_task_that_fails_is_tried_once_more() -> None:
    with open_workers(1, "joblib") as workers:
        found = results(["one", "fails-once", "fails", "two"], workers)
    assert {text: outcome.value for text, outcome in found.items()} == {
        "one": "eno", "two": "owt", "fails-once": "ecno-sliaf", "fails": None,
    }  # fmt: skip
    assert found["fails"].error == "OSError: fails cannot be read"
    tries = Counter(Path("log").read_text().split())
    assert tries == {"one": 1, "two": 1, "fails-once": 2, "fails": 2}
