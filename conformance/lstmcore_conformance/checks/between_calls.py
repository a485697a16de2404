"""Checks of what a backend keeps from one call to the next: caches, workspaces, counters and kernels."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any, Final

from lstmcore_conformance.cases.case import Array, Case
from lstmcore_conformance.cases.metamorphic import piece, rows_of
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.checks.contract import expectation, results
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, compare, same_bits
from lstmcore_conformance.suite.check import Scope, check

#: Calls of `calls.many`: more than a thousand, so that whatever every 1,000th call does is seen.
MANY: Final = 1_003
#: Threads of `calls.cold_threads`.
THREADS: Final = 8

#: Name of a switch's case -> the same switch with another number.
_NUMBERS: Final[dict[str, dict[str, Any]]] = {
    "gate_clip": {"gate_clip": 0.7},
    "cell_clip": {"cell_clip": 0.35},
    "proj_clip": {"proj_clip": 0.15},
    "zoneout_hidden": {"zoneout_hidden": 0.7},
    "zoneout_cell": {"zoneout_cell": 0.65},
    "layer_norm": {"layer_norm_eps": 0.3},
    "gate_activation=hard_sigmoid(alpha=0.3, beta=0.45)": {"gate_activation": "hard_sigmoid(alpha=0.15, beta=0.4)"},
    "cell_activation=scaled_tanh(alpha=1.3, beta=0.6)": {"cell_activation": "scaled_tanh(alpha=0.6, beta=1.4)"},
    "cell_activation=leaky_relu(alpha=0.3)": {"cell_activation": "leaky_relu(alpha=0.8)"},
}


def number_cases(scope: Scope) -> Iterator[Case]:
    """Yield models that differ from one of the switches' cases in a number alone."""
    for precision in scope.precisions:
        for name, other in _NUMBERS.items():
            if name in SWITCHES:
                model = config_of({**SWITCHES[name], **other})
                yield Case(name=f"number;{name}", model=model, precision=precision)


@check(
    "models.numbers",
    "two models that differ in one number alone (a bound, a rate, an alpha) are two models",
    section=3,
    cases=number_cases,
)
def numbers(tested: BackendUnderTest, case: Case) -> Measure:
    first = replace(case, name="number,first", model=config_of(SWITCHES[case.name.split(";")[1]]))
    results(tested, first, tested.device(first.data))
    return compare(results(tested, case, tested.device(case.data)), expectation(tested, case))


def kept_cases(scope: Scope) -> Iterator[Case]:
    """Yield small calls of several models."""
    for precision in scope.precisions:
        for name in ("plain", "reverse", "proj_size", "peephole", "layer_norm", "recurrence_cell"):
            lengths = (2, 0, 3) if "lengths" in scope.declared.features else None
            case = Case(name=f"kept,{name}", model=config_of(SWITCHES[name]), precision=precision, steps=3)
            yield case
            yield replace(case, name=f"{case.name},no_state", state=False, lengths=lengths)


@check("calls.smaller", "a call is right after a larger one of the same kernel", section=9, cases=kept_cases)
def smaller(tested: BackendUnderTest, case: Case) -> Measure:
    large = replace(case, name="kept,large", steps=9, batch=11, lengths=None, state=True)
    results(tested, large, tested.device(large.data))
    return compare(results(tested, case, tested.device(case.data)), expectation(tested, case))


@check(
    "tape.other_models",
    "a tape is right after other models ran and were recorded",
    section=9,
    cases=kept_cases,
    needs=("backward",),
)
def other_models(tested: BackendUnderTest, case: Case) -> Measure:
    data = tested.device(case.data)
    weights = tested.pack(case, data)
    done = tested.call(case, data, record=True, weights=weights)
    models: tuple[dict[str, Any], ...] = ({}, {"hidden_size": 16}, {"coupling": "forget_from_input"})
    for position, changes in enumerate(models):
        model = config_of({**changes, "bias": False})
        other = Case(name=f"kept,other{position}", model=model, precision=case.precision, steps=5, batch=4)
        if tested.refusal(other) is None:
            tested.gradients(other)
    return compare(tested.backward(case, data, weights, done), budgets.gradients(case))


def single_cases(scope: Scope) -> Iterator[Case]:
    """Yield one step of one row, the cheapest call."""
    for precision in scope.precisions:
        model = config_of({"input_size": 2, "hidden_size": 3})
        yield Case(name="single", model=model, precision=precision, steps=1, batch=1)


@check("calls.many", f"{MANY:,} calls with the same arguments give the same bits", section=9, cases=single_cases)
def many_calls(tested: BackendUnderTest, case: Case) -> None:
    data = tested.device(case.data)
    weights = tested.pack(case, data)
    first = tested.outputs(tested.call(case, data, weights=weights))
    for number in range(1, MANY):
        same_bits(f"call {number + 1}", tested.outputs(tested.call(case, data, weights=weights)), first)


def wide_cases(scope: Scope) -> Iterator[Case]:
    """Yield calls of more than 1,024 rows in all steps together, whose sums are shared among threads."""
    for precision in scope.precisions:
        for name in ("plain", "peephole", "layer_norm", "proj_size"):
            model = config_of({**SWITCHES[name], "input_size": 9, "hidden_size": 24})
            yield Case(name=f"bits,{name}", model=model, precision=precision, steps=32, batch=37)


@check("calls.wide_bits", "two calls of more than 1,024 rows give the same bits", section=9, cases=wide_cases)
def wide_bits(tested: BackendUnderTest, case: Case) -> None:
    first = results(tested, case, tested.device(case.data))
    same_bits("a second call", results(tested, case, tested.device(case.data)), first)


@check(
    "calls.cold_threads",
    f"the first calls of a kernel, from {THREADS} threads with different shapes and one pack, are right",
    section=9,
    cases=wide_cases,
)
def cold_threads(tested: BackendUnderTest, case: Case) -> None:
    cold = BackendUnderTest(tested.backend)
    data = cold.device(case.data)
    weights, start = cold.pack(case, data), Barrier(THREADS)
    shapes = [(1 + 4 * k, list(range(1 + (5 * k) % case.batch))) for k in range(THREADS)]
    inputs = [
        cold.device(piece(rows_of(case.data, rows), 0, steps, rows_of(case.data, rows).state)) for steps, rows in shapes
    ]

    def call(part: Any, meet: bool = True) -> dict[str, Array]:
        if meet:
            start.wait()
        return cold.outputs(cold.call(case, part, weights=weights))

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(call, inputs))
    for got, part in zip(together, inputs, strict=True):
        same_bits("from several threads", got, call(part, meet=False))
