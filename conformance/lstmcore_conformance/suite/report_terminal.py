"""The report on a terminal: a table, the failures and the verdict."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstmcore_conformance.suite.common_traits import common_traits
from lstmcore_conformance.suite.refusal_texts import consists_of, group_pairs
from lstmcore_conformance.suite.report import Outcome, Report, Result

_SHOWN: Final = 20
_STYLES: Final = {
    Outcome.PASSED: "green",
    Outcome.FAILED: "bold red",
    Outcome.EXPECTED: "yellow",
    Outcome.ERROR: "bold red",
    Outcome.UNSUPPORTED: "yellow",
    Outcome.NOT_CHECKED: "yellow",
}

_RESULTS: Final = {
    Result.CONFORMS: "bold green",
    Result.PARTIAL: "bold yellow",
    Result.FAILS: "bold red",
    Result.NOTHING: "bold red",
}


def show(report: Report, console: Console) -> None:
    """Print the table, the failures and the verdict of a report."""
    table = Table(title=f"Conformance of {report.backend} ({report.device})", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("section", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("cases", justify="right")
    table.add_column("share", justify="right")
    for check in report.checks:
        share = check.worst.worst.share if check.worst and check.worst.worst else None
        table.add_row(
            check.id,
            check.section,
            Text(check.outcome.value, _STYLES[check.outcome]),
            f"{check.ran} ({check.unchecked} not checked)" if check.unchecked else str(check.ran),
            "" if share is None else f"{share:.3g}",
        )
    console.print(table)
    for kind, sizes in report.extent.items():
        largest = ", ".join(f"{axis}={size:,}" for axis, size in sizes.items() if size)
        _print_plain(console, f"largest sizes shown, {kind}: {largest}")
    _show_unsupported(report, console)
    _show_reasons(console, "", ((item.message, check.id) for check, item in report.items(Outcome.NOT_CHECKED)))
    if traits := common_traits(report):
        _print_plain(console, "\n" + "\n".join(traits))
    for item in report.bad[:_SHOWN]:
        lines = (f"{item.outcome.value.upper()} {item.id}", item.message, item.where, item.reproduce)
        _print_plain(console, "\n" + "\n  ".join(str(line) for line in lines if line))
    if len(report.bad) > _SHOWN:
        _print_plain(console, f"\n... and {len(report.bad) - _SHOWN} more; --json writes all")
    for id, reason in report.untried.items():
        _print_plain(console, f"\nEXPECTED FAILURE THAT DID NOT RUN {id}\n  {reason}")
    console.print()
    console.print(Text(f"{report.verdict} ({report.seconds:.1f} s)", _RESULTS[report.result]), soft_wrap=True)


def _show_unsupported(report: Report, console: Console) -> None:
    """Print every reason for items that did not run: first what is not declared, then other refusals."""
    for reason, names in group_pairs((reason, name) for name, reason in report.undeclared.items()).items():
        _print_plain(console, f"not declared, {reason}:")
        _print_list(console, names)
    skipped = [(item.message, check.id) for check, item in report.items(Outcome.UNSUPPORTED)]
    known = [f"{name}: {reason}" for name, reason in report.undeclared.items()]
    others = [(message, id) for message, id in skipped if not consists_of(message, known)]
    if count := len(skipped) - len(others):
        _print_plain(console, f"left out: {count} cases and checks that need what is not declared")
    _show_reasons(console, "unsupported, ", others)


def _show_reasons(console: Console, kind: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Print each reason once, after the kind of outcome, with the ids of its checks."""
    for reason, ids in group_pairs(pairs).items():
        _print_plain(console, f"{kind}{reason}:")
        counts = (f"{id} ({count} cases)" if count > 1 else id for id, count in Counter(ids).items())
        _print_list(console, counts)


def _print_plain(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_list(console: Console, names: Iterable[str]) -> None:
    """Print the names, indented, in as many lines as needed."""
    text = ", ".join(names)
    _print_plain(
        console, textwrap.indent(textwrap.fill(text, max(console.width - 2, 40), break_long_words=False), "  ")
    )
