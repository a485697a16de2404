"""Which items an expression selects: words that must be in the item's text, with `and`, `or`, `not` and brackets."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

Selector = Callable[[str], bool]

#: A word may hold a bracketed part, as item ids do: ``backward.switches[float32-peephole]``.
_TOKEN: Final = re.compile(r"\s*(?:(?P<bracket>[()])|(?P<word>[^\s()\[\]]+(?:\[[^\]]*\])?))")


def selector(expression: str) -> Selector:
    """A function that tells whether a text is selected.

    Parameters
    ----------
    expression
        For example ``"backward and peephole and not float16"``; upper and lower case are the same.

    Raises
    ------
    ValueError
        The expression is not well formed.
    """
    # An activation with its parameters has brackets of its own, so an item id is taken as it stands.
    whole = expression.strip().lower()
    if re.fullmatch(r"[\w.]+\[.*\]", whole):
        return lambda text: whole in text.lower()
    tokens, position = [], 0
    while expression[position:].strip():
        match = _TOKEN.match(expression, position)
        if match is None:
            raise ValueError(f"-k: expected words, and, or, not and brackets; got {expression!r}")
        tokens.append(match["bracket"] or match["word"].lower())
        position = match.end()
    rest = iter([*tokens, ""])
    current = next(rest)

    def advance() -> str:
        nonlocal current
        taken, current = current, next(rest, "")
        return taken

    def either() -> Selector:
        left = both()
        while current == "or":
            advance()
            left = _any(left, both())
        return left

    def both() -> Selector:
        left = one()
        while current == "and":
            advance()
            left = _all(left, one())
        return left

    def one() -> Selector:
        token = advance()
        if token == "not":
            inner = one()
            return lambda text: not inner(text)
        if token == "(":
            inner = either()
            if advance() != ")":
                raise ValueError(f"-k: a closing bracket is missing in {expression!r}")
            return inner
        if token in ("", ")", "and", "or"):
            raise ValueError(f"-k: expected a word; got {token or 'the end'!r} in {expression!r}")
        return lambda text: token in text.lower()

    found = either()
    if current:
        raise ValueError(f"-k: expected and, or, or the end; got {current!r} in {expression!r}")
    return found


def _any(left: Selector, right: Selector) -> Selector:
    return lambda text: left(text) or right(text)


def _all(left: Selector, right: Selector) -> Selector:
    return lambda text: left(text) and right(text)
