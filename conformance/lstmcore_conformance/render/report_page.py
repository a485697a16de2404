"""The report as one page: no network, no script, light and dark, narrow and wide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from lstmcore_conformance.render.templating import render
from lstmcore_conformance.suite.common_traits import common_traits
from lstmcore_conformance.suite.report import CheckReport, ItemReport, Outcome, Report

#: Failures that are shown at once; the rest is folded.
SHOWN: Final = 20


def page(report: Report) -> str:
    """Return the report as an HTML document."""
    title = f"LSTM conformance of {report.backend}"
    reasons: dict[str, list[str]] = {}
    for name, reason in report.undeclared.items():
        reasons.setdefault(reason, []).append(name)
    items = [item for check in report.checks for item in check.items]
    return render(
        "report.html",
        title=title,
        heading=title,
        report=report,
        shown=SHOWN,
        traits=common_traits(report),
        share_class=_share_class,
        known=_facts(report),
        expected=[(item.id, item.message) for item in report.expected],
        undeclared=[(", ".join(names), reason) for reason, names in reasons.items()],
        untried=list(report.untried.items()),
        unchecked=[(item.id, item.message) for _, item in report.items(Outcome.NOT_CHECKED)],
        plots=[_plot(items, letter, label) for letter, label in (("T", "steps T"), ("H", "hidden units H"))],
        sections=[
            (section, [_row(check) for check in checks])
            for section, checks in groupby(report.checks, lambda check: check.section)
        ],
    )


def _facts(report: Report) -> list[tuple[str, str]]:
    return [
        ("backend", f"{report.backend} on {report.device}"),
        ("precisions", ", ".join(report.precisions)),
        ("derivatives", ", ".join(report.derivatives) or "none"),
        ("switches", f"{len(report.features)} declared"),
        (
            "cases",
            f"{report.count} ran, {len(report.bad)} of them failed"
            + (f"; {report.unchecked} could not be checked" if report.unchecked else ""),
        ),
        (
            "profile",
            report.profile
            + (f", seed {report.seed}, {report.max_examples} examples a drawn check" if report.max_examples else "")
            + (f", only {report.selection}" if report.selection else ""),
        ),
        *(
            (f"largest sizes, {kind}", ", ".join(f"{axis}={size:,}" for axis, size in sizes.items() if size))
            for kind, sizes in report.extent.items()
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("machine", report.machine),
        ("run", f"{report.started}, {report.seconds:.1f} s"),
    ]


def _share_class(share: float) -> str:
    """Return the CSS class of a cell: within the budget, above it, or over ten times as much (NaN and infinity too)."""
    return "within" if share <= 1 else "above" if share <= 10 else "far"


def _row(check: CheckReport) -> tuple[CheckReport, str, bool, float | None]:
    """Return the check, its outcome as a CSS class, whether it passed, and its largest share."""
    worst = None if check.worst is None or check.worst.worst is None else check.worst.worst.share
    style = "unchecked" if check.outcome is Outcome.NOT_CHECKED else check.outcome.value.split()[0]
    return check, style, check.outcome is Outcome.PASSED, worst


# The plot -------------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460, 262, 54, 46


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of the log of the share against the log of a size; coordinates are those of the drawing.

    Attributes
    ----------
    decades, ticks
        Labels of the two axes and where they are.
    limit
        Where the share is 1.
    series
        CSS class, precision and points of each line.
    """

    label: str
    decades: list[tuple[str, float]]
    limit: float
    ticks: list[tuple[int, float]]
    series: list[tuple[str, str, list[tuple[float, float]]]]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT


def _largest(items: Iterable[ItemReport], letter: str) -> dict[str, dict[int, float]]:
    """Return precision -> size -> the largest share; a logarithmic axis has no place for sizes and shares of 0."""
    largest: dict[str, dict[int, float]] = {}
    for item in items:
        size = item.sizes.get(letter, 0)
        if item.worst is None or size < 1 or not item.worst.share > 0:
            continue
        shares = largest.setdefault(item.precision, {})
        shares[size] = max(shares.get(size, 0.0), item.worst.share)
    return largest


def _plot(items: Iterable[ItemReport], letter: str, label: str) -> Plot:
    series: Mapping[str, dict[int, float]] = _largest(items, letter)
    if not series:
        return Plot(label, [], 0.0, [], [])
    most = max(size for shares in series.values() for size in shares)
    top = max(1.0, *(min(share, 1e6) for shares in series.values() for share in shares.values()))
    decades = range(-2, math.ceil(math.log10(top)) + 1)

    def across(size: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - 18) * math.log(size) / max(math.log(most), 1e-9), 1)

    def up(share: float) -> float:
        low, high = decades[0], max(decades[-1], 0) + 0.15
        place = (math.log10(min(max(share, 10.0**low), 1e6)) - low) / (high - low)
        return round((_HEIGHT - _BOTTOM) * (1 - place) + 6, 1)

    return Plot(
        label,
        decades=[(f"{10.0**k:g}" if k < 4 else f"1e{k}", up(10.0**k)) for k in decades],
        limit=up(1),
        ticks=[(size, across(size)) for size in (1, 4, 16, 64, 256, 1024) if size <= most],
        series=[
            (style, precision, [(across(size), up(share)) for size, share in sorted(shares.items())])
            for style, (precision, shares) in zip("abcde", series.items(), strict=False)
        ],
    )
