"""The tests of the Numba backend have the marker numba."""

from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what is in this folder; pytest asks this file about nothing else."""
    item.add_marker("numba")
