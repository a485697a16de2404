"""Checks of capabilities: declared features work, and all others are refused with a reason."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from types import FrameType

import numpy as np

from lstmcore.backend import Masks, Receipt, UnsupportedError
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.large_sizes import LENGTHS, ROWS, STEPS, WIDTHS, extent_cases
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure
from lstmcore_conformance.suite.check import Scope, check


def one_case(scope: Scope) -> Iterator[Case]:
    """Yield the plain model in the first precision."""
    yield Case(name="declared", model=config_of({}), precision=scope.precisions[0])


def plain_cases(scope: Scope) -> Iterator[Case]:
    """Yield the plain model in every precision."""
    for precision in scope.precisions:
        yield Case(name="declared", model=config_of({}), precision=precision)


def refusal_error(what: str, call: Callable[[], object]) -> str:
    """Return what is wrong with the refusal of `call`, which must name `what`; an empty text if nothing is."""
    try:
        call()
    except UnsupportedError as error:
        return "" if what in str(error) and str(error).strip() else f"{what}: the refusal does not name it: {error}"
    except Exception as error:
        return f"{what}: expected UnsupportedError; got {type(error).__name__}: {error}"
    return f"{what}: expected UnsupportedError; it compiled"


@check("refusals.precisions", "a precision that is not declared is refused with a reason", section=9, cases=one_case)
def precisions(tested: BackendUnderTest, case: Case) -> None:
    wrong, stack = [], StackConfig.make(case.config)
    for name in sorted(set(PRECISIONS) - tested.declared.precisions):
        wrong.append(refusal_error(name, partial(tested.backend.compile, case.config, name)))
        wrong.append(refusal_error(name, partial(tested.backend.compile_stack, stack, name)))
    try:
        tested.backend.compile(case.config, "float48")
    except ValueError as error:
        wrong.append("" if "float48" in str(error) else f"float48: the error does not name it: {error}")
    except Exception as error:
        wrong.append(f"float48: expected ValueError; got {type(error).__name__}: {error}")
    else:
        wrong.append("float48: expected ValueError; it compiled")
    _judge(wrong)


@check(
    "refusals.features",
    "a switch that is not declared is refused with a reason, and one that is declared compiles",
    section=9,
    cases=plain_cases,
)
def features(tested: BackendUnderTest, case: Case) -> None:
    wrong = []
    for config in _configs():
        alone = Case(name="alone", model=config, precision=case.precision)
        if missing := sorted(config.features - tested.declared.features):
            wrong.append(refusal_error(missing[0], partial(tested.backend.compile, config, case.precision)))
        elif tested.refusal(alone) is None:
            tested.kernel(alone)
    _judge(wrong)


@check(
    "refusals.calls",
    "lengths, masks, a tape and a jvp are refused with a reason if they are not declared, and run if they are",
    section=9,
    cases=plain_cases,
)
def calls(tested: BackendUnderTest, case: Case) -> None:
    data, kernel = tested.device(case.data), tested.kernel(case)
    weights = tested.pack(case, data)
    calls: dict[str, Callable[[], object]] = {
        "lengths": lambda: kernel.forward(weights, data.x, lengths=np.ones(case.batch, np.int64)),
        "masks": lambda: kernel.forward(weights, data.x, masks=Masks()),
        "backward": lambda: kernel.forward(weights, data.x, record=True),
        "jvp": lambda: kernel.jvp(weights, data.x, data.state, data.tangents),
    }
    known = tested.declared.features | tested.declared.derivatives
    _judge([refusal_error(name, call) for name, call in calls.items() if name not in known])
    for name, call in calls.items():
        if name in known:
            with tested.guard(f"a call with {name}, which is declared,"):
                call()


@check(
    "declared.switches",
    "every switch that is declared compiles, alone, in at least one declared precision",
    section=9,
    cases=one_case,
)
def switches(tested: BackendUnderTest, _: Case) -> None:
    wrong = []
    for config in _configs():
        if config.features <= tested.declared.features:
            cases = [Case(name="alone", model=config, precision=name) for name in sorted(tested.declared.precisions)]
            reasons = [tested.refusal(case) for case in cases]
            if all(reasons):
                wrong.append(f"{config}: declared, and refused in every precision: {reasons[0]}")
    _judge(wrong)


@check(
    "receipts.true",
    "a receipt names the backend, the device, the precision, the path and why",
    section=9,
    cases=plain_cases,
)
def receipts(tested: BackendUnderTest, case: Case) -> None:
    for sizes in ((), (case.steps, case.batch), (1, 1), (0, 0)):
        _judge_receipt(tested, case, *sizes)


def _judge_receipt(tested: BackendUnderTest, case: Case, *sizes: int) -> Receipt:
    """Return the receipt of a call of these steps and rows, or raise `Failure`."""
    with tested.guard("receipt"):
        receipt = tested.kernel(case).receipt(*sizes)
    if not isinstance(receipt, Receipt):
        raise Failure(f"receipt: expected a Receipt; got {type(receipt).__name__}")
    expected = (tested.backend.name, tested.declared.device, case.precision)
    if (receipt.backend, receipt.device, receipt.precision) != expected:
        raise Failure(
            f"receipt: expected backend, device and precision {expected}; got "
            f"{(receipt.backend, receipt.device, receipt.precision)}"
        )
    if not receipt.path or not receipt.reason:
        raise Failure(f"receipt: expected a path and a reason; got {receipt}")
    return receipt


@check(
    "receipts.fallback",
    "a call that the reference or another backend computes says so in its receipt",
    section=9,
    cases=lambda scope: (
        Case(name=f"fallback,{name}", model=config_of(changes), precision=precision)
        for precision in scope.precisions
        for name, changes in SWITCHES.items()
    ),
)
def fallback(tested: BackendUnderTest, case: Case) -> None:
    _judge_fallback(tested, case, tested.kernel(case).receipt(case.steps, case.batch))


def large_cases(scope: Scope) -> Iterator[Case]:
    """Yield large calls, with lengths and without."""
    for precision in scope.precisions:
        for extents in (WIDTHS, ROWS, STEPS):
            yield from extent_cases(extents, scope.declared, precision)
        for case in extent_cases(LENGTHS, scope.declared, precision):
            yield replace(case, name=f"{case.name},lengths")


@check(
    "receipts.sizes",
    "the receipt of a large call is whole, and says so if the reference or another backend computes the call",
    section=9,
    cases=large_cases,
    profile="quick",
)
def sizes(tested: BackendUnderTest, case: Case) -> None:
    _judge_fallback(tested, case, _judge_receipt(tested, case, case.steps, case.batch))


def _judge_fallback(tested: BackendUnderTest, case: Case, receipt: Receipt) -> None:
    """Raise `Failure` if the reference or another backend runs in a call, and the receipt does not say so."""
    if receipt.fallback is not None or receipt.path == "equations":
        return
    data = tested.device(case.data)

    def everything() -> None:
        record = "backward" in tested.declared.derivatives
        weights = tested.pack(case, data)
        tested.call(case, data, weights=weights)
        done = tested.call(case, data, record=record, weights=weights)
        if record:
            tested.backward(case, data, weights, done)
        if "jvp" in tested.declared.derivatives:
            tested.tangents(case)

    own = type(tested.backend).__module__.partition(".")[0]
    others = {entry.value.partition(".")[0] for entry in entry_points(group="lstmcore.backends")} - {own}
    for module in modules_that_run(everything):
        if module == "lstmcore.reference" or module.partition(".")[0] in others:
            raise Failure(
                f"receipt: expected path 'equations' or a reason in fallback, since {module} ran; "
                f"got path {receipt.path!r} and no fallback"
            )


def modules_that_run(call: Callable[[], None]) -> set[str]:
    """Return the names of the modules whose Python functions run during a call."""
    modules: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            modules.add(str(frame.f_globals.get("__name__")))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return modules


def _configs() -> Iterator[LSTMConfig]:
    return (config_of(changes) for changes in SWITCHES.values())


def _judge(wrong: list[str]) -> None:
    """Raise `Failure` with all texts that are not empty."""
    if texts := [text for text in wrong if text]:
        raise Failure("; ".join(texts))
