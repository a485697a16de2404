"""The tests on networks that ship in packages have the marker models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "real_models"))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test of this folder; pytest calls this for no other one."""
    item.add_marker("models")


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packages that name a backend get Numba's: the tests are of what a user installs."""
    monkeypatch.setenv("LSTMCORE_BACKEND", "numba")
