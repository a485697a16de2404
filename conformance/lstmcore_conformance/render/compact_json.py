"""JSON of which a line is a record: short files, and short differences between two of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def compact_json(values: Mapping[str, Any]) -> str:
    """Return an object as JSON, a line for each key, and for each item of a value that is a list.

    Raises
    ------
    ValueError
        A number that is not finite, which JSON does not have.
    """
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {_value(value)}" for key, value in values.items()) + "\n}\n"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple) and value:
        return "[\n" + ",\n".join(map(_line, value)) + "\n]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
