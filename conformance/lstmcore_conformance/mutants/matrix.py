"""The mutants against the checks: ``python -m lstmcore_conformance.mutants.matrix``.

The suite passes if every mutant is caught by the check that it names, and if every check catches a mutant that plain
value checks miss. `STANDS` gives the reason for a check that catches none. ``--whole`` runs every mutant through every
check and prints how many mutants each check catches, and takes several times as long; its verdict is the same.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from lstmcore_conformance.suite.check import Check, all_checks
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
        return fault(self.check, caught=self.caught > 0, beyond=self.beyond > 0)


def fault(check: str, *, caught: bool, beyond: bool) -> str:
    """Return what is wrong with a check, or an empty text.

    Parameters
    ----------
    check
        The check's id.
    caught
        Whether it catches a mutant.
    beyond
        Whether it catches one that plain value checks miss.
    """
    if check in PLAIN:
        return "" if caught else "catches no mutant"
    if beyond:
        return "it is in STANDS and catches such mutants" if check in STANDS else ""
    return "" if check in STANDS else "catches no mutant that plain value checks miss"


def failing(
    id: str, wanted: Callable[[Check], bool], *, first: bool = False, select: str | None = None
) -> frozenset[str]:
    """Return the ids of the checks that fail on a mutant.

    Parameters
    ----------
    id
        The mutant's.
    wanted
        Whether a check is to be run.
    first
        Whether to stop at the first check that fails.
    select
        An expression for the items that are run; None for all of those checks.
    """
    mutant = MUTANTS[id]
    tested, failed = BackendUnderTest(mutant.make(), Draws(shrink=False)), set[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faulty arithmetic warns; its results are judged
        for item in items(tested, [mutant.precision], select, profile="full"):
            if wanted(item.check) and item.check.id not in failed and run_item(tested, item).outcome is Outcome.FAILED:
                failed.add(item.check.id)
                if first:
                    break
    return frozenset(failed)


def catching(id: str) -> frozenset[str]:
    """Return the ids of the checks that catch the mutant, among the quick ones and the one that it names."""
    named = MUTANTS[id].caught_by
    return failing(id, lambda check: check.runs_in("quick") or check.id == named)


def matrix(jobs: int) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield every mutant's id with the checks that catch it; `jobs` processes run at the same time."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from zip(MUTANTS, pool.map(catching, MUTANTS), strict=True)


def catches(checks: Collection[str], mutant: str, select: str | None = None) -> bool:
    """Return whether one of the checks catches the mutant; `select` is an expression for their items."""
    return bool(failing(mutant, lambda check: check.id in checks, first=True, select=select))


def judge(check: str) -> tuple[list[str], list[str], str | None]:
    """Run the mutants that name a check.

    Returns
    -------
    caught, uncaught
        The ids of those that it catches, and of the others.
    beyond
        One that is caught, and that plain value checks miss; None if there is none.
    """
    own = [id for id, mutant in MUTANTS.items() if mutant.caught_by == check]
    caught = [id for id in own if catches({check}, id, MUTANTS[id].selection)]
    beyond = next((id for id in caught if not catches(PLAIN, id)), None)
    return caught, [id for id in own if id not in caught], beyond


def goes_beyond(check: str, missed: Sequence[str]) -> bool:
    """Return whether a check catches a mutant of another check that plain value checks miss.

    Parameters
    ----------
    check
        The check's id.
    missed
        Mutants that plain value checks are known to miss; they are tried first.
    """
    if any(catches({check}, id) for id in missed):
        return True
    others = [id for id, mutant in MUTANTS.items() if id not in missed and mutant.caught_by not in (check, *PLAIN)]
    return any(catches({check}, id) and not catches(PLAIN, id) for id in others)


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


def whole(jobs: int, console: Console) -> list[str]:
    """Print how many mutants each check catches, and return the faults."""
    pairs = track(matrix(jobs), "mutants", total=len(MUTANTS), console=Console(stderr=True), transient=True)
    caught = dict(pairs)
    table = Table(title="Mutants caught by each check", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("caught", justify="right")
    table.add_column("missed by plain values", justify="right")
    table.add_column("note")
    checks = rows(caught)
    for row in checks:
        table.add_row(row.check, f"{row.caught}/{len(caught)}", str(row.beyond), row.fault or STANDS.get(row.check, ""))
    console.print(table)
    total = sum(bool(catchers) for catchers in caught.values())
    hidden = sum(catchers.isdisjoint(PLAIN) for catchers in caught.values())
    console.print(f"{total} of {len(caught)} mutants caught; plain value checks alone miss {hidden} of them")
    missed = [id for id, catchers in caught.items() if MUTANTS[id].caught_by not in catchers]
    faults = [f"check {row.check}: {row.fault}" for row in checks if row.fault]
    return [*faults, *(f"mutant {id}: {MUTANTS[id].caught_by} does not catch it" for id in missed)]


def named(jobs: int, console: Console) -> list[str]:
    """Run each mutant through the check that it names, and return the faults.

    A check whose own mutants are all caught by plain value checks is run on those of other checks that are not.
    """
    checks = [check.id for check in all_checks()]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        judged = pool.map(judge, checks)
        progress = track(judged, "checks", total=len(checks), console=Console(stderr=True), transient=True)
        verdicts = dict(zip(checks, progress, strict=True))
        missed = [mutant for *_, mutant in verdicts.values() if mutant is not None]
        rest = [check for check in checks if check not in PLAIN and verdicts[check][2] is None]
        beyond = dict(zip(rest, pool.map(goes_beyond, rest, [missed] * len(rest)), strict=True))
    faults = []
    for check, (caught, uncaught, _) in verdicts.items():
        faults += [f"mutant {id}: {check} does not catch it" for id in uncaught]
        if wrong := fault(check, caught=bool(caught), beyond=beyond.get(check, True)):
            faults.append(f"check {check}: {wrong}")
    if not faults:
        console.print(
            f"{len(MUTANTS)} of {len(MUTANTS)} mutants are caught by the check that they name; "
            f"{len(checks) - len(PLAIN)} checks catch one that the {len(PLAIN)} plain value checks miss"
        )
    return faults


@click.command()
@click.option(
    "--jobs", default=2, show_default=True, type=click.IntRange(1), help="Processes that run at the same time."
)
@click.option("--whole", "every", is_flag=True, help="Run every mutant through every check, and print a table.")
def main(jobs: int, every: bool) -> None:
    """Run the mutants through the checks."""
    console = Console()
    faults = (whole if every else named)(jobs, console)
    for text in faults:
        console.print(text, style="bold red", markup=False, soft_wrap=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
