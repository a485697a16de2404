"""The points of a grid as items of pytest-benchmark; the plug-in makes the parameters, docs/benchmarking.md says when.

Plan, inputs and judging are those of ``lstmcore bench``; the clock, the rounds and what is kept are pytest-benchmark's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.judging import expectation, judge
from lstmcore_conformance.bench.runtimes import Runtime, Unsupported, make
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure


@pytest.fixture(scope="session")
def runtime(lstm_backend_under_test: BackendUnderTest, lstm_resident: bool) -> Runtime:
    """Return the backend as ``lstmcore bench`` calls it, from host to host or with arrays that stay on its device."""
    return make("backend", lstm_backend_under_test.backend.name, 1, resident=lstm_resident)


@pytest.fixture(autouse=True)
def _oracle_forgets() -> Iterator[None]:
    """Free what the oracle keeps of a case, which may be large."""
    yield
    budgets.forget()


def test_point(lstm_job: Job, runtime: Runtime, benchmark: Any) -> None:
    """A call is timed only after its values are within the budget; they are judged once more afterwards."""
    expected = expectation(lstm_job)
    try:
        prepared = runtime.prepare(lstm_job, lstm_job.case.data)
    except Unsupported as error:
        pytest.skip(f"unsupported: {error}")
    benchmark.group = f"{lstm_job.mode}, {lstm_job.precision}"
    with prepared.around():
        try:
            share = judge(prepared.outputs(), expected).share
            benchmark(prepared.call)
            share = max(share, judge(prepared.outputs(), expected).share)
        except Failure as error:
            benchmark.has_error = True  # what is wrong has no time, and is not saved
            pytest.fail(f"does not conform: {error}", pytrace=False)
    benchmark.extra_info.update(
        lstm_job.to_dict(), how=prepared.how, share=share, flops=lstm_job.flops, versions=runtime.versions()
    )
