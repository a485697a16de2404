"""Kernels that change their process or their thread, leak, or compute another way than they say."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import os
import platform
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, Final

import numpy as np

from lstmcore import reference
from lstmcore.backend import Array, Backend, State
from lstmcore_conformance.mutants.construction import Hooked, backend_of, edited, fault
from lstmcore_conformance.oracle.naive import NaiveKernel

_NUMBERS: Final = count(1)
#: Machine -> the place of the control word in C's fenv_t, its bits that flush denormals, and those that round up.
_CONTROL: Final = {
    "x86_64": (28, 0x8040, 0x4000),
    "aarch64": (0, 1 << 24, 1 << 22),
    "arm64": (8, 1 << 24, 1 << 22),
}


def _set_control(which: int) -> None:
    """Set the bits that flush denormals (1) or that round up (2) in this thread.

    The main thread is spared, since what runs in it later would be wrong too.
    """
    if threading.current_thread() is threading.main_thread():
        return
    place, *bits = _CONTROL[platform.machine()]
    libm, environment = ctypes.CDLL(ctypes.util.find_library("m")), (ctypes.c_uint8 * 64)()
    libm.fegetenv(environment)
    word = int.from_bytes(bytes(environment[place : place + 4]), "little") | bits[which - 1]
    environment[place : place + 4] = list(word.to_bytes(4, "little"))
    libm.fesetenv(environment)


#: Id -> what a call does, and the function that does it; each call changes something that no call did before.
_CHANGES: Final[dict[str, tuple[str, Callable[[], object]]]] = {
    "denormals": ("makes its thread flush denormal numbers", lambda: _set_control(1)),
    "rounding": ("makes its thread round up", lambda: _set_control(2)),
    "printing": ("changes how NumPy prints", lambda: np.set_printoptions(threshold=1000 + next(_NUMBERS))),
    "warnings": ("adds a filter of warnings", lambda: warnings.filterwarnings("ignore", str(next(_NUMBERS)))),
    "collection": ("changes when Python collects garbage", lambda: gc.set_threshold(700 + next(_NUMBERS))),
    "environment": ("sets a variable of the environment", lambda: os.environ.update(CALLS=str(next(_NUMBERS)))),
}


def _register(name: str, what: str, change: Callable[[], object]) -> None:
    @fault(f"effects.{name}", f"a call {what}", "calls.surroundings")
    def make() -> Backend:
        class K(Hooked):
            def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> Any:
                change()
                return y, last, tape

        return backend_of(K)


for _name, (_what, _change) in _CHANGES.items():
    _register(_name, _what, _change)


# Leaks ----------------------------------------------------------------------------------------------------------------

_LEAKED: Final = 5 * 1024


@fault("leaks.pack", "each pack leaves 5 kB behind", "calls.leaks")
class _LeakingPack(NaiveKernel):
    def _pack(self, parameters: Any) -> Any:
        self.__dict__.setdefault("kept", []).append(os.urandom(_LEAKED))
        return super()._pack(parameters)


@fault("leaks.tape", "each call with a tape leaves 5 kB behind", "calls.leaks")
class _LeakingTape(NaiveKernel):
    def _forward(self, *arguments: Any, **options: Any) -> Any:
        if options["record"]:
            self.__dict__.setdefault("kept", []).append(os.urandom(_LEAKED))
        return super()._forward(*arguments, **options)


@fault("leaks.jvp", "each jvp leaves 5 kB behind", "calls.leaks")
class _LeakingJvp(NaiveKernel):
    def _jvp(self, *arguments: Any) -> Any:
        self.__dict__.setdefault("kept", []).append(os.urandom(_LEAKED))
        return super()._jvp(*arguments)


@fault("leaks.threads", "every tenth call starts a thread that does not end", "calls.leaks")
def _leaking_threads() -> Backend:
    calls = count()

    class K(Hooked):
        def before(self, *arguments: Any) -> tuple[Any, ...]:
            if next(calls) % 10 == 0:
                threading.Thread(target=threading.Event().wait, args=(30,), daemon=True).start()
            return arguments

    return backend_of(K)


# Honesty --------------------------------------------------------------------------------------------------------------


class ClaimingKernel(NaiveKernel):
    """A kernel that says that it is fused, with equations of its own: those of the reference under another name."""

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Any:
        """Return a receipt of a fast path."""
        return replace(super().receipt(steps, batch), path="fused", reason="the fast path")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.equations = edited(("# The parts ----", "# The parts, fused ----"))
        self.equations.__dict__["__name__"] = "fused"


@fault("receipts.many_rows", "calls of more than 1,024 rows fall back to the reference in silence", "receipts.sizes")
class _ManyRows(ClaimingKernel):
    def _forward(self, weights: Any, x: Array, *rest: Any, **options: Any) -> Any:
        right = self.equations
        self.equations = reference if x.shape[1] > 1024 else right
        try:
            return super()._forward(weights, x, *rest, **options)
        finally:
            self.equations = right


@fault("receipts.lengths", "jvp of more than 32 rows with lengths falls back in silence", "receipts.sizes")
class _Lengths(ClaimingKernel):
    def _jvp(self, weights: Any, x: Array, state: Any, tangents: Any, lengths: Any, masks: Any) -> Any:
        right = self.equations
        self.equations = reference if x.shape[1] > 32 and lengths is not None else right
        try:
            return super()._jvp(weights, x, state, tangents, lengths, masks)
        finally:
            self.equations = right


@fault("receipts.without_reason", "the receipt of a call of many steps gives no reason", "receipts.sizes")
class _WithoutReason(ClaimingKernel):
    def receipt(self, steps: int | None = None, batch: int | None = None) -> Any:
        receipt = super().receipt(steps, batch)
        return replace(receipt, reason="") if steps and steps > 200 else receipt
