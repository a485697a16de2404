"""Times candidates in turn: in every round each is timed for a moment, in an order that is drawn for that round.

A candidate is timed by whatever has it ready: the worker's process of a runtime (`worker_client`), or a device's clock
(`device_points`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from lstmcore_conformance.bench import machine
from lstmcore_conformance.bench.jobs import STREAMED
from lstmcore_conformance.bench.results import Outcome, Result
from lstmcore_conformance.bench.statistics import spread
from lstmcore_conformance.bench.worker_client import EndedError, FailedError

Key = TypeVar("Key", bound=Hashable)

#: Calls of a turn at most.
MOST: Final = 2000
#: Processors that a runtime may keep busy beyond the threads that it was given, as a share of them.
MORE: Final = 0.15
QUANTILES: Final = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


class Worker(Protocol):
    """What has candidates ready and times their calls."""

    def ask(self, do: str, **details: Any) -> Mapping[str, Any]:
        """Answer a request; `worker.Server.measure` says what "measure" takes and gives."""


class Deadline:
    """A moment until which something may take."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until then, below 0 if it has passed."""
        return self.end - time.monotonic()


@dataclass(frozen=True, slots=True)
class Plan:
    """How long is measured.

    Attributes
    ----------
    rounds, seconds
        How many turns a candidate has, and how long one takes; it has at least one call.
    bound
        The spread of the rounds' medians above which a time is noisy.
    others
        Processors that a candidate was to have and that other processes kept busy, above which a time is noisy
        whatever its spread.
    repeats
        How often all candidates of a point are measured again, at most, where a time is noisy.
    fewest, limit
        After `fewest` rounds a point has no further one once it took `limit` seconds; None: however long it takes.
    """

    rounds: int = 15
    seconds: float = 0.06
    bound: float = 0.1
    others: float = 0.25
    repeats: int = 2
    fewest: int = 0
    limit: float | None = None


@dataclass(slots=True)
class Samples:
    """The turns of one candidate.

    Attributes
    ----------
    rounds
        The median of each turn, in seconds.
    calls
        Every call, in seconds.
    cpu, wall
        Processor time and time of the turns, in seconds.
    others
        Processors that everything else on the machine kept busy meanwhile, in seconds, out of `elapsed`.
    message
        Why there are no samples, where the runtime failed.
    """

    rounds: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    cpu: float = 0.0
    wall: float = 0.0
    others: float = 0.0
    elapsed: float = 0.0
    attempts: int = 1
    message: str = ""

    @property
    def spread(self) -> float:
        """The spread of the rounds' medians."""
        return spread(self.rounds)

    @property
    def outside(self) -> float:
        """Processors that other processes kept busy on average."""
        return max(self.others / self.elapsed, 0.0) if self.elapsed else 0.0

    def problems(self, plan: Plan, threads: int) -> list[str]:
        """Why the time is noisy; nothing where it is not."""
        found = [f"the spread is {self.spread:.0%}"] if self.spread > plan.bound else []
        if threads + self.outside > machine.cores() + plan.others:
            found.append(f"other processes kept {self.outside:.1f} processors busy")
        return found

    def add(self, answer: Mapping[str, Any], machine: float, elapsed: float) -> None:
        """Add a turn of `elapsed` seconds, in which all processors together were busy for `machine` seconds."""
        calls = np.array(answer["ns"]) / 1e9
        self.rounds.append(float(np.median(calls)))
        self.calls.extend(calls.tolist())
        self.cpu += answer["cpu_ns"] / 1e9
        self.wall += answer["wall_ns"] / 1e9
        self.others += machine - answer["used_ns"] / 1e9
        self.elapsed += elapsed


def measure(
    jobs: Mapping[Key, tuple[Worker, str]],
    plan: Plan,
    rng: np.random.Generator,
    *,
    threads: int,
    calls: int | None = None,
    busy: Callable[[], float] | None = None,
) -> dict[Key, Samples]:
    """Return the samples of each job.

    Parameters
    ----------
    jobs
        Key -> the worker that has the job ready, and under which name.
    threads
        How many each may use.
    calls
        Asks for that many calls in all, whatever they take.
    busy
        Seconds that all processors have worked; `machine.busy` if it is left out.
    """
    for attempt in range(1, plan.repeats + 2):
        samples = {name: Samples(attempts=attempt) for name in jobs}
        deadline = None if plan.limit is None else Deadline(plan.limit)
        for turn in range(1, plan.rounds + 1):
            _round(jobs, samples, plan, rng, None if calls is None else -(-calls // plan.rounds), busy or machine.busy)
            if deadline is not None and turn >= plan.fewest and deadline.left < 0:
                break
        if not any(one.problems(plan, threads) for one in samples.values() if not one.message):
            break
    return samples


def _round(
    jobs: Mapping[Key, tuple[Worker, str]],
    found: Mapping[Key, Samples],
    plan: Plan,
    rng: np.random.Generator,
    calls: int | None,
    busy: Callable[[], float],
) -> None:
    names = [name for name in jobs if not found[name].message]
    for index in rng.permutation(len(names)):
        name = names[index]
        (worker, key), samples = jobs[name], found[name]
        # One call before the clock starts brings weights back into the caches; a long one needs none. The tail of a
        # distribution is of single calls: there it is as many as go through the sequence once.
        short = not samples.rounds or samples.rounds[-1] < plan.seconds
        settle = short * (1 if calls is None else STREAMED)
        seconds, most = (plan.seconds, MOST) if calls is None else (3600.0, calls)
        before, start = busy(), time.perf_counter()
        try:
            answer = worker.ask("measure", key=key, seconds=seconds, most=most, settle=settle)
        except (FailedError, EndedError) as error:
            samples.message = str(error)
            continue
        samples.add(answer, busy() - before, time.perf_counter() - start)


def timed_result(made: Result, samples: Samples, plan: Plan) -> Result:
    """Return the result with the times of its samples, or with why it has none."""
    if samples.message:
        return replace(made, outcome=Outcome.ERROR, message=samples.message)
    cores = samples.cpu / samples.wall
    if cores > made.candidate.threads * (1 + MORE):
        message = f"{cores:.2f} processors were busy with {made.candidate.threads} allowed"
        return replace(made, outcome=Outcome.THREADS, message=message, cores=cores)
    problems = samples.problems(plan, made.candidate.threads)
    quantiles = np.quantile(samples.calls, QUANTILES)
    return replace(
        made,
        outcome=Outcome.NOISY if problems else Outcome.MEASURED,
        message=f"{' and '.join(problems)} after {samples.attempts} attempts" if problems else "",
        median_s=float(np.median(samples.rounds)),
        spread=samples.spread,
        rounds=tuple(samples.rounds),
        quantiles={f"{q:g}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        calls=len(samples.calls),
        attempts=samples.attempts,
        cores=cores,
        others=samples.outside,
    )
