"""Counting instructions: what is read from callgrind, what is too many, and a real count where valgrind is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from lstmcore_conformance.bench import instructions
from lstmcore_conformance.bench.instructions import CASES, NOTHING, count, least, main, more
from lstmcore_conformance.bench.jobs import Job, Point
from planted import planted
from plugins import Install

OWN = {"machine": "x86_64", "python": "3"}


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A baseline of its own, and counts that are made up."""
    file = tmp_path / "instructions.json"
    monkeypatch.setattr(instructions, "BASELINE", file)
    monkeypatch.setattr(instructions, "described", lambda name: OWN)
    monkeypatch.setattr(instructions, "count", lambda name, padding: {"a": 1000, "b": 2000})
    return file


def test_over_two_percent_more_is_too_many() -> None:
    assert more({"a": 1020, "b": 500}, {"a": 1000, "b": 1000}) == {}
    assert more({"a": 1021, "b": 500}, {"a": 1000, "b": 1000}) == {"a": 1.021}
    assert set(more({"a": 1}, {})) == {"a"}


def test_the_baseline_decides(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    assert run(main, ["numpy"]).exit_code == 2
    assert run(main, ["numpy", "--update"]).exit_code == 0
    assert json.loads(stored.read_text()) == {"numpy": {"for": OWN, "counts": {"a": 1000, "b": 2000}}}
    done = run(main, [])
    assert done.exit_code == 0
    assert "+0.0%" in done.output
    monkeypatch.setattr(instructions, "count", lambda name, padding: {"a": 1000, "b": 2300})
    done = run(main, [])
    assert done.exit_code == 1
    assert "+15.0%  TOO MANY" in done.output
    monkeypatch.setattr(instructions, "count", lambda name, padding: {"a": 979, "b": 1961})
    done = run(main, [])
    assert done.exit_code == 0
    assert [line.endswith("fewer: --update") for line in done.output.splitlines()] == [True, False]
    monkeypatch.setattr(instructions, "described", lambda name: OWN | {"python": "4"})
    done = run(main, [])
    assert done.exit_code == 2
    assert "expected a baseline of" in done.output
    done = run(main, ["--where-it-holds"])
    assert done.exit_code == 0
    assert done.output.startswith("NOT CHECKED: numpy: expected a baseline of")
    assert run(main, ["numba", "--where-it-holds"]).exit_code == 2  # none at all is an error still


def test_the_least_of_the_counts_is_judged(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts that lie in memory alone are counted again; one that stays too large fails after three."""
    counts = iter([{"a": 1030, "b": 2000}, {"a": 1010, "b": 2050}, {"a": 1040, "b": 1}])
    monkeypatch.setattr(instructions, "count", lambda name, padding: next(counts))
    assert least("numpy", {"a": 1000, "b": 2000}) == {"a": 1010, "b": 2000}
    asked: list[int] = []

    def too_many(name: str, padding: int) -> dict[str, int]:
        asked.append(padding)
        return {"a": 1100 - len(asked), "b": 2000}

    monkeypatch.setattr(instructions, "count", too_many)
    assert least("numpy", {"a": 1000, "b": 2000}) == {"a": 1097, "b": 2000}
    assert asked == list(instructions.PADDINGS)
    assert len(set(asked)) == 3


def test_the_repository_has_a_baseline_of_every_case() -> None:
    baseline = json.loads(instructions.BASELINE.read_text("utf-8"))
    assert set(baseline) == {"numpy", "numba"}
    assert {"numba", "llvmlite"} <= set(baseline["numba"]["for"])
    for one in baseline.values():
        assert set(one["counts"]) == set(CASES)
        assert NOTHING not in one["counts"]
        assert min(one["counts"].values()) > 0
        assert {"machine", "python", "valgrind", "numpy"} <= set(one["for"])


def test_without_valgrind_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    done = CliRunner().invoke(main, ["numpy"])
    assert done.exit_code == 2
    assert "valgrind: expected it on the path" in done.output


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_more_work_is_more_instructions(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More work is more instructions, and the same work the same number."""
    install("right", planted("right"))
    install("twice", planted("twice"))
    cases = {"one": Job("inference", Point(3, 2, 4, 5))}
    (tmp_path / "sitecustomize.py").write_text(
        "import lstmcore_conformance.bench.instructions as i\n"
        "from lstmcore_conformance.bench.jobs import Job, Point\n"
        "i.CASES = {'one': Job('inference', Point(3, 2, 4, 5))}\n"
    )
    monkeypatch.setattr(instructions, "CASES", cases)
    once, again, twice = (count(name)["one"] for name in ("right", "right", "twice"))
    assert again == pytest.approx(once, rel=0.01)
    assert twice > 1.7 * once
