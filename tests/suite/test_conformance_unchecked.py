"""What the suite cannot check on a backend: it says so with a reason, and looks in another way where there is one."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from lstmcore.backend import Capabilities, Forward, Gradients, State, UnsupportedError
from lstmcore.config import LSTMConfig
from lstmcore.precision import PRECISIONS, Precision
from lstmcore_conformance import Outcome, Report, run
from lstmcore_conformance.json_files import check_schema
from lstmcore_conformance.mutants import backend_of
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel
from lstmcore_conformance.render.junit import junit
from lstmcore_conformance.render.report_page import page
from lstmcore_conformance.scoreboard.board import of_report, section_cell, verdict
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.changes import changes, read_report
from lstmcore_conformance.suite.expected_failures import judged, untried
from lstmcore_conformance.suite.report import REPORT_VERSION, ItemReport, Result
from lstmcore_conformance.suite.runner import items, run_item
from remote_arrays import Frozen, RemoteKernel, remote

#: Cases of one layer: the core's composition of a stack needs whole array libraries.
PLAIN = "contract,plain or memory,plain"


def outcomes(report: Report) -> dict[str, Outcome]:
    return {check.id: check.outcome for check in report.checks}


def messages(report: Report, check: str) -> set[str]:
    return {item.message for _, item in report.items(Outcome.NOT_CHECKED) if item.id.startswith(f"{check}[")}


# Arrays of a device ---------------------------------------------------------------------------------------------------

MEMORY = "inputs.refilled or pack.copies or tape.owns or outputs.fresh or outputs.apart or outputs.kept"


def test_arrays_that_can_be_written_to_are_checked() -> None:
    report = run(remote(), select=f"({MEMORY}) and ({PLAIN})")
    assert set(outcomes(report).values()) == {Outcome.PASSED}
    assert len(report.checks) == 6


def test_arrays_that_cannot_be_written_to_are_told() -> None:
    report = run(remote(Frozen), select=f"({MEMORY}) and ({PLAIN})")
    assert outcomes(report).pop("outputs.kept") is Outcome.PASSED
    others = {id: outcome for id, outcome in outcomes(report).items() if id not in ("outputs.kept", "tape.owns")}
    assert set(others.values()) == {Outcome.NOT_CHECKED}
    assert messages(report, "inputs.refilled") == {
        "not checked, because arrays of type Frozen cannot be written to: arrays are immutable"
    }


def _freeze(self: Any, state: State) -> State:
    return State(*(Frozen(array) for array in state))


def _keep_x(self: Any, weights: Any, x: Any, *rest: Any, **options: Any) -> Any:
    self.x = x
    return RemoteKernel._forward(self, weights, x, *rest, **options)


def _read_x(self: Any, *arguments: Any) -> Gradients:
    gradients = RemoteKernel._backward(self, *arguments)
    gradients.x[...] = gradients.x.memory + 0 * self.x.memory.sum()
    return gradients


def test_each_array_is_overwritten_or_named() -> None:
    """One that can be written to does not stand for others, and a fault that it shows is told."""
    select = "tape.owns and memory,plain and not lengths"
    report = run(remote(_put=_freeze), select=select)
    assert messages(report, "tape.owns") == {
        "not checked, because arrays of type Frozen cannot be written to: arrays are immutable (h_n, c_n); "
        "with the other 4 overwritten all is right"
    }
    faulty = run(remote(_put=_freeze, _forward=_keep_x, _backward=_read_x), select=select)
    assert outcomes(faulty) == {"tape.owns": Outcome.FAILED}


def _spoil_y(self: Any, weights: Any, x: Any, *rest: Any, **options: Any) -> Any:
    y, last, tape = RemoteKernel._forward(self, weights, x, *rest, **options)
    shared = self.__dict__.setdefault("shared", {}).setdefault(y.shape, y)
    shared[...] = y
    return shared, last, tape


def _state_in_y(self: Any, *arguments: Any, **options: Any) -> Any:
    y, last, tape = RemoteKernel._forward(self, *arguments, **options)
    return y, State(y[-1], last.c) if len(y.memory) and np.array_equal(y.memory[-1], last.h.memory) else last, tape


def _gradient_in_dy(self: Any, weights: Any, saved: Any, dy: Any, dstate: Any) -> Gradients:
    gradients = RemoteKernel._backward(self, weights, saved, dy, dstate)
    dstate.h[...] = gradients.state.h
    return gradients._replace(state=State(dstate.h, gradients.state.c))


@pytest.mark.parametrize(
    ("check", "methods"),
    [
        ("outputs.kept", {"_forward": _spoil_y}),
        ("outputs.fresh", {"_forward": _spoil_y}),
        ("outputs.apart", {"_forward": _state_in_y}),
        ("outputs.fresh", {"_backward": _gradient_in_dy}),
    ],
)
def test_shared_memory_of_a_device_is_seen(check: str, methods: dict[str, Any]) -> None:
    """Copies on the host never share memory: the arrays of the device are written to and read again."""
    report = run(remote(**methods), select=f"{check} and ({PLAIN})")
    assert outcomes(report) == {check: Outcome.FAILED}


def test_a_layout_that_a_device_does_not_keep_is_told() -> None:
    """Slices of the device keep strides. A copy to it is aligned, writable and contiguous."""
    layouts = "inputs.read_only or inputs.strided or inputs.transposed or inputs.unaligned or inputs.broadcast"
    report = run(remote(), select=f"({layouts}) and contract,plain and not (T=0 or T=1)")
    kept = {"inputs.strided", "inputs.transposed"}
    assert {id for id, outcome in outcomes(report).items() if outcome is Outcome.PASSED} == kept
    assert {id for id, outcome in outcomes(report).items() if outcome is Outcome.NOT_CHECKED} == {
        "inputs.read_only",
        "inputs.unaligned",
        "inputs.broadcast",
    }
    frozen = run(remote(Frozen), select="inputs.strided and contract,plain and not (T=0 or T=1)")
    assert "strides" in messages(frozen, "inputs.strided").pop()


def test_the_layouts_that_can_be_checked_are() -> None:
    report = run(remote(), select="inputs.layouts and memory,plain")
    assert {message.partition(":")[0] for message in messages(report, "inputs.layouts")} == {
        "not checked, because alignment to one number"
    }
    assert all("3 of 4 layouts were checked" in message for message in messages(report, "inputs.layouts"))

    def flipped(self: Any, weights: Any, x: Any, *rest: Any, **options: Any) -> Any:
        wrong = min(x.strides) < 0
        return RemoteKernel._forward(self, weights, x[::-1] if wrong else x, *rest, **options)

    assert run(remote(_forward=flipped), select="inputs.layouts and memory,plain").bad


def test_a_device_does_not_tell_what_overlaps() -> None:
    report = run(remote(), select="errors.out")
    assert "do not tell what overlaps" in messages(report, "errors.out").pop()


# What is declared -----------------------------------------------------------------------------------------------------


class _Forward(NaiveBackend):
    """Runs forwards alone; with `lengths` and all else it declares every feature but the reversed direction."""

    def capabilities(self) -> Capabilities:
        declared = super().capabilities()
        features = declared.features - {"reverse"}
        return replace(declared, precisions=frozenset({"float32"}), features=features, derivatives=frozenset())


class _ForwardAlone(NaiveBackend):
    """Declares the reversed direction, and refuses it with a reason."""

    def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
        return "reverse: not today" if config.reverse else super().refusal(config, precision)


def test_a_property_that_needs_a_model_that_is_refused_is_told() -> None:
    report = run(_ForwardAlone(), precisions=["float32"], select="drawn.reversed")
    assert outcomes(report) == {"drawn.reversed": Outcome.NOT_CHECKED}
    assert "refuses the other direction: reverse: not today" in messages(report, "drawn.reversed").pop()
    assert outcomes(run(_Forward(), select="drawn.reversed")) == {"drawn.reversed": Outcome.UNSUPPORTED}


@pytest.mark.parametrize("check", ["refusals.features", "refusals.calls", "weights.no_derivatives"])
@pytest.mark.parametrize("backend", [NaiveBackend, _Forward])
def test_refusals_are_checked_whatever_is_declared(check: str, backend: type[NaiveBackend]) -> None:
    """A backend that declares all has nothing to refuse: what it declares must run."""
    report = run(backend(), precisions=["float32"], select=check)
    assert outcomes(report) == {check: Outcome.PASSED}
    assert report.conforms


class _RefusesJvp(NaiveKernel):
    def _jvp(self, *_: Any) -> Any:
        raise UnsupportedError("jvp: not today")


def test_a_call_that_is_declared_and_refused_fails() -> None:
    report = run(backend_of(_RefusesJvp), precisions=["float32"], select="refusals.calls")
    (item,) = report.bad
    assert item.message == "a call with jvp, which is declared, raised UnsupportedError: jvp: not today"


def test_a_tape_of_rounded_weights_is_refused_without_derivatives_too() -> None:
    class Silent(NaiveKernel):
        def forward(self, *arguments: Any, record: bool = False, **options: Any) -> Forward:  # type: ignore[misc]
            return super().forward(*arguments, **options)

    report = run(backend_of(Silent, _Forward), select="weights.no_derivatives")
    assert outcomes(report) == {"weights.no_derivatives": Outcome.FAILED}


#: Checks of what a backend declares, and of what compiling refuses: they need no call.
CALLLESS = {"refusals.precisions", "refusals.features", "declared.switches", "errors.numbers"}


@pytest.mark.slow  # a case of nearly every check: nine seconds beside other work
def test_a_case_that_passes_has_called_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that passes without a call has looked at nothing; the first case of each check that is not dear."""
    calls = []
    for name in ("_forward", "_backward", "_jvp", "_pack", "receipt"):
        original = getattr(NaiveKernel, name)

        def counted(self: Any, *arguments: Any, original: Any = original, **options: Any) -> Any:
            calls.append(self)
            return original(self, *arguments, **options)

        monkeypatch.setattr(NaiveKernel, name, counted)
    tested, silent = BackendUnderTest(NaiveBackend(), Draws(max_examples=2)), set()
    dear = "large or rows or many or closed or memory or threads or far or surroundings or sums or cell"
    every = items(tested, ["float32"], f"not ({dear})", "smoke")
    for _, group in groupby(every, lambda item: item.check.id):
        calls.clear()
        item = next(group)
        if run_item(tested, item).outcome is Outcome.PASSED and not calls:
            silent.add(item.check.id)
    assert silent == CALLLESS


