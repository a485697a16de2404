"""The scoreboard of several reports: ``python -m lstmcore_conformance.scoreboard reports/*.json --out FILE``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from lstmcore.config import FEATURES, check_version
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.report import REPORT_VERSION

#: What a row takes from a report.
_NEEDED: Final = {
    "backend": str,
    "conforms": bool,
    "selection": str | None,
    "profile": str,
    "precisions": list,
    "features": list,
    "derivatives": list,
    "undeclared": dict,
    "versions": dict,
    "machine": str,
    "started": str,
    "counts": dict,
    "checks": list,
}

_HEAD: Final = """# Scoreboard

Made by `python -m lstmcore_conformance.scoreboard` from the reports of `lstmcore conform NAME --json FILE`: one row a
report, nothing by hand. What a case, a share and a budget are is told in [conformance.md](conformance.md); a share of 1
is the whole budget. Fewer cases are not a fault: what a backend does not declare is not run; it is listed below with
the reason that the backend gives.
"""
_COLUMNS: Final = (
    "backend",
    "versions",
    "precisions",
    "derivatives",
    "switches",
    "cases passed",
    "worst share",
    "date",
)


def load(path: str | Path) -> dict[str, Any]:
    """The report in a file.

    Raises
    ------
    ValueError
        Not a report, one of a newer version, or one without a field that the scoreboard needs.
    OSError
        The file cannot be read.
    """
    try:
        values = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected a report in JSON; {error}") from None
    if not isinstance(values, dict) or values.get("schema") != "lstmcore-conformance":
        raise ValueError(f"{path}: expected a report of 'lstmcore conform --json'; got another file")
    check_version(f"{path}: report", values.get("version"), REPORT_VERSION)
    for name, kind in _NEEDED.items():
        if name not in values or not isinstance(values[name], kind):
            raise ValueError(f"{path}: {name} is missing or is of another type than a report has")
    return values


def scoreboard(reports: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: a table with one row a report, and what each backend refuses, with the reason."""
    ordered = sorted(reports, key=lambda report: (report["backend"], report["started"]))
    lines = [_HEAD, _row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
    lines += [_row(_cells(report)) for report in ordered]
    lines += ["", "## What is refused"]
    told: list[tuple[str, str]] = []
    for report in ordered:
        entry = (report["backend"], _refused(report["undeclared"]))
        if entry not in told:
            told.append(entry)
    for backend, refused in told:
        lines += ["", f"### {_text(backend)}", "", refused]
    return "\n".join(lines) + "\n"


def _cells(report: Mapping[str, Any]) -> list[str]:
    known = [name for name in report["features"] if name in FEATURES]
    switches = f"all {len(FEATURES)}" if len(known) == len(FEATURES) else f"{len(known)} of {len(FEATURES)}"
    if 0 < len(known) <= len(FEATURES) // 2:
        switches += f": {', '.join(known)}"
    order = [name for name in PRECISIONS if name in report["precisions"]]
    return [
        _text(report["backend"]),
        _text(", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        ", ".join(order) or "none",
        _text(", ".join(report["derivatives"])) or "none",
        _text(switches),
        _text(_passed(report)),
        _text(_worst(report["checks"])),
        _text(f"{report['started'][:10]}, {report['machine']}"),
    ]


def _passed(report: Mapping[str, Any]) -> str:
    """How many cases passed; it does not say more than what ran."""
    counts = report["counts"]
    passed = counts.get("passed", 0)
    bad = counts.get("failed", 0) + counts.get("error", 0)
    if bad or not report["conforms"]:
        return f"does not conform: {bad} of {passed + bad} failed"
    unrun = set(PRECISIONS) - set(report["undeclared"]) - set(report["precisions"])
    if report["selection"] is not None:
        return f"{passed} of a selection, not of the suite"
    if unrun:
        return f"{passed}; {', '.join(sorted(unrun))} declared, not run"
    return f"all {passed} of the {report['profile']} profile"


def _worst(checks: Sequence[Mapping[str, Any]]) -> str:
    found = [(_share(check["worst"]["share"]), str(check["id"])) for check in checks if check.get("worst")]
    if not found:
        return "none"
    share, id = max(found)
    return f"{share:.3g} ({id})"


def _share(value: float | str) -> float:
    """A share as the report writes it; one that is no number is worse than all others."""
    share = float(value)
    return math.inf if math.isnan(share) else share


def _refused(undeclared: Mapping[str, str]) -> str:
    """One line a reason."""
    if not undeclared:
        return "Nothing."
    groups: dict[str, list[str]] = {}
    for name, reason in undeclared.items():
        groups.setdefault(reason, []).append(name)
    return "\n".join(f"- {_text(', '.join(names))}: {_text(reason)}" for reason, names in groups.items())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Text in one line of Markdown, in which no sign means anything."""
    text = " ".join(text.split())
    for sign in "\\`*<>[]|":
        text = text.replace(sign, f"\\{sign}")
    return text


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="REPORT...", type=click.Path(dir_okay=False))
@click.option("--out", metavar="FILE", help="Where the page is written; standard output if left out.")
def main(paths: tuple[str, ...], out: str | None) -> None:
    """Make the scoreboard of reports in JSON."""
    from lstmcore.training.files import write_atomically  # heavier than the rest

    try:
        page = scoreboard(load(path) for path in paths)
        if out is not None:
            write_atomically(out, page.encode())
    except (OSError, ValueError) as error:
        raise click.UsageError(" ".join(str(error).split())) from None
    if out is None:
        click.echo(page, nl=False)


if __name__ == "__main__":
    main()
