"""What is declared is there; what is not is refused, with a reason."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from types import FrameType
from typing import Any

from lstmcore.backend import Masks, Receipt, UnsupportedError
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure
from lstmcore_conformance.suite.check import Scope, check


def one_case(scope: Scope) -> Iterator[Case]:
    """The plain model in the first precision."""
    yield Case(name="declared", model=config_of({}), precision=scope.precisions[0])


def plain_cases(scope: Scope) -> Iterator[Case]:
    """The plain model."""
    for precision in scope.precisions:
        yield Case(name="declared", model=config_of({}), precision=precision)


def refused(what: str, compile: Any) -> str:
    """What is wrong with a refusal, or an empty text."""
    try:
        compile()
    except UnsupportedError as error:
        return "" if what in str(error) and str(error).strip() else f"{what}: the refusal does not name it: {error}"
    except Exception as error:
        return f"{what}: expected UnsupportedError; got {type(error).__name__}: {error}"
    return f"{what}: expected UnsupportedError; it compiled"


@check("refusals.precisions", "a precision that is not declared is refused with a reason", section=9, cases=one_case)
def precisions(tested: BackendUnderTest, case: Case) -> None:
    wrong, stack = [], StackConfig.make(case.config)
    for name in sorted(set(PRECISIONS) - tested.declared.precisions):
        wrong.append(refused(name, lambda name=name: tested.backend.compile(case.config, name)))
        wrong.append(refused(name, lambda name=name: tested.backend.compile_stack(stack, name)))
    try:
        tested.backend.compile(case.config, "float48")
    except ValueError as error:
        wrong.append("" if "float48" in str(error) else f"float48: the error does not name it: {error}")
    except Exception as error:
        wrong.append(f"float48: expected ValueError; got {type(error).__name__}: {error}")
    else:
        wrong.append("float48: expected ValueError; it compiled")
    _judge(wrong)


@check("refusals.features", "a switch that is not declared is refused with a reason", section=9, cases=plain_cases)
def features(tested: BackendUnderTest, case: Case) -> None:
    wrong = [
        refused(name, lambda config=config: tested.backend.compile(config, case.precision))
        for config in _configs()
        for name in sorted(config.features - tested.declared.features)[:1]
    ]
    _judge(wrong)


@check(
    "refusals.calls",
    "lengths, masks, a tape and a jvp that are not declared are refused with a reason",
    section=9,
    cases=plain_cases,
)
def calls(tested: BackendUnderTest, case: Case) -> None:
    data, kernel = tested.device(case.data), tested.kernel(case)
    weights = tested.pack(case, data)
    given = {
        "lengths": lambda: kernel.forward(weights, data.x, lengths=[1] * case.batch),
        "masks": lambda: kernel.forward(weights, data.x, masks=Masks()),
        "backward": lambda: kernel.forward(weights, data.x, record=True),
        "jvp": lambda: kernel.jvp(weights, data.x, None, data.tangents),
    }
    known = tested.declared.features | tested.declared.derivatives
    _judge([refused(name, call) for name, call in given.items() if name not in known])


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
        with tested.guard("receipt"):
            found = tested.kernel(case).receipt(*sizes)
        if not isinstance(found, Receipt):
            raise Failure(f"receipt: expected a Receipt; got {type(found).__name__}")
        expected = (tested.backend.name, tested.declared.device, case.precision)
        if (found.backend, found.device, found.precision) != expected:
            raise Failure(
                f"receipt: expected backend, device and precision {expected}; got "
                f"{(found.backend, found.device, found.precision)}"
            )
        if not found.path or not found.reason:
            raise Failure(f"receipt: expected a path and a reason; got {found}")


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
    kernel, data = tested.kernel(case), tested.device(case.data)
    receipt = kernel.receipt(case.steps, case.batch)
    if receipt.fallback is not None or receipt.path == "equations":
        return

    def everything() -> None:
        record = "backward" in tested.declared.derivatives
        weights = tested.pack(case, data)
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
    """The names of the modules whose Python functions run during a call."""
    found: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            found.add(str(frame.f_globals.get("__name__")))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


def _configs() -> Iterator[LSTMConfig]:
    return (config_of(changes) for changes in SWITCHES.values())


def _judge(wrong: list[str]) -> None:
    if found := [text for text in wrong if text]:
        raise Failure("; ".join(found))
