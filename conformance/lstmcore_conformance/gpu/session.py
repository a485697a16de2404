"""A whole run: conformance, microbenchmarks, variants, and the grid beside the peer, each as far as time goes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from lstmcore.files import write_atomically
from lstmcore_conformance.gpu.parts import conformance
from lstmcore_conformance.gpu.places import Place, draw
from lstmcore_conformance.gpu.plan import VARIANTS, Deadline, Point
from lstmcore_conformance.gpu.table import summary, table_of
from lstmcore_conformance.gpu.timing import Compared, Side, beside_plain, compare
from lstmcore_conformance.suite.report import Report

SCHEMA: Final = "lstmcore-gpu"
VERSION: Final = 1
STAGES: Final = ("conformance", "micro", "variants", "benchmark")
#: The share of the time that conformance may take, and that of each path beside; the rest is for what follows.
CONFORMANCE: Final = 0.3
CONFORMANCE_OF_A_PATH: Final = 0.15

Say = Callable[[str], None]


@dataclass(slots=True)
class Session:
    """What is known so far; it is written again and again, so that what a limit cuts off is not lost."""

    place: Place
    kind: str
    folder: Path
    say: Say
    commit: str = ""
    report: Report | None = None
    reports: dict[str, Report] = field(default_factory=dict)
    micro: dict[str, float | str] = field(default_factory=dict)
    variants: dict[str, dict[str, Side]] = field(default_factory=dict)
    points: list[Compared] = field(default_factory=list)
    not_reached: list[Point] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self.started).total_seconds(), 1),
            "commit": self.commit,
            "place": self.place.name,
            "peer": self.place.peer_name,
            "facts": self.place.facts(),
            "conformance": _judged(self.report),
            "paths": {path: _judged(report) for path, report in self.reports.items()},
            "micro": self.micro,
            "variants": {
                setting: {name: side.to_dict() for name, side in sides.items()}
                for setting, sides in self.variants.items()
            },
            "points": [one.to_dict() for one in self.points],
            "not_reached": [str(point) for point in self.not_reached],
            "errors": self.errors,
            "no_table": self.no_table,
            "summary": summary(self.points, self.variants, table=self.no_table is None),
        }

    def write(self) -> dict[str, Any]:
        """Write results.json, and conformance.json where there is a report."""
        values = self.to_dict()
        write_atomically(self.folder / "results.json", (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())
        if self.report is not None:
            self.report.write_json(self.folder / "conformance.json")
        rows, table = table_of(self.points, str(values["facts"]["device"])), self.folder / "measured.json"
        if self.no_table is not None:
            table.unlink(missing_ok=True)  # what was written before an error is not to be taken either
        elif rows:
            write_atomically(table, (json.dumps(rows, indent=1) + "\n").encode())
        for path, report in self.reports.items():
            report.write_json(self.folder / f"conformance-{path}.json")
        return values

    @property
    def no_table(self) -> str | None:
        """Why no measured.json is made of this run, or None."""
        if "persistent" not in self.place.paths:
            return None
        report = self.reports.get("persistent")
        if report is None:
            return "the suite has not run on the persistent path"
        if not report.conforms:
            return f"the persistent path: {report.verdict}"
        return f"an error was recorded: {self.errors[0]}" if self.errors else None

    @property
    def good(self) -> bool:
        """Whether all that was run conforms and nothing failed."""
        outcomes = [side.outcome for one in self.points for side in (one.peer, *one.sides.values())]
        outcomes += [side.outcome for sides in self.variants.values() for side in sides.values()]
        conforms = [report.conforms for report in (self.report, *self.reports.values()) if report is not None]
        return all(conforms) and not self.errors and not {"does not conform", "error"} & set(outcomes)

    # Stages -----------------------------------------------------------------------------------------------------------

    def run(self, stages: Iterable[str], seconds: float, workers: int, select: str | None) -> dict[str, Any]:
        """Run the stages, in their order; what one of them raises is an error that the others outlive."""
        wanted, deadline = set(stages), Deadline(seconds)
        work: dict[str, Callable[[], None]] = {
            "conformance": lambda: self._conformance(seconds, workers, select),
            "micro": lambda: self.micro.update(self.place.micro()),
            "variants": lambda: self._variants(deadline),
            "benchmark": lambda: self._benchmark(deadline),
        }
        for stage in STAGES:
            if stage in wanted:
                if (reason := self.place.lost()) is not None:
                    self.errors.append(f"{stage}: not begun, {reason}")
                    self.say(self.errors[-1])
                    continue
                self.say(f"{stage}, {deadline.left:.0f} s left")
                try:
                    work[stage]()
                except Exception as error:  # the other stages may still tell something
                    self.errors.append(f"{stage}: {type(error).__name__}: {' '.join(str(error).split())}")
                    self.say(self.errors[-1])
                self.write()
        return self.write()

    def _conformance(self, seconds: float, workers: int, select: str | None) -> None:
        """First the backend, then its paths; a bad kernel ends a process of the suite and not this one."""
        for path in ("", *self.place.paths):
            share = CONFORMANCE_OF_A_PATH if path else CONFORMANCE
            found, errors = conformance(self.place, self.kind, path, workers, share * seconds, select)
            self.errors += errors
            if path:
                self.reports[path] = found
            else:
                self.report = found
            for text in (f"{path}: {found.verdict}" if path else found.verdict, *errors):
                self.say(text)
            self.write()

    def _variants(self, deadline: Deadline) -> None:
        """Each switch beside the plain layer. Its values are what conformance judges, at sizes of the suite."""
        rng, (steps, rows, hidden) = np.random.default_rng(0), self.place.grid.varied
        for precision in self.place.grid.precisions[:2]:
            if self.place.refusal(precision) is not None or deadline.left < 0:
                continue
            point = Point(precision, "training", steps, rows, hidden)
            given = {name: draw(point, **switches) for name, switches in {"plain": {}, **VARIANTS}.items()}
            self.variants[str(point)] = beside_plain(self.place, self.place.grid, point, given, rng)
            for path in self.place.paths:
                but = self.variants[str(point)]["plain"].how
                sides = beside_plain(self.place.on(path), self.place.grid, point, given, rng, but=but)
                self.variants[f"{point}, {path}"] = sides
            self.place.forget(given["plain"])

    def _benchmark(self, deadline: Deadline) -> None:
        grid, rng = self.place.grid, np.random.default_rng(1)
        for n, h in grid.sizes():
            points = list(grid.points(n, h))
            if deadline.left < 0:
                self.not_reached += points
                continue
            given = draw(points[0])
            try:
                want = self.place.truth(given)
            except Exception as error:  # without it these sizes cannot be judged; others can
                self.errors.append(f"N={n}, H={h} in float64: {type(error).__name__}: {' '.join(str(error).split())}")
                self.not_reached += points
                self.place.forget(given)
                continue
            self.place.forget()
            for point in points:
                if deadline.left < 0:
                    self.not_reached.append(point)
                    continue
                found = compare(self.place, grid, point, given, want, rng)
                self.points.append(found)
                ratio = found.ratio
                default = found.ratio_of("")
                told = f"{default[0]:.2f} by default, " if default and found.fastest and ratio else ""
                told += f"{ratio[0]:.2f}" if ratio else f"ours {found.ours.outcome}, peer {found.peer.outcome}"
                told += f" by the {found.fastest} path" if found.fastest else ""
                self.say(f"  {point}: {told} {found.best.message or found.peer.message}".rstrip())
                if (reason := self.place.lost()) is not None:
                    reached = [one.point for one in self.points]
                    self.not_reached = [one for one in grid.all() if one not in reached]
                    raise RuntimeError(f"at {point}: {reason}")
                self.place.forget()
            del want
            self.place.forget(given)
            self.write()


def _judged(report: Report | None) -> dict[str, Any] | None:
    if report is None:
        return None
    return {"conforms": report.conforms, "verdict": report.verdict, "cases": report.count}


def commit() -> str:
    """The commit of the code, where git and its repository are there."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)  # noqa: S603  (our own words)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
