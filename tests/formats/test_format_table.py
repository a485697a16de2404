"""The table of formats: every row is in the page, and its difference is about what it says."""

from __future__ import annotations

import format_table
import pytest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", format_table.ROWS, ids=lambda row: row.packages[0])
def test_a_row(row: format_table.Row) -> None:
    """A difference is rounding, whose size depends on the processor: at most four times what the page has."""
    for package in row.packages:
        pytest.importorskip({"dm-haiku": "haiku"}.get(package, package.replace("-", "_")))
    assert format_table.difference(row) <= 4 * format_table.documented()[row.name]


def test_the_page_has_these_rows() -> None:
    assert list(format_table.documented()) == [row.name for row in format_table.ROWS]
