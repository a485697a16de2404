"""A badge that tells the verdict of a report, as SVG."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from lstmcore_conformance.suite.report import Report, Result

_LABEL: Final = "LSTM conformance"
_COLOURS: Final = {
    Result.CONFORMS: "#1a7f37",
    Result.PARTIAL: "#8a5a00",
    Result.FAILS: "#b42318",
    Result.NOTHING: "#4b5563",
}


def badge(report: Report) -> str:
    """The badge as an SVG document; green only where the whole suite of the profile ran on all declared precisions."""
    text, colour = _said(report), _COLOURS[report.result]
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


def _said(report: Report) -> str:
    if report.result is Result.FAILS:
        return f"{len(report.bad)} of {report.count} failed"
    if report.result is Result.NOTHING:
        return str(report.result.value)
    passed = f"{report.count - len(report.expected)} passed"
    return passed if report.result is Result.CONFORMS else f"{report.result.value} | {passed}"


def _width(text: str) -> int:
    return 7 * len(text) + 12
