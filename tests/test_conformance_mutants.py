"""The suite against faults, and against right answers that are reached another way."""

from __future__ import annotations

import pytest

from lstmcore_conformance import run
from lstmcore_conformance.checking import all_checks
from lstmcore_conformance.experiment import VALUES
from lstmcore_conformance.mutants import MUTANTS, Mutant, edited
from lstmcore_conformance.report import Outcome
from lstmcore_conformance.variants import VARIANTS


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_mutant_is_caught(mutant: Mutant) -> None:
    report = run(mutant.make(), precisions=[mutant.precision], select=mutant.caught_by)
    assert {check.id for check in report.checks} == {mutant.caught_by}
    assert report.bad
    assert {item.outcome for item in report.bad} == {Outcome.FAILED}
    for item in report.bad:
        assert item.message
        assert item.id in item.reproduce


def test_every_check_catches_a_mutant() -> None:
    assert {mutant.caught_by for mutant in MUTANTS.values()} == {check.id for check in all_checks()}


def test_a_mutant_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such text"):
        edited(("no such text", ""))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("precision", ["float64", "float32", "float16"])
def test_another_way_uses_well_under_the_budget(name: str, precision: str) -> None:
    report = run(VARIANTS[name](), precisions=[precision], select=VALUES)
    assert [item.message for item in report.bad] == []
    shares = [item.worst.share for check in report.checks for item in check.items if item.worst]
    assert len(shares) > 400
    assert max(shares) < 0.6


@pytest.mark.parametrize(
    "name", ["precision.tf32", "precision.half_arithmetic", "precision.forget_bias_1e-3", "precision.cell_in_half"]
)
def test_lost_precision_is_far_over_the_budget(name: str) -> None:
    report = run(MUTANTS[name].make(), precisions=["float32"], select="forward.switches")
    over = [item.worst.share for item in report.bad if item.worst]
    assert len(over) > 0.85 * report.count
    assert min(over) > 5
    assert max(over) > 100
