"""Failures that are known: named with their reasons, and strict, so that one that is mended is told."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lstmcore_conformance.suite.report import ItemReport, Outcome


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
    if unknown := sorted(set(expected) - names - {check_of(name) for name in names}):
        raise ValueError(f"expected failures: expected ids of checks or items; got {', '.join(unknown)}")


def judged(
    results: list[ItemReport],
    expected: Mapping[str, str],
    *,
    complete: Collection[str] | None = None,
    strict: bool = True,
) -> list[ItemReport]:
    """Return the results with failures that were expected as such, and those that did not come as failures.

    What the suite could not run is no failure that was expected: it stays an error, and says nothing about the backend.

    Parameters
    ----------
    results
        What `run_item` found.
    expected
        Id of a check or of an item -> why it fails.
    complete
        Ids of the checks of which every case is in `results`; all where None. Others may fail in a case that is left
        out, so that nothing follows where those that ran pass.
    strict
        Whether what passes against expectation is a failure. False for the profile smoke, which draws fewer cases.
    """
    found = [_one(item, expected, strict) for item in results]
    if not strict:
        return found
    for id in sorted(set(expected) - {item.id for item in results}):
        if complete is not None and id not in complete:
            continue
        own = [k for k, item in enumerate(results) if check_of(item.id) == id]
        passed = [k for k in own if results[k].outcome is Outcome.PASSED]
        if passed and not any(results[k].outcome.bad for k in own):
            found[passed[-1]] = _surprise(found[passed[-1]], expected[id], f"every case of {id} passes")
    return found


def untried(results: Iterable[ItemReport], expected: Mapping[str, str]) -> dict[str, str]:
    """Those of which no case ran: left out by a selection, a profile or precisions, or not declared."""
    ran = {item.id for item in results if item.outcome is not Outcome.UNSUPPORTED}
    ran |= {check_of(id) for id in ran}
    return {id: reason for id, reason in expected.items() if id not in ran}


def check_of(id: str) -> str:
    """The id of the check that the item with that id belongs to."""
    return id.partition("[")[0]


def complete_checks(ran: Iterable[str], every: Iterable[str]) -> set[str]:
    """Return the ids of the checks of which every item is among those that ran; both are ids of items."""
    every, done = list(every), set(ran)
    return {check_of(id) for id in every} - {check_of(id) for id in every if id not in done}


def _one(item: ItemReport, expected: Mapping[str, str], strict: bool) -> ItemReport:
    reason = expected.get(item.id, expected.get(check_of(item.id)))
    if reason is not None and item.outcome is Outcome.FAILED:
        return replace(item, outcome=Outcome.EXPECTED, message=f"expected ({reason}): {item.message}")
    if reason is not None and item.outcome is Outcome.ERROR:
        return replace(item, message=f"expected to fail ({reason}), and the suite could not run it: {item.message}")
    if strict and item.id in expected and item.outcome is Outcome.PASSED:
        return _surprise(item, expected[item.id], "it passes")
    return item


def _surprise(item: ItemReport, reason: str, what: str) -> ItemReport:
    message = f"expected to fail ({reason}), and {what}: take it off the expected failures"
    return replace(item, outcome=Outcome.FAILED, message=message)
