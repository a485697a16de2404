"""What a session gave: its result, read from what it printed, and tables of results."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: Lines of a failure that are printed, and failures of a session that are.
LINES: Final = 30
FAILURES: Final = 5
#: Outcomes of tests that the closing line tells.
OUTCOMES: Final = ("passed", "failed", "skipped")
#: Tests in the table of the slowest.
SLOWEST: Final = 40
#: The lines of a Markdown file between which the tables are written.
BEGIN: Final = "<!-- times: made by nox -s full -- --times docs/development.md -->"
END: Final = "<!-- end of times -->"


@dataclass(frozen=True)
class Result:
    """How a session ended.

    Parameters
    ----------
    name
        The session's.
    outcome
        ``passed``, ``failed`` or ``NOT RUN``.
    counts
        Tests by outcome, as the session's own output says.
    seconds
        From start to end by the clock, environment included.
    cpu_seconds
        Of all its processes, user and system.
    slowest
        Its slowest tests and their seconds by the clock, where pytest was asked for them.
    note
        Why it was not run; empty otherwise.
    """

    name: str
    outcome: str
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    slowest: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether it has passed."""
        return self.outcome == "passed"

    @property
    def line(self) -> str:
        """One line: ``tests passed 212 s``."""
        return f"{self.name} {self.outcome}" + (f": {self.note}" if self.note else f" {self.seconds:.0f} s")


_PYTEST_END = re.compile(r"^=+ (.*\d+ \w+.*) in [\d.]+s\b.*=+$", re.MULTILINE)
_PYTEST_QUIET_END = re.compile(r"^((?:\d+ \w+, )*\d+ (?:passed|failed|skipped|errors?)\b.*) in [\d.]+s\b", re.MULTILINE)
_VERDICT = re.compile(r"all (\d+) cases of the \w+ profile passed")
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|xfailed|error)")
_DURATION = re.compile(r"^([\d.]+)s (?:call|setup|teardown) +(\S.*?) *$", re.MULTILINE)
_SECTION = re.compile(r"^=+ (FAILURES|ERRORS) =+$(.*?)(?=^=+ )", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^_{2,} (.+?) _{2,}$", re.MULTILINE)
_FAILED = re.compile(r"^(?:FAILED|ERROR) \S+?::(\S.*?)(?: - .*)?$", re.MULTILINE)


def counts_of(log: str) -> dict[str, int]:
    """Tests by outcome in the log of a session, of pytest's closing lines and the suite's verdicts."""
    found: dict[str, int] = {}
    for line in (*_PYTEST_END.findall(log), *_PYTEST_QUIET_END.findall(log)):
        for number, outcome in _COUNT.findall(line):
            found[outcome] = found.get(outcome, 0) + int(number)
    for number in _VERDICT.findall(log):
        found["passed"] = found.get("passed", 0) + int(number)
    return found


def slowest_of(log: str) -> dict[str, float]:
    """The tests in pytest's list of the slowest, with their seconds: the call, and what was set up for it."""
    found: dict[str, float] = {}
    for seconds, test in _DURATION.findall(log):
        found[test] = found.get(test, 0.0) + float(seconds)
    return found


def failures_of(log: str) -> list[str]:
    """What failed, each with its name and its last lines: tests where pytest says so, else the end of the log."""
    names = {name.replace("::", ".") for name in _FAILED.findall(log)}
    found: list[str] = []
    for _, section in _SECTION.findall(log):
        titles = [
            title for title in _TITLE.finditer(section) if _tested(title[1]) in names
        ]  # others are what it printed
        ends = [title.start() for title in titles[1:]] + [len(section)]
        for title, end in zip(titles, ends, strict=True):
            found.append(_last(section[title.end() : end], f"FAILED {title[1]}"))
    if not found:
        return [_last(log, "the end of its output")]
    rest = len(found) - FAILURES
    return found[:FAILURES] + ([f"--- and {rest} more"] if rest > 0 else [])


def _tested(title: str) -> str:
    """The name of the test that a title of pytest's is of."""
    return title.removeprefix("ERROR at setup of ").removeprefix("ERROR at teardown of ")


def _last(text: str, title: str) -> str:
    return "\n".join((f"--- {title}", *text.strip().splitlines()[-LINES:]))


def session_table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| session | result | tests | seconds | CPU seconds |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        tests = ", ".join(f"{number} {outcome}" for outcome, number in result.counts.items())
        seconds, cpu = f"{result.seconds:.0f}", f"{result.cpu_seconds:.0f}"
        lines.append(f"| {result.name} | {result.outcome} | {tests} | {seconds} | {cpu} |")
    return "\n".join(lines)


def closing_line(results: Sequence[Result]) -> str:
    """How many tests passed, failed and were skipped in all sessions, in pytest's words."""
    totals = {outcome: sum(result.counts.get(outcome, 0) for result in results) for outcome in OUTCOMES}
    return ", ".join(f"{number} {outcome}" for outcome, number in totals.items())


def slowest_table(results: Sequence[Result]) -> str:
    """The slowest tests of all sessions as a Markdown table."""
    found = [(seconds, test, result.name) for result in results for test, seconds in result.slowest.items()]
    rows = [f"| {test} | {name} | {seconds:.1f} |" for seconds, test, name in sorted(found, reverse=True)[:SLOWEST]]
    return "\n".join(["| test | session | seconds |", "| --- | --- | --- |", *rows])


def write_tables(file: Path, results: Sequence[Result]) -> None:
    """Put both tables between the marks of a Markdown file, with the machine and the date.

    Raises
    ------
    ValueError
        The file has no such marks.
    """
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{file}: expected the lines {BEGIN} and {END}; they are not there")
    when = f"Measured on {time.strftime('%Y-%m-%d')} with {processors()} processors: {_processor()}."
    tables = f"\n\n{when}\n\n{session_table(results)}\n\n{slowest_table(results)}\n\n"
    replace_file(file, before + begin + tables + end + after)


def _processor() -> str:
    """The name of the processor, as Linux knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    return next(iter(re.findall(r"model name\s*: (.*)", text)), platform.processor())


def replace_file(file: Path, text: str) -> None:
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
