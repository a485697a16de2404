"""The report as one page: no network, no script, light and dark, narrow and wide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from html import escape
from importlib import resources
from itertools import groupby
from typing import Final

from lstmcore_conformance.suite.report import CheckReport, ItemReport, Outcome, Report

#: Failures that are shown at once; the rest is folded.
SHOWN: Final = 20


def page(report: Report) -> str:
    """The report as an HTML document."""
    name, style = escape(report.backend), (resources.files(__package__) / "page.css").read_text("utf-8")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>LSTM conformance of {name}</title>\n<style>{style}</style>\n</head>\n<body>",
        f"<header><h1>LSTM conformance of {name}</h1>",
        f'<p class="verdict {report.result.name.lower()}">{escape(report.verdict)}</p></header>\n<main>',
        _facts(report),
        *_failures(report),
        *_expected(report),
        "<h2>Error as a share of its budget</h2>"
        "<p>The largest share of all cases of a size; up to 1 passes. "
        "A budget is what the naive evaluation in the same precision may lose on the same case.</p>",
        f'<div class="plots">{_plot(report, "T", "steps T")}{_plot(report, "H", "hidden units H")}</div>',
        *_undeclared(report),
        *_untried(report),
        "<h2>Checks by section of the specification</h2>",
        *(_section(title, list(checks)) for title, checks in groupby(report.checks, lambda check: check.section)),
        "</main>",
        f"<footer>Made by lstmcore_conformance {escape(report.versions.get('lstmcore', ''))}; "
        "the rule behind budgets is in docs/conformance.md.</footer>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _facts(report: Report) -> str:
    facts = {
        "backend": f"{report.backend} on {report.device}",
        "precisions": ", ".join(report.precisions),
        "derivatives": ", ".join(report.derivatives) or "none",
        "switches": f"{len(report.features)} declared",
        "cases": f"{report.count} ran, {len(report.bad)} of them failed",
        "profile": report.profile
        + (f", seed {report.seed}, {report.max_examples} examples a drawn check" if report.max_examples else "")
        + (f", only {report.selection}" if report.selection else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "machine": report.machine,
        "run": f"{report.started}, {report.seconds:.1f} s",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<dl>{rows}</dl>"


def _failures(report: Report) -> Iterator[str]:
    if not report.bad:
        return
    yield "<h2>What failed, and how to see it again</h2>"
    yield from map(_failure, report.bad[:SHOWN])
    if len(report.bad) > SHOWN:
        yield f"<details><summary>And {len(report.bad) - SHOWN} more</summary>"
        yield from map(_failure, report.bad[SHOWN:])
        yield "</details>"


def _failure(item: ItemReport) -> str:
    switches = f" ({escape(item.switches)})" if item.switches else ""
    return (
        f"<h3><code>{escape(item.id)}</code></h3><p>{escape(item.message)}{switches}</p>"
        f"<pre>{escape(item.reproduce)}</pre>"
    )


def _expected(report: Report) -> Iterator[str]:
    if report.expected:
        yield "<h2>Expected failures</h2><dl>"
        yield from (f"<dt><code>{escape(i.id)}</code></dt><dd>{escape(i.message)}</dd>" for i in report.expected)
        yield "</dl>"


def _untried(report: Report) -> Iterator[str]:
    if report.untried:
        yield "<h2>Expected failures that did not run</h2><dl>"
        yield from (f"<dt><code>{escape(id)}</code></dt><dd>{escape(why)}</dd>" for id, why in report.untried.items())
        yield "</dl>"


def _undeclared(report: Report) -> Iterator[str]:
    if not report.undeclared:
        return
    reasons: dict[str, list[str]] = {}
    for name, reason in report.undeclared.items():
        reasons.setdefault(reason, []).append(name)
    yield "<h2>Not declared, so not tested</h2><dl>"
    for reason, names in reasons.items():
        yield f"<dt>{escape(', '.join(names))}</dt><dd>{escape(reason)}</dd>"
    yield "</dl>"


def _section(title: str, checks: list[CheckReport]) -> str:
    """A table; narrow pages lay its rows out as grids, so every part says what it is."""
    rows = "\n".join(_row(check) for check in checks)
    heads = {"check": "check", "claim": "claim", "number": "cases", "share": "largest share"}
    columns = "".join(f'<th scope="col" role="columnheader" class="{k}">{text}</th>' for k, text in heads.items())
    return (
        f'<table role="table"><caption>{escape(title)}</caption><thead role="rowgroup"><tr role="row">{columns}'
        f'</tr></thead><tbody role="rowgroup">\n{rows}\n</tbody></table>'
    )


def _row(check: CheckReport) -> str:
    outcome, worst = check.outcome.value.split()[0], check.worst
    share = "" if worst is None or worst.worst is None else _share(worst.worst.share)
    said = "" if check.outcome is Outcome.PASSED else f'<br><span class="{outcome}">{outcome}</span>'
    return (
        f'<tr role="row"><th scope="row" role="rowheader"><code>{escape(check.id)}</code>{said}</th>'
        f'<td role="cell" class="claim">{escape(check.claim)}</td>'
        f'<td role="cell" class="cases {outcome}" data-unit="{"case" if check.ran == 1 else "cases"}">{check.ran}</td>'
        f'<td role="cell">{share}</td></tr>'
    )


def _share(share: float) -> str:
    width = 100 * min(share, 1.0) if math.isfinite(share) else 100
    return f'{share:.3g}<span class="bar" aria-hidden="true"><span style="width:{width:.0f}%"></span></span>'


# The plot: log share against log size ---------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460, 262, 54, 46


def _largest(items: Iterable[ItemReport], letter: str) -> dict[str, dict[int, float]]:
    """Precision -> size -> the largest share; sizes and shares of 0 have no place on a logarithmic axis."""
    found: dict[str, dict[int, float]] = {}
    for item in items:
        size = item.sizes.get(letter, 0)
        if item.worst is None or size < 1 or not item.worst.share > 0:
            continue
        shares = found.setdefault(item.precision, {})
        shares[size] = max(shares.get(size, 0.0), item.worst.share)
    return found


def _plot(report: Report, letter: str, label: str) -> str:
    series = _largest((item for check in report.checks for item in check.items), letter)
    if not series:
        return f"<figure><figcaption>{escape(label)}: no case has a share above 0.</figcaption></figure>"
    most = max(size for shares in series.values() for size in shares)
    top = max(1.0, *(min(share, 1e6) for shares in series.values() for share in shares.values()))
    decades = range(-2, math.ceil(math.log10(top)) + 1)

    def across(size: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 18) * math.log(size) / max(math.log(most), 1e-9)

    def up(share: float) -> float:
        low, high = decades[0], max(decades[-1], 0) + 0.15
        place = (math.log10(min(max(share, 10.0**low), 1e6)) - low) / (high - low)
        return (_HEIGHT - _BOTTOM) * (1 - place) + 6

    marks = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{up(10.0**k):.1f}" y2="{up(10.0**k):.1f}"/>'
        for k in decades
    ]
    for k in decades:
        text = f"{10.0**k:g}" if k < 4 else f"1e{k}"
        marks.append(f'<text x="{_LEFT - 6}" y="{up(10.0**k) + 4:.1f}" text-anchor="end">{text}</text>')
    marks.append(f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH}" y1="{up(1):.1f}" y2="{up(1):.1f}"/>')
    ticks = [size for size in (1, 4, 16, 64, 256, 1024) if size <= most]
    marks += [f'<text x="{across(size):.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{size}</text>' for size in ticks]
    for style, (precision, shares) in zip("abcde", series.items(), strict=False):
        points = [(across(size), up(share)) for size, share in sorted(shares.items())]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points)
        marks.append(f'<g class="{style}"><title>{escape(precision)}</title><polyline points="{line}"/>{dots}</g>')
    keys = ", ".join(
        f'<span style="color:var(--{style})">&#9679;</span> {escape(precision)}'
        for style, precision in zip("abcde", series, strict=False)
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Largest share against {escape(label)}">'
        f'{"".join(marks)}<text x="{_WIDTH}" y="{_HEIGHT - 6}" text-anchor="end">{escape(label)}</text></svg>'
        f"<figcaption>{keys}; the dashed line is the limit.</figcaption></figure>"
    )
