"""Writing of files, completely or not at all, and the check of those that are read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

_NO_FOLDER: Final = "expected a file in a folder that exists"


class UnwritableError(ValueError):
    """A path that no file can be written to.

    Parameters
    ----------
    name
        The argument or option that gave the path; the message begins with it.
    problem
        What was expected and what came.
    path
        The path as it was given.
    """

    def __init__(self, name: str, problem: str, path: str | Path) -> None:
        super().__init__(name, problem, path)
        self.name, self.problem, self.path = name, problem, path

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


def check_regular(path: str | Path) -> None:
    """Raise unless `path` leads to a regular file: a pipe may never answer, and a device may never end.

    Raises
    ------
    ValueError
        A folder, a pipe or a device.
    OSError
        No such file, or one that cannot be read; the error names it.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"{path}: expected a file; got {kind}")


@contextlib.contextmanager
def tell_damage(path: str | Path, expected: str, faults: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what a library raises at a damaged file into a ValueError that names it.

    Parameters
    ----------
    path
        The file.
    expected
        What it should be, for the message.
    faults
        Errors of this reader's libraries at a damaged file, beside ValueError and an OSError that is none of the
        system. All others pass: they are mistakes of a program, or a lack of memory or of a package.

    Raises
    ------
    ValueError
        The block raised one of these.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: a place before the beginning of the file
            raise
        raise ValueError(f"{path}: expected {expected}; got another kind, or a damaged one: {error}") from error
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: expected {expected}; {error}") from error
    except faults as error:
        raise ValueError(f"{path}: expected {expected}; got a damaged one: {error}") from error


def check_writable(name: str, path: str | Path) -> Path:
    """Return the file that `path` leads to. A folder, a pipe or a device is never replaced by a file.

    Raises
    ------
    UnwritableError
        No file could be written there; the message begins with `name`.
    """
    shown = repr(str(path))

    def refuse(problem: str) -> UnwritableError:
        return UnwritableError(name, problem, path)

    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise refuse(f"expected a file that can be written; got {shown}: {error.strerror}") from None
    if (mode is not None and stat.S_ISDIR(mode)) or (mode is None and str(path).endswith(("/", os.sep))):
        raise refuse(f"expected a file; got the folder {shown}")
    if mode is not None and not stat.S_ISREG(mode):
        raise refuse(f"expected a file; got {shown}, a pipe or a device, which a file would replace")
    try:
        target = Path(path).resolve()
    except OSError as error:  # the working folder is gone
        raise refuse(f"expected a file in a folder that exists; got {shown}: {error.strerror}") from None
    if not target.parent.is_dir():
        raise refuse(f"{_NO_FOLDER}; got {shown}: make the folder first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise refuse(f"expected a file in a folder that you may write to; got {shown}")
    return target


def write_atomically(path: str | Path, content: bytes, *, name: str = "path") -> None:
    """Write `content` to a temporary file in the same folder, then rename it: the file is complete or absent.

    A link stays and the file that it leads to is replaced; an existing file keeps its permissions.
    Temporary files that killed processes left at earlier writes of this file are removed.

    Parameters
    ----------
    path
        The file.
    content
        All of it.
    name
        The argument or option that gave the path, for messages.

    Raises
    ------
    UnwritableError
        As `check_writable`.
    OSError
        The file cannot be written, for example because the disk is full; the error names it.
    """
    target = check_writable(name, path)
    remove_leftovers(target)
    temporary = None
    try:
        temporary, stream = _open_temporary(target)
        with stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            if HAS_LOCKS:  # while the lock is held, so that no other process takes it for a leftover
                os.replace(temporary, target)
        if not HAS_LOCKS:  # Windows renames no open file
            os.replace(temporary, target)
    except FileNotFoundError:
        raise UnwritableError(name, f"{_NO_FOLDER}; got {str(path)!r}, whose folder went away", path) from None
    except OSError as error:  # it names the temporary file, or none
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(target: Path) -> None:
    """Remove temporary files of `target` that are this user's and that no process is writing.

    A writer holds a lock on its file, which ends with its process, on whichever machine or container that is.
    Where files cannot be locked, nothing is removed.
    """
    if not HAS_LOCKS:
        return
    try:
        with os.scandir(target.parent) as entries:
            found = [entry.path for entry in entries if entry.name.startswith(_prefix(target))]
    except OSError:  # a folder that can be written and not listed
        return
    for path in found:
        with contextlib.suppress(OSError):  # another process removes it too, or it is locked
            number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(number)
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
            finally:
                os.close(number)


def _prefix(target: Path) -> str:
    """Return the beginning of the names of `target`'s temporary files; its own name may be too long to be in them."""
    return f".lstmcore-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"


def _open_temporary(target: Path) -> tuple[Path, BinaryIO]:
    """Return a new temporary file beside `target`, open and locked."""
    while True:
        temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}.tmp")
        stream = temporary.open("xb")
        if not HAS_LOCKS:
            return temporary, stream
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        # Until it was locked, another process could take it for a leftover.
        if temporary.exists() or not target.parent.exists():
            return temporary, stream
        stream.close()
