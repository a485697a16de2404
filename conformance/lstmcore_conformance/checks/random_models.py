"""Checks on random models: combinations, sizes and lengths that nobody chose.

The first three compare with the oracle. The others compare the backend with itself, and only their budgets come from
the oracle. Both sides of such a comparison may use their whole budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from lstmcore.backend import State
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.metamorphic import (
    backwards,
    padded_with,
    parameters_of,
    past_end,
    piece,
    reversed_rows,
    rows_of,
    units_of,
)
from lstmcore_conformance.cases.random_cases import Kind, Property, search
from lstmcore_conformance.cases.switches import config_of
from lstmcore_conformance.checks.contract import repeated, unchanged
from lstmcore_conformance.checks.derivatives import adjoint, linear
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Expected, Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, NotChecked, compare, same_bits
from lstmcore_conformance.suite.check import Scope, check


def drawn(id: str, claim: str, section: int, kind: Kind, needs: tuple[str, ...] = ()) -> Callable[[Property], Property]:
    """Register the decorated property of random cases as a check.

    Parameters
    ----------
    id, claim, section, needs
        The arguments of `check`; the id follows ``drawn.``.
    kind
        The cases for which the property holds.
    """

    def cases(scope: Scope) -> Iterator[Case]:
        for precision in scope.precisions:
            yield Case(name="drawn", model=config_of({}), precision=precision)

    def register(holds: Property) -> Property:
        check(f"drawn.{id}", claim, section=section, cases=cases, needs=needs)(
            lambda tested, case: search(tested, case.precision, kind, holds)
        )
        return holds

    return register


def twice(expected: Mapping[str, Expected], values: Mapping[str, Array]) -> dict[str, Expected]:
    """Return `values` as expected results with twice the budgets of `expected`, since both sides have an error."""
    return {
        name: replace(expected[name], value=np.asarray(value, np.float64), budget=2 * expected[name].budget)
        for name, value in values.items()
    }


def everything(tested: BackendUnderTest, case: Case, data: Data | None = None) -> dict[str, Array]:
    """Return the outputs and, if they are declared, the gradients."""
    arrays = tested.forward(case, data)
    return arrays | tested.gradients(case, data) if "backward" in tested.declared.derivatives else arrays


def allowance(tested: BackendUnderTest, case: Case) -> dict[str, Expected]:
    """Return what is expected of `everything`, with its budgets."""
    expected = dict(budgets.forward(case))
    return expected | dict(budgets.gradients(case)) if "backward" in tested.declared.derivatives else expected


# With the oracle ------------------------------------------------------------------------------------------------------


@drawn("forward", "y and the final state are right", 2, Kind(all_used=False))
def _forward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.forward(case), budgets.forward(case))


@drawn(
    "backward",
    "every gradient is right, whatever the scalar uses: y, the final h, the final c or nothing",
    7,
    Kind(all_used=False),
    ("backward",),
)
def _backward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.gradients(case), budgets.gradients(case))


@drawn("jvp", "the directional derivative is right", 7, Kind(), ("jvp",))
def _jvp(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.tangents(case), {**budgets.forward(case), **budgets.tangents(case)})


# Without --------------------------------------------------------------------------------------------------------------


def by_row(name: str, array: Array, rows: Array) -> Array:
    """Return those rows of an output or a gradient, except of a parameter's gradient, which has no rows."""
    return array[:, rows] if name in ("y", "dx") else array[..., rows, :]


