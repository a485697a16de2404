"""Whether the values of a job are right: against the reference in float64, within the conformance budget."""

from __future__ import annotations

from collections.abc import Mapping

from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.cases.case import Array
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import Expectation, Measure
from lstmcore_conformance.suite.backend_under_test import Failure, compare


def expectation(job: Job) -> Expectation:
    """What the job has to give, and how far off each array may be."""
    case = job.case
    wanted = dict(budgets.forward(case))
    return wanted | dict(budgets.gradients(case)) if job.mode == "training" else wanted


def judge(got: Mapping[str, Array], expected: Expectation) -> Measure:
    """The worst share of a budget.

    Raises
    ------
    Failure
        An array that is missing, has another shape or dtype, or is further off than its budget.
    """
    if missing := sorted(set(expected) - set(got)):
        raise Failure(f"{', '.join(missing)}: expected; got nothing under that name")
    return compare(got, expected)