# How it is shown ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> Report:
    return run(remote(Frozen), select="(pack.copies or outputs.kept) and contract,plain and not (T=0 or T=1)")


def test_the_verdict_counts_what_ran(report: Report) -> None:
    assert report.result is Result.PARTIAL  # since it is a selection
    assert report.verdict == (
        "remote passes 1 selected case in float32; the suite was not run as a whole; 1 case could not be checked"
    )
    assert (report.count, report.bad) == (1, ())
    whole = replace(report, selection=None)
    assert whole.result is Result.CONFORMS
    assert whole.verdict == (
        "remote conforms in float32: 1 case of the quick profile passed; 1 case could not be checked"
    )


def test_a_run_that_could_check_nothing_says_why(report: Report) -> None:
    """It is no backend that declares nothing."""
    copies = tuple(check for check in report.checks if check.id == "pack.copies")
    nothing = replace(report, checks=copies)
    assert nothing.result is Result.NOTHING
    assert nothing.verdict == (
        "nothing was tested of remote: 1 case could not be checked, because arrays of type Frozen cannot be written "
        "to: arrays are immutable"
    )
    capped = run(remote(), select="large.widths", max_work=1)
    assert "(--max-work) did not run" in capped.verdict
    assert capped.verdict.startswith("nothing was tested of remote: ")


