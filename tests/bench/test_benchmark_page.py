"""The benchmark as pictures and as a page: by its text, and in a browser where the session `report` brings one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lstmcore.cli import main
from lstmcore_conformance.bench import grids
from lstmcore_conformance.bench.jobs import MODES, Job, Point
from lstmcore_conformance.bench.pictures import pictures, rendered
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result, Roof
from lstmcore_conformance.bench.summary import document, summaries
from lstmcore_conformance.bench.tables import digits
from lstmcore_conformance.bench.worker_client import Candidate
from lstmcore_conformance.render.benchmark_page import page
from pages import Text, in_browser

CANDIDATES = (
    Candidate("backend", "numpy", 2),
    Candidate("backend", "<b>own</b>", 2),
    Candidate("peer", "torch", 2),
    Candidate("peer", "onnxruntime", 2),
)


@pytest.fixture(scope="module")
def made() -> Benchmark:
    """Times by a formula: no machine has them."""
    rng = np.random.default_rng(0)
    results = [
        _made(Job(mode, point), candidate, rng)
        for mode in MODES
        for point in grids.points("full", mode)
        for candidate in CANDIDATES
    ]
    machine = {"processor": "made <up>", "cores": 2, "load": 0.1}
    runtimes = tuple(
        {"name": one.name, "kind": one.kind, "threads": one.threads, "label": one.label} for one in CANDIDATES
    )
    roofs = (Roof(2, "float32", 400.0, 16, {"524288": 80.0, "268435456": 20.0}),)
    return Benchmark("2026-01-01T00:00:00+00:00", 9.0, machine, {}, {}, runtimes, roofs, tuple(results))


def _made(job: Job, candidate: Candidate, rng: np.random.Generator) -> Result:
    if candidate.name == "onnxruntime" and job.call == "training":
        return Result(job, candidate, Outcome.UNSUPPORTED, "no gradients")
    if candidate.name == "<b>own</b>" and job.point.H == 1024:
        return Result(job, candidate, Outcome.WRONG, "y[0]: got <1>", share=7.0)
    time = 1e-5 + job.flops / 2e11 * (1 + CANDIDATES.index(candidate) / 4)
    rounds = tuple(time * np.exp(0.02 * rng.standard_normal(9)))
    known = {"share": 0.2, "median_s": time, "spread": 0.02, "rounds": rounds}
    tail = {"0": 0.9, "0.01": 0.95, "0.5": 1.0, "0.9": 1.1, "0.99": 1.5, "0.999": 3.0, "1": 9.0}
    quantiles = {share: time * factor for share, factor in tail.items()}
    return Result(job, candidate, Outcome.NOISY if job.point.N == 8 else Outcome.MEASURED, **known, quantiles=quantiles)


def _of(made: Benchmark, *modes: str) -> Benchmark:
    return replace(made, results=tuple(one for one in made.results if one.job.mode in modes))


def _noisy(one: Result) -> Result:
    return one if one.median_s is None else replace(one, outcome=Outcome.NOISY)


def _hollow(axes: Any) -> int:
    return sum(len(line.get_xdata()) for line in axes.lines if line.get_markerfacecolor() == "white")


def test_noisy_times_are_hollow(made: Benchmark) -> None:
    made = _of(made, "inference")
    noisy = [one for one in made.results if one.outcome is Outcome.NOISY]
    assert {one.job.point.N for one in noisy} == {8}
    shown = {name.removesuffix("-inference-float32-2"): figure.axes[0] for name, _, figure in pictures(made)}
    assert _hollow(shown["scaling-N"]) == _hollow(shown["roofline"]) == len(noisy)
    assert _hollow(shown["scaling-H"]) == _hollow(shown["speed"]) == 0


def test_noisy_latencies_are_hollow(made: Benchmark) -> None:
    steps = [one for one in made.results if one.job.mode == "streaming"]
    some = tuple(_noisy(one) if one.candidate.name == "torch" else one for one in steps)
    (figure,) = (figure for _, _, figure in pictures(replace(made, results=some)))
    for axes in figure.axes:
        assert [line.get_markerfacecolor() == "white" for line in axes.lines] == [False, False, True, False]


def test_equal_runtimes_stay_visible_in_pictures(made: Benchmark) -> None:
    """Runtimes of the same speed do not hide each other, and pictures tell their place."""
    point = grids.STANDARD[1]
    same = tuple(replace(one, median_s=1.0) for one in made.results if one.job == Job("inference", point))
    found = {name: figure for name, _, figure in pictures(replace(made, results=same))}
    lines = [line for line in found["speed-inference-float32-2"].axes[0].lines if line.get_linestyle() == "None"]
    assert len({line.get_ydata()[0] for line in lines}) == len(CANDIDATES)
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(CANDIDATES)
    assert len({line.get_marker() for line in lines}) == len(CANDIDATES)
    for figure in found.values():
        assert figure.get_suptitle().endswith(", inference, float32, 2 threads")
        assert figure.get_supxlabel() == "made <up>, 2 cores; 2026-01-01; lstmcore bench"


def test_no_point_is_left_out_of_the_speeds_but_those_of_sweeps(made: Benchmark) -> None:
    def rows(points: set[Point]) -> set[str]:
        some = tuple(one for one in made.results if one.job.mode == "inference" and one.job.point in points)
        (axes,) = (figure.axes[0] for name, _, figure in pictures(replace(made, results=some)) if "speed" in name)
        return {text.get_text() for text in axes.get_yticklabels()}

    table, own = set(grids.STANDARD), {grids.STANDARD[0], grids.SWEEPS["T"][0]}
    assert rows(table | own) == set(map(str, table))
    assert rows(own) == set(map(str, own))


def test_there_is_a_picture_of_everything(made: Benchmark) -> None:
    names = [name for name, _, _ in pictures(made)]
    for mode in ("inference", "training"):
        kinds = ("speed", "scaling-T", "scaling-N", "scaling-H", "map-numpy", "map-<b>own</b>", "roofline")
        assert {f"{kind}-{mode}-float32-2" for kind in kinds} <= set(names)
    assert "latency-streaming-float32-2" in names
    assert len(set(names)) == len(names)


def test_a_map_is_of_points_that_differ_in_rows_and_units_alone(made: Benchmark) -> None:
    """Where the run has them; the sweeps' points have other inputs and steps."""
    made = _of(made, "inference")
    shown = {name: figure for name, _, figure in pictures(made)}
    time, ratio = shown["map-numpy-inference-float32-2"].axes
    for axes in (time, ratio):
        assert [text.get_text() for text in axes.get_xticklabels()] == ["32", "64", "128", "256", "512"]
        assert [text.get_text() for text in axes.get_yticklabels()] == ["1", "4", "16", "64"]
        assert len(axes.texts) == len(grids.MAP)
    job = Job("inference", grids.MAP[7])
    (here,) = (one for one in made.results if (one.job, one.candidate.name) == (job, "numpy"))
    shown_there = {text.get_position(): text.get_text() for text in time.texts}
    place = (("32", "64", "128", "256", "512").index(str(job.point.H)), ("1", "4", "16", "64").index(str(job.point.N)))
    assert shown_there[place] == digits((here.median_s or 0.0) / job.point.T * 1e6)
    loud = replace(made, results=tuple(_noisy(one) if one.job == job else one for one in made.results))
    shown = {name: figure for name, _, figure in pictures(loud)}
    marked = [text for text in shown["map-numpy-inference-float32-2"].axes[0].texts if text.get_text().startswith("~")]
    assert [text.get_position() for text in marked] == [place]
    few = replace(made, results=tuple(one for one in made.results if one.job.point in grids.STANDARD))
    shown = {name: figure for name, _, figure in pictures(few)}
    assert len(shown["map-numpy-inference-float32-2"].axes[0].texts) == len(grids.STANDARD)


