"""The cases of the golden vectors, and their expected results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from lstmcore.backend import Capabilities, Masks
from lstmcore.config import FEATURES, StackConfig
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.metamorphic import padded_with
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.checks.derivatives import kink_cases, on_kink
from lstmcore_conformance.checks.endurance import EXTREMES, with_denormals
from lstmcore_conformance.checks.lengths import passed, spoil
from lstmcore_conformance.checks.stacked_layers import STACKS
from lstmcore_conformance.checks.values import combination_cases
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Expectation
from lstmcore_conformance.suite.check import Scope

PRECISIONS: Final = ("float64", "float32", "float16")
EVERYTHING: Final = ("everything", "everything_coupled")
#: Widths of the cases that need many steps, rows or units.
NARROW: Final = {"input_size": 2, "hidden_size": 3}
#: Widths of the cases that test the call and not the model.
_WIDTHS: Final[Mapping[str, Any]] = {"input_size": 3, "hidden_size": 4}
#: Switches of such cases, with those widths.
SMALL: Final[Mapping[str, Mapping[str, Any]]] = {
    name: {**SWITCHES[name], **_WIDTHS, **({"proj_size": 2} if "proj_size" in SWITCHES[name] else {})}
    for name in ("plain", "no_bias", "reverse", "proj_size", *EVERYTHING)
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The arguments of a vector's calls, and the expected results; gradients that are not judged are left out."""

    data: Data
    outputs: Expectation
    gradients: Expectation


def usual(case: Case) -> Answer:
    """Return the case's data with the oracle's results."""
    return Answer(case.data, budgets.forward(case), budgets.gradients(case))


def padded(case: Case) -> Answer:
    """Return data with NaN in all padding, which changes no result."""
    return replace(usual(case), data=padded_with(case, np.nan))


def empty_rows(case: Case) -> Answer:
    """Return data with NaN in every array of the rows of length 0.

    The NaN must reach the state of these rows and its gradient, and nothing else.
    """
    data, empty, right = spoil(case, np.nan), np.array(case.lengths) == 0, usual(case)

    def spoilt(form: str, state: Any, known: Expectation) -> Expectation:
        arrays = passed(form, state, {name: want.value for name, want in known.items()}, empty)
        return {**known, **{name: replace(known[name], value=array) for name, array in arrays.items()}}

    return Answer(data, spoilt("{}_n", data.state, right.outputs), spoilt("d{}0", data.dstate, right.gradients))


def nan_in_a_row(case: Case) -> Answer:
    """Return data with NaN in the first x of row 0: all of that row is NaN, and no other row.

    Gradients of parameters are not judged.
    """
    data, right = case.data.map(np.array), usual(case)
    data.x[0, 0] = np.nan

    def spoilt(array: Array) -> Array:
        changed = array.copy()
        changed[..., 0, :] = np.nan
        return changed

    def of(known: Expectation, *names: str) -> Expectation:
        return {name: replace(known[name], value=spoilt(known[name].value)) for name in names}

    return Answer(data, of(right.outputs, "y", "h_n", "c_n"), of(right.gradients, "dx", "dh0", "dc0"))


def on_the_kink(case: Case) -> Answer:
    """Return data with values exactly on a kink; section 7 of SPEC.md says which derivative holds there."""
    return Answer(*on_kink(case))


def far_out(case: Case) -> Answer:
    """Return data with very large or very small inputs and states."""
    right = usual(case)
    return replace(right, outputs=with_denormals(case, right.outputs), gradients=with_denormals(case, right.gradients))


@dataclass(frozen=True, slots=True)
class Vector:
    """A case, and the function that makes its data and results."""

    case: Case
    answer: Callable[[Case], Answer] = usual


def vectors() -> Iterator[Vector]:
    """Yield every vector, in the order of the index."""
    for precision in PRECISIONS:
        yield from map(Vector, _switches(precision))
        yield from map(Vector, _combinations(precision))
        yield from map(Vector, _masks(precision))
        yield from map(Vector, _uses(precision))
        yield from map(Vector, _lengths(precision))
        yield from _spoilt(precision)
        if precision != "float16":
            yield from map(Vector, _sizes(precision))
            yield from map(Vector, _stacks(precision))
            yield from (Vector(case, far_out) for case in _extremes(precision))
        yield from (Vector(case, on_the_kink) for case in _kinks(precision))


