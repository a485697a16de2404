"""The forms of a report other than JSON: JUnit XML and the badge."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from rich.console import Console

from lstmcore.cli import main
from lstmcore_conformance.mutants import MUTANTS
from lstmcore_conformance.render.badge import badge, endpoint
from lstmcore_conformance.render.junit import junit
from lstmcore_conformance.render.report_page import page
from lstmcore_conformance.render.templating import _environment
from lstmcore_conformance.suite.report import CheckReport, ItemReport, Outcome, Report, Result

GREEN = "#1a7f37"


UNDECLARED = dict.fromkeys(("float32", "tf32", "bfloat16", "float16"), "no")


def report(*items: ItemReport, selection: str | None = None, undeclared: dict[str, str] = UNDECLARED) -> Report:
    return Report(
        "a<b>",
        "cpu",
        ("float64",),
        (),
        (),
        undeclared,
        selection,
        {"numpy": "2"},
        "Linux",
        "2026-01-01T00:00:00+00:00",
        1.0,
        (CheckReport("forward.x", "y is <right> & fast", "2 Equations", (), items),),
    )


PASSED = ItemReport("forward.x[a]", "a", Outcome.PASSED)
FAILED = ItemReport("forward.x[b]", "b", Outcome.FAILED, message='<script>"&\x00', reproduce="lstmcore conform a<b>")
LEFT_OUT = ItemReport("forward.x[c]", "c", Outcome.UNSUPPORTED, message="no <lengths>")
BROKEN = ItemReport("forward.x[d]", "d", Outcome.ERROR, message="ValueError: no")
KNOWN = ItemReport("forward.x[e]", "e", Outcome.EXPECTED, message="expected (issue 1): off")
RUNS = [
    (report(PASSED, LEFT_OUT), Result.CONFORMS, "a<b> conforms in float64: all 1 case of the quick profile passed"),
    (report(PASSED, KNOWN), Result.PARTIAL, "a<b> conforms in float64 but for 1 expected failure: 1 case passed"),
    (
        report(PASSED, PASSED, selection="x"),
        Result.PARTIAL,
        "a<b> passes 2 selected cases in float64; the suite was not run as a whole",
    ),
    (
        report(PASSED, undeclared={name: "no" for name in UNDECLARED if name != "float32"}),
        Result.PARTIAL,
        "a<b> conforms in float64: all 1 case of the quick profile passed; declared and not tested: float32",
    ),
    (report(PASSED, FAILED, selection="x"), Result.FAILS, "a<b> does not conform: 1 of 2 cases failed"),
    (report(BROKEN), Result.FAILS, "a<b> does not conform: 1 of 1 case failed"),
    (report(LEFT_OUT), Result.NOTHING, "nothing was tested of a<b>: it declares nothing that the selected cases need"),
]
STYLES = {Result.CONFORMS: "32m", Result.PARTIAL: "33m", Result.FAILS: "31m", Result.NOTHING: "31m"}


@pytest.mark.parametrize(("found", "result", "verdict"), RUNS)
def test_verdict_page_table_and_json_tell_the_same_result(found: Report, result: Result, verdict: str) -> None:
    assert (found.result, found.verdict) == (result, verdict)
    assert found.conforms is (result in (Result.CONFORMS, Result.PARTIAL))
    assert found.to_dict()["result"] == result.value
    assert f'<p class="verdict {result.name.lower()}">{escape(verdict)}</p>' in page(found)
    written = io.StringIO()
    found.show(Console(file=written, force_terminal=True, color_system="standard", width=100))
    assert f"[1;{STYLES[result]}{verdict}" in written.getvalue()


def test_junit_tells_every_item_with_its_outcome() -> None:
    root = ElementTree.fromstring(junit(report(PASSED, FAILED, LEFT_OUT, BROKEN)))
    suite = root[0]
    assert root.tag == "testsuites"
    wanted = {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    assert {name: suite.get(name) for name in wanted} == wanted
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [item.id for item in (PASSED, FAILED, LEFT_OUT, BROKEN)]
    assert Counter(child.tag for case in cases for child in case) == {"failure": 1, "skipped": 1, "error": 1}
    assert cases[1][0].get("message") == '<script>"&\ufffd'
    assert "lstmcore conform a<b>" in (cases[1][0].text or "")


@pytest.mark.parametrize(
    ("found", "text", "green"),
    [
        (report(PASSED, LEFT_OUT), "1 passed", True),
        (report(PASSED, selection="x"), "partial | 1 passed", False),
        (report(PASSED, undeclared={}), "partial | 1 passed", False),
        (report(PASSED, KNOWN), "partial | 1 passed", False),
        (report(PASSED, FAILED), "1 of 2 failed", False),
        (report(PASSED, BROKEN), "1 of 2 failed", False),
        (report(LEFT_OUT), "nothing ran", False),
    ],
)
def test_a_badge_is_green_only_for_a_whole_run_that_passed(found: Report, text: str, green: bool) -> None:
    drawn = badge(found)
    root = ElementTree.fromstring(drawn)
    assert root[0].text == f"LSTM conformance: {text}"
    assert (GREEN in drawn) is green
    told = json.loads(endpoint(found))
    assert told == {"schemaVersion": 1, "label": "LSTM conformance", "message": text, "color": told["color"]}
    assert (f"#{told['color']}" == GREEN) is green
    assert f'fill="#{told["color"]}"' in drawn


def test_the_command_writes_both_also_where_the_backend_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lstmcore_conformance.suite.target.get_backend", lambda name: MUTANTS["contract.none_state"].make()
    )
    files = {name: tmp_path / name for name in ("junit", "badge")}
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    found = CliRunner().invoke(main, ["conform", "naive", "-k", "forward.no_state", "--in-process", *options])
    assert found.exit_code == 1
    assert "<failure" in files["junit"].read_text()
    assert "failed" in files["badge"].read_text()
    assert json.loads((tmp_path / "badge.shields.json").read_text())["message"].endswith("failed")


def test_the_badges_json_replaces_no_other_file(tmp_path: Path) -> None:
    files = ("--badge", str(tmp_path / "badge.svg"), "--json", str(tmp_path / "folder" / ".." / "badge.shields.json"))
    (tmp_path / "folder").mkdir()
    found = CliRunner().invoke(main, ["conform", "reference", "-k", "forward.no_state", *files])
    assert found.exit_code == 2
    assert "--json: expected a file of its own" in found.output
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_without_jinja2_there_is_the_install_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    found = CliRunner().invoke(main, ["conform", "reference", "--html", str(tmp_path / "report.html")])
    assert found.exit_code == 2
    assert "pip install " in found.output and "'jinja2>=3.1'" in found.output
    assert not list(tmp_path.iterdir())


def test_text_in_templates_is_escaped() -> None:
    """Values are escaped as HTML, also in Markdown that does not say that they are Markdown."""
    table = _environment().from_string("{{ text }} {{ text | md }}")
    assert table.render(text="<a>|") == "&lt;a&gt;| \\<a\\>\\|"
