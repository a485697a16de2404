"""Checks of explicit random masks: dropout on the recurrent input and zoneout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore.backend import Masks, StackMasks
from lstmcore.config import StackConfig
from lstmcore.lstm import LSTM
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.switches import SWITCHES, TOGETHER, config_of
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.oracle.composition import forward_pass
from lstmcore_conformance.oracle.philox import masks_of
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, compare, same_bits
from lstmcore_conformance.suite.check import Scope, check

MODELS = (
    "zoneout_hidden",
    "zoneout_hidden,proj_size",
    "zoneout_cell",
    "zoneout_cell,cell_clip",
    "zoneout_cell,peephole",
    "zoneout_all",
    "recurrent_dropout",
    *TOGETHER,
)


def mask_cases(scope: Scope) -> Iterator[Case]:
    """Yield every kind of mask, alone and together, in both directions, with and without lengths."""
    for precision in scope.precisions:
        for name in MODELS:
            for reverse in (False, True):
                model = config_of({**SWITCHES[name], "reverse": reverse})
                case = Case(
                    name=f"masks,{name}{',reverse' if reverse else ''}", model=model, precision=precision, masks=True
                )
                yield case
                if reverse and "lengths" in scope.declared.features:
                    yield replace(case, name=f"{case.name},lengths", lengths=(4, 0, 2))


@check("masks.forward", "y and the final state are right with masks", section=5, cases=mask_cases, needs=("masks",))
def forward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.forward(case), budgets.forward(case))


@check(
    "masks.backward",
    "every gradient is right with masks: what was masked in forward is masked in backward",
    section=5,
    cases=mask_cases,
    needs=("masks", "backward"),
)
def backward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.gradients(case), budgets.gradients(case))


@check(
    "masks.jvp", "the directional derivative is right with masks", section=5, cases=mask_cases, needs=("masks", "jvp")
)
def jvp(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.tangents(case), {**budgets.forward(case), **budgets.tangents(case)})


def partial_cases(scope: Scope) -> Iterator[Case]:
    """Yield one mask for models that can have three."""
    for precision in scope.precisions:
        for name in ("everything", "everything_coupled"):
            for mask in Masks._fields:
                model = config_of(SWITCHES[name])
                yield Case(name=f"only_{mask},{name}", model=model, precision=precision, masks=mask)


@check(
    "masks.partial",
    "a mask that is None beside others is the behaviour at inference, forward and backward",
    section=5,
    cases=partial_cases,
    needs=("masks",),
)
def partial(tested: BackendUnderTest, case: Case) -> Measure:
    if "backward" not in tested.declared.derivatives:
        return compare(tested.forward(case), budgets.forward(case))
    return compare(tested.forward(case) | tested.gradients(case), {**budgets.forward(case), **budgets.gradients(case)})


@check(
    "masks.empty",
    "masks that are all None are the same as no masks, bit by bit",
    section=5,
    cases=lambda scope: (
        Case(name=f"no_masks,{name}", model=config_of(SWITCHES[name]), precision=precision)
        for precision in scope.precisions
        for name in ("plain", "everything")
    ),
    needs=("masks",),
)
def empty(tested: BackendUnderTest, case: Case) -> None:
    same_bits("Masks() and None", tested.forward(case, replace(case.data, masks=Masks())), tested.forward(case))


@check(
    "masks.kept",
    "where every zoneout mask is 1 the state never changes, up to rounding",
    section=5,
    cases=lambda scope: (
        Case(
            name="kept", model=config_of({"zoneout_hidden": 0.5, "zoneout_cell": 0.5}), precision=precision, masks=True
        )
        for precision in scope.precisions
    ),
    needs=("masks",),
)
def kept(tested: BackendUnderTest, case: Case) -> Measure:
    state = case.data.state
    if state is None or not isinstance(case.data.masks, Masks):
        raise TypeError(f"case {case.id}: expected a state and masks of one layer")
    ones = Masks(*(None if mask is None else np.ones_like(mask) for mask in case.data.masks))
    got = tested.forward(case, replace(case.data, masks=ones))
    held = np.broadcast_to(state.h, got["y"].shape)
    values = {"y": held, "h_n": state.h, "c_n": state.c}
    return compare(got, {name: replace(want, value=values[name]) for name, want in budgets.forward(case).items()})


#: The row and the step that differ, and the other rows.
ROW: Final = 1
STEP: Final = 1
OTHERS: Final = [0, 2, 3]


def odd_cases(scope: Scope) -> Iterator[Case]:
    """Yield a model with both zoneouts and their masks."""
    for precision in scope.precisions:
        model = config_of({"zoneout_hidden": 0.5, "zoneout_cell": 0.5})
        yield Case(name="zoneout", model=model, precision=precision, batch=4, masks=True)


def _with_masks(case: Case, step: Any, number: float) -> Data:
    """Return the data with a number in all masks of one row, in some steps."""
    data = case.data.map(np.array)
    for mask in data.masks or ():
        if mask is not None:
            mask[step, ROW] = number
    return data


@check(
    "masks.unselected",
    "a NaN that zoneout does not select gives NaN or the selected number, in its row alone",
    section=5,
    cases=odd_cases,
    needs=("masks",),
)
def unselected(tested: BackendUnderTest, case: Case) -> Measure:
    """The masks keep the old state in a step whose x is NaN, so that the new state is NaN and is not selected."""
    data = _with_masks(case, STEP, 1)
    right = forward_pass(case.model, data, "float64").outputs
    data.x[STEP, ROW] = np.nan
    got = tested.forward(case, data)
    right = {name: np.where(_lost(got[name], ROW), np.nan, value) for name, value in right.items()}
    return compare(got, {name: replace(want, value=right[name]) for name, want in budgets.forward(case).items()})


def _lost(array: Array, row: int) -> Array:
    """Return where one row of an output is NaN."""
    lost: Array = np.isnan(array) & (np.arange(array.shape[-2]) == row)[:, None]
    return lost


@check(
    "masks.odd",
    "a mask with other values than 0, 1 and 1 / (1 - rate) changes no other row",
    section=5,
    cases=odd_cases,
    needs=("masks",),
)
def odd(tested: BackendUnderTest, case: Case) -> Measure:
    got = tested.forward(case, _with_masks(case, slice(None), 0.375))
    kept = {name: array[..., OTHERS, :] for name, array in got.items()}
    known = budgets.forward(case).items()
    return compare(kept, {name: replace(want, value=want.value[..., OTHERS, :]) for name, want in known})


@check(
    "masks.generator",
    "an LSTM on the backend draws the masks that section 5 defines, bit by bit, and computes with them",
    section=5,
    cases=lambda scope: (
        Case(
            name="generator",
            model=StackConfig.make(
                config_of({**SWITCHES["everything"], "reverse": False}), num_layers=2, bidirectional=True, dropout=0.25
            ),
            precision=precision,
            masks=True,
        )
        for precision in scope.precisions
    ),
    needs=("masks", "backward"),
)
def generator(tested: BackendUnderTest, case: Case) -> None:
    seed, step, stack = 0x9E3779B97F4A7C15, 3, case.stack
    if stack is None:
        raise TypeError(f"case {case.id}: expected a stack")
    lstm = LSTM.from_config(stack, case.data.parameters, dtype=case.precision, backend=tested.backend, seed=seed)
    lstm.step = step
    with tested.guard("record"):
        y, (h, c), tape = lstm.record(case.data.x)
    masks = masks_of(stack, case, seed, step)
    same_bits("the masks", dict(_named(tape.masks)), dict(_named(masks)))
    explicit = tested.forward(case, replace(case.data, state=None, masks=masks))
    same_bits("with the masks of the specification", {"y": y, "h_n": h, "c_n": c}, explicit)


def _named(masks: StackMasks | None) -> Iterator[tuple[str, Array]]:
    if masks is None:
        return
    yield from ((f"dropout[{layer}]", mask) for layer, mask in enumerate(masks.dropout))
    for index, layer in enumerate(masks.layers):
        yield from ((f"{name}[{index}]", mask) for name, mask in layer._asdict().items() if mask is not None)
