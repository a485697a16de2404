"""Checks of stacks: layers, directions and the dropout between layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore.backend import State
from lstmcore.config import StackConfig
from lstmcore.lstm import LSTM
from lstmcore.precision import numpy_dtype
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.oracle.composition import forward_pass
from lstmcore_conformance.oracle.philox import initial_of
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare
from lstmcore_conformance.suite.check import Scope, check
from lstmcore_conformance.suite.device_memory import overwritten

#: Name -> the switches, the shape of the stack, and whether the call has masks.
STACKS: Final[Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], bool]]] = {
    "L=1": ({}, {}, False),
    "L=2": ({}, {"num_layers": 2}, False),
    "L=3": ({"bias": False}, {"num_layers": 3}, False),
    "L=4": ({}, {"num_layers": 4}, False),
    "D=2": ({}, {"bidirectional": True}, False),
    "L=2,D=2": ({}, {"num_layers": 2, "bidirectional": True}, False),
    "L=3,D=2,proj": (SWITCHES["proj_size"], {"num_layers": 3, "bidirectional": True}, False),
    "L=2,D=2,dropout": ({}, {"num_layers": 2, "bidirectional": True, "dropout": 0.4}, True),
    "L=3,dropout": ({}, {"num_layers": 3, "dropout": 0.4}, True),
    "L=3,dropout,inference": ({}, {"num_layers": 3, "dropout": 0.4}, False),
    "L=2,D=2,peephole": (SWITCHES["peephole"], {"num_layers": 2, "bidirectional": True}, False),
    "L=2,D=2,everything": (
        {**SWITCHES["everything"], "reverse": False},
        {"num_layers": 2, "bidirectional": True, "dropout": 0.25},
        True,
    ),
    "L=2,everything_coupled": (SWITCHES["everything_coupled"], {"num_layers": 2, "dropout": 0.25}, True),
}


def stack_cases(scope: Scope) -> Iterator[Case]:
    """Yield one to four layers, both directions, dropout between layers, with and without lengths and a state."""
    for precision in scope.precisions:
        for name, (switches, shape, masks) in STACKS.items():
            case = Case(
                name=name, model=StackConfig.make(config_of(switches), **shape), precision=precision, masks=masks
            )
            yield case
            if "lengths" in scope.declared.features and ("D=2" in name or masks):
                yield replace(case, name=f"{name},lengths", lengths=(2, 0, 4))
            if name == "L=2,D=2,dropout":
                yield replace(case, name=f"{name},T=1", steps=1)
            if name in ("L=2,D=2", "L=3,D=2,proj"):
                yield replace(case, name=f"{name},no_state", state=False)
                yield replace(case, name=f"{name},T=0", steps=0)
                yield replace(case, name=f"{name},N=0", batch=0)
                yield replace(case, name=f"{name},T=1", steps=1)
                yield replace(case, name=f"{name},state_only", dy=False)


@check("stack.forward", "y and the final state of all layers and directions are right", section=6, cases=stack_cases)
def forward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.forward(case), budgets.forward(case))


@check(
    "stack.backward",
    "every gradient through layers, directions and dropout is right",
    section=6,
    cases=stack_cases,
    needs=("backward",),
)
def backward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.gradients(case), budgets.gradients(case))


@check(
    "stack.jvp",
    "the directional derivative through layers, directions and dropout is right",
    section=6,
    cases=stack_cases,
    needs=("jvp",),
)
def jvp(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.tangents(case), {**budgets.forward(case), **budgets.tangents(case)})


@check(
    "stack.streaming",
    "layers in one direction, one step a call, give what one call gives",
    section=6,
    cases=lambda scope: (
        Case(
            name=f"streaming,{name}",
            model=StackConfig.make(config_of(SWITCHES[name]), num_layers=3),
            precision=precision,
        )
        for precision in scope.precisions
        for name in ("plain", "proj_size", "recurrence_cell")
    ),
)
def streaming(tested: BackendUnderTest, case: Case) -> Measure:
    state, rows = case.data.state, []
    for t in range(case.steps):
        got = tested.forward(case, replace(case.data, x=case.data.x[t : t + 1], state=state))
        state = State(got["h_n"], got["c_n"])
        rows.append(got["y"])
    if state is None:
        raise TypeError(f"case {case.id}: expected a state")
    return compare({"y": np.concatenate(rows), "h_n": state.h, "c_n": state.c}, budgets.forward(case))


@check(
    "stack.receipts",
    "there is a receipt for every layer and direction",
    section=6,
    cases=lambda scope: (
        case for case in stack_cases(scope) if case.name in ("L=1", "L=2,D=2") and case.precision == scope.precisions[0]
    ),
)
def all_receipts(tested: BackendUnderTest, case: Case) -> None:
    kernel = tested.kernel(case)
    with tested.guard("receipts"):
        receipts = kernel.receipts(case.steps, case.batch)
    if len(receipts) != len(case.configs):
        raise Failure(f"receipts: expected {len(case.configs)}, one for each layer and direction; got {len(receipts)}")


def owned_cases(scope: Scope) -> Iterator[Case]:
    """Yield stacks with masks, and one without, to be recorded by an LSTM."""
    return (case for case in stack_cases(scope) if case.masks or case.name == "L=2,D=2")


@check(
    "stack.owns",
    "a tape of a stack is right though x, the state, lengths and masks of its call are overwritten before backward",
    section=9,
    cases=owned_cases,
    needs=("backward",),
)
def owns(tested: BackendUnderTest, case: Case) -> Measure:
    data, stack = case.data.map(np.array), case.stack
    if stack is None:
        raise TypeError(f"case {case.id}: expected a stack")
    with tested.guard("record"):
        lstm = LSTM.from_config(stack, data.parameters, dtype=case.precision, backend=tested.backend)
        _, last, tape = lstm.record(data.x, data.state, data.lengths, masks=data.masks)
    if data.lengths is not None:
        data.lengths[...] = 0
    given = {name: array for name, array in data.arrays() if name == "x" or name.startswith(("state.", "masks["))}
    with overwritten({**given, "h_n": last.h, "c_n": last.c}):
        with tested.guard("backward"):
            gradients = lstm.backward(tape, data.dy, data.dstate)
        return compare(tested.on_host(tested.named_gradients(case, gradients)), budgets.gradients(case))


#: Name -> the switches of an LSTM that is made from a seed, and whether it is orthogonal, with a forget bias of 1.
_SEEDED: Final[Mapping[str, tuple[Mapping[str, Any], bool]]] = {
    "uniform": ({}, False),
    "orthogonal": ({}, True),
    "layer_norm": (SWITCHES["layer_norm"], False),
    "proj_size,peephole": ({**SWITCHES["proj_size"], **SWITCHES["peephole"]}, True),
}
#: The last places of float64, by which a parameter may be off besides its rounding to the storage dtype.
_LAST_PLACES: Final = 2.0**-46


def seeded_cases(scope: Scope) -> Iterator[Case]:
    """Yield stacks that are made from a seed, uniform and orthogonal."""
    for precision in scope.precisions:
        for name, (switches, _) in _SEEDED.items():
            both = "reverse" in scope.declared.features
            model = StackConfig.make(config_of(switches), num_layers=2, bidirectional=both)
            yield Case(name=f"seeded;{name}", model=model, precision=precision, state=False)


@check(
    "stack.initial",
    "an LSTM that is made from a seed has the parameters of section 6, and the backend is right with them",
    section=6,
    cases=seeded_cases,
)
def initial(tested: BackendUnderTest, case: Case) -> Measure:
    seed, stack, orthogonal = 0xBB67AE8584CAA73B, case.stack, _SEEDED[case.name.split(";")[1]][1]
    if stack is None:
        raise TypeError(f"case {case.id}: expected a stack")
    init, forget_bias = ("orthogonal", 1.0) if orthogonal else ("uniform", None)
    with tested.guard("LSTM"):
        lstm = LSTM.from_config(
            stack, dtype=case.precision, backend=tested.backend, seed=seed, init=init, forget_bias=forget_bias
        )
        y, (h, c) = lstm(case.data.x)
    right = initial_of(stack, seed, orthogonal=orthogonal, forget_bias=forget_bias)
    for name, value in right.items():
        stored = value.astype(numpy_dtype(case.policy.storage)).astype(np.float64)
        off = np.abs(lstm.parameters[name].astype(np.float64) - value)
        if (off > np.abs(stored - value) + _LAST_PLACES).any():
            raise Failure(f"{name}: expected the parameters of section 6; got others, off by up to {off.max():.3g}")
    outputs = forward_pass(stack, replace(case.data, parameters=dict(lstm.parameters)), "float64").outputs
    known = budgets.forward(case)
    return compare({"y": y, "h_n": h, "c_n": c}, {name: replace(known[name], value=outputs[name]) for name in known})
