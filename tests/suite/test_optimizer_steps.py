"""The checks of `Backend.updates`: right ones pass in every dtype, and a backend has cases for what it declares."""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lstmcore import updates as interface
from lstmcore.backend import Array, Capabilities, Formula
from lstmcore.training import SGD, Adam, AdamW, Optimizer
from lstmcore_conformance import run
from lstmcore_conformance.checks.optimizer_steps import step
from lstmcore_conformance.mutants.wrong_updates import HostUpdates, backend_with, joined
from lstmcore_conformance.oracle.naive import NaiveBackend
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest
from lstmcore_conformance.suite.runner import items, scope_of


def test_right_updates_pass_in_every_dtype() -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")

    class Wide(NaiveBackend):
        def capabilities(self) -> Capabilities:
            declared = super().capabilities()
            return replace(declared, precisions=declared.precisions | {"bfloat16"})

        def updates(self) -> HostUpdates:
            return HostUpdates()

    report = run(Wide(), select="updates")
    assert not report.bad
    ran = {(item.precision, item.case.partition("updates,")[2]) for check in report.checks for item in check.items}
    assert {precision for precision, _ in ran} == {"float64", "float32", "bfloat16", "float16"}
    assert len(ran) == 4 * 12
    shares = [item.worst.share for check in report.checks for item in check.items if item.worst is not None]
    assert 0 < max(shares) < 0.5


def test_a_norm_by_a_running_sum_is_right() -> None:
    """As a loop in C has it. Its norm was within the budget, and the gradients that were scaled by it were not."""

    class Running(HostUpdates):
        def norm(self, gradients: Sequence[Array]) -> Array:
            total = 0.0
            for number in joined(gradients)[::-1].astype(np.float64).tolist():
                total += number * number
            return np.asarray(np.sqrt(total))

    report = run(backend_with(Running), precisions=["float64", "float32"], select="updates.clip")
    assert not report.bad
    worst = [item.worst.share for check in report.checks for item in check.items if item.worst is not None]
    assert len(worst) == 4 and max(worst) < 0.5


def test_the_example_of_the_interface_is_right() -> None:
    """It left out weight decay and momentum, which its formula has, and its norm was no array of float64."""
    names: dict[str, Any] = {**vars(interface), "np": np}
    for example in doctest.DocTestParser().get_examples(interface.Updates.__doc__ or ""):
        if example.source.startswith("class"):
            exec(example.source, names)
    report = run(backend_with(names["OnHost"]), precisions=["float64", "float32"], select="updates")
    assert {check.id for check in report.checks if check.items} == {"updates.clip"}
    assert not report.bad


def test_only_what_is_declared_has_cases() -> None:
    class Some(HostUpdates):
        def refusal(self, formula: str | None, dtype: str) -> str | None:
            return None if formula != "adam" and dtype == "float32" else "it is not written"

    assert scope_of(BackendUnderTest(NaiveBackend())).updates == frozenset()
    tested = BackendUnderTest(backend_with(Some))
    assert scope_of(tested).updates == {("sgd", "float32"), ("clip", "float32")}
    cases = [item.case for item in items(tested, select="updates")]
    assert {case.precision for case in cases if case} == {"float32"}
    assert not any("adam" in case.name for case in cases if case)
    assert not list(items(BackendUnderTest(NaiveBackend()), select="updates.steps or updates.clip"))


def test_an_error_is_a_failure_of_the_backend() -> None:
    class Broken(HostUpdates):
        def norm(self, gradients: object) -> np.ndarray:
            raise RuntimeError("no such kernel")

    report = run(backend_with(Broken), precisions=["float32"], select="updates.clip")
    assert {item.outcome.value for item in report.bad} == {"failed"}
    assert "raised RuntimeError: no such kernel" in report.bad[0].message


@pytest.mark.parametrize(
    "rule",
    [SGD(0.1, weight_decay=0.1), SGD(0.1, momentum=0.9, nesterov=True), Adam(0.1, weight_decay=0.2), AdamW(0.1)],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
def test_the_formulas_are_those_of_the_optimizers(rule: Optimizer) -> None:
    """The oracle of the checks beside the library's own steps, on the host in float64."""
    random = np.random.default_rng(0)
    p, moments = random.standard_normal(50), [np.zeros(50) for _ in rule.moments]
    moved = {"p": p}
    for number in range(1, 4):
        g = random.standard_normal(50)
        formula = rule._formula(number)
        assert isinstance(formula, Formula)
        right = step(formula, np.float64, p, g, moments)
        moved = rule.step(moved, {"p": g})
        np.testing.assert_allclose(moved["p"], right["p"], rtol=1e-13, atol=1e-15)
        p, moments = right["p"], [right[name] for name in ("m", "v")[: len(moments)]]
