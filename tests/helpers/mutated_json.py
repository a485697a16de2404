"""Damaged copies of JSON values: every place is removed, or holds a value of another kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

#: Values of every kind that JSON has, with extreme ones.
VALUES: Final = (None, True, 0, -1, 1e308, 5e-324, 2**62, "", "x", "inf", [], {}, [None], {"x": None}, -1.5)


def places(values: Any, begin: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path to every value; of a list, those of the first and the last element only."""
    if isinstance(values, dict):
        keys: list[Any] = list(values)
    elif isinstance(values, list) and values:
        keys = list(dict.fromkeys((0, len(values) - 1)))
    else:
        keys = []
    for key in keys:
        yield (*begin, key)
        yield from places(values[key], (*begin, key))


def mutations(values: Any, each: int = len(VALUES)) -> Iterator[tuple[str, Any]]:
    """Yield what was done, and a copy of `values` to which it was done.

    Parameters
    ----------
    values
        Values as a JSON file has them.
    each
        How many of `VALUES` are put at each place, in turn; with all of them an element is doubled too.
    """
    text, turn = json.dumps(values), 0
    for path in places(values):
        for change in ("removed", "doubled", *range(each)):
            copy = json.loads(text)
            holder = copy
            for key in path[:-1]:
                holder = holder[key]
            if change == "removed":
                del holder[path[-1]]
            elif change == "doubled":
                if not isinstance(holder, list):
                    continue
                holder.append(holder[path[-1]])
            else:
                turn += 1
                holder[path[-1]] = VALUES[turn % len(VALUES)]
                change = f"= {VALUES[turn % len(VALUES)]!r}"
            yield f"{'.'.join(map(str, path))} {change}", copy
