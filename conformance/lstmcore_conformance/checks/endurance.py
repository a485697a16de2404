"""Checks of long runs and of extreme numbers."""

from __future__ import annotations

import ctypes
import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from lstmcore.backend import State
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.metamorphic import piece
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare
from lstmcore_conformance.suite.check import Scope, check

LONG: Final = 100_000
PIECES: Final = 1_000
#: Calls before memory is watched, calls during which it is watched, and the bytes by which it may grow meanwhile.
WARM: Final = 200
CALLS: Final = 1_000
GROWTH: Final = 6 << 20
#: Small calls of each kind for `calls.leaks`, the bytes by which memory may grow, and the threads and files.
SMALL_CALLS: Final = 2_000
SMALL_GROWTH: Final = 5 << 20
HANDLES: Final = 20


def long_cases(scope: Scope) -> Iterator[Case]:
    """Yield small models over many steps."""
    for precision in scope.precisions:
        for name in ("plain", "everything"):
            changes = {**SWITCHES[name], "reverse": False, "input_size": 2, "hidden_size": 4}
            yield Case(name=f"long,{name}", model=config_of(changes), precision=precision, steps=509, batch=2)


@check(
    "state.long",
    f"{LONG:,} steps in one call and in {PIECES:,} calls give the same",
    section=8,
    cases=long_cases,
    profile="full",
)
def long(tested: BackendUnderTest, case: Case) -> Measure:
    allowed, repeats = budgets.forward(case), -(-LONG // case.steps)
    x = np.tile(case.data.x, (repeats, 1, 1))[:LONG]
    data = replace(case.data, x=x)
    whole = tested.forward(case, data)
    state, size, outputs = case.data.state, LONG // PIECES, []
    for start in range(0, LONG, size):
        got = tested.forward(case, piece(data, start, start + size, state))
        state = State(got["h_n"], got["c_n"])
        outputs.append(got["y"])
    joined = {"y": np.concatenate(outputs), "h_n": got["h_n"], "c_n": got["c_n"]}
    # An LSTM forgets, so the error after many steps is that after a few. Both sides may use their budget.
    expected = {
        name: replace(want, value=whole[name].astype(np.float64), budget=2 * want.budget)
        for name, want in allowed.items()
    }
    return compare(joined, expected)


@check("forward.long", "y and the final state are right after 509 steps", section=2, cases=long_cases, profile="full")
def long_forward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.forward(case), budgets.forward(case))


@check(
    "backward.long",
    "every gradient is right over 509 steps",
    section=2,
    cases=long_cases,
    needs=("backward",),
    profile="full",
)
def long_backward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.gradients(case), budgets.gradients(case))


#: Name -> the factor of x, h and c. The last gives numbers below the smallest normal number of float32.
EXTREMES: Final[Mapping[str, float]] = {"saturating": 1e4, "large": 30.0, "tiny": 1e-8, "denormal": 1e-40}


def extreme_cases(scope: Scope) -> Iterator[Case]:
    """Yield inputs and states that saturate every gate, and denormal ones."""
    for precision in scope.precisions:
        for kind, factor in EXTREMES.items():
            for name in ("plain", "no_bias", "peephole", "layer_norm", "input_from_forget", "recurrence_cell"):
                if name == "layer_norm" and factor < 1:
                    continue  # it amplifies the rounding of nearly equal numbers without bound
                if kind == "large" and precision == "float64":
                    continue  # gates that are closed in float32, which judges float64, are not quite closed in float64
                case = Case(name=f"{kind},{name}", model=config_of(SWITCHES[name]), precision=precision, scale=factor)
                yield case
                yield replace(case, name=f"{case.name},T=N=1", steps=1, batch=1)


def with_denormals(case: Case, expected: budgets.Expectation) -> budgets.Expectation:
    """Return `expected` with larger budgets: results below the smallest normal number may be 0."""
    tiny = float(np.finfo("float16" if case.precision == "float16" else "float32").tiny)
    return {name: replace(want, budget=want.budget + tiny) for name, want in expected.items()}


def extreme(case: Case, expected: budgets.Expectation) -> budgets.Expectation:
    """Return `expected` with the budgets of `with_denormals`, and with one rounding for each step.

    Inputs that are tiny or saturate make all rows and steps alike. The naive evaluation then has few different numbers,
    its error is luck, and functions that are two units of the last place off would exceed a multiple of it.
    """
    each = budgets.SAFETY * budgets.ROUNDING * case.policy.epsilon * max(case.steps - 1, 0)
    return {
        name: replace(want, budget=want.budget + each * float(np.abs(want.value).max(initial=0.0)))
        for name, want in with_denormals(case, expected).items()
    }


