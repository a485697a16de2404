"""Checks of what a backend keeps from one call to the next: caches, workspaces, counters and kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Barrier
from typing import Any, Final

import numpy as np

from lstmcore.backend import State, Tangents
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.metamorphic import piece, rows_of
from lstmcore_conformance.cases.switches import SWITCHES, WIDTHS, config_of
from lstmcore_conformance.checks.contract import contract_cases, expectation, one_layer, results
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare, same_bits
from lstmcore_conformance.suite.check import Scope, check
from lstmcore_conformance.suite.device_memory import write

#: Calls of `calls.many`: more than a thousand, so that whatever every 1,000th call does is seen.
MANY: Final = 1_003
#: Threads of `calls.cold_threads`.
THREADS: Final = 8

#: Tapes that `tape.many` keeps: more than a pool of 128.
TAPES: Final = 130

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
#: The same with a number that is almost equal: the fourth digit differs.
_CLOSE: Final[dict[str, dict[str, Any]]] = {
    "zoneout_cell": {"zoneout_cell": 0.4004},
    "cell_activation=scaled_tanh(alpha=1.3, beta=0.6)": {"cell_activation": "scaled_tanh(alpha=1.3004, beta=0.6)"},
}

#: A function in all its places, with other numbers in each.
_PLACES: Final[dict[str, tuple[str, str, str]]] = {
    "hard_sigmoid": ("(alpha=0.3, beta=0.45)", "(alpha=0.15, beta=0.4)", "(alpha=0.4, beta=0.35)"),
    "scaled_tanh": ("(alpha=1.3, beta=0.6)", "(alpha=0.6, beta=1.4)", "(alpha=0.9, beta=0.8)"),
}


def number_cases(scope: Scope) -> Iterator[Case]:
    """Yield models that differ from one of the switches' cases in a number alone; one has a tiny one, and tiny data."""
    for precision in scope.precisions:
        for kind, others in (("number", _NUMBERS), ("close", _CLOSE)):
            for name, other in others.items():
                model = config_of({**SWITCHES[name], **other})
                yield Case(name=f"{kind};{name}", model=model, precision=precision)
        if precision == scope.main:
            small = config_of({"layer_norm": True, "layer_norm_eps": 1e-12})
            yield Case(name="small;layer_norm", model=small, precision=precision, scale=1e-5)


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


def place_cases(scope: Scope) -> Iterator[Case]:
    """Yield models in which one function is in all places, with other numbers in each, in one precision."""
    places = ("gate_activation", "cell_activation", "hidden_activation")
    for function, numbers in _PLACES.items():
        model = config_of({place: function + each for place, each in zip(places, numbers, strict=True)})
        yield Case(name=f"places,{function}", model=model, precision=scope.main)


@check(
    "models.places",
    "a function that is in several places has the numbers of each place",
    section=3,
    cases=place_cases,
)
def places(tested: BackendUnderTest, case: Case) -> Measure:
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


@check(
    "tape.other_weights",
    "backward with other packed weights than those of the recorded call changes no later call",
    section=9,
    cases=one_layer,
    needs=("backward",),
)
def other_weights(tested: BackendUnderTest, case: Case) -> None:
    data, turned = tested.device(case.data), tested.device(case.data.map(np.negative))
    weights, others = tested.pack(case, data), tested.pack(case, turned)
    done = tested.call(case, data, record=True, weights=weights)
    right = tested.backward(case, data, weights, done)
    outputs = [tested.outputs(tested.call(case, data, weights=each)) for each in (weights, others)]
    with suppress(Failure):  # whatever it returns or raises
        tested.backward(case, data, others, done)
    same_bits("backward after that with other weights", tested.backward(case, data, weights, done), right)
    for each, before in zip((weights, others), outputs, strict=True):
        same_bits("forward after it", tested.outputs(tested.call(case, data, weights=each)), before)


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


