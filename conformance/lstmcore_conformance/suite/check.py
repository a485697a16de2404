"""The record of a check, and the register of all checks.

A check is a function of a backend and a case. It has an id, a claim, the section of SPEC.md that it enforces, and the
features that a backend must declare. To add one, write it under `checks/` with the decorator::

    @check("lengths.padding_is_zero", "y and dx are 0 past the end of a row", section=4, cases=padded)
    def padding_is_zero(tested: BackendUnderTest, case: Case) -> Measure | None: ...

It raises `Failure`, or returns the worst element (None if nothing is measured).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from lstmcore.backend import Capabilities
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest

SECTIONS: Final[Mapping[int, str]] = {
    1: "Shapes and names",
    2: "Equations",
    3: "Switches",
    4: "Lengths and direction",
    5: "Masks",
    6: "Stacks",
    7: "Derivatives",
    8: "Precision",
    9: "Contract",
    10: "Conformance",
}


@dataclass(frozen=True, slots=True)
class Scope:
    """The capabilities for which cases are made, and the precisions of the run.

    Attributes
    ----------
    updates
        Pairs of an operation of `Backend.updates`, a formula or ``"clip"``, and a dtype for which there is a kernel.
    """

    declared: Capabilities
    precisions: tuple[str, ...]
    updates: frozenset[tuple[str, str]] = frozenset()

    @property
    def main(self) -> str:
        """The precision of checks that need one alone: float32, or the first if it is not in the run."""
        return "float32" if "float32" in self.precisions else self.precisions[0]


#: The extent of a run: a few cases of each check (``smoke``), all fast checks (``quick``), or all checks (``full``).
Profile = Literal["smoke", "quick", "full"]
PROFILES: Final[tuple[Profile, ...]] = get_args(Profile)

Run = Callable[[BackendUnderTest, Case], Measure | None]
MakeCases = Callable[[Scope], Iterable[Case]]


@dataclass(frozen=True, slots=True)
class Check:
    """One claim about a backend.

    Attributes
    ----------
    id
        ``group.name``, stable.
    claim
        One line: the statement that holds if the check passes.
    section
        The section of SPEC.md.
    needs
        Derivatives and features that a backend must declare; else the check does not apply.
    cases, run
        The functions that make the cases and that run one.
    profile
        The smallest profile in which it runs.
    """

    id: str
    claim: str
    section: int
    needs: tuple[str, ...]
    cases: MakeCases
    run: Run
    profile: Profile

    @property
    def title(self) -> str:
        """The section with its title."""
        return f"{self.section} {SECTIONS[self.section]}"

    def runs_in(self, profile: Profile) -> bool:
        """Return whether a run of `profile` has this check."""
        return PROFILES.index(self.profile) <= PROFILES.index(profile)


_CHECKS: dict[str, Check] = {}


def check(
    id: str,
    claim: str,
    *,
    section: int,
    cases: MakeCases,
    needs: tuple[str, ...] = (),
    profile: Profile = "smoke",
) -> Callable[[Run], Run]:
    """Register the decorated function as a check.

    Parameters
    ----------
    id, claim, section, cases, needs, profile
        The attributes of `Check`.

    Raises
    ------
    ValueError
        The id is taken, or SPEC.md has no such section.
    """

    def register(run: Run) -> Run:
        if id in _CHECKS:
            raise ValueError(f"check {id!r}: the id is taken")
        if section not in SECTIONS:
            raise ValueError(f"check {id!r}: section: expected one of {', '.join(map(str, SECTIONS))}; got {section}")
        _CHECKS[id] = Check(id, claim, section, needs, cases, run, profile)
        return run

    return register


def all_checks() -> tuple[Check, ...]:
    """Return every check, in the order of the sections of SPEC.md."""
    import lstmcore_conformance.checks  # noqa: F401  (importing the modules fills the register)

    return tuple(sorted(_CHECKS.values(), key=lambda item: item.section))
