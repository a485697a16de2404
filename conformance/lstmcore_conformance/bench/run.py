"""Runs a benchmark: prepares every job on every candidate, judges its values, and times what conforms."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from lstmcore_conformance.bench import grids, machine
from lstmcore_conformance.bench.array_io import load_arrays, save_data
from lstmcore_conformance.bench.jobs import VARIANTS, Job, Mode, Point
from lstmcore_conformance.bench.judging import expectation, judge
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result
from lstmcore_conformance.bench.roofline import meter
from lstmcore_conformance.bench.runtimes import Kind
from lstmcore_conformance.bench.startup import JOB as STARTED
from lstmcore_conformance.bench.startup import start
from lstmcore_conformance.bench.timing import Plan, measure, timed_result
from lstmcore_conformance.bench.worker_client import Candidate, EndedError, FailedError, Worker, environment
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Expectation
from lstmcore_conformance.suite.backend_under_test import Failure

#: Packages whose versions are recorded beside those that the runtimes tell.
PACKAGES: Final = ("lstmcore", "numpy", "numba", "llvmlite", "torch", "onnxruntime", "jax", "jaxlib")

#: Grid -> how long its points are measured.
PLANS: Final[Mapping[str, Plan]] = {
    "quick": Plan(rounds=7, seconds=0.03, repeats=1),
    "standard": Plan(),
    "full": Plan(rounds=9, seconds=0.04),
}

#: Told of what is done: how many groups of how many, and the one that is next.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    points
        Used in place of the grid's, where there are any.
    variants
        Whether the switches are compared with the plain layer, on the backends.
    startup
        Whether the time from nothing to a first result is measured, with the first number of threads.
    calls
        Calls of a streaming job in all.
    residents
        Those of `backends` that are timed with arrays on their device too.
    """

    backends: tuple[str, ...]
    peers: tuple[str, ...] = ()
    grid: str = "standard"
    modes: tuple[Mode, ...] = ("inference", "training")
    threads: tuple[int, ...] = (1,)
    precisions: tuple[str, ...] = ("float32",)
    variants: bool = False
    startup: bool = False
    points: tuple[Point, ...] = ()
    plan: Plan = field(default_factory=Plan)
    calls: int = 10_000
    seed: int = 0
    residents: tuple[str, ...] = ()

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every runtime with every number of threads."""
        kinds: tuple[tuple[Kind, tuple[str, ...], bool], ...] = (
            ("backend", self.backends, False),
            ("backend", self.residents, True),
            ("peer", self.peers, False),
        )
        return tuple(
            Candidate(kind, name, threads, resident)
            for threads in self.threads
            for kind, names, resident in kinds
            for name in names
        )

    def groups(self) -> Iterator[tuple[tuple[Job, ...], bool]]:
        """Jobs that are timed in turn with each other, and whether peers take part."""
        for precision in self.precisions:
            for mode in self.modes:
                for point in self.points or grids.points(self.grid, mode):
                    sizes = point._replace(T=1) if mode == "streaming" else point
                    yield (Job(mode, sizes, precision),), True
        if self.variants:
            for precision in self.precisions:
                for mode in self.modes:
                    if mode not in ("inference", "training"):
                        continue
                    for point in self.points or grids.varied(self.grid):
                        yield tuple(Job(mode, point, precision, variant) for variant in VARIANTS), False


def run(request: Request, progress: Progress | None = None) -> Benchmark:  # long: the run from its begin to its end
    """Do what is asked for. The processes of the runtimes end with it."""
    started, begun = datetime.now(UTC), time.perf_counter()
    described, rng = machine.describe(), np.random.default_rng(request.seed)
    kinds = [(threads, precision) for threads in request.threads for precision in request.precisions]
    meters = [gauge for kind in kinds if (gauge := meter(*kind)) is not None]
    groups, results = list(request.groups()), []
    with tempfile.TemporaryDirectory(prefix="lstmcore-bench-") as folder, Team(request.candidates) as team:
        for done, (jobs, with_peers) in enumerate(groups):
            if progress is not None:
                progress(done, len(groups), str(jobs[0]) if with_peers else f"variants, {jobs[0]}")
            for gauge in meters:
                gauge.again()
            expected = _prepared(jobs, Path(folder))
            for threads in request.threads:
                taking = [
                    one
                    for one in team.candidates(threads)
                    if (with_peers and one.takes(jobs[0].mode)) or (one.kind == "backend" and not one.resident)
                ]
                pairs = [(candidate, job) for candidate in taking for job in jobs]
                found_here = _group(pairs, expected, team, request, rng, Path(folder))
                results += [replace(one, beside_variants=not with_peers) for one in found_here]
            budgets.forget()
        runtimes = tuple(team.facts[candidate] for candidate in request.candidates)
    starting = [one for one in request.candidates if request.startup and one.threads == request.threads[0]]
    starting = [one for one in starting if not one.resident and one.takes(STARTED.mode)]
    starts = []
    for done, candidate in enumerate(starting):
        if progress is not None:
            progress(done, len(starting), f"start of {candidate.label}")
        starts.append(start(candidate))
    return Benchmark(
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - begun, 3),
        machine=described | {"load_after": machine.load()},
        settings=_settings(request),
        versions=_versions(),
        runtimes=runtimes,
        roofs=tuple(gauge.roof for gauge in meters),
        results=tuple(results),
        starts=tuple(starts),
    )


def _settings(request: Request) -> dict[str, Any]:
    values = {name: getattr(request, name) for name in request.__slots__}
    lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
    known = {"points": [point._asdict() for point in request.points], "plan": asdict(request.plan)}
    return values | lists | known | {"environment": machine.environment(besides=environment(1))}


def _versions() -> dict[str, str]:
    """Return the versions of what runs; that of lstmcore with the commit, if it is known."""
    found = machine.versions(PACKAGES) | {"blas": machine.blas()}
    commit = machine.commit()
    return found if commit is None else found | {"lstmcore": f"{found['lstmcore']}+g{commit}"}


class Team:
    """The workers: one for each candidate, started again where one ended."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.workers: dict[Candidate, Worker] = {}
        self.facts: dict[Candidate, dict[str, Any]] = {}
        for candidate in candidates:
            known: dict[str, Any] = asdict(candidate)
            self.facts[candidate] = known | {"label": candidate.label}
            self._start(candidate)

    def _start(self, candidate: Candidate) -> None:
        try:
            worker = Worker(candidate)
        except (FailedError, EndedError) as error:
            self.facts[candidate]["message"] = str(error)
        else:
            self.workers[candidate] = worker
            self.facts[candidate] |= worker.facts

    def candidates(self, threads: int) -> list[Candidate]:
        """Those with that many threads, in the order in which they were asked for; some may not have started."""
        return [one for one in self.facts if one.threads == threads]

    def again(self, candidate: Candidate) -> None:
        """Start anew the worker that has ended."""
        ended = self.workers.pop(candidate, None)
        if ended is not None:
            ended.close()
        self._start(candidate)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()


