"""Check of the argument `out`: its shape and dtype, and memory that is its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lstmcore.backend import Masks, State
from lstmcore_conformance.cases.case import Array, Case
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.checks.errors import Calls, Mistake, error_cases, judge, other_dtype
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, NotChecked
from lstmcore_conformance.suite.check import check


@check(
    "errors.out",
    "an out that does not fit, is read-only or overlaps x, a state, a mask or itself is an error that names it",
    section=9,
    cases=error_cases,
)
def wrong_out(tested: BackendUnderTest, case: Case) -> None:
    square = replace(case, name="mistakes,square", model=config_of(SWITCHES["square"]))
    calls = Calls(tested, square)
    x: Any = calls.data.x
    empty = np.zeros((*square.data.x.shape[:2], square.config.output_size), square.data.x.dtype)
    tells = isinstance(x, np.ndarray) or hasattr(x, "__cuda_array_interface__")

    def mistakes() -> Iterator[Mistake]:
        yield "one step short", calls.forward(out=calls.device(empty[1:])), ValueError, "out"
        yield "one column short", calls.forward(out=calls.device(empty[:, :, 1:])), ValueError, "out"
        yield "another dtype", calls.forward(out=calls.device(other_dtype(empty))), TypeError, "out"
        yield "a list", calls.forward(out=[]), TypeError, "out"
        yield "x itself", calls.forward(x=x, out=x), ValueError, "out"
        if tells:
            yield from _overlaps(calls, empty)
            yield from _overlaps_of_masks(tested, square, empty)
        if isinstance(x, np.ndarray):
            yield from _of_numpy(calls, empty)

    judge(mistakes())
    calls.still_works()
    if not tells:
        kind = type(x).__name__
        raise NotChecked(f"arrays of type {kind} do not tell what overlaps; the other errors are right")


def _overlaps(calls: Calls, empty: Array) -> Iterator[Mistake]:
    """Yield outs that are in part the memory of x or of the state."""
    x, state = calls.data.x, calls.data.state
    if state is None:
        raise TypeError("expected a case with a state")
    yield "x in another order", calls.forward(x=x, out=x[::-1]), ValueError, "out"
    longer = calls.device(np.concatenate([calls.case.data.x, calls.case.data.x[:1]]))
    yield "x one step off", calls.forward(x=longer[1:], out=longer[:-1]), ValueError, "out"
    rows = calls.device(np.concatenate([calls.case.data.x] * 2, axis=1))
    yield "x in every second row", calls.forward(x=rows[:, ::2], out=rows[:, : x.shape[1]]), ValueError, "out"
    for name, array in zip(State._fields, state, strict=True):
        if array.dtype == empty.dtype:
            for step in (0, len(empty) - 1):
                room = calls.device(empty)
                pair = state._replace(**{name: room[step]})
                yield f"step {step} is state.{name}", calls.forward(state=pair, out=room), ValueError, "out"


def _overlaps_of_masks(tested: BackendUnderTest, square: Case, empty: Array) -> Iterator[Mistake]:
    """Yield an out that is the mask of a zoneout, if masks are declared and have the dtype of y."""
    model = config_of({**SWITCHES["square"], "zoneout_hidden": 0.25})
    case = replace(square, name="mistakes,square,masks", model=model, masks=True)
    if tested.refusal(case) is None and case.policy.compute == case.policy.storage:
        room = tested.backend.to_device(empty.copy())
        masks = Masks(zoneout_hidden=room)
        yield "a mask", Calls(tested, case).forward(masks=masks, out=room), ValueError, "out"


def _of_numpy(calls: Calls, empty: Array) -> Iterator[Mistake]:
    """Yield arrays of NumPy that are read-only, or two of whose elements share memory."""
    frozen = empty.copy()
    frozen.flags.writeable = False
    yield "read-only", calls.forward(out=frozen), ValueError, "out"
    step, row, number = empty.strides
    for what, strides in (
        ("one row for all", (step, 0, number)),
        ("one step for all", (0, row, number)),
        ("rows that begin within others", (step, number, number)),
        ("steps that begin within others", (row, row, number)),
    ):
        shared: Any = as_strided(np.zeros_like(empty), empty.shape, strides)
        yield f"entries that share memory: {what}", calls.forward(out=shared), ValueError, "out"
