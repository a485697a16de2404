"""The report of a run: dataclasses, their JSON form and a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lstmcore.files import write_atomically
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import above
from lstmcore_conformance.suite.error_map import ErrorMap
from lstmcore_conformance.suite.report_text import counted, written

if TYPE_CHECKING:
    from rich.console import Console

#: Version of the JSON form. It grows if a field changes its meaning or is removed; a new field does not change it.
#: Since version 2 a case can be "not checked", where version 1 called it passed; each check has their number.
REPORT_VERSION: Final = 2

#: What the message of a case that was not checked begins with.
UNCHECKED: Final = "not checked, because "


class Outcome(Enum):
    """The outcome of a check or an item.

    Examples
    --------
    >>> Outcome.FAILED.bad, Outcome.UNSUPPORTED.bad
    (True, False)
    """

    PASSED = "passed"
    FAILED = "failed"
    EXPECTED = "expected failure"
    UNSUPPORTED = "unsupported"
    NOT_CHECKED = "not checked"
    ERROR = "error"

    @property
    def bad(self) -> bool:
        """Whether the backend does not conform because of it."""
        return self in (Outcome.FAILED, Outcome.ERROR)

    @property
    def ran(self) -> bool:
        """Whether it says something about the backend, good or bad."""
        return self not in (Outcome.UNSUPPORTED, Outcome.NOT_CHECKED)


class Result(Enum):
    """The result of a whole run, as badge, page, table and JSON show it."""

    CONFORMS = "conforms"
    PARTIAL = "partial"
    FAILS = "does not conform"
    NOTHING = "nothing ran"


@dataclass(frozen=True, slots=True)
class ItemReport:
    """One check on one case.

    `sizes` are T, N, I, H, P, L and D, `switches` those that differ from the defaults. `where` says which entries of
    the worst array are wrong.
    """

    id: str
    case: str
    outcome: Outcome
    worst: Measure | None = None
    message: str = ""
    reproduce: str = ""
    seconds: float = 0.0
    precision: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    switches: str = ""
    where: ErrorMap | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the form for JSON."""
        values: dict[str, Any] = {"id": self.id, "case": self.case, "outcome": self.outcome.value}
        values |= {"share": written(self.worst.share)} if self.worst else {}
        values |= {"message": self.message} if self.message else {}
        values |= {"reproduce": self.reproduce} if self.reproduce else {}
        values |= {"where": self.where.to_dict()} if self.where else {}
        values |= (
            {"precision": self.precision, "sizes": dict(self.sizes), "switches": self.switches}
            if self.precision
            else {}
        )
        return values | {"seconds": round(self.seconds, 6)}

    def to_record(self) -> dict[str, Any]:
        """Return every field in a form for JSON, for another process."""
        where = None if self.where is None else self.where.to_dict()
        return {
            **_fields_of(self),
            "outcome": self.outcome.value,
            "worst": self.worst and _fields_of(self.worst),
            "where": where,
        }

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> ItemReport:
        """Return the report of `to_record`."""
        worst, where = values["worst"], values["where"]
        made = {
            "outcome": Outcome(values["outcome"]),
            "worst": None if worst is None else Measure(**worst | {"index": tuple(worst["index"])}),
            "where": None if where is None else ErrorMap.from_dict(where),
        }
        return cls(**{**values, **made})


