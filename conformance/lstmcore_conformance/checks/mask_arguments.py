"""Checks of explicit random masks: dropout on the recurrent input and zoneout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lstmcore.backend import Masks, StackMasks
from lstmcore.config import StackConfig
from lstmcore.lstm import LSTM
from lstmcore_conformance.cases.case import Array, Case
from lstmcore_conformance.cases.switches import SWITCHES, TOGETHER, config_of
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
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
