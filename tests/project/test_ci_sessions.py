"""The runner of nox sessions: what it reads from logs, in which order it runs, what it keeps and prints."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest

import pythons
import session_results
import session_runner
import sessions
from lstmcore_conformance import run
from lstmcore_conformance.mutants import MUTANTS
from lstmcore_conformance.oracle.naive import NaiveBackend
from session_results import Result
from session_runner import Runner, Session

ROOT = Path(__file__).parents[2]

FAILED_TESTS = """\
============================= test session starts ==============================
collected 3 items

test_a.py .FF                                                             [100%]

=================================== FAILURES ===================================
______________________________ test_of_a_kind[x - y] _____________________________

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
FAILED test_a.py::test_of_a_kind[x - y] - assert 1 == 2
FAILED test_a.py::test_of_another - E
==================== 2 failed, 1 passed, 3 skipped in 0.08s ====================
""".replace("{long}", "\nE       ".join(f"line {n}" for n in range(60)))


def test_counts_are_read() -> None:
    assert session_results.counts_of(FAILED_TESTS) == {"failed": 2, "passed": 1, "skipped": 3}
    quiet = "106 passed in 5.02s\n1 passed, 2 skipped in 70.1s (0:01:10)\n"
    assert session_results.counts_of(quiet) == {"passed": 107, "skipped": 2}
    assert session_results.counts_of("=== 1 passed, 2 errors in 0.08s ===\n") == {"passed": 1, "error": 2}
    assert session_results.counts_of("nox > Running session lint\n3 passed the door\n") == {}


def test_verdicts_of_the_suite_are_read() -> None:
    """The sentences that the suite ends with, broken into lines as a narrow terminal does."""
    fault, check = MUTANTS["contract.dtype_wider"].make(), "forward.no_state"
    right = run(NaiveBackend(), precisions=["float32"], select=check)
    wrong = run(fault, precisions=["float32"], select=check)
    known = run(fault, precisions=["float32"], select=check, expected_failures={check: "wider"})
    number = right.count
    assert number > 1
    for report, part, whole in (
        (right, {"passed": number}, {"passed": number}),
        (wrong, {"failed": number}, {"failed": number}),
        (known, {"passed": number}, {"passed": 0}),
    ):
        for verdict, counts in ((report.verdict, part), (replace(report, selection="").verdict, whole)):
            assert session_results.counts_of(verdict.replace(" ", "\n")) == counts, verdict


def test_pytest_itself_prints_what_is_read(tmp_path: Path) -> None:
    """The patterns fit what the installed pytest prints, with two workers and quietly too."""
    long = f"test_wrong[{'a b ' * 30}c]"
    text = "import pytest\ndef test_right(): pass\n@pytest.mark.parametrize('text', ['a b ' * 30 + 'c'], ids=str)\n"
    text += "def test_wrong(text):\n  print('==== 3 failed ====')\n  assert 'seen' == 'not'\n"
    (tmp_path / "test_it.py").write_text(text)
    for options in (("-q",), ("-n", "2")):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            "/dev/null",
            "--rootdir=.",
            "--durations=9",
            "--durations-min=0",
            *options,
        ]
        done = subprocess.run([*command, "test_it.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert session_results.counts_of(done.stdout) == {"passed": 1, "failed": 1}, done.stdout
        assert set(session_results.slowest_of(done.stdout)) == {"test_it.py::test_right", f"test_it.py::{long}"}
        (failure, names) = session_results.failures_of(done.stdout)
        assert failure.startswith(f"--- FAILED {long}\n")
        assert "assert 'seen' == 'not'" in failure
        assert names.startswith(f"--- all that failed\ntest_it.py::{long}")


def test_failures_are_named_with_their_last_lines() -> None:
    first, second, names = session_results.failures_of(FAILED_TESTS)
    assert first.splitlines()[0] == "--- FAILED test_of_a_kind[x - y]"
    assert "E       assert 1 == 2" in first
    assert second.splitlines()[0] == "--- FAILED test_of_another"
    assert len(second.splitlines()) == session_results.LINES + 1
    assert second.endswith("test_a.py:9: AssertionError")
    assert names.splitlines()[1:] == [
        "test_a.py::test_of_a_kind[x - y] - assert 1 == 2",
        "test_a.py::test_of_another - E",
    ]
    (end,) = session_results.failures_of("\n".join(f"step {n}" for n in range(99)))
    assert end.splitlines()[0] == "--- the end of its output"
    assert end.splitlines()[1:] == [f"step {n}" for n in range(69, 99)]


def test_slowest_tests_are_read_with_their_setup() -> None:
    assert session_results.slowest_of(FAILED_TESTS) == {
        "tests/test_a.py::test_of_a_kind[x y]": 14.0,
        "tests/test_a.py::test_of_another": 0.2,
    }


class _Turn(threading.Condition):
    """A condition that counts the sessions that wait on it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.changed = 0, threading.Condition()

    def wait(self, timeout: float | None = None) -> bool:
        self._count(1)  # the lock is held until the wait has begun
        try:
            return super().wait(timeout)
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self.changed:
            self.waiting += more
            self.changed.notify_all()