def test_json_says_what_was_not_checked(report: Report) -> None:
    values = json.loads(report.to_json())
    check_schema("report.json", values, "lstmcore-conformance")
    copies = next(check for check in values["checks"] if check["id"] == "pack.copies")
    assert copies["outcome"] == "not checked"
    assert (copies["cases"], copies["unsupported"], copies["not_checked"]) == (0, 0, 1)
    assert values["counts"] == {"passed": 1, "not checked": 1}
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        check_schema("report.json", values | {"counts": {"skipped": 1}}, "lstmcore-conformance")


def test_terminal_page_and_junit_say_why(report: Report) -> None:
    reason = "not checked, because arrays of type Frozen cannot be written to: arrays are immutable"
    console = Console(file=io.StringIO(), width=120)
    report.show(console)
    assert isinstance(console.file, io.StringIO)
    assert f"{reason}:\n  pack.copies" in console.file.getvalue()
    assert f"<dt><code>pack.copies[float32-contract,plain]</code></dt><dd>{reason}</dd>" in page(report)
    assert 'class="unchecked"' in page(report)
    skipped = ElementTree.fromstring(junit(report)).findall(".//skipped")
    assert [each.get("message") for each in skipped] == [reason]


def test_what_was_not_checked_counts_as_not_run(report: Report) -> None:
    items = [item for check in report.checks for item in check.items]
    assert untried(items, {"pack.copies": "copies", "outputs.kept": "kept"}) == {"pack.copies": "copies"}
    assert changes(report.to_dict(), replace(report, checks=report.checks[:0])).gone == (
        "outputs.kept[float32-contract,plain]",
    )


