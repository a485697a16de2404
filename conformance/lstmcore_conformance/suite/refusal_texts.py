"""Reasons of refusals, as the report groups them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def group_pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return each first item -> its second items, in their order."""
    groups: dict[str, list[str]] = {}
    for first, second in pairs:
        groups.setdefault(first, []).append(second)
    return groups


def consists_of(message: str, parts: Sequence[str]) -> bool:
    """Return whether `message` is some of `parts`, joined as `Capabilities.refusal` joins them."""
    while message:
        part = next((part for part in parts if message == part or message.startswith(f"{part}; ")), None)
        if part is None:
            return False
        message = message[len(part) + len("; ") :]
    return True
