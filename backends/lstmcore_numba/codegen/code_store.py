"""Compiled code on the disk, beside the source or in the user's cache folder, as Numba keeps it.

Code is filed under the name and the features of the processor. Every file ends with a digest. A file that is damaged is
compiled again, and a folder that cannot be written to is done without; both are told by a warning, once per process.
Where warnings are errors, standard error has the text instead: an exception would end the compilation that it is about.
The files are pickles, so whoever can write to the folder can run code in this process (docs/numba.md).
"""

from __future__ import annotations

import hashlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from numba.core.caching import FunctionCache, IndexDataCacheFile

from lstmcore_numba.codegen.inner_code import is_inner_code

_PACKAGE_FOLDER: Final = Path(__file__).parents[1]
PACKAGE: Final = _PACKAGE_FOLDER.name
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
#: Numba's functions have no types.
_FILES: Final[Any] = IndexDataCacheFile
_CACHE: Final[Any] = FunctionCache
#: Beginnings of the warnings that this process has given.
GIVEN_WARNINGS: Final[set[str]] = set()


def source_stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return path, size in bytes and modification time in ns of each Python file below `folder`."""
    stats = ((str(file.relative_to(folder)), file.stat()) for file in sorted(folder.rglob("*.py")))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


_SOURCE_STAMPS: Final = source_stamps(_PACKAGE_FOLDER)


def _warn_once(what: str, details: str) -> None:
    """Give a warning that begins with `what`, unless this process has given it."""
    if what in GIVEN_WARNINGS:
        return
    GIVEN_WARNINGS.add(what)
    try:
        warnings.warn(f"lstmcore: {what}: {details}", RuntimeWarning, stacklevel=2)
    except RuntimeWarning as warning:
        sys.stderr.write(f"{warning}\n")


class _CheckedFiles(_FILES):  # type: ignore[misc]  # see _FILES
    """The index of one function's code, and a file for each signature. A damaged file counts as absent."""

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[io.BytesIO]:
        buffer = io.BytesIO()
        yield buffer
        content = buffer.getvalue()
        with super()._open_for_write(path) as stream:
            stream.write(content + hashlib.sha256(content).digest())

    def _load_index(self) -> dict[Any, str]:
        index: dict[Any, str] = super()._load_index() if self._is_whole(self._index_path) else {}
        return index

    def _load_data(self, name: str) -> Any:
        return super()._load_data(name) if self._is_whole(self._data_path(name)) else None

    def _is_whole(self, path: str) -> bool:
        """Return whether a file is there and ends with the digest of its content, which Numba does not read."""
        try:
            stored = Path(path).read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            _warn_once("stored code cannot be read and is compiled again", str(error))
            return False
        whole = hashlib.sha256(stored[:-_DIGEST_BYTES]).digest() == stored[-_DIGEST_BYTES:]
        if not whole:
            _warn_once("stored code is damaged and is compiled again", path)
        return whole


class CodeStore(_CACHE):  # type: ignore[misc]  # see _FILES
    """The stored code of one function. What goes wrong with it costs a compilation and a warning, and nothing else.

    Numba alone compiles again only if the file of the function has changed. The stored code also contains the code of
    all callees and of all intrinsics. So a change of any file of this package makes it invalid.
    """

    @classmethod
    def of_function(cls, function: Callable[..., Any]) -> Self | None:
        """Return the store of a function; None if no folder can be written to."""
        try:
            return cls(function)
        except RuntimeError as error:  # Numba found no folder
            _warn_once("compiled code is not stored, so every process compiles again", str(error))
            return None

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = (self._impl.locator.get_source_stamp(), _SOURCE_STAMPS)
        self._cache_file = _CheckedFiles(self._cache_path, f"lstmcore-{self._impl.filename_base}", stamp)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the compiled function of a signature; None if it is not stored or cannot be read."""
        try:
            return super().load_overload(signature, target_context)
        except Exception as error:  # whole, and of other versions of libraries than those that Numba knows of
            _warn_once("stored code cannot be loaded and is compiled again", f"{self._cache_path}: {error!r}")
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Store a compiled function if that is possible, unless its code belongs to its callers."""
        if is_inner_code(data):
            return
        try:
            super().save_overload(signature, data)
        except Exception as error:  # no space, no permission, or code that a signal kept from Numba
            _warn_once("compiled code cannot be stored, so the next process compiles again", repr(error))
