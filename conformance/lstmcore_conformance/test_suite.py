"""The suite as tests, one for each check and case; the plug-in makes the parameters."""

from __future__ import annotations

import pytest

from lstmcore_conformance.report import Outcome
from lstmcore_conformance.subject import Subject
from lstmcore_conformance.suite import Item, run_item


def test_conforms(lstm_item: Item, lstm_subject: Subject) -> None:
    """The backend does what the check claims; what it does not declare is skipped, with its reason."""
    found = run_item(lstm_subject, lstm_item)
    if found.outcome is Outcome.UNSUPPORTED:
        pytest.skip(f"unsupported: {found.message}")
    if found.outcome is not Outcome.PASSED:
        pytest.fail(f"{lstm_item.check.claim}\n{found.message}\n{found.reproduce}", pytrace=False)
