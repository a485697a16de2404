"""Output of the commands: the console, and progress."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import click
from rich.console import Console


def console() -> Console:
    """Return standard output without markup and emoji: brackets and colons in the names of files are text."""
    return Console(markup=False, emoji=False, highlight=False)


@contextmanager
def progress(name: str, seconds: float = 0.0) -> Iterator[Callable[[int, int, str], None]]:
    """Show progress on standard error: by a bar on a terminal, else by lines.

    The first line comes with the first call, and each later one at least `seconds` after the one before.
    """
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
    else:
        start, last = time.monotonic(), -math.inf

        def tell(done: int, total: int, what: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= seconds:
                last = now
                passed = timedelta(seconds=int(now - start))
                click.echo(f"{name}: {passed}, {done} of {total} done, now {what}", err=True)

        yield tell
