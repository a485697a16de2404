"""Expected failures: named with their reasons, and strict, so that one that passes is reported."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lstmcore.files import check_regular
from lstmcore_conformance.suite.report import ItemReport, Outcome


def load(path: str | Path) -> dict[str, str]:
    """Return the expected failures of a TOML file: lines of ``"check or item id" = "reason"``.

    Raises
    ------
    ValueError
        The file is not TOML, or a value is not a text, or an empty one.
    """
    try:
        check_regular(path)
        reasons = tomllib.loads(Path(path).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f'{path}: expected TOML with lines of "id" = "reason"; {problem}') from error
    for id, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"{path}: {id}: expected a reason as text; got {reason!r} (ids with dots need quotes)")
    return reasons


def check_ids(expected: Mapping[str, str], known: Iterable[str]) -> None:
    """Raise `ValueError` for an id in `expected` that no check and no item has."""
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
    """Return the results with expected failures marked, and with failures for those that did not occur.

    An item that the suite could not run is not an expected failure. It stays an error, which says nothing about the
    backend.

    Parameters
    ----------
    results
        The reports of `run_item`.
    expected
        Id of a check or of an item -> why it fails.
    complete
        Ids of the checks of which every case is in `results`; all checks if None. Others may fail in a case that did
        not run, so nothing follows if all that ran pass.
    strict
        Whether an unexpected pass is a failure. False for the profile smoke, which runs fewer cases.
    """
    marked = [_mark(item, expected, strict) for item in results]
    if not strict:
        return marked
    for id in sorted(set(expected) - {item.id for item in results}):
        if complete is not None and id not in complete:
            continue
        items = [k for k, item in enumerate(results) if check_of(item.id) == id]
        passed = [k for k in items if results[k].outcome is Outcome.PASSED]
        seen = all(results[k].outcome is not Outcome.NOT_CHECKED for k in items)  # others may be those that fail
        if passed and seen and not any(results[k].outcome.bad for k in items):
            marked[passed[-1]] = _unexpected_pass(marked[passed[-1]], expected[id], f"every case of {id} passes")
    return marked


def untried(results: Iterable[ItemReport], expected: Mapping[str, str]) -> dict[str, str]:
    """Return the expected failures of which no case ran: not selected, not in the profile, or not declared."""
    ran = {item.id for item in results if item.outcome.ran}
    ran |= {check_of(id) for id in ran}
    return {id: reason for id, reason in expected.items() if id not in ran}


def check_of(id: str) -> str:
    """Return the id of the check of an item."""
    return id.partition("[")[0]


def complete_checks(ran: Iterable[str], every: Iterable[str]) -> set[str]:
    """Return the ids of the checks of which every item is among those that ran; both are ids of items."""
    every, done = list(every), set(ran)
    return {check_of(id) for id in every} - {check_of(id) for id in every if id not in done}


def _mark(item: ItemReport, expected: Mapping[str, str], strict: bool) -> ItemReport:
    """Return the item's report as it stands against the expected failures."""
    reason = expected.get(item.id, expected.get(check_of(item.id)))
    if reason is not None and item.outcome is Outcome.FAILED:
        return replace(item, outcome=Outcome.EXPECTED, message=f"expected ({reason}): {item.message}")
    if reason is not None and item.outcome is Outcome.ERROR:
        return replace(item, message=f"expected to fail ({reason}), and the suite could not run it: {item.message}")
    if strict and item.id in expected and item.outcome is Outcome.PASSED:
        return _unexpected_pass(item, expected[item.id], "it passes")
    return item


def _unexpected_pass(item: ItemReport, reason: str, what: str) -> ItemReport:
    message = f"expected to fail ({reason}), and {what}: take it off the expected failures"
    return replace(item, outcome=Outcome.FAILED, message=message)
