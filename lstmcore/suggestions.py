"""The name that was perhaps meant, for the message about one that is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``; did you mean 'choice'?`` with the nearest of `choices`, whatever its case; empty if none is near.

    Parameters
    ----------
    name, choices
        The unknown name, and the known ones.

    Examples
    --------
    >>> did_you_mean("Slaes", ["date", "sales"])
    "; did you mean 'sales'?"
    >>> did_you_mean("load", ["date", "sales"])
    ''
    """
    by_case = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(name.casefold(), by_case, 1)
    return f"; did you mean {by_case[near[0]]!r}?" if near else ""
