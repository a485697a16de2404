"""The scoreboard as Markdown, and its top for the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from lstmcore.config import FEATURES
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.render.templating import render
from lstmcore_conformance.scoreboard.board import (
    Board,
    Digest,
    label,
    reasons,
    section_cell,
    speed_cell,
    verdict,
)
from lstmcore_conformance.suite.report_text import as_number

#: Between these lines the README shows the top of the scoreboard.
BEGIN: Final = "<!-- scoreboard: made by python -m lstmcore_conformance.scoreboard -->"
END: Final = "<!-- end of the scoreboard -->"

SECTIONS: Final = (
    "A section of the specification shows how many cases of it ran and passed and, in brackets, the largest error as a "
    "share of its budget; 1 is the whole budget ([conformance.md](conformance.md)). Fewer cases are not a fault: what "
    "a backend does not declare is not run; it is listed below with the reason that the backend gives."
)
SPEED: Final = (
    "Speed is the fastest runtime's time over this one's, in the geometric mean over the points of the grid: 1.00 is "
    "the fastest everywhere, 0.50 takes twice as long. A point counts only where the values of that run are right "
    "([benchmarking.md](benchmarking.md)); ~ is noisy. PyTorch, ONNX Runtime and JAX are timed through their own "
    "fastest call, and checked through our adapter."
)
COLUMNS: Final = (
    "runtime",
    "versions",
    "precisions",
    "derivatives",
    "switches",
    "cases passed",
    "worst share",
    "date",
)


def scoreboard(board: Board) -> str:
    """Return the page: runtimes as rows, conformance by section and speed by grid as columns, and what ran."""
    numbers = [name.split()[0] for name in board.sections]
    rows = _speeds(board, board.columns)
    for row, (_, report) in zip(rows, board.rows, strict=True):
        row += [section_cell(report, name) for name in board.sections]
    return render(
        "scoreboard.md",
        headings=["runtime", "conformance", *(text for text, _ in board.columns), *numbers],
        rows=rows,
        speed=SPEED if board.columns else "",
        runs=runs(board),
        sections="; ".join(board.sections),
        about_sections=SECTIONS,
        **report_details(board),
    )


def report_details(board: Board) -> dict[str, Any]:
    """Return what both forms of the scoreboard say below their table: reports, failures, refusals, and more."""
    return {
        "without": reasons(board),
        "columns": COLUMNS,
        "ran": list(map(ran, board.reports)),
        "failed": [
            (label(report["backend"]), list(failures.items()))
            for report in board.reports
            if (failures := report.get("failures"))  # a board of an earlier version has none
        ],
        "refused": [
            (label, [(", ".join(names), reason) for reason, names in groups.items()])
            for label, groups in refusals(board)
        ],
    }


def excerpt(board: Board) -> str:
    """Return the top of the page, for the README: conformance, and speed in at most four settings.

    A runtime that ran a selection of the suite is on the page alone.
    """
    known = [report for report in board.reports if report["selection"] is None]
    board = Board(tuple(known), board.benchmarks)
    columns = board.columns[:4]
    shown = [column for _, column in columns]
    used = [run for run in board.benchmarks if any(column in shown for column in run["columns"])]
    places = "; ".join(f"{run['grid']} grid: {run['started'][:10]}, {run['machine']}" for run in used)
    return render(
        "excerpt.md",
        headings=["runtime", "conformance", *(text for text, _ in columns)],
        rows=_speeds(board, columns),
        places=places if columns else None,
    )


def _speeds(board: Board, columns: Sequence[tuple[str, Digest]]) -> list[list[str]]:
    """Return label, verdict and speeds of each runtime."""
    return [
        [label, verdict(report), *(speed_cell(column, label) for _, column in columns)] for label, report in board.rows
    ]


def placed(text: str, part: str) -> str:
    """`text` with `part` between the two marks.

    Raises
    ------
    ValueError
        The marks are not there, each once.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r}, each once and in this order")
    return before + begin + "\n" + part + "\n" + end + after


def runs(board: Board) -> list[str]:
    """Return a line for each benchmark: when, where and of what."""
    return [
        f"{run['grid']} grid: {run['started'][:10]}, {run['machine']}, load {run['load']:.2f} before; "
        + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        for run in board.benchmarks
    ]


def ran(report: Digest) -> list[str]:
    """Return a row of the table of what ran."""
    known = [name for name in report["features"] if name in FEATURES]
    switches = f"all {len(FEATURES)}" if len(known) == len(FEATURES) else f"{len(known)} of {len(FEATURES)}"
    if 0 < len(known) <= len(FEATURES) // 2:
        switches += f": {', '.join(known)}"
    order = [name for name in PRECISIONS if name in report["precisions"]]
    return [
        label(report["backend"]),
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        ", ".join(order) or "none",
        ", ".join(report["derivatives"]) or "none",
        switches,
        verdict(report),
        _worst(report["sections"]),
        f"{report['started'][:10]}, {report['machine']}",
    ]


def refusals(board: Board) -> list[tuple[str, dict[str, list[str]]]]:
    """Each runtime with reason -> what is refused for it; the same is told once."""
    told: list[tuple[str, dict[str, list[str]]]] = []
    for report in board.reports:
        groups: dict[str, list[str]] = {}
        for name, reason in report["undeclared"].items():
            groups.setdefault(reason, []).append(name)
        if (entry := (label(report["backend"]), groups)) not in told:
            told.append(entry)
    return told


def _worst(sections: Mapping[str, Mapping[str, Any]]) -> str:
    found = [(as_number(one["share"]), str(one["in"])) for one in sections.values() if one["share"] is not None]
    if not found:
        return "none"
    share, id = max(found)
    return f"{share:.3g} ({id})"
