"""What failed cases have in common and others do not: a size from which on they fail, a switch or a precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from lstmcore_conformance.suite.report import ItemReport, Outcome, Report

#: A trait is told if at most this part of the cases that passed has it too.
RARE: Final = 0.25
#: Traits that are told, unless twice as many passed cases and some more have them as the rarest one.
_TOLD: Final = 3
_MORE: Final = 2

_Trait = tuple[str, Callable[[ItemReport], bool]]


def common_traits(report: Report) -> list[str]:
    """Return lines such as ``every failed case has H >= 64, and 4 of 150 that passed``, the rarest trait first."""
    bad = [item for item in report.bad if item.precision]
    passed = [item for _, item in report.items(Outcome.PASSED) if item.precision]
    if len(bad) < 2 or not passed:
        return []
    found: dict[frozenset[str], str] = {}  # one trait for each group of cases that have it
    for text, has in _traits(bad):
        also = frozenset(item.id for item in passed if has(item))
        if len(also) <= RARE * len(passed):
            found.setdefault(also, text)
    least = min(map(len, found), default=0)
    clear = [(also, text) for also, text in found.items() if len(also) <= 2 * least + _MORE]
    told = sorted(clear, key=lambda pair: len(pair[0]))[:_TOLD]
    return [f"every failed case has {text}, and {len(also)} of {len(passed)} that passed" for also, text in told]


def _reaches(letter: str, least: float, most: float, item: ItemReport) -> bool:
    return least <= item.sizes.get(letter, 0) <= most


def _has_switch(name: str, item: ItemReport) -> bool:
    return name in item.switches.split(", ")


def _has_precision(name: str, item: ItemReport) -> bool:
    return item.precision == name


def _traits(bad: Sequence[ItemReport]) -> Iterator[_Trait]:
    """Yield what all failed cases have: bounds of sizes, switches, a precision."""
    for letter in bad[0].sizes:
        sizes = [item.sizes.get(letter, 0) for item in bad]
        yield f"{letter} >= {min(sizes)}", partial(_reaches, letter, min(sizes), math.inf)
        yield f"{letter} <= {max(sizes)}", partial(_reaches, letter, 0, max(sizes))
    switches = [frozenset(item.switches.split(", ")) - {""} for item in bad]
    for name in sorted(frozenset.intersection(*switches)):
        yield name, partial(_has_switch, name)
    if len({item.precision for item in bad}) == 1:
        yield bad[0].precision, partial(_has_precision, bad[0].precision)
