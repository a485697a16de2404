"""Checks of the state between calls: one call for T steps equals several calls that pass the state on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lstmcore.backend import State
from lstmcore_conformance.cases.case import Array, Case
from lstmcore_conformance.cases.metamorphic import piece
from lstmcore_conformance.cases.switches import MASKED, MEMORIES, SWITCHES, TOGETHER, config_of
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, compare
from lstmcore_conformance.suite.check import Scope, check


def piece_cases(scope: Scope) -> Iterator[Case]:
    """Yield models with every kind of memory between steps."""
    for precision in scope.precisions:
        for name in (*MEMORIES, *MASKED, "layer_norm", *TOGETHER):
            model = config_of(SWITCHES[name])
            random = model.zoneout_hidden or model.zoneout_cell or model.recurrent_dropout
            yield Case(
                name=f"pieces,{name}",
                model=model,
                precision=precision,
                steps=7,
                masks=bool(random) and "masks" in scope.declared.features,
            )


def pieces_of(case: Case, cuts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return start and stop of each piece, in the order in which they run."""
    ranges = list(zip((0, *cuts), (*cuts, case.steps), strict=True))
    return ranges[::-1] if case.config.reverse else ranges


def run_pieces(tested: BackendUnderTest, case: Case, cuts: tuple[int, ...]) -> dict[str, Array]:
    """Return the joined outputs of the pieces."""
    state, outputs = case.data.state, {}
    for start, stop in pieces_of(case, cuts):
        got = tested.forward(case, piece(case.data, start, stop, state))
        outputs[start, stop] = got["y"]
        state = State(got["h_n"], got["c_n"])
    y = np.concatenate([outputs[key] for key in sorted(outputs)])
    if state is None:
        raise TypeError(f"case {case.id}: expected a state")
    return {"y": y, "h_n": state.h, "c_n": state.c}


@check(
    "state.resume",
    "a sequence in pieces that hand the state on gives what one call gives",
    section=8,
    cases=piece_cases,
)
def resume(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(run_pieces(tested, case, (3,)), budgets.forward(case))


@check("state.streaming", "one step a call gives what one call for all steps gives", section=8, cases=piece_cases)
def streaming(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(run_pieces(tested, case, tuple(range(1, case.steps))), budgets.forward(case))


@check(
    "state.empty_piece",
    "a call with T = 0 in between changes nothing",
    section=8,
    cases=lambda scope: (case for case in piece_cases(scope) if "everything" in case.name or "plain" in case.name),
)
def empty_piece(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(run_pieces(tested, case, (3, 3)), budgets.forward(case))


@check(
    "state.pieces_backward",
    "backward through pieces, last to first, that hand on the gradient of the state gives what one call gives",
    section=7,
    cases=piece_cases,
    needs=("backward",),
)
def pieces_backward(tested: BackendUnderTest, case: Case) -> Measure:
    state, done = case.data.state, []
    for start, stop in pieces_of(case, (2, 5)):
        part = piece(case.data, start, stop, state)
        got = tested.forward(case, part)
        done.append((start, part))
        state = State(got["h_n"], got["c_n"])
    dstate, dx = case.data.dstate, {}
    total: dict[str, Array] = {}
    for start, part in reversed(done):
        got = tested.gradients(case, replace(part, dstate=dstate))
        dstate, dx[start] = State(got["dh0"], got["dc0"]), got["dx"]
        for name, array in got.items():
            if name.startswith("d_"):
                total[name] = total.get(name, np.zeros(array.shape)) + array.astype(np.float64)
    if dstate is None:
        raise TypeError(f"case {case.id}: expected dstate")
    expected = budgets.gradients(case)
    named = {name: array.astype(done[0][1].x.dtype) for name, array in total.items()}
    joined = np.concatenate([dx[start] for start in sorted(dx)])
    return compare({"dx": joined, "dh0": dstate.h, "dc0": dstate.c} | named, expected)
