"""Options of the tests of faults: how many kills, and the runs that take long."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, which `nox -s faults` passes on."""
    parser.addoption("--kills", type=int, default=40, help="kills of saves; a tenth as many of trainings")
    parser.addoption("--long", action="store_true", help="10^5 steps of training and 10^6 of streaming, twice each")
    parser.addoption("--memcheck", action="store_true", help="the compiled loops under valgrind's memcheck")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """Return the number of kills."""
    return int(request.config.getoption("--kills"))
