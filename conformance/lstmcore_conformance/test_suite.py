"""The suite as tests, one for each check and case; the plug-in makes the parameters."""

from __future__ import annotations

import pytest

from lstmcore_conformance.suite.backend_under_test import BackendUnderTest
from lstmcore_conformance.suite.report import Outcome
from lstmcore_conformance.suite.runner import Item, run_item


def test_conforms(lstm_item: Item, lstm_backend_under_test: BackendUnderTest) -> None:
    """The backend does what the check claims; items that it does not declare are skipped with the reason."""
    result = run_item(lstm_backend_under_test, lstm_item)
    if result.outcome is Outcome.UNSUPPORTED:
        pytest.skip(f"unsupported: {result.message}")
    if result.outcome is Outcome.NOT_CHECKED:
        pytest.skip(result.message)
    if result.outcome is not Outcome.PASSED:
        pytest.fail(f"{lstm_item.check.claim}\n{result.message}\n{result.reproduce}", pytrace=False)
