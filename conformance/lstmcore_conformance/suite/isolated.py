"""The suite in a child process: a crash, an abort or a hang of the backend names its case, and the run goes on.

A child runs case after case and writes a line of JSON for each. If it ends at a case or takes too long there, another
child begins after it. ``python -m lstmcore_conformance.suite.isolated JSON`` is a child.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.check import Profile
from lstmcore_conformance.suite.report import ItemReport, Report
from lstmcore_conformance.suite.runner import (
    Progress,
    checked,
    chosen_items,
    mark_expected,
    not_run,
    report_on,
    run_item,
)
from lstmcore_conformance.suite.target import load_target

#: Seconds that a case may take. Compiling counts; the slowest case of any backend that was tried takes a quarter.
TIMEOUT: Final = 600.0
#: Seconds between two looks whether a child has ended.
_LOOK: Final = 1.0
#: Children that may end one after the other before they have begun a case.
ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Job:
    """What a child runs.

    Attributes
    ----------
    name
        What `load_target` takes.
    precisions, select, profile, draws, max_work
        The arguments of `run`.
    failures
        The folder for the files of failing calls, None for none.
    first
        The number of the first item.
    """

    name: str
    precisions: tuple[str, ...] | None = None
    select: str | None = None
    profile: Profile = "quick"
    draws: Draws = field(default_factory=Draws)
    max_work: int | None = None
    failures: str | None = None
    first: int = 0

    @classmethod
    def parse(cls, text: str) -> Job:
        """Return the job of a JSON text."""
        values = json.loads(text)
        names = values["precisions"]
        made = {"draws": Draws(**values["draws"]), "precisions": None if names is None else tuple(names)}
        return cls(**{**values, **made})

    def tested(self) -> BackendUnderTest:
        """Return the backend to test."""
        tested = BackendUnderTest(load_target(self.name), self.draws, self.max_work)
        tested.command_name = self.name
        tested.failures = None if self.failures is None else Path(self.failures)
        return tested


def run_job(
    job: Job,
    *,
    timeout: float | None = TIMEOUT,
    expected_failures: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run the checks and return the report; a case that ends its process is an error of the report.

    Parameters
    ----------
    job
        What to run.
    timeout
        Seconds after which a case counts as one that hangs; None to run in this process.
    expected_failures, progress
        The arguments of `run`.

    Raises
    ------
    ValueError
        As `run`; a timeout that is not positive.
    RuntimeError
        Children end before they begin a case.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout: expected seconds above 0; got {timeout:g}")
    tested, started = job.tested(), datetime.now(UTC)
    todo = chosen_items(tested, job.precisions, job.select, job.profile)
    expected = checked(tested, expected_failures)
    results: dict[str, list[ItemReport]] = {}
    position = early = 0
    while position < len(todo):
        begun, how = False, ""
        part = replace(job, first=position)
        for record in said(part) if timeout is None else _records(part, timeout):
            if "begun" in record:
                begun, early = True, 0
                if progress is not None:
                    progress(position, len(todo), record["begun"])
            elif "item" in record:
                results.setdefault(todo[position].check.id, []).append(ItemReport.from_record(record["item"]))
                for kind, sizes in record["extent"].items():
                    tested.raise_extent(kind, sizes)
                begun, position = False, position + 1
            elif "ended" in record:
                how = record["ended"]
        if begun:
            item = todo[position]
            again = f"lstmcore conform {job.name} -k '{item.id}' --in-process"
            ended = replace(not_run(item, f"the process {how}, at this case"), reproduce=again)
            results.setdefault(item.check.id, []).append(ended)
            position += 1
        elif position < len(todo) and (early := early + 1) == ATTEMPTS:
            raise RuntimeError(f"{job.name}: the process {how} before a case began, {ATTEMPTS} times; see above why")
    report = report_on(tested, results, started, job.precisions, select=job.select, profile=job.profile)
    return mark_expected(report, tested, expected)


def said(job: Job) -> Iterator[dict[str, Any]]:
    """Run the items of a job from its first one on.

    Yield that the backend is loaded; then the id of each item, and its report with the sizes shown so far.
    """
    tested = job.tested()
    yield {"loaded": job.name}
    for item in chosen_items(tested, job.precisions, job.select, job.profile)[job.first :]:
        yield {"begun": item.id}
        yield {"item": run_item(tested, item).to_record(), "extent": tested.extent}


def _records(job: Job, timeout: float) -> Iterator[dict[str, Any]]:
    """Yield what a child says, then how it ended. What the child started ends with it."""
    process = subprocess.Popen(  # noqa: S603  (this interpreter and this package)
        [sys.executable, "-m", __name__, json.dumps(asdict(job))],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    limit: float | None = None
    try:
        while (line := _next(lines, process, limit)) is not None:
            if not line:
                yield {"ended": f"ended by {_format_exit(process.wait())}"}
                return
            yield (record := json.loads(line))
            # Before the first case there is no limit: the parent loaded the backend and listed the cases as well.
            limit = None if "loaded" in record else timeout
        yield {"ended": f"took more than {timeout:g} s (--timeout)"}
    finally:
        _kill(process)


def _next(lines: queue.SimpleQueue[str], process: subprocess.Popen[str], limit: float | None) -> str | None:
    """Return the next line; an empty text if the process has ended, None if it said nothing within the limit.

    A worker that the process left behind may hold its end of the pipe, so the end of the stream may not come.
    """
    until = math.inf if limit is None else time.monotonic() + limit
    while True:
        ended = process.poll() is not None
        try:
            return lines.get(timeout=max(0.0, min(_LOOK, until - time.monotonic())))
        except queue.Empty:
            if ended:
                return ""
            if time.monotonic() >= until:
                return None


def _kill(process: subprocess.Popen[str]) -> None:
    """End a child and what it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _read(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Put the whole lines of a stream into a queue, and an empty text at its end."""
    with stream:
        for line in stream:
            if line.endswith("\n"):
                lines.put(line)
    lines.put("")


def _format_exit(code: int) -> str:
    """Return the name of the signal that ended a process, or its exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def write_records(out: IO[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Write a line of JSON for each record as it comes: the parent reads them while the child runs."""
    for record in records:
        out.write(json.dumps(record) + "\n")
        out.flush()


def child_environment() -> dict[str, str]:
    """Return the environment of a child, which finds the modules that this process finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def main(text: str) -> None:
    """Run the items of a job and write a line of JSON for each to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # what the backend prints is not for the parent
        faulthandler.enable()
        write_records(out, said(Job.parse(text)))


if __name__ == "__main__":
    main(*sys.argv[1:])