@check(
    "forward.extremes",
    "saturating and denormal inputs and states give what they should",
    section=8,
    cases=extreme_cases,
)
def extreme_forward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.forward(case), extreme(case, budgets.forward(case)))


@check(
    "backward.extremes",
    "gradients at saturating and denormal inputs and states are right",
    section=8,
    cases=extreme_cases,
    needs=("backward",),
)
def extreme_backward(tested: BackendUnderTest, case: Case) -> Measure:
    return compare(tested.gradients(case), extreme(case, budgets.gradients(case)))


def memory_cases(scope: Scope) -> Iterator[Case]:
    """Yield one model, large enough that a call that keeps an array is seen."""
    model = config_of({"input_size": 32, "hidden_size": 48, "peephole": "peephole" in scope.declared.features})
    yield Case(name="memory", model=model, precision=scope.precisions[-1], steps=8, batch=16)


@check("calls.memory", f"memory does not grow over {CALLS:,} calls", section=9, cases=memory_cases, profile="full")
def memory(tested: BackendUnderTest, case: Case) -> None:
    data = tested.device(case.data)
    weights = tested.pack(case, data)
    record = "backward" in tested.declared.derivatives

    def call() -> None:
        done = tested.call(case, data, record=record, weights=weights)
        if record:
            tested.backward(case, data, weights, done)

    for _ in range(WARM):
        call()
    watch = _Memory()
    for _ in range(CALLS):
        call()
    if (grown := watch.grown()) > GROWTH:
        raise Failure(f"memory: expected no growth over {CALLS} calls; it grew by {grown / CALLS:.0f} bytes a call")


def leak_cases(scope: Scope) -> Iterator[Case]:
    """Yield a small model for each kind of call."""
    derivatives = scope.declared.derivatives
    kinds = {"pack": True, "forward": True, "backward": "backward" in derivatives, "jvp": "jvp" in derivatives}
    model = config_of({"input_size": 2, "hidden_size": 3})
    for kind in (kind for kind, declared in kinds.items() if declared):
        yield Case(name=f"leaks,{kind}", model=model, precision=scope.precisions[-1], steps=1, batch=1)


@check(
    "calls.leaks",
    f"{SMALL_CALLS:,} packs, calls, tapes or tangents leave no memory, threads or open files behind",
    section=9,
    cases=leak_cases,
    profile="full",
)
def leaks(tested: BackendUnderTest, case: Case) -> None:
    data, kind = tested.device(case.data), case.name.split(",")[1]
    weights = tested.pack(case, data)
    call: Callable[[], object] = {
        "pack": lambda: tested.pack(case, data),
        "forward": lambda: tested.call(case, data, weights=weights),
        "backward": lambda: tested.call(case, data, record=True, weights=weights),  # the tape is never used
        "jvp": lambda: tested.jvp(case, data, weights),
    }[kind]
    for _ in range(WARM):
        call()
    watch, handles = _Memory(), _handles()
    for _ in range(SMALL_CALLS):
        call()
    if (opened := _handles() - handles) > HANDLES:
        raise Failure(f"{kind}: expected as many threads and open files as before; there are {opened} more")
    if (grown := watch.grown()) > SMALL_GROWTH:
        raise Failure(f"{kind}: expected no growth of memory; it grew by {grown / SMALL_CALLS:.0f} bytes a call")


def _handles() -> int:
    """Return the number of threads of this process, those of Python if the system has no /proc, and of open files."""
    folders = [Path("/proc/self/task"), Path("/proc/self/fd")]
    if all(folder.exists() for folder in folders):
        return sum(len(list(folder.iterdir())) for folder in folders)
    return threading.active_count()


class _Memory:
    """The growth of this process's memory: all of it if the system has /proc, else the allocations of Python."""

    def __init__(self) -> None:
        self.has_proc = Path("/proc/self/statm").exists()
        if not self.has_proc:
            tracemalloc.start()
        self.start = self._now()

    def _now(self) -> int:
        if not self.has_proc:
            return tracemalloc.get_traced_memory()[0]
        import resource

        _trim_memory()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def grown(self) -> int:
        grown = self._now() - self.start
        if not self.has_proc:
            tracemalloc.stop()
        return grown


def _trim_memory() -> None:
    """Return free memory to the system if the C library can do so: it would hide a leak that fits into it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim.argtypes = [ctypes.c_size_t]
        trim(0)
