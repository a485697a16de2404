"""The tests against Keras have the marker formats. Keras runs on PyTorch."""

from __future__ import annotations

import os

import pytest

os.environ["KERAS_BACKEND"] = "torch"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test of this folder; pytest calls this for no other one."""
    item.add_marker("formats")
