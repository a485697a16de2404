"""Writing of files, completely or not at all, and the check of those that are read."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from pathlib import Path


class UnwritableError(ValueError):
    """A path that no file can be written to."""


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


def check_writable(name: str, path: str | Path) -> Path:
    """Return the file that `path` leads to. A folder, a pipe or a device is never replaced by a file.

    Raises
    ------
    UnwritableError
        No file could be written there; the message begins with `name`.
    """
    shown = repr(str(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise UnwritableError(f"{name}: expected a file that can be written; got {shown}: {error.strerror}") from None
    if (mode is not None and stat.S_ISDIR(mode)) or (mode is None and str(path).endswith(("/", os.sep))):
        raise UnwritableError(f"{name}: expected a file; got the folder {shown}")
    if mode is not None and not stat.S_ISREG(mode):
        raise UnwritableError(f"{name}: expected a file; got {shown}, a pipe or a device, which a file would replace")
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise UnwritableError(f"{name}: expected a file in a folder that exists; got {shown}: make the folder first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UnwritableError(f"{name}: expected a file in a folder that you may write to; got {shown}")
    return target


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write `content` to a temporary file in the same folder, then rename it: the file is complete or absent.

    A link stays and the file that it leads to is replaced; an existing file keeps its permissions.

    Raises
    ------
    UnwritableError
        As `check_writable`.
    OSError
        The file cannot be written, for example because the disk is full; the error names it.
    """
    target = check_writable("path", path)
    temporary = target.with_name(f".lstmcore-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:  # it names the temporary file, or none
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
