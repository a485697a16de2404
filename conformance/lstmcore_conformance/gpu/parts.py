"""The conformance suite in several processes: the oracle is evaluated on the host, and a GPU's host has many cores.

Each process runs its share of the cases until its time is up, then compiles what the benchmark will call, so that its
code is in the cache on disk: ``python -m lstmcore_conformance.gpu.parts PLACE INDEX COUNT SECONDS FILE [EXPRESSION]``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from lstmcore_conformance.budgets import Measure
from lstmcore_conformance.cases import Case
from lstmcore_conformance.gpu.places import Place, StandIn, draw
from lstmcore_conformance.gpu.plan import Deadline
from lstmcore_conformance.report import ItemReport, Outcome, Report
from lstmcore_conformance.subject import Subject
from lstmcore_conformance.suite import items, report_on, run_item

#: Seconds that a process may take beyond its time: it starts, and its last case may be a long one.
GRACE: Final = 45.0


def make(name: str) -> Place:
    """The place of that name."""
    if name == "stand-in":
        return StandIn()
    from lstmcore_conformance.gpu.cuda import CUDA

    return CUDA()


def work(place: Place, index: int, count: int, seconds: float, select: str | None) -> dict[str, Any]:
    """What one process found: its items in order, and how many were its."""
    deadline, subject = Deadline(seconds), Subject(place.backend)
    own = [item for item in items(subject, select=select) if share_of(item.case, count) == index]
    done: list[dict[str, Any]] = []
    for item in own:
        if deadline.left < 0:
            break
        found = run_item(subject, item)
        done.append({"check": item.check.id, "item": _plain(found)})
    return {"all": len(own), "done": done, "warmed": _warm(place, index, count, deadline)}


def share_of(case: Case | None, count: int) -> int:
    """The process that runs `case`: cases of one kernel have the same, which compiles it once."""
    return 0 if case is None else crc32(f"{case.model}{case.precision}".encode()) % count


def _warm(place: Place, index: int, count: int, deadline: Deadline) -> int:
    """Call what the benchmark will call, on two steps; how many calls there was time for."""
    warmed = 0
    for point in place.grid.all()[index::count]:
        if deadline.left < 0 or place.refusal(point.precision) is not None:
            continue
        try:
            place.ours(draw(replace(point, T=2)), point.precision, point.mode).call()
        except Exception:  # noqa: S112  (the benchmark meets the same error, and tells it)
            continue
        warmed += 1
    return warmed


def _plain(item: ItemReport) -> dict[str, Any]:
    return asdict(item) | {"outcome": item.outcome.value}


def _item(values: dict[str, Any]) -> ItemReport:
    worst = values["worst"]
    made = None if worst is None else Measure(**worst | {"index": tuple(worst["index"])})
    return ItemReport(**values | {"outcome": Outcome(values["outcome"]), "worst": made})


def conformance(place: Place, kind: str, count: int, seconds: float, select: str | None = None) -> Report:
    """The report of `count` processes. It says so where not every case had its turn.

    Raises
    ------
    RuntimeError
        A process that ended without a result.
    """
    started, subject = datetime.now(UTC), Subject(place.backend)
    with tempfile.TemporaryDirectory(prefix="lstmcore-gpu-") as folder:
        files = [Path(folder) / f"{index}.json" for index in range(count)]
        words = [sys.executable, "-m", "lstmcore_conformance.gpu.parts", kind]
        env = dict(os.environ) | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        more = [] if select is None else [select]
        running = [
            subprocess.Popen(  # noqa: S603  (this interpreter and this package)
                [*words, str(index), str(count), str(seconds), str(file), *more],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index, file in enumerate(files)
        ]
        limit = Deadline(seconds + GRACE)
        parts = [_result(process, file, limit) for process, file in zip(running, files, strict=True)]
    found: dict[str, list[ItemReport]] = {}
    for item in items(subject, select=select):
        found.setdefault(item.check.id, [])
    for part in parts:
        for one in part["done"]:
            found[one["check"]].append(_item(one["item"]))
    ran, every = (sum(sizes) for sizes in zip(*((len(part["done"]), part["all"]) for part in parts), strict=True))
    if ran < every:
        select = f"{select + ': ' if select else ''}{ran} of {every} cases, for which there was time"
    return report_on(subject, {check: these for check, these in found.items() if these}, started, select=select)


def _result(process: subprocess.Popen[str], file: Path, limit: Deadline) -> dict[str, Any]:
    try:
        _, said = process.communicate(timeout=max(limit.left, 1.0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError("conformance: a process did not end in its time; a kernel may hang") from None
    if process.returncode or not file.exists():
        last = (said.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"conformance: a process ended by exit code {process.returncode}: {last}")
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def main(kind: str, index: str, count: str, seconds: str, file: str, *select: str) -> None:
    """Write what this process found."""
    found = work(make(kind), int(index), int(count), float(seconds), select[0] if select else None)
    Path(file).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
