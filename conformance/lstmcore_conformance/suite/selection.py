"""Selection of items by an expression: words in the text of an item, with `and`, `or`, `not` and brackets."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

Selector = Callable[[str], bool]

#: A word may hold a bracketed part, as item ids do: ``backward.switches[float32-peephole]``.
_TOKEN: Final = re.compile(r"\s*(?:(?P<bracket>[()])|(?P<word>[^\s()\[\]]+(?:\[[^\]]*\])?))")


def selector(expression: str) -> Selector:
    """Return a function that says whether a text is selected.

    Parameters
    ----------
    expression
        For example ``"backward and peephole and not float16"``; upper and lower case are the same.

    Raises
    ------
    ValueError
        The expression is not well formed.
    """
    # The id of an item may have brackets in its brackets, so it is taken whole.
    whole = expression.strip().lower()
    if re.fullmatch(r"[\w.]+\[.*\]", whole):
        return lambda text: whole in text.lower()
    return _Parser(expression).parse()


class _Parser:
    """A parser by recursive descent, with a method for each rule: `or`, `and`, and a term."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.tokens = self._tokens()

    def parse(self) -> Selector:
        result = self._either()
        if self.tokens:
            raise ValueError(f"-k: expected and, or, or the end; got {self.tokens[0]!r} in {self.expression!r}")
        return result

    def _tokens(self) -> list[str]:
        """Return brackets as they are, and words in lower case."""
        tokens, position = [], 0
        while self.expression[position:].strip():
            match = _TOKEN.match(self.expression, position)
            if match is None:
                raise ValueError(f"-k: expected words, and, or, not and brackets; got {self.expression!r}")
            tokens.append(match["bracket"] or match["word"].lower())
            position = match.end()
        return tokens

    def _take(self) -> str:
        """Remove and return the next token, which is empty at the end."""
        return self.tokens.pop(0) if self.tokens else ""

    def _either(self) -> Selector:
        left = self._both()
        while self.tokens[:1] == ["or"]:
            self._take()
            left = _any(left, self._both())
        return left

    def _both(self) -> Selector:
        left = self._term()
        while self.tokens[:1] == ["and"]:
            self._take()
            left = _all(left, self._term())
        return left

    def _term(self) -> Selector:
        token = self._take()
        if token == "not":
            inner = self._term()
            return lambda text: not inner(text)
        if token == "(":
            inner = self._either()
            if self._take() != ")":
                raise ValueError(f"-k: a closing bracket is missing in {self.expression!r}")
            return inner
        if token in ("", ")", "and", "or"):
            raise ValueError(f"-k: expected a word; got {token or 'the end'!r} in {self.expression!r}")
        return lambda text: token in text.lower()


def _any(left: Selector, right: Selector) -> Selector:
    return lambda text: left(text) or right(text)


def _all(left: Selector, right: Selector) -> Selector:
    return lambda text: left(text) and right(text)
