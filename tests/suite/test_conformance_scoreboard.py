"""The scoreboard: one row a report, nothing said that did not run, what is refused with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lstmcore.config import FEATURES
from lstmcore.registry import get_backend
from lstmcore_conformance import run
from lstmcore_conformance.bench.jobs import MODES, Job, Point
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result
from lstmcore_conformance.bench.summary import document
from lstmcore_conformance.bench.worker_client import Candidate
from lstmcore_conformance.render.scoreboard_markdown import BEGIN, END, excerpt, placed, scoreboard
from lstmcore_conformance.render.scoreboard_page import page
from lstmcore_conformance.scoreboard import Board, load
from lstmcore_conformance.scoreboard.__main__ import main
from lstmcore_conformance.scoreboard.board import board, of_benchmark, of_report
from pages import Text, in_browser

ROOT = Path(__file__).parents[2]


def check(id: str, share: float | str | None, *outcomes: str, section: str = "1 First") -> dict[str, Any]:
    items = [{"id": id, "case": "c", "outcome": outcome, "seconds": 0.5} for outcome in outcomes or ("passed",)]
    ran = sum(item["outcome"] != "unsupported" for item in items)
    numbers = dict.fromkeys(("got", "expected", "budget"), 1.0)
    worst = None if share is None else {"item": id, "array": "y", "index": [0], "share": share, **numbers}
    rest = {"claim": "it holds", "needs": [], "outcome": "passed", "unsupported": len(items) - ran}
    return {"id": id, "section": section, "cases": ran, "items": items, "worst": worst, **rest}


def report(backend: str = "mine", **changes: Any) -> dict[str, Any]:
    return {
        "schema": "lstmcore-conformance",
        "version": 1,
        "backend": backend,
        "device": "cpu",
        "verdict": "it conforms",
        "seconds": 1.5,
        "conforms": True,
        "selection": None,
        "profile": "quick",
        "precisions": ["float32", "float64"],
        "features": ["lengths", "reverse"],
        "derivatives": ["backward"],
        "undeclared": {"tf32": "no", "bfloat16": "no", "float16": "c|d <e>\nf", "jvp": "no"},
        "versions": {"lstmcore": "1", "peer": "2.5"},
        "machine": "Linux",
        "started": "2026-01-02T03:04:05+00:00",
        "counts": {"passed": 7, "unsupported": 3},
        "checks": [check("a.small", 0.25), check("a.none", None), check("b.large", 0.5)],
    } | changes


def made(*reports: dict[str, Any], runs: tuple[Benchmark, ...] = ()) -> Board:
    return board([of_report(one) for one in reports], map(of_benchmark, runs))


def row(text: str, backend: str, table: int = -1) -> list[str]:
    """The row of a backend: in the last table, or in the first one."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {backend} |")]
    return [cell.strip() for cell in lines[table].strip("|").split(" | ")]


def test_a_row_tells_what_was_run() -> None:
    assert row(scoreboard(made(report())), "mine") == [
        "mine",
        "lstmcore 1, peer 2.5",
        "float64, float32",
        "backward",
        f"2 of {len(FEATURES)}: lengths, reverse",
        "all 7 of the quick profile",
        "0.5 (b.large)",
        "2026-01-02, Linux",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"conforms": False, "counts": {"passed": 7, "failed": 2, "error": 1}}, "does not conform: 3 of 10 failed"),
        ({"conforms": False, "counts": {}}, "does not conform: 0 of 0 failed"),
        ({"selection": "forward"}, "7 of a selection, not of the suite"),
        (
            {"conforms": False, "selection": "forward", "counts": {"passed": 7, "failed": 2}},
            "does not conform: 2 of 9 selected failed",
        ),
        ({"precisions": ["float32"]}, "7; float64 declared, not run"),
        ({"profile": "full"}, "all 7 of the full profile"),
        ({"counts": {"passed": 7, "expected failure": 2}}, "7 passed; 2 expected failures"),
    ],
)
def test_a_row_says_no_more_than_what_ran(changes: dict[str, Any], told: str) -> None:
    assert row(scoreboard(made(report(**changes))), "mine")[5] == told


@pytest.mark.parametrize(
    ("share", "told"), [("inf", "inf (c)"), ("nan", "inf (c)"), (0.75, "0.75 (c)"), (0, "0.5 (b)")]
)
def test_the_worst_share_is_the_largest(share: float | str, told: str) -> None:
    page = scoreboard(made(report(checks=[check("b", 0.5), check("c", share)])))
    assert row(page, "mine")[6] == told


