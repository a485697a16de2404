"""Right answers by many ways: none of them may fail."""

from __future__ import annotations

import pytest

from lstmcore_conformance import run
from lstmcore_conformance.mutants.right_variants import RIGHT
from lstmcore_conformance.suite.backend_under_test import Draws

#: Checks in which right evaluations differ most: values near and far, extremes, zoneout and layouts of memory.
SELECTED = "extremes or values. or masks.kept or inputs."
#: The variants that every change runs; the others take a second or two each.
QUICK = (
    "products bf16x3",
    "sigmoid and tanh 2 units too small",
    "zoneout of h from the old value",
    "one row at a time",
    "reversed rows turned around in memory",
)


def _marked(name: str) -> object:
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)


def test_there_are_forty_right_variants() -> None:
    assert len(RIGHT) >= 40
    assert set(QUICK) <= set(RIGHT)


@pytest.mark.parametrize("name", [_marked(name) for name in RIGHT])
def test_a_right_variant_passes(name: str) -> None:
    report = run(RIGHT[name](), precisions=["float32"], select=SELECTED, draws=Draws(max_examples=5, shrink=False))
    assert [item.message for item in report.bad] == []
    assert report.count > 150


@pytest.mark.slow  # each product of 1,100 numbers in steps of one: some seconds
@pytest.mark.parametrize("name", ["products one number after another", "weights transposed in memory"])
def test_a_running_sum_of_many_numbers_passes(name: str) -> None:
    """SPEC.md asks for sums in the compute dtype, in no order: a plain loop over the inputs or the units is one."""
    report = run(RIGHT[name](), precisions=["float32"], select="large.widths")
    assert [item.message for item in report.bad] == []
    assert max(item.worst.share for check in report.checks for item in check.items if item.worst) < 0.85