class _Nox:
    """Stands in for starting nox: every session waits for what the test lets go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, codes: Mapping[str, int]) -> None:
        self.codes, self.begun = dict(codes), []
        self.running: list[str] = []
        self.beside: set[frozenset[str]] = set()  # pairs of sessions that ran at a time
        self.stopped = threading.Event()
        self.installs, self.text = 0, "4 passed in 1.00s\n"
        self.lock = threading.Lock()
        self.meet, self.turn = threading.Barrier(2), _Turn()
        monkeypatch.setattr(session_runner, "_run", self.run)
        monkeypatch.setattr(session_runner, "FOLDER", tmp_path)
        monkeypatch.setattr(sessions, "FOLDER", tmp_path)
        monkeypatch.setattr(sessions, "ROOT", tmp_path)
        monkeypatch.setattr(sessions, "tree", lambda: "this tree")

    def run(self, words: Sequence[str], environment: Mapping[str, str], file: TextIO) -> tuple[int, float]:
        name = words[words.index("-s") + 1]
        if "--install-only" in words:
            return self.installs, 0.5
        with self.lock:
            self.begun.append(name)
            self.beside |= {frozenset((name, other)) for other in self.running}
            self.running.append(name)
        with self.turn.changed:
            self.turn.changed.notify_all()
        if name.startswith("pair"):
            self.meet.wait(timeout=60)  # both run at a time, or this breaks
        if name == "alone" and self.begun.count(name) == 1:
            with self.turn.changed:  # until the next session waits, or runs beside it
                assert self.turn.changed.wait_for(lambda: self.turn.waiting or len(self.running) > 1, timeout=60)
        if name == "until stopped":
            self.stopped.wait(timeout=60)
        with self.lock:
            self.running.remove(name)
        file.write(FAILED_TESTS if self.codes.get(name) else self.text)
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
    found = {result.name: result for result in Runner(2, out, nox.turn).run(plan)}
    assert set(nox.begun[:2]) == {"pair one", "pair two"}
    assert nox.beside == {frozenset(("pair one", "pair two"))}
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
    assert "--- FAILED test_of_a_kind[x - y]\n" in printed
    assert "lacking NOT RUN: install no such program to run it\n" in printed


def test_an_environment_that_cannot_be_made_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nox = _Nox(monkeypatch, tmp_path, {})
    nox.installs = 1
    (result,) = Runner(2, io.StringIO()).run([Session("one")])
    assert result.outcome == "failed"
    assert nox.begun == []


def test_sessions_of_one_environment_follow_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nox = _Nox(monkeypatch, tmp_path, {})
    plan = [Session("first", "alone"), Session("second", "alone")]
    assert [result.outcome for result in Runner(2, io.StringIO(), nox.turn).run(plan)] == ["passed", "passed"]
    assert not nox.beside


def test_what_was_not_checked_is_told_and_not_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nox = _Nox(monkeypatch, tmp_path, {})
    nox.text = "NOT CHECKED: numba: another version\n1 passed in 1.00s\n"
    (result,) = Runner(2, io.StringIO()).run([Session("one")])
    assert result.line == "one passed 0 s: NOT CHECKED: numba: another version"
    assert not result.complete


def test_after_an_interruption_nothing_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nox, one_at_a_time = _Nox(monkeypatch, tmp_path, {}), Runner(1, io.StringIO())
    nox.stopped = one_at_a_time.stopped
    results = one_at_a_time.run([Session("one"), Session("until stopped"), Session("two"), Session("three")])
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert set(nox.begun) <= {"one", "until stopped"}


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
    monkeypatch.setattr(sessions, "tree", lambda: None)
    with pytest.raises(SystemExit, match="--resume: expected a git checkout"):
        sessions.main(["full", "--resume"])
    monkeypatch.setattr(sessions, "tree", lambda: "another tree")
    nox.begun = []
    assert sessions.main(["full", "--resume", "three", "one"]) == 0
    assert sorted(nox.begun) == ["one", "three"]


@pytest.mark.usefixtures("plan")
def test_a_session_that_is_not_in_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _Nox(monkeypatch, tmp_path, {})
    with pytest.raises(SystemExit, match="expected some of one, two, three; got four"):
        sessions.main(["full", "one", "four"])


@pytest.mark.usefixtures("plan")
def test_results_of_a_tree_that_changes_meanwhile_are_of_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nox = _Nox(monkeypatch, tmp_path, {})
    trees = iter(["before", "after", "after", "after"])
    monkeypatch.setattr(sessions, "tree", lambda: next(trees, "before"))
    assert sessions.main(["full"]) == 0
    nox.begun = []
    assert sessions.main(["full", "--resume"]) == 0
    assert sorted(nox.begun) == ["one", "three", "two"]


def test_the_closing_line_tells_every_failure() -> None:
    """Errors are failures, and a session that fails before any test is one."""
    found = [Result("tests", "failed", {"passed": 5, "error": 2}), Result("lint", "failed"), Result("build", "passed")]
    assert session_results.closing_line(found) == "5 passed, 3 failed, 0 skipped"


def test_tables_are_written_between_the_marks(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{session_results.BEGIN}\nold\n{session_results.END}\nafter\n")
    found = [
        Result("tests", "passed", {"passed": 5}, 2.4, 3.6, {"test_a": 1.25}),
        Result("report", "NOT RUN", note="x"),
    ]
    session_results.write_tables(file, found)
    text = file.read_text()
    assert text.startswith(f"before\n{session_results.BEGIN}\n\nMeasured on 2")
    assert "| tests | passed | 5 passed | 2 | 4 |\n| report | NOT RUN |  | 0 | 0 |\n" in text
    assert "| test_a | tests | 1.2 |" in text
    assert text.endswith(f"\n\n{session_results.END}\nafter\n")
    file.write_text("nothing")
    with pytest.raises(ValueError, match="expected the lines"):
        sessions.main(["full", "--times", str(file)])


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_tree_is_told_from_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its commit, by what is changed, and by what is new in it."""
    monkeypatch.setattr(sessions, "ROOT", tmp_path)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # they may name the developer's own repository
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert sessions.tree() is None
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
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
    assert None not in seen