def test_the_readme_has_no_runtime_that_ran_a_selection() -> None:
    shown = made(report("whole"), report("part", selection="rows.large"))
    assert "| part |" in scoreboard(shown)
    assert "| whole |" in excerpt(shown) and "| part |" not in excerpt(shown)


def test_the_smallest_case_that_failed_is_told() -> None:
    """Of each check, in the order of the checks; a passing case counts for nothing, however small it is."""
    large, small, least = (check("b", 0.5, "failed", "passed")["items"] for _ in range(3))
    for items, size in ((large, 9), (small, 2), (least, 1)):
        items[0] |= {"case": f"H={size}", "sizes": {"H": size, "P": 0}, "message": f"|y|: {size}\nmore"}
    least[0]["outcome"] = "passed"
    other = check("c", 0.5, "error")
    checks = [check("a", 0.5), check("b", 0.5) | {"items": [*least, *large, *small]}, other]
    shown = made(report(conforms=False, checks=checks), report("right"))
    told = "### mine\n\n- b: H=2: \\|y\\|: 2\n- c: c\n"
    assert scoreboard(shown).count(told) == 1
    assert "What failed" not in scoreboard(made(report()))
    assert "H=2: |y|: 2<" in page(shown)


def test_all_switches_and_nothing_refused() -> None:
    page = scoreboard(made(report(features=sorted(FEATURES), undeclared={})))
    assert row(page, "mine")[4] == f"all {len(FEATURES)}"
    assert page.endswith("### mine\n\nNothing.\n")


def test_reasons_are_grouped_and_cannot_break_the_page() -> None:
    page = scoreboard(made(report()))
    assert "- tf32, bfloat16, jvp: no\n" in page
    assert "- float16: c\\|d \\<e\\> f\n" in page
    assert row(scoreboard(made(report(versions={"a|b": "1\n2"}))), "mine")[1] == "a\\|b 1 2"


def test_rows_are_in_order_and_a_refusal_is_told_once() -> None:
    later = report(started="2026-02-01T00:00:00+00:00")
    text = scoreboard(made(report("z"), later, report()))
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| mine")]
    assert [one[-1] for one in rows[2:]] == ["2026-01-02, Linux |", "2026-02-01, Linux |"]
    assert text.index("| mine") < text.index("| z")
    assert text.count("### mine") == 1


def test_real_reports_make_a_page(tmp_path: Path) -> None:
    path, page = tmp_path / "one.json", tmp_path / "page.md"
    run(get_backend("reference"), select="forward.no_state").write_json(path)
    found = CliRunner().invoke(main, [str(path), "--out", str(page)])
    assert found.exit_code == 0, found.output
    assert row(page.read_text(), "reference")[5].endswith("of a selection, not of the suite")
    assert CliRunner().invoke(main, [str(path)]).output == page.read_text()
    assert CliRunner().invoke(main, [str(page.with_suffix(".json"))]).output == page.read_text()
    assert page.with_suffix(".html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object; got list"),
        ("{}", "expected a report of 'lstmcore conform --json'"),
        (json.dumps({"schema": "lstmcore-conformance", "version": 99}), "newer lstmcore"),
        (json.dumps(report(counts=3)), "counts: expected what report.schema.json says; 3 is not of type 'object'"),
        (json.dumps({name: value for name, value in report().items() if name != "checks"}), "'checks' is a required"),
        (
            '{"schema": "lstmcore-scoreboard", "version": 1, "reports": [3], "benchmarks": []}',
            r"reports[0]: expected",
        ),
    ],
)
def test_another_file_is_an_error_that_names_it(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json") as caught:
        load([path])
    assert told in str(caught.value)
    found = CliRunner().invoke(main, [str(path), "--out", str(tmp_path / "page.md")])
    assert found.exit_code == 2
    assert told in found.output
    assert not (tmp_path / "page.md").exists()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, [str(tmp_path / "none.json")])
    assert found.exit_code == 2
    assert "none.json" in found.output


# Conformance by section, and speed ------------------------------------------------------------------------------------


