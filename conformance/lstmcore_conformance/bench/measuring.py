"""Takes turns: in every round each candidate is timed for a moment, in an order that is drawn anew."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from lstmcore_conformance.bench import machine
from lstmcore_conformance.bench.jobs import STREAMED
from lstmcore_conformance.bench.statistics import spread
from lstmcore_conformance.bench.worker_client import EndedError, FailedError, Worker

Key = TypeVar("Key", bound=Hashable)

#: Calls of a turn at most.
MOST: Final = 2000


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
    """

    rounds: int = 15
    seconds: float = 0.06
    bound: float = 0.1
    others: float = 0.25
    repeats: int = 2


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
) -> dict[Key, Samples]:
    """The samples of each job, which its worker has prepared under that key.

    `threads` is how many each may use; `calls` asks for that many calls in all, whatever they take.
    """
    for attempt in range(1, plan.repeats + 2):
        found = {name: Samples(attempts=attempt) for name in jobs}
        for _ in range(plan.rounds):
            _round(jobs, found, plan, rng, None if calls is None else -(-calls // plan.rounds))
        if not any(one.problems(plan, threads) for one in found.values() if not one.message):
            break
    return found


def _round(
    jobs: Mapping[Key, tuple[Worker, str]],
    found: Mapping[Key, Samples],
    plan: Plan,
    rng: np.random.Generator,
    calls: int | None,
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
        before, start = machine.busy(), time.perf_counter()
        try:
            answer = worker.ask("measure", key=key, seconds=seconds, most=most, settle=settle)
        except (FailedError, EndedError) as error:
            samples.message = str(error)
            continue
        samples.add(answer, machine.busy() - before, time.perf_counter() - start)