def test_a_python_that_does_not_start_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shim of pyenv is on the path though its version is not active, and a script of an interpreter that is gone."""
    shim = tmp_path / "python3.13"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    stale = tmp_path / "python3.12"
    stale.write_text("#!/nowhere/python\n")
    stale.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert pythons.newest_python() is None
    needed = Session("newest", needs=("|".join(pythons.NEWER),))
    (result,) = Runner(1, io.StringIO()).run([needed])
    assert result.line == "newest NOT RUN: install python3.14 or python3.13 or python3.12 to run it"
    kept = tmp_path / "versions" / "3.12.1" / "bin" / "python3.12"
    kept.parent.mkdir(parents=True)
    kept.symlink_to(sys.executable)
    assert pythons.newest_python() == str(kept)


def test_every_folder_of_tests_is_run() -> None:
    """pytest runs the folders of `testpaths`; the others have sessions that name them."""
    usual = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]["testpaths"]
    noxfile = (ROOT / "noxfile.py").read_text("utf-8")
    folders = {file.parent.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("test_*.py")}
    assert set(usual) <= folders
    for folder in folders - set(usual):
        assert f'"{folder}"' in noxfile


def test_plans_have_every_session_of_the_noxfile() -> None:
    """`full` runs all that judge, `ci` a part of them; what `ci` cuts short is whole in `full`."""
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    found = re.findall(r'^@nox\.session(?:\((?:name="([\w-]+)")?.*\))?\n(?:@.*\n)*def (\w+)\(', noxfile, re.MULTILINE)
    defined = {name or function for name, function in found}
    judging = defined - {"full", "bench", "bench-own", "gpu", "scoreboard", "style"}
    assert judging == {(session.nox or session.name).partition("(")[0] for session in sessions.FULL}
    backends = re.search(r"^BACKENDS = \((.*?)^\)", noxfile, re.DOTALL | re.MULTILINE)
    assert backends is not None
    wanted = {f"conformance(backend='{name}')" for name in re.findall(r'"([\w-]+)"', backends[1])}
    assert wanted == {session.nox for session in sessions.FULL if session.nox}
    whole = {session.name: session for session in sessions.FULL}
    for session in sessions.CI:
        name = session.name if session.name in whole else session.nox  # a part has a name of its own
        assert not {"-m", "--precision"} & set(whole[name].arguments)
    for plan in (sessions.CI, sessions.FULL):
        assert len({session.name for session in plan}) == len(plan)
