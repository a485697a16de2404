"""Checks of errors: each mistake of the caller is a TypeError or a ValueError that names the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lstmcore.backend import Masks, State, Tangents
from lstmcore_conformance.cases.case import Array, Case
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare
from lstmcore_conformance.suite.check import Scope, check

#: The mistake in words, the call, the error, and the word that its message must have.
Mistake = tuple[str, Callable[[], object], type[Exception], str]


def error_cases(scope: Scope) -> Iterator[Case]:
    """Yield one model in every precision."""
    for precision in scope.precisions:
        yield Case(name="mistakes", model=config_of({}), precision=precision)


def mask_cases(scope: Scope) -> Iterator[Case]:
    """Yield a model with every kind of mask, in every precision."""
    for precision in scope.precisions:
        yield Case(name="mistakes,masks", model=config_of(SWITCHES["everything"]), precision=precision, masks=True)


def judge(mistakes: Iterator[Mistake]) -> None:
    """Make every mistake.

    Raises
    ------
    Failure
        A mistake passed, raised another error, or one that does not name the argument. The message lists all of them.
    """
    wrong = []
    for what, call, kind, word in mistakes:
        try:
            call()
        except kind as error:
            if word not in str(error):
                wrong.append(f"{what}: {type(error).__name__} does not name {word!r}: {error}")
            elif "\n" in str(error):
                wrong.append(f"{what}: the message has more than one line")
        except Exception as error:
            wrong.append(f"{what}: expected {kind.__name__}; got {type(error).__name__}: {error}")
        else:
            wrong.append(f"{what}: expected {kind.__name__}; it passed")
    if wrong:
        raise Failure("; ".join(wrong))


class Calls:
    """The calls of a case with some arguments replaced."""

    def __init__(self, tested: BackendUnderTest, case: Case) -> None:
        self.tested, self.case = tested, case
        self.data = tested.device(case.data)
        self.kernel = tested.kernel(case)
        self.weights = tested.pack(case, self.data)

    def device(self, array: Array) -> Any:
        """Return the array on the device."""
        return self.tested.backend.to_device(array)

    def forward(self, out: Any = None, **changes: Any) -> Callable[[], object]:
        """Return a function that makes the call with some arguments replaced."""
        data = replace(self.data, **changes)
        return lambda: self.kernel.forward(
            self.weights, data.x, data.state, lengths=data.lengths, masks=data.masks, out=out
        )

    def still_works(self) -> None:
        """Raise `Failure` unless a right call after the mistakes gives right numbers."""
        try:
            compare(self.tested.forward(self.case), budgets.forward(self.case))
        except Failure as failure:
            raise Failure(f"a right call after the mistakes: {failure}", failure.worst) from failure


def other_dtype(array: Array) -> Array:
    """Return the same numbers in a dtype that no precision has there."""
    return array.astype(np.float32 if array.dtype == np.float64 else np.float64)


def masked(array: Any) -> Any:
    """Return the same numbers as a masked array whose first element is hidden."""
    mask = np.zeros(array.shape, bool)
    mask.flat[0] = True
    return np.ma.array(array, mask=mask)


@check("errors.x", "an x of another rank, width, dtype or type is an error that names it", section=9, cases=error_cases)
def wrong_x(tested: BackendUnderTest, case: Case) -> None:
    calls, x = Calls(tested, case), case.data.x

    def mistakes() -> Iterator[Mistake]:
        yield "two dimensions", calls.forward(x=calls.device(x[0])), ValueError, "x"
        yield "four dimensions", calls.forward(x=calls.device(x[None])), ValueError, "x"
        yield ("one column short", calls.forward(x=calls.device(x[:, :, 1:])), ValueError, "x")
        yield ("another float", calls.forward(x=calls.device(other_dtype(x))), TypeError, "x")
        yield ("whole numbers", calls.forward(x=calls.device(x.astype(np.int64))), TypeError, "x")
        yield "a list", calls.forward(x=x.astype(np.float64).tolist()), TypeError, "x"
        yield "None", calls.forward(x=None), TypeError, "x"

    judge(mistakes())
    calls.still_works()


@check("errors.state", "a wrong state is an error that names it", section=9, cases=error_cases)
def wrong_state(tested: BackendUnderTest, case: Case) -> None:
    calls, state = Calls(tested, case), case.data.state
    if state is None:
        raise TypeError(f"case {case.id}: expected a state")
    h, c = (calls.device(array) for array in state)
    other_h, other_c = (calls.device(other_dtype(array)) for array in state)

    def mistakes() -> Iterator[Mistake]:
        yield ("h one row short", calls.forward(state=State(calls.device(state.h[1:]), c)), ValueError, "state")
        yield ("h one column short", calls.forward(state=State(calls.device(state.h[:, 1:]), c)), ValueError, "state")
        yield ("c one row short", calls.forward(state=State(h, calls.device(state.c[1:]))), ValueError, "state")
        yield ("c with layers", calls.forward(state=State(h, calls.device(state.c[None]))), ValueError, "state")
        yield "h of another dtype", calls.forward(state=State(other_h, c)), TypeError, "state"
        yield "c of another dtype", calls.forward(state=State(h, other_c)), TypeError, "state"
        yield "an array", calls.forward(state=h), TypeError, "state"
        yield "three arrays", calls.forward(state=(h, c, c)), TypeError, "state"
        yield "no c", calls.forward(state=State(h, None)), TypeError, "state"
        one = State(*(calls.device(array[:1]) for array in state))
        yield "one row for all", calls.forward(state=one), ValueError, "state"

    judge(mistakes())
    calls.still_works()


@check(
    "errors.lengths",
    "lengths that are negative, above T, not whole or not one a row are an error that names them",
    section=4,
    cases=error_cases,
    needs=("lengths",),
)
def wrong_lengths(tested: BackendUnderTest, case: Case) -> None:
    calls, top = Calls(tested, case), case.steps

    def mistakes() -> Iterator[Mistake]:
        yield ("negative", calls.forward(lengths=np.array([1, -1, 2])), ValueError, "lengths")
        yield ("above T", calls.forward(lengths=np.array([1, 2, top + 1])), ValueError, "lengths")
        yield ("one short", calls.forward(lengths=np.array([1, 2])), ValueError, "lengths")
        yield ("one more", calls.forward(lengths=np.array([1, 2, 2, 2])), ValueError, "lengths")
        yield ("two dimensions", calls.forward(lengths=np.array([[1, 2, 2]])), ValueError, "lengths")
        yield "a number", calls.forward(lengths=2), ValueError, "lengths"
        yield ("floats", calls.forward(lengths=np.array([1.0, 2.0, 2.0])), TypeError, "lengths")
        yield ("booleans", calls.forward(lengths=np.array([True, True, False])), TypeError, "lengths")

    judge(mistakes())
    calls.still_works()


@check(
    "errors.parameters",
    "a parameter that is missing, unknown or of another shape or dtype is an error that names it",
    section=1,
    cases=error_cases,
)
def wrong_parameters(tested: BackendUnderTest, case: Case) -> None:
    calls, good = Calls(tested, case), case.data.parameters

    def pack(changes: dict[str, Any], drop: str = "") -> Callable[[], object]:
        wrong = {name: array for name, array in (good | changes).items() if name != drop}
        return lambda: calls.kernel.pack(
            {name: calls.device(array) if isinstance(array, np.ndarray) else array for name, array in wrong.items()}
        )

    def mistakes() -> Iterator[Mistake]:
        for name in good:
            yield f"{name} missing", pack({}, drop=name), ValueError, name
            yield (f"{name} of another dtype", pack({name: other_dtype(good[name])}), TypeError, name)
            yield (f"{name} one row short", pack({name: good[name][1:]}), ValueError, name)
            yield f"{name} None", pack({name: None}), TypeError, name
        yield "unknown", pack({"weight_q": good["weight_x"]}), ValueError, "weight_q"
        yield ("transposed", pack({"weight_x": np.ascontiguousarray(good["weight_x"].T)}), ValueError, "weight_x")
        yield ("a list", lambda: calls.kernel.pack(list(good.values())), TypeError, "parameters")

    judge(mistakes())
    calls.still_works()


@check(
    "errors.masks",
    "a mask of another shape or dtype, or for a rate of 0, is an error that names it",
    section=5,
    cases=mask_cases,
    needs=("masks",),
)
def wrong_masks(tested: BackendUnderTest, case: Case) -> None:
    calls, masks = Calls(tested, case), case.data.masks
    plain = Case(name="mistakes,no_rate", model=config_of({}), precision=case.precision)
    without = Calls(tested, plain)

    def mistakes() -> Iterator[Mistake]:
        for name in Masks._fields:
            mask = getattr(masks, name)
            cut, other = (calls.device(mask[..., 1:]), calls.device(mask.astype(np.int64)))
            yield (f"{name} one column short", calls.forward(masks=masks._replace(**{name: cut})), ValueError, name)
            yield (f"{name} whole numbers", calls.forward(masks=masks._replace(**{name: other})), TypeError, name)
            yield f"{name} masked", calls.forward(masks=masks._replace(**{name: masked(mask)})), TypeError, name
        steps, batch = plain.steps, plain.batch
        width, dtype = plain.config.hidden_size, plain.policy.compute
        for name, shape in (
            ("recurrent", (batch, width)),
            ("zoneout_hidden", (steps, batch, width)),
            ("zoneout_cell", (steps, batch, width)),
        ):
            ones = without.device(np.ones(shape, dtype))
            yield (f"{name} for a rate of 0", without.forward(masks=Masks(**{name: ones})), ValueError, name)

    judge(mistakes())
    calls.still_works()


@check(
    "errors.masked",
    "a masked array is an error that names the argument: what its mask hides would be computed with",
    section=9,
    cases=error_cases,
)
def masked_arrays(tested: BackendUnderTest, case: Case) -> None:
    calls, declared = Calls(tested, case), tested.declared

    def mistakes() -> Iterator[Mistake]:
        yield from _masked_inputs(
            calls, lengths="lengths" in declared.features, out=isinstance(calls.data.x, np.ndarray)
        )
        if "backward" in declared.derivatives:
            yield from _masked_cotangents(calls)
        if "jvp" in declared.derivatives:
            yield from _masked_tangents(calls)

    judge(mistakes())
    calls.still_works()


def _masked_inputs(calls: Calls, *, lengths: bool, out: bool) -> Iterator[Mistake]:
    """Yield a masked array as each argument of pack and forward."""
    case, data = calls.case, calls.case.data
    yield "x", calls.forward(x=masked(data.x)), TypeError, "x"
    for entry in State._fields:
        yield f"state.{entry}", calls.forward(state=_masked_entry(data.state, entry)), TypeError, f"state.{entry}"
    for name, array in data.parameters.items():
        parameters = calls.data.parameters | {name: masked(array)}
        yield name, partial(calls.kernel.pack, parameters), TypeError, name
    if lengths:
        yield "lengths", calls.forward(lengths=masked(np.full(case.batch, case.steps))), TypeError, "lengths"
    if out:
        y = masked(budgets.forward(case)["y"].value.astype(data.x.dtype))
        yield "out", calls.forward(out=y), TypeError, "out"


def _masked_cotangents(calls: Calls) -> Iterator[Mistake]:
    """Yield a masked array as each argument of backward."""
    data = calls.case.data
    tape = calls.tested.call(calls.case, calls.data, record=True, weights=calls.weights).tape
    backward = partial(calls.kernel.backward, calls.weights, tape)
    for entry in State._fields:
        dstate = _masked_entry(data.dstate, entry)
        yield f"dstate.{entry}", partial(backward, None, dstate), TypeError, f"dstate.{entry}"
    yield "dy", partial(backward, masked(data.dy), None), TypeError, "dy"


def _masked_tangents(calls: Calls) -> Iterator[Mistake]:
    """Yield a masked array as the tangent of x and of the parameters."""
    tangents = calls.case.data.tangents
    jvp = partial(calls.kernel.jvp, calls.weights, calls.data.x, calls.data.state)
    yield "tangents.x", partial(jvp, Tangents(x=masked(tangents.x))), TypeError, "tangents.x"
    parameters = {name: masked(array) for name, array in (tangents.parameters or {}).items()}
    yield "tangents.parameters", partial(jvp, Tangents(parameters=parameters)), TypeError, "tangents.parameters"


def _masked_entry(pair: State | None, entry: str) -> State:
    """Return the pair with `entry` as a masked array."""
    if pair is None:
        raise TypeError("expected a pair of h and c")
    return pair._replace(**{entry: masked(getattr(pair, entry))})


@check(
    "errors.backward",
    "a tape of another kernel, or a dy or dstate that does not fit, is an error that names it",
    section=9,
    cases=error_cases,
    needs=("backward",),
)
def wrong_backward(tested: BackendUnderTest, case: Case) -> None:
    calls, data = Calls(tested, case), case.data
    other = tested.compile(replace(case, model=config_of({"bias": False})))
    done = tested.call(case, calls.data, record=True, weights=calls.weights)
    if data.dy is None or data.dstate is None:
        raise TypeError(f"case {case.id}: expected dy and dstate")
    dy, dstate = data.dy, data.dstate
    h, c = (calls.device(array) for array in dstate)

    def backward(tape: Any = done.tape, kernel: Any = calls.kernel, **changes: Any) -> Callable[[], object]:
        return lambda: kernel.backward(calls.weights, tape, changes.get("dy"), changes.get("dstate"))

    def mistakes() -> Iterator[Mistake]:
        yield "no tape", backward(tape=None), ValueError, "tape"
        yield "something else", backward(tape=dy), ValueError, "tape"
        yield "another kernel's", backward(kernel=other), ValueError, "tape"
        yield "dy one step short", backward(dy=calls.device(dy[1:])), ValueError, "dy"
        yield ("dy of another dtype", backward(dy=calls.device(other_dtype(dy))), TypeError, "dy")
        yield "dy a list", backward(dy=dy.astype(np.float64).tolist()), TypeError, "dy"
        yield ("dstate one row short", backward(dstate=State(calls.device(dstate.h[1:]), c)), ValueError, "dstate")
        other_c = calls.device(other_dtype(dstate.c))
        yield "dstate of another dtype", backward(dstate=State(h, other_c)), TypeError, "dstate"
        yield "dstate an array", backward(dstate=h), TypeError, "dstate"
        yield "dstate without c", backward(dstate=(h, None)), TypeError, "dstate"
        yield "dstate without h", backward(dstate=State(None, c)), TypeError, "dstate"

    judge(mistakes())
    compare(tested.backward(case, calls.data, calls.weights, done), budgets.gradients(case))


@check(
    "errors.tangents",
    "a tangent that does not fit is an error that names it",
    section=9,
    cases=error_cases,
    needs=("jvp",),
)
def wrong_tangents(tested: BackendUnderTest, case: Case) -> None:
    calls, data = Calls(tested, case), case.data
    state = data.tangents.state
    if state is None:
        raise TypeError(f"case {case.id}: expected a tangent of the state")
    bias = data.parameters["bias"]

    def jvp(**wrong: Any) -> Callable[[], object]:
        return lambda: calls.kernel.jvp(calls.weights, calls.data.x, calls.data.state, Tangents(**wrong))

    def mistakes() -> Iterator[Mistake]:
        yield ("x one step short", jvp(x=calls.device(data.x[1:])), ValueError, "tangents.x")
        yield ("x of another dtype", jvp(x=calls.device(other_dtype(data.x))), TypeError, "tangents.x")
        short = State(*(calls.device(array[1:]) for array in state))
        yield "state one row short", jvp(state=short), ValueError, "tangents.state"
        lacks = (calls.device(state.h), None)
        yield "state without c", jvp(state=lacks), TypeError, "tangents.state"
        yield ("unknown parameter", jvp(parameters={"weight_q": calls.device(bias)}), ValueError, "weight_q")
        yield ("parameter one row short", jvp(parameters={"bias": calls.device(bias[1:])}), ValueError, "bias")

    judge(mistakes())
    compare(tested.tangents(case), budgets.tangents(case))
