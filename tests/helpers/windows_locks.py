"""The locks of Windows on this system: no fcntl, and a msvcrt whose only function locks as that of Windows does."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any, Final

import pytest

SYSTEMS: Final = ("this", "windows")

#: Runs at the start of a child, which finds it on its path.
_SITE: Final = """
import sys
sys.path.append({helpers!r})
from windows_locks import make_msvcrt
sys.modules["msvcrt"] = make_msvcrt()
sys.modules["fcntl"] = None
"""


def make_msvcrt() -> Any:
    """Return a module with `locking` for whole files, which never waits: another holder is a PermissionError."""
    import fcntl

    def locking(number: int, mode: int, count: int) -> None:
        if (mode, count) != (2, 1):
            raise ValueError(f"expected LK_NBLCK of one byte; got {mode} of {count}")
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error

    module: Any = types.ModuleType("msvcrt")
    module.locking, module.LK_NBLCK = locking, 2
    return module


def use_locks_of(system: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process and its children use the locks of a name of `SYSTEMS`; `folder` is new."""
    if system == "this":
        return
    helpers = str(Path(__file__).parent)
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITE.format(helpers=helpers))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    )
    monkeypatch.setitem(sys.modules, "msvcrt", make_msvcrt())
    monkeypatch.setitem(sys.modules, "fcntl", None)
