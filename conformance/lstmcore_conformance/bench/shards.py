"""The conformance suite in several processes: the oracle is evaluated on the host, and a GPU's host has many cores.

Each process runs its share of the cases until its time is up, then compiles what the benchmark will call, so that its
code is in the cache on disk:
``python -m lstmcore_conformance.bench.shards DEVICE PATH INDEX COUNT SECONDS FIRST FILE [EXPRESSION]``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from lstmcore_conformance.bench.timed_device import Device, StandIn, draw
from lstmcore_conformance.bench.timing import Deadline
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest
from lstmcore_conformance.suite.isolated import child_environment, write_records
from lstmcore_conformance.suite.report import ItemReport, Outcome, Report
from lstmcore_conformance.suite.runner import items, not_run, report_on, run_item

#: Seconds that a process may take beyond its time: it starts, and its last case may be a long one.
GRACE: Final = 45.0
#: Seconds that a case may take, compiled and evaluated on the host as well, and between two looks at a process.
STALLED: Final = 90.0
LOOK: Final = 2.0
#: Processes that may follow each other for one share, each after one that ended too early.
ATTEMPTS: Final = 8
#: Why a case may not have begun.
TIME: Final = "for lack of time"


def make(name: str, path: str = "") -> Device:
    """Return the device of that name, with one of its paths where there is the name of one."""
    device: Device
    if name == "stand-in":
        device = StandIn()
    else:
        from lstmcore_conformance.bench.cuda import CUDA

        device = CUDA()
    return device.on(path) if path else device


def work(
    device: Device, index: int, count: int, seconds: float, select: str | None, first: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield what one process finds, as it finds it: how many cases are its, each that it begins, and what came of it.

    It begins with its case number `first`, and ends early where the device is lost.
    """
    deadline, tested = Deadline(seconds), BackendUnderTest(device.backend)
    own = [item for item in items(tested, select=select) if share_of(item.case, count) == index]
    yield {"all": len(own)}
    for item in own[first:]:
        if deadline.left < 0:
            break
        yield {"begun": item.id}
        found = run_item(tested, item)
        yield {"check": item.check.id, "item": found.to_record()}
        if found.outcome is not Outcome.PASSED and (reason := device.lost()) is not None:
            yield {"lost": reason}
            return
    yield {"warming": True}
    yield from _warm(device, index, count, deadline)


def share_of(case: Case | None, count: int) -> int:
    """Return the process that runs `case`: cases of one kernel have the same, which compiles it once."""
    return 0 if case is None else crc32(f"{case.model}{case.precision}".encode()) % count


def _warm(device: Device, index: int, count: int, deadline: Deadline) -> Iterator[dict[str, Any]]:
    """Call what the benchmark will call, on two steps: each call before it is made, then how many there was time for.

    Each compiles programs, so that a file that stands still means that one of them does.
    """
    warmed = 0
    for job in device.grid.all()[index::count]:
        if deadline.left < 0 or device.refusal(job.precision) is not None:
            continue
        yield {"calling": str(job)}
        try:
            short = replace(job, point=job.point._replace(T=2))
            device.bind(short, draw(short)).call()
        except Exception:  # noqa: S112  (the benchmark meets the same error, and tells it)
            continue
        warmed += 1
    yield {"warmed": warmed}


def conformance(
    device: Device, kind: str, path: str, count: int, seconds: float, select: str | None = None
) -> tuple[Report, list[str]]:
    """Return the report of `count` processes and what went wrong in them; it says if not every case had its turn.

    A process that ends at a case, or loses the device there, is followed by one that begins after it; that case is an
    error of the report.
    """
    started = datetime.now(UTC)
    tested = BackendUnderTest(device.on(path).backend if path else device.backend)
    limit = Deadline(seconds + GRACE)
    with tempfile.TemporaryDirectory(prefix="lstmcore-gpu-") as folder, ThreadPoolExecutor(count) as pool:

        def run(index: int) -> _Part:
            words = [kind, path, str(index), str(count)]
            return _part(Path(folder) / f"{index}.json", words, seconds, limit, [] if select is None else [select])

        parts = list(pool.map(run, range(count)))
    every = list(items(tested, select=select))
    found: dict[str, list[ItemReport]] = {item.check.id: [] for item in every}
    left: Counter[str] = Counter()
    for index, part in enumerate(parts):
        own = [item for item in every if share_of(item.case, count) == index]
        for check, item_report in part.done:
            found[check].append(item_report)
        broken = [(own[number], message) for number, message in part.broken if number < len(own)]
        for item, message in broken:
            found[item.check.id].append(not_run(item, message))
        left[part.left] += len(own) - len(part.done) - len(broken)
    ran = sum(map(len, found.values()))
    if ran < len(every):
        told = f"{ran} of {len(every)} cases"
        if +left == Counter({TIME: len(every) - ran}):
            told += ", for which there was time"
        else:
            told += "".join(f"; {number} did not begin {why}" for why, number in left.items() if number > 0)
        select = f"{select + ': ' if select else ''}{told}"
    errors = [f"conformance{', ' + path if path else ''}: {error}" for part in parts for error in part.errors]
    return report_on(tested, {check: these for check, these in found.items() if these}, started, select=select), errors


