"""A run of the benchmark as one page: no network, no script, light and dark, narrow and wide."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lstmcore_conformance.bench.pictures import binary, pictures, rendered
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result
from lstmcore_conformance.bench.startup import JOB
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
from lstmcore_conformance.bench.table import FIGURES, STARTS, cell, figure_cells, start_cells
from lstmcore_conformance.render.templating import render

#: Caption, headings and rows, for the macro `data_table`.
Table = tuple[str, Sequence[str], list[Sequence[Any]]]


def page(benchmark: Benchmark) -> str:
    """Return the run as an HTML document."""
    names = ", ".join(dict.fromkeys(facts["label"] for facts in benchmark.runtimes))
    measured = [(at, results) for at in settings(benchmark.results) if (results := plain(benchmark, at))]
    return render(
        "benchmark.html",
        title=f"LSTM benchmark: {names}",
        heading=f"LSTM runtimes side by side: {names}",
        version=benchmark.versions.get("lstmcore", ""),
        verdicts=list(_verdicts(benchmark)),
        known=_facts(benchmark),
        runtimes=_runtimes(benchmark),
        settings=[
            (_times(at, results), f"{at}: speed beside the machine's, errors, memory", _figures(benchmark, at, results))
            for at, results in measured
        ],
        others=[*_variants(benchmark), *_starts(benchmark), *_without(benchmark)],
        pictures=[
            (title, b64encode(rendered(figure, "svg")).decode()) for _, title, figure in list(pictures(benchmark))
        ],
    )


def _verdicts(benchmark: Benchmark) -> Iterator[Table]:
    """Yield a table with a row for each backend and setting."""
    if rows := [
        (
            one.backend,
            one.setting,
            f"{one.mean:.2f}",
            f"{one.worst.ratio:.2f} at {one.worst.ours.job.point} ({one.worst.peer.candidate.label})",
            f"{len(one.comparisons)}, {sum(c.noisy for c in one.comparisons)} of them noisy"
            + (f", {one.refused} more without a time" if one.refused else ""),
        )
        for one in summaries(benchmark)
    ]:
        headings = ("backend", "setting", "geometric mean", "worst point", "points")
        yield "Best peer's time over the backend's: above 1 the backend is faster", headings, list(rows)


def _facts(benchmark: Benchmark) -> list[tuple[str, str]]:
    machine, settings = benchmark.machine, benchmark.settings
    roofs = (
        f"{one.threads} thread{'s' * (one.threads > 1)}, {one.precision}: {one.gflops:.0f} GFLOP/s; copies "
        + ", ".join(f"{value:.0f} GB/s within {binary(int(size))}" for size, value in one.copies.items())
        for one in benchmark.roofs
    )
    return [
        ("processor", f"{machine['processor']}, {machine['cores']} cores"),
        ("features", ", ".join(machine.get("features", ()))),
        ("caches", _pairs(machine.get("caches", {}).items(), " ")),
        ("clock", f"{machine['clock_mhz']} MHz as the system tells it" if machine.get("clock_mhz") else ""),
        ("measured peak", "; ".join(roofs)),
        ("system", f"{machine.get('system', '')}, Python {machine.get('python', '')}"),
        ("load", f"{machine['load']:.2f} before, {machine.get('load_after', 0.0):.2f} after"),
        ("versions", _pairs(benchmark.versions.items(), " ")),
        ("variables", _pairs(settings.get("environment", {}).items(), "=")),
        ("plan", _pairs(settings.get("plan", {}).items(), " ")),
        ("grid", f"{benchmark.grid}, seed {settings.get('seed', '')}"),
        ("run", f"{benchmark.started}, {benchmark.seconds:.0f} s"),
    ]


def _pairs(pairs: Iterable[tuple[str, Any]], sign: str) -> str:
    return ", ".join(f"{name}{sign}{value}" for name, value in pairs)


def _runtimes(benchmark: Benchmark) -> Table:
    """Return each runtime with the verdict on its values, or why it did not start."""
    rows = []
    for facts in benchmark.runtimes:
        key = (facts["label"], facts["threads"])
        own = [one for one in benchmark.results if (one.candidate.label, one.candidate.threads) == key]
        verdict = f"not started: {facts['message']}" if "message" in facts else _verdict(own)
        rows.append((*key, _pairs(facts.get("versions", {}).items(), " "), verdict))
    return "Runtimes", ("runtime", "threads", "versions", "values against the float64 reference"), list(rows)


def _verdict(results: Sequence[Result]) -> str:
    """Return at how many points the values of these results are right, and their largest share of a budget."""
    judged = [one for one in results if one.share is not None or one.outcome is Outcome.WRONG]
    wrong = sum(one.outcome is Outcome.WRONG for one in judged)
    shares = [one.share for one in judged if one.share is not None and one.outcome is not Outcome.WRONG]
    verdict = f"right at all {len(judged)} points" if judged else "nothing to judge"
    verdict = f"does not conform at {wrong} of {len(judged)} points" if wrong else verdict
    return verdict + (f"; largest share of a budget {max(shares):.2g}" if shares else "")


def _times(at: Setting, results: Sequence[Result]) -> Table:
    candidates = list(dict.fromkeys(one.candidate for one in results))
    backends = [one for one in candidates if one.kind == "backend"]
    tail = at.mode == "streaming"
    rows: list[Sequence[Any]] = []
    for job in dict.fromkeys(one.job for one in results):
        here = {one.candidate: one for one in results if one.job == job}
        peer = best_peer(list(here.values()))
        cells = [cell(here.get(candidate), tail=tail).plain for candidate in candidates]
        rows.append([_point(here), *cells, *(_ratio(here[candidate], peer) for candidate in backends)])
    verdicts = (_verdict([one for one in results if one.candidate == candidate]) for candidate in candidates)
    rows.append(["values", *verdicts, *("" for _ in backends)])
    headings = ("T, N, I, H", *(one.label for one in candidates), *(f"best peer / {one.label}" for one in backends))
    unit = "us a step, median / 99th percentile" if tail else "ms a call"
    return f"{at}: {unit}; ~ is noisy", headings, rows


def _figures(benchmark: Benchmark, at: Setting, results: Sequence[Result]) -> Table:
    roof = roof_of(benchmark, at)
    rows = [
        (str(one.job.point).replace(" ", "\u00a0"), one.candidate.label, *figure_cells(one, roof))
        for one in results
        if one.median_s is not None
    ]
    caption = "The peak is of bare multiply-adds, the roof of what copies within a core's cache bring too"
    return caption, ("T, N, I, H", "runtime", *FIGURES), list(rows)


def _point(here: dict[Any, Result]) -> str:
    """Return the sizes of these results, which stay on one line."""
    return str(next(iter(here.values())).job.point).replace(" ", "\u00a0")


def _ratio(one: Result, peer: Result | None) -> str:
    if peer is None or one.median_s is None:
        return ""
    compared = compare(one, peer)
    return f"{compared.ratio:.2f} ({compared.low:.2f}\u00a0to\u00a0{compared.high:.2f})"


def _variants(benchmark: Benchmark) -> Iterator[Table]:
    if rows := [
        (one.backend, one.setting, one.name, f"{'~' * bool(one.noisy)}{one.mean:.2f}", f"{one.worst:.2f}")
        for one in variants(benchmark)
    ]:
        headings = ("backend", "setting", "switch", "geometric mean", "worst point")
        yield "Time with a switch over the plain layer's; ~ has noisy points", headings, list(rows)


def _starts(benchmark: Benchmark) -> Iterator[Table]:
    if benchmark.starts:
        rows: list[Sequence[Any]] = [(one.candidate.label, *start_cells(one)) for one in benchmark.starts]
        yield f"From nothing to the first result at {JOB.point}", ("runtime", *STARTS), rows


def _without(benchmark: Benchmark) -> Iterator[Table]:
    """Yield a table of what has no time, with the reasons."""
    reasons: dict[tuple[str, str], list[Result]] = {}
    for one in benchmark.results:
        if one.median_s is None:
            reasons.setdefault((one.candidate.label, f"{one.outcome.value}: {one.message}"), []).append(one)
    rows = [(label, f"{len(these)}, first {these[0].job}", why) for (label, why), these in reasons.items()]
    rows += [(one.candidate.label, "start", one.message) for one in benchmark.starts if one.message]
    if rows:
        yield "Without a time", ("runtime", "calls", "why"), list(rows)