def _case(precision: str, name: str, changes: Mapping[str, Any], **fields: Any) -> Case:
    return Case(name=name, model=config_of(changes), precision=precision, **fields)


def _scope(precision: str) -> Scope:
    return Scope(Capabilities(device="cpu", precisions=frozenset({precision}), features=FEATURES), (precision,))


def _switches(precision: str) -> Iterator[Case]:
    """Yield each switch alone; activations in float64 and float32."""
    for name, changes in SWITCHES.items():
        if "activation=" not in name:
            yield _case(precision, name, changes)
        elif precision != "float16":
            yield _case(precision, name, {**changes, **_WIDTHS})


def _combinations(precision: str) -> Iterator[Case]:
    """Yield the combinations, in which every pair of values of two switches occurs."""
    yield from combination_cases(_scope(precision))


def _masks(precision: str) -> Iterator[Case]:
    """Yield models with all their masks, with one mask alone, and with masks but no state."""
    for name, changes in SWITCHES.items():
        config = config_of(changes)
        if config.recurrent_dropout or config.zoneout_hidden or config.zoneout_cell:
            yield _case(precision, f"{name},masks", changes, masks=True)
    for name in EVERYTHING:
        for mask in Masks._fields:
            yield _case(precision, f"only_{mask},{name}", SMALL[name], masks=mask)
    yield _case(precision, "no_state,recurrent_dropout", SWITCHES["recurrent_dropout"], masks=True, state=False)


def _uses(precision: str) -> Iterator[Case]:
    """Yield scalars that use one output, the final state or nothing, and calls without an initial state."""
    for name in ("plain", "everything") if precision == "float16" else ("plain", "reverse", "proj_size", "everything"):
        changes = SMALL[name]
        yield _case(precision, f"y,{name}", changes, dh=False, dc=False)
        yield _case(precision, f"h,{name}", changes, dy=False, dc=False)
        yield _case(precision, f"c,{name}", changes, dy=False, dh=False)
        yield _case(precision, f"state,{name}", changes, dy=False)
        yield _case(precision, f"no_state,{name}", changes, state=False)
    yield _case(precision, "nothing", {}, dy=False, dh=False, dc=False)


def _lengths(precision: str) -> Iterator[Case]:
    """Yield lengths with 0 and T among them, and lengths that are all below T."""
    for name in ("plain", "no_bias", "reverse", "proj_size", "everything", "everything_coupled"):
        masks = name in EVERYTHING
        yield _case(precision, f"{name},lengths", SMALL[name], lengths=(2, 0, 4), masks=masks)
        yield _case(precision, f"{name},short", SMALL[name], steps=5, lengths=(4, 0, 2), masks=masks)
    yield _case(precision, "plain,all_empty", NARROW, lengths=(0, 0, 0))
    many = {"batch": 7, "steps": 5, "lengths": (3, 0, 5, 1, 5, 2, 4)}
    yield _case(precision, "N=7,lengths", NARROW, **many)
    yield _case(precision, "N=7,reverse,lengths", {**NARROW, "reverse": True}, **many)


def _spoilt(precision: str) -> Iterator[Vector]:
    """Yield data with NaN in places with and without influence on the results."""
    for name in ("plain", "reverse", "everything"):
        masks = name in EVERYTHING
        case = _case(precision, f"{name},nan_in_padding", SMALL[name], steps=5, lengths=(4, 0, 2), masks=masks)
        yield Vector(case, padded)
        yield Vector(replace(case, name=f"{name},nan_in_empty_row"), empty_rows)
    case = _case(precision, "N=7,nan_in_padding", NARROW, batch=7, steps=5, lengths=(3, 0, 5, 1, 5, 2, 4))
    yield Vector(case, padded)
    yield Vector(_case(precision, "N=9,nan_in_row", NARROW, steps=3, batch=9), nan_in_a_row)


