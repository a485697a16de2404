"""The tests of code that is run on an emulated processor have the marker emulated."""

from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test of this folder; pytest calls this for no other one."""
    item.add_marker("emulated")
