"""The decorators of functions that Numba compiles. Their code runs without the interpreter's lock.

Numba 0.68 has no public way to change how it stores code, and none to renew its locks after a fork. What is used of its
internals is in this module and in `inner_code`, and tests/backends/numba checks each of them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TextIO, TypeVar, cast

from llvmlite.binding import ffi
from numba import njit
from numba.core import compiler_lock, event
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

from lstmcore_numba.codegen.code_store import PACKAGE, CodeStore
from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.codegen.inner_code import InnerCompiler, choose_compiler, keep_inner_code_inside
from lstmcore_numba.codegen.step_compiler import STEP_COSTS, CompileCosts

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

#: Every function that `compiled` made.
_DISPATCHERS: Final[list[Any]] = []


def _leaving_no_trace(dispatcher: Any) -> Callable[[Any], Any]:
    """Return the method `compile` of a dispatcher that undoes what it had begun if an exception ends it.

    An exception of a signal may arrive where Numba itself ends a compilation. The function then seems to be compiled
    for ever, and a lock stays locked.
    """
    compile_signature = dispatcher.compile

    def compile_or_undo(signature: Any) -> Any:
        counter, callstack = dispatcher._compiling_counter, cpu_target.typing_context.callstack
        count, depth = counter.counter, len(callstack)
        locks: list[Any] = [callstack._lock, ffi.lib._lock._lock, compiler_lock.global_compiler_lock._lock]
        free = [lock for lock in locks if not lock._is_owned()]
        try:
            with compiler_lock.global_compiler_lock:
                choose_compiler(dispatcher, signature)
                return compile_signature(signature)
        except BaseException:
            counter.counter = count
            del callstack._stack[depth:]
            for lock in free:
                while lock._is_owned():
                    lock.release()
            raise

    return compile_or_undo


def compiled(function: Compiled) -> Compiled:
    """Compile `function` at its first call, or load its code from the disk; see `code_store`.

    If no folder can be written to, every process compiles again. Where compiled code calls `function`, its code becomes
    a part of the caller's; see `inner_code`.
    """
    dispatcher = _NJIT(nogil=True, no_cfunc_wrapper=True)(function)
    keep_inner_code_inside(dispatcher)
    dispatcher.compile = _leaving_no_trace(dispatcher)
    if (store := CodeStore.of_function(function)) is not None:
        dispatcher._cache = store
    _DISPATCHERS.append(dispatcher)
    return cast(Compiled, dispatcher)


def _renew_after_fork() -> None:
    """Renew what another thread of the parent may have held or begun, which never ends in this process."""
    compiler_lock.global_compiler_lock._lock = threading.RLock()
    ffi.lib._lock._lock = threading.RLock()
    typing_context = cpu_target.typing_context
    typing_context.callstack = type(typing_context.callstack)()
    for dispatcher in _DISPATCHERS:  # one that seems to be compiled is taken for a recursion
        dispatcher._compiling_counter = type(dispatcher._compiling_counter)()
    _MESSAGE.depth = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)


class CompileMessage:
    """Listener of Numba's compile events: the first compilation of a process takes seconds.

    It writes one line per process, and on a terminal a second one while functions are compiled, which it clears again.

    Parameters
    ----------
    stream
        Where to write; None for standard error.
    clock
        Returns seconds.
    costs
        What compiling step functions has taken, from which the time of the loops follows.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        costs: CompileCosts = STEP_COSTS,
    ) -> None:
        self.stream, self.clock, self.costs = stream, clock, costs
        self.told, self.depth, self.functions, self.seconds, self.began = False, 0, 0, 0.0, 0.0

    def notify(self, event: Any) -> None:
        """Count a function of this package whose compilation starts or ends, and write what there is to write."""
        stream = self.stream or sys.stderr
        if stream is None or event.data["dispatcher"].py_func.__module__.split(".")[0] != PACKAGE:
            return
        if event.is_start:
            if self.depth == 0:
                self.began = self.clock()
            self.depth += 1
            if not self.told:
                self.told = True
                stream.write(f"lstmcore: compiling for this processor, {self._duration()}\n")
        else:
            self.depth, self.functions = self.depth - 1, self.functions + 1
        if stream.isatty():
            stream.write(self._progress(ended=self.depth == 0))
        stream.flush()

    def _duration(self) -> str:
        """Return how long it takes, and for whom."""
        if not self.costs.instructions:
            return "some seconds; later processes find the code"
        second = self.costs.seconds / self.costs.instructions
        inference, training, amx = (max(1.0, work * second) for work in (_INFERENCE_WORK, _TRAINING_WORK, _AMX_WORK))
        with_amx = f" (up to {amx:.0f} s with AMX)" if compile_target().has("amx-tile") else ""
        return (
            f"about {inference:.0f} s of CPU time for inference and {training:.0f} s more for training{with_amx}; "
            "later processes find the code"
        )

    def _progress(self, *, ended: bool) -> str:
        """Return what replaces the second line: nothing, if the function that a call needs is compiled."""
        seconds = self.seconds + self.clock() - self.began
        if ended:
            self.seconds = seconds
            return _CLEAR_LINE
        return f"{_CLEAR_LINE}  {self.functions} functions in {seconds:.0f} s"


#: What a terminal takes for: go to the begin of the line, and erase the line.
_CLEAR_LINE: Final = "\r\x1b[K"
#: Compiling the loops over time takes as long as step functions of so many instructions; see docs/performance.md.
_INFERENCE_WORK: Final = 54_000
_TRAINING_WORK: Final = 53_000
_AMX_WORK: Final = 79_000  # training whose products are on AMX
_MESSAGE: Final = CompileMessage()
_NJIT: Final[Any] = njit
_OVERLOAD: Final[Any] = overload
_EVENTS: Final[Any] = event  # Numba's type stubs are incomplete
_EVENTS.Listener.register(CompileMessage)
_EVENTS.register("numba:compile", _MESSAGE)

#: Decorator of functions that emit LLVM code. Numba's own type does not accept the arguments of a call.
plain_intrinsic: Final[Callable[[Any], Any]] = intrinsic


def chosen_by_type(function: Compiled) -> Compiled:
    """Let compiled code call `function`, whose body chooses the code of a call.

    The body runs while Numba compiles. It gets the types of the arguments, and returns a function of the same
    parameters. The docstring of `function` is about the call.
    """
    decorator: Callable[[Compiled], Compiled] = _OVERLOAD(
        function, strict=False, jit_options={"pipeline_class": InnerCompiler}
    )
    return decorator(function)
