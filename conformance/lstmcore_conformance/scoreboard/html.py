"""The scoreboard as one page: no network, no script, light and dark, narrow and wide."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib import resources

from lstmcore_conformance.benchmarks.page import data_table
from lstmcore_conformance.benchmarks.summary import Setting
from lstmcore_conformance.scoreboard.board import Board, Digest, reasons, section_cell, speed_cell, verdict
from lstmcore_conformance.scoreboard.markdown import COLUMNS, SECTIONS, SPEED, ran, refusals, runs


def page(board: Board) -> str:
    """The board as an HTML document."""
    package = resources.files("lstmcore_conformance")
    sheets = ("render/page.css", "benchmarks/page.css", "scoreboard/page.css")
    style = "".join((package / sheet).read_text("utf-8") for sheet in sheets)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>LSTM scoreboard</title>\n<style>{style}</style>\n</head>\n<body>",
        "<header><h1>LSTM runtimes: conformance and speed</h1></header>\n<main>",
        _table(board),
        f"<p>{_plain(SPEED)}</p>" * bool(board.columns),
        *(f"<p>{escape(text)}</p>" for text in runs(board)),
        f"<p>{_plain(SECTIONS)}</p>" * bool(board.sections),
        *_without(board),
        data_table("What ran", COLUMNS, map(ran, board.reports)),
        *_refused(board),
        "</main>",
        "<footer>Made by python -m lstmcore_conformance.scoreboard from reports and runs in JSON.</footer>",
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _table(board: Board) -> str:
    """The table of everything; a section's heading is its number, with its name for the narrow form."""
    groups = [
        *board.groups,
        *([("cases by section of the specification", len(board.sections))] if board.sections else []),
    ]
    over = "".join(f'<th scope="colgroup" colspan="{count}">{escape(text)}</th>' for text, count in groups)
    own = (Setting(column["mode"], column["precision"], column["threads"]) for _, column in board.columns)
    head = "".join(f'<th scope="col" class="speed">{escape(str(setting))}</th>' for setting in own)
    head += "".join(
        f'<th scope="col" class="section"><abbr title="{escape(name)}">{escape(name.split()[0])}</abbr></th>'
        for name in board.sections
    )
    body = "\n".join(f"<tr>{''.join(_cells(board, text, report))}</tr>" for text, report in board.rows)
    legend = "; ".join(board.sections)
    caption = f"Conformance and speed{'; sections: ' * bool(legend)}{legend}"
    first = '<th scope="col" rowspan="2">runtime</th><th scope="col" rowspan="2">conformance</th>'
    return (
        f'<div class="wide"><table class="free board"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{first}{over}</tr><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _cells(board: Board, text: str, report: Digest | None) -> Iterator[str]:
    said = verdict(report)
    state = "unsupported" if report is None else "passed" if report["conforms"] else "failed"
    yield f'<th scope="row">{escape(text)}</th>'
    yield f'<td data-label="conformance" class="{state}">{escape(said)}</td>'
    for heading, column in board.columns:
        cell = speed_cell(column, text)
        fast = next((one["speed"] for one in column["cells"] if one["label"] == text), None)
        state = "expected" if cell.startswith("~") else "" if fast is not None else "unsupported"
        state = "failed" if "does not conform" in cell or "error" in cell else state
        bar = (
            ""
            if fast is None
            else f'<span class="bar" aria-hidden="true"><span style="width:{100 * min(fast, 1):.0f}%"></span></span>'
        )
        yield f'<td data-label="{escape(heading)}" class="{state}">{escape(cell)}{bar}</td>'

    for name in board.sections:
        cell = section_cell(report, name)
        state = "failed" if "failed" in cell else "unsupported" if cell == "-" else "passed"
        yield f'<td data-label="{escape(name)}" class="{state}">{escape(cell)}</td>'


def _without(board: Board) -> Iterator[str]:
    if found := reasons(board):
        yield data_table("Without a time", ("runtime", "setting", "why"), found)


def _refused(board: Board) -> Iterator[str]:
    yield "<h2>What is refused</h2>"
    for text, groups in refusals(board):
        rows = [(", ".join(names), reason) for reason, names in groups.items()]
        yield data_table(text, ("what", "why"), rows) if rows else f"<p>{escape(text)}: nothing.</p>"


def _plain(text: str) -> str:
    """Text of the Markdown page without its links."""
    for name in ("conformance.md", "benchmarking.md"):
        text = text.replace(f"[{name}]({name})", f"docs/{name}")
    return escape(text)
