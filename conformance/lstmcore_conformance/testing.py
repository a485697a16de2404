"""The suite as a class of tests for the repository of a backend; it needs pytest and no plug-in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from lstmcore.backend import Backend
from lstmcore.registry import get_backend
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.check import Profile
from lstmcore_conformance.suite.expected_failures import check_ids, complete_checks, judged, untried
from lstmcore_conformance.suite.report import ItemReport, Outcome
from lstmcore_conformance.suite.runner import Item, items, run_item


class LSTMConformance:
    """A class with one test for every check and case.

    Inherit from it, name the backend, and run pytest::

        class TestMine(LSTMConformance):
            backend = "mine"  # the name of its entry point, or a Backend
            expected_failures = {"rows.nan": "rows share a scratch array, issue 12"}

    The key of an expected failure is the id of a check or of an item (``check[case]``). It is strict: one that passes
    is a failure, and an id that does not exist is an error. A skipped test names those that did not run.

    Attributes
    ----------
    backend
        The backend, or its name.
    expected_failures
        Id of a check or of an item -> why it fails.
    precisions
        The precisions to test; None for all that are declared.
    profile
        ``"full"`` also runs slow checks, ``"smoke"`` a few cases of each check.
    seed, max_examples
        The seed and the number of random cases; None for the defaults of the profile.
    max_work
        The most multiply-adds of a case that runs; None for no limit.

    Examples
    --------
    >>> class TestNumpy(LSTMConformance):
    ...     backend = "numpy"
    ...     precisions = ("float32",)
    >>> TestNumpy().make_backend().name
    'numpy'
    """

    backend: ClassVar[str | Backend]
    expected_failures: ClassVar[Mapping[str, str]] = {}
    precisions: ClassVar[Sequence[str] | None] = None
    profile: ClassVar[Profile] = "quick"
    seed: ClassVar[int | None] = None
    max_examples: ClassVar[int | None] = None
    max_work: ClassVar[int | None] = None

    def make_backend(self) -> Backend:
        """Return the backend to test; override it if making one needs more than a name."""
        return self.backend if isinstance(self.backend, Backend) else get_backend(self.backend)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make the items the parameters of `test_conforms`."""
        if "lstm_item" not in metafunc.fixturenames:
            return
        backend = self.make_backend()
        tested = BackendUnderTest(backend, Draws.of(self.profile, self.seed, self.max_examples), self.max_work)
        chosen = list(items(tested, self.precisions, profile=self.profile))
        check_ids(self.expected_failures, (item.id for item in items(tested, profile="full")))
        cls: Any = type(self)
        cls._tested, cls._results, cls._every = tested, {}, [item.id for item in chosen]
        metafunc.parametrize("lstm_item", chosen, ids=[item.id for item in chosen])

    def test_conforms(self, lstm_item: Item) -> None:
        """The backend does what the check claims."""
        cls: Any = type(self)
        result = run_item(cls._tested, lstm_item)
        cls._results[result.id] = result
        known = self.expected_failures
        if not result.outcome.bad:  # a check may pass in some cases; `test_expected_failures_fail` sees them all
            known = {id: why for id, why in known.items() if id == result.id}
        _raise_outcome(judged([result], known, strict=self.profile != "smoke")[0], lstm_item.check.claim)

    def test_expected_failures_fail(self, pytestconfig: pytest.Config) -> None:
        """No check that is expected to fail passes in every case; runs after the others."""
        if hasattr(pytestconfig, "workerinput"):  # a worker of pytest-xdist
            pytest.skip("the results of other processes are not known here: run without pytest-xdist to judge them")
        results: list[ItemReport] = list(getattr(type(self), "_results", {}).values())
        whole = {id: why for id, why in self.expected_failures.items() if "[" not in id}
        complete = complete_checks((item.id for item in results), getattr(type(self), "_every", ()))
        after_all = judged(results, whole, complete=complete, strict=self.profile != "smoke")
        for before, after in zip(results, after_all, strict=True):
            if before.outcome is Outcome.PASSED and after.outcome is Outcome.FAILED:
                pytest.fail(after.message, pytrace=False)
        if left := untried(results, self.expected_failures):
            pytest.skip(f"expected failures that did not run: {', '.join(left)}")


def _raise_outcome(result: ItemReport, claim: str) -> None:
    if result.outcome is Outcome.UNSUPPORTED:
        pytest.skip(f"unsupported: {result.message}")
    if result.outcome is Outcome.NOT_CHECKED:
        pytest.skip(result.message)
    if result.outcome is Outcome.EXPECTED:
        pytest.xfail(result.message)
    if result.outcome is not Outcome.PASSED:
        pytest.fail(f"{claim}\n{result.message}\n{result.reproduce}", pytrace=False)
