"""The tables of a run, in the form that the terminal, the page and the folder's README share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

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

#: Stands in a cell for a call that a runtime does not support.
NOT_SUPPORTED: Final = "-"
#: Marks a noisy time.
NOISY: Final = "~"


class Table(NamedTuple):
    """A caption, a heading for each column, and the rows of cells."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def verdicts(benchmark: Benchmark) -> list[Table]:
    """Return the table of each backend beside the best peer in each setting; none without such a pair."""
    rows = [
        (
            one.backend,
            str(one.setting),
            f"{one.mean:.2f}",
            f"{one.worst.ratio:.2f} at {one.worst.ours.job.point} ({one.worst.peer.candidate.label})",
            str(len(one.comparisons)),
            str(sum(comparison.noisy for comparison in one.comparisons)),
            str(one.refused),
        )
        for one in summaries(benchmark)
    ]
    headings = ("backend", "setting", "best peer / ours, geometric mean", "worst", "points", "noisy", "without a time")
    return [Table("Best peer's time over the backend's: above 1 the backend is faster", headings, rows)] * bool(rows)


def measured(benchmark: Benchmark) -> list[tuple[Table, Table]]:
    """Return for each setting the table of times and the table of figures."""
    return [
        (_times(at, results), _figures(benchmark, at, results))
        for at in settings(benchmark.results)
        if (results := plain(benchmark, at))
    ]


def others(benchmark: Benchmark) -> list[Table]:
    """Return the tables of variants, of starts, and of what has no time."""
    return [*_variants(benchmark), *_starts(benchmark), *_without(benchmark)]


def runtimes(benchmark: Benchmark) -> Table:
    """Return each runtime with the verdict on its values, or why it did not start."""
    rows = []
    for facts in benchmark.runtimes:
        key = (facts["label"], facts["threads"])
        own = [one for one in benchmark.results if (one.candidate.label, one.candidate.threads) == key]
        verdict = f"not started: {facts['message']}" if "message" in facts else _verdict(own)
        rows.append((key[0], str(key[1]), joined(facts.get("versions", {}).items(), " "), verdict))
    return Table("Runtimes", ("runtime", "threads", "versions", "values against the float64 reference"), rows)


def digits(value: float) -> str:
    """Return three digits, or all digits before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def joined(pairs: Iterable[tuple[str, Any]], sign: str) -> str:
    """Return names and values with `sign` between them."""
    return ", ".join(f"{name}{sign}{value}" for name, value in pairs)


def _verdict(results: Sequence[Result]) -> str:
    """Return at how many points the values of these results are right, and their largest share of a budget."""
    judged = [one for one in results if one.share is not None or one.outcome is Outcome.WRONG]
    wrong = sum(one.outcome is Outcome.WRONG for one in judged)
    shares = [one.share for one in judged if one.share is not None and one.outcome is not Outcome.WRONG]
    verdict = f"right at all {len(judged)} points" if judged else "nothing to judge"
    verdict = f"does not conform at {wrong} of {len(judged)} points" if wrong else verdict
    return verdict + (f"; largest share of a budget {max(shares):.2g}" if shares else "")


def _cell(result: Result | None, *, tail: bool) -> str:
    """Return the time of a result, or why it has none. `tail` adds the 99th percentile, for single steps."""
    if result is None or result.outcome is Outcome.UNSUPPORTED:
        return NOT_SUPPORTED
    if result.median_s is None:
        return str(result.outcome.value)
    text = digits(result.median_s * 1e3)
    if tail:
        text = f"{digits(result.median_s * 1e6)} / {digits(result.quantiles['0.99'] * 1e6)}"
    return f"{NOISY * (result.outcome is Outcome.NOISY)}{text}"


def _ratio(one: Result, peer: Result | None) -> str:
    if peer is None or one.median_s is None:
        return ""
    compared = compare(one, peer)
    return _on_one_line(f"{compared.ratio:.2f} ({compared.low:.2f} to {compared.high:.2f})")


def _times(at: Setting, results: Sequence[Result]) -> Table:
    """Return the times of all runtimes, and how each backend compares with the best peer."""
    candidates = list(dict.fromkeys(one.candidate for one in results))
    backends = [one for one in candidates if one.kind == "backend"]
    tail = at.mode == "streaming"
    rows: list[Sequence[str]] = []
    for job, found in _by_job(results):
        peer = best_peer(list(found.values()))
        times = [_cell(found.get(candidate), tail=tail) for candidate in candidates]
        rows.append([_on_one_line(str(job.point)), *times, *(_ratio(found[candidate], peer) for candidate in backends)])
    headings = ("T, N, I, H", *(one.label for one in candidates), *(f"best peer / {one.label}" for one in backends))
    unit = "us a call, median / 99th percentile" if tail else "ms a call"
    return Table(f"{at}: {unit}; {NOISY} is noisy", headings, rows)


def _figures(benchmark: Benchmark, at: Setting, results: Sequence[Result]) -> Table:
    """Return speed beside the machine's, error beside the budget, memory and the first call of each result."""
    roof = roof_of(benchmark, at)
    rows = [
        (_on_one_line(str(one.job.point)), one.candidate.label, *_figure_cells(one, roof))
        for one in results
        if one.median_s is not None
    ]
    headings = ("GFLOP/s", "of the peak", "of the roof", "of the budget", "peak MB", "spread", "first call, ms")
    caption = f"{at}: the peak is of bare multiply-adds; the roof also counts what copies within a core's cache bring"
    return Table(caption, ("T, N, I, H", "runtime", *headings), rows)


