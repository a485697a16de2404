"""What the scoreboard shows: digests of reports and of benchmarks, small enough to be kept beside the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Final

from lstmcore.config import check_version
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.bench import results
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result
from lstmcore_conformance.bench.runtimes import PEERS
from lstmcore_conformance.bench.statistics import geometric_mean
from lstmcore_conformance.bench.summary import Setting, compare, fastest, plain, settings
from lstmcore_conformance.json_files import check_schema, read_object
from lstmcore_conformance.render.compact_json import compact_json
from lstmcore_conformance.suite.report import REPORT_VERSION
from lstmcore_conformance.suite.report_text import as_number

SCHEMA: Final = "lstmcore-scoreboard"
VERSION: Final = 1

#: What a row takes from a report; the sections are made of its checks.
_KEPT: Final = (
    *("backend", "conforms", "selection", "profile", "precisions", "features", "derivatives", "undeclared"),
    *("versions", "machine", "started", "counts"),
)

Digest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Board:
    """Digests of reports, in the order of their rows, and of benchmarks."""

    reports: tuple[Digest, ...]
    benchmarks: tuple[Digest, ...]

    def to_json(self) -> str:
        """Return the JSON form, which `load` takes as well."""
        values = {"schema": SCHEMA, "version": VERSION, "reports": self.reports, "benchmarks": self.benchmarks}
        return compact_json(values)

    @property
    def sections(self) -> list[str]:
        """The sections of the specification that any report has checks of, in their order."""
        return sorted({name for report in self.reports for name in report["sections"]}, key=_number)

    @property
    def columns(self) -> list[tuple[str, Digest]]:
        """Heading and column of each setting that was measured."""
        return [(text, column) for text, _, column in self._headed]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """What neighbouring columns have in common, and how many they are."""
        shown = ((f"speed, {run['grid']} grid, {run['started'][:10]}") for _, run, _ in self._headed)
        return [(text, len(list(same))) for text, same in groupby(shown)]

    @property
    def _headed(self) -> list[tuple[str, Digest, Digest]]:
        """Heading, run and column of each setting that was measured."""
        found = [(heading(run, column), run, column) for run in self.benchmarks for column in run["columns"]]
        twice = {text for text, count in Counter(text for text, *_ in found).items() if count > 1}
        return [(f"{text}, {run['started'][:10]}" if text in twice else text, run, one) for text, run, one in found]

    @property
    def rows(self) -> list[tuple[str, Digest | None]]:
        """Label and report of each runtime; None where it was only timed."""
        found: list[tuple[str, Digest | None]] = [(label(report["backend"]), report) for report in self.reports]
        known = {text for text, _ in found}
        for _, column in self.columns:
            for cell in column["cells"]:
                if cell["label"] not in known:
                    known.add(cell["label"])
                    own = next((r for r in self.reports if r["backend"] == cell["name"]), None)
                    found.append((cell["label"], own))
        return sorted(found, key=lambda row: (row[0].lower(), row[1]["started"] if row[1] else ""))


def label(name: str) -> str:
    """Return the name that readers know; for a peer, the benchmark times its own call and not our adapter."""
    return PEERS[name].label if name in PEERS else name


def heading(run: Digest, column: Digest) -> str:
    """Return the heading of a column of speed."""
    return f"speed: {Setting(column['mode'], column['precision'], column['threads'])} ({run['grid']} grid)"


def load(paths: Iterable[str | Path]) -> Board:
    """Return the board of reports, benchmarks and boards, told apart by what is in them.

    Raises
    ------
    ValueError
        Another file, one of a newer version, or one that does not fit its schema.
    OSError
        A file cannot be read.
    ImportError
        jsonschema is not installed.
    """
    reports: list[Digest] = []
    benchmarks: list[Digest] = []
    for path in paths:
        values = _read(path)
        if values["schema"] == SCHEMA:
            check_version(f"{path}: scoreboard", values.get("version"), VERSION)
            check_schema(path, values, SCHEMA)
            _check_cells(path, values["benchmarks"])
            reports += values["reports"]
            benchmarks += values["benchmarks"]
        elif values["schema"] == results.SCHEMA:
            benchmarks.append(of_benchmark(Benchmark.load(path)))
        else:
            check_version(f"{path}: report", values.get("version"), REPORT_VERSION)
            check_schema(path, values, "lstmcore-conformance")
            reports.append(of_report(values))
    return board(reports, benchmarks)


def board(reports: Iterable[Digest], benchmarks: Iterable[Digest] = ()) -> Board:
    """Return the board with everything in its order."""
    return Board(
        tuple(sorted(reports, key=lambda report: (report["backend"], report["started"]))),
        tuple(sorted(benchmarks, key=lambda run: run["started"])),
    )


def _read(path: str | Path) -> dict[str, Any]:
    values = read_object(path)
    if values.get("schema") not in (SCHEMA, results.SCHEMA, "lstmcore-conformance"):
        raise ValueError(
            f"{path}: expected a report of 'lstmcore conform --json' or a run of 'lstmcore bench --json'; "
            "got another file"
        )
    return values


def _check_cells(path: str | Path, runs: Iterable[Digest]) -> None:
    """Raise ValueError for a cell that gives a reason without the number of points that it is of."""
    for run in runs:
        for column in run["columns"]:
            for cell in column["cells"]:
                if cell["why"].keys() != cell["without"].keys():
                    raise ValueError(
                        f"{path}: the cell of {cell['label']!r} in benchmarks: expected the same outcomes in 'without' "
                        "and 'why'; got others"
                    )


#: A section of which no case is counted yet.
_EMPTY: Final = {"cases": 0, "failed": 0, "expected": 0, "unchecked": 0, "share": None, "in": ""}


def of_report(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the scoreboard keeps of a report in JSON, which fits report.schema.json."""
    sections: dict[str, dict[str, Any]] = {}
    for check in values["checks"]:
        one = sections.setdefault(check["section"], {**_EMPTY})
        outcomes = Counter(item["outcome"] for item in check["items"])
        one["cases"] += check["cases"]
        one["failed"] += outcomes["failed"] + outcomes["error"]
        one["expected"] += outcomes["expected failure"]
        one["unchecked"] += outcomes["not checked"]
        if check.get("worst"):
            share = check["worst"]["share"]
            if one["share"] is None or as_number(share) > as_number(one["share"]):
                one |= {"share": share, "in": check["id"]}
    return {name: values[name] for name in _KEPT} | {"sections": sections, "failures": _smallest_failures(values)}


