"""Checks of NaN and of kinks: no function hides a NaN, and derivatives take the named side of every bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.switches import FUNCTIONS, SWITCHES, config_of
from lstmcore_conformance.checks.derivatives import data_of, near
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.oracle.composition import backward_pass, forward_pass, jvp_pass
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare
from lstmcore_conformance.suite.check import Scope, check

#: The row that has a NaN, and the others.
ROW: Final = 2
OTHERS: Final = [0, 1, 3, 4]
#: Role of a function -> the gates by whose bias its argument becomes infinite.
ROLES: Final[Mapping[str, str]] = {"gate_activation": "ifo", "cell_activation": "g", "hidden_activation": "g"}


def nan_cases(scope: Scope) -> Iterator[Case]:
    """Yield every clip and every function with a NaN in x, h0 or c0.

    All three activations are the same function, since 0 * NaN would show a NaN that one of them hides. One step is
    enough, and no function grows beyond float16 in it.
    """
    models: dict[str, Mapping[str, Any]] = {name: SWITCHES[name] for name in ("gate_clip", "cell_clip", "proj_clip")}
    roles = ("gate_activation", "cell_activation", "hidden_activation")
    models |= {function: dict.fromkeys(roles, function) for function in FUNCTIONS}
    for precision in scope.precisions:
        for name, changes in models.items():
            for where in ("x", "h", "c"):
                model = config_of(changes)
                yield Case(name=f"nan;{where};{name}", model=model, precision=precision, steps=1, batch=5)


def with_nan(case: Case) -> Data:
    """Return the data with a NaN in one row of the array that the name of the case says."""
    data, where = case.data.map(np.array), case.name.split(";")[1]
    if data.state is None:
        raise TypeError(f"case {case.id}: expected a state")
    target = {"x": data.x[0], "h": data.state.h, "c": data.state.c}[where]
    target[ROW, :] = np.nan
    return data


@check(
    "values.nan",
    "a NaN in x, h or c makes NaN what the equations say, in its row alone: no clip and no function hides it",
    section=3,
    cases=nan_cases,
)
def nan(tested: BackendUnderTest, case: Case) -> Measure:
    data = with_nan(case)
    right = forward_pass(case.model, data, "float64").outputs
    got, known = tested.forward(case, data), budgets.forward(case)
    for name, want in right.items():
        hidden = np.isnan(want) & ~np.isnan(got[name])
        if hidden.any():
            index = [int(i) for i in np.argwhere(hidden)[0]]
            raise Failure(f"{name}{index}: expected NaN; got {got[name][tuple(index)]!r}")
    rest = {name: array[..., OTHERS, :] for name, array in got.items()}
    return compare(rest, {name: replace(known[name], value=known[name].value[..., OTHERS, :]) for name in rest})


@check(
    "backward.nan",
    "at NaN, where a derivative may be anything, calls return arrays of the right shapes and keep the other rows",
    section=7,
    cases=nan_cases,
    needs=("backward",),
)
def derivatives_at_nan(tested: BackendUnderTest, case: Case) -> Measure:
    data, expected = with_nan(case), dict(budgets.gradients(case))
    got = tested.gradients(case, data)
    if "jvp" in tested.declared.derivatives:
        expected |= {name: want for name, want in budgets.tangents(case).items() if name.startswith("t")}
        got |= tested.tangents(case, data)
    for name, want in expected.items():
        if (got[name].shape, str(got[name].dtype)) != (want.value.shape, want.dtype):
            raise Failure(f"{name}: expected {want.dtype}{want.value.shape}; got {got[name].dtype}{got[name].shape}")
    apart = [name for name in expected if not name.startswith("d_")]  # gradients of parameters sum over rows
    rest = {name: replace(expected[name], value=expected[name].value[..., OTHERS, :]) for name in apart}
    return compare({name: got[name][..., OTHERS, :] for name in apart}, rest)


def infinity_cases(scope: Scope) -> Iterator[Case]:
    """Yield every function with an infinite argument of either sign; in the output those that have a formula."""
    for precision in scope.precisions:
        for function in FUNCTIONS:
            formula = function.partition("(")[0] in ("tanh", "softplus", "elu", "softsign")
            for role in ROLES if formula else ("gate_activation", "cell_activation"):
                inner = {"cell_activation": "identity"} if role == "hidden_activation" else {}
                for sign in "+-":
                    model = config_of({**inner, role: function})
                    yield Case(name=f"{sign}inf;{role};{function}", model=model, precision=precision, steps=1)


def with_bias(case: Case, gates: str, number: float) -> Data:
    """Return the data with `number` as the bias of all units of some gates."""
    data = case.data.map(np.array)
    for gate in gates:
        data.parameters["bias"][_rows(case, gate)] = number
    return data


def _rows(case: Case, gate: str) -> slice:
    """Return the rows of a gate in its stacked parameters."""
    hidden, position = case.config.hidden_size, case.config.gates.index(gate)
    return slice(position * hidden, (position + 1) * hidden)


@check(
    "values.infinity",
    "a function of an infinite number is its limit, or what IEEE 754 says",
    section=3,
    cases=infinity_cases,
)
def infinity(tested: BackendUnderTest, case: Case) -> Measure:
    sign, role, _ = case.name.split(";")
    data = with_bias(case, ROLES[role], float(sign))
    right = forward_pass(case.model, data, "float64").outputs
    allowed = near(case, {name: np.where(np.isfinite(array), array, 0) for name, array in right.items()})
    return compare(
        tested.forward(case, data), {name: replace(allowed[name], value=array) for name, array in right.items()}
    )


#: Name -> a clip that gets a NaN, and the gate with the NaN, whose gradient no other NaN meets.
CLIPPED: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "gate_clip": ({"gate_clip": 0.5, "gate_activation": "identity", "hidden_activation": "identity"}, "i"),
    "cell_clip": ({"cell_clip": 0.5, "cell_activation": "identity", "hidden_activation": "identity"}, "g"),
}


def clipped_cases(scope: Scope) -> Iterator[Case]:
    """Yield the clips of `CLIPPED`; the scalar uses c alone."""
    for precision in scope.precisions:
        for name, (changes, _) in CLIPPED.items():
            case = Case(name=f"clipped;{name}", model=config_of(changes), precision=precision, steps=1)
            yield replace(case, dy=False, dh=False)


@check(
    "backward.clipped_nan",
    "the derivative of the clip of a gate or a cell at NaN is 0",
    section=7,
    cases=clipped_cases,
    needs=("backward",),
)
def clipped_nan(tested: BackendUnderTest, case: Case) -> None:
    _, gate = CLIPPED[case.name.split(";")[1]]
    got = tested.gradients(case, with_bias(case, gate, np.nan))["d_bias"][_rows(case, gate)]
    if got.any():
        raise Failure(f"d_bias: expected 0 for gate {gate}, whose clip gets a NaN; got {got[0]}")


_IDENTITY: Final = {"gate_activation": "identity", "cell_activation": "identity"}
_SIGMOID: Final = "hard_sigmoid(alpha=0.25, beta=0.5)"
#: Name -> the configuration, the value of every bias and the initial c; as `derivatives.KINKS`.
SIDES: Final[Mapping[str, tuple[Mapping[str, Any], float, float]]] = {
    "gate_clip,on": ({"gate_clip": 0.5}, 0.5, 0.25),
    "gate_clip,-on": ({"gate_clip": 0.5}, -0.5, 0.25),
    "gate_clip,outside": ({"gate_clip": 0.5}, 0.625, 0.25),
    "gate_clip,-outside": ({"gate_clip": 0.5}, -0.625, 0.25),
    "cell_clip,on": ({"cell_clip": 0.5, **_IDENTITY}, 0.5, 0.5),
    "cell_clip,-on": ({"cell_clip": 0.5, **_IDENTITY}, 0.5, -1.5),
    "cell_clip,outside": ({"cell_clip": 0.25, **_IDENTITY}, 0.5, 0.5),
    "cell_clip,-outside": ({"cell_clip": 0.25, **_IDENTITY}, 0.5, -1.5),
    "proj_clip,on": ({"proj_size": 3, "proj_clip": 0.125, "hidden_activation": "identity", **_IDENTITY}, 0.5, 0.0),
    "proj_clip,outside": (
        {"proj_size": 3, "proj_clip": 0.0625, "hidden_activation": "identity", **_IDENTITY},
        0.5,
        0.0,
    ),
    "proj_clip,-on": ({"proj_size": 3, "proj_clip": 0.125, "hidden_activation": "identity", **_IDENTITY}, -0.5, 0.0),
    "gate_relu": ({"gate_activation": "relu"}, 0.0, 0.25),
    "cell_relu": ({"cell_activation": "relu"}, 0.0, 0.25),
    "thresholded_relu": ({"cell_activation": "thresholded_relu(alpha=0.5)"}, 0.5, 0.25),
    "leaky_relu": ({"cell_activation": "leaky_relu(alpha=0.25)"}, 0.0, 0.25),
    "elu": ({"cell_activation": "elu(alpha=0.25)"}, 0.0, 0.25),
    "hard_sigmoid,1": ({"gate_activation": _SIGMOID}, 2.0, 0.25),
    "hard_sigmoid,0": ({"gate_activation": _SIGMOID}, -2.0, 0.25),
    "hidden_relu": ({"hidden_activation": "relu", "cell_activation": "identity"}, 0.0, 0.0),
}


def side_cases(scope: Scope) -> Iterator[Case]:
    """Yield values exactly on a kink, and outside of both bounds."""
    for precision in scope.precisions:
        for name, (changes, _, _) in SIDES.items():
            yield Case(name=f"side;{name}", model=config_of(changes), precision=precision, steps=1, draw=0)


def on_side(case: Case) -> Data:
    """Return the data of one of `side_cases`: weights of 0, so that every z is the bias; numbers are exact."""
    data = data_of(case, *SIDES[case.name.split(";")[1]][1:])
    if "weight_proj" in data.parameters:
        data.parameters["weight_proj"][:, 0] = 1  # q of unit 0 is h
    return data


def _right(case: Case, data: Data) -> dict[str, Array]:
    done = forward_pass(case.model, data, "float64")
    return backward_pass(case.model, data, done, "float64") | jvp_pass(case.model, data, done, "float64")


@check(
    "jvp.kinks",
    "on a kink the derivative along tangents takes the side that the specification names, at both bounds",
    section=7,
    cases=side_cases,
    needs=("jvp",),
)
def jvp_kinks(tested: BackendUnderTest, case: Case) -> Measure:
    data = on_side(case)
    right = {name: array for name, array in _right(case, data).items() if name.startswith("t")}
    return compare(tested.tangents(case, data), near(case, right))


@check(
    "backward.both_bounds",
    "on a kink the gradient takes the side that the specification names, at both bounds of every clip",
    section=7,
    cases=side_cases,
    needs=("backward",),
)
def backward_kinks(tested: BackendUnderTest, case: Case) -> Measure:
    data = on_side(case)
    right = {name: array for name, array in _right(case, data).items() if name.startswith("d")}
    return compare(tested.gradients(case, data), near(case, right))


# Tangents of some arguments -------------------------------------------------------------------------------------------


def some_cases(scope: Scope) -> Iterator[Case]:
    """Yield models with a tangent of one parameter alone, and of an initial state that is None."""
    for precision in scope.precisions:
        for name in ("peephole", "proj_size", "layer_norm"):
            model = config_of(SWITCHES[name])
            for parameter in model.parameter_shapes:
                yield Case(name=f"some;{parameter};{name}", model=model, precision=precision)
            if name != "layer_norm":  # it divides by sqrt(eps) where the state is zeros: no other state has that error
                yield Case(name=f"some;no_state;{name}", model=model, precision=precision, state=False)


@check(
    "jvp.some",
    "tangents of one parameter alone, and of an initial state that is None, are right",
    section=7,
    cases=some_cases,
    needs=("jvp",),
)
def some(tested: BackendUnderTest, case: Case) -> Measure:
    data, kind = case.data, case.name.split(";")[1]
    if kind == "no_state":
        tangents = data.tangents._replace(state=replace(case, state=True).data.tangents.state)
    else:
        tangents = data.tangents._replace(x=None, state=None, parameters={kind: (data.tangents.parameters or {})[kind]})
    data = replace(data, tangents=tangents)
    right = jvp_pass(case.model, data, forward_pass(case.model, data, "float64"), "float64")
    allowed = budgets.tangents(replace(case, state=True))
    expected = {name: replace(want, value=right[name]) for name, want in allowed.items()}
    return compare(tested.tangents(case, data), expected)
