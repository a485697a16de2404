"""The scoreboard as one page: no network, no script, light and dark, narrow and wide."""

from __future__ import annotations

from collections.abc import Iterator

from lstmcore_conformance.bench.summary import Setting
from lstmcore_conformance.render.scoreboard_markdown import SECTIONS, SPEED, report_details, runs
from lstmcore_conformance.render.templating import render
from lstmcore_conformance.scoreboard.board import Board, Digest, section_cell, speed_cell, verdict

#: Heading, CSS class, text, and the length of the bar as a share (None: no bar).
Cell = tuple[str, str, str, float | None]


def page(board: Board) -> str:
    """Return the board as an HTML document."""
    groups = list(board.groups)
    if board.sections:
        groups.append(("cases by section of the specification", len(board.sections)))
    legend = "; ".join(board.sections)
    notes = [_without_links(SPEED)] if board.columns else []
    notes += runs(board)
    notes += [_without_links(SECTIONS)] if board.sections else []
    return render(
        "scoreboard.html",
        title="LSTM scoreboard",
        heading="LSTM runtimes: conformance and speed",
        caption=f"Conformance and speed{'; sections: ' * bool(legend)}{legend}",
        groups=groups,
        settings=[Setting(column["mode"], column["precision"], column["threads"]) for _, column in board.columns],
        sections=board.sections,
        rows=[(label, list(_cells(board, label, report))) for label, report in board.rows],
        notes=notes,
        **report_details(board),
    )


def _cells(board: Board, label: str, report: Digest | None) -> Iterator[Cell]:
    """Yield the cells of a runtime: the verdict, its speeds, and the sections."""
    state = "unsupported" if report is None else "passed" if report["conforms"] else "failed"
    yield "conformance", state, verdict(report), None
    for heading, column in board.columns:
        text = speed_cell(column, label)
        speed = next((cell["speed"] for cell in column["cells"] if cell["label"] == label), None)
        state = "expected" if text.startswith("~") else "" if speed is not None else "unsupported"
        state = "failed" if "does not conform" in text or "error" in text else state
        yield heading, state, text, speed
    for name in board.sections:
        text = section_cell(report, name)
        ran = text != "-" and text.partition(" ")[2] != "not checked"
        state = "failed" if "failed" in text else "passed" if ran else "unsupported"
        yield name, state, text, None


def _without_links(text: str) -> str:
    """Return text of the Markdown page with names of files in the place of its links."""
    for name in ("conformance.md", "benchmarking.md"):
        text = text.replace(f"[{name}]({name})", f"docs/{name}")
    return text