@pytest.mark.slow  # all pictures twice: five to eight seconds
def test_pictures_are_the_same_twice_and_have_something_on_them(made: Benchmark) -> None:
    made, kinds = _of(made, "inference", "streaming"), set()
    for (name, title, figure), (_, _, again) in zip(pictures(made), pictures(made), strict=True):
        kind = name.split("-")[0]
        if kind in kinds:
            continue
        kinds.add(kind)
        assert title
        assert rendered(figure, "svg") == rendered(again, "svg")
        png = rendered(figure, "png")
        assert png.startswith(b"\x89PNG")
        assert len(png) > 10_000
    assert kinds == {"speed", "scaling", "map", "roofline", "latency"}


def test_a_run_without_a_time_has_no_picture(made: Benchmark) -> None:
    none = tuple(replace(one, median_s=None, rounds=()) for one in made.results)
    assert list(pictures(replace(made, results=none))) == []
    assert Text(page(replace(made, results=none))).open == []


def test_the_page_says_what_the_run_says(made: Benchmark) -> None:
    made = _of(made, "inference")
    found = Text(page(made))
    assert found.open == []
    for one in summaries(made):
        assert f"{one.mean:.2f}" in found.text
        assert f"{one.worst.ratio:.2f} at {one.worst.ours.job.point} ({one.worst.peer.candidate.label})" in found.text
    assert "does not conform at" in found.text
    setting = found.text.split("inference, float32, 2 threads: ms a call")[1].split("ms a call")[0]
    standard = len(grids.points("full", "inference"))
    wide = sum(point.H == 1024 for point in grids.points("full", "inference"))
    verdicts = f"right at all {standard} points; largest share of a budget 0.2"
    one = next(one for one in made.results if one.job.point.N == 1 and one.median_s is not None)
    (roof,) = made.roofs
    assert roof.over(one.job) == pytest.approx(one.job.flops / one.job.bytes * 80.0)
    assert roof.over(Job("inference", grids.STANDARD[-1])) == roof.gflops == 400.0
    gflops = one.gflops or 0.0
    shares = f"{gflops:.3g}{gflops / 400:.0%}{gflops / roof.over(one.job):.0%}0.2"
    assert f"{one.job.point}{one.candidate.label}{shares}" in setting.replace("\u00a0", " ")
    assert verdicts in found.text
    assert f"does not conform at {wide} of {standard} points" in found.text
    assert "y[0]: got <1>" in found.text
    assert "made <up>" in found.text
    assert "<b>own</b>" in found.text
    assert "b" not in {tag for tag, _ in found.tags}
    images = [dict(attributes) for tag, attributes in found.tags if tag == "img"]
    assert len(images) == len(list(pictures(made)))
    assert all(image["alt"] and str(image["src"]).startswith("data:image/svg+xml;base64,") for image in images)


