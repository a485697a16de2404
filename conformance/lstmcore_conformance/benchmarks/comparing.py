"""What changed since an older run, beyond noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstmcore_conformance.benchmarks.jobs import Job
from lstmcore_conformance.benchmarks.results import Benchmark, Result
from lstmcore_conformance.benchmarks.statistics import Values, unpaired_ratio
from lstmcore_conformance.benchmarks.table import print_whole
from lstmcore_conformance.benchmarks.team import Candidate

#: The level of the intervals, so that a table of some fifty has few false alarms, and the smallest change that counts.
LEVEL: Final = 0.99
LEAST: Final = 0.05

_Key = tuple[Job, Candidate, bool]


@dataclass(frozen=True, slots=True)
class Change:
    """The new time over the old one at one point, and its bootstrap interval.

    Attributes
    ----------
    peers
        Peers that both runs have there. Each round's time was divided by theirs, so that a machine that is slower
        as a whole is no change; without any, the times are compared as they are.
    """

    result: Result
    ratio: float
    low: float
    high: float
    peers: tuple[str, ...]

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
        Runs of two machines, or that have no time of the same backend at the same call in common.
    """
    check_machine(new.machine, old.machine)
    found = list(_changes(_known(new), _known(old)))
    if not found:
        raise ValueError(
            "compare: expected runs with a backend, call and number of threads in common that has a time in both; "
            "got none"
        )
    return found


def check_machine(new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """Raise a `ValueError` where runs of the two machines cannot be compared."""
    for name in ("processor", "cores"):
        if new.get(name) != old.get(name):
            raise ValueError(f"compare: expected runs of one machine; got {name} {old.get(name)} and {new.get(name)}")


def _known(benchmark: Benchmark) -> dict[_Key, Result]:
    return {(one.job, one.candidate, one.beside_variants): one for one in benchmark.timed()}


def _changes(new: dict[_Key, Result], old: dict[_Key, Result]) -> Iterator[Change]:
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
        ]
        now, before = (_relative(run, key, peers) for run in (new, old))
        ratio, low, high = unpaired_ratio(now, before, level=LEVEL)
        yield Change(result, ratio, low, high, tuple(other.name for other in peers))


def _relative(run: dict[_Key, Result], key: _Key, peers: list[Candidate]) -> Values:
    """The rounds of one result, each over the geometric mean of the peers in that round."""
    job, _, beside = key
    rounds = np.log(run[key].rounds)
    beside_them = [np.log(run[job, other, beside].rounds) for other in peers]
    found: Values = np.exp(rounds - np.mean(beside_them, axis=0)) if peers else np.exp(rounds)
    return found


def show(found: list[Change], console: Console) -> None:
    """Print the changes beyond noise, and how many there are without one."""
    table = Table(title="New time over old", title_justify="left")
    for heading in ("call", "backend", "ratio", "interval", "beside"):
        table.add_column(heading)
    for one in sorted(found, key=lambda one: -one.ratio):
        if one.slower or one.faster:
            style = "bold red" if one.slower else "green"
            table.add_row(
                str(one.result.job),
                f"{one.result.candidate.label}, {one.result.candidate.threads} threads",
                Text(f"{one.ratio:.2f} {'slower' if one.slower else 'faster'}", style),
                f"{one.low:.2f} to {one.high:.2f}",
                ", ".join(one.peers) or "itself",
            )
    if table.row_count:
        print_whole(table, console)
    calm = sum(not (one.slower or one.faster) for one in found)
    slower = sum(one.slower for one in found)
    console.print(
        f"{slower} slower, {len(found) - calm - slower} faster, {calm} without a change beyond noise", highlight=False
    )