def _sizes(precision: str) -> Iterator[Case]:
    """Yield sizes 0 and 1, and many steps, rows and units."""
    everything, reverse = SMALL["everything"], {**NARROW, "reverse": True}
    yield _case(precision, "T=0", {}, steps=0, batch=2)
    yield _case(precision, "T=0,everything", everything, steps=0, batch=2)
    yield _case(precision, "N=0", {}, steps=3, batch=0)
    yield _case(precision, "T=1", {}, steps=1)
    yield _case(precision, "T=1,state", {}, steps=1, dy=False)
    yield _case(precision, "N=1", {}, batch=1)
    yield _case(precision, "N=1,everything", everything, batch=1)
    yield _case(precision, "H=1", {"hidden_size": 1})
    yield _case(precision, "I=1", {"input_size": 1})
    yield _case(precision, "all=1", {"hidden_size": 1, "input_size": 1}, steps=1, batch=1)
    yield _case(precision, "H=2,P=1", {"hidden_size": 2, "proj_size": 1})
    yield _case(precision, "T=17,N=2", {}, steps=17, batch=2)
    yield _case(precision, "T=70,N=1", NARROW, steps=70, batch=1)
    yield _case(precision, "T=20,reverse,lengths", reverse, steps=20, lengths=(18, 7, 20))
    yield _case(precision, "N=9,y", NARROW, steps=3, batch=9, dh=False, dc=False)
    yield _case(precision, "N=66", NARROW, steps=2, batch=66)
    yield _case(precision, "H=9", {"hidden_size": 9, "input_size": 2, "peephole": True}, batch=2)
    for coupling in ("forget_from_input", "input_from_forget"):
        yield _case(precision, f"H=9,{coupling}", {"hidden_size": 9, "input_size": 2, "coupling": coupling}, batch=2)
    if precision == "float64":
        return
    for width in (8, 15, 16, 17, 33):
        yield _case(precision, f"H={width}", {"hidden_size": width, "input_size": 2}, steps=2, batch=2)
    for width in (25, 31, 65, 129):
        yield _case(
            precision, f"H={width},P=2", {"hidden_size": width, "input_size": 2, "proj_size": 2}, steps=2, batch=2
        )
    for width in (17, 33, 129):
        yield _case(precision, f"I={width}", {"hidden_size": 2, "input_size": width}, steps=2, batch=2)


def _stacks(precision: str) -> Iterator[Case]:
    """Yield several layers, two directions and the dropout between layers."""
    for name, (switches, shape, masks) in STACKS.items():
        if name not in ("L=1", "L=4"):
            proj = {"proj_size": 2} if "proj_size" in switches else {}
            yield Case(
                name=name,
                model=StackConfig.make(config_of({**switches, **_WIDTHS, **proj}), **shape),
                precision=precision,
                masks=masks,
                lengths=(2, 0, 4) if "D=2" in name else None,
            )
    both = StackConfig.make(config_of(NARROW), num_layers=2, bidirectional=True)
    yield Case(name="L=2,D=2,state", model=both, precision=precision, dy=False)
    yield Case(name="L=2,D=2,y", model=both, precision=precision, dh=False, dc=False)
    yield Case(name="L=2,D=2,no_state", model=both, precision=precision, state=False)
    yield Case(name="L=2,D=2,T=1", model=both, precision=precision, steps=1)
    yield Case(name="L=2,D=2,short", model=both, precision=precision, steps=5, lengths=(4, 0, 2))


def _extremes(precision: str) -> Iterator[Case]:
    """Yield inputs and states that saturate every gate, and inputs and states near 0."""
    for kind in ("saturating", "tiny", "denormal"):
        if kind == "denormal" and precision == "float64":
            continue  # they are denormal in float32 only
        yield _case(precision, kind, {}, scale=EXTREMES[kind])
        yield _case(precision, f"{kind},T=N=1", {}, scale=EXTREMES[kind], steps=1, batch=1)
    wide = {"hidden_size": 9, "input_size": 2, "peephole": True}
    yield _case(precision, "saturating,H=9", wide, scale=EXTREMES["saturating"], batch=2)


def _kinks(precision: str) -> Iterator[Case]:
    """Yield values exactly on a kink."""
    for case in kink_cases(_scope(precision)):
        yield replace(case, model=replace(case.config, **_WIDTHS))
