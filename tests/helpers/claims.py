"""The claims of SPEC.md: their ids, their sentences, and the checks that hold them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: A line of a claim: its id, its sentences, and in brackets its checks or the reason why it has none.
_LINE: Final = re.compile(r"- \*\*\[S(?P<section>\d+)\.(?P<number>\d+)\]\*\* (?P<text>.+) \*\((?P<held>.+)\)\*")
_UNCHECKED: Final = "not checked: "


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim.

    Attributes
    ----------
    section, number
        The two numbers of its id.
    text
        Its sentences.
    checks
        The ids of the checks that hold it.
    reason
        Why it has no check; an empty text if it has one.
    """

    section: int
    number: int
    text: str
    checks: tuple[str, ...]
    reason: str

    @property
    def id(self) -> str:
        """The id, such as ``S4.2``."""
        return f"S{self.section}.{self.number}"


def claims(specification: str) -> list[Claim]:
    """Return the claims of the text in their order.

    Raises
    ------
    ValueError
        A line begins like a claim and is none, or stands in another section than its id says.
    """
    found, section = [], 0
    for line in specification.splitlines():
        if heading := re.match(r"## (\d+) ", line):
            section = int(heading[1])
        if not line.startswith("- **[S"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or int(match["section"]) != section:
            raise ValueError(f"expected '- **[S{section}.N]** Sentence. *(checks)*'; got {line}")
        held = match["held"]
        reason = held.removeprefix(_UNCHECKED) if held.startswith(_UNCHECKED) else ""
        checks = () if reason else tuple(held.split(", "))
        found.append(Claim(section, int(match["number"]), match["text"], checks, reason))
    return found
