"""A run as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result, Roof
from lstmcore_conformance.bench.startup import JOB, Start
from lstmcore_conformance.bench.summary import (
    Setting,
    best_peer,
    compare,
    plain,
    roof_of,
    settings,
    summaries,
    variants,
)
from lstmcore_conformance.bench.worker_client import Candidate


def show(benchmark: Benchmark, console: Console) -> None:
    """Print the machine, a table for each setting, what has no time and why, and what it comes to."""
    machine = benchmark.machine
    _line(console, f"{machine['processor']}, {machine['cores']} cores, load {machine['load']:.2f}")
    for at in settings(benchmark.results):
        results = plain(benchmark, at)
        for table in (_times(at, results), *_figures(benchmark, at, results)) if results else ():
            print_whole(table, console)
    for table in _variants(benchmark):
        print_whole(table, console)
    if benchmark.starts:
        print_whole(_starts(benchmark), console)
    _reasons(benchmark, console)
    for summary in summaries(benchmark):
        worst, count = summary.worst, len(summary.comparisons)
        noisy = sum(one.noisy for one in summary.comparisons)
        notes = f"; {noisy} noisy" * bool(noisy) + f"; {summary.refused} without a time" * bool(summary.refused)
        text = (
            f"{summary.backend}, {summary.setting}: best peer / ours, geometric mean {summary.mean:.2f}, "
            f"worst {worst.ratio:.2f} at {worst.ours.job.point} ({worst.peer.candidate.label}); "
            f"{count} point{'s' * (count > 1)}{notes}"
        )
        console.print(Text(text, "bold"), soft_wrap=True)


def print_whole(table: Table, console: Console) -> None:
    """Print it as wide as its words are, also where the terminal is narrower: a number that is cut is another one."""
    for column in table.columns:
        texts = map(str, (column.header, *column.cells))
        column.min_width = max(
            len(word) for text in texts for word in ([text] if column.no_wrap else text.split() or [""])
        )
    console.print(table, crop=False)


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def cell(result: Result | None, *, tail: bool = False) -> Text:
    """Return the time of a result, or why it has none; ~ marks a noisy one. `tail` is for single steps."""
    if result is None or result.outcome is Outcome.UNSUPPORTED:
        return Text("-", "dim")
    if result.median_s is None:
        return Text(result.outcome.value, "bold red")
    text = digits(result.median_s * 1e3)
    if tail:
        text = f"{digits(result.median_s * 1e6)} / {digits(result.quantiles['0.99'] * 1e6)}"
    return Text(f"~{text}", "yellow") if result.outcome is Outcome.NOISY else Text(text)


def _times(at: Setting, results: Sequence[Result]) -> Table:
    """Return the times of all runtimes, and how each backend compares with the best peer."""
    candidates = list(dict.fromkeys(one.candidate for one in results))
    ours = [one for one in candidates if one.kind == "backend"]
    tail = at.mode == "streaming"
    title = f"{at}: {'us a call, median / 99th percentile' if tail else 'ms a call'}"
    table = Table(title=title, title_justify="left")
    table.add_column("T, N, I, H", no_wrap=True)
    for candidate in candidates:
        table.add_column(candidate.label, justify="right")
    for candidate in ours:
        table.add_column(f"best peer / {candidate.label}", justify="right")
    for job, found in _by_job(results):
        peer = best_peer(list(found.values()))
        row = [Text(str(job.point)), *(cell(found.get(candidate), tail=tail) for candidate in candidates)]
        for candidate in ours:
            one = found[candidate]
            row.append(Text("" if peer is None or one.median_s is None else f"{compare(one, peer).ratio:.2f}"))
        table.add_row(*row)
    return table


#: Headings of `figure_cells`.
FIGURES: Final = ("GFLOP/s", "of the peak", "of the roof", "of the budget", "peak MB", "spread", "first call, ms")


def figure_cells(one: Result, roof: Roof | None) -> tuple[str, ...]:
    """Speed beside the machine's, error beside the budget, memory and the first call."""
    gflops = one.gflops
    shares = ("", "")
    if gflops is not None and roof is not None:
        shares = (f"{gflops / roof.gflops:.0%}", f"{gflops / roof.over(one.job):.0%}")
    return (
        "" if gflops is None else f"{gflops:.3g}",
        *shares,
        "" if one.share is None else f"{one.share:.2g}",
        "" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.1f}",
        "" if one.spread is None else f"{one.spread:.0%}",
        "" if one.first_s is None else digits(one.first_s * 1e3),
    )


