"""Writing of files, completely or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from pathlib import Path


def check_writable(name: str, path: str | Path) -> Path:
    """Return the file that `path` leads to. A folder, a pipe or a device is never replaced by a file.

    Raises
    ------
    ValueError
        No file could be written there; the message begins with `name`.
    """
    shown = repr(str(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise ValueError(f"{name}: expected a file that can be written; got {shown}: {error.strerror}") from None
    if (mode is not None and stat.S_ISDIR(mode)) or (mode is None and str(path).endswith(("/", os.sep))):
        raise ValueError(f"{name}: expected a file; got the folder {shown}")
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"{name}: expected a file; got {shown}, a pipe or a device, which a file would replace")
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise ValueError(f"{name}: expected a file in a folder that exists; got {shown}: make the folder first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: expected a file in a folder that you may write to; got {shown}")
    return target


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write `content` to a temporary file in the same folder, then rename it: the file is complete or absent.

    A link stays and the file that it leads to is replaced; an existing file keeps its permissions.

    Raises
    ------
    ValueError
        As `check_writable`.
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
    finally:
        temporary.unlink(missing_ok=True)
