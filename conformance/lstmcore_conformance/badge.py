"""A badge that tells the verdict of a report, as SVG."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from lstmcore_conformance.report import Outcome, Report

_LABEL: Final = "LSTM conformance"
_GREEN, _RED, _GREY, _AMBER = "#1a7f37", "#b42318", "#4b5563", "#8a5a00"


def badge(report: Report) -> str:
    """The badge as an SVG document; green only where the whole suite of the profile ran on all declared precisions."""
    text, colour = _said(report)
    left, right = _width(_LABEL), _width(text)
    name = escape(f"{_LABEL}: {text}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img">\n'
        f"<title>{name}</title>\n"
        f'<rect width="{left}" height="20" fill="#333"/>\n'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/>\n'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">\n'
        f'<text x="{left / 2:g}" y="14">{escape(_LABEL)}</text>\n'
        f'<text x="{left + right / 2:g}" y="14">{escape(text)}</text>\n'
        "</g>\n</svg>\n"
    )


def _said(report: Report) -> tuple[str, str]:
    if report.bad:
        return f"{len(report.bad)} of {report.count} failed", _RED
    if not report.count:
        return "nothing ran", _GREY
    expected = any(item.outcome is Outcome.EXPECTED for check in report.checks for item in check.items)
    if expected or report.selection or report.untested:
        return f"partial | {report.count} passed", _AMBER
    return f"{report.count} passed", _GREEN


def _width(text: str) -> int:
    return 7 * len(text) + 12
