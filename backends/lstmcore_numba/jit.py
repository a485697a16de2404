"""How functions are compiled: kept on disk where that can be, and without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from numba import njit
from numba.extending import intrinsic

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

#: Code for other vectors than the machine's own is not kept: what is kept is found by the processor alone.
_KEPT: Final = "LSTMCORE_VECTOR_BYTES" not in os.environ


def compiled(function: Compiled) -> Compiled:
    """Compile `function` when it is first called, or take it from the disk.

    Numba keeps the code beside the source, or in the user's cache folder, under the name and the features of the
    processor; where neither can be written to, every process compiles anew.
    """
    try:
        return cast(Compiled, njit(nogil=True, cache=_KEPT)(function))
    except RuntimeError:  # no folder to keep it in
        return cast(Compiled, njit(nogil=True)(function))


#: Decorators of functions that emit code, whose arguments' values are not known, or are where they are literal.
#: Numba's own types have no place for the arguments that such a function has when it is called.
plain_intrinsic: Final[Callable[[Any], Any]] = intrinsic
literal_intrinsic: Final[Callable[[Any], Any]] = intrinsic(prefer_literal=True)