@drawn(
    "rows",
    "rows in another order give the same, and a batch is the sum of its parts",
    4,
    Kind(least_batch=2),
)
def _rows(tested: BackendUnderTest, case: Case) -> Measure:
    whole, known = everything(tested, case), allowance(tested, case)
    order = np.roll(np.arange(case.batch)[::-1], 1)
    moved = everything(tested, case, rows_of(case.data, order))
    expected = {name: array if name.startswith("d_") else by_row(name, array, order) for name, array in whole.items()}
    worst = compare(moved, twice(known, expected))
    parts = [everything(tested, case, rows_of(case.data, part)) for part in np.split(order, [case.batch // 2])]
    joined = {
        name: sum((part[name].astype(np.float64) for part in parts), np.zeros(())).astype(array.dtype)
        if name.startswith("d_")
        else np.concatenate([part[name] for part in parts], axis=1 if name in ("y", "dx") else -2)
        for name, array in whole.items()
    }
    return max(worst, compare(joined, twice(known, expected)), key=lambda each: each.share)


@drawn("nan", "a NaN stays in its row", 4, Kind(least_steps=1, least_batch=2))
def _nan(tested: BackendUnderTest, case: Case) -> Measure:
    data, others = case.data.map(np.array), np.arange(1, case.batch)
    data.x[:, 0] = np.nan
    got, known = everything(tested, case, data), allowance(tested, case)
    apart = [name for name in got if not name.startswith("d_")]
    expected = everything(tested, case)
    return compare(
        {name: by_row(name, got[name], others) for name in apart},
        twice(known, {name: by_row(name, expected[name], others) for name in apart}),
    )


@drawn(
    "padding",
    "what padding contains changes no bit; in padding y and the gradient of x are 0; a row of length 0 keeps its state",
    4,
    Kind(lengths=True),
    ("lengths",),
)
def _padding(tested: BackendUnderTest, case: Case) -> None:
    got, past = everything(tested, case, padded_with(case, np.nan)), past_end(case)
    same_bits("NaN in padding", got, everything(tested, case, padded_with(case, 0.0)))
    for name in ("y", "dx"):
        if name in got and np.any(got[name][past] != 0):
            raise Failure(f"{name}: expected exact zeros past the end of a row")
    state, empty = case.data.state, np.flatnonzero(np.array(case.lengths, np.int64) == 0)
    if state is not None:
        same_bits(
            "a row of length 0",
            {name: by_row(name, got[name], empty) for name in ("h_n", "c_n")},
            {"h_n": by_row("h_n", state.h, empty), "c_n": by_row("c_n", state.c, empty)},
        )


@drawn("pieces", "a sequence in two pieces that hand the state on gives what one call gives", 8, Kind(least_steps=2))
def _pieces(tested: BackendUnderTest, case: Case) -> Measure:
    if case.stack is not None and case.stack.num_directions == 2:
        raise NotChecked("each layer of a stack in two directions needs the whole sequence")
    reverse = any(config.reverse for config in case.configs)
    cut = case.steps // 2
    ranges = [(0, cut), (cut, case.steps)]
    state, outputs = case.data.state, {}
    for start, stop in reversed(ranges) if reverse else ranges:
        got = tested.forward(case, piece(case.data, start, stop, state))
        outputs[start], state = got["y"], State(got["h_n"], got["c_n"])
    joined = {"y": np.concatenate([outputs[0], outputs[cut]]), "h_n": got["h_n"], "c_n": got["c_n"]}
    return compare(joined, twice(budgets.forward(case), tested.forward(case)))


@drawn("units", "hidden units in another order give the same in that order", 2, Kind(stacks=False))
def _units(tested: BackendUnderTest, case: Case) -> Measure:
    config = case.config
    order = np.roll(np.arange(config.hidden_size), config.hidden_size // 2 + 1)[::-1]
    outputs = np.arange(config.proj_size) if config.proj_size else order
    got, known = everything(tested, case, units_of(config, case.data, order)), allowance(tested, case)
    plain = everything(tested, case)
    moved = {
        name: plain[name][..., outputs if name in ("y", "h_n", "dh0") else order] for name in plain if name in _UNITS
    }
    if "dx" in plain:
        gradients = {name.removeprefix("d_"): array for name, array in plain.items() if name.startswith("d_")}
        moved |= {f"d_{name}": array for name, array in parameters_of(config, gradients, order).items()}
        moved["dx"] = plain["dx"]
    return compare(got, twice(known, moved))


_UNITS = ("y", "h_n", "c_n", "dh0", "dc0")


@drawn(
    "reversed",
    "the reversed direction is the other one on rows that are turned around within their lengths",
    4,
    Kind(stacks=False),
    ("reverse",),
)
def _other_direction(tested: BackendUnderTest, case: Case) -> Measure:
    other = replace(case, model=replace(case.config, reverse=not case.config.reverse))
    if refusal := tested.refusal(other):
        raise NotChecked(f"the backend refuses the other direction: {refusal}")
    got, plain = everything(tested, other, backwards(case)), everything(tested, case)
    expected = {name: reversed_rows(case, array) if name in ("y", "dx") else array for name, array in plain.items()}
    return compare(got, twice(allowance(tested, case), expected))


@drawn("saturation", "inputs and states of 1e4 give no NaN", 8, Kind(stacks=False))
def _saturation(tested: BackendUnderTest, case: Case) -> None:
    def large(array: Array) -> Array:
        return (1e4 * np.sign(array)).astype(array.dtype)

    state = case.data.state
    data = replace(
        case.data,
        x=large(case.data.x),
        state=None if state is None else State(state.h, large(state.c)),
    )
    for name, array in everything(tested, case, data).items():
        if np.isnan(array).any():
            raise Failure(f"{name}: expected no NaN with |x| = |c0| = 1e4")


drawn("linear", "backward of dy + dstate is the sum of backward of each", 7, Kind(), ("backward",))(linear)
drawn("adjoint", "(J v) . w = v . (J^T w)", 7, Kind(least_batch=1), ("backward", "jvp"))(adjoint)
drawn("same_bits", "two calls with the same arguments give the same bits", 9, Kind())(repeated)
drawn("unchanged", "no call writes to an input", 9, Kind())(unchanged)
