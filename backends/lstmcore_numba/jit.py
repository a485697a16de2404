"""How functions are compiled: kept on disk where that can be, and without the interpreter's lock."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from numba import njit
from numba.core import event
from numba.extending import intrinsic

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

#: Code for other vectors than the machine's own is not kept: what is kept is found by the processor alone.
_KEPT: Final = "LSTMCORE_VECTOR_BYTES" not in os.environ


def sources(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every source file in a folder and those in it."""
    found = ((str(file.relative_to(folder)), file.stat()) for file in sorted(folder.rglob("*.py")))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


_SOURCES: Final = sources(Path(__file__).parent)


def compiled(function: Compiled) -> Compiled:
    """Compile `function` when it is first called, or take it from the disk.

    Numba keeps the code beside the source, or in the user's cache folder, under the name and the features of the
    processor; where neither can be written to, every process compiles anew.

    By itself Numba compiles anew where the file of `function` has changed. What it keeps also has the code of all that
    `function` calls and of what intrinsics emit, so here a change of any file of this package counts.
    """
    try:
        found: Any = njit(nogil=True, cache=_KEPT)(function)
    except RuntimeError:  # no folder to keep it in
        return cast(Compiled, njit(nogil=True)(function))
    kept = getattr(getattr(found, "_cache", None), "_cache_file", None)  # not public: a test holds that it is there
    if kept is not None:
        kept._source_stamp = (kept._source_stamp, _SOURCES)
    return cast(Compiled, found)


class _Announcer:
    """Says once a process that code is compiled: it takes seconds, and it happens once on a machine."""

    def __init__(self) -> None:
        self.told = False

    def notify(self, event: Any) -> None:
        """Hear that Numba starts or ends to compile a function."""
        of = event.data["dispatcher"].py_func.__module__
        if event.is_start and not self.told and of.split(".")[0] == __package__:
            self.told = True
            kept = "" if _KEPT else ", in every process with LSTMCORE_VECTOR_BYTES"
            print(f"lstmcore: compiling for this processor, which takes some seconds{kept}", file=sys.stderr)  # noqa: T201  # whoever waits should know why


_EVENTS: Final[Any] = event  # Numba has types where it is installed, but not of everything
_EVENTS.Listener.register(_Announcer)
_EVENTS.register("numba:compile", _Announcer())

#: The decorator of functions that emit code. Numba's own type has no place for the arguments that such a function has
#: when it is called.
plain_intrinsic: Final[Callable[[Any], Any]] = intrinsic
