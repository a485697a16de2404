"""Every mutant against every check: ``python -m lstmcore_conformance.mutants.matrix``.

The suite passes if every mutant is caught by the check that it names, and if every check catches a mutant that plain
value checks miss. `STANDS` gives the reason for a check that catches none.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lstmcore_conformance.mutants import MUTANTS
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.check import all_checks
from lstmcore_conformance.suite.report import Outcome
from lstmcore_conformance.suite.runner import items, run_item

#: The plain value checks: they compare the results of small models with the oracle's.
PLAIN: Final = frozenset(
    f"{what}.{cases}" for what in ("forward", "backward", "jvp") for cases in ("switches", "combinations")
)

#: Checks that need no mutant of their own, and why.
STANDS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Row:
    """A check with the number of mutants that it catches, and the number of those that plain value checks miss."""

    check: str
    caught: int
    beyond: int

    @property
    def fault(self) -> str:
        """The fault of the check, or an empty text."""
        if self.check in PLAIN:
            return "" if self.caught else "catches no mutant"
        if self.beyond:
            return "it is in STANDS and catches such mutants" if self.check in STANDS else ""
        return "" if self.check in STANDS else "catches no mutant that plain value checks miss"


def catching(id: str) -> frozenset[str]:
    """Return the ids of the checks that catch the mutant, among the quick ones and the one that it names."""
    mutant = MUTANTS[id]
    tested, caught = BackendUnderTest(mutant.make(), Draws(shrink=False)), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faulty arithmetic warns; what it gives is judged
        for item in items(tested, [mutant.precision], profile="full"):
            known = item.check.runs_in("quick") or item.check.id == mutant.caught_by
            if known and item.check.id not in caught and run_item(tested, item).outcome is Outcome.FAILED:
                caught.add(item.check.id)
    return frozenset(caught)


def matrix(jobs: int) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield every mutant's id with the checks that catch it; `jobs` processes run at the same time."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from zip(MUTANTS, pool.map(catching, MUTANTS), strict=True)


def rows(caught: Mapping[str, frozenset[str]]) -> list[Row]:
    """Return a row for each check, from the ids of mutants and the checks that catch them."""
    hidden = [checks for checks in caught.values() if checks.isdisjoint(PLAIN)]
    return [
        Row(
            check.id,
            sum(check.id in checks for checks in caught.values()),
            sum(check.id in checks for checks in hidden),
        )
        for check in all_checks()
    ]


@click.command()
@click.option(
    "--jobs", default=2, show_default=True, type=click.IntRange(1), help="Processes that run at the same time."
)
def main(jobs: int) -> None:
    """Run every mutant through the suite, and every check through the mutants."""
    caught = dict(track(matrix(jobs), "mutants", total=len(MUTANTS), console=Console(stderr=True), transient=True))
    table = Table(title="Mutants caught by each check", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("caught", justify="right")
    table.add_column("missed by plain values", justify="right")
    table.add_column("note")
    checks = rows(caught)
    for row in checks:
        table.add_row(row.check, f"{row.caught}/{len(caught)}", str(row.beyond), row.fault or STANDS.get(row.check, ""))
    console = Console()
    console.print(table)
    wrong = [f"check {row.check}: {row.fault}" for row in checks if row.fault]
    wrong += [
        f"mutant {id}: {MUTANTS[id].caught_by} does not catch it"
        for id in caught
        if MUTANTS[id].caught_by not in caught[id]
    ]
    for line in wrong:
        console.print(line, style="bold red", markup=False, soft_wrap=True)
    total = sum(bool(catchers) for catchers in caught.values())
    hidden = sum(catchers.isdisjoint(PLAIN) for catchers in caught.values())
    console.print(f"{total} of {len(caught)} mutants caught; plain value checks alone miss {hidden} of them")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
