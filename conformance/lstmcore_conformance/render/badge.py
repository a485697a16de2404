"""A badge that tells the verdict of a report: as SVG, and as what shields.io reads."""

from __future__ import annotations

import json
from typing import Final

from lstmcore_conformance.render.templating import render
from lstmcore_conformance.suite.report import Report, Result

_LABEL: Final = "LSTM conformance"
_COLOURS: Final = {
    Result.CONFORMS: "#1a7f37",
    Result.PARTIAL: "#8a5a00",
    Result.FAILS: "#b42318",
    Result.NOTHING: "#4b5563",
}


def badge(report: Report) -> str:
    """Return an SVG document; it is green only if the whole suite of the profile ran on all declared precisions."""
    message = _message(report)
    left, right = _width(_LABEL), _width(message)
    return render("badge.svg", label=_LABEL, message=message, colour=_COLOURS[report.result], left=left, right=right)


def endpoint(report: Report) -> str:
    """Return the same badge as JSON for https://shields.io/badges/endpoint-badge, which draws it."""
    colour = _COLOURS[report.result].removeprefix("#")
    badge = {"schemaVersion": 1, "label": _LABEL, "message": _message(report), "color": colour}
    return json.dumps(badge, indent=1) + "\n"


def _message(report: Report) -> str:
    if report.result is Result.FAILS:
        return f"{len(report.bad)} of {report.count} failed"
    if report.result is Result.NOTHING:
        return str(report.result.value)
    passed = f"{report.count - len(report.expected)} passed"
    return passed if report.result is Result.CONFORMS else f"{report.result.value} | {passed}"


def _width(text: str) -> int:
    """Return the width of the text in pixels, about."""
    return 7 * len(text) + 12
