"""Checks of side effects: what a call changes in the process and the thread that it runs in."""

from __future__ import annotations

import gc
import locale
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.checks.contract import contract_cases, results
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure
from lstmcore_conformance.suite.check import check


def _rounding() -> list[float]:
    """Return sums that depend on the direction in which this thread rounds."""
    ones = np.array([1.0, -1.0])
    return [float(number) for sign in (1, -1) for number in ones + sign * 2.0**-60]


def _denormals() -> bool:
    """Return whether this thread computes with denormal numbers; else they are zeros."""
    return bool((np.full(64, 1e-40, np.float32) * np.float32(0.5)).all())


def _processors() -> list[int]:
    """Return the processors on which this thread may run, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _torch_threads() -> int | None:
    """Return the number of threads of PyTorch, if something has imported it."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


#: What a call leaves as it is, in words -> the function that returns it.
SETTINGS: Final[dict[str, Callable[[], Any]]] = {
    "numpy.geterr()": np.geterr,
    "numpy.get_printoptions()": lambda: repr(np.get_printoptions()),
    "numpy.getbufsize()": np.getbufsize,
    "numpy.random.get_state()": lambda: repr(np.random.get_state(legacy=False)),
    "random.getstate()": random.getstate,
    "warnings.filters": lambda: repr(warnings.filters),
    "gc.isenabled(), gc.get_threshold()": lambda: (gc.isenabled(), gc.get_threshold()),
    "sys.getrecursionlimit()": sys.getrecursionlimit,
    "sys.getswitchinterval()": sys.getswitchinterval,
    "os.environ": lambda: dict(os.environ),
    "os.getcwd()": os.getcwd,
    "locale.setlocale()": lambda: locale.setlocale(locale.LC_ALL),
    "the handler of SIGINT": lambda: signal.getsignal(signal.SIGINT),
    "the treatment of denormal numbers": _denormals,
    "the direction of rounding": _rounding,
    "the processors of the thread": _processors,
    "torch.get_num_threads()": _torch_threads,
}


@check(
    "calls.surroundings",
    "a call leaves settings as they are: error handling, warnings, random numbers, printing, gc, denormals and more",
    section=9,
    cases=contract_cases,
)
def surroundings(tested: BackendUnderTest, case: Case) -> None:
    def changed() -> list[str]:
        with np.errstate(all="ignore"):  # as in `run_item`; a thread may begin with the defaults
            tested.kernel(case)  # what a backend sets when it loads is not the call's
            before = {name: get() for name, get in SETTINGS.items()}
            results(tested, case, tested.device(case.data))
            return [name for name, get in SETTINGS.items() if get() != before[name]]

    with ThreadPoolExecutor(1) as pool:  # settings of a thread end with it
        names = pool.submit(changed).result()
    if names:
        raise Failure(f"{', '.join(names)}: expected no change by a call; it changed")