@dataclass(slots=True)
class _Part:
    """What the processes of one share came to.

    Attributes
    ----------
    broken
        Numbers of the cases at which a process ended, or before which it could not begin, and what happened.
    left
        Why the cases that have no outcome did not begin.
    """

    all: int = 0
    done: list[tuple[str, ItemReport]] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    left: str = TIME


def _part(  # long: one loop that reads what each process in turn came to
    file: Path, words: list[str], seconds: float, limit: Deadline, select: list[str]
) -> _Part:
    """Run a share in one process after another, each from where the one before ended too early."""
    env = child_environment() | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    part, first = _Part(), 0
    for _ in range(ATTEMPTS):
        left = limit.left - GRACE  # until it may begin no further case
        process = subprocess.Popen(  # noqa: S603  (this interpreter and this package)
            [sys.executable, "-m", __name__, *words, str(left), str(first), str(file), *select],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        said = _ended(process, file, limit)
        if said is None:
            how = "did not end in its time; a kernel may hang"
        else:
            how = f"ended by exit code {process.returncode}: {(said.strip().splitlines() or ['no message'])[-1]}"
        begun = lost = ended = calling = None
        warming = running = False
        for record in _records(file):
            if "all" in record:
                part.all = record["all"]
            elif "begun" in record:
                begun, first, running = record["begun"], first + 1, True
            elif "item" in record:
                part.done.append((record["check"], ItemReport.from_record(record["item"])))
                running = False
            lost, ended, warming = record.get("lost"), record.get("warmed"), warming or "warming" in record
            calling = record.get("calling", calling)
        if ended is not None and not process.returncode:
            return part
        calls = f"calls of the benchmark, on two steps{f': {calling}' if calling else ''}"
        happened = f"a process {how}" if lost is None else lost
        part.errors.append(f"{happened}, at {calls if warming else begun or 'its beginning'}")
        file.unlink(missing_ok=True)
        if running:
            part.broken.append((first - 1, f"{happened}, at this case"))
        elif lost is not None and not part.done[-1][1].outcome.bad:
            check, item = part.done[-1]
            part.done[-1] = check, replace(item, outcome=Outcome.ERROR, message=f"{happened}, at this case")
        elif begun is None and not warming:
            part.broken.append((first, f"{happened}, before this case began"))
            part.left = "since a process ended at its beginning"
        if begun is None or warming or limit.left < GRACE:
            return part
    part.left = f"after {ATTEMPTS} processes that ended too early"
    return part


def _ended(process: subprocess.Popen[str], file: Path, limit: Deadline) -> str | None:
    """Return what a process said until its end; None if it was ended, for its time or a file that stood still."""
    size, moved = -1, Deadline(STALLED)
    while True:
        try:
            return process.communicate(timeout=LOOK)[1]
        except subprocess.TimeoutExpired:
            now = file.stat().st_size if file.exists() else 0
            if now != size:
                size, moved = now, Deadline(STALLED)
            if moved.left < 0 or limit.left < 0:
                process.kill()
                process.communicate()
                return None


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """Return the lines that were written as a whole."""
    if file.exists():
        for line in file.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def main(kind: str, path: str, index: str, count: str, *words: str) -> None:
    """Write what this process finds, a line for each."""
    seconds, first, file, *select = words
    device = make(kind, path)
    with Path(file).open("w", encoding="utf-8") as out:
        chosen = select[0] if select else None
        write_records(out, work(device, int(index), int(count), float(seconds), chosen, int(first)))


if __name__ == "__main__":
    main(*sys.argv[1:])
