"""What a report says of a failure beside the worst element: where it begins, and what failed cases have in common."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lstmcore_conformance import run
from lstmcore_conformance.mutants import backend_of
from lstmcore_conformance.oracle.budgets import Expected
from lstmcore_conformance.oracle.naive import NaiveKernel
from lstmcore_conformance.render.report_page import page
from lstmcore_conformance.suite.common_traits import common_traits
from lstmcore_conformance.suite.error_map import first_step
from lstmcore_conformance.suite.report import ItemReport


class _LaterUnits(NaiveKernel):
    """From 64 units on the forget gate of the 49th unit and of those after it is the input gate."""

    def _forward(self, weights: Any, *arguments: Any, **options: Any) -> Any:
        hidden = self.config.hidden_size
        if hidden >= 64:
            weights = {name: np.array(array) for name, array in weights.items()}
            for name in ("weight_x", "weight_h", "bias"):
                weights[name][hidden + 48 : 2 * hidden] = weights[name][48:hidden]
        return super()._forward(weights, *arguments, **options)


def test_a_fault_that_begins_at_a_size_is_told_by_size_and_place() -> None:
    """An error is everywhere after a few steps: the first wrong step and what failed cases share lead to the cause."""
    report = run(backend_of(_LaterUnits), precisions=["float32"], select="forward.sizes")
    assert {item.sizes["H"] >= 64 for item in report.bad} == {True}
    traits = common_traits(report)
    assert traits[0].startswith("every failed case has H >= 64, and 0 of ")
    item = next(item for item in report.bad if item.case.endswith("H=64"))
    assert item.where is not None
    assert item.where.start.startswith("y is wrong first at step 0: every row")
    assert item.where.start.endswith("units 48 to 63 of 64")
    assert ItemReport.from_record(item.to_record()).where == item.where
    console = Console(file=io.StringIO(), width=200)
    report.show(console)
    assert isinstance(console.file, io.StringIO)
    assert traits[0] in console.file.getvalue()
    assert traits[0].replace(">", "&gt;") in page(report)


@pytest.mark.parametrize(("name", "reverse", "step"), [("y", False, 1), ("y", True, 3), ("dx", False, 3)])
def test_the_first_wrong_step_is_that_of_the_run(name: str, reverse: bool, step: int) -> None:
    want = np.zeros((5, 2, 3))
    got = want.copy()
    got[1, :, 2] = got[3, 1, :] = 2
    text = first_step(name, got, Expected(want, 1.0, "float32"), last_first=reverse != (name == "dx"))
    place = "every row (2), {0} 2 of 3" if step == 1 else "row 1 of 2, every {0} (3)"
    assert text == f"{name} is wrong first at step {step}: " + place.format("unit" if name == "y" else "input")
    assert first_step("h_n", got[0], Expected(want[0], 1.0, "float32"), last_first=False) == ""
    assert first_step(name, want, Expected(want, 1.0, "float32"), last_first=False) == ""


def test_traits_need_two_failures_and_others_that_passed() -> None:
    bad = run(backend_of(_LaterUnits), precisions=["float32"], select="forward.sizes and H=64")
    assert len(bad.bad) == 1
    assert common_traits(bad) == []
    several = run(backend_of(_LaterUnits), precisions=["float32"], select="forward.sizes and (H=64 or H=127)")
    assert common_traits(several) == []
