"""The tests of the Numba backend have the marker numba."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what is in this folder; pytest asks this file about nothing else."""
    item.add_marker("numba")


@pytest.fixture(scope="session")
def run_python() -> Callable[..., tuple[str, str]]:
    """Return a function that runs code in a new process."""

    def run(code: str, **env: str) -> tuple[str, str]:
        """Return what a new process writes to stdout and to stderr.

        It finds the code that the tests before it compiled, and keeps its own there, unless `env` names another folder.
        """
        environment = {**os.environ, **env}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run
