"""A report as JUnit XML, for the test views of CI services."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

from lstmcore_conformance.suite.report import Outcome, Report

_ILLEGAL: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: The outcomes that are `skipped`, with the message.
_SKIPPED: Final = (Outcome.UNSUPPORTED, Outcome.NOT_CHECKED, Outcome.EXPECTED)


def junit(report: Report) -> str:
    """One `testcase` an item and one `testsuite`; what did not run is `skipped`, with the reason."""
    items = [(check, item) for check in report.checks for item in check.items]
    counts = {outcome: sum(item.outcome is outcome for _, item in items) for outcome in Outcome}
    totals = {
        "name": f"lstmcore-conformance {report.backend}",
        "tests": str(len(items)),
        "failures": str(counts[Outcome.FAILED]),
        "errors": str(counts[Outcome.ERROR]),
        "time": f"{report.seconds:.3f}",
    }
    root = ElementTree.Element("testsuites", totals)
    more = {
        "skipped": str(sum(counts[outcome] for outcome in _SKIPPED)),
        "timestamp": report.started,
        "hostname": "localhost",
    }
    suite = ElementTree.SubElement(root, "testsuite", totals | more)
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in {"verdict": report.verdict, "profile": report.profile, **report.versions}.items():
        ElementTree.SubElement(properties, "property", name=name, value=_legal(value))
    for check, item in items:
        case = ElementTree.SubElement(
            suite, "testcase", classname=check.id, name=_legal(item.id), time=f"{item.seconds:.6f}"
        )
        message = _legal(item.message)
        if item.outcome in _SKIPPED:
            ElementTree.SubElement(case, "skipped", message=message)
        elif item.outcome.bad:
            tag = "failure" if item.outcome is Outcome.FAILED else "error"
            found = ElementTree.SubElement(case, tag, message=message, type=item.outcome.value)
            found.text = _legal(f"{item.message}\n{check.claim}\n{item.reproduce}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _legal(text: str) -> str:
    """Return the text without characters that XML does not have."""
    return _ILLEGAL.sub("\ufffd", text)
