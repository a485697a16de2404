"""Parts of pages in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def line(text: str) -> str:
    """Text in one line, in which no sign means anything."""
    text = " ".join(text.split())
    for sign in "\\`*<>[]|":
        text = text.replace(sign, f"\\{sign}")
    return text


def row(cells: Iterable[str]) -> str:
    """A row of a table, of cells that are Markdown."""
    return f"| {' | '.join(cells)} |"


def head(headings: Sequence[str]) -> Iterator[str]:
    """The two lines that begin a table."""
    yield row(headings)
    yield row(["---"] * len(headings))
