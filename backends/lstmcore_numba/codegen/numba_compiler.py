"""The decorators of compiled functions: code is kept on disk if possible, and runs without the interpreter's lock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from numba import njit
from numba.core import event
from numba.extending import intrinsic

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

_PACKAGE_FOLDER: Final = Path(__file__).parents[1]
_PACKAGE: Final = _PACKAGE_FOLDER.name


def source_stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return path, size in bytes and modification time in ns of each Python file below `folder`."""
    stats = ((str(file.relative_to(folder)), file.stat()) for file in sorted(folder.rglob("*.py")))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


_SOURCE_STAMPS: Final = source_stamps(_PACKAGE_FOLDER)


def compiled(function: Compiled) -> Compiled:
    """Compile `function` at its first call, or load its code from the disk.

    Numba writes code into the folder of the source, or into the user's cache folder. Code is filed under the name and
    the features of the processor. If neither folder can be written to, every process compiles again.

    Numba alone compiles again only if the file of `function` has changed. The stored code also contains the code of
    all callees and of all intrinsics. So a change of any file of this package makes it invalid.
    """
    try:
        dispatcher: Any = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # Numba found no folder that can be written to
        return cast(Compiled, njit(nogil=True)(function))
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)  # private; a test checks it
    if cache_file is not None:
        cache_file._source_stamp = (cache_file._source_stamp, _SOURCE_STAMPS)
    return cast(Compiled, dispatcher)


class _CompileMessage:
    """Listener of Numba's compile events. Prints one line per process, since the first compilation takes seconds."""

    def __init__(self) -> None:
        self.printed = False

    def notify(self, event: Any) -> None:
        """Print the message if `event` starts the first compilation of a function of this package."""
        module = event.data["dispatcher"].py_func.__module__
        if event.is_start and not self.printed and module.split(".")[0] == _PACKAGE:
            self.printed = True
            print("lstmcore: compiling for this processor, which takes some seconds", file=sys.stderr)  # noqa: T201  (the user waits for seconds)


_EVENTS: Final[Any] = event  # Numba's type stubs are incomplete
_EVENTS.Listener.register(_CompileMessage)
_EVENTS.register("numba:compile", _CompileMessage())

#: Decorator of functions that emit LLVM code. Numba's own type does not accept the arguments of a call.
plain_intrinsic: Final[Callable[[Any], Any]] = intrinsic
