"""The comparison of forecasts with stored errors: what is worse, missing or new is told, and the table is theirs."""

from __future__ import annotations

import json
from typing import Any

import pytest

import forecasts

STORED: dict[str, Any] = json.loads(forecasts.STORED.read_text("utf-8"))


def changed(factor: float, name: str = "lynx trappings, yearly") -> dict[str, Any]:
    return STORED | {name: STORED[name] | {"lstmcore": STORED[name]["lstmcore"] * factor}}


@pytest.mark.parametrize(("factor", "told"), [(1.0, 0), (0.5, 0), (1.0199, 0), (1.0201, 1), (3.0, 1)])
def test_a_series_may_be_worse_by_two_percent(factor: float, told: int) -> None:
    lines = forecasts.worse(changed(factor), STORED)
    assert len(lines) == told
    assert all(line.startswith("lynx trappings, yearly: MASE ") for line in lines)


def test_missing_and_new_series_are_told() -> None:
    less = {name: one for name, one in STORED.items() if name != "lynx trappings, yearly"}
    assert forecasts.worse(less, STORED) == ["lynx trappings, yearly: not measured"]
    assert forecasts.worse(STORED, less) == ["lynx trappings, yearly: not stored: run with --write"]


def test_the_page_has_the_table_of_the_stored_errors() -> None:
    page = forecasts.PAGE.read_text("utf-8")
    begin, end = (page.index(mark) for mark in forecasts.MARKS)
    assert page[begin + len(forecasts.MARKS[0]) : end].strip() == forecasts.table(STORED)
    assert list(STORED) == list(forecasts.SOURCES) and len(STORED) == 10
