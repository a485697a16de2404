"""Checks of values: outputs, gradients and directional derivatives for switches, combinations and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.switches import SWITCHES, config_of, covering
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, compare
from lstmcore_conformance.suite.check import Scope, check

#: Name -> T, N and the changes of the configuration.
SIZES: Final[Mapping[str, tuple[int, int, Mapping[str, Any]]]] = {
    "T=0": (0, 2, {}),
    "T=0,everything": (0, 2, SWITCHES["everything"]),
    "N=0": (3, 0, {}),
    "N=0,everything": (3, 0, SWITCHES["everything"]),
    "T=0,N=0": (0, 0, {}),
    "T=1": (1, 3, {}),
    "N=1": (4, 1, {}),
    "N=1,everything": (4, 1, SWITCHES["everything"]),
    "H=1": (4, 3, {"hidden_size": 1}),
    "H=1,layer_norm": (4, 3, {"hidden_size": 1, "layer_norm": True}),
    "I=1": (4, 3, {"input_size": 1}),
    "all=1": (1, 1, {"hidden_size": 1, "input_size": 1}),
    "H=2,P=1": (4, 3, {"hidden_size": 2, "proj_size": 1}),
    "H=15": (3, 7, {"hidden_size": 15, "input_size": 9}),
    "H=16": (3, 16, {"hidden_size": 16, "input_size": 31}),
    "H=17": (3, 15, {"hidden_size": 17, "input_size": 33}),
    "H=31": (3, 17, {"hidden_size": 31, "input_size": 16}),
    "H=33": (3, 5, {"hidden_size": 33, "input_size": 17, "peephole": True}),
    "H=65,P=33": (3, 9, {"hidden_size": 65, "proj_size": 33}),
    "H=64": (2, 6, {"hidden_size": 64, "input_size": 65}),
    "H=127": (2, 5, {"hidden_size": 127, "input_size": 64}),
    "H=129": (2, 7, {"hidden_size": 129, "input_size": 127}),
    "H=260": (2, 3, {"hidden_size": 260, "input_size": 130}),
    "I=300": (2, 3, {"input_size": 300}),
    "N=33": (3, 33, {"peephole": True}),
    "N=47": (3, 47, {}),
    "N=130": (3, 130, {}),
    "T=61": (61, 2, {}),
    "T=257,N=1": (257, 1, {}),
}

#: T and N of the sums of `backward.rows`: so many that one running sum in the compute dtype exceeds the budget.
ROWS: Final = (64, 1024)
#: The changes of the configuration in its cases; every kind of parameter is in one of them.
SUMMED: Final[Mapping[str, Mapping[str, Any]]] = {
    name: {**SWITCHES[name], "input_size": 3, "hidden_size": 5}
    for name in ("plain", "proj_size", "forget_from_input,peephole", "layer_norm_eps")
}


def switch_cases(scope: Scope) -> Iterator[Case]:
    """Yield every switch alone, in every precision."""
    for precision in scope.precisions:
        for name, changes in SWITCHES.items():
            yield Case(name=name, model=config_of(changes), precision=precision)


def combination_cases(scope: Scope) -> Iterator[Case]:
    """Yield combinations with every pair of values of two switches, with and without lengths and masks."""
    for precision in scope.precisions:
        for position, changes in enumerate(covering(scope.declared)):
            switches = {name: value for name, value in changes.items() if name not in ("lengths", "masks")}
            config = config_of(switches)
            random = config.zoneout_hidden or config.zoneout_cell or config.recurrent_dropout
            yield Case(
                name=f"combination{position}",
                model=config,
                precision=precision,
                lengths=(3, 0, 4) if "lengths" in changes else None,
                masks="masks" in changes and bool(random),
            )


def size_cases(scope: Scope) -> Iterator[Case]:
    """Yield empty, single and odd sizes, and sizes around the widths of vectors and tiles."""
    for precision in scope.precisions:
        for name, (steps, batch, changes) in SIZES.items():
            yield Case(name=name, model=config_of(changes), precision=precision, steps=steps, batch=batch)


def row_cases(scope: Scope) -> Iterator[Case]:
    """Yield small models over many rows."""
    steps, batch = ROWS
    for precision in scope.precisions:
        for name, changes in SUMMED.items():
            yield Case(name=f"rows,{name}", model=config_of(changes), precision=precision, steps=steps, batch=batch)


def _forward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.forward(case), budgets.forward(case))


def _gradients(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.gradients(case), budgets.gradients(case))


def _tangents(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.tangents(case), {**budgets.forward(case), **budgets.tangents(case)})


for _group, _words, _section, _cases in (
    ("switches", "each switch", 3, switch_cases),
    ("combinations", "combinations of switches in which all pairs meet", 2, combination_cases),
    ("sizes", "empty, single and odd sizes", 9, size_cases),
):
    check(f"forward.{_group}", f"y and the final state are right for {_words}", section=_section, cases=_cases)(
        _forward
    )
    check(
        f"backward.{_group}",
        f"the gradients of x, the state and all parameters are right for {_words}",
        section=_section,
        cases=_cases,
        needs=("backward",),
    )(_gradients)
    check(
        f"jvp.{_group}",
        f"the directional derivative is right for {_words}",
        section=_section,
        cases=_cases,
        needs=("jvp",),
    )(_tangents)


def no_state_cases(scope: Scope) -> Iterator[Case]:
    """Yield calls without an initial state."""
    for precision in scope.precisions:
        for name in ("plain", "proj_size", "peephole", "everything"):
            yield Case(name=f"no_state,{name}", model=config_of(SWITCHES[name]), precision=precision, state=False)


@check("forward.no_state", "an initial state of None is zeros", section=1, cases=no_state_cases)
def no_state(tested: BackendUnderTest, case: Case) -> Measure:
    return _forward(tested, case)


@check(
    "backward.no_state",
    "gradients are right where the initial state is None",
    section=1,
    cases=no_state_cases,
    needs=("backward",),
)
def no_state_gradients(tested: BackendUnderTest, case: Case) -> Measure:
    return _gradients(tested, case)


@check(
    "backward.rows",
    f"gradients of parameters are right where they are sums over {ROWS[0] * ROWS[1]:,} rows",
    section=8,
    cases=row_cases,
    needs=("backward",),
    profile="quick",  # its naive evaluations take seconds
)
def row_gradients(tested: BackendUnderTest, case: Case) -> Measure:
    return _gradients(tested, case)