def test_the_page_asks_for_nothing_from_a_network(made: Benchmark) -> None:
    for tag, attributes in Text(page(_of(made, "streaming"))).tags:
        assert tag not in ("script", "link", "iframe")
        assert "href" not in attributes
        assert str(attributes.get("src", "data:")).startswith("data:")


def test_the_command_writes_page_and_pictures(made: Benchmark, tmp_path: Path) -> None:
    few = _of(made, "streaming")
    (tmp_path / "run.json").write_text(document(few), "utf-8")
    words = ["bench", "--read", str(tmp_path / "run.json"), "--html", str(tmp_path / "page.html")]
    done = CliRunner().invoke(main, [*words, "--pictures", str(tmp_path / "pictures")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").read_text("utf-8") == page(few)
    names = {file.name for file in (tmp_path / "pictures").iterdir()}
    assert names == {"latency-streaming-float32-2.png", "latency-streaming-float32-2.svg"}


@pytest.mark.slow  # a page with many pictures: four to seven seconds
def test_the_command_writes_a_folder_to_publish(made: Benchmark, tmp_path: Path) -> None:
    points = (*grids.QUICK, grids.STANDARD[-1])
    some = [one for one in made.results if one.job.mode == "inference" and one.job.point in points]
    few = replace(made, results=tuple(some))
    (tmp_path / "run.json").write_text(document(few), "utf-8")
    folder = tmp_path / "standard"
    older = folder / "pictures" / "older.png"
    older.parent.mkdir(parents=True)
    older.touch()
    (folder / "README.md").write_text("# A run of `lstmcore bench`\n\n2026-01-01\n", "utf-8")
    done = CliRunner().invoke(main, ["bench", "--read", str(tmp_path / "run.json"), "--report", str(folder)])
    assert done.exit_code == 1  # something in it does not conform
    assert Benchmark.load(folder / "run.json") == Benchmark.load(tmp_path / "run.json")
    assert (folder / "report.html").read_text("utf-8") == page(few)
    text = (folder / "README.md").read_text("utf-8")
    for one in summaries(few):
        assert f"| {one.mean:.2f} | {one.worst.ratio:.2f} at {one.worst.ours.job.point}" in text
    assert "\\<b\\>own" in text
    shown = set(re.findall(r"!\[.*\]\(pictures/(.*)\)", text))
    assert shown == {file.name for file in (folder / "pictures").iterdir()}
    assert len(shown) == len(list(pictures(few)))
    assert "map-_b_own_b_-inference-float32-2.png" in shown


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(made: Benchmark, width: int, scheme: str, tmp_path: Path) -> None:
    seen = in_browser(page(made), tmp_path, width, scheme)
    assert seen.fits
    assert "LSTM runtimes side by side" in seen.text
    assert not seen.complaints
