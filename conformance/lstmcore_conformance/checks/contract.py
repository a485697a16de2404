"""Checks of the contract: how a backend treats its arguments and results, whatever their values."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any, Final

import numpy as np

from lstmcore.backend import State
from lstmcore.config import StackConfig
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.drawing import REPEATED, repeat
from lstmcore_conformance.cases.switches import SWITCHES, TOGETHER, config_of
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.oracle.composition import forward_pass
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare, same_bits
from lstmcore_conformance.suite.check import Scope, check
from lstmcore_conformance.suite.device_memory import ToDevice, laid, offset, overwritten, sharing, writable

THREADS: Final = 16
MODELS: Final = ("plain", "reverse", "proj_size", "peephole", "layer_norm", *TOGETHER)


def contract_cases(scope: Scope) -> Iterator[Case]:
    """Yield a few models with lengths and masks, one with T = 0 and T = 1, and a stack."""
    lengths = (4, 0, 2) if "lengths" in scope.declared.features else None
    for precision in scope.precisions:
        for name in MODELS:
            model = config_of(SWITCHES[name])
            random = model.zoneout_hidden or model.zoneout_cell or model.recurrent_dropout
            masks = bool(random) and "masks" in scope.declared.features
            case = Case(name=f"contract,{name}", model=model, precision=precision, lengths=lengths, masks=masks)
            yield case
            if name in ("plain", "proj_size"):
                yield replace(case, name=f"{case.name},T=0", steps=0, lengths=None)
                yield replace(case, name=f"{case.name},T=1", steps=1, lengths=None)
        stack = StackConfig.make(config_of({}), num_layers=2, bidirectional=True)
        yield Case(name="contract,stack", model=stack, precision=precision, lengths=lengths)


def repeating_cases(scope: Scope) -> Iterator[Case]:
    """Yield the models of `contract_cases` with arrays that repeat rows, units, steps or one element.

    A layer norm of equal units consists of rounding alone: no budget holds for it.
    """
    for case in contract_cases(scope):
        if case.steps > 1:
            normed = any(config.layer_norm for config in case.configs)
            for what in ("rows", "steps") if normed else REPEATED:
                yield replace(case, name=f"{case.name},equal {what}", repeated=what)


def one_layer(scope: Scope) -> Iterator[Case]:
    """Return the cases of `contract_cases` with one layer in one direction."""
    return (case for case in contract_cases(scope) if case.stack is None)


def results(tested: BackendUnderTest, case: Case, data: Data, weights: Any = None) -> dict[str, Array]:
    """Return all results of the backend on a case, from device arrays; the parameters are packed without `weights`."""
    return tested.on_host(device_results(tested, case, data, weights))


def device_results(tested: BackendUnderTest, case: Case, data: Data, weights: Any = None) -> dict[str, Any]:
    """Return what `results` returns, as arrays of the device."""
    weights = tested.pack(case, data) if weights is None else weights
    record = "backward" in tested.declared.derivatives
    done = tested.call(case, data, record=record, weights=weights)
    arrays = tested.output_arrays(done)
    if record:
        arrays |= tested.derivative_arrays(case, data, weights, done)
    if "jvp" in tested.declared.derivatives:
        _, moved = tested.jvp(case, data, weights)
        arrays |= {f"t{name}": array for name, array in tested.output_arrays(moved).items()}
    return arrays


def expectation(tested: BackendUnderTest, case: Case) -> budgets.Expectation:
    """Return what is expected of `results`."""
    expected = dict(budgets.forward(case))
    if "backward" in tested.declared.derivatives:
        expected |= budgets.gradients(case)
    if "jvp" in tested.declared.derivatives:
        moved = budgets.tangents(case)
        expected |= {"ty": moved["ty"], "th_n": moved["th_n"], "tc_n": moved["tc_n"]}
    return expected


@check(
    "state.forms",
    "a state, its gradient and its tangent may be a plain tuple or a list of h and c",
    section=1,
    cases=one_layer,
)
def state_forms(tested: BackendUnderTest, case: Case) -> None:
    data = tested.device(case.data)
    expected = results(tested, case, data)
    for form in (tuple, list):
        tangents = data.tangents._replace(state=_in_form(form, data.tangents.state))
        plain = replace(data, state=_in_form(form, data.state), dstate=_in_form(form, data.dstate), tangents=tangents)
        same_bits(f"a {form.__name__} of h and c", results(tested, case, plain), expected)


def _in_form(form: type[tuple[Any, ...]] | type[list[Any]], pair: State | None) -> Any:
    return None if pair is None else form(pair)


@check("inputs.unchanged", "no call writes to an input", section=9, cases=contract_cases)
def unchanged(tested: BackendUnderTest, case: Case) -> None:
    data = tested.device(case.data)
    results(tested, case, data)
    for (name, before), (_, after) in zip(case.data.arrays(), data.arrays(), strict=True):
        array = after if name == "lengths" else tested.host(after)
        if not np.array_equal(before, array, equal_nan=before.dtype.kind == "f"):
            raise Failure(f"{name}: expected it unchanged; the call wrote to it")


@check("inputs.read_only", "read-only inputs work", section=9, cases=contract_cases)
def read_only(tested: BackendUnderTest, case: Case) -> Measure:
    def frozen(to_device: ToDevice, array: Array) -> Any:
        copy = np.array(array)
        copy.flags.writeable = False
        return to_device(copy)

    return compare(results(tested, case, laid(tested, case.data, frozen, writable)), expectation(tested, case))


@check("inputs.strided", "inputs that are not contiguous work", section=9, cases=contract_cases)
def strided(tested: BackendUnderTest, case: Case) -> Measure:
    def spread(to_device: ToDevice, array: Array) -> Any:
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        return to_device(wide)[..., ::2]

    return compare(results(tested, case, laid(tested, case.data, spread)), expectation(tested, case))


@check("inputs.transposed", "inputs in another order of memory work", section=9, cases=contract_cases)
def transposed(tested: BackendUnderTest, case: Case) -> Measure:
    def turn(to_device: ToDevice, array: Array) -> Any:
        return to_device(np.ascontiguousarray(array.T)).T

    return compare(results(tested, case, laid(tested, case.data, turn)), expectation(tested, case))


@check("inputs.unaligned", "inputs that do not lie on a multiple of their size work", section=9, cases=contract_cases)
def unaligned(tested: BackendUnderTest, case: Case) -> Measure:
    def shifted(to_device: ToDevice, array: Array) -> Any:
        memory = np.zeros(array.nbytes + 65, np.uint8)
        start = -memory.ctypes.data % 64 + 1
        moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return to_device(moved)

    return compare(results(tested, case, laid(tested, case.data, shifted, offset)), expectation(tested, case))


@check(
    "inputs.broadcast",
    "inputs whose elements share memory, as those of broadcasting do, work",
    section=9,
    cases=repeating_cases,
)
def broadcast(tested: BackendUnderTest, case: Case) -> Measure:
    def once(to_device: ToDevice, array: Array) -> Any:
        return to_device(repeat(array, case.repeated))

    data = laid(tested, case.data, once)
    if REPEATED[case.repeated] is None:
        data = replace(data, parameters=tested.device(case.data).parameters)
    return compare(results(tested, case, data), expectation(tested, case))


def fresh_cases(scope: Scope) -> Iterator[Case]:
    """Yield the cases of the contract, and one whose rows have no step, so that its states pass through."""
    cases = [*contract_cases(scope)]
    for precision in scope.precisions:
        yield from (case for case in cases if case.precision == precision)
        if "lengths" in scope.declared.features:
            yield Case(name="contract,no_steps", model=config_of({}), precision=precision, lengths=(0, 0, 0))


@check(
    "outputs.fresh",
    "no result shares memory with an input or with a result of another call",
    section=9,
    cases=fresh_cases,
)
def fresh(tested: BackendUnderTest, case: Case) -> None:
    data = tested.device(case.data)
    first, again = (device_results(tested, case, data) for _ in range(2))
    others = dict(data.arrays()) | {f"{name} of a second call": array for name, array in again.items()}
    for name, other in sharing(tested, first, others):
        raise Failure(f"{name}: expected memory of its own; it shares that of {other}")


@check("outputs.kept", "results of one call are not changed by the next", section=9, cases=contract_cases)
def kept(tested: BackendUnderTest, case: Case) -> None:
    first = device_results(tested, case, tested.device(case.data))
    copies = {name: np.array(array) for name, array in tested.on_host(first).items()}
    results(tested, case, tested.device(case.data.map(lambda array: np.asarray(0.5 * array, array.dtype))))
    same_bits("after another call", tested.on_host(first), copies)


@check("outputs.out", "y is written to `out`, all of it, and is that array", section=9, cases=contract_cases)
def out(tested: BackendUnderTest, case: Case) -> Measure:
    data, want = tested.device(case.data), budgets.forward(case)["y"]
    shape = want.value.shape
    empty = np.full(shape, np.nan, case.data.x.dtype)
    plain_out = tested.backend.to_device(empty)
    done = tested.call(case, data, out=plain_out)
    if done.y is not plain_out:
        raise Failure("y: expected the array that was given as out; got another")
    worst = compare(tested.outputs(done), budgets.forward(case))
    wide = tested.backend.to_device(np.full((*shape[:-1], 2 * shape[-1]), np.nan, empty.dtype))
    strided_out = wide[..., ::2]
    done = tested.call(case, data, out=strided_out)
    worst = max(
        worst,
        compare(tested.outputs(done) | {"y": tested.host(strided_out)}, budgets.forward(case)),
        key=lambda measured: measured.share,
    )
    if not np.isnan(tested.host(wide)[..., 1::2]).all():
        raise Failure("out: expected only its own elements written; those between them changed")
    return worst


@check("calls.same_bits", "two calls with the same arguments give the same bits", section=9, cases=contract_cases)
def repeated(tested: BackendUnderTest, case: Case) -> None:
    first = results(tested, case, tested.device(case.data))
    results(tested, case, tested.device(case.data.map(lambda array: -array)))  # its traces in memory must not matter
    same_bits("a second call", results(tested, case, tested.device(case.data)), first)


@check(
    "calls.threads",
    f"calls from {THREADS} threads at once, each with its own data, give the bits of one after another",
    section=9,
    cases=contract_cases,
)
def threads(tested: BackendUnderTest, case: Case) -> None:
    def scaled(factor: float) -> Data:
        return case.data.map(lambda array: np.asarray(factor * array, array.dtype))

    inputs = [scaled((-1) ** k * (k + 4) / 16) for k in range(THREADS)]
    tested.kernel(case)
    alone = [results(tested, case, tested.device(data)) for data in inputs]
    start = Barrier(THREADS)

    def meet(data: Data) -> dict[str, Array]:
        start.wait()
        return results(tested, case, tested.device(data))

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(meet, inputs))
    for threaded, expected in zip(together, alone, strict=True):
        same_bits("from several threads", threaded, expected)


@check(
    "tape.reuse",
    "a tape gives the same gradients again, also after other calls, of part of dy and dstate, and another pack",
    section=9,
    cases=contract_cases,
    needs=("backward",),
)
def tape(tested: BackendUnderTest, case: Case) -> Measure:
    data = tested.device(case.data)
    weights = tested.pack(case, data)
    done = tested.call(case, data, record=True, weights=weights)
    first = tested.backward(case, data, weights, done)
    other = tested.device(case.data.map(lambda array: -array))
    for part in (other, replace(other, dy=None), replace(other, dstate=None)):
        tested.backward(case, part, weights, done)
    tested.pack(case, other)
    tested.call(case, other, record=True, weights=weights)
    same_bits("a second backward", tested.backward(case, data, weights, done), first)
    return compare(first, budgets.gradients(case))


@check(
    "pack.copies",
    "weights do not change with the arrays that they were packed from, in any kind of call",
    section=9,
    cases=contract_cases,
)
def copies(tested: BackendUnderTest, case: Case) -> Measure:
    data = tested.device(case.data)
    weights = tested.pack(case, data)
    with overwritten(data.parameters):
        worst = compare(tested.outputs(tested.call(case, data, weights=weights)), budgets.forward(case))
        later = compare(results(tested, case, data, weights), expectation(tested, case))
        return max(worst, later, key=lambda each: each.share)


@check(
    "pack.many",
    "a kernel holds no weights: packs of different parameters live side by side, also if one number alone differs",
    section=9,
    cases=one_layer,
)
def many(tested: BackendUnderTest, case: Case) -> Measure:
    data, expected = tested.device(case.data), budgets.forward(case)
    weights = tested.pack(case, data)
    tested.pack(case, tested.device(case.data.map(lambda array: -array)))
    for name, array in case.data.parameters.items():
        changed = np.array(array)
        changed[(-1,) * changed.ndim] += changed.dtype.type(0.5)
        other = replace(case.data, parameters={**case.data.parameters, name: changed})
        right = forward_pass(case.model, other, "float64").outputs
        want = {key: replace(expected[key], value=value) for key, value in right.items()}
        compare(tested.forward(case, other), want)
    return compare(tested.outputs(tested.call(case, data, weights=weights)), expected)
