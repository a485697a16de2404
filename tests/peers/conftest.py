"""Tests against other libraries run only where they are asked for: ``pytest -m peers tests/peers``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # what tests share; pytest puts only this folder there


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peers: compares with another library, which the session peers installs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "peers" in config.option.markexpr:
        return
    left_out = [item for item in items if HERE in item.path.parents]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if HERE not in item.path.parents]