def test_a_section_tells_its_cases_and_worst_share() -> None:
    """A section tells its cases, its worst share and what failed."""
    checks = [
        check("a", 0.25, "passed", "passed", section="2 Second"),
        check("b", "nan", "passed", "unsupported", section="10 Last"),
        check("c", 0.5, "passed", "failed", "error", section="3 Third"),
        check("d", 0.125, "passed", section="2 Second"),
        check("e", None, "unsupported", section="4 Fourth"),
        check("f", 0.1, "expected failure", "passed", section="5 Fifth"),
    ]
    text = scoreboard(made(report(checks=checks)))
    assert "| runtime | conformance | 2 | 3 | 4 | 5 | 10 |" in text
    assert row(text, "mine", 0)[2:] == [
        "3 (0.25)",
        "2 of 3 failed",
        "-",
        "2 (0.1), 1 expected failure",
        "1 (inf)",
    ]


POINTS = (Point(4, 3, 5, 7), Point(4, 3, 5, 8))


def timed(name: str, kind: Any, point: Point, seconds: float, outcome: Outcome = Outcome.MEASURED) -> Result:
    rounds = (seconds, 1.1 * seconds, 0.9 * seconds)
    job = Job("inference", point)
    return Result(job, Candidate(kind, name, 1), outcome, median_s=seconds, rounds=rounds, share=0.1)


def untimed(name: str, kind: Any, point: Point, outcome: Outcome, message: str) -> Result:
    return Result(Job("inference", point), Candidate(kind, name, 1), outcome, message)


def benchmark(*results: Result, **changes: Any) -> Benchmark:
    known: dict[str, Any] = {
        "started": "2026-01-03T00:00:00+00:00",
        "seconds": 1.0,
        "machine": {"processor": "made | up", "cores": 2, "load": 0.0},
        "settings": {"grid": "quick"},
        "versions": {"numpy": "1"},
        "runtimes": (),
        "roofs": (),
        "results": results,
    }
    return Benchmark(**(known | changes))


def every_setting() -> Benchmark:
    """Two columns for each mode."""
    return benchmark(
        *(
            replace(timed("mine", "backend", POINTS[0], 1.0), job=Job(mode, POINTS[0]), candidate=candidate)
            for mode in MODES
            for candidate in (Candidate("backend", "mine", 1), Candidate("backend", "mine", 2))
        )
    )


def several() -> Benchmark:
    """One of everything that a point may come to."""
    one, two = POINTS
    wrong = "y[0]: got 3"
    return benchmark(
        timed("mine", "backend", one, 2.0),
        timed("mine", "backend", two, 1.0),
        timed("torch", "peer", one, 1.0),
        timed("torch", "peer", two, 4.0, Outcome.NOISY),
        timed("torch", "backend", one, 10.0),
        untimed("torch", "backend", two, Outcome.WRONG, wrong),
        untimed("bad", "backend", one, Outcome.WRONG, wrong),
        untimed("bad", "backend", two, Outcome.WRONG, wrong),
        untimed("jax", "peer", one, Outcome.UNSUPPORTED, "not that"),
        untimed("jax", "peer", two, Outcome.UNSUPPORTED, "not that"),
        untimed("broken", "backend", one, Outcome.ERROR, "ended"),
        untimed("broken", "backend", two, Outcome.THREADS, "two were busy"),
    )


def test_speed_is_compared_with_the_fastest() -> None:
    """Speed is compared with the fastest, and the page says what is wrong with a figure."""
    shown = made(report(), report("torch"), report("other"), runs=(several(),))
    text = scoreboard(shown)
    found = {name: row(text, name, 0)[2] for name in ("mine", "PyTorch", "torch (adapter)", "bad", "JAX", "other")}
    assert found == {
        "mine": "0.71",  # sqrt(1/2 * 1)
        "PyTorch": "~0.50 (1 of 2 noisy)",  # sqrt(1 * 1/4)
        "torch (adapter)": "0.10 (does not conform at 1 of 2)",
        "bad": "does not conform",
        "JAX": "unsupported",
        "other": "not measured",
    }
    assert row(text, "broken", 0)[2] == "error, too many threads"
    assert row(text, "PyTorch", 0)[1] == row(text, "torch (adapter)", 0)[1] == "all 7 of the quick profile"
    assert row(text, "bad", 0)[1] == "not checked"
    setting, why = "speed: inference, float32, 1 thread (quick grid)", "does not conform at 2 of 2 points"
    assert f"- bad, {setting}: {why}; 4, 3, 5, 7: y\\[0\\]" in text
    assert "not that" not in text.split("## What ran")[0]
    assert "made \\| up, 2 cores" in text


