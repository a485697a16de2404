"""The JSON of runs and scoreboards: a line for each record."""

from __future__ import annotations

import json

import pytest

from lstmcore_conformance.render.compact_json import compact_json


def test_a_line_is_a_record_and_the_values_are_the_same() -> None:
    values = {"name": 'a "b"', "none": [], "rows": ({"x": 0.1, "y": [1, None]}, {"x": 1e-30}), "more": {"k": [1, 2]}}
    text = compact_json(values)
    assert json.loads(text) == json.loads(json.dumps(values))
    assert len(text.splitlines()) == 2 + 3 + 4  # the braces, the short values, the brackets and rows
    assert text.endswith("}\n")


def test_a_number_that_json_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        compact_json({"rows": [float("nan")]})
