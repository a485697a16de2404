"""Checks of weights in fewer bytes, and of what a large row or step may not change.

A kernel that multiplies in integers needs scales. One scale for the batch or for all steps lets a large row or a later
step move every other result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore.backend import State
from lstmcore.config import StackConfig
from lstmcore.precision import get_precision
from lstmcore.stored_weights import FORMATS, INT8A16, store_parameters
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.cases.quality import unstored_parameters
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.checks.capabilities import refusal_error
from lstmcore_conformance.checks.infinite_values import valued
from lstmcore_conformance.checks.values import SIZES
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.oracle.composition import forward_pass
from lstmcore_conformance.oracle.stored_numbers import read_back
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare
from lstmcore_conformance.suite.check import Scope, check

#: Sizes at which a kernel that widens weights on load has whole vectors, rests, and more rows than one tile.
_SIZES = ("T=0", "N=1,everything", "H=1", "H=15", "H=64", "H=65,P=33", "H=129", "I=300", "N=33")

#: The switches of a call with masks.
_MASKED: Final = {"zoneout_hidden": 0.2, "zoneout_cell": 0.3, "recurrent_dropout": 0.25}
#: The products of integers of int8a16 whose sum always has less than 32 bits.
LONGEST_SUM: Final = 512
#: The end of the name of the case whose products are all alike.
_ALIKE: Final = "alike"
#: How many times as large a row or a step is made.
FACTOR: Final = 2.0**10


def _cases(form: str) -> Callable[[Scope], Iterator[Case]]:
    def cases(scope: Scope) -> Iterator[Case]:
        for precision in scope.precisions:
            storage = get_precision(precision).storage
            if storage not in ("float32", "float64") or (form == INT8A16 and precision != "float32"):
                continue
            for name, changes in SWITCHES.items():
                yield Case(name=f"{form},{name}", model=config_of(changes), precision=precision, weights=form)
            for name in _SIZES:
                steps, batch, changes = SIZES[name]
                model = config_of(changes)
                sizes = Case(name=f"{form},{name}", model=model, precision=precision, weights=form)
                yield replace(sizes, steps=steps, batch=batch)
            yield from _calls_of(form, precision, scope)
            if form == INT8A16:
                model = config_of({"input_size": LONGEST_SUM + 128})
                yield Case(name=f"{form},{_ALIKE}", model=model, precision=precision, weights=form)

    return cases


def _calls_of(form: str, precision: str, scope: Scope) -> Iterator[Case]:
    """Yield a call with lengths, one with masks in one precision, and a stack."""
    features = scope.declared.features
    plain = Case(name=f"{form},lengths", model=config_of({}), precision=precision, lengths=(3, 0, 2), weights=form)
    stack = StackConfig.make(config_of({}), num_layers=2, bidirectional=True)
    if "lengths" in features:
        yield plain
    if "masks" in features and precision == scope.main:
        yield replace(plain, name=f"{form},masks", model=config_of(_MASKED), lengths=None, masks=True)
    yield replace(plain, name=f"{form},L=2,D=2", model=stack, lengths=None)


def _unstored(case: Case) -> Data:
    """Return the data with the matrices before they are rounded."""
    return replace(case.data, parameters=unstored_parameters(case))


def _forward(tested: BackendUnderTest, case: Case) -> Measure:
    if case.name.endswith(_ALIKE):
        return _alike(tested, case)
    if case.stack is None:
        return compare(tested.forward(case, _unstored(case)), budgets.forward(case))
    data = tested.device(case.data)
    stored: Any = store_parameters(unstored_parameters(case), case.weights)
    weights = tested.pack(case, replace(data, parameters=stored))
    return compare(tested.outputs(tested.call(case, data, weights=weights)), budgets.forward(case))


def _alike(tested: BackendUnderTest, case: Case) -> Measure:
    """Compare a product whose terms are all the largest, and whose sum of integers needs more than 32 bits."""
    data = case.data.map(np.array)
    data.x[...] = 1
    data.parameters["weight_x"][...] = 127 * 2.0**-17  # scales are then exact
    right = forward_pass(case.model, data, "float64").outputs
    return compare(tested.forward(case, data), valued(budgets.forward(case), right))


for _form in FORMATS:
    check(
        f"weights.{_form}",
        f"the result with weights stored as {_form} is that of the matrices which are read back",
        section=8,
        cases=_cases(_form),
        needs=(f"weights:{_form}",),
    )(_forward)


#: The functions of a model whose gates are 1 and whose results are elements of its matrices.
_READING: Final = {
    "bias": False,
    "gate_activation": "affine(alpha=0.0, beta=1.0)",
    **dict.fromkeys(("cell_activation", "hidden_activation"), "identity"),
}


def _exact_cases(scope: Scope) -> Iterator[Case]:
    """Yield a model for each format that has exact numbers: activations of int8a16 are rounded too."""
    model = config_of({**_READING, "input_size": 19, "hidden_size": 23, "proj_size": 11})
    for form in (form for form in FORMATS if form != INT8A16 and f"weights:{form}" in scope.declared.features):
        for precision in scope.precisions:
            if precision in ("float32", "float64"):  # tf32 rounds the operands of products
                yield Case(name=f"exact,{form}", model=model, precision=precision, steps=1, weights=form)


def _special(matrix: Array) -> Array:
    """Return a matrix in which each gate has rows of other sizes, of ties, of the smallest numbers and of zeros."""
    made, rows = np.array(matrix), np.arange(len(matrix)) % 11
    made *= np.ldexp(np.ones((), made.dtype), rows - 5)[:, None].astype(made.dtype)
    halves = np.arange(matrix.shape[1]) - 3.5
    made[rows == 1] = halves / 32  # ties of int8: its scale is 1 / 32
    made[rows == 1, 0] = 127 / 32
    made[rows == 2] = 1 + halves / 64  # ties of bfloat16
    made[rows == 3] = 1 + halves / 1024  # ties of float16
    made[rows == 4] = halves * 2.0**-24  # ties of the smallest numbers of float16
    made[rows == 5] = 0
    return made


@check(
    "weights.exact",
    "weights are stored and read back bit by bit as section 8 says, ties and the smallest numbers among them",
    section=8,
    cases=_exact_cases,
)
def _exact(tested: BackendUnderTest, case: Case) -> None:
    """One row of the batch has a single 1 in x, h or c, so that its results are a column of a matrix."""
    plain, config = case.data, case.config
    parameters = {name: _special(array) for name, array in unstored_parameters(case).items()}
    widths = {"weight_x": config.input_size, "weight_h": config.output_size, "weight_proj": config.hidden_size}
    for name, width in widths.items():
        x = np.zeros((1, width, config.input_size), plain.x.dtype)
        h, c = (np.zeros((width, size), plain.x.dtype) for size in (config.output_size, config.hidden_size))
        np.fill_diagonal({"weight_x": x[0], "weight_h": h, "weight_proj": c}[name], 1)
        got = tested.forward(case, replace(plain, parameters=parameters, x=x, state=State(h, c)))
        right = read_back(parameters[name], case.weights)
        if name != "weight_proj":
            first = config.gates.index("g") * config.hidden_size
            right = right[first : first + config.hidden_size]
        _same_numbers(name, (got["h_n"] if name == "weight_proj" else got["c_n"]).T, right)


def _same_numbers(name: str, got: Array, right: Array) -> None:
    """Raise `Failure` unless all numbers are equal."""
    if (different := got.astype(np.float64) != right).any():
        index = tuple(int(i) for i in np.argwhere(different)[0])
        raise Failure(f"{name}{list(index)}: expected to read back {right[index]!r}; got {got[index]!r}")


def _stored_cases(scope: Scope) -> Iterator[Case]:
    forms = [form for form in FORMATS if f"weights:{form}" in scope.declared.features]
    plain = (case for form in forms for case in _cases(form)(scope) if case.name == f"{form},plain")
    yield from sorted(plain, key=lambda case: scope.precisions.index(case.precision))


@check(
    "weights.no_derivatives",
    "a tape and a jvp of rounded weights are refused",
    section=8,
    cases=_stored_cases,
)
def _no_derivatives(tested: BackendUnderTest, case: Case) -> None:
    data = tested.device(case.data)
    kernel, weights = tested.kernel(case), tested.pack(case, tested.device(_unstored(case)))
    calls = {
        "backward": lambda: kernel.forward(weights, data.x, data.state, record=True),
        "jvp": lambda: kernel.jvp(weights, data.x, data.state, data.tangents),
    }
    names = {name: "weights" if name in tested.declared.derivatives else name for name in calls}
    if texts := [text for name, call in calls.items() if (text := refusal_error(names[name], call))]:
        raise Failure("; ".join(texts))


#: Models of `rows.large`; in the last one h and q of a large row are as large as its x.
_LARGE: Final[Mapping[str, Mapping[str, Any]]] = {
    **{name: SWITCHES[name] for name in ("plain", "proj_size", "everything")},
    "unbounded": {"proj_size": 3, "cell_activation": "identity", "hidden_activation": "identity"},
}


def _large_cases(scope: Scope) -> Iterator[Case]:
    """Yield the smallest case first: it shows a scale for all rows or steps as well as the larger ones do."""
    integers = f"weights:{INT8A16}" in scope.declared.features
    for precision in scope.precisions:
        smallest = config_of({"input_size": 1, "hidden_size": 1})
        cases = [Case(name="large,T=2,N=2,I=1,H=1", model=smallest, precision=precision, steps=2, batch=2)]
        for name, changes in _LARGE.items():
            if name == "unbounded" and precision != scope.main:
                continue
            model = config_of(changes)
            cases.append(Case(name=f"large,{name}", model=model, precision=precision, steps=5, batch=4))
        for case in cases:
            yield case
            if integers and precision == "float32":
                yield replace(case, name=f"{INT8A16},{case.name}", weights=INT8A16)
        if "lengths" in scope.declared.features:
            model = config_of({"reverse": True} if "reverse" in scope.declared.features else {})
            yield Case(name="large,lengths", model=model, precision=precision, steps=5, batch=4, lengths=(5, 2, 5, 3))


def _judge(tested: BackendUnderTest, case: Case, large: Any, kept: Mapping[str, Any]) -> Measure:
    """Compare parts of the results where a part of x is `FACTOR` times as large with the same parts where it is not.

    Both are the backend's own, so that this measures nothing but what the large part changes. The budget is the case's.
    """
    x = case.data.x.copy()
    x[large] *= FACTOR
    before, after = tested.forward(case), tested.forward(case, replace(case.data, x=x))
    expected = budgets.forward(case)
    return compare(
        {name: after[name][part] for name, part in kept.items()},
        {name: replace(expected[name], value=before[name][part].astype(np.float64)) for name, part in kept.items()},
    )


@check("rows.large", "a row with inputs 1,024 times as large changes no other row", section=9, cases=_large_cases)
def _large_row(tested: BackendUnderTest, case: Case) -> Measure:
    row = case.batch // 2
    others: Any = np.delete(np.arange(case.batch), row)
    return _judge(tested, case, np.s_[:, row], {"y": (slice(None), others), "h_n": others, "c_n": others})


@check("steps.large", "steps with inputs 1,024 times as large change no earlier step", section=9, cases=_large_cases)
def _large_steps(tested: BackendUnderTest, case: Case) -> Measure:
    """A reversed direction runs from the end, so that the first steps are its later ones."""
    first = case.steps * 3 // 5
    large, kept = (np.s_[:first], np.s_[first:]) if case.config.reverse else (np.s_[first:], np.s_[:first])
    return _judge(tested, case, large, {"y": kept})
