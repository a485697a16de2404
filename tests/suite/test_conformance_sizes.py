"""Large sizes: what the suite shows a backend, what it costs, and faults that begin at a size."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from lstmcore_conformance import run
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.large_sizes import LENGTHS, ROWS, ends_of, extent_cases, switch_cases
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.mutants import MUTANTS, backend_of
from lstmcore_conformance.mutants.size_thresholds import AXES, CALLS, THRESHOLDS, faults
from lstmcore_conformance.oracle import budgets, evaluation
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest
from lstmcore_conformance.suite.report import Outcome, Result
from lstmcore_conformance.suite.runner import items, run_item

#: Sizes at which the y of a plug-in was 0, and that the suite once let pass.
HIDDEN: dict[str, tuple[str, Callable[[int, int, bool], bool]]] = {
    "N > 130": ("large.batches", lambda steps, batch, lengths: batch > 130),
    "N > 18 with lengths": ("large.ends", lambda steps, batch, lengths: lengths and batch > 18),
    "T > 40 with lengths": ("large.ends", lambda steps, batch, lengths: lengths and steps > 40),
    "N > 65,535": ("large.batches", lambda steps, batch, lengths: batch > 65_535),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_zeros_beyond_a_size_are_seen(name: str) -> None:
    check, wrong = HIDDEN[name]

    class Zeros(NaiveKernel):
        def _forward(self, weights: Any, x: Any, state: Any, lengths: Any, masks: Any, **options: Any) -> Any:
            y, last, tape = super()._forward(weights, x, state, lengths, masks, **options)
            if wrong(*x.shape[:2], lengths is not None):
                y[...] = 0
            return y, last, tape

    tested = BackendUnderTest(backend_of(Zeros))
    outcomes = (run_item(tested, item).outcome for item in items(tested, ["float32"], check))
    assert Outcome.FAILED in outcomes


@pytest.mark.parametrize("precision", ["float64", "tf32", "float16"])
@pytest.mark.parametrize("name", ["plain", "everything", "layer_norm"])
def test_one_evaluation_gives_what_three_give(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "COPIES_OF_LARGE", budgets.COPIES)
    case = Case(name=f"together,{name}", model=config_of(SWITCHES[name]), precision=precision, lengths=(3, 0, 4))
    apart = {**budgets.forward(case), **budgets.gradients(case), **budgets.tangents(case)}
    together = budgets.everything(case)
    assert set(together) == set(apart)
    for key, want in apart.items():
        assert (together[key].value == want.value).all()
        assert (together[key].budget, together[key].dtype) == (want.budget, want.dtype)
    exact = evaluation.everything(case, "float64")
    assert all((together[key].value == exact[key]).all() for key in apart)


def test_large_cases_are_left_out_above_max_work() -> None:
    everything = list(items(BackendUnderTest(NaiveBackend()), ["float32"], "forward.sizes"))
    dear = [item for item in everything if item.case is not None and item.case.work > 10_000]
    report = run(NaiveBackend(), precisions=["float32"], select="forward.sizes", max_work=10_000)
    assert 0 < len(dear) < len(everything)
    assert (report.count, report.capped) == (len(everything) - len(dear), len(dear))
    assert report.result is Result.PARTIAL
    assert f"{len(dear)} cases of more than 10,000 multiply-adds (--max-work) did not run" in report.verdict
    assert report.extent["forward"]["H"] < 100
    assert report.to_dict()["max_work"] == 10_000


def test_the_report_says_the_largest_sizes_of_each_call() -> None:
    report = run(NaiveBackend(), precisions=["float64"], select="lengths.backward or forward.sizes")
    assert report.extent["forward"] == {"T": 257, "N": 130, "I": 300, "H": 260, "P": 33}
    assert report.extent["backward with lengths"] == {"T": 40, "N": 9, "I": 5, "H": 7, "P": 3}
    assert "jvp" not in report.extent
    assert report.to_dict()["extent"]["backward"]["T"] == 40


def test_each_axis_and_each_threshold_meets_each_call() -> None:
    met = {(axis, call) for axis, _, _, call, _ in faults()} | {(start, call) for _, start, _, call, _ in faults()}
    assert set(product((*AXES, *THRESHOLDS[:-1]), CALLS)) <= met
    assert sum(start == THRESHOLDS[-1] for start, _ in met) >= 2  # few axes are so long
    assert len(MUTANTS) >= 300


def test_one_precision_has_all_sizes_and_the_others_have_parts() -> None:
    declared = NaiveBackend().capabilities()
    parts = {name: {case.name for case in switch_cases(declared, name)} for name in declared.precisions}
    parts = {name: part | {case.name for case in extent_cases(ROWS, declared, name)} for name, part in parts.items()}
    everything = parts.pop("float32")
    for part in parts.values():
        assert {name.split(",", 1)[1] for name in part if name.startswith("H=")} == set(SWITCHES)
        assert len(part) < len(everything)
    assert len({frozenset(part) for part in parts.values()}) == len(parts)
    assert {f"large,{name}" for name in ROWS} <= everything


def test_lengths_of_large_batches_have_both_ends() -> None:
    for extent in (*LENGTHS.values(), ROWS["N=34"]):
        ends = ends_of(extent.steps, extent.batch)
        assert {0, extent.steps} <= set(ends)
        assert len(ends) == extent.batch
