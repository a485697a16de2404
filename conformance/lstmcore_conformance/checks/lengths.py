"""Checks of lengths: rows that end early, and rows that must not influence each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore.backend import Masks, State
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.metamorphic import padded_with, past_end, rows_of
from lstmcore_conformance.cases.switches import MASKED, MEMORIES, SWITCHES, TOGETHER, config_of
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Expected, Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare, same_bits
from lstmcore_conformance.suite.check import Scope, check

MODELS: Final = (*MEMORIES, "layer_norm", *MASKED, "input_from_forget", *TOGETHER)

#: Integer dtypes of lengths.
INTEGERS: Final = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def length_cases(scope: Scope) -> Iterator[Case]:
    """Yield lengths 0, T and between, not in order; in one set no row reaches T, in one all are equal."""
    for precision in scope.precisions:
        for name in MODELS:
            for steps, ends in ((5, (3, 0, 5, 1)), (5, (0, 2, 4))):
                yield Case(
                    name=f"lengths={','.join(map(str, ends))};{name}",
                    model=config_of(SWITCHES[name]),
                    precision=precision,
                    steps=steps,
                    batch=len(ends),
                    lengths=ends,
                )
        for name in ("plain", "reverse"):
            many = (40, 17, 0, 39, 33, 16, 1, 24, 8)
            model = config_of(SWITCHES[name])
            yield Case(name=f"equal;{name}", model=model, precision=precision, steps=5, batch=9, lengths=(3,) * 9)
            yield Case(name=f"T=1;{name}", model=model, precision=precision, steps=1, lengths=(1, 0, 1))
            yield Case(name=f"long;{name}", model=model, precision=precision, steps=40, batch=9, lengths=many)


def few_cases(scope: Scope) -> Iterator[Case]:
    """Yield one set of lengths for the models that treat rows differently."""
    chosen = ("plain", "reverse", "proj_size", "zoneout_hidden", "everything", "everything_coupled")
    for case in length_cases(scope):
        if case.batch == 4 and case.name.split(";")[1] in chosen:
            yield case
        if case.batch == 4 and case.name.endswith(";everything"):
            yield replace(case, name=f"masks,{case.name}", masks=True)


@check(
    "lengths.forward",
    "y and the final state are right with lengths, 0 and T among them; a reversed row starts at its own end",
    section=4,
    cases=length_cases,
    needs=("lengths",),
)
def forward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.forward(case), budgets.forward(case))


@check(
    "lengths.backward",
    "every gradient is right with lengths",
    section=4,
    cases=length_cases,
    needs=("lengths", "backward"),
)
def backward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.gradients(case), budgets.gradients(case))


@check(
    "lengths.jvp",
    "the directional derivative is right with lengths",
    section=4,
    cases=length_cases,
    needs=("lengths", "jvp"),
)
def jvp(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.tangents(case), {**budgets.forward(case), **budgets.tangents(case)})


@check(
    "lengths.exact",
    "in padding y, its tangent and the gradient of x are exactly 0; a row of length 0 keeps its state bit by bit",
    section=4,
    cases=few_cases,
    needs=("lengths",),
)
def exact(tested: BackendUnderTest, case: Case) -> None:
    got, padding = tested.forward(case), past_end(case)
    if np.any(got["y"][padding] != 0):
        raise Failure("y: expected exact zeros past the end of a row")
    state, empty = case.data.state, np.array(case.lengths) == 0
    if state is None:
        raise TypeError(f"case {case.id}: expected a state")
    same_bits(
        "a row of length 0",
        {"h_n": got["h_n"][empty], "c_n": got["c_n"][empty]},
        {"h_n": state.h[empty], "c_n": state.c[empty]},
    )
    if "backward" in tested.declared.derivatives and np.any(tested.gradients(case)["dx"][padding] != 0):
        raise Failure("dx: expected exact zeros past the end of a row")
    if "jvp" in tested.declared.derivatives and np.any(tested.tangents(case)["ty"][padding] != 0):
        raise Failure("ty: expected exact zeros past the end of a row")


def dtype_cases(scope: Scope) -> Iterator[Case]:
    """Yield one set of lengths for three models, and one of rows whose steps are more together than a byte counts."""
    many = (40, 17, 0, 39, 33, 16, 1, 24, 8, 40, 31, 22)
    for case in few_cases(scope):
        if case.name.partition(";")[2] in ("plain", "reverse", "everything"):
            yield case
        if case.name.endswith("1;plain") and case.precision == scope.main:
            yield replace(case, name="rows;plain", steps=40, batch=len(many), lengths=many)


@check(
    "lengths.dtypes",
    "lengths of every integer dtype, signed or unsigned, and of any strides give the same bits",
    section=4,
    cases=dtype_cases,
    needs=("lengths",),
)
def dtypes(tested: BackendUnderTest, case: Case) -> None:
    expected = tested.forward(case)
    for dtype in INTEGERS:
        data = replace(case.data, lengths=np.array(case.lengths, dtype))
        same_bits(f"lengths of {dtype}", tested.forward(case, data), expected)
    spread = np.full(2 * case.batch, case.steps)[::2]
    turned = np.array(case.lengths)[::-1].copy()[::-1]
    spread[...] = turned
    for what, lengths in (("every second number", spread), ("negative strides", turned)):
        device = replace(tested.device(case.data), lengths=lengths)
        same_bits(f"lengths of {what}", tested.outputs(tested.call(case, device)), expected)


@check(
    "lengths.padding",
    "what padding contains changes no bit of any result, NaN and infinity included",
    section=4,
    cases=few_cases,
    needs=("lengths",),
)
def padding(tested: BackendUnderTest, case: Case) -> None:
    for content in (np.nan, np.inf):
        calls = [tested.forward]
        calls += [tested.gradients] if "backward" in tested.declared.derivatives else []
        calls += [tested.tangents] if "jvp" in tested.declared.derivatives else []
        for call in calls:
            same_bits(
                f"{content} in padding", call(case, padded_with(case, content)), call(case, padded_with(case, 0.0))
            )


@check(
    "lengths.empty_rows",
    "a NaN or an infinity in what belongs to a row of length 0 (its state, its mask) goes to its own state alone",
    section=4,
    cases=few_cases,
    needs=("lengths",),
)
def empty_rows(tested: BackendUnderTest, case: Case) -> None:
    empty = np.array(case.lengths) == 0
    for content in (np.nan, np.inf):
        spoilt, clean = spoil(case, content), spoil(case, 0.0)
        got, want = tested.forward(case, spoilt), tested.forward(case, clean)
        same_bits(f"{content} in a row of length 0", got, {**want, **passed("{}_n", spoilt.state, want, empty)})
        if "backward" in tested.declared.derivatives:
            got, want = tested.gradients(case, spoilt), tested.gradients(case, clean)
            same_bits(f"{content} in a row of length 0", got, {**want, **passed("d{}0", spoilt.dstate, want, empty)})
        if "jvp" in tested.declared.derivatives:
            got, want = tested.tangents(case, spoilt), tested.tangents(case, clean)
            want |= passed("{}_n", spoilt.state, want, empty)
            want |= passed("t{}_n", spoilt.tangents.state, want, empty)
            same_bits(f"{content} in a row of length 0", got, want)


def spoil(case: Case, content: float) -> Data:
    """Return the data with `content` in the arrays of rows of length 0: states, their gradients and a mask."""
    data, empty = case.data.map(np.array), np.array(case.lengths) == 0
    recurrent = data.masks.recurrent if isinstance(data.masks, Masks) else None
    for array in (*(data.state or ()), *(data.dstate or ()), *(data.tangents.state or ()), recurrent):
        if array is not None:
            array[empty] = content
    return data


def passed(form: str, state: State | None, arrays: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """Return the h and c of `arrays`, but those of `state` in some rows, through which it passes unchanged.

    Parameters
    ----------
    form
        The form of the names of h and c in `arrays`, such as ``"{}_n"``.
    state
        The state, or its gradient or tangent.
    arrays
        Results by name.
    rows
        Booleans, one for each row of the batch.
    """
    if state is None:
        raise TypeError("expected a state")
    pairs = zip((form.format("h"), form.format("c")), state, strict=True)
    return {name: np.where(rows[:, None], array, arrays[name]) for name, array in pairs}


# Rows do not influence each other -----------------------------------------------------------------------------------


def row_cases(scope: Scope) -> Iterator[Case]:
    """Yield batches whose rows are also run alone."""
    for precision in scope.precisions:
        for name in ("plain", "reverse", "layer_norm", "everything", "everything_coupled"):
            yield Case(name=f"rows,{name}", model=config_of(SWITCHES[name]), precision=precision, batch=5)


def _rows_expected(case: Case, rows: Any) -> dict[str, Expected]:
    return {
        name: replace(want, value=want.value[:, rows] if name == "y" else want.value[rows])
        for name, want in budgets.forward(case).items()
    }


@check(
    "rows.independent", "a row gives the same alone, in another order and in a larger batch", section=4, cases=row_cases
)
def independent(tested: BackendUnderTest, case: Case) -> Measure:
    worst = Measure(0.0)
    for rows in ([2], [4, 1], [3, 0, 4, 2, 1], [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0]):
        measured = compare(tested.forward(case, rows_of(case.data, rows)), _rows_expected(case, rows))
        worst = max(worst, measured, key=lambda each: each.share)
    return worst


@check("rows.nan", "a NaN stays in its row", section=4, cases=row_cases)
def nan(tested: BackendUnderTest, case: Case) -> Measure:
    data = case.data.map(np.array)
    data.x[0 if not case.config.reverse else -1, 1] = np.nan
    got, others = tested.forward(case, data), [0, 2, 3, 4]
    finite = {"y": got["y"][:, others], "h_n": got["h_n"][others], "c_n": got["c_n"][others]}
    worst = compare(finite, _rows_expected(case, others))
    if "everything" not in case.name and not np.isnan(got["y"][:, 1]).all():
        raise Failure("y: expected NaN in the row that reads one; it vanished")
    if "backward" in tested.declared.derivatives:
        gradients = tested.gradients(case, data)
        known = budgets.gradients(case)
        kept = {name: gradients[name][..., others, :] for name in ("dx", "dh0", "dc0")}
        expected = {name: replace(known[name], value=known[name].value[..., others, :]) for name in kept}
        worst = max(worst, compare(kept, expected), key=lambda each: each.share)
    return worst
