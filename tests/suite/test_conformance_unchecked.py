"""What the suite cannot check on a backend: it says so with a reason, and looks in another way where there is one."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import groupby
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from lstmcore.backend import Capabilities, Gradients, State
from lstmcore_conformance import Outcome, Report, run
from lstmcore_conformance.json_files import check_schema
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel
from lstmcore_conformance.render.junit import junit
from lstmcore_conformance.render.report_page import page
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.changes import changes
from lstmcore_conformance.suite.expected_failures import untried
from lstmcore_conformance.suite.report import Result
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
    assert "do not tell what is read-only or overlaps" in messages(report, "errors.out").pop()


# What is declared -----------------------------------------------------------------------------------------------------


class _Forward(NaiveBackend):
    """Runs forwards alone; with `lengths` and all else it declares every feature but the reversed direction."""

    def capabilities(self) -> Capabilities:
        declared = super().capabilities()
        features = declared.features - {"reverse"}
        return replace(declared, precisions=frozenset({"float32"}), features=features, derivatives=frozenset())


def test_a_property_that_needs_an_undeclared_model_is_told() -> None:
    report = run(_Forward(), select="drawn.reversed or weights.no_derivatives")
    assert set(outcomes(report).values()) == {Outcome.NOT_CHECKED}
    assert "refuses the other direction: reverse" in messages(report, "drawn.reversed").pop()
    assert messages(report, "weights.no_derivatives") == {"not checked, because no derivatives are declared"}


def test_refusals_of_a_backend_that_declares_all_are_told() -> None:
    report = run(NaiveBackend(), precisions=["float32"], select="refusals")
    found = {id: outcome for id, outcome in outcomes(report).items() if outcome is Outcome.NOT_CHECKED}
    assert set(found) == {"refusals.features", "refusals.calls"}
    assert outcomes(run(_Forward(), select="refusals.features"))["refusals.features"] is Outcome.PASSED


#: Checks of what a backend declares, and of what compiling refuses: they need no call.
CALLLESS = {"refusals.precisions", "declared.switches", "errors.numbers"}


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
    assert report.verdict.startswith("remote passes 1 selected case in float32")
    assert (report.count, report.bad) == (1, ())


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