@dataclass(frozen=True, slots=True)
class CheckReport:
    """One check on all its cases."""

    id: str
    claim: str
    section: str
    needs: tuple[str, ...]
    items: tuple[ItemReport, ...]

    @property
    def outcome(self) -> Outcome:
        """Error or failed if one item is; not checked or unsupported if none ran."""
        outcomes = {item.outcome for item in self.items}
        for outcome in (Outcome.ERROR, Outcome.FAILED, Outcome.EXPECTED, Outcome.PASSED, Outcome.NOT_CHECKED):
            if outcome in outcomes:
                return outcome
        return Outcome.UNSUPPORTED

    @property
    def ran(self) -> int:
        """The number of cases that ran."""
        return sum(item.outcome.ran for item in self.items)

    @property
    def unchecked(self) -> int:
        """The number of cases that could not be checked."""
        return sum(item.outcome is Outcome.NOT_CHECKED for item in self.items)

    @property
    def worst(self) -> ItemReport | None:
        """The item with the largest share of its budget; None if no share was measured."""
        measured = [item for item in self.items if item.worst is not None]
        return max(measured, key=lambda item: item.worst.share if item.worst else 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the form for JSON."""
        worst = self.worst
        values: dict[str, Any] = {
            "id": self.id,
            "claim": self.claim,
            "section": self.section,
            "needs": list(self.needs),
            "outcome": self.outcome.value,
            "cases": self.ran,
            "unsupported": len(self.items) - self.ran - self.unchecked,
            "not_checked": self.unchecked,
            "worst": None,
            "items": [item.to_dict() for item in self.items],
        }
        if worst is not None and worst.worst is not None:
            measured = worst.worst
            values["worst"] = {
                "item": worst.id,
                "array": measured.array,
                "index": list(measured.index),
                "got": written(measured.got),
                "expected": written(measured.expected),
                "budget": written(measured.budget),
                "share": written(measured.share),
            }
        return values


@dataclass(frozen=True, slots=True)
class Report:
    """A run of the suite on one backend.

    Attributes
    ----------
    precisions
        Those that were tested.
    features, derivatives
        What the backend declares.
    undeclared
        Precision, feature or derivative that the backend does not declare -> why.
    selection
        The expression that selected the items, None for the whole suite.
    profile
        ``"quick"`` without the slow checks, ``"full"`` with them, ``"smoke"`` for a few cases of each check.
    seed, max_examples
        The seed and the number of random cases.
    max_work
        The most multiply-adds of a case that ran, None for no limit.
    extent
        Kind of call -> the largest size of each axis that a call of this kind was shown; P is 0 without a projection.
    untried
        Expected failures of which no case ran -> why they are expected.

    Examples
    --------
    >>> from lstmcore.registry import get_backend
    >>> from lstmcore_conformance import run
    >>> report = run(get_backend("numpy"), precisions=["float32"], select="forward.no_state", profile="smoke")
    >>> report.write_json("report.json")
    >>> report.backend, report.profile, len(report.bad)
    ('numpy', 'smoke', 0)
    """

    backend: str
    device: str
    precisions: tuple[str, ...]
    features: tuple[str, ...]
    derivatives: tuple[str, ...]
    undeclared: Mapping[str, str]
    selection: str | None
    versions: Mapping[str, str]
    machine: str
    started: str
    seconds: float
    checks: tuple[CheckReport, ...]
    profile: str = "quick"
    seed: int = 0
    max_examples: int = 0
    max_work: int | None = None
    extent: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    untried: Mapping[str, str] = field(default_factory=dict)

    @property
    def untested(self) -> tuple[str, ...]:
        """The precisions that the backend declares and that were not tested."""
        return tuple(name for name in PRECISIONS if name not in self.undeclared and name not in self.precisions)

    @property
    def result(self) -> Result:
        """The result; a backend conforms only if all of the profile ran in every declared precision and passed."""
        if self.bad:
            return Result.FAILS
        if not self.count:
            return Result.NOTHING
        partial = self.expected or self.selection or self.untested or self.profile == "smoke" or self.capped
        return Result.PARTIAL if partial else Result.CONFORMS

    @property
    def capped(self) -> int:
        """The number of cases that were left out since they have more multiply-adds than `max_work`."""
        if self.max_work is None:
            return 0
        return sum(item.message == above(self.max_work) for check in self.checks for item in check.items)

    @property
    def unchecked(self) -> int:
        """The number of cases that could not be checked."""
        return sum(check.unchecked for check in self.checks)

    @property
    def conforms(self) -> bool:
        """Whether something ran and all that ran passed; `result` says whether that was the whole suite."""
        return self.result in (Result.CONFORMS, Result.PARTIAL)

    def items(self, outcome: Outcome) -> tuple[tuple[CheckReport, ItemReport], ...]:
        """Return the items of an outcome, each with its check."""
        return tuple((check, item) for check in self.checks for item in check.items if item.outcome is outcome)

    @property
    def expected(self) -> tuple[ItemReport, ...]:
        """The items that failed as expected."""
        return tuple(item for _, item in self.items(Outcome.EXPECTED))

    @property
    def bad(self) -> tuple[ItemReport, ...]:
        """The items that failed, and those that could not be run."""
        return tuple(item for check in self.checks for item in check.items if item.outcome.bad)

    @property
    def verdict(self) -> str:
        """One line, which claims nothing that did not run."""
        where, known, rest = ", ".join(self.precisions), len(self.expected), self._left_out()
        if self.result is Result.FAILS:
            return f"{self.backend} does not conform: {len(self.bad)} of {counted(self.count, 'case')} failed{rest}"
        if self.result is Result.NOTHING:
            return f"nothing was tested of {self.backend}: {self._why_nothing()}"
        but = f" but for {counted(known, 'expected failure')}" if known else ""
        if self.selection or self.profile == "smoke":
            kind = "selected case" if self.selection else "case"
            of = " of the smoke profile" if self.profile == "smoke" else ""
            what = f"{self.backend} passes {counted(self.count, kind)}{of} in {where}{but}"
            return f"{what}; the suite was not run as a whole{rest}"
        if self.capped:
            return f"{self.backend} passes {counted(self.count, 'case')} in {where}{but}{rest}"
        if known:
            return f"{self.backend} conforms in {where}{but}: {counted(self.count - known, 'case')} passed{rest}"
        cases = ("" if self.unchecked else "all ") + counted(self.count, "case")
        return f"{self.backend} conforms in {where}: {cases} of the {self.profile} profile passed{rest}"

    def _left_out(self) -> str:
        """Return the end of the verdict: what did not run or could not be checked."""
        rest = f"; declared and not tested: {', '.join(self.untested)}" if self.untested else ""
        if self.untried:
            rest += f"; {counted(len(self.untried), 'expected failure')} did not run"
        if self.capped:
            rest += f"; {counted(self.capped, 'case')} of {above(self.max_work or 0)} did not run"
        return rest + (f"; {counted(self.unchecked, 'case')} could not be checked" if self.unchecked else "")

    def _why_nothing(self) -> str:
        """Return why no case ran: the first reason, and the number of others."""
        if self.unchecked:
            reasons = list(dict.fromkeys(item.message for _, item in self.items(Outcome.NOT_CHECKED)))
            more = f" (and {counted(len(reasons) - 1, 'other reason')})" if len(reasons) > 1 else ""
            because = reasons[0].removeprefix(UNCHECKED)
            return f"{counted(self.unchecked, 'case')} could not be checked, because {because}{more}"
        if self.capped:
            return f"{counted(self.capped, 'case')} of {above(self.max_work or 0)} did not run"
        return "it declares nothing that the selected cases need"

    @property
    def count(self) -> int:
        """The number of cases that ran."""
        return sum(check.ran for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the form for JSON. Numbers that JSON does not have are the texts "inf" and "nan"."""
        return {
            "schema": "lstmcore-conformance",
            "version": REPORT_VERSION,
            "backend": self.backend,
            "device": self.device,
            "conforms": self.conforms,
            "result": self.result.value,
            "verdict": self.verdict,
            "selection": self.selection,
            "profile": self.profile,
            "seed": self.seed,
            "max_examples": self.max_examples,
            "max_work": self.max_work,
            "extent": {kind: dict(sizes) for kind, sizes in self.extent.items()},
            "precisions": list(self.precisions),
            "features": list(self.features),
            "derivatives": list(self.derivatives),
            "undeclared": dict(self.undeclared),
            "untried": dict(self.untried),
            "versions": dict(self.versions),
            "machine": self.machine,
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "counts": dict(Counter(item.outcome.value for check in self.checks for item in check.items)),
            "checks": [check.to_dict() for check in self.checks],
        }

    def to_json(self) -> str:
        """Return the JSON form as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def write_json(self, path: str | Path) -> None:
        """Write the JSON form to `path`, all of it or nothing."""
        write_atomically(path, self.to_json().encode())

    def show(self, console: Console) -> None:
        """Print the table, the failures and the verdict."""
        from lstmcore_conformance.suite.report_terminal import show  # a report can be made and written without rich

        show(self, console)


def _fields_of(value: Any) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in fields(value)}
