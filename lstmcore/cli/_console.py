"""Where the commands print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress


def console() -> Console:
    """Standard output without markup and emoji: brackets and colons in the names of files are text."""
    return Console(markup=False, emoji=False, highlight=False)


def progress_bar() -> Progress:
    """What is done, how many of how many and for how long, on standard error where somebody looks."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
