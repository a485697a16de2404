"""The tests of this folder have the marker estimators; they need scikit-learn, DataFrames or trackers."""

from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test of this folder; pytest calls this for no other one."""
    item.add_marker("estimators")
