"""The runs of the conformance suite: which backends pass, outcomes, reports, profiles and selection."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lstmcore.backend import Backend, Capabilities, Kernel
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import Precision
from lstmcore_conformance import Outcome, Report, run
from lstmcore_conformance.mutants import MUTANTS, backend_of, edited
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.check import PROFILES, all_checks
from lstmcore_conformance.suite.report import Result
from lstmcore_conformance.suite.runner import Item, items
from lstmcore_conformance.suite.selection import selector
from lstmcore_reference.kernel import ReferenceBackend


@pytest.fixture(scope="module")
def naive() -> Report:
    return run(NaiveBackend())


@pytest.fixture(scope="module")
def report() -> Report:
    """Return the report of a part of the suite."""
    return run(NaiveBackend(), precisions=["float32"], select="state or sizes")


# What passes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # .ci/run has it all the same: the session conformance(backend='reference')
def test_the_reference_conforms() -> None:
    report = run(ReferenceBackend())
    assert not report.bad
    assert report.conforms
    assert {item.outcome for check in report.checks for item in check.items} == {Outcome.PASSED}


@pytest.mark.slow  # the whole suite in four precisions: two minutes
def test_the_naive_evaluation_conforms(naive: Report) -> None:
    assert [item.message for item in naive.bad] == []
    assert naive.precisions == ("float64", "float32", "tf32", "float16")
    quick = {check.id for check in all_checks() if check.runs_in("quick")}
    assert {check.id for check in naive.checks} == quick


@pytest.mark.slow  # the whole suite in four precisions: two minutes
def test_the_naive_evaluation_uses_a_sixth_of_its_budget(naive: Report) -> None:
    shares = [c.worst.worst.share for c in naive.checks if c.id.endswith(".switches") and c.worst and c.worst.worst]
    assert shares
    assert max(shares) <= 1 / budgets.SAFETY


class _TF32(Backend):
    """Declares TF32 and computes with products of TF32, or with better ones."""

    name = "tf32"

    def __init__(self, kernel: type[NaiveKernel]) -> None:
        self.kernel = kernel

    def capabilities(self) -> Capabilities:
        return Capabilities("cpu", frozenset({"tf32"}), FEATURES)

    def _compile(self, config: LSTMConfig, precision: Precision) -> Kernel:
        return self.kernel(self, config, precision)


def test_tf32_passes_where_it_is_declared() -> None:
    products = (
        'from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T',
        'from_x, from_h = _tf32(step.x) @ _tf32(p["weight_x"]).T, _tf32(step.recurrent) @ _tf32(p["weight_h"]).T',
    )
    kernel = type("K", (NaiveKernel,), {"equations": edited(products)})
    report = run(_TF32(kernel), select="forward.switches")
    assert report.conforms
    assert run(_TF32(NaiveKernel), select="forward.switches").conforms
    assert not run(backend_of(kernel), precisions=["float32"], select="forward.switches").conforms


# Outcomes -------------------------------------------------------------------------------------------------------------


class _Poor(NaiveBackend):
    """Has neither peephole nor lengths nor jvp."""

    name = "poor"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            "cpu",
            frozenset({"float32"}),
            FEATURES - {"peephole", "lengths"},
            frozenset({"backward"}),
            {"peephole": "no diagonal weights here", "jvp": "only backward"},
        )


@pytest.mark.slow  # most of the suite: 28 seconds
def test_what_is_not_declared_is_unsupported_with_the_reason() -> None:
    report = run(_Poor())
    assert [item.message for item in report.bad] == []
    found = {check.id: check for check in report.checks}
    assert found["jvp.switches"].outcome is Outcome.UNSUPPORTED
    assert found["jvp.switches"].items[0].message == "jvp: only backward"
    assert found["lengths.forward"].outcome is Outcome.UNSUPPORTED
    assert found["forward.switches"].outcome is Outcome.PASSED
    reasons = {item.message for item in found["forward.switches"].items if item.outcome is Outcome.UNSUPPORTED}
    assert reasons == {"peephole: no diagonal weights here"}
    assert found["refusals.features"].outcome is Outcome.PASSED
    assert found["forward.combinations"].ran == len(found["forward.combinations"].items)


def shown(report: Report, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    report.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_report_tells_every_reason_once() -> None:
    class Refusing(_Poor):
        def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
            if config.layer_norm and config.proj_size:
                return "layer_norm and proj_size: not together; not yet"
            return super().refusal(config, precision)

    report = run(Refusing(), select="switches or no_state or lengths")
    lines = shown(report)
    first = next(index for index, line in enumerate(lines) if line.startswith("not declared"))
    text = lines[first:-2]
    assert text[:8] == [
        "not declared, not implemented:",
        "  bfloat16, float16, float64, tf32, lengths",
        "not declared, no diagonal weights here:",
        "  peephole",
        "not declared, only backward:",
        "  jvp",
        text[6],
        "unsupported, layer_norm and proj_size: not together; not yet:",
    ]
    skipped = [item.message for check in report.checks for item in check.items if item.outcome is Outcome.UNSUPPORTED]
    refused = [message for message in skipped if "not together" in message]
    assert text[6] == f"left out: {len(skipped) - len(refused)} cases and checks that need what is not declared"
    counts = {
        check.id: count for check in report.checks if (count := sum("not together" in i.message for i in check.items))
    }
    assert 1 in counts.values()
    wanted = [f"{id} ({count} cases)" if count > 1 else id for id, count in counts.items()]
    assert " ".join(line.strip() for line in text[8:]) == ", ".join(wanted)
    assert max(map(len, text)) <= 80


def test_an_error_of_the_suite_is_not_a_failure_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("in the suite")

    check = next(check for check in all_checks() if check.id == "forward.no_state")
    monkeypatch.setattr("lstmcore_conformance.suite.runner.all_checks", lambda: (replace(check, run=broken),))
    report = run(NaiveBackend(), precisions=["float64"])
    assert {item.outcome for item in report.bad} == {Outcome.ERROR}
    assert not report.conforms


def test_not_implemented_is_a_failure() -> None:
    class Absent(NaiveKernel):
        def _backward(self, *_: Any) -> Any:
            raise NotImplementedError

    report = run(backend_of(Absent), precisions=["float32"], select="backward.no_state")
    assert {item.outcome for check in report.checks for item in check.items} == {Outcome.FAILED}
    assert "NotImplementedError" in report.bad[0].message


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"select": "nothing_is_called_so"}, "nothing_is_called_so"),
        ({"select": "a and"}, "-k"),
        ({"precisions": ["bfloat16"]}, "bfloat16"),
        ({"precisions": ["float48"]}, "float48"),
    ],
)
def test_a_run_of_nothing_is_an_error(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        run(NaiveBackend(), **arguments)


def test_progress_comes_before_every_item() -> None:
    seen: list[tuple[int, int, str]] = []
    run(NaiveBackend(), precisions=["float64"], select="errors.x", progress=lambda *given: seen.append(given))
    assert seen == [(0, 1, "errors.x[float64-mistakes]")]


# The report -----------------------------------------------------------------------------------------------------------


def test_the_json_has_every_check_and_comes_back(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.write_json(path)
    found = json.loads(path.read_text())
    assert (found["schema"], found["version"], found["conforms"]) == ("lstmcore-conformance", 2, True)
    assert [check["id"] for check in found["checks"]] == [check.id for check in report.checks]
    for check in found["checks"]:
        assert set(check) >= {"id", "claim", "section", "needs", "outcome", "cases", "unsupported", "worst", "items"}
    assert found["counts"] == {"passed": report.count}
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_cannot_be_written_leaves_nothing(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file in a folder that exists; got .*no_folder"):
        report.write_json(tmp_path / "no_folder" / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_an_infinite_share_is_json() -> None:
    class NaN(NaiveKernel):
        def _forward(self, *args: Any, **given: Any) -> Any:
            y, last, tape = super()._forward(*args, **given)
            y[..., 0] = np.nan
            return y, last, tape

    report = run(backend_of(NaN), precisions=["float32"], select="forward.switches[float32-plain]")
    worst = json.loads(report.to_json())["checks"][0]["worst"]
    assert (worst["share"], worst["got"], worst["array"]) == ("inf", "nan", "y")


def test_the_command_of_a_failure_selects_it_alone() -> None:
    tested = BackendUnderTest(NaiveBackend())
    every = list(items(tested))
    for item in every[:: len(every) // 40]:
        assert [found.id for found in items(tested, select=item.id)] == [item.id]


# Profiles -------------------------------------------------------------------------------------------------------------


#: Checks whose cases take too long for seconds in all: long sums and large sizes.
_DEAR = {"backward.rows", "receipts.sizes"} | {item.id for item in all_checks() if item.id.startswith("large.")}


def test_smoke_is_a_few_cases_of_each_check() -> None:
    """Every check but the slow ones has its first and its last case in each precision."""
    tested = BackendUnderTest(NaiveBackend())
    quick, smoke = list(items(tested)), {item.id: item for item in items(tested, profile="smoke")}
    assert [item.id for item in quick if item.id in smoke] == list(smoke)
    checks = {item.check.id for item in quick}
    assert checks - {item.check.id for item in smoke.values()} == _DEAR & checks
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in quick:
        groups.setdefault((item.check.id, item.case.precision if item.case else ""), []).append(item)
    for (check, _), group in groups.items():
        kept = {item.id for item in group} & set(smoke)
        if check not in _DEAR:
            assert len(kept) == min(len(group), 3)
            assert {group[0].id, group[-1].id} <= kept


@pytest.mark.parametrize("id", ["lengths.state_not_held", "stack.directions_swapped"])
def test_smoke_catches_what_is_broken(id: str) -> None:
    report = run(MUTANTS[id].make(), precisions=["float32"], profile="smoke", draws=Draws(max_examples=3, shrink=False))
    assert report.result is Result.FAILS


def test_smoke_has_a_case_of_each_check_that_runs() -> None:
    """Cases that the backend refuses are not taken in the place of those that it runs."""
    poor = BackendUnderTest(_Poor())
    run_in = {
        profile: {item.check.id for item in items(poor, profile=profile) if item.case and item.reason is None}
        for profile in PROFILES
    }
    assert run_in["quick"] - run_in["smoke"] == _DEAR & run_in["quick"]
    assert run_in["quick"] & _DEAR
    assert any(item.reason for item in items(poor, profile="smoke"))


def test_a_selection_of_smoke_has_cases_of_its_own() -> None:
    found = [
        item.id for item in items(BackendUnderTest(NaiveBackend()), ["float32"], "backward.switches and peep", "smoke")
    ]
    assert len(found) == 3
    assert all("peep" in id for id in found)


def test_an_unknown_profile_is_an_error() -> None:
    with pytest.raises(ValueError, match="profile: expected one of smoke, quick, full; got 'Smoke'"):
        run(NaiveBackend(), profile="Smoke")  # type: ignore[arg-type]  # the wrong value is what is tested


def test_smoke_is_no_verdict_on_a_backend() -> None:
    report = run(NaiveBackend(), precisions=["float16"], select="forward.no_state", profile="smoke")
    assert report.result is Result.PARTIAL
    whole = replace(report, selection=None)
    assert whole.result is Result.PARTIAL
    assert whole.verdict.startswith("naive passes 3 cases of the smoke profile in float16; the suite was not run")
    assert whole.max_examples == 3


# Selection ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("backward", True),
        ("BACKWARD", True),
        ("forward", False),
        ("backward and peephole", True),
        ("backward and not peephole", False),
        ("forward or peephole", True),
        ("not (forward or jvp)", True),
        ("(forward or backward) and float32", True),
        ("backward.switches[float32-peephole]", True),
        ("backward.switches[float64-peephole]", False),
        ("not backward or forward", False),
        ("section:3", True),
        ("section:4", False),
    ],
)
def test_selection(expression: str, selected: bool) -> None:
    assert selector(expression)("backward.switches[float32-peephole] section:3") is selected


@pytest.mark.parametrize("expression", ["", "and", "a and", "(a", "a)", "a b", "not", "]"])
def test_selection_that_is_not_well_formed(expression: str) -> None:
    with pytest.raises(ValueError, match="-k"):
        selector(expression)


class _Nameless(NaiveBackend):
    name = None  # type: ignore[assignment]  # the mistake


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NaiveBackend, r"got the class NaiveBackend$"),
        ("naive", r"expected an object of a class that inherits Backend; got str$"),
        (_Nameless(), r"backend: expected _Nameless\.name, a text; got none$"),
    ],
)
def test_what_is_no_backend_is_told(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(given)
