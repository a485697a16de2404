"""What changed between an earlier report, as JSON, and a new one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lstmcore.config import check_version
from lstmcore_conformance.json_files import check_schema, read_object
from lstmcore_conformance.suite.report import REPORT_VERSION, Report
from lstmcore_conformance.suite.report_text import as_number, counted

#: A share grew or shrank if the larger one is more than so many times the smaller one, and above `NOTABLE`.
FACTOR: Final = 1.5
NOTABLE: Final = 0.1
#: Items of each kind that are listed.
_SHOWN: Final = 10
_BAD: Final = ("failed", "error")


@dataclass(frozen=True, slots=True)
class Changes:
    """The ids of items whose outcome or share is another one, each group in the order of the new report.

    Attributes
    ----------
    broken, mended
        Items that fail now and did not, and the other way round.
    unchecked, checked
        Items that are not checked now and ran before, and those that pass now and were not checked before.
    new, gone
        Items that only one of the two reports has; with another selection or profile most of them are.
    grown, shrunk
        Id, share before, share now.
    versions
        Name, version before and version now, where they differ.
    """

    broken: tuple[str, ...]
    mended: tuple[str, ...]
    unchecked: tuple[str, ...]
    checked: tuple[str, ...]
    new: tuple[str, ...]
    gone: tuple[str, ...]
    grown: tuple[tuple[str, float, float], ...]
    shrunk: tuple[tuple[str, float, float], ...]
    versions: tuple[tuple[str, str, str], ...]

    def lines(self) -> list[str]:
        """Return the changes as text: a headline for each group, and its first items."""
        groups = [
            ("fail and did not before", [*self.broken]),
            ("pass and failed before", [*self.mended]),
            ("could not be checked, and ran before", [*self.unchecked]),
            ("pass, and could not be checked before", [*self.checked]),
            ("were not in the earlier report", [*self.new]),
            ("are not in this report", [*self.gone]),
            ("have a larger error", [f"{id}: {old:.3g} to {now:.3g} of the budget" for id, old, now in self.grown]),
            ("have a smaller error", [f"{id}: {old:.3g} to {now:.3g} of the budget" for id, old, now in self.shrunk]),
        ]
        lines = [f"{name} {old}, now {now}" for name, old, now in self.versions]
        for what, items in groups:
            if items:
                more = [f"  ... and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
                lines += [f"{counted(len(items), 'case')} {what}:", *(f"  {item}" for item in items[:_SHOWN]), *more]
        return lines or ["nothing changed"]


def read_report(path: str | Path) -> dict[str, Any]:
    """Return a report in JSON, checked by its schema.

    Raises
    ------
    ValueError
        Another file, one of a newer version, or one that does not fit the schema.
    OSError
        It cannot be read.
    """
    values = read_object(path)
    if values.get("schema") != "lstmcore-conformance":
        raise ValueError(f"{path}: expected a report of 'lstmcore conform --json'; got another file")
    check_version(f"{path}: report", values.get("version"), REPORT_VERSION)
    check_schema(path, values, "lstmcore-conformance")
    return values


def changes(before: dict[str, Any], report: Report) -> Changes:
    """Return what changed from a report in JSON to a new one."""
    old, new = _items(before), _items(report.to_dict())
    both = [id for id in new if id in old]
    ran_before, ran_now = ({id for id in each if _ran(each[id])} for each in (old, new))
    shares = [
        (id, as_number(old[id]["share"]), as_number(new[id]["share"]))
        for id in both
        if "share" in old[id] and "share" in new[id]
    ]
    versions = before["versions"]
    return Changes(
        broken=tuple(id for id in both if _bad(new[id]) and not _bad(old[id])),
        mended=tuple(id for id in both if _bad(old[id]) and id in ran_now and not _bad(new[id])),
        unchecked=tuple(id for id in both if id in ran_before and id not in ran_now),
        checked=tuple(id for id in both if id in ran_now and id not in ran_before and not _bad(new[id])),
        new=tuple(id for id in new if id in ran_now and id not in old),
        gone=tuple(id for id in old if id in ran_before and id not in new),
        grown=tuple((id, was, now) for id, was, now in shares if now > max(FACTOR * was, NOTABLE)),
        shrunk=tuple((id, was, now) for id, was, now in shares if was > max(FACTOR * now, NOTABLE)),
        versions=tuple(
            (name, versions.get(name, "not there"), now)
            for name, now in report.versions.items()
            if versions.get(name) != now
        ),
    )


def _items(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the items of a report that ran or could not be checked, by id."""
    items = [item for check in values["checks"] for item in check["items"]]
    return {item["id"]: item for item in items if item["outcome"] != "unsupported"}


def _ran(item: dict[str, Any]) -> bool:
    return bool(item["outcome"] != "not checked")


def _bad(item: dict[str, Any]) -> bool:
    return item["outcome"] in _BAD
