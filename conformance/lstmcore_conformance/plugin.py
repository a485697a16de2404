"""The pytest plug-in: the checks of the suite as test items.

``pytest -p lstmcore_conformance.plugin --pyargs lstmcore_conformance --lstm-backend NAME``

The command line (or a root ``conftest.py``) names it. It has no entry point, since pytest would then rewrite the
asserts of every module of this distribution, compiled kernels included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from lstmcore_conformance.suite.backend_under_test import EXAMPLES, SEED, SMOKE_EXAMPLES, BackendUnderTest, Draws
from lstmcore_conformance.suite.check import PROFILES
from lstmcore_conformance.suite.runner import items

pytest.register_assert_rewrite("lstmcore_conformance.test_suite")

_TESTED = pytest.StashKey[BackendUnderTest]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("lstmcore", "LSTM conformance")
    group.addoption("--lstm-backend", metavar="NAME", help="The backend to test.")
    group.addoption(
        "--lstm-precision",
        metavar="NAME",
        action="append",
        help="A precision to test; may be given again.  [default: all that the backend declares]",
    )
    group.addoption(
        "--lstm-profile",
        choices=PROFILES,
        default="quick",
        help="full also runs what takes long, smoke a few cases of each check.  [default: quick]",
    )
    group.addoption(
        "--lstm-seed",
        metavar="N",
        type=_whole(0),
        default=SEED,
        help=f"Seed of the cases that are drawn.  [default: {SEED}]",
    )
    group.addoption(
        "--lstm-max-examples",
        metavar="N",
        type=_whole(1),
        default=None,
        help=f"Cases that a check draws.  [default: {EXAMPLES}; {SMOKE_EXAMPLES} in smoke]",
    )


def _whole(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers of at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}; got {text!r}")
        return int(text)

    return read


def pytest_configure(config: pytest.Config) -> None:
    """Find the backend. A named backend that does not exist is an error, never a skip."""
    name = config.getoption("lstm_backend")
    if name is None:
        return
    from lstmcore.registry import get_backend

    option = config.getoption
    draws = Draws.of(option("lstm_profile"), option("lstm_seed"), option("lstm_max_examples"))
    try:
        config.stash[_TESTED] = BackendUnderTest(get_backend(name), draws)
    except (ImportError, LookupError, RuntimeError, ValueError) as error:
        raise pytest.UsageError(f"--lstm-backend: {error}") from error


def pytest_report_header(config: pytest.Config) -> str | None:
    """Return a line that says what is tested."""
    tested = config.stash.get(_TESTED, None)
    if tested is None:
        return None
    declared, profile = tested.declared, config.getoption("lstm_profile")
    known = " (a few cases of each check: no verdict)" if profile == "smoke" else ""
    return (
        f"lstm backend: {tested.backend.name} on {declared.device}, {', '.join(sorted(declared.precisions))}; "
        f"profile {profile}{known}"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for every check and case."""
    if "lstm_item" not in metafunc.fixturenames:
        return
    tested = metafunc.config.stash.get(_TESTED, None)
    if tested is None:
        raise pytest.UsageError("--lstm-backend: expected the name of the backend to test, such as numpy; got none")
    option = metafunc.config.getoption
    try:
        chosen = list(items(tested, option("lstm_precision"), profile=option("lstm_profile")))
    except ValueError as error:
        raise pytest.UsageError(f"--lstm-precision: {error}") from error
    metafunc.parametrize("lstm_item", chosen, ids=[item.id for item in chosen])


@pytest.fixture(scope="session")
def lstm_backend_under_test(pytestconfig: pytest.Config) -> BackendUnderTest:
    """Return the backend under test."""
    return pytestconfig.stash[_TESTED]
