"""Where the commands print."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """Standard output without markup and emoji: brackets and colons in the names of files are text."""
    return Console(markup=False, emoji=False, highlight=False)
