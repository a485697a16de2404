"""The runner of nox sessions: what it reads from logs, in which order it runs, what it keeps and prints."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import pytest

import results
import runner
import sessions
from results import Result
from runner import Runner, Session

ROOT = Path(__file__).parent.parent

FAILED_TESTS = """\
============================= test session starts ==============================
collected 3 items

test_a.py .FF                                                             [100%]

=================================== FAILURES ===================================
______________________________ test_of_a_kind[x-y] _____________________________

    def test_of_a_kind():
>       assert 1 == 2
E       assert 1 == 2

test_a.py:2: AssertionError
----------------------------- Captured stdout call -----------------------------
_______________________ test_of_a_pytest_that_a_test_ran _______________________
________________________________ test_of_another _______________________________
E       {long}

test_a.py:9: AssertionError
============================= slowest 40 durations =============================
12.50s call     tests/test_a.py::test_of_a_kind[x y]
1.50s setup    tests/test_a.py::test_of_a_kind[x y]
0.20s call     tests/test_a.py::test_of_another
=========================== short test summary info ============================
FAILED test_a.py::test_of_a_kind[x-y] - assert 1 == 2
FAILED test_a.py::test_of_another - E
==================== 2 failed, 1 passed, 3 skipped in 0.08s ====================
""".replace("{long}", "\nE       ".join(f"line {n}" for n in range(60)))


def test_counts_are_read() -> None:
    assert results.counts_of(FAILED_TESTS) == {"failed": 2, "passed": 1, "skipped": 3}
    assert results.counts_of("106 passed in 5.02s\n1 passed, 2 skipped in 70.1s (0:01:10)\n") == {
        "passed": 107,
        "skipped": 2,
    }
    verdict = "mine conforms in float32: all 106 cases of the quick profile passed\n"
    assert results.counts_of(verdict) == {"passed": 106}
    assert results.counts_of("nox > Running session lint\n3 passed the door\n") == {}


def test_pytest_itself_prints_what_is_read(tmp_path: Path) -> None:
    """The patterns fit what the installed pytest prints, with two workers and quietly too."""
    text = "import pytest\ndef test_right(): pass\n@pytest.mark.parametrize('text', ['a b'])\n"
    (tmp_path / "test_it.py").write_text(text + "def test_wrong(text): assert 'seen' == 'not'\n")
    for options in (("-q",), ("-n", "2")):
        command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--durations=9", "--durations-min=0", *options]
        done = subprocess.run([*command, "test_it.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert results.counts_of(done.stdout) == {"passed": 1, "failed": 1}, done.stdout
        assert set(results.slowest_of(done.stdout)) == {"test_it.py::test_right", "test_it.py::test_wrong[a b]"}
        (failure,) = results.failures_of(done.stdout)
        assert failure.startswith("--- FAILED test_wrong[a b]\n")
        assert "assert 'seen' == 'not'" in failure


def test_failures_are_named_with_their_last_lines() -> None:
    first, second = results.failures_of(FAILED_TESTS)
    assert first.splitlines()[0] == "--- FAILED test_of_a_kind[x-y]"
    assert "E       assert 1 == 2" in first
    assert second.splitlines()[0] == "--- FAILED test_of_another"
    assert len(second.splitlines()) == results.LINES + 1
    assert second.endswith("test_a.py:9: AssertionError")
    (end,) = results.failures_of("\n".join(f"step {n}" for n in range(99)))
    assert end.splitlines()[0] == "--- the end of its output"
    assert end.splitlines()[1:] == [f"step {n}" for n in range(69, 99)]


def test_slowest_tests_are_read_with_their_setup() -> None:
    assert results.slowest_of(FAILED_TESTS) == {
        "tests/test_a.py::test_of_a_kind[x y]": 14.0,
        "tests/test_a.py::test_of_another": 0.2,
    }


class _Nox:
    """Stands in for starting nox: every session waits for what the test lets go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, codes: Mapping[str, int]) -> None:
        self.codes, self.begun, self.beside = dict(codes), [], {}
        self.running: set[str] = set()
        self.lock = threading.Lock()
        self.meet = threading.Barrier(2)
        monkeypatch.setattr(runner, "_run", self.run)
        monkeypatch.setattr(runner, "FOLDER", tmp_path)
        monkeypatch.setattr(sessions, "FOLDER", tmp_path)
        monkeypatch.setattr(sessions, "ROOT", tmp_path)
        monkeypatch.setattr(sessions, "tree", lambda: "this tree")

    def run(self, words: Sequence[str], environment: Mapping[str, str], file: TextIO) -> tuple[int, float]:
        name = words[words.index("-s") + 1]
        if "--install-only" in words:
            return 0, 0.5
        with self.lock:
            self.begun.append(name)
            self.running.add(name)
        if name.startswith("pair"):
            self.meet.wait(timeout=60)  # both run at a time, or this breaks
        with self.lock:
            self.beside[name] = self.running - {name}
            self.running.discard(name)
        file.write(FAILED_TESTS if self.codes.get(name) else "4 passed in 1.00s\n")
        return self.codes.get(name, 0), 1.0


