"""Judges the values of a job: against the reference in float64, within the conformance budget.

Where the reference would take too long, as on a GPU, the truth is a peer's in float64, and what the peer loses in the
job's precision takes the place of what the naive evaluation loses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from lstmcore.precision import get_precision
from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.cases.case import Array
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import ROUNDING, SAFETY, Expectation, Measure
from lstmcore_conformance.suite.backend_under_test import Failure, compare

#: What the peer may lose, in epsilons of the storage or of a product's operands, and as a share of the array's scale:
#: more is no rounding, and nothing is compared with it.
PEER_EPSILONS: Final = 256.0
PEER_SHARE: Final = 0.125


def expectation(job: Job) -> Expectation:
    """Return what the job has to give, and how far off each array may be."""
    case = job.case
    wanted = dict(budgets.forward(case))
    return wanted | dict(budgets.gradients(case)) if job.call == "training" else wanted


def judge(got: Mapping[str, Array], expected: Expectation) -> Measure:
    """Return the worst share of a budget.

    Raises
    ------
    Failure
        An array that is missing, has another shape or dtype, or is further off than its budget.
    """
    if missing := sorted(set(expected) - set(got)):
        raise Failure(f"{', '.join(missing)}: expected; got nothing under that name")
    return compare(got, expected)


def peer_budgets(names: Iterable[str], precision: str) -> dict[str, float]:
    """Return what each array of a peer may lose, as a share of its scale."""
    return dict.fromkeys(names, min(PEER_EPSILONS * get_precision(precision).epsilon, PEER_SHARE))


def budgets_beside_peer(lost: Mapping[str, float], precision: str) -> dict[str, float]:
    """Return what an array of a backend may lose: `SAFETY` times what the peer does and half an epsilon more."""
    rounding = ROUNDING * get_precision(precision).epsilon
    return {name: SAFETY * (value + rounding) for name, value in lost.items()}


def judge_losses(lost: Mapping[str, float], allowed: Mapping[str, float]) -> tuple[float, str]:
    """Return the worst share of a budget, and which array is off by how much; "" if all are within theirs."""
    shares = {name: value / allowed[name] for name, value in lost.items()}
    worst = max(shares, key=shares.__getitem__)
    share = shares[worst]
    return share, "" if share <= 1 else f"{worst} is off by {share:.3g} of its budget"
