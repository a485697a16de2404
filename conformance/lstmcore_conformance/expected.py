"""Failures that are known: named with their reasons, and strict, so that one that is mended is told."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lstmcore_conformance.report import ItemReport, Outcome


def load(path: str | Path) -> dict[str, str]:
    """The expected failures of a TOML file: lines of ``"check or item id" = "reason"``.

    Raises
    ------
    ValueError
        The file is not TOML, or a value is not a text that says something.
    """
    try:
        found = tomllib.loads(Path(path).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: expected TOML with lines of "id" = "reason"; {error}') from error
    for id, reason in found.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"{path}: {id}: expected a reason as text; got {reason!r} (ids with dots need quotes)")
    return found


def check_ids(expected: Mapping[str, str], known: Iterable[str]) -> None:
    """Raise `ValueError` for an id that no check and no item has."""
    names = set(known)
    if unknown := sorted(set(expected) - names - {name.partition("[")[0] for name in names}):
        raise ValueError(f"expected failures: expected ids of checks or items; got {', '.join(unknown)}")


def judged(results: list[ItemReport], expected: Mapping[str, str]) -> list[ItemReport]:
    """The results with failures that were expected as such, and those that did not come as failures."""
    found = [_one(item, expected) for item in results]
    failing = {item.id.partition("[")[0] for item in results if item.outcome is Outcome.FAILED}
    for id in sorted(set(expected) - failing - {item.id for item in results}):
        last = max((k for k, item in enumerate(found) if item.id.partition("[")[0] == id), default=None)
        if last is not None and found[last].outcome is Outcome.PASSED:
            found[last] = _surprise(found[last], expected[id], f"every case of {id} passes")
    return found


def _one(item: ItemReport, expected: Mapping[str, str]) -> ItemReport:
    reason = expected.get(item.id, expected.get(item.id.partition("[")[0]))
    if reason is not None and item.outcome is Outcome.FAILED:
        return replace(item, outcome=Outcome.EXPECTED, message=f"expected ({reason}): {item.message}")
    if item.id in expected and item.outcome is Outcome.PASSED:
        return _surprise(item, expected[item.id], "it passes")
    return item


def _surprise(item: ItemReport, reason: str, what: str) -> ItemReport:
    message = f"expected to fail ({reason}), and {what}: take it off the expected failures"
    return replace(item, outcome=Outcome.FAILED, message=message)
