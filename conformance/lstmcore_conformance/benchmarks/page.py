"""A run as one page: no network, no script, light and dark, narrow and wide."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any

from lstmcore_conformance.benchmarks.jobs import Job
from lstmcore_conformance.benchmarks.pictures import binary, pictures, rendered
from lstmcore_conformance.benchmarks.results import Benchmark, Outcome, Result
from lstmcore_conformance.benchmarks.startup import JOB
from lstmcore_conformance.benchmarks.summary import (
    Setting,
    best_peer,
    compare,
    plain,
    roof_of,
    settings,
    summaries,
    variants,
)
from lstmcore_conformance.benchmarks.table import FIGURES, STARTS, cell, figure_cells, start_cells


def page(benchmark: Benchmark) -> str:
    """The run as an HTML document."""
    package = resources.files("lstmcore_conformance")
    sheets = (package / "render" / "page.css", package / "benchmarks" / "page.css")
    style = "".join(sheet.read_text("utf-8") for sheet in sheets)
    names = ", ".join(dict.fromkeys(one["label"] for one in benchmark.runtimes))
    shown = list(pictures(benchmark))
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>LSTM benchmark: {escape(names)}</title>\n<style>{style}</style>\n</head>\n<body>",
        f"<header><h1>LSTM runtimes side by side: {escape(names)}</h1></header>\n<main>",
        *_verdicts(benchmark),
        _facts(benchmark),
        _runtimes(benchmark),
        *(part for at in settings(benchmark.results) for part in _setting(benchmark, at)),
        *_variants(benchmark),
        *_starts(benchmark),
        *_without(benchmark),
        "<h2>Pictures</h2>" * bool(shown),
        *(_picture(title, rendered(figure, "svg")) for _, title, figure in shown),
        "</main>",
        f"<footer>Made by lstmcore bench {escape(benchmark.versions.get('lstmcore', ''))}; the rules are in "
        "docs/benchmarking.md: values first, in turn, medians, first calls apart.</footer>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _verdicts(benchmark: Benchmark) -> Iterator[str]:
    """What the run comes to, one line for each backend and setting."""
    found = summaries(benchmark)
    if found:
        yield data_table(
            "Best peer's time over the backend's: above 1 the backend is faster",
            ("backend", "setting", "geometric mean", "worst point", "points"),
            (
                (
                    one.backend,
                    str(one.setting),
                    f"{one.mean:.2f}",
                    f"{one.worst.ratio:.2f} at {one.worst.ours.job.point} ({one.worst.peer.candidate.label})",
                    f"{len(one.comparisons)}, {sum(c.noisy for c in one.comparisons)} of them noisy"
                    + (f", {one.refused} more without a time" if one.refused else ""),
                )
                for one in found
            ),
        )


def _facts(benchmark: Benchmark) -> str:
    machine, told = benchmark.machine, benchmark.settings
    roofs = (
        f"{one.threads} thread{'s' * (one.threads > 1)}, {one.precision}: {one.gflops:.0f} GFLOP/s; copies "
        + ", ".join(f"{value:.0f} GB/s within {binary(int(size))}" for size, value in one.copies.items())
        for one in benchmark.roofs
    )
    facts = {
        "processor": f"{machine['processor']}, {machine['cores']} cores",
        "features": ", ".join(machine.get("features", ())),
        "caches": ", ".join(f"{name} {size}" for name, size in machine.get("caches", {}).items()),
        "clock": f"{machine['clock_mhz']} MHz as the system tells it" if machine.get("clock_mhz") else "",
        "measured peak": "; ".join(roofs),
        "system": f"{machine.get('system', '')}, Python {machine.get('python', '')}",
        "load": f"{machine['load']:.2f} before, {machine.get('load_after', 0.0):.2f} after",
        "versions": ", ".join(f"{name} {version}" for name, version in benchmark.versions.items()),
        "variables": ", ".join(f"{name}={value}" for name, value in told.get("environment", {}).items()),
        "plan": ", ".join(f"{name} {value}" for name, value in told.get("plan", {}).items()),
        "grid": f"{benchmark.grid}, seed {told.get('seed', '')}",
        "run": f"{benchmark.started}, {benchmark.seconds:.0f} s",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    return f"<h2>Where and how</h2><dl>{rows}</dl>"


def _runtimes(benchmark: Benchmark) -> str:
    """Each runtime with the verdict on its values beside how it starts."""
    rows = []
    for facts in benchmark.runtimes:
        key = (facts["label"], facts["threads"])
        own = [one for one in benchmark.results if (one.candidate.label, one.candidate.threads) == key]
        said = f"not started: {facts['message']}" if "message" in facts else _verdict(own)
        versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
        rows.append((facts["label"], str(facts["threads"]), versions, said))
    headings = ("runtime", "threads", "versions", "values against the float64 reference")
    return data_table("Runtimes", headings, rows)


def _verdict(results: Sequence[Result]) -> str:
    """What the values of these results come to."""
    judged = [one for one in results if one.share is not None or one.outcome is Outcome.WRONG]
    wrong = sum(one.outcome is Outcome.WRONG for one in judged)
    shares = [one.share for one in judged if one.share is not None and one.outcome is not Outcome.WRONG]
    verdict = f"right at all {len(judged)} points" if judged else "nothing to judge"
    verdict = f"does not conform at {wrong} of {len(judged)} points" if wrong else verdict
    return verdict + (f"; largest share of a budget {max(shares):.2g}" if shares else "")


def _setting(benchmark: Benchmark, at: Setting) -> Iterator[str]:
    results = plain(benchmark, at)
    if not results:
        return
    candidates = list(dict.fromkeys(one.candidate for one in results))
    ours = [one for one in candidates if one.kind == "backend"]
    tail = at.mode == "streaming"
    rows = []
    for job in dict.fromkeys(one.job for one in results):
        found = {one.candidate: one for one in results if one.job == job}
        peer = best_peer(list(found.values()))
        row = [
            _point(job),
            *(cell(found.get(candidate), tail=tail).plain for candidate in candidates),
        ]
        rows.append((*row, *(_ratio(found[candidate], peer) for candidate in ours)))
    own = (_verdict([one for one in results if one.candidate == candidate]) for candidate in candidates)
    rows.append(("values", *own, *("" for _ in ours)))
    headings = ("T, N, I, H", *(one.label for one in candidates), *(f"best peer / {one.label}" for one in ours))
    unit = "us a step, median / 99th percentile" if tail else "ms a call"
    yield data_table(f"{at}: {unit}; ~ is noisy", headings, rows)
    figures = (
        (_point(one.job), one.candidate.label, *figure_cells(one, roof_of(benchmark, at)))
        for one in results
        if one.median_s is not None
    )
    caption = "The peak is of bare multiply-adds, the roof of what copies within a core's cache bring too"
    table = data_table(caption, ("T, N, I, H", "runtime", *FIGURES), figures)
    yield f"<details><summary>{escape(str(at))}: speed beside the machine's, errors, memory</summary>{table}</details>"


def _point(job: Job) -> str:
    return str(job.point).replace(" ", "\u00a0")


def _ratio(one: Result, peer: Result | None) -> str:
    if peer is None or one.median_s is None:
        return ""
    found = compare(one, peer)
    return f"{found.ratio:.2f} ({found.low:.2f}\u00a0to\u00a0{found.high:.2f})"


def _variants(benchmark: Benchmark) -> Iterator[str]:
    found = variants(benchmark)
    if found:
        rows = (
            (one.backend, str(one.setting), one.name, f"{'~' * bool(one.noisy)}{one.mean:.2f}", f"{one.worst:.2f}")
            for one in found
        )
        headings = ("backend", "setting", "switch", "geometric mean", "worst point")
        yield data_table("Time with a switch over the plain layer's; ~ has noisy points", headings, rows)


def _starts(benchmark: Benchmark) -> Iterator[str]:
    if benchmark.starts:
        rows = ((one.candidate.label, *start_cells(one)) for one in benchmark.starts)
        yield data_table(f"From nothing to the first result at {JOB.point}", ("runtime", *STARTS), rows)


def _without(benchmark: Benchmark) -> Iterator[str]:
    """What has no time, and why."""
    failed = [(one.candidate.label, "start", one.message) for one in benchmark.starts if one.message]
    reasons: dict[tuple[str, str], list[Result]] = {}
    for one in benchmark.results:
        if one.median_s is None:
            reasons.setdefault((one.candidate.label, f"{one.outcome.value}: {one.message}"), []).append(one)
    rows = [(label, f"{len(found)}, first {found[0].job}", why) for (label, why), found in reasons.items()]
    if rows or failed:
        yield data_table("Without a time", ("runtime", "calls", "why"), rows + failed)


def _picture(title: str, content: bytes) -> str:
    data = b64encode(content).decode()
    return f'<figure class="picture"><img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}"></figure>'


def data_table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose rows stand one cell below the other where the window is narrow."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in headings)
    body = "\n".join(
        "<tr>"
        + f'<th scope="row">{escape(str(first))}</th>'
        + "".join(
            f'<td data-label="{escape(heading)}">{escape(str(value))}</td>'
            for heading, value in zip(headings[1:], rest, strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<table class="free"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table>"
    )
