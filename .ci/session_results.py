"""Results of nox sessions: read from what a session printed, and written as tables."""

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
#: Tests in the table of the slowest.
SLOWEST: Final = 40
#: The lines of a Markdown file between which the tables are written.
BEGIN: Final = "<!-- times: made by nox -s full -- --times docs/development.md -->"
END: Final = "<!-- end of times -->"


@dataclass(frozen=True)
class Result:
    """The result of a session.

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
        What was not checked and why; empty otherwise.
    """

    name: str
    outcome: str
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    slowest: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def complete(self) -> bool:
        """Whether it passed and checked all that it is there for."""
        return self.outcome == "passed" and not self.note

    @property
    def line(self) -> str:
        """One line: ``tests passed 212 s``."""
        took = "" if self.outcome == "NOT RUN" else f" {self.seconds:.0f} s"
        return f"{self.name} {self.outcome}{took}" + (f": {self.note}" if self.note else "")


_PYTEST_END = re.compile(r"^=+ (.*\d+ \w+.*) in [\d.]+s\b.*=+$", re.MULTILINE)
_PYTEST_QUIET_END = re.compile(r"^((?:\d+ \w+, )*\d+ (?:passed|failed|skipped|errors?)\b.*) in [\d.]+s\b", re.MULTILINE)
#: The last lines of `lstmcore conform`, which may be broken where the terminal ends.
_VERDICTS = (
    re.compile(r"\ball\s+(?P<passed>\d+)\s+cases?\s+of\s+the\s+\w+\s+profile\s+passed"),
    re.compile(r"\bpasses\s+(?P<passed>\d+)\s+selected\s+cases?"),
    re.compile(r"expected\s+failures?:\s+(?P<passed>\d+)\s+cases?\s+passed"),
    re.compile(r"\bdoes\s+not\s+conform:\s+(?P<failed>\d+)\s+of\s+\d+\s+cases?\s+failed"),
)
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|xfailed|error)")
_UNCHECKED = re.compile(r"^NOT CHECKED: (.*)", re.MULTILINE)
_DURATION = re.compile(r"^([\d.]+)s (?:call|setup|teardown) +(\S.*?) *$", re.MULTILINE)
#: From the title of pytest's failures to the next title of its own; what a test printed may look like a title too.
_SECTION = re.compile(
    r"^=+ (?:FAILURES|ERRORS) =+$(.*?)^=+ (?=FAILURES =|ERRORS =|slowest |warnings summary|short test summary|\d+ )",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r"^_+ (?:ERROR at (?:setup|teardown) of )?(.+?) _+$", re.MULTILINE)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::\S.*)$", re.MULTILINE)


def counts_of(log: str) -> dict[str, int]:
    """Count the tests of a session's log by outcome, from pytest's closing lines and the suite's verdicts."""
    found: dict[str, int] = {}
    for line in (*_PYTEST_END.findall(log), *_PYTEST_QUIET_END.findall(log)):
        for number, outcome in _COUNT.findall(line):
            found[outcome] = found.get(outcome, 0) + int(number)
    for verdict in _VERDICTS:
        for match in verdict.finditer(log):
            for outcome, number in match.groupdict().items():
                found[outcome] = found.get(outcome, 0) + int(number)
    return found


def unchecked_in(log: str) -> str:
    """Return what the session says it did not check; empty if it checked all."""
    return "; ".join(f"NOT CHECKED: {text}" for text in _UNCHECKED.findall(log))


def slowest_of(log: str) -> dict[str, float]:
    """Return the tests in pytest's list of the slowest, with the seconds of their call and set-up."""
    found: dict[str, float] = {}
    for seconds, test in _DURATION.findall(log):
        found[test] = found.get(test, 0.0) + float(seconds)
    return found


def failures_of(log: str) -> list[str]:
    """Return the last lines of the first failures, then the names of all; without a name, the end of the log."""
    summary = _FAILED.findall(log)
    names = {name for line in summary for name in _names(line)}
    found: list[str] = []
    for section in _SECTION.findall(log):
        titles = [title for title in _TITLE.finditer(section) if title[1] in names]  # others are of what a test printed
        ends = [title.start() for title in titles] + [len(section)]
        for title, end in zip(titles, ends[1:], strict=True):
            found.append(_last(section[title.end() : end], f"FAILED {title[1]}"))
    if not found:
        return [_last(log, "the end of its output")]
    return [*found[:FAILURES], "\n".join(("--- all that failed", *summary))]


def _names(line: str) -> list[str]:
    """Return the possible titles of a failure from its line in the summary: a name may hold the dash after it."""
    pieces = line.partition("::")[2].replace("::", ".").split(" - ")
    return [" - ".join(pieces[:end]) for end in range(1, len(pieces) + 1)]


def _last(text: str, title: str) -> str:
    return "\n".join((f"--- {title}", *text.strip().splitlines()[-LINES:]))


def session_table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| session | result | tests | seconds | CPU seconds |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        tests = ", ".join(f"{number} {outcome}" for outcome, number in result.counts.items())
        seconds, cpu = f"{result.seconds:.0f}", f"{result.cpu_seconds:.0f}"
        lines.append(f"| {result.name} | {result.outcome} | {tests} | {seconds} | {cpu} |")
    return "\n".join(lines)


def closing_line(results: Sequence[Result]) -> str:
    """Return how many tests passed, failed and were skipped in all sessions, in pytest's words.

    Errors are failures, and a session that failed with no failed test is one.
    """
    totals = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for result in results:
        counts = result.counts
        failed = counts.get("failed", 0) + counts.get("error", 0)
        totals["passed"] += counts.get("passed", 0)
        totals["failed"] += failed or int(result.outcome == "failed")
        totals["skipped"] += counts.get("skipped", 0)
    return ", ".join(f"{number} {outcome}" for outcome, number in totals.items())


def slowest_table(results: Sequence[Result]) -> str:
    """Return the slowest tests of all sessions as a Markdown table."""
    found = [(seconds, test, result.name) for result in results for test, seconds in result.slowest.items()]
    rows = [f"| {test} | {name} | {seconds:.1f} |" for seconds, test, name in sorted(found, reverse=True)[:SLOWEST]]
    return "\n".join(["| test | session | seconds |", "| --- | --- | --- |", *rows])


def check_marks(file: Path) -> None:
    """Check that a Markdown file has the marks between which tables are written.

    Raises
    ------
    ValueError
        It has not.
    """
    if not re.search(f"{re.escape(BEGIN)}.*{re.escape(END)}", file.read_text(encoding="utf-8"), re.DOTALL):
        raise ValueError(f"{file}: expected the lines {BEGIN} and {END}; they are not there")


def write_tables(file: Path, results: Sequence[Result]) -> None:
    """Put both tables between the marks of a Markdown file, with the machine and the date."""
    check_marks(file)
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    when = f"Measured on {time.strftime('%Y-%m-%d')} with {processors()} processors: {_processor()}."
    tables = f"\n\n{when}\n\n{session_table(results)}\n\n{slowest_table(results)}\n\n"
    replace_file(file, before + begin + tables + end + after)


def _processor() -> str:
    """Return the name of the processor and its widest vector extension, as Linux knows them."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    widest = re.search("amx_bf16", text) or re.search("avx512f", text) or re.search("avx2", text)
    return ", ".join((name[1] if name else platform.processor(), *([widest[0]] if widest else ())))


def replace_file(file: Path, text: str) -> None:
    """Write a file under another name and rename it.

    `lstmcore.files.write_atomically` does this too; this module runs where nothing but nox is installed.
    """
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
