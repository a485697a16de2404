"""Fixtures of the tests of `LSTM`: every stack, and the backends of the base installation."""

from __future__ import annotations

import pytest

from lstm_stacks import STACKS, make_stack
from stacks import StackCase, make_stack_case


@pytest.fixture(params=STACKS)
def case(request: pytest.FixtureRequest) -> StackCase:
    return make_stack_case(make_stack(**STACKS[request.param]), seed=len(request.param))


@pytest.fixture(params=["reference", "numpy"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