def _figure_cells(one: Result, roof: Roof | None) -> tuple[str, ...]:
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


def _by_job(results: Sequence[Result]) -> Iterator[tuple[Job, dict[Candidate, Result]]]:
    for job in dict.fromkeys(one.job for one in results):
        yield job, {one.candidate: one for one in results if one.job == job}


def _on_one_line(text: str) -> str:
    """Return the text with spaces at which no line is broken."""
    return text.replace(" ", "\u00a0")


def _variants(benchmark: Benchmark) -> list[Table]:
    """Return for each backend and setting the time with each switch over the plain layer's."""
    found = variants(benchmark)
    tables = []
    for backend, at in dict.fromkeys((one.backend, one.setting) for one in found):
        here = [one for one in found if (one.backend, one.setting) == (backend, at)]
        rows = [
            (
                one.name,
                *(f"{NOISY * (job in one.noisy)}{ratio:.2f}" for job, ratio in one.ratios),
                f"{NOISY * bool(one.noisy)}{one.mean:.2f}",
            )
            for one in here
        ]
        headings = ("switch", *(_on_one_line(str(job.point)) for job, _ in here[0].ratios), "geometric mean")
        tables.append(Table(f"{backend}, {at}: time over the plain layer's; {NOISY} is noisy", headings, rows))
    return tables


def _starts(benchmark: Benchmark) -> list[Table]:
    headings = ("runtime", "imported, s", "first result, s", "with empty caches, s", "installed, MB")
    rows = [(one.candidate.label, *_start_cells(one)) for one in benchmark.starts]
    return [Table(f"From nothing to the first result at {JOB.point}", headings, rows)] * bool(rows)


def _start_cells(one: Start) -> tuple[str, ...]:
    if one.message:
        return ("failed", "", "", "")
    numbers = (one.import_s, one.warm_s, one.cold_s)
    return (*(f"{number or 0.0:.2f}" for number in numbers), f"{(one.installed_bytes or 0) / 1e6:.0f}")


def _without(benchmark: Benchmark) -> list[Table]:
    """Return the table of what has no time, each reason once."""
    reasons: dict[tuple[Candidate, str], list[Job]] = {}
    for one in benchmark.results:
        if one.median_s is None:
            reasons.setdefault((one.candidate, f"{one.outcome.value}: {one.message}"), []).append(one.job)
    rows = [(candidate.described, f"{len(jobs)}, first {jobs[0]}", why) for (candidate, why), jobs in reasons.items()]
    rows += [(one.candidate.label, "start", one.message) for one in benchmark.starts if one.message]
    return [Table("Without a time", ("runtime", "calls", "why"), rows)] * bool(rows)
