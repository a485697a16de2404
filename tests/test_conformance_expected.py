"""Failures that are expected: told as such, and strict."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lstmcore.cli import main
from lstmcore_conformance import run
from lstmcore_conformance.badge import badge
from lstmcore_conformance.expected import load
from lstmcore_conformance.junit import junit
from lstmcore_conformance.mutants import MUTANTS
from lstmcore_conformance.page import page
from lstmcore_conformance.report import Outcome
from lstmcore_conformance.textbook import TextbookBackend

FAULT, CHECK = "contract.dtype_wider", "forward.no_state"
ITEM = f"{CHECK}[float32-no_state,plain]"
pytest_plugins = ("pytester",)


@pytest.mark.parametrize("id", [CHECK, ITEM])
def test_an_expected_failure_is_told_and_does_not_count(id: str) -> None:
    make = MUTANTS[FAULT].make
    report = run(make(), precisions=["float32"], select=id, expected_failures={id: "wider on purpose"})
    assert {item.outcome for check in report.checks for item in check.items} == {Outcome.EXPECTED}
    assert report.conforms
    assert not report.bad
    item = report.checks[0].items[0]
    assert item.message.startswith("expected (wider on purpose): ")
    assert item.message.split(": ", 1)[1] in page(report)
    assert "wider on purpose" in junit(report)
    assert "partial" in badge(report)


@pytest.mark.parametrize("id", [CHECK, ITEM])
def test_an_expected_failure_that_passes_is_a_failure(id: str) -> None:
    report = run(TextbookBackend(), precisions=["float32"], select=CHECK, expected_failures={id: "was broken"})
    assert not report.conforms
    (item,) = report.bad
    assert item.message.startswith("expected to fail (was broken), and ")
    assert item.message.endswith("take it off the expected failures")


def test_an_unknown_id_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected failures: expected ids of checks or items; got forward\.nothing$"):
        run(TextbookBackend(), select=CHECK, expected_failures={"forward.nothing": "no such check"})


def test_the_whole_suite_says_how_many_were_expected() -> None:
    known = {CHECK: "not yet"}
    report = run(MUTANTS["contract.none_state"].make(), precisions=["float32"], select=None, expected_failures=known)
    others = {item.id.partition("[")[0] for item in report.bad}
    assert CHECK not in others
    assert any(item.outcome is Outcome.EXPECTED for check in report.checks for item in check.items)


def test_the_command_reads_them_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "known.toml"
    file.write_text(f'"{CHECK}" = "was broken once"\n')
    found = CliRunner().invoke(main, ["conform", "reference", "-k", CHECK, "--expected-failures", str(file)])
    assert found.exit_code == 1
    assert "expected to fail (was broken once)" in found.output


@pytest.mark.parametrize("text", ["[", "forward.no_state = 'dots need quotes'", '"a" = ""', '"a" = 3'])
def test_a_wrong_file_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    file = tmp_path / "known.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"known\.toml: "):
        load(file)


def test_a_class_of_tests_in_a_repository_of_ones_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from lstmcore_conformance.mutants import MUTANTS
        from lstmcore_conformance.testing import LSTMConformance
        from lstmcore_conformance.textbook import TextbookBackend

        class TestRight(LSTMConformance):
            backend, precisions = TextbookBackend(), ["float64"]

        class TestKnown(LSTMConformance):
            backend, precisions = MUTANTS["rows.first_row_everywhere"].make(), ["float32"]
            expected_failures = {}
        """.replace("rows.first_row_everywhere", "contract.receipt_of_another").replace(
            "expected_failures = {}",
            "expected_failures = {'receipts.true': 'another name', 'forward.no_state': 'mended'}",
        )
    )
    found = pytester.runpytest_subprocess("-q", "-k", "no_state or receipts or expected_failures_fail")
    counts = found.parseoutcomes()
    assert counts["xfailed"] == 1
    assert counts["failed"] == 1
    found.stdout.fnmatch_lines(["*expected to fail (mended), and every case of forward.no_state passes*"])


def test_an_id_outside_the_selection_is_known() -> None:
    report = run(
        TextbookBackend(),
        precisions=["float32"],
        select=CHECK,
        expected_failures={"state.long": "slow", "rows.nan": "x"},
    )
    assert report.conforms
