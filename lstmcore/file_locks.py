"""A lock on a file that ends with the process that holds it, however that ends: others wait for that end."""

from __future__ import annotations

import time
from typing import Any, BinaryIO, Final

_LOOK_S: Final = 0.2  # between two looks, where the system wakes nobody


def hold_while_alive(file: BinaryIO) -> None:
    """Lock a new file, which no other process knows yet, until it is closed or this process ends.

    Parameters
    ----------
    file
        Open, and not inherited by children, which would hold the lock too.

    Raises
    ------
    OSError
        The file system has no locks.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        library = _windows_locks()
        library.locking(file.fileno(), library.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX)


def wait_for_end(file: BinaryIO) -> None:
    """Wait until the process that holds the lock of `file` has ended, or has closed the file.

    Parameters
    ----------
    file
        The same file, opened by this process. Where the system knows no shared locks, waiting processes go on one
        after the other, each when the one before has closed the file or ended.

    Raises
    ------
    OSError
        The file system has no locks.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        library = _windows_locks()
        while True:
            try:
                library.locking(file.fileno(), library.LK_NBLCK, 1)
            except PermissionError:  # another process holds it
                time.sleep(_LOOK_S)
            else:
                return
    else:
        fcntl.flock(file, fcntl.LOCK_SH)


def _windows_locks() -> Any:
    """Return the module with the locks of Windows; its types are known to type checkers on Windows alone."""
    import msvcrt

    return msvcrt