def test_two_runs_of_one_grid_are_told_apart_by_their_dates() -> None:
    later = replace(several(), started="2026-02-03T00:00:00+00:00")
    headings = [text for text, _ in made(report(), runs=(later, several())).columns]
    assert headings == [f"speed: inference, float32, 1 thread (quick grid), 2026-0{month}-03" for month in (1, 2)]
    own = replace(several(), settings={"grid": "quick", "points": [{}]})
    assert made(report(), runs=(own,)).columns[0][0] == "speed: inference, float32, 1 thread (own grid)"


def test_speed_comes_first_and_columns_of_a_run_together() -> None:
    """Speed comes before the sections, and the columns of one run stand together."""
    shown = made(report(), runs=(every_setting(),))
    speeds = [
        f"speed: {mode}, float32, {number} (quick grid)" for mode in MODES for number in ("1 thread", "2 threads")
    ]
    assert f"| runtime | conformance | {' | '.join(speeds)} | 1 |" in scoreboard(shown)
    assert shown.groups == [("speed, quick grid, 2026-01-03", 2 * len(MODES))]
    heads = [attributes for tag, attributes in Text(page(shown)).tags if tag == "th"]
    assert [one["colspan"] for one in heads if "colspan" in one] == [str(2 * len(MODES)), "1"]
    readme = excerpt(shown)
    assert f"| runtime | conformance | {' | '.join(speeds[:4])} |" in readme
    assert "(quick grid: 2026-01-03, made \\| up, 2 cores)" in readme


def test_the_page_says_what_the_markdown_says() -> None:
    bad = check("c", 0.5, "passed", "failed", section="3 Third <b>")
    shown = made(report(checks=[bad]), report("torch"), report("other"), runs=(several(),))
    found = Text(page(shown))
    assert found.open == []
    for text in ("~0.50 (1 of 2 noisy)", "1 of 2 failed", "does not conform", "not measured", "3 Third <b>"):
        assert text in found.text
    assert {tag for tag, _ in found.tags}.isdisjoint({"b", "script", "link", "iframe", "img"})
    assert not any("href" in attributes or "src" in attributes for _, attributes in found.tags)


def test_the_readme_gets_its_top(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()), "utf-8")
    (tmp_path / "run.json").write_text(document(several()), "utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    files = [str(tmp_path / name) for name in ("report.json", "run.json")]
    for _ in range(2):  # the second time finds what the first one wrote
        done = CliRunner().invoke(main, [*files, "--out", str(tmp_path / "page.md"), "--readme", str(readme)])
        assert done.exit_code == 0, done.output
        text = readme.read_text("utf-8")
        assert text.startswith(f"before\n{BEGIN}\n\n| runtime | conformance | speed: inference")
        assert text.endswith(f"\n\n{END}\nafter\n")
        assert "| mine | all 7 of the quick profile | 0.71 |" in text
        assert "old" not in text
    readme.write_text("nothing\n", "utf-8")
    done = CliRunner().invoke(main, [*files, "--out", str(tmp_path / "other.md"), "--readme", str(readme)])
    assert done.exit_code == 2
    assert "each once and in this order" in done.output
    assert not (tmp_path / "other.md").exists()


def test_the_pages_of_this_repository_are_of_its_data() -> None:
    """docs/scoreboard.json says what they were made of."""
    kept = load([ROOT / "docs" / "scoreboard.json"])
    assert kept.to_json() == (ROOT / "docs" / "scoreboard.json").read_text("utf-8")
    assert scoreboard(kept) == (ROOT / "docs" / "scoreboard.md").read_text("utf-8")
    there = (ROOT / "docs" / "scoreboard.html").read_text("utf-8")
    assert page(kept).split("</style>")[1] == there.split("</style>")[1]  # what it says; it may look as it did before
    readme = (ROOT / "README.md").read_text("utf-8")
    assert placed(readme, excerpt(kept)) == readme


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(width: int, scheme: str, tmp_path: Path) -> None:
    sections = [check(f"c{k}", 0.5, *["passed"] * 300, section=f"{k} Section") for k in range(1, 10)]
    shown = made(
        report(checks=sections),
        report("torch"),
        runs=(several(), every_setting(), replace(every_setting(), started="2026-02-03T00:00:00+00:00")),
    )
    seen = in_browser(page(shown), tmp_path, width, scheme)
    assert seen.fits
    assert "conformance and speed" in seen.text
    assert not seen.complaints
