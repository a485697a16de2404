"""Finding the CPython interpreters that are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

#: Versions above the lowest that pyproject.toml allows, the newest first.
NEWER: Final = ("python3.14", "python3.13", "python3.12")


def find_python(name: str) -> str | None:
    """Return the path of the CPython of that name, or None if none runs.

    pyenv puts a shim on the path that fails if its version is not active, so the folders of pyenv are searched too.
    """
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    kept = sorted(versions.glob(f"{name.removeprefix('python')}.*/bin/{name}"), key=_version, reverse=True)
    return next((path for path in (shutil.which(name), *map(str, kept)) if path and _runs(path)), None)


def newest_python() -> str | None:
    """Return the path of the newest CPython of `NEWER` that is installed, or None."""
    return next((path for name in NEWER if (path := find_python(name))), None)


def _version(path: Path) -> list[int]:
    """Return the numbers in the name of the version's folder, for example [3, 12, 10]."""
    return [int(number) for number in re.findall(r"\d+", path.parent.parent.name)]


def _runs(path: str) -> bool:
    """Return whether the program is a CPython that starts within a minute."""
    words = (path, "-c", "import sys; sys.exit(sys.implementation.name != 'cpython')")
    try:
        return subprocess.run(words, capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
