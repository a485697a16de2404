"""The experiment behind the budgets: the fractions that right evaluations use, and those that faults use.

``python -m lstmcore_conformance.mutants.budget_experiment`` prints the table of docs/conformance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final

from lstmcore.backend import Backend
from lstmcore_conformance.mutants import MUTANTS
from lstmcore_conformance.mutants.equivalent import VARIANTS
from lstmcore_conformance.oracle.naive import NaiveBackend
from lstmcore_conformance.suite.runner import run

#: The checks that compare numbers with the oracle.
VALUES = "switches or combinations or sizes or masks.forward or masks.backward or lengths.backward or stack."

#: The precisions in which right evaluations are measured.
PRECISIONS: Final = ("float64", "float32", "tf32", "float16")


@dataclass(frozen=True, slots=True)
class Row:
    """The shares of the budget of one backend in one precision; `over` is the number of cases above 1."""

    backend: str
    right: bool
    precision: str
    largest: float
    median: float
    over: int
    cases: int


def measure(make: Callable[[], Backend], precision: str) -> list[float]:
    """Return the share of the budget of every value case."""
    report = run(make(), precisions=[precision], select=VALUES)
    return [item.worst.share for check in report.checks for item in check.items if item.worst is not None]


def rows() -> Iterator[Row]:
    """Yield right evaluations in every precision, and each fault in its precision."""
    right = {"naive": NaiveBackend, **VARIANTS}
    wrong = {name: mutant for name, mutant in MUTANTS.items() if name.startswith("precision.")}
    todo: list[tuple[str, bool, str, Callable[[], Backend]]] = [
        (name, True, precision, make) for name, make in right.items() for precision in PRECISIONS
    ]
    todo += [(mutant.fault, False, mutant.precision, mutant.make) for mutant in wrong.values()]
    for name, good, precision, make in todo:
        if shares := measure(make, precision):
            over = sum(share > 1 for share in shares)
            yield Row(name, good, precision, max(shares), median(shares), over, len(shares))


def main() -> None:
    """Print the table of docs/conformance.md."""
    print("| evaluation | right | precision | largest share | median | over 1 |")
    print("|---|---|---|---|---|---|")
    for row in rows():
        print(
            f"| {row.backend} | {'yes' if row.right else 'no'} | {row.precision} | {row.largest:.2g} | "
            f"{row.median:.2g} | {row.over} of {row.cases} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