def _figures(benchmark: Benchmark, at: Setting, results: Sequence[Result]) -> Iterator[Table]:
    """Yield a table of `figure_cells` for each backend."""
    roof = roof_of(benchmark, at)
    for name in dict.fromkeys(one.candidate.title for one in results if one.candidate.kind == "backend"):
        table = Table(title=f"{name}, {at}", title_justify="left")
        table.add_column("T, N, I, H", no_wrap=True)
        for heading in FIGURES:
            table.add_column(heading, justify="right")
        for job, found in _by_job(results):
            one = next(o for o in found.values() if (o.candidate.kind, o.candidate.title) == ("backend", name))
            table.add_row(str(job.point), *figure_cells(one, roof))
        yield table


def _by_job(results: Sequence[Result]) -> Iterator[tuple[Job, dict[Candidate, Result]]]:
    for job in dict.fromkeys(one.job for one in results):
        yield job, {one.candidate: one for one in results if one.job == job}


def _variants(benchmark: Benchmark) -> list[Table]:
    tables: dict[tuple[str, Setting], Table] = {}
    for one in variants(benchmark):
        key = (one.backend, one.setting)
        if key not in tables:
            tables[key] = Table(
                title=f"{one.backend}, {one.setting}: time over the plain layer's", title_justify="left"
            )
            tables[key].add_column("switch")
            for job, _ in one.ratios:
                tables[key].add_column(str(job.point), justify="right")
            tables[key].add_column("geometric mean", justify="right")
        cells = (f"{'~' * (job in one.noisy)}{ratio:.2f}" for job, ratio in one.ratios)
        tables[key].add_row(one.name, *cells, f"{'~' * bool(one.noisy)}{one.mean:.2f}")
    return list(tables.values())


def start_cells(one: Start) -> tuple[str, ...]:
    """Seconds of a start, and megabytes."""
    if one.message:
        return ("failed", "", "", "")
    numbers = (one.import_s, one.warm_s, one.cold_s)
    return (*(f"{number or 0.0:.2f}" for number in numbers), f"{(one.installed_bytes or 0) / 1e6:.0f}")


#: Headings of `start_cells`.
STARTS: Final = ("imported, s", "first result, s", "with empty caches, s", "installed, MB")


def _starts(benchmark: Benchmark) -> Table:
    table = Table(title=f"From nothing to the first result at {JOB.point}", title_justify="left")
    for heading in ("runtime", *STARTS):
        table.add_column(heading, justify="left" if heading == "runtime" else "right")
    for one in benchmark.starts:
        table.add_row(one.candidate.label, *start_cells(one))
    return table


def _reasons(benchmark: Benchmark, console: Console) -> None:
    """Why results have no time, each reason once; and how noisy the noisy ones are."""
    found: dict[tuple[Candidate, str], list[Job]] = {}
    for one in benchmark.results:
        if one.message and one.outcome is not Outcome.NOISY:
            found.setdefault((one.candidate, f"{one.outcome.value}: {one.message}"), []).append(one.job)
    for (candidate, reason), jobs in found.items():
        more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        _line(console, f"{_who(candidate)}, {jobs[0]}{more}: {reason}")
    for start in benchmark.starts:
        if start.message:
            _line(console, f"{start.candidate.label}, start: {start.message}")
    for candidate in dict.fromkeys(one.candidate for one in benchmark.results):
        timed = [one for one in benchmark.timed() if one.candidate == candidate]
        if noisy := [one for one in timed if one.outcome is Outcome.NOISY]:
            text = f"{_who(candidate)}: {len(noisy)} of {len(timed)} times are noisy: spread"
            spread, others = max(one.spread or 0.0 for one in noisy), max(one.others or 0.0 for one in noisy)
            _line(console, f"{text} up to {spread:.0%}, other processes on up to {others:.1f} processors")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _who(candidate: Candidate) -> str:
    return f"{candidate.label}, {candidate.threads} thread{'s' * (candidate.threads > 1)}"