def _prepared(jobs: Sequence[Job], folder: Path) -> dict[Job, Expectation]:
    """Write the data of the jobs; what each has to give."""
    for job in jobs:
        save_data(_data(folder, job), job.case.data)
    return {job: expectation(job) for job in jobs}


def _data(folder: Path, job: Job) -> Path:
    return folder / f"{job.variant}.safetensors"


def _group(
    pairs: Sequence[tuple[Candidate, Job]],
    expected: Mapping[Job, Expectation],
    team: Team,
    request: Request,
    rng: np.random.Generator,
    folder: Path,
) -> list[Result]:
    """Prepare the jobs on their candidates, judge them, and time in turn those that are right."""
    ready: dict[tuple[Candidate, Job], Result] = {}
    residents: dict[tuple[Candidate, Job], int | None] = {}
    workers: dict[tuple[Candidate, Job], Worker | None] = {}
    for candidate, job in pairs:
        workers[candidate, job] = team.workers.get(candidate)
        wanted = candidate.judged(expected[job])
        ready[candidate, job], residents[candidate, job] = _ready(candidate, job, wanted, team, folder)
    right: dict[tuple[Candidate, Job], tuple[Worker, str]] = {}
    for pair in pairs:
        worker = workers[pair]
        if ready[pair].outcome is not Outcome.MEASURED or worker is None:
            continue
        if team.workers.get(pair[0]) is worker:
            right[pair] = (worker, str(pair[1]))
        else:
            message = "its process ended while another variant was prepared"
            ready[pair] = replace(ready[pair], outcome=Outcome.ERROR, message=message)
    calls = request.calls if any(job.call == "streaming" for _, job in right) else None
    timed = measure(right, request.plan, rng, threads=pairs[0][0].threads, calls=calls) if right else {}
    results = []
    for pair in pairs:
        if pair in timed:
            made, peak = _finished(ready[pair], pair[0].judged(expected[pair[1]]), team, folder)
            if made.outcome is Outcome.MEASURED or timed[pair].message:
                before = residents[pair]
                beyond = None if peak is None or before is None else peak - before
                made = replace(timed_result(made, timed[pair], request.plan), peak_bytes=beyond)
            results.append(made)
        else:
            results.append(ready[pair])
    return results


