"""The suite against faults, and against right answers that are reached another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lstmcore_conformance import run
from lstmcore_conformance.cases.case import Case, Data
from lstmcore_conformance.cases.switches import config_of
from lstmcore_conformance.mutants import MUTANTS, Mutant, edited
from lstmcore_conformance.mutants.budget_experiment import PRECISIONS, VALUES
from lstmcore_conformance.mutants.equivalent import VARIANTS
from lstmcore_conformance.mutants.matrix import STANDS, goes_beyond, judge
from lstmcore_conformance.oracle.naive import NaiveBackend
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.check import Profile, all_checks
from lstmcore_conformance.suite.report import Outcome

CHECKS = {check.id: check for check in all_checks()}
#: What takes more than five seconds: very many steps, very many calls, many threads, and the checks of large sizes.
SLOW = {
    "hidden.after_many_steps",
    "hidden.drifts",
    "hidden.gradient_of_many_steps",
    "hidden.leaks",
    "hidden.running_bias",
    "kept.shared_by_models",
    *(id for id, mutant in MUTANTS.items() if mutant.caught_by.startswith("large.")),
}
#: One mutant of each check is quick. The others are slow: they take two minutes in all.
FIRST = {mutant.caught_by: id for id, mutant in reversed(MUTANTS.items())}


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=id, marks=pytest.mark.slow if id in SLOW or id != FIRST[mutant.caught_by] else ())
        for id, mutant in MUTANTS.items()
    ],
)
def test_the_mutant_is_caught(mutant: Mutant) -> None:
    profile: Profile = "quick" if CHECKS[mutant.caught_by].runs_in("quick") else "full"
    report = run(
        mutant.make(),
        precisions=[mutant.precision],
        select=mutant.selection,
        profile=profile,
        draws=Draws(shrink=False),
    )
    assert {check.id for check in report.checks} == {mutant.caught_by}
    assert report.bad
    assert {item.outcome for item in report.bad} == {Outcome.FAILED}
    for item in report.bad:
        assert item.message
        assert item.id in item.reproduce


@pytest.mark.slow  # 1,200 calls forward and backward: six seconds
def test_a_leak_does_not_hide_in_memory_that_is_free() -> None:
    held = [np.ones(6144, np.float32) for _ in range(4000)]
    last = held.pop()  # what lies below it stays with the process when it is freed
    del held
    report = run(MUTANTS["hidden.leaks"].make(), precisions=["float32"], select="calls.memory", profile="full")
    assert report.bad
    assert last.all()


def test_every_check_catches_a_mutant_or_says_why_it_stands() -> None:
    named = {mutant.caught_by for mutant in MUTANTS.values()}
    assert named | set(STANDS) == set(CHECKS)
    assert not named & set(STANDS)


def test_a_mutant_that_passes_its_check_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check = "forward.no_state"
    faultless = Mutant("faultless", "nothing is wrong", check, "float32", "", NaiveBackend)
    wrong = [id for id, mutant in MUTANTS.items() if mutant.caught_by == check]
    monkeypatch.setattr(
        "lstmcore_conformance.mutants.matrix.MUTANTS", {"faultless": faultless, wrong[0]: MUTANTS[wrong[0]]}
    )
    caught, uncaught, _ = judge(check)
    assert (caught, uncaught) == ([wrong[0]], ["faultless"])
    assert not goes_beyond(check, ["faultless"])
    assert goes_beyond(check, ["faultless", wrong[0]])


#: What makes data too regular -> a case, and what is done to its data.
REGULAR: dict[str, tuple[dict[str, Any], Callable[[Data], Data]]] = {
    "one step": ({"steps": 1}, lambda data: data),
    "one row": ({"batch": 1}, lambda data: data),
    "I = H": ({"model": replace(config_of({}), input_size=7)}, lambda data: data),
    "zero state": ({"state": False}, lambda data: data),
    "equal weights": (
        {},
        lambda data: replace(
            data, parameters={name: np.full_like(array, 0.25) for name, array in data.parameters.items()}
        ),
    ),
}


@pytest.mark.parametrize("id", [id for id, mutant in MUTANTS.items() if mutant.hides])
def test_a_mutant_that_hides_cannot_be_seen_on_regular_data(id: str) -> None:
    mutant = MUTANTS[id]
    for precision in ("float64", "float32"):
        changes, regular = REGULAR[mutant.hides]
        case = Case(**({"name": "regular", "model": config_of({}), "precision": precision} | changes))
        data = regular(case.data)
        faulty, right = BackendUnderTest(mutant.make()), BackendUnderTest(NaiveBackend())
        outputs, expected = faulty.forward(case, data), right.forward(case, data)
        gradients, want = faulty.gradients(case, data), right.gradients(case, data)
        for name, array in (expected | want).items():
            got = (outputs | gradients)[name]
            if mutant.hides == "equal weights" and name.startswith("d_"):
                continue  # gradients of equal weights are equal as well, but for the order of their rows
            np.testing.assert_allclose(got, array, rtol=16 * case.policy.epsilon, atol=16 * case.policy.epsilon)


def test_every_kind_of_regular_data_hides_a_mutant() -> None:
    assert {mutant.hides for mutant in MUTANTS.values()} == {"", *REGULAR}


def test_a_mutant_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such text"):
        edited(("no such text", ""))


@pytest.mark.slow  # all cases of the value checks: 15 seconds in each precision
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_another_way_uses_well_under_the_budget(name: str, precision: str) -> None:
    report = run(VARIANTS[name](), precisions=[precision], select=VALUES)
    assert [item.message for item in report.bad] == []
    shares = [item.worst.share for check in report.checks for item in check.items if item.worst]
    assert len(shares) > 400
    assert max(shares) < 0.6


@pytest.mark.slow  # sums of many rows: eight seconds in all
@pytest.mark.parametrize("name", VARIANTS)
def test_long_sums_in_another_order_use_well_under_the_budget(name: str) -> None:
    report = run(VARIANTS[name](), precisions=["float32"], select="backward.rows")
    assert [item.message for item in report.bad] == []
    assert max(item.worst.share for check in report.checks for item in check.items if item.worst) < 0.6


@pytest.mark.parametrize(
    "name", ["precision.tf32", "precision.half_arithmetic", "precision.forget_bias_1e-3", "precision.cell_in_half"]
)
def test_lost_precision_is_far_over_the_budget(name: str) -> None:
    report = run(MUTANTS[name].make(), precisions=["float32"], select="forward.switches")
    over = [item.worst.share for item in report.bad if item.worst]
    assert len(over) > 0.85 * report.count
    assert min(over) > 5
    assert max(over) > 100
