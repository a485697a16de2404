"""A whole run on a device: conformance, microbenchmarks, tensors, training, variants, the grid, while there is time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from lstmcore.files import write_atomically
from lstmcore_conformance.bench.device_points import Compared, compare, compare_variants, graphs_beside_launches
from lstmcore_conformance.bench.end_to_end import Trained, trained
from lstmcore_conformance.bench.goals import summary, table_of
from lstmcore_conformance.bench.grids import DEVICE_VARIANTS
from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.machine import load
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result
from lstmcore_conformance.bench.shards import conformance
from lstmcore_conformance.bench.summary import document
from lstmcore_conformance.bench.timed_device import Device, draw
from lstmcore_conformance.bench.timing import Deadline
from lstmcore_conformance.suite.report import Report

STAGES: Final = ("conformance", "micro", "tensors", "training", "graphs", "variants", "benchmark")
#: The share of the time that conformance may take, and that of each further path; the rest is for what follows.
CONFORMANCE: Final = 0.3
CONFORMANCE_OF_A_PATH: Final = 0.15

Say = Callable[[str], None]


@dataclass(slots=True)
class DeviceRun:
    """What is known so far; it is written again and again, so that what a limit cuts off is not lost.

    Attributes
    ----------
    kind
        By which name `shards.make` makes the device in the processes of the suite.
    say
        Is told of what is done.
    """

    device: Device
    kind: str
    folder: Path
    say: Say
    commit: str = ""
    report: Report | None = None
    reports: dict[str, Report] = field(default_factory=dict)
    micro: dict[str, float | str] = field(default_factory=dict)
    tensors: dict[str, float | str] = field(default_factory=dict)
    training: list[Trained] = field(default_factory=list)
    graphs: list[Compared] = field(default_factory=list)
    variants: list[Result] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    not_reached: list[Job] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def results(self) -> tuple[Result, ...]:
        """All results."""
        return (*(result for one in self.compared for result in one.results), *self.variants)

    def benchmark(self) -> Benchmark:
        """Return the run in the form of every benchmark."""
        facts, grid, device = self.device.facts(), self.device.grid, self.device
        versions = facts.pop("versions")
        candidates = (device.candidate(), *map(device.candidate, device.paths), device.peer)
        plan = {name: value for name, value in asdict(grid.plan).items() if value is not None}
        return Benchmark(
            started=self.started.isoformat(timespec="seconds"),
            seconds=round((datetime.now(UTC) - self.started).total_seconds(), 1),
            machine=facts | {"load": load()},
            settings={"grid": grid.name, "precisions": list(grid.precisions), "plan": plan, "seed": 0},
            versions=versions,
            runtimes=tuple(asdict(one) | {"label": one.label} for one in candidates),
            roofs=(),
            results=self.results,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: that of every benchmark, and what a device's run has besides under "device"."""
        device = {
            "name": self.device.name,
            "peer": self.device.peer.label,
            "commit": self.commit,
            "conformance": _judged(self.report),
            "paths": {path: _judged(report) for path, report in self.reports.items()},
            "micro": self.micro,
            "tensors": self.tensors,
            "training": [asdict(one) for one in self.training],
            "graphs": [graphs_beside_launches(one) for one in self.graphs],
            "points": [one.to_dict() for one in self.compared],
            "not_reached": [str(job) for job in self.not_reached],
            "errors": self.errors,
            "no_table": self.no_table,
            "summary": summary(self.compared, table=self.no_table is None),
        }
        return dict(json.loads(document(self.benchmark()))) | {"device": device}

    def write(self) -> dict[str, Any]:
        """Write results.json, the reports of the suite, and measured.json if nothing speaks against it."""
        values = self.to_dict()
        write_atomically(self.folder / "results.json", (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())
        if self.report is not None:
            self.report.write_json(self.folder / "conformance.json")
        rows, table = table_of(self.compared, str(values["machine"]["processor"])), self.folder / "measured.json"
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
        if "persistent" not in self.device.paths:
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
        conforms = [report.conforms for report in (self.report, *self.reports.values()) if report is not None]
        recorded = (result for one in self.graphs for result in one.results)
        bad = any(result.outcome in (Outcome.WRONG, Outcome.ERROR) for result in (*self.results, *recorded))
        return all(conforms) and not self.errors and not bad

    # Stages -----------------------------------------------------------------------------------------------------------

    def run(self, stages: Iterable[str], seconds: float, workers: int, select: str | None) -> dict[str, Any]:
        """Run the stages, in their order; what one of them raises is an error that the others outlive."""
        wanted, deadline = set(stages), Deadline(seconds)
        work: dict[str, Callable[[], None]] = {
            "conformance": lambda: self._conformance(seconds, workers, select),
            "micro": lambda: self.micro.update(self.device.micro()),
            "tensors": lambda: self.tensors.update(self.device.tensors()),
            "training": lambda: self._training(deadline),
            "graphs": lambda: self._graphs(deadline),
            "variants": lambda: self._variants(deadline),
            "benchmark": lambda: self._benchmark(deadline),
        }
        for stage in STAGES:
            if stage in wanted:
                if (reason := self.device.lost()) is not None:
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
        for path in ("", *self.device.paths):
            share = CONFORMANCE_OF_A_PATH if path else CONFORMANCE
            found, errors = conformance(self.device, self.kind, path, workers, share * seconds, select)
            self.errors += errors
            if path:
                self.reports[path] = found
            else:
                self.report = found
            for text in (f"{path}: {found.verdict}" if path else found.verdict, *errors):
                self.say(text)
            self.write()

    def _training(self, deadline: Deadline) -> None:
        """Train from end to end, with arrays of the host and of the device."""
        for one in trained(self.device):
            self.training.append(one)
            self.say(f"  {one}: {1e6 * one.step_s:.0f} us a step, loss {one.losses[0]:.3f} to {one.losses[-1]:.3f}")
            if deadline.left < 0:
                break
        self.device.forget()

    def _graphs(self, deadline: Deadline) -> None:
        """Time loops over time as graphs beside those that start each launch: what the host takes shows there."""
        device, rng = self.device.with_graphs(), np.random.default_rng(2)
        if device is None:
            self.say("  the backend has none")
            return
        grid = device.grid
        for point in grid.recorded:
            for job in grid.jobs(point):
                if job.precision not in grid.precisions[:2] or deadline.left < 0:
                    continue
                data = draw(job)
                self.graphs.append(compare(device, job, data, device.truth(job, data), rng))
                found = graphs_beside_launches(self.graphs[-1])
                speed = f"{found['ratio']:.2f} times as fast" if found["ratio"] else found["message"]
                self.say(f"  {job}: graphs {found['outcome']} {speed}")
                device.forget(data)

    def _variants(self, deadline: Deadline) -> None:
        """Time each switch beside the plain layer, on every path."""
        rng, grid = np.random.default_rng(0), self.device.grid
        for precision in grid.precisions[:2]:
            if self.device.refusal(precision) is not None or deadline.left < 0:
                continue
            plain = Job("training", grid.varied, precision)
            jobs = {job: draw(job) for job in (replace(plain, variant=one) for one in ("plain", *DEVICE_VARIANTS))}
            for path in ("", *self.device.paths):
                self.variants += compare_variants(self.device, jobs, rng, path=path)
            self.device.forget(jobs[plain])

    def _benchmark(self, deadline: Deadline) -> None:
        grid, rng = self.device.grid, np.random.default_rng(1)
        for point in grid.sizes():
            jobs = list(grid.jobs(point))
            if deadline.left < 0:
                self.not_reached += jobs
                continue
            data = draw(jobs[0])
            try:
                truth = self.device.truth(jobs[0], data)
            except Exception as error:  # without it these sizes cannot be judged; others can
                text = f"{type(error).__name__}: {' '.join(str(error).split())}"
                self.errors.append(f"N={point.N}, H={point.H} in float64: {text}")
                self.not_reached += jobs
                self.device.forget(data)
                continue
            self.device.forget()
            for job in jobs:
                if deadline.left < 0:
                    self.not_reached.append(job)
                    continue
                self._compare(compare(self.device, job, data, truth, rng))
            del truth
            self.device.forget(data)
            self.write()

    def _compare(self, compared: Compared) -> None:
        """Keep the results of a job and tell of them; raise a RuntimeError if the device is lost."""
        self.compared.append(compared)
        fastest, default = compared.fastest, compared.ratio_of("")
        ratio = compared.ratio_of(fastest or "")
        told = f"{default[0]:.2f} by default, " if default and fastest and ratio else ""
        ours, peer = compared.sides[fastest or ""], compared.peer
        told += f"{ratio[0]:.2f}" if ratio else f"ours {compared.ours.outcome.value}, peer {peer.outcome.value}"
        told += f" by the {fastest} path" if fastest else ""
        self.say(f"  {compared.job}: {told} {ours.message or peer.message}".rstrip())
        if (reason := self.device.lost()) is not None:
            reached = [one.job for one in self.compared]
            self.not_reached = [job for job in self.device.grid.all() if job not in reached]
            raise RuntimeError(f"at {compared.job}: {reason}")
        self.device.forget()


def _judged(report: Report | None) -> dict[str, Any] | None:
    if report is None:
        return None
    return {"conforms": report.conforms, "verdict": report.verdict, "cases": report.count}


def commit() -> str:
    """Return the commit of the code, if git and its repository are there."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)  # noqa: S603  (our own words)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
