"""Takes turns: in every round each candidate is timed for a moment, in an order that is drawn anew."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from lstmcore_conformance.benchmarks.machine import busy
from lstmcore_conformance.benchmarks.statistics import spread
from lstmcore_conformance.benchmarks.team import EndedError, FailedError, Worker

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
        The spread of the rounds' medians above which all of them are measured again.
    repeats
        How often that is done at most; what is above the bound then is noisy.
    """

    rounds: int = 15
    seconds: float = 0.06
    bound: float = 0.1
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
    jobs: Mapping[Key, tuple[Worker, str]], plan: Plan, rng: np.random.Generator, *, calls: int | None = None
) -> dict[Key, Samples]:
    """The samples of each job, which its worker has prepared under that key.

    `calls` asks for that many calls in all, whatever they take.
    """
    for attempt in range(1, plan.repeats + 2):
        found = {name: Samples(attempts=attempt) for name in jobs}
        for _ in range(plan.rounds):
            _round(jobs, found, plan, rng, None if calls is None else -(-calls // plan.rounds))
        if all(one.message or one.spread <= plan.bound for one in found.values()):
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
        # One call before the clock starts brings weights back into the caches; a long one needs none.
        settle = not samples.rounds or samples.rounds[-1] < plan.seconds
        seconds, most = (plan.seconds, MOST) if calls is None else (3600.0, calls)
        before, start = busy(), time.perf_counter()
        try:
            answer = worker.ask("measure", key=key, seconds=seconds, most=most, settle=settle)
        except (FailedError, EndedError) as error:
            samples.message = str(error)
            continue
        samples.add(answer, busy() - before, time.perf_counter() - start)
