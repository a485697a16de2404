"""The tests of the site have the marker docs; they need the built site, or run whole pages."""

from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test of this folder; pytest calls this for no other one."""
    item.add_marker("docs")
