"""Failures that are expected: told as such, and strict."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from lstmcore.cli import main
from lstmcore_conformance import run
from lstmcore_conformance.mutants import MUTANTS
from lstmcore_conformance.oracle.naive import NaiveBackend
from lstmcore_conformance.render.badge import badge
from lstmcore_conformance.render.junit import junit
from lstmcore_conformance.render.report_page import page
from lstmcore_conformance.suite.expected_failures import judged, load, untried
from lstmcore_conformance.suite.report import ItemReport, Outcome, Result

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
    report = run(NaiveBackend(), precisions=["float32"], select=CHECK, expected_failures={id: "was broken"})
    assert not report.conforms
    (item,) = report.bad
    assert item.message.startswith("expected to fail (was broken), and ")
    assert item.message.endswith("take it off the expected failures")


def items(**outcomes: Outcome) -> list[ItemReport]:
    return [ItemReport(f"{CHECK}[{name}]", name, outcome, message="said") for name, outcome in outcomes.items()]


@pytest.mark.parametrize("id", [CHECK, f"{CHECK}[a]"])
def test_what_the_suite_could_not_run_is_no_expected_failure(id: str) -> None:
    found = judged(items(a=Outcome.ERROR, b=Outcome.PASSED), {id: "known"})
    assert [item.outcome for item in found] == [Outcome.ERROR, Outcome.PASSED]
    assert found[0].message == "expected to fail (known), and the suite could not run it: said"


def test_a_left_out_case_hides_no_unexpected_pass() -> None:
    """A case that is left out does not hide an expected failure that passes."""
    found = judged(items(a=Outcome.PASSED, b=Outcome.UNSUPPORTED), {CHECK: "known"})
    assert [item.outcome for item in found] == [Outcome.FAILED, Outcome.UNSUPPORTED]
    assert "every case of forward.no_state passes" in found[0].message


def test_a_check_of_which_some_cases_pass_fails_as_expected() -> None:
    found = judged(items(a=Outcome.FAILED, b=Outcome.PASSED), {CHECK: "known"})
    assert [item.outcome for item in found] == [Outcome.EXPECTED, Outcome.PASSED]


def test_expected_failures_that_did_not_run_are_known() -> None:
    results = items(a=Outcome.PASSED, b=Outcome.UNSUPPORTED, c=Outcome.ERROR)
    left = dict.fromkeys((f"{CHECK}[b]", f"{CHECK}[d]", "rows.nan"), "why")
    assert untried(results, left | dict.fromkeys((CHECK, f"{CHECK}[a]", f"{CHECK}[c]"), "why")) == left


@pytest.mark.parametrize("choice", [{"profile": "smoke"}, {"select": "forward.switches and not peephole"}])
def test_nothing_follows_from_a_part_of_a_check(choice: dict[str, str]) -> None:
    """A check that fails in some cases is expected to fail; where those are left out, it may pass."""
    known = {"forward.switches": "the peephole of f is left out"}
    given: Any = {"select": "forward.switches", "precisions": ["float32"], "expected_failures": known, **choice}
    report = run(MUTANTS["peephole.f_dropped"].make(), **given)
    assert report.result is Result.PARTIAL
    assert run(
        MUTANTS["peephole.f_dropped"].make(), **(given | {"select": "forward.switches", "profile": "quick"})
    ).expected


def test_an_unknown_id_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected failures: expected ids of checks or items; got forward\.nothing$"):
        run(NaiveBackend(), select=CHECK, expected_failures={"forward.nothing": "no such check"})


@pytest.mark.slow  # the whole suite of one precision: 40 seconds
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


@pytest.mark.parametrize(
    "text", ["[", "forward.no_state = 'dots need quotes'", '"a" = ""', '"a" = 3', '"a" = ' + "[" * 3000], ids=range(5)
)
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
        from lstmcore_conformance.oracle.naive import NaiveBackend

        class TestRight(LSTMConformance):
            backend, precisions, profile = NaiveBackend(), ["float64"], "smoke"

        class TestKnown(LSTMConformance):
            backend, precisions = MUTANTS["contract.receipt_of_another"].make(), ["float32"]
            expected_failures = {"receipts.true": "another name", "forward.no_state": "mended"}
        """
    )
    found = pytester.runpytest_subprocess(
        "-p", "no:randomly", "-q", "-k", "no_state or receipts.true or expected_failures_fail"
    )
    counts = found.parseoutcomes()
    assert counts["xfailed"] == 1
    assert counts["failed"] == 1
    found.stdout.fnmatch_lines(["*expected to fail (mended), and every case of forward.no_state passes*"])


