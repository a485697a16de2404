"""The run of the checks on a backend, which needs lstmcore alone and no pytest."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from itertools import groupby, product
from typing import Final

import numpy as np

from lstmcore.backend import DERIVATIVES, Backend, Capabilities
from lstmcore.config import FEATURES, Activation, LSTMConfig
from lstmcore.precision import PRECISIONS, get_precision
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws, Failure, NotChecked
from lstmcore_conformance.suite.check import PROFILES, Check, Profile, Scope, all_checks
from lstmcore_conformance.suite.error_map import ErrorMap, locate
from lstmcore_conformance.suite.expected_failures import check_ids, complete_checks, judged, untried
from lstmcore_conformance.suite.failure_files import save_failure
from lstmcore_conformance.suite.report import UNCHECKED, CheckReport, ItemReport, Outcome, Report
from lstmcore_conformance.suite.selection import selector

#: Called with the number of items done, the number of all items, and the id of the next one.
Progress = Callable[[int, int, str], None]

#: The number of cases of a check that the profile smoke runs in each precision.
SMOKE_CASES: Final = 3


@dataclass(frozen=True, slots=True)
class Item:
    """One check on one case; `case` is None if the check does not apply, and `reason` says why."""

    check: Check
    case: Case | None
    reason: str | None = None

    @property
    def id(self) -> str:
        """``check[case]``."""
        return self.check.id if self.case is None else f"{self.check.id}[{self.case.id}]"


def scope_of(tested: BackendUnderTest, precisions: Iterable[str] | None = None) -> Scope:
    """Return the precisions to test: the wanted ones, or all that are declared; the most precise is first.

    Raises
    ------
    ValueError
        A precision does not exist, or the backend does not declare it.
    """
    declared = tested.declared.precisions
    order = {"float64": 0, "float32": 1, "tf32": 2, "bfloat16": 3, "float16": 4}
    wanted = declared if precisions is None else [get_precision(name).name for name in precisions]
    for name in wanted:
        if name not in declared:
            raise ValueError(f"precision: backend {tested.backend.name!r} has no {tested.declared.missing(name)}")
    if not wanted:
        raise ValueError(f"precision: backend {tested.backend.name!r} declares none, so there is nothing to test")
    return Scope(tested.declared, tuple(sorted(set(wanted), key=order.__getitem__)), _updates_of(tested.backend))


def _updates_of(backend: Backend) -> frozenset[tuple[str, str]]:
    """Return `Scope.updates` of a backend."""
    if (updates := backend.updates()) is None:
        return frozenset()
    named = {"sgd": "sgd", "adam": "adam", "clip": None}
    pairs = product(named, {policy.storage for policy in PRECISIONS.values()})
    return frozenset((name, dtype) for name, dtype in pairs if updates.refusal(named[name], dtype) is None)


def items(
    tested: BackendUnderTest,
    precisions: Iterable[str] | None = None,
    select: str | None = None,
    profile: Profile = "quick",
) -> Iterator[Item]:
    """Yield every check of the profile with every case, in the order of the sections of SPEC.md.

    Parameters
    ----------
    tested
        The backend.
    precisions
        Names of declared precisions; all if None.
    select
        An expression for `selector`; all items if None.
    profile
        The extent of the run.

    Raises
    ------
    ValueError
        The profile does not exist, a precision is not declared, or the expression is not well formed.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(PROFILES)}; got {profile!r}")
    scope = scope_of(tested, precisions)
    chosen = selector(select) if select else None
    for check in all_checks():
        if not check.runs_in(profile):
            continue
        chosen_items = (
            item if item.case is None else Item(check, item.case, tested.refusal(item.case))
            for item in _items_of(scope, check)
            if chosen is None or chosen(f"{item.id} section:{check.section}")
        )
        yield from _spread(chosen_items) if profile == "smoke" else chosen_items


