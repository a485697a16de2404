"""The commands that measure threads under load, and starts with nothing compiled: by planted times and backends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lstmcore_conformance.bench import cold_start, load
from lstmcore_conformance.bench.jobs import Job, Point
from lstmcore_conformance.bench.startup import run_script, write_arrays
from lstmcore_conformance.bench.timing import Plan
from lstmcore_conformance.bench.worker_client import Candidate, EndedError
from planted import planted
from plugins import Install

JOB = Job("inference", Point(4, 3, 5, 7))
PLAN = Plan(rounds=5, seconds=0.01, repeats=0)


class Fake:
    """A worker whose calls take `seconds`, and `loaded` ones while others spin."""

    def __init__(self, seconds: float, spinning: list[int]) -> None:
        self.seconds, self.spinning = seconds, spinning

    def ask(self, do: str, **details: Any) -> Mapping[str, Any]:
        assert (do, details["key"]) == ("measure", str(JOB))
        if self.seconds < 0:
            raise EndedError("it ended")
        taken = int(self.seconds * (1 + sum(self.spinning)) * 1e9)
        return {"ns": [taken] * 3, "cpu_ns": 6 * taken, "wall_ns": 3 * taken, "used_ns": 6 * taken}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of processes that spin now; none is started."""
    now: list[int] = []

    class Spinning:
        def __init__(self, count: int) -> None:
            self.count = count

        def __enter__(self) -> None:
            now.append(self.count)

        def __exit__(self, *_: object) -> None:
            now.clear()

    monkeypatch.setattr(load, "spinning", Spinning)
    monkeypatch.setattr("lstmcore_conformance.bench.machine.busy", lambda: 0.0)
    return now


def test_both_numbers_of_threads_meet_the_same_load(counts: list[int]) -> None:
    workers = {1: Fake(2e-3, counts), 2: Fake(3e-3, counts)}
    alone, loaded = load.compare(workers, JOB, (0, 2), PLAN)
    assert alone.ratio == pytest.approx((1.5, 1.5, 1.5))
    assert (alone.one.rounds, alone.two.rounds) == ([2e-3] * 5, [3e-3] * 5)
    assert (loaded.spinning, loaded.one.rounds, loaded.two.rounds) == (2, [6e-3] * 5, [9e-3] * 5)
    rows = load.table("numba", JOB, [alone, loaded]).rows
    assert rows[1] == ("2", "6", "9", "1.50 (1.50 to 1.50)", "12", "18")


def test_a_worker_that_ends_has_no_ratio(counts: list[int]) -> None:
    with pytest.raises(EndedError, match="it ended"):
        list(load.compare({1: Fake(2e-3, counts), 2: Fake(-1.0, counts)}, JOB, (0,), PLAN))


def test_processes_spin_until_they_are_not_wanted() -> None:
    with load.spinning(2) as busy:
        assert len({process.pid for process in busy}) == 2
        assert [process.poll() for process in busy] == [None, None]
    assert all(process.returncode is not None for process in busy)
    nobody = [sys.executable, "-c", load.SPIN, "0"]  # as of a parent that has ended
    assert subprocess.run(nobody, check=False, timeout=300).returncode == 0


@pytest.mark.parametrize(("kind", "told"), [("right", "2 over 1"), ("wrong", "does not conform: y[")])
def test_the_load_of_a_backend(kind: str, told: str, install: Install) -> None:
    install(kind, planted(kind))
    words = [kind, "--point", "4,3,5,7", "--rounds", "3", "--seconds", "0.001", "--spin", "1"]
    done = CliRunner().invoke(load.main, words)
    assert done.exit_code == (kind == "wrong")
    assert told in done.output


@pytest.mark.parametrize(
    ("kind", "only", "told"),
    [
        ("right", "inference", "inference"),
        ("right", "training", "training"),
        ("wrong", "inference", "does not conform: y["),
        ("wrong_gradient", "training", "does not conform: d_weight_h[0, 0]"),
    ],
)
def test_a_cold_start_of_a_backend(kind: str, only: str, told: str, install: Install) -> None:
    install(kind, planted(kind))
    done = CliRunner().invoke(cold_start.main, [kind, "--times", "1", "--only", only])
    assert done.exit_code == kind.startswith("wrong"), done.output
    assert told in done.output


def test_a_script_keeps_its_code_in_its_folder(tmp_path: Path) -> None:
    """So that a start from a new folder finds nothing compiled."""
    write_arrays(tmp_path, JOB)
    after = "import json, os\nprint(json.dumps({'at': os.environ['NUMBA_CACHE_DIR'], 'here': os.listdir()}))\n"
    found = run_script(Candidate("backend", "numpy", 1), tmp_path, "", after)
    assert Path(found["at"]).parent == tmp_path
    assert sorted(found["here"]) == ["data.npz", "start.py"]
