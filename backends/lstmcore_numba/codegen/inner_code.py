"""Functions that only compiled code calls: their LLVM code goes to their callers, and they have no machine code.

Numba optimises each function by itself, with everything that it calls, and makes machine code of it. A chain of calls
then compiles its last function once for each function in the chain. With this module, LLVM optimises and translates
only what the interpreter calls.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from llvmlite.binding import Linkage
from numba import types
from numba.core import codegen, compiler, sigutils

#: Numba's classes and functions have no types, or incomplete ones.
_LIBRARY: Final[Any] = codegen.JITCodeLibrary
_COMPILER: Final[Any] = compiler.Compiler
_UNLITERAL: Final[Any] = types.unliteral
_NORMALIZE: Final[Any] = sigutils.normalize_signature


class _NoEnvironments:
    """Takes the place of Numba's code generator where it would set a variable of machine code."""

    def set_env(self, name: str, environment: Any) -> None:
        """Do nothing. Only code that handles Python objects reads the variable."""


class InnerLibrary(_LIBRARY):  # type: ignore[misc]  # see _LIBRARY
    """The LLVM code of a function, for the libraries of what the interpreter calls."""

    codegen = _NoEnvironments()

    def _optimize_functions(self, ll_module: Any) -> None:
        """Do nothing, since callers are optimised together with this code."""

    def finalize(self) -> None:
        """Leave out the code of what this function calls; see `EntryLibrary.finalize`."""
        self._raise_if_finalized()
        for library in self._linking_libraries:
            self._reload_init.update(library._reload_init)
        self._finalize_final_module()

    def _finalize_final_module(self) -> None:
        """Leave out the machine code."""
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: there is no machine code."""
        self._ensure_finalized()
        return 0


def _called(library: Any) -> list[Any]:
    """Return the libraries of what an inner function calls; others have the code of theirs."""
    return library._linking_libraries if isinstance(library, InnerLibrary) else []


class EntryLibrary(_LIBRARY):  # type: ignore[misc]  # see _LIBRARY
    """The code of a function that the interpreter calls, and of its callees, which no other library calls here."""

    def finalize(self) -> None:
        """Link the code of all that is called, by whichever function, once."""
        for library in self._linking_libraries:  # what is added in the loop has its turn too
            self._linking_libraries += [one for one in _called(library) if one not in self._linking_libraries]
        super().finalize()

    def _optimize_final_module(self) -> None:
        """Let LLVM inline, change and drop the callees as functions of this module alone."""
        for function in self._final_module.functions:
            if function.linkage == Linkage.linkonce_odr:
                function.linkage = Linkage.internal
        super()._optimize_final_module()


class EntryCompiler(_COMPILER):  # type: ignore[misc]  # see _COMPILER
    """Compiler of functions that the interpreter calls."""

    make_library: Any = EntryLibrary

    def __init__(  # noqa: PLR0913  (Numba's signature)
        self,
        typing_context: Any,
        target_context: Any,
        library: Any,
        args: Any,
        return_type: Any,
        flags: Any,
        locals: Any,
    ) -> None:
        if library is None:
            library = self.make_library(target_context.codegen(), "lstmcore")
            library.enable_object_caching()
        if self.make_library is InnerLibrary:
            flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        super().__init__(typing_context, target_context, library, args, return_type, flags, locals)


class InnerCompiler(EntryCompiler):
    """Compiler of inner functions."""

    make_library = InnerLibrary


#: `dispatcher` of a thread is the one whose code the interpreter is about to call.
_CALLED: Final = threading.local()


def choose_compiler(dispatcher: Any, signature: Any) -> None:
    """Let the next compilation of a dispatcher be one of an inner function, unless the interpreter calls it.

    In that case, code of the same signature as an inner function is dropped. The caller holds the lock of Numba's
    compiler until that compilation has begun.
    """
    is_inner = getattr(_CALLED, "dispatcher", None) is not dispatcher
    _CALLED.dispatcher = None
    dispatcher._compiler.pipeline_class = InnerCompiler if is_inner else EntryCompiler
    args = tuple(_NORMALIZE(signature)[0])
    if not is_inner and args in dispatcher.overloads and is_inner_code(dispatcher.overloads[args]):
        del dispatcher.overloads[args]


def is_inner_code(compile_result: Any) -> bool:
    """Return whether a result of Numba's compiler has no machine code."""
    return isinstance(compile_result.library, InnerLibrary)


def keep_inner_code_inside(dispatcher: Any) -> None:
    """Let a dispatcher hide inner functions from the interpreter, and compile no function for the value of a number.

    A constant argument has a type of its own in Numba, so each constant would compile the function again.
    """
    add_overload, fold_argument_types = dispatcher.add_overload, dispatcher._compiler.fold_argument_types
    compile_for_args = dispatcher._compile_for_args

    def compile_for_interpreter(*args: Any, **keywords: Any) -> Any:
        _CALLED.dispatcher = dispatcher
        try:
            return compile_for_args(*args, **keywords)
        finally:
            _CALLED.dispatcher = None

    def add_to_its_callers(compile_result: Any) -> None:
        if is_inner_code(compile_result):
            dispatcher.overloads[tuple(compile_result.signature.args)] = compile_result
        else:
            add_overload(compile_result)

    def fold_to_plain_types(args: Any, keywords: Any) -> Any:
        signature, folded = fold_argument_types(args, keywords)
        return signature, tuple(_UNLITERAL(kind) for kind in folded)

    dispatcher._compile_for_args, dispatcher.add_overload = compile_for_interpreter, add_to_its_callers
    dispatcher._compiler.fold_argument_types = fold_to_plain_types
