"""The name that was perhaps meant, for the message about one that is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

#: Letters of the shortest beginning by which a name is known.
_BEGINNING: Final = 3
#: Names that `shortened` shows, and letters of each.
_MOST: Final = 20
_LONGEST: Final = 60


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``; did you mean 'choice'?`` with the nearest of `choices`, whatever its case; empty if none is near.

    A choice is near too if it alone begins as the whole name does, or the name as the whole choice.

    Parameters
    ----------
    name, choices
        The unknown name, and the known ones.

    Examples
    --------
    >>> did_you_mean("Slaes", ["date", "sales"])
    "; did you mean 'sales'?"
    >>> did_you_mean("unemployment", ["year", "unemp", "infl"])
    "; did you mean 'unemp'?"
    >>> did_you_mean("load", ["date", "sales"])
    ''
    """
    by_case, folded = {choice.casefold(): choice for choice in choices}, name.casefold()
    near = difflib.get_close_matches(folded, by_case, 1)
    if not near:
        begun = [one for one in by_case if min(len(one), len(folded)) >= _BEGINNING and _begins(one, folded)]
        near = begun if len(begun) == 1 else []
    return f"; did you mean {by_case[near[0]]!r}?" if near else ""


def shortened(names: Sequence[str]) -> str:
    """Return names with commas between: the first ones, each cut to a length that can be read, and their number.

    Examples
    --------
    >>> shortened(["date", "sales"])
    'date, sales'
    >>> shortened([f"s{number}" for number in range(300)])[-26:]
    's18, s19, ... (300 in all)'
    """
    shown = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names[:_MOST]]
    return ", ".join(shown) + (f", ... ({len(names)} in all)" if len(names) > _MOST else "")


def _begins(one: str, two: str) -> bool:
    return one.startswith(two) or two.startswith(one)