def _spread(all_items: Iterable[Item]) -> Iterator[Item]:
    """Yield at most `SMOKE_CASES` items of each precision that run, the first and the last of them included.

    If none runs, yield the first one with its reason.
    """
    for _, group in groupby(all_items, lambda item: item.case and item.case.precision):
        each = list(group)
        each = [item for item in each if item.reason is None] or each[:1]
        last, count = len(each) - 1, min(len(each), SMOKE_CASES)
        yield from (each[k * last // max(count - 1, 1)] for k in range(count))


def _items_of(scope: Scope, check: Check) -> Iterator[Item]:
    known = scope.declared.derivatives | scope.declared.features
    if lacking := [name for name in check.needs if name not in known]:
        yield Item(check, None, "; ".join(scope.declared.missing(name) for name in lacking))
        return
    for case in _cases(check, scope):
        yield Item(check, case)


@lru_cache(maxsize=1024)
def _cases(check: Check, scope: Scope) -> tuple[Case, ...]:
    """Return the cases of a check: a process that runs the suite often makes them once."""
    return tuple(check.cases(scope))


def run_item(tested: BackendUnderTest, item: Item) -> ItemReport:
    """Return the report of one item. An exception that is not the backend's is an error of the suite."""
    case = "" if item.case is None else item.case.id
    if item.case is None or item.reason is not None:
        return ItemReport(item.id, case, Outcome.UNSUPPORTED, message=item.reason or "")
    start = time.perf_counter()
    worst: Measure | None = None
    where: ErrorMap | None = None
    message, outcome = "", Outcome.PASSED
    tested.last = None
    try:
        with np.errstate(all="ignore"):  # an overflow is judged by its result
            worst = item.check.run(tested, item.case)
    except Failure as failure:
        outcome, message, worst = Outcome.FAILED, str(failure), failure.worst
        where = locate(failure, item.case)
        if tested.failures is not None:
            save_failure(tested.failures, tested, item.id, failure)
    except NotChecked as reason:
        outcome, message = Outcome.NOT_CHECKED, f"{UNCHECKED}{reason}"
    except Exception as error:
        outcome, message = (Outcome.ERROR, f"{type(error).__name__}: {' '.join(str(error).split())}")
    seconds = time.perf_counter() - start
    options = ("" if item.check.runs_in("quick") else " --profile full") + tested.draws.options
    reproduce = f"lstmcore conform {tested.command_name} -k '{item.id}'{options}" if outcome.bad else ""
    return ItemReport(
        item.id,
        case,
        outcome,
        worst,
        message,
        reproduce,
        seconds,
        item.case.precision,
        _sizes(item.case),
        _switches(item.case),
        where,
    )


def not_run(item: Item, message: str) -> ItemReport:
    """Return an error report of an item without an outcome, such as one that ended its process."""
    if item.case is None:
        return ItemReport(item.id, "", Outcome.ERROR, message=message)
    case = item.case
    return ItemReport(
        item.id,
        case.id,
        Outcome.ERROR,
        message=message,
        precision=case.precision,
        sizes=_sizes(case),
        switches=_switches(case),
    )


def _sizes(case: Case) -> dict[str, int]:
    """Return the sizes of a case by the letters of SPEC.md."""
    first, stack = case.configs[0], case.stack
    return {
        "T": case.steps,
        "N": case.batch,
        "I": first.input_size,
        "H": first.hidden_size,
        "P": first.output_size,
        "L": 1 if stack is None else stack.num_layers,
        "D": 1 if stack is None else stack.num_directions,
    }


def _switches(case: Case) -> str:
    """Return the switches that differ from the defaults, as ``name=value``; of a stack those of any layer."""
    names = [item.name for item in fields(LSTMConfig) if item.init and not item.name.endswith("_size")]
    changed: dict[str, None] = {}  # an ordered set
    for config in case.configs:
        default = LSTMConfig(input_size=config.input_size, hidden_size=config.hidden_size)
        changed |= {
            f"{k}={_format_value(getattr(config, k))}": None for k in names if getattr(config, k) != getattr(default, k)
        }
    call = {"lengths": case.lengths is not None, "masks": bool(case.masks)}
    dropout = f"dropout={case.stack.dropout:g}" if case.stack is not None and case.stack.dropout else None
    return ", ".join([*changed, *filter(None, [dropout]), *(name for name, used in call.items() if used)])


def _format_value(value: object) -> str:
    return value.name if isinstance(value, Activation) else str(value)


def run(  # noqa: PLR0913  (public: each parameter is an option of the command line)
    backend: Backend,
    *,
    precisions: Iterable[str] | None = None,
    select: str | None = None,
    profile: Profile = "quick",
    draws: Draws | None = None,
    max_work: int | None = None,
    expected_failures: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run the checks and return the report.

    Parameters
    ----------
    backend
        The backend to test.
    precisions
        Names of declared precisions; all declared ones if None.
    select
        An expression for `lstmcore_conformance.suite.selection.selector`; all items if None.
    profile
        ``"full"`` also runs slow checks; ``"smoke"`` runs a few cases of each check, and is no verdict.
    draws
        The number of random cases and their seed; `Draws.of` the profile if None.
    max_work
        The most multiply-adds of a case that runs; None for no limit. With a limit the result is at best partial.
    expected_failures
        Id of a check or of an item -> why it fails. One that passes is a failure. `Report.untried` has those that did
        not run.
    progress
        Called before every item with the number of items done, the number of all items and the id.

    Raises
    ------
    ValueError
        A precision is not declared. The expression is not well formed or selects nothing. An expected failure is the
        id of no check and no item.

    Examples
    --------
    >>> from lstmcore.registry import get_backend
    >>> report = run(get_backend("numpy"), precisions=["float32"], select="forward.no_state", profile="smoke")
    >>> report.count > 0, report.bad
    (True, ())
    """
    tested, started = BackendUnderTest(backend, draws or Draws.of(profile), max_work), datetime.now(UTC)
    todo = chosen_items(tested, precisions, select, profile)
    expected = checked(tested, expected_failures)
    results: dict[str, list[ItemReport]] = {}
    for position, item in enumerate(todo):
        if progress is not None:
            progress(position, len(todo), item.id)
        results.setdefault(item.check.id, []).append(run_item(tested, item))
    report = report_on(tested, results, started, precisions, select=select, profile=profile)
    return mark_expected(report, tested, expected)


def chosen_items(
    tested: BackendUnderTest, precisions: Iterable[str] | None, select: str | None, profile: Profile
) -> list[Item]:
    """Return the items of `items`.

    Raises
    ------
    ValueError
        As `items`, and if there are none.
    """
    if not (todo := list(items(tested, precisions, select, profile))):
        raise ValueError(f"-k: expected words of a check of the profile {profile}; {select!r} selects none")
    return todo


def checked(tested: BackendUnderTest, expected: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the expected failures; an id outside the selection or profile of a run is known too.

    Raises
    ------
    ValueError
        An id is that of no check and no item.
    """
    if expected:
        check_ids(expected, (item.id for item in items(tested, profile="full")))
    return expected or {}


def report_on(
    tested: BackendUnderTest,
    results: Mapping[str, list[ItemReport]],
    started: datetime,
    precisions: Iterable[str] | None = None,
    *,
    select: str | None = None,
    profile: Profile = "quick",
) -> Report:
    """Return the report of a run, without expected failures.

    Parameters
    ----------
    tested
        The backend.
    results
        Id of a check -> the reports of its items, as `run_item` returns them.
    started
        The time at which the run began.
    precisions, select, profile
        The arguments of `run`.
    """
    checks = {check.id: check for check in all_checks()}
    backend, declared = tested.backend, tested.declared
    versions = {"lstmcore": _version("lstmcore"), "numpy": np.__version__, **backend.versions()}
    return Report(
        backend=backend.name,
        device=declared.device,
        precisions=scope_of(tested, precisions).precisions,
        features=tuple(sorted(declared.features)),
        derivatives=tuple(sorted(declared.derivatives)),
        undeclared={name: declared.reasons.get(name, "not implemented") for name in _undeclared(declared)},
        selection=select,
        versions={**versions, "python": platform.python_version()},
        machine=f"{platform.system()} {platform.machine()}",
        started=started.isoformat(timespec="seconds"),
        seconds=(datetime.now(UTC) - started).total_seconds(),
        checks=tuple(
            CheckReport(id, checks[id].claim, checks[id].title, checks[id].needs, tuple(item_reports))
            for id, item_reports in results.items()
        ),
        profile=profile,
        seed=tested.draws.seed,
        max_examples=tested.draws.max_examples,
        max_work=tested.max_work,
        extent=tested.extent,
    )


def mark_expected(report: Report, tested: BackendUnderTest, expected: Mapping[str, str]) -> Report:
    """Return the report with expected failures marked, and with failures for those that passed."""
    if not expected:
        return report
    ran = [item for check in report.checks for item in check.items]
    every = items(tested, report.precisions, profile="full")
    complete, strict = (
        complete_checks((item.id for item in ran), (item.id for item in every)),
        report.profile != "smoke",
    )
    checks = tuple(
        replace(check, items=tuple(judged(list(check.items), expected, complete=complete, strict=strict)))
        for check in report.checks
    )
    return replace(report, checks=checks, untried=untried(ran, expected))


def _undeclared(declared: Capabilities) -> list[str]:
    missing = (
        set(PRECISIONS) - declared.precisions,
        FEATURES - declared.features,
        DERIVATIVES - declared.derivatives,
    )
    return [name for names in missing for name in sorted(names)]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
