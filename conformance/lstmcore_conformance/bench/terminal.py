"""A run as tables in the terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lstmcore_conformance.bench.results import Benchmark, Outcome
from lstmcore_conformance.bench.tables import NOISY, NOT_SUPPORTED, Table, measured, others, runtimes, verdicts

#: Outcomes that have no time, as they stand in a cell.
_FAILED: Final = frozenset(one.value for one in Outcome) - {Outcome.NOISY.value}


def show(benchmark: Benchmark, console: Console) -> None:
    """Print the machine, the tables of each setting, what has no time and why, and what the run comes to."""
    machine = benchmark.machine
    _print_line(console, f"{machine['processor']}, {machine['cores']} cores, load {machine['load']:.2f}")
    print_table(runtimes(benchmark), console)
    for times, figures in measured(benchmark):
        print_table(times, console)
        print_table(figures, console)
    for table in others(benchmark):
        print_table(table, console)
    _print_noise(benchmark, console)
    for table in verdicts(benchmark):
        print_table(table, console)


def print_table(table: Table, console: Console) -> None:
    """Print a table as wide as its words are, also on a narrower terminal: a number that is cut is another number."""
    drawn = RichTable(title=Text(table.caption, "italic"), title_justify="left")
    for place, heading in enumerate(table.headings):
        texts = (heading, *(row[place] for row in table.rows))
        drawn.add_column(Text(heading), min_width=max(len(word) for text in texts for word in text.split(" ")))
    for row in table.rows:
        drawn.add_row(*(Text(text, _style(text)) for text in row))
    console.print(drawn, crop=False)


def _style(text: str) -> str:
    if text.startswith(NOISY):
        return "yellow"
    if text in _FAILED:
        return "bold red"
    return "dim" if text == NOT_SUPPORTED else ""


def _print_noise(benchmark: Benchmark, console: Console) -> None:
    """Print how many times of each runtime are noisy, and how noisy they are."""
    for candidate in dict.fromkeys(one.candidate for one in benchmark.results):
        timed = [one for one in benchmark.timed() if one.candidate == candidate]
        if noisy := [one for one in timed if one.outcome is Outcome.NOISY]:
            text = f"{candidate.described}: {len(noisy)} of {len(timed)} times are noisy: spread"
            spread, others = max(one.spread or 0.0 for one in noisy), max(one.others or 0.0 for one in noisy)
            _print_line(console, f"{text} up to {spread:.0%}, other processes on up to {others:.1f} processors")


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