def _at_once(calls: Sequence[Callable[[], dict[str, Array]]]) -> None:
    """Raise `Failure` unless calls from a thread each, all at once, give the bits of one after another."""
    alone, start = [call() for call in calls], Barrier(len(calls))

    def meet(call: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        together = list(pool.map(meet, calls))
    for got, expected in zip(together, alone, strict=True):
        same_bits("from several threads", got, expected)


@check(
    "calls.models",
    f"calls of two models of the same sizes from {THREADS} threads at once give the bits of one after another",
    section=9,
    cases=wide_cases,
)
def two_models(tested: BackendUnderTest, case: Case) -> None:
    """The second model differs in a bias, so that all arrays of a call have the same shapes."""
    other = replace(case, name=f"{case.name},other", model=replace(case.config, bias=False))
    cases = [case if tested.refusal(other) or k % 2 else other for k in range(THREADS)]
    _at_once([partial(results, tested, each, tested.device(each.data)) for each in cases])


@check(
    "tape.threads",
    f"backward of one tape from {THREADS} threads at once, each with its own dy, gives the bits of one after another",
    section=9,
    cases=wide_cases,
    needs=("backward",),
)
def one_tape(tested: BackendUnderTest, case: Case) -> None:
    def scaled(factor: float) -> Data:
        return tested.device(case.data.map(lambda array: np.asarray(factor * array, array.dtype)))

    data = tested.device(case.data)
    weights = tested.pack(case, data)
    done = tested.call(case, data, record=True, weights=weights)
    _at_once([partial(tested.backward, case, scaled(k + 1), weights, done) for k in range(THREADS)])


@check(
    "inputs.refilled",
    "arrays whose contents change between two calls are read again, and so is a state that a call returned",
    section=9,
    cases=contract_cases,
)
def refilled(tested: BackendUnderTest, case: Case) -> None:
    data, turned = tested.device(case.data), case.data.map(np.flip)
    if turned.lengths is not None:
        turned.lengths[...] = np.flip(turned.lengths)
    results(tested, case, data)
    for (_, old), (_, new) in zip(data.arrays(), turned.arrays(), strict=True):
        refill(tested, old, new)
    got, expected = results(tested, case, data), results(tested, case, tested.device(turned))
    same_bits("with arrays that were filled again", got, expected)
    last = tested.call(case, data).state
    for array, value in zip(last, turned.state or (), strict=True):
        refill(tested, array, value)
    again = tested.outputs(tested.call(case, replace(data, state=last)))
    plain = tested.outputs(tested.call(case, tested.device(turned)))  # a recorded call may have other bits
    same_bits("with a returned state that was filled again", again, plain)


def refill(tested: BackendUnderTest, array: Any, values: Array) -> None:
    """Write `values` to `array`, which may lie on the device. Raises `NotChecked` if it cannot change."""
    write(array, values if isinstance(array, np.ndarray) else tested.backend.to_device(np.array(values)))


def shared_cases(scope: Scope) -> Iterator[Case]:
    """Yield models whose x, y and h have one shape, and whose matrices have one."""
    for precision in scope.precisions:
        for name in ("plain", "reverse", "layer_norm"):
            changes = {**SWITCHES[name], "input_size": WIDTHS["hidden_size"]}
            yield Case(name=f"shared,{name}", model=config_of(changes), precision=precision)


def _as_one(case: Case) -> Data:
    """Return the data with one array for all arguments of one shape and dtype."""
    x, state, parameters = case.data.x, case.data.state, dict(case.data.parameters)
    if state is None:
        raise TypeError(f"case {case.id}: expected a state")
    parameters["weight_h"] = parameters["weight_x"]
    h = x[0]
    state = State(h, h if state.c.dtype == h.dtype else state.c)
    tangents = Tangents(x, state, parameters)
    return replace(case.data, parameters=parameters, state=state, dy=x, dstate=state, tangents=tangents)


@check(
    "inputs.shared",
    "arguments may be one array: h and c, W_x and W_h, x and dy, an array and its tangent, dy and y",
    section=9,
    cases=shared_cases,
)
def shared(tested: BackendUnderTest, case: Case) -> None:
    data = _as_one(case)
    made: dict[int, Any] = {}

    def once(array: Array) -> Any:
        return made.setdefault(id(array), tested.backend.to_device(np.array(array)))

    one, apart = data.map(once), tested.device(data)
    same_bits("with arguments that are one array", results(tested, case, one), results(tested, case, apart))
    if "backward" in tested.declared.derivatives:
        weights = tested.pack(case, apart)
        done = tested.call(case, apart, record=True, weights=weights)
        y = tested.backend.to_device(np.array(tested.host(done.y)))
        expected = tested.backward(case, replace(apart, dy=y), weights, done)
        same_bits("with dy = y", tested.backward(case, replace(apart, dy=done.y), weights, done), expected)
        same_bits("after dy = y", {"y": tested.host(done.y)}, {"y": tested.host(y)})


@check(
    "tape.many",
    f"{TAPES} tapes that are kept at once are right, also for another thread",
    section=9,
    cases=single_cases,
    needs=("backward",),
)
def many_tapes(tested: BackendUnderTest, case: Case) -> None:
    weights, kept = tested.pack(case, tested.device(case.data)), []
    for number in range(TAPES):
        factor = (number + 1) / TAPES
        data = tested.device(replace(case.data, x=np.asarray(factor * case.data.x, case.data.x.dtype)))
        done = tested.call(case, data, record=True, weights=weights)
        kept.append((data, done, tested.backward(case, data, weights, done)))

    def again() -> list[dict[str, Array]]:
        return [tested.backward(case, data, weights, done) for data, done, _ in kept]

    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(again).result()
    for name, found in (("in another thread", later), ("later", again())):
        for number, (got, (_, _, expected)) in enumerate(zip(found, kept, strict=True), 1):
            same_bits(f"tape {number} of {TAPES} {name}", got, expected)
