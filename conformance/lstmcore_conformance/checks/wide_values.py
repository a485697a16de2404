"""Checks of values far from 1: closed gates, functions far from 0 or with odd numbers, and norms of a large mean.

Section 10 of SPEC.md states an error relative to the result. A gate of 1e-6 that is right to 1e-8 is then wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.switches import FUNCTIONS, SWITCHES, config_of
from lstmcore_conformance.checks.contract import expectation, results
from lstmcore_conformance.checks.endurance import with_denormals
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, compare
from lstmcore_conformance.suite.check import Scope, check


class Closed(NamedTuple):
    """A case of gates that are all but closed: switches, what is added to biases, T, and whether it has a state."""

    changes: Mapping[str, Any]
    shifts: tuple[tuple[str, str, float], ...]
    steps: int
    state: bool


#: A closed input gate and an open memory add up tiny numbers over many steps; a closed output gate makes h tiny.
CLOSED: Final[Mapping[str, Closed]] = {
    "output": Closed({}, (("bias", "o", -14.0),), 4, True),
    "output,cell": Closed(SWITCHES["recurrence_cell"], (("bias", "o", -14.0),), 4, True),
    "input": Closed({}, (("bias", "i", -15.0),), 9, False),
    "input,kept": Closed({}, (("bias", "i", -15.0), ("bias", "f", 4.0)), 9, False),
    "input,coupled": Closed(SWITCHES["forget_from_input"], (("bias", "i", -15.0),), 64, False),
}
#: Added to biases of z and to the norm: beyond 89 exp overflows in float32, and the sum of squares loses 300^2 / 2^23.
FAR: Final = 100.0
MEAN: Final = 300.0
#: Functions with numbers for which shorter forms are wrong: ``max(z, alpha z)``, or a derivative from the value.
ODD_NUMBERS: Final = (
    "affine(alpha=-0.6, beta=-0.3)",
    "leaky_relu(alpha=1.6)",
    "leaky_relu(alpha=-0.4)",
    "thresholded_relu(alpha=-0.3)",
    "scaled_tanh(alpha=-0.8, beta=-1.2)",
    "scaled_tanh(alpha=0, beta=0.7)",
    "hard_sigmoid(alpha=-0.3, beta=0.45)",
    "hard_sigmoid(alpha=0, beta=0.4)",
    "elu(alpha=-0.7)",
)


def _whole(case: Case) -> bool:
    """Return whether the precision has the range and the operands of float32 or float64."""
    return case.policy.storage in ("float32", "float64") and case.policy.operands == "as they are"


def closed_cases(scope: Scope) -> Iterator[Case]:
    """Yield gates that are all but closed; 16 bits cannot store such h, and in tf32 z itself is too coarse."""
    for precision in scope.precisions:
        for name, (changes, shifts, steps, state) in CLOSED.items():
            case = Case(
                name=f"closed,{name}",
                model=config_of(changes),
                precision=precision,
                shifts=shifts,
                steps=steps,
                state=state,
            )
            if _whole(case):
                yield case


def far_cases(scope: Scope) -> Iterator[Case]:
    """Yield every function with pre-activations of about 100 and of about -100."""
    functions = [function for function in FUNCTIONS if function.partition("(")[0] in ("softplus", "elu", "softsign")]
    for precision in scope.precisions:
        for function in functions:
            for role, gates in (("gate_activation", "ifo"), ("cell_activation", "g"), ("hidden_activation", "g")):
                changes = {role: function}
                if role == "hidden_activation":
                    changes["cell_activation"] = "identity"  # so that c is as far from 0 as g
                for number in (FAR, -FAR):
                    shifts = tuple(("bias", gate, number) for gate in gates)
                    yield Case(
                        name=f"far,{number:+g},{role}={function}",
                        model=config_of(changes),
                        precision=precision,
                        shifts=shifts,
                        steps=1,
                        draw=0,
                    )


def mean_cases(scope: Scope) -> Iterator[Case]:
    """Yield layer norms of W x whose mean is some hundred times their deviation, which the norm removes."""
    for precision in scope.precisions:
        for name in ("layer_norm", "layer_norm,no_bias"):
            case = Case(
                name=f"mean,{name}",
                model=config_of(SWITCHES[name]),
                precision=precision,
                shifts=(("weight_x", "", MEAN),),
                draw=0,
            )
            if _whole(case):
                yield case


def odd_number_cases(scope: Scope) -> Iterator[Case]:
    """Yield functions whose alpha or beta is negative, 0, or above 1; one whose alpha is 0 leaves h to another one."""
    for precision in scope.precisions:
        for function in ODD_NUMBERS:
            places = ("cell_activation", "hidden_activation")[: 1 if "alpha=0," in function else 2]
            model = config_of(dict.fromkeys(places, function))
            yield Case(name=f"numbers,{function}", model=model, precision=precision)


def _all_results(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(results(tested, case, tested.device(case.data)), with_denormals(case, expectation(tested, case)))


for _id, _claim, _section, _cases in (
    ("closed_gates", "a gate that is all but closed is right relative to its own size", 2, closed_cases),
    ("odd_numbers", "a function with a negative alpha or beta, one of 0 or one above 1 is right", 3, odd_number_cases),
    ("far", "softplus, elu and softsign are right where exp overflows or vanishes", 3, far_cases),
    ("large_mean", "layer norm is right where the mean is some hundred times the deviation", 3, mean_cases),
):
    check(f"values.{_id}", _claim, section=_section, cases=_cases)(_all_results)