def _ready(
    candidate: Candidate, job: Job, expected: Expectation, team: Team, folder: Path
) -> tuple[Result, int | None]:
    """Prepare and judge one job; and the memory that its process had in use before."""
    nothing = Result(job, candidate, Outcome.ERROR)
    worker = team.workers.get(candidate)
    if worker is None:
        return replace(nothing, message=team.facts[candidate].get("message", "it is not running")), None
    outputs = folder / "outputs.safetensors"
    try:
        answer = worker.ask(
            "prepare", key=str(job), job=job.to_dict(), data=str(_data(folder, job)), outputs=str(outputs)
        )
        made = replace(nothing, how=answer["how"], build_s=answer["build_s"], first_s=answer["first_s"])
        share = judge(load_arrays(outputs), expected).share
    except FailedError as error:
        outcome = Outcome.UNSUPPORTED if error.unsupported else Outcome.ERROR
        return replace(nothing, outcome=outcome, message=str(error)), None
    except EndedError as error:
        team.again(candidate)
        return replace(nothing, message=str(error)), None
    except Failure as error:
        return replace(made, outcome=Outcome.WRONG, message=str(error), share=_worst(error)), None
    return replace(made, outcome=Outcome.MEASURED, share=share), answer["resident"]


def _finished(made: Result, expected: Expectation, team: Team, folder: Path) -> tuple[Result, int | None]:
    """Judge the job once more after it was timed, and forget it; and the most memory that its process had in use."""
    outputs = folder / "outputs.safetensors"
    worker = team.workers.get(made.candidate)
    if worker is None:  # it could not be started again
        return replace(made, outcome=Outcome.ERROR, message="its process ended"), None
    try:
        answer = worker.ask("drop", key=str(made.job), outputs=str(outputs))
        share = judge(load_arrays(outputs), expected).share
    except (FailedError, EndedError) as error:
        team.again(made.candidate)
        return replace(made, outcome=Outcome.ERROR, message=f"after it was timed: {error}"), None
    except Failure as error:
        return replace(made, outcome=Outcome.WRONG, message=f"after it was timed: {error}", share=_worst(error)), None
    return replace(made, share=max(share, made.share or 0.0)), answer["peak"]


def _worst(error: Failure) -> float | None:
    """Return the largest share of a budget if it is a finite number, else None."""
    return error.worst.share if error.worst and np.isfinite(error.worst.share) else None
