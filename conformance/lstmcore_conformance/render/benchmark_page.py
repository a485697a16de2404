"""A run of the benchmark as one page: no network, no script, light and dark, narrow and wide."""

from __future__ import annotations

from base64 import b64encode

from lstmcore_conformance.bench.pictures import binary, pictures, rendered
from lstmcore_conformance.bench.results import Benchmark
from lstmcore_conformance.bench.tables import joined, measured, others, runtimes, verdicts
from lstmcore_conformance.render.templating import render


def page(benchmark: Benchmark) -> str:
    """Return the run as an HTML document."""
    names = ", ".join(dict.fromkeys(facts["label"] for facts in benchmark.runtimes))
    return render(
        "benchmark.html",
        title=f"LSTM benchmark: {names}",
        heading=f"LSTM runtimes side by side: {names}",
        version=benchmark.versions.get("lstmcore", ""),
        verdicts=verdicts(benchmark),
        known=_facts(benchmark),
        runtimes=runtimes(benchmark),
        settings=measured(benchmark),
        others=others(benchmark),
        pictures=[
            (title, b64encode(rendered(figure, "svg")).decode()) for _, title, figure in list(pictures(benchmark))
        ],
    )


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
        ("caches", joined(machine.get("caches", {}).items(), " ")),
        ("clock", f"{machine['clock_mhz']} MHz as the system tells it" if machine.get("clock_mhz") else ""),
        ("measured peak", "; ".join(roofs)),
        ("system", f"{machine.get('system', '')}, Python {machine.get('python', '')}"),
        ("load", f"{machine['load']:.2f} before, {machine.get('load_after', 0.0):.2f} after"),
        ("versions", joined(benchmark.versions.items(), " ")),
        ("variables", joined(settings.get("environment", {}).items(), "=")),
        ("plan", joined(settings.get("plan", {}).items(), " ")),
        ("grid", f"{benchmark.grid}, seed {settings.get('seed', '')}"),
        ("run", f"{benchmark.started}, {benchmark.seconds:.0f} s"),
    ]
