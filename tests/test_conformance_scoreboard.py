"""The scoreboard: one row a report, nothing said that did not run, what is refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lstmcore.config import FEATURES
from lstmcore.registry import get_backend
from lstmcore_conformance import run
from lstmcore_conformance.scoreboard import load, main, scoreboard


def check(id: str, share: float | str | None) -> dict[str, Any]:
    return {"id": id, "worst": None if share is None else {"share": share}}


def report(backend: str = "mine", **changes: Any) -> dict[str, Any]:
    return {
        "schema": "lstmcore-conformance",
        "version": 1,
        "backend": backend,
        "conforms": True,
        "selection": None,
        "profile": "quick",
        "precisions": ["float32", "float64"],
        "features": ["lengths", "reverse"],
        "derivatives": ["backward"],
        "undeclared": {"tf32": "no", "bfloat16": "no", "float16": "c|d <e>\nf", "jvp": "no"},
        "versions": {"lstmcore": "1", "peer": "2.5"},
        "machine": "Linux",
        "started": "2026-01-02T03:04:05+00:00",
        "counts": {"passed": 7, "unsupported": 3},
        "checks": [check("a.small", 0.25), check("a.none", None), check("b.large", 0.5)],
    } | changes


def row(page: str, backend: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {backend} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_row_tells_what_was_run() -> None:
    assert row(scoreboard([report()]), "mine") == [
        "mine",
        "lstmcore 1, peer 2.5",
        "float64, float32",
        "backward",
        f"2 of {len(FEATURES)}: lengths, reverse",
        "all 7 of the quick profile",
        "0.5 (b.large)",
        "2026-01-02, Linux",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"conforms": False, "counts": {"passed": 7, "failed": 2, "error": 1}}, "does not conform: 3 of 10 failed"),
        ({"conforms": False, "counts": {}}, "does not conform: 0 of 0 failed"),
        ({"selection": "forward"}, "7 of a selection, not of the suite"),
        ({"precisions": ["float32"]}, "7; float64 declared, not run"),
        ({"profile": "full"}, "all 7 of the full profile"),
    ],
)
def test_a_row_says_no_more_than_what_ran(changes: dict[str, Any], told: str) -> None:
    assert row(scoreboard([report(**changes)]), "mine")[5] == told


@pytest.mark.parametrize(
    ("share", "told"), [("inf", "inf (c)"), ("nan", "inf (c)"), (0.75, "0.75 (c)"), (0, "0.5 (b)")]
)
def test_the_worst_share_is_the_largest(share: float | str, told: str) -> None:
    page = scoreboard([report(checks=[check("b", 0.5), check("c", share)])])
    assert row(page, "mine")[6] == told


def test_all_switches_and_nothing_refused() -> None:
    page = scoreboard([report(features=sorted(FEATURES), undeclared={})])
    assert row(page, "mine")[4] == f"all {len(FEATURES)}"
    assert page.endswith("### mine\n\nNothing.\n")


def test_reasons_are_grouped_and_cannot_break_the_page() -> None:
    page = scoreboard([report()])
    assert "- tf32, bfloat16, jvp: no\n" in page
    assert "- float16: c\\|d \\<e\\> f\n" in page
    assert row(scoreboard([report(versions={"a|b": "1\n2"})]), "mine")[1] == "a\\|b 1 2"


def test_rows_are_in_order_and_a_refusal_is_told_once() -> None:
    later = report(started="2026-02-01T00:00:00+00:00")
    page = scoreboard([report("z"), later, report()])
    dates = [line.split(" | ")[-1] for line in page.splitlines() if line.startswith("| mine")]
    assert dates == ["2026-01-02, Linux |", "2026-02-01, Linux |"]
    assert page.index("| mine") < page.index("| z")
    assert page.count("### mine") == 1


def test_real_reports_make_a_page(tmp_path: Path) -> None:
    path, page = tmp_path / "one.json", tmp_path / "page.md"
    run(get_backend("reference"), select="forward.no_state").write_json(path)
    found = CliRunner().invoke(main, [str(path), "--out", str(page)])
    assert found.exit_code == 0, found.output
    assert row(page.read_text(), "reference")[5].endswith("of a selection, not of the suite")
    assert CliRunner().invoke(main, [str(path)]).output == page.read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "expected a report in JSON"),
        ("[]", "expected a report of 'lstmcore conform --json'"),
        (json.dumps({"schema": "lstmcore-conformance", "version": 99}), "newer lstmcore"),
        (json.dumps(report(counts=3)), "counts is missing or is of another type"),
        (json.dumps({name: value for name, value in report().items() if name != "checks"}), "checks is missing"),
    ],
)
def test_another_file_is_an_error_that_names_it(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json") as caught:
        load(path)
    assert told in str(caught.value)
    found = CliRunner().invoke(main, [str(path), "--out", str(tmp_path / "page.md")])
    assert found.exit_code == 2
    assert told in found.output
    assert not (tmp_path / "page.md").exists()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, [str(tmp_path / "none.json")])
    assert found.exit_code == 2
    assert "none.json" in found.output