def _smallest_failures(values: Mapping[str, Any]) -> dict[str, str]:
    """Return check -> its smallest case that failed, and the first line of what came."""
    found = {}
    for check in values["checks"]:
        bad = [item for item in check["items"] if item["outcome"] in ("failed", "error")]
        if bad:
            least = min(bad, key=lambda item: prod(max(1, size) for size in item.get("sizes", {}).values()))
            found[check["id"]] = ": ".join((least["case"], *least.get("message", "").splitlines()[:1]))
    return found


def of_benchmark(run: Benchmark) -> dict[str, Any]:
    """Return what the scoreboard keeps of a run: for each setting every runtime compared with the fastest."""
    columns = []
    for at in settings(run.results):
        here = plain(run, at)
        if not here:
            continue
        best = {job: fastest([one for one in here if one.job == job]) for job in dict.fromkeys(o.job for o in here)}
        candidates = dict.fromkeys(one.candidate for one in here)
        cells = [
            {"name": candidate.name, "label": candidate.label}
            | _cell([one for one in here if one.candidate == candidate], best)
            for candidate in candidates
        ]
        columns.append({**at._asdict(), "points": len(best), "cells": cells})
    return {
        "started": run.started,
        "grid": run.grid,
        "machine": f"{run.machine['processor']}, {run.machine['cores']} cores",
        "load": run.machine["load"],
        "versions": dict(run.versions),
        "columns": columns,
    }