def test_an_expected_failure_may_be_in_a_case_that_was_not_checked(report: Report) -> None:
    """That all others pass says nothing of it."""
    passed, unchecked = (item for check in report.checks for item in check.items)
    if passed.outcome is not Outcome.PASSED:
        passed, unchecked = unchecked, passed
    second = replace(unchecked, id="outputs.kept[float32-other]")
    assert judged([passed, second], {"outputs.kept": "kept"}) == [passed, second]
    assert judged([passed], {"outputs.kept": "kept"})[0].outcome is Outcome.FAILED


# What changed ---------------------------------------------------------------------------------------------------------

COPIES = "pack.copies[float32-contract,plain]"


def with_outcome(report: Report, outcome: Outcome) -> Report:
    """Return the report with another outcome of the case of `pack.copies`."""

    def changed(item: ItemReport) -> ItemReport:
        return replace(item, outcome=outcome) if item.id == COPIES else item

    checks = (replace(check, items=tuple(map(changed, check.items))) for check in report.checks)
    return replace(report, checks=tuple(checks))


@pytest.mark.parametrize(
    ("before", "now", "group", "line"),
    [
        (Outcome.PASSED, Outcome.NOT_CHECKED, "unchecked", "1 case could not be checked, and ran before:"),
        (Outcome.FAILED, Outcome.NOT_CHECKED, "unchecked", "1 case could not be checked, and ran before:"),
        (Outcome.NOT_CHECKED, Outcome.PASSED, "checked", "1 case pass, and could not be checked before:"),
        (Outcome.NOT_CHECKED, Outcome.FAILED, "broken", "1 case fail and did not before:"),
        (Outcome.FAILED, Outcome.PASSED, "mended", "1 case pass and failed before:"),
        (Outcome.UNSUPPORTED, Outcome.PASSED, "new", "1 case were not in the earlier report:"),
        (Outcome.PASSED, Outcome.UNSUPPORTED, "gone", "1 case are not in this report:"),
        (Outcome.UNSUPPORTED, Outcome.NOT_CHECKED, "", "nothing changed"),
    ],
)
def test_a_case_that_was_or_is_not_checked_is_told(
    report: Report, before: Outcome, now: Outcome, group: str, line: str
) -> None:
    found = changes(with_outcome(report, before).to_dict(), with_outcome(report, now))
    groups = ("broken", "mended", "unchecked", "checked", "new", "gone")
    told = {name: getattr(found, name) for name in groups if getattr(found, name)}
    assert told == ({group: (COPIES,)} if group else {})
    assert found.lines()[0] == line


def test_a_report_of_version_1_is_read(report: Report, tmp_path: Path) -> None:
    """It has no such outcome: what could not be checked had passed."""
    old = with_outcome(report, Outcome.PASSED).to_dict() | {"version": 1}
    for check in old["checks"]:
        del check["not_checked"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert changes(read_report(tmp_path / "old.json"), report).unchecked == (COPIES,)
    (tmp_path / "old.json").write_text(json.dumps(old | {"version": 2}))
    with pytest.raises(ValueError, match="'not_checked' is a required property"):
        read_report(tmp_path / "old.json")
    (tmp_path / "old.json").write_text(json.dumps(old | {"version": REPORT_VERSION + 1}))
    with pytest.raises(ValueError, match="written by a newer lstmcore: upgrade"):
        read_report(tmp_path / "old.json")


def test_a_section_of_the_scoreboard_says_what_was_not_checked(report: Report) -> None:
    digest = of_report(report.to_dict())
    section = next(iter(digest["sections"]))
    assert section_cell(digest, section) == "1, 1 not checked"
    assert verdict(digest) == "1 of a selection, not of the suite; 1 not checked"
    assert verdict({**digest, "selection": None, "undeclared": {}, "precisions": [*PRECISIONS]}) == (
        "1 passed; 1 not checked"
    )
    nothing = of_report(with_outcome(replace(report, checks=report.checks[1:]), Outcome.NOT_CHECKED).to_dict())
    assert report.checks[1].id == "pack.copies"
    assert section_cell(nothing, section) == "1 not checked"
    assert verdict(nothing) == "nothing tested; 1 not checked"