def test_sessions_run_side_by_side_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two at a time, but for one that uses every processor; a failure stops nothing; a program that lacks is told."""
    nox = _Nox(monkeypatch, tmp_path, {"pair one": 1})
    plan = [
        Session("pair one"),
        Session("pair two"),
        Session("alone", every_processor=True),
        Session("lacking", needs=("no such program",)),
        Session("last", installs_last=True),
    ]
    out = io.StringIO()
    found = {result.name: result for result in Runner(2, out).run(plan)}
    assert set(nox.begun[:2]) == {"pair one", "pair two"}
    assert nox.beside["alone"] == set()
    assert {name: result.outcome for name, result in found.items()} == {
        "pair one": "failed",
        "pair two": "passed",
        "alone": "passed",
        "lacking": "NOT RUN",
        "last": "passed",
    }
    assert found["pair two"].counts == {"passed": 4}
    assert (found["pair two"].cpu_seconds, found["last"].cpu_seconds) == (1.5, 1.0)
    printed = out.getvalue()
    assert "--- FAILED test_of_a_kind[x-y]\n" in printed
    assert "lacking NOT RUN: install no such program to run it\n" in printed


def test_an_environment_that_cannot_be_made_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nox = _Nox(monkeypatch, tmp_path, {})
    monkeypatch.setattr(runner, "_run", lambda words, environment, file: (int("--install-only" in words), 0.0))
    (result,) = Runner(2, io.StringIO()).run([Session("one")])
    assert result.outcome == "failed"
    assert nox.begun == []


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sessions.PLANS, "full", (Session("one"), Session("two"), Session("three")))


@pytest.mark.usefixtures("plan")
def test_it_resumes_with_what_has_not_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nox = _Nox(monkeypatch, tmp_path, {"two": 1})
    assert sessions.main(["full"]) == 1
    assert sorted(nox.begun) == ["one", "three", "two"]
    printed = capsys.readouterr().out
    assert re.search(r"^two failed \d+ s$", printed, re.MULTILINE)
    assert printed.endswith("\n9 passed, 2 failed, 3 skipped\n")
    nox.begun, nox.codes = [], {}
    assert sessions.main(["full", "--resume"]) == 0
    assert nox.begun == ["two"]
    assert re.search(r"^\| one \| passed \| 4 passed \| \d+ \| 2 \|$", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setattr(sessions, "tree", lambda: "another tree")
    nox.begun = []
    assert sessions.main(["full", "--resume", "three", "one"]) == 0
    assert sorted(nox.begun) == ["one", "three"]


@pytest.mark.usefixtures("plan")
def test_a_session_that_is_not_in_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _Nox(monkeypatch, tmp_path, {})
    with pytest.raises(SystemExit, match="expected some of one, two, three; got four"):
        sessions.main(["full", "one", "four"])


def test_tables_are_written_between_the_marks(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    found = [
        Result("tests", "passed", {"passed": 5}, 2.4, 3.6, {"test_a": 1.25}),
        Result("report", "NOT RUN", note="x"),
    ]
    results.write_tables(file, found)
    text = file.read_text()
    assert text.startswith(f"before\n{results.BEGIN}\n\nMeasured on 2")
    assert "| tests | passed | 5 passed | 2 | 4 |\n| report | NOT RUN |  | 0 | 0 |\n" in text
    assert "| test_a | tests | 1.2 |" in text
    assert text.endswith(f"\n\n{results.END}\nafter\n")
    file.write_text("nothing")
    with pytest.raises(ValueError, match="expected the lines"):
        results.write_tables(file, found)


def test_a_tree_is_told_from_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its commit, by what is changed, and by what is new in it."""
    monkeypatch.setattr(sessions, "ROOT", tmp_path)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), (*identity, "commit", "-q", "--allow-empty", "-m", "a")):
        subprocess.run(("git", *words), cwd=tmp_path, check=True)
    seen = [sessions.tree()]
    for text in ("one", "two"):
        (tmp_path / "file").write_text(text)
        seen.append(sessions.tree())
    subprocess.run(("git", "add", "file"), cwd=tmp_path, check=True)
    subprocess.run(("git", *identity, "commit", "-q", "-m", "b"), cwd=tmp_path, check=True)
    seen.append(sessions.tree())
    assert len(set(seen)) == 4
    assert seen[0] == seen[1].partition("+")[0]


def test_plans_name_sessions_of_the_noxfile() -> None:
    """Every session of a plan is in the noxfile, and `full` has every check of `ci`, the cupy session whole."""
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    for session in (*sessions.CI, *sessions.FULL):
        name = (session.nox or session.name).partition("(")[0]
        assert f"def {name}(" in noxfile or f'name="{name}"' in noxfile
    assert {session.name for session in sessions.CI} <= {session.name for session in sessions.FULL}
    for plan in (sessions.CI, sessions.FULL):
        assert len({session.name for session in plan}) == len(plan)
