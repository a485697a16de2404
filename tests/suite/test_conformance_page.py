"""The report as a page: by its text, and in a browser where the session `report` brings one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lstmcore_conformance import run
from lstmcore_conformance.mutants import MUTANTS
from lstmcore_conformance.oracle.naive import NaiveBackend
from lstmcore_conformance.render.report_page import SHOWN, page
from lstmcore_conformance.suite.report import Report
from pages import Text, in_browser


@pytest.fixture(scope="module")
def passing() -> Report:
    return run(NaiveBackend(), precisions=["float64", "float32"], select="sizes or errors or no_state")


@pytest.fixture(scope="module")
def failing() -> Report:
    return run(MUTANTS["bias.dropped"].make(), precisions=["float32"], select="switches")


@pytest.mark.parametrize("which", ["passing", "failing"])
def test_the_page_says_what_the_report_says(which: str, request: pytest.FixtureRequest) -> None:
    report: Report = request.getfixturevalue(which)
    found = Text(page(report))
    assert found.open == []
    assert report.verdict in found.text
    for check in report.checks:
        assert check.id in found.text
        assert check.claim in found.text
    for reason in report.undeclared.values():
        assert found.text.count(reason) == 1
    for item in report.bad:
        assert item.message in found.text
        assert item.reproduce in found.text
    assert (f"And {len(report.bad) - SHOWN} more" in found.text) == (len(report.bad) > SHOWN)
    assert found.text.count("the dashed line is the limit") == 2


def test_a_row_says_what_it_is_however_it_is_laid_out(failing: Report) -> None:
    roles = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup", "tr": "row", "td": "cell"}
    for tag, attributes in Text(page(failing)).tags:
        head = {"col": "columnheader", "row": "rowheader"}.get(attributes.get("scope") or "")
        if tag in roles or tag == "th":
            assert attributes.get("role") == (head if tag == "th" else roles[tag])


def test_one_case_is_not_called_cases(passing: Report) -> None:
    one = replace(passing.checks[0], items=passing.checks[0].items[:1])
    report = replace(passing, checks=(one, *passing.checks[1:]))
    counts = [check.ran for check in report.checks]
    given = [attributes["data-unit"] for _, attributes in Text(page(report)).tags if "data-unit" in attributes]
    assert given == ["case" if count == 1 else "cases" for count in counts]
    assert given[0] == "case"


def test_the_page_asks_for_nothing_from_a_network(passing: Report) -> None:
    for tag, attributes in Text(page(passing)).tags:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href"} & set(attributes)
    assert "http" not in page(passing).replace("http-equiv", "")


def test_markup_in_what_a_backend_says_is_text(passing: Report) -> None:
    report = replace(passing, backend="<b>own</b>", undeclared={"tf32": "<script>alert(1)</script>"}, machine="a & b")
    found = Text(page(report))
    assert "<b>own</b>" in found.text
    assert "<script>alert(1)</script>" in found.text
    assert "a & b" in found.text
    assert "script" not in {tag for tag, _ in found.tags}


def test_every_item_that_ran_tells_its_sizes(passing: Report) -> None:
    items = [item for check in passing.checks for item in check.items]
    assert {item.precision for item in items} == {"float64", "float32"}
    case = next(item for item in items if item.id == "forward.sizes[float32-H=65,P=33]")
    assert case.sizes == {"T": 3, "N": 9, "I": 5, "H": 65, "P": 33, "L": 1, "D": 1}


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("which", ["passing", "failing"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(
    which: str, width: int, scheme: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    report: Report = request.getfixturevalue(which)
    seen = in_browser(page(report), tmp_path, width, scheme)
    assert seen.fits
    assert 10 < seen.letters < 20
    assert report.verdict in seen.text
    assert not seen.complaints


def test_items_tell_their_switches(failing: Report) -> None:
    found = {item.id: item.switches for check in failing.checks for item in check.items}
    assert found["forward.switches[float32-plain]"] == ""
    assert found["forward.switches[float32-reverse]"] == "reverse=True"
    assert found["forward.switches[float32-forget_from_input,peephole]"] == "peephole=True, coupling=forget_from_input"


def test_a_verdict_names_what_is_declared_and_was_not_tested(passing: Report) -> None:
    assert passing.verdict.endswith("; declared and not tested: " + ", ".join(passing.untested))
    assert passing.untested
    reasons = dict.fromkeys(passing.untested, "no")
    assert "not tested" not in replace(passing, undeclared=passing.undeclared | reasons).verdict


def test_the_page_tells_the_seed(passing: Report) -> None:
    assert f"seed {passing.seed}, {passing.max_examples} examples" in Text(page(passing)).text