def test_the_class_of_tests_is_strict(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from dataclasses import replace
        from lstmcore_conformance import testing
        from lstmcore_conformance.suite.report import Outcome
        from lstmcore_conformance.oracle.naive import NaiveBackend

        run_item = testing.run_item

        def broken(tested, item):
            found = run_item(tested, item)
            return replace(found, outcome=Outcome.ERROR, message="own fault") if "proj_size" in found.id else found

        testing.run_item = broken

        class Narrow(NaiveBackend):
            name = "narrow"

        class TestMade(testing.LSTMConformance):
            precisions, profile, seed, max_examples = ["float64"], "smoke", 7, 2
            expected_failures = {"forward.no_state[float64-no_state,proj_size]": "hard", "rows.nan": "not selected",
                                 "forward.long": "not in the profile"}

            def make_backend(self):
                return Narrow()

            def test_the_backend_is_the_one_that_was_made(self):
                assert type(self)._tested.backend.name == "narrow"
                assert type(self)._tested.draws.options == " --seed 7 --max-examples 2"
        """
    )
    found = pytester.runpytest_subprocess(
        "-p", "no:randomly", "-rs", "-k", "ward.no_state or expected_failures_fail or was_made"
    )
    counts = found.parseoutcomes()
    assert (counts["failed"], counts["skipped"]) == (2, 1)
    assert "xfailed" not in counts
    found.stdout.fnmatch_lines(["*expected to fail (hard), and the suite could not run it: own fault*"])
    found.stdout.fnmatch_lines(["SKIPPED*expected failures that did not run: rows.nan, forward.long"])


@pytest.mark.slow  # two workers of pytest-xdist: four to eight seconds
def test_worker_processes_refuse_expected_failures(pytester: pytest.Pytester) -> None:
    """The class of tests says that worker processes do not know each other's results."""
    pytester.makepyfile(
        """
        from lstmcore_conformance.testing import LSTMConformance
        from lstmcore_conformance.oracle.naive import NaiveBackend

        class TestMine(LSTMConformance):
            backend, precisions, profile = NaiveBackend(), ["float64"], "smoke"
            expected_failures = {"forward.no_state": "mended"}
        """
    )
    found = pytester.runpytest_subprocess(
        "-p", "no:randomly", "-n", "2", "-rs", "-k", "no_state or expected_failures_fail"
    )
    assert "failed" not in found.parseoutcomes()
    found.stdout.fnmatch_lines(["SKIPPED*run without pytest-xdist*"])


def test_an_id_outside_the_selection_is_told() -> None:
    left = {"state.long": "slow", "rows.nan": "x", "forward.switches[float16-plain]": "another precision"}
    report = run(NaiveBackend(), precisions=["float32"], select=CHECK, expected_failures=left)
    assert report.conforms
    assert report.untried == left
    assert report.verdict.endswith("; 3 expected failures did not run")
    assert report.to_dict()["untried"] == left
    written = io.StringIO()
    report.show(Console(file=written, width=120))
    for id, reason in left.items():
        assert f"EXPECTED FAILURE THAT DID NOT RUN {id}\n  {reason}" in written.getvalue()
        assert id in page(report)
