"""Checks of derivatives: scalars of some outputs, linearity, the adjoint identity and the sides of kinks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lstmcore import reference
from lstmcore.backend import State, Tangents
from lstmcore.config import StackConfig
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.switches import MASKED, SWITCHES, config_of
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Expectation, Expected, Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare
from lstmcore_conformance.suite.check import Scope, check


def use_cases(scope: Scope) -> Iterator[Case]:
    """Yield scalars that use y alone, the final h alone, the final c alone or both."""
    for precision in scope.precisions:
        for name in ("plain", "reverse", "proj_size", "recurrence_cell", "zoneout_hidden", "everything"):
            model = config_of(SWITCHES[name])
            for use, dy, dh, dc in (
                ("y", True, False, False),
                ("h", False, True, False),
                ("c", False, False, True),
                ("state", False, True, True),
            ):
                yield Case(name=f"{use},{name}", model=model, precision=precision, dy=dy, dh=dh, dc=dc)
            yield Case(name=f"T=0,state,{name}", model=model, precision=precision, steps=0, dy=False)


@check(
    "backward.uses",
    "gradients are right where the scalar uses only y, only the final h or only the final c",
    section=7,
    cases=use_cases,
    needs=("backward",),
)
def uses(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.gradients(case), budgets.gradients(case))


@check(
    "backward.nothing",
    "gradients are zeros of the right shapes where the scalar uses nothing",
    section=7,
    cases=lambda scope: (
        Case(name="nothing", model=config_of({}), precision=precision, dy=False, dh=False, dc=False)
        for precision in scope.precisions
    ),
    needs=("backward",),
)
def nothing(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.gradients(case), budgets.gradients(case))


def derivative_cases(scope: Scope) -> Iterator[Case]:
    """Yield a few models for the properties."""
    for precision in scope.precisions:
        for name in ("plain", "reverse", "proj_size", "layer_norm", "everything", "everything_coupled"):
            yield Case(
                name=f"property,{name}",
                model=config_of(SWITCHES[name]),
                precision=precision,
                lengths=(4, 0, 2) if "lengths" in scope.declared.features else None,
            )


@check(
    "backward.linear",
    "backward of dy + dstate is the sum of backward of each",
    section=7,
    cases=derivative_cases,
    needs=("backward",),
)
def linear(tested: BackendUnderTest, case: Case) -> Measure:
    data = tested.device(case.data)
    weights = tested.pack(case, data)
    done = tested.call(case, data, record=True, weights=weights)
    of_y = tested.backward(case, replace(data, dstate=None), weights, done)
    of_state = tested.backward(case, replace(data, dy=None), weights, done)
    total = {name: (array.astype(np.float64) + of_state[name]).astype(array.dtype) for name, array in of_y.items()}
    return compare(total, budgets.gradients(case))


@check(
    "jvp.adjoint",
    "(J v) . w = v . (J^T w) for the backend's own jvp and backward",
    section=7,
    cases=derivative_cases,
    needs=("backward", "jvp"),
)
def adjoint(tested: BackendUnderTest, case: Case) -> Measure:
    data = case.data
    forward, backward = tested.tangents(case), tested.gradients(case)
    if data.dy is None or data.dstate is None or data.tangents.state is None:
        raise TypeError(f"case {case.id}: expected dy, dstate and tangents of the state")
    outputs = {"ty": data.dy, "th_n": data.dstate.h, "tc_n": data.dstate.c}
    inputs = {"dx": data.tangents.x, "dh0": data.tangents.state.h, "dc0": data.tangents.state.c}
    inputs |= {f"d_{name}": array for name, array in (data.tangents.parameters or {}).items()}
    left = sum(_dot(forward[name], array) for name, array in outputs.items())
    right = sum(_dot(backward[name], array) for name, array in inputs.items())
    budget = sum(
        expected[name].budget * float(np.linalg.norm(np.asarray(array, np.float64)))
        for expected, arrays in ((budgets.tangents(case), outputs), (budgets.gradients(case), inputs))
        for name, array in arrays.items()
    )
    share = abs(left - right) / budget
    worst = Measure(share, "(J v) . w and v . (J^T w)", (), left, right, budget)
    if not share <= 1:
        raise Failure(str(worst), worst)
    return worst


def _dot(a: Any, b: Any) -> float:
    return float(np.vdot(np.asarray(a, np.float64), np.asarray(b, np.float64)))


def tangent_cases(scope: Scope) -> Iterator[Case]:
    """Yield one kind of tangent at a time, also with masks and lengths, and in a stack with dropout."""
    lengths = (4, 0, 2) if "lengths" in scope.declared.features else None
    masks = "masks" in scope.declared.features
    shape = {"num_layers": 3, "dropout": 0.4} if masks else {"num_layers": 3}
    for precision in scope.precisions:
        for kind in ("x", "state", "parameters", "nothing"):
            case = Case(name=f"tangent,{kind}", model=config_of(SWITCHES["peephole"]), precision=precision)
            yield case
            if kind != "nothing":
                for name in MASKED:
                    model = config_of({**SWITCHES[name], "reverse": kind == "state"})
                    named = replace(case, name=f"tangent,{kind},{name}")
                    yield replace(named, model=model, masks=masks, lengths=lengths)
                stack = StackConfig.make(config_of({}), **shape)
                yield replace(case, name=f"tangent,{kind},stack", model=stack, masks=masks)


@check("jvp.partial", "a tangent that is left out is zero", section=7, cases=tangent_cases, needs=("jvp",))
def partial(tested: BackendUnderTest, case: Case) -> Measure:
    kind = case.name.split(",")[1]
    data, full_tangents = case.data, case.data.tangents
    only = Tangents(**({kind: getattr(full_tangents, kind)} if kind != "nothing" else {}))
    zeros = Tangents(
        _like(full_tangents.x, only.x),
        None
        if full_tangents.state is None
        else State(*(_like(a, b) for a, b in zip(full_tangents.state, only.state or (None,) * 2, strict=True))),
        {
            name: _like(array, (only.parameters or {}).get(name))
            for name, array in (full_tangents.parameters or {}).items()
        },
    )
    full = tested.tangents(case, replace(data, tangents=zeros))
    part = tested.tangents(case, replace(data, tangents=only))
    expected = {
        name: replace(want, value=np.asarray(full[name], np.float64)) for name, want in budgets.tangents(case).items()
    }
    return compare(part, expected)


def _like(array: Array | None, kept: Array | None) -> Array | None:
    if kept is not None or array is None:
        return kept
    return np.zeros_like(array)


#: Name -> the configuration, the value of every bias and the initial c. Weights are 0, so every z is the bias. All
#: numbers are exact in every precision, so that the value lies on the kink itself.
KINKS: dict[str, tuple[dict[str, Any], float, float]] = {
    "gate_clip,on": ({"gate_clip": 0.5}, 0.5, 0.25),
    "gate_clip,-on": ({"gate_clip": 0.5}, -0.5, 0.25),
    "gate_clip,outside": ({"gate_clip": 0.5}, 0.625, 0.25),
    "cell_clip,on": ({"cell_clip": 0.5, "gate_activation": "identity", "cell_activation": "identity"}, 0.5, 0.5),
    "cell_clip,outside": ({"cell_clip": 0.25, "gate_activation": "identity", "cell_activation": "identity"}, 0.5, 0.5),
    "relu": ({"cell_activation": "relu"}, 0.0, 0.25),
    "thresholded_relu": ({"cell_activation": "thresholded_relu(alpha=0.5)"}, 0.5, 0.25),
    "leaky_relu": ({"cell_activation": "leaky_relu(alpha=0.25)"}, 0.0, 0.25),
    "elu": ({"cell_activation": "elu(alpha=0.25)"}, 0.0, 0.25),
    "softsign": ({"cell_activation": "softsign"}, 0.0, 0.25),
    "hard_sigmoid,1": ({"gate_activation": "hard_sigmoid(alpha=0.25, beta=0.5)"}, 2.0, 0.25),
    "hard_sigmoid,0": ({"gate_activation": "hard_sigmoid(alpha=0.25, beta=0.5)"}, -2.0, 0.25),
    "hidden_relu": ({"hidden_activation": "relu", "cell_activation": "identity"}, 0.0, 0.0),
}


def kink_cases(scope: Scope) -> Iterator[Case]:
    """Yield values that lie exactly on a kink."""
    for precision in scope.precisions:
        for name, (changes, _, _) in KINKS.items():
            yield Case(name=f"kink,{name}", model=config_of(changes), precision=precision, steps=1)


@check(
    "backward.kinks",
    "on a kink the gradient takes the side that the specification names",
    section=7,
    cases=kink_cases,
    needs=("backward",),
)
def kinks(tested: BackendUnderTest, case: Case) -> Measure:
    data, _, expected = on_kink(case)
    return compare(tested.gradients(case, data), expected)


def on_kink(case: Case) -> tuple[Data, Expectation, Expectation]:
    """Return the data of one of `kink_cases`, and what is expected of its outputs and gradients."""
    data = data_of(case, *KINKS[case.name.split(",", 1)[1]][1:])
    y, last, tape = reference.forward(case.config, data.parameters, data.x, data.state)
    right = reference.backward(case.config, tape, data.dy, data.dstate)
    outputs = {"y": y, "h_n": last.h, "c_n": last.c}
    gradients = {"dx": right.x, "dh0": right.state.h, "dc0": right.state.c}
    gradients |= {f"d_{name}": array for name, array in right.parameters.items()}
    return data, near(case, outputs), near(case, gradients)


def data_of(case: Case, bias: float, cell: float) -> Data:
    """Return the data of a case with weights of 0, so that every z is `bias`, and a state whose c is `cell`."""
    data = case.data.map(np.array)
    if data.state is None:
        raise TypeError(f"case {case.id}: expected a state")
    for name, array in data.parameters.items():
        array[...] = bias if name == "bias" else 0
    data.state.c[...] = cell
    return data


def near(case: Case, arrays: Mapping[str, Array]) -> Expectation:
    """Return `arrays` with budgets of some roundings: a single step of exact numbers has no larger error."""
    return {
        name: Expected(
            array, 16 * case.policy.epsilon * max(1.0, float(np.abs(array).max())), budgets.dtype_of(name, case)
        )
        for name, array in arrays.items()
    }
