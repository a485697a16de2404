"""What changed since an older run, beyond noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.text import Text

from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result
from lstmcore_conformance.bench.statistics import Values, unpaired_ratio
from lstmcore_conformance.bench.tables import NOISY, Table
from lstmcore_conformance.bench.terminal import print_table
from lstmcore_conformance.bench.worker_client import Candidate

#: The level of the intervals, so that a table of some fifty has few false alarms, and the smallest change that counts.
LEVEL: Final = 0.99
LEAST: Final = 0.05
#: Rounds that both runs need: of three each, one time in ten all of one are above all of the other by chance.
ROUNDS: Final = 5

_Key = tuple[Job, Candidate, bool]


@dataclass(frozen=True, slots=True)
class Change:
    """The new time over the old one at one point, and its bootstrap interval.

    Attributes
    ----------
    peers
        Peers that both runs have there in the same version. Each round's time was divided by theirs, so that a
        machine that is slower as a whole is no change; without any, the times are compared as they are.
    noisy
        Whether any of these times is.
    """

    result: Result
    ratio: float
    low: float
    high: float
    peers: tuple[str, ...]
    noisy: bool = False

    @property
    def slower(self) -> bool:
        """Whether it got slower beyond noise."""
        return self.low > 1 and self.ratio > 1 + LEAST

    @property
    def faster(self) -> bool:
        """Whether it got faster beyond noise."""
        return self.high < 1 and self.ratio < 1 / (1 + LEAST)


def changes(new: Benchmark, old: Benchmark) -> list[Change]:
    """Every job of every backend that has a time in both runs.

    Raises
    ------
    ValueError
        Runs of two machines, of too few rounds, or that have no call of the same backend in common that has a time in
        the old one.
    """
    check(old, new.machine, min((len(one.rounds) for one in new.timed()), default=ROUNDS))
    found = list(_changes(new, old))
    if not found and not lost(new, old):
        raise ValueError(
            "compare: expected runs with a backend, call and number of threads in common that has a time in both; "
            "got none"
        )
    return found


def check(old: Benchmark, machine: Mapping[str, Any], rounds: int) -> None:
    """Raise a `ValueError` where a run of so many rounds on this machine cannot be compared with that one."""
    for name in ("processor", "cores"):
        if machine.get(name) != old.machine.get(name):
            told = f"{name} {old.machine.get(name)} and {machine.get(name)}"
            raise ValueError(f"compare: expected runs of one machine; got {told}: run the older one here again")
    if (fewest := min((rounds, *(len(one.rounds) for one in old.timed())))) < ROUNDS:
        raise ValueError(f"compare: expected runs of at least {ROUNDS} rounds; got one of {fewest}: run it again")


def lost(new: Benchmark, old: Benchmark) -> list[Result]:
    """Results of backends without a time that had one in the old run."""
    before = _known(old)
    return [
        one
        for one in new.results
        if one.candidate.kind == "backend"
        and one.median_s is None
        and (one.job, one.candidate, one.beside_variants) in before
    ]


def _versions(benchmark: Benchmark) -> dict[tuple[str, str], Any]:
    """Return the versions of each runtime, whatever its number of threads."""
    return {(one["kind"], one["name"]): one.get("versions") for one in benchmark.runtimes}


def _known(benchmark: Benchmark) -> dict[_Key, Result]:
    return {(one.job, one.candidate, one.beside_variants): one for one in benchmark.timed()}


def _changes(new_run: Benchmark, old_run: Benchmark) -> Iterator[Change]:
    new, old = _known(new_run), _known(old_run)
    here, there = _versions(new_run), _versions(old_run)
    for key, result in new.items():
        job, candidate, beside = key
        if candidate.kind == "peer" or key not in old:
            continue
        peers = [
            other
            for one, other, _ in new
            if one == job
            and other.kind == "peer"
            and other.threads == candidate.threads
            and (job, other, beside) in old
            and here.get((other.kind, other.name)) == there.get((other.kind, other.name))
        ]
        now, before = (_relative(run, key, peers) for run in (new, old))
        ratio, low, high = unpaired_ratio(now, before, level=LEVEL)
        used = [run[one] for run in (new, old) for one in (key, *((job, other, beside) for other in peers))]
        noisy = any(one.outcome is Outcome.NOISY for one in used)
        yield Change(result, ratio, low, high, tuple(other.name for other in peers), noisy)


def _relative(run: dict[_Key, Result], key: _Key, peers: list[Candidate]) -> Values:
    """Return the rounds of one result, each divided by the geometric mean of the peers in that round."""
    job, _, beside = key
    rounds = np.log(run[key].rounds)
    beside_them = [np.log(run[job, other, beside].rounds) for other in peers]
    found: Values = np.exp(rounds - np.mean(beside_them, axis=0)) if peers else np.exp(rounds)
    return found


def show(found: list[Change], gone: list[Result], console: Console) -> None:
    """Print the changes beyond noise, how many there are without one, and what has no time any more."""
    changed = sorted((one for one in found if one.slower or one.faster), key=lambda one: -one.ratio)
    rows = [
        (
            str(one.result.job),
            one.result.candidate.described,
            f"{NOISY * one.noisy}{one.ratio:.2f} {'slower' if one.slower else 'faster'}",
            f"{one.low:.2f} to {one.high:.2f}",
            ", ".join(one.peers) or "itself",
        )
        for one in changed
    ]
    if rows:
        caption = "New time over old" + f"; {NOISY} is of noisy times" * any(one.noisy for one in changed)
        print_table(Table(caption, ("call", "backend", "ratio", "interval", "beside"), rows), console)
    calm = len(found) - len(changed)
    slower = sum(one.slower for one in found)
    console.print(
        f"{slower} slower, {len(found) - calm - slower} faster, {calm} without a change beyond noise", highlight=False
    )
    for result in gone:
        text = f"{result.job}, {result.candidate.described}: no time any more"
        console.print(Text(f"{text}: {result.outcome.value}: {result.message}", "bold red"), soft_wrap=True)