def _cell(own: Sequence[Result], best: Mapping[Any, Result | None]) -> dict[str, Any]:
    """Return a runtime's cell in one setting: the geometric mean of the fastest time over its own, with notes."""
    timed = [(one, peer) for one in own if one.median_s is not None and (peer := best[one.job]) is not None]
    without = [one for one in own if one.median_s is None]
    reasons: dict[str, list[str]] = {}
    for one in without:
        reasons.setdefault(one.outcome.value, []).append(f"{one.job.point}: {one.message}")
    return {
        "speed": geometric_mean([compare(one, peer).ratio for one, peer in timed]) if timed else None,
        "timed": len(timed),
        "noisy": sum(one.outcome is Outcome.NOISY for one, _ in timed),
        "without": {outcome: len(found) for outcome, found in reasons.items()},
        "why": {outcome: found[0] for outcome, found in reasons.items()},
    }


# What cells say -------------------------------------------------------------------------------------------------------


def verdict(report: Digest | None) -> str:
    """How many cases passed; it does not say more than what ran."""
    if report is None:
        return "not checked"
    counts = report["counts"]
    passed, unchecked = counts.get("passed", 0), counts.get("not checked", 0)
    bad = counts.get("failed", 0) + counts.get("error", 0)
    if unchecked and not (bad or passed or counts.get("expected failure", 0)):
        return f"nothing tested; {unchecked} not checked"
    if bad or not report["conforms"]:
        return f"does not conform: {bad} of {passed + bad}{' selected' if report['selection'] else ''} failed"
    rest = f"; {unchecked} not checked" if unchecked else ""
    if report["selection"] is not None:
        return f"{passed} of a selection, not of the suite{rest}"
    if report["profile"] == "smoke":
        return f"{passed} of the smoke profile, not of the suite{rest}"
    if count := counts.get("expected failure", 0):
        rest = f"; {_expected(count)}{rest}"
    if unrun := set(PRECISIONS) - set(report["undeclared"]) - set(report["precisions"]):
        return f"{passed}; {', '.join(sorted(unrun))} declared, not run{rest}"
    return f"{passed} passed{rest}" if rest else f"all {passed} of the {report['profile']} profile"


def section_cell(report: Digest | None, section: str) -> str:
    """Cases of a section, the largest share of a budget, and how many could not be checked."""
    one = None if report is None else report["sections"].get(section)
    unchecked = 0 if one is None else one.get("unchecked", 0)  # a board of an earlier version has none
    rest = [f"{unchecked} not checked"] if unchecked else []
    if one is None or not one["cases"]:
        return ", ".join(rest) or "-"
    if one["failed"]:
        return ", ".join([f"{one['failed']} of {one['cases']} failed", *rest])
    told = f"{one['cases']}" if one["share"] is None else f"{one['cases']} ({as_number(one['share']):.2g})"
    return ", ".join([told, *([_expected(one["expected"])] if one["expected"] else []), *rest])


def _expected(count: int) -> str:
    return f"{count} expected failure{'s' * (count > 1)}"


def speed_cell(column: Digest, text: str) -> str:
    """Return the speed of the runtime of that label in a column, or why it has none."""
    one = next((cell for cell in column["cells"] if cell["label"] == text), None)
    if one is None:
        return "not measured"
    reasons = ", ".join(one["without"])
    if not one["timed"]:
        return reasons
    notes = [f"{one['noisy']} of {one['timed']} noisy"] if one["noisy"] else []
    notes += [f"{outcome} at {count} of {column['points']}" for outcome, count in one["without"].items()]
    return f"{'~' if one['noisy'] else ''}{one['speed']:.2f}" + (f" ({'; '.join(notes)})" if notes else "")


def reasons(shown: Board) -> list[tuple[str, str, str]]:
    """Runtime, column and reason of everything that has no time for another reason than that it is not declared."""
    return [
        (cell["label"], text, f"{outcome} at {cell['without'][outcome]} of {column['points']} points; {why}")
        for text, column in shown.columns
        for cell in column["cells"]
        for outcome, why in cell["why"].items()
        if outcome != Outcome.UNSUPPORTED.value
    ]


def _number(section: str) -> int:
    first = section.split()[0]
    return int(first) if first.isdecimal() else 0
