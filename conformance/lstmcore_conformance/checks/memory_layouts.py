"""Checks of memory: where inputs and out lie, what lies around them, and what results share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore_conformance.cases.case import Array, Case
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.checks.contract import expectation, results
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, NotChecked, compare
from lstmcore_conformance.suite.check import Scope, check
from lstmcore_conformance.suite.device_memory import Lay, ToDevice, laid, offset, overwritten, sharing, strides

#: The boundary, in bytes, from which `_barely_aligned` keeps away.
_VECTOR: Final = 64


def memory_cases(scope: Scope) -> Iterator[Case]:
    """Yield models of several vectors and a rest, with masks and with lengths that end before T; one has many rows."""
    declared = scope.declared.features
    tiles = config_of({"input_size": 11, "hidden_size": 72})
    # Gradients and tangents that grow over 32 steps would make errors of all right kernels grow too.
    closed = (("bias", "f", -1.0), ("bias", "o", -1.0))
    for precision in scope.precisions:
        if precision == scope.main:
            yield Case(name="memory,tiles", model=tiles, precision=precision, steps=32, batch=37, shifts=closed)
        for name in ("plain", "reverse", "proj_size", "peephole", "layer_norm", "zoneout_hidden"):
            case = Case(
                name=f"memory,{name}",
                model=config_of({**SWITCHES[name], "input_size": 11, "hidden_size": 37}),
                precision=precision,
                batch=5,
                masks=name == "zoneout_hidden" and "masks" in declared,
            )
            yield case
            if "lengths" in declared:
                yield replace(case, name=f"{case.name},lengths", lengths=(3, 0, 2, 3, 1))


def _negative(to_device: ToDevice, array: Array) -> Any:
    """Return the array on memory that runs backwards along every axis."""
    turn = (slice(None, None, -1),) * array.ndim
    return to_device(np.ascontiguousarray(array[turn]))[turn]


def _columns(to_device: ToDevice, array: Array) -> Any:
    """Return the array as columns of a wider one, which has NaN around them."""
    wide = np.full((*array.shape[:-1], array.shape[-1] + 5), np.nan, array.dtype)
    wide[..., 2:-3] = array
    return to_device(wide)[..., 2:-3]


def _batch_first(to_device: ToDevice, array: Array) -> Any:
    """Return the array on memory with its first two axes exchanged."""
    if array.ndim < 2:
        return to_device(np.array(array))
    return to_device(np.ascontiguousarray(array.swapaxes(0, 1))).swapaxes(0, 1)


def _barely_aligned(to_device: ToDevice, array: Array) -> Any:
    """Return the array on memory that lies on a multiple of the size of a number, and of nothing larger."""
    memory = np.zeros(array.nbytes + 2 * _VECTOR, np.uint8)
    start = -memory.ctypes.data % _VECTOR + array.itemsize
    moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return to_device(moved)


#: Name -> what makes the layout, and what an array keeps of it.
_LAYOUTS: Final[Mapping[str, tuple[Lay, Callable[[Any], object]]]] = {
    "negative strides": (_negative, strides),
    "columns of a wider array": (_columns, strides),
    "batch-first memory": (_batch_first, strides),
    "alignment to one number": (_barely_aligned, offset),
}


def _with_layout(what: str, got: dict[str, Array], expected: budgets.Expectation) -> Measure:
    """Return what `compare` returns; a failure names the layout."""
    try:
        return compare(got, expected)
    except Failure as failure:
        raise Failure(f"{what}: {failure}", failure.worst) from failure


@check(
    "inputs.layouts",
    "inputs with negative strides, in columns of a wider array, in batch-first memory and aligned to one number work",
    section=9,
    cases=memory_cases,
)
def layouts(tested: BackendUnderTest, case: Case) -> Measure:
    worst, expected, reasons = Measure(0.0), expectation(tested, case), []
    for what, (lay, kept) in _LAYOUTS.items():
        try:
            data = laid(tested, case.data, lay, kept)
        except NotChecked as reason:
            reasons.append(f"{what}: {reason}")
            continue
        measured = _with_layout(what, results(tested, case, data), expected)
        worst = max(worst, measured, key=lambda each: each.share)
    if reasons:
        right = len(_LAYOUTS) - len(reasons)
        raise NotChecked(f"{'; '.join(reasons)} ({right} of {len(_LAYOUTS)} layouts were checked and are right)")
    return worst


#: Name -> the shape of the memory in which out lies, from T, N and P, and the view of it that is out.
_OUTS: Final[Mapping[str, tuple[Callable[[int, int, int], tuple[int, ...]], Callable[[Any], Any]]]] = {
    "batch-first": (lambda t, n, p: (n, t, p), lambda wide: wide.swapaxes(0, 1)),
    "inside a larger array": (lambda t, n, p: (t + 2, n + 3, p + 4), lambda wide: wide[1:-1, 2:-1, 3:-1]),
    "of negative strides": (lambda t, n, p: (t, n, p), lambda wide: wide[::-1, ::-1, ::-1]),
    "of every second row": (lambda t, n, p: (t, 2 * n, p), lambda wide: wide[:, ::2]),
}


@check(
    "outputs.layouts",
    "y is written to an out of any layout, and nothing around it",
    section=9,
    cases=memory_cases,
)
def out_layouts(tested: BackendUnderTest, case: Case) -> Measure:
    worst, expected = Measure(0.0), budgets.forward(case)
    shape = expected["y"].value.shape
    for what, (room, view) in _OUTS.items():
        wide = tested.backend.to_device(np.full(room(*shape), np.nan, case.data.x.dtype))
        done = tested.call(case, tested.device(case.data), out=view(wide))
        memory = tested.host(wide)
        got = tested.outputs(done) | {"y": view(memory)}
        worst = max(worst, _with_layout(f"an out {what}", got, expected), key=lambda each: each.share)
        if np.count_nonzero(~np.isnan(memory)) != got["y"].size:
            raise Failure(f"an out {what}: expected only its own elements written; those around it changed")
    return worst


@check("outputs.apart", "no two results of a call share memory", section=9, cases=memory_cases)
def apart(tested: BackendUnderTest, case: Case) -> None:
    data = tested.device(case.data)
    weights, record = tested.pack(case, data), "backward" in tested.declared.derivatives
    done = tested.call(case, data, record=record, weights=weights)
    groups = [tested.output_arrays(done)]
    if record:
        groups.append(tested.derivative_arrays(case, data, weights, done))
    if "jvp" in tested.declared.derivatives:
        pair = tested.jvp(case, data, weights)
        groups.append(
            {f"{k}{name}": array for k, each in enumerate(pair) for name, array in tested.output_arrays(each).items()}
        )
    for group in groups:
        for name, other in sharing(tested, group, group):
            raise Failure(f"{name}: expected memory of its own; it shares that of {other}")


@check(
    "tape.owns",
    "a tape is right though inputs and results of its call, `out` among them, are overwritten before backward",
    section=9,
    cases=memory_cases,
    needs=("backward",),
)
def owns(tested: BackendUnderTest, case: Case) -> Measure:
    out = tested.backend.to_device(np.full(budgets.forward(case)["y"].value.shape, np.nan, case.data.x.dtype))
    return max((_owned(tested, case, given) for given in (None, out)), key=lambda each: each.share)


def _owned(tested: BackendUnderTest, case: Case, out: Any) -> Measure:
    """Return the worst gradient after the arrays of a recorded call changed."""
    data = tested.device(case.data)
    weights = tested.pack(case, data)
    done = tested.call(case, data, record=True, weights=weights, out=out)
    if data.lengths is not None:
        data.lengths[...] = 0
    given = {name: array for name, array in data.arrays() if name == "x" or name.startswith(("state.", "masks["))}
    with overwritten(given | tested.output_arrays(done)):
        return compare(tested.backward(case, data, weights, done), budgets.gradients(case))
