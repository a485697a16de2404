"""The script for a GPU, on the processor: every stage of it, what it says of faults, and where there is no GPU."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.backend import Backend
from lstmcore.registry import get_backend
from lstmcore_conformance.gpu import micro, parts, table
from lstmcore_conformance.gpu.__main__ import main
from lstmcore_conformance.gpu.places import Named, Ready, StandIn, draw
from lstmcore_conformance.gpu.plan import GOALS, GPU, STAND_IN, Deadline, Point, persistent
from lstmcore_conformance.gpu.session import STAGES, Session, _judged
from lstmcore_conformance.gpu.timing import Compared, Side, beside_plain, compare, judge_ours, judge_peer
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest
from lstmcore_conformance.suite.report import Outcome, Report
from lstmcore_conformance.suite.runner import items, report_on, run_item

ROOT = Path(__file__).parents[2]
POINT = Point("float32", "training", 6, 3, 5)


def _compared(place: StandIn, point: Point = POINT) -> Compared:
    given = draw(point)
    return compare(place, place.grid, point, given, place.truth(given), np.random.default_rng(0))


class Wrong(NaiveKernel):
    """One gradient is a little off."""

    def _backward(self, *args: Any) -> Any:
        found = super()._backward(*args)
        found.parameters["weight_h"][0, 0] += 0.01
        return found


class Broken(NaiveKernel):
    """It cannot do what it declares."""

    def _forward(self, *args: Any, **more: Any) -> Any:
        raise RuntimeError("the kernel ran into a wall")


def _backend(kernel_class: type[NaiveKernel]) -> Backend:
    class Planted(NaiveBackend):
        name = "planted"
        kernel = kernel_class

    return Planted()


# The whole of it ------------------------------------------------------------------------------------------------------


def test_every_stage_runs_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep" / "gpu"
    words = ["--stand-in", "-k", "forward.no_state", "--workers", "2", "--commit", "abc", "--out", str(folder)]
    assert main(words) == 0
    values = json.loads((folder / "results.json").read_text("utf-8"))
    assert (values["schema"], values["version"], values["commit"]) == ("lstmcore-gpu", 1, "abc")
    assert values["conformance"]["conforms"]
    report = json.loads((folder / "conformance.json").read_text("utf-8"))
    assert report["schema"] == "lstmcore-conformance"
    assert [check["id"] for check in report["checks"]] == ["forward.no_state"]
    assert report["counts"] == {"passed": values["conformance"]["cases"]}
    assert values["paths"]["equations"]["conforms"]
    report = json.loads((folder / "conformance-equations.json").read_text("utf-8"))
    assert (report["backend"], report["counts"]) == ("naive", {"passed": values["paths"]["equations"]["cases"]})
    assert len(values["points"]) == len(STAND_IN.all()) == 16
    for one in values["points"]:
        for side in (one["ours"], one["peer"], one["paths"]["equations"]):
            assert side["outcome"] in ("measured", "noisy")
            assert side["median_s"] > 0
        assert max(one["ours"]["share"], one["paths"]["equations"]["share"]) <= 1
        assert one["fastest"] in ("", "equations")
        assert one["low"] <= one["ratio"] <= one["high"]
        assert one["default_low"] <= one["default_ratio"] <= one["default_high"]
    assert [set(sides) for sides in values["variants"].values()] == [
        {"plain", "layer norm", "zoneout", "peephole", "CIFG"}
    ] * 4
    assert values["micro"]["a call of nothing"] > 0
    assert values["not_reached"] == values["errors"] == []
    told = capsys.readouterr().out
    assert told.endswith("\n".join(table.lines(values)) + "\n")
    assert told.endswith((folder / "table.txt").read_text("utf-8"))
    for text in (
        "12 selected cases",
        "float16   training   default",
        "float16   training   fastest",
        "biased upwards",
        "times say nothing",
        "CIFG",
        "open, 0 points",
        "the equations path is faster at",
    ):
        assert text in told


def test_it_needs_no_package_beyond_numpy_and_pluggy(tmp_path: Path) -> None:
    """Nothing else that is not Python's own can be imported, and lstmcore is not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib import metadata\n"
        "class Nothing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        own = top.startswith('lstmcore') or top in ('numpy', 'pluggy') or top in sys.stdlib_module_names\n"
        "        if not own and not top.startswith('_'):\n"
        "            raise ImportError(f'{name} is not to be used')\n"
        "sys.meta_path.insert(0, Nothing())\n"
        "known = metadata.version\n"
        "def version(name):\n"
        "    if name == 'lstmcore':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return known(name)\n"
        "metadata.version = version\n"
    )
    paths = [str(tmp_path), *(str(ROOT / folder) for folder in ("", "backends", "conformance"))]
    words = ["-m", "lstmcore_conformance.gpu", "--stand-in", "-k", "forward.no_state", "--out", str(tmp_path / "out")]
    env = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "conformance.json").read_text("utf-8"))
    assert report["versions"]["lstmcore"] == "not installed"


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever this machine has: a CuPy that cannot be imported is no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main([]) == 2
    told = capsys.readouterr().out
    assert told.startswith("no GPU: CuPy cannot be imported")
    assert "Nothing was run" in told
    assert not Path("gpu").exists()


@pytest.mark.parametrize("chip", ["80", "90"])
def test_the_microbenchmarks_compile(chip: str) -> None:
    """By NVRTC, which needs no driver."""
    compiler = pytest.importorskip("cupy.cuda.compiler", reason="CuPy is not installed")
    try:
        compiler._get_nvrtc_version()
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed: {error}")
    log = io.StringIO()
    program = compiler._NVRTCProgram(micro.source(), "micro.cu")
    program.compile(("--std=c++17", f"-arch=sm_{chip}", "--ptxas-options=-v"), log)
    assert set(re.findall(r"(\d+) bytes spill", log.getvalue())) == {"0"}


def test_what_time_does_not_reach_is_told(tmp_path: Path) -> None:
    place, said = StandIn(), []
    session = Session(place, "stand-in", tmp_path, said.append)
    values = session.run(["benchmark"], 0.0, 1, None)
    assert values["points"] == []
    assert values["not_reached"] == [str(point) for point in STAND_IN.all()]
    assert any("no time was left for 16 points" in line for line in table.lines(values))


def test_a_suite_that_was_cut_off_is_no_verdict_on_the_suite() -> None:
    report, errors = parts.conformance(StandIn(), "stand-in", "", 1, 0.0, "forward.no_state")
    assert not errors
    assert report.count < 12
    assert "cases, for which there was time" in str(report.selection)
    assert "the suite was not run as a whole" in report.verdict or not report.conforms


def test_every_case_is_somebodys_and_a_kernel_is_compiled_once() -> None:
    tested = BackendUnderTest(get_backend("numpy"))
    every = list(items(tested))
    shares = [[item for item in every if parts.share_of(item.case, 4) == index] for index in range(4)]
    assert sum(map(len, shares)) == len(every)
    assert all(len(share) > len(every) / 8 for share in shares)
    kernels = [{(item.case.model, item.case.precision) for item in share if item.case} for share in shares]
    assert len(set().union(*kernels)) == sum(map(len, kernels))


def test_a_stage_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(StandIn):
        def micro(self) -> dict[str, float | str]:
            raise RuntimeError("the device is lost")

        def truth(self, given: Any) -> Named:
            if given.x.shape[1] == 2:
                raise MemoryError("no room")
            return super().truth(given)

    monkeypatch.setattr("lstmcore_conformance.gpu.session.conformance", lambda *_: 1 / 0)
    session = Session(Gone(), "stand-in", tmp_path, lambda text: None)
    values = session.run(STAGES, 60.0, 1, None)
    assert values["errors"][:2] == [
        "conformance: ZeroDivisionError: division by zero",
        "micro: RuntimeError: the device is lost",
    ]
    assert values["errors"][2] == "N=2, H=5 in float64: MemoryError: no room"
    assert len(values["points"]) == len(values["not_reached"]) == 8
    assert not session.good


class _Processes:
    """In the place of processes: what each writes and how it ends, None for one that hangs."""

    def __init__(self, *ends: tuple[str, int | None]) -> None:
        self.ends, self.words = list(ends), list[list[str]]()

    def __call__(self, words: list[str], **options: Any) -> Any:
        text, code = self.ends.pop(0)
        self.words.append(words)
        self.returncode = -9 if code is None else code
        Path(next(word for word in words if word.endswith(".json"))).write_text(text)
        self.hangs = code is None
        return self

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        if self.hangs and timeout is not None:
            raise subprocess.TimeoutExpired("it", timeout)
        return "", "first\nthe last words"

    def kill(self) -> None:
        self.hangs = False


def _lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_after_a_process_that_ends_another_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends is followed by one that goes on with the next case."""
    tested = BackendUnderTest(get_backend("numpy"))
    three = list(items(tested, select="forward.no_state"))[:3]
    ran = [{"check": item.check.id, "item": parts._plain(run_item(tested, item))} for item in three]
    begun = [{"begun": item.id} for item in three]
    whole = _lines({"all": 4}, begun[0], ran[0], begun[1])
    processes = _Processes(
        (whole + '{"check": "forw', -11),
        (_lines({"all": 4}, begun[2], ran[2], {"lost": "the device is lost: x"}), 0),
        (_lines({"all": 4}, {"begun": "d"}), None),
        (_lines({"all": 4}, {"warming": True}, {"calling": "a point"}), 1),
    )
    monkeypatch.setattr(subprocess, "Popen", processes)
    monkeypatch.setattr(parts, "STALLED", 0.01)
    found = parts._part(tmp_path / "0.json", ["stand-in", "", "0", "1"], 3600.0, Deadline(3600), [])
    assert [words[-2] for words in processes.words] == ["0", "2", "3", "4"]
    assert found.all == 4
    assert [item.id for _, item in found.done] == [three[0].id, three[2].id]
    assert found.errors == [
        f"a process ended by exit code -11: the last words, at {three[1].id}",
        f"the device is lost: x, at {three[2].id}",
        "a process did not end in its time; a kernel may hang, at d",
        "a process ended by exit code 1: the last words, at calls of the benchmark, on two steps: a point",
    ]
    assert [number for number, _ in found.broken] == [1, 3]
    assert all(message.endswith(", at this case") for _, message in found.broken)


def _run_by(processes: _Processes, monkeypatch: pytest.MonkeyPatch) -> tuple[Report, list[str]]:
    monkeypatch.setattr(subprocess, "Popen", processes)
    monkeypatch.setattr(parts, "STALLED", 0.01)
    monkeypatch.setattr(parts, "LOOK", 0.01)
    return parts.conformance(StandIn(), "stand-in", "", 1, 60.0, "forward.no_state")


def _passes(*numbers: int) -> list[dict[str, Any]]:
    tested = BackendUnderTest(get_backend("numpy"))
    every = list(items(tested, select="forward.no_state"))
    some = [every[number] for number in numbers]
    pairs = [({"begun": it.id}, {"check": it.check.id, "item": parts._plain(run_item(tested, it))}) for it in some]
    return [record for pair in pairs for record in pair]


@pytest.mark.parametrize(
    ("code", "what"), [(-11, "ended by exit code -11: the last words"), (None, "a kernel may hang")]
)
def test_a_case_that_ends_its_process_is_an_error_of_the_report(
    code: int | None, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest, third = _passes(*range(3, 12)), _passes(2)[0]
    processes = _Processes(
        (_lines({"all": 12}, *_passes(0, 1), third), code),
        (_lines({"all": 12}, *rest, {"warming": True}, {"warmed": 1}), 0),
    )
    report, errors = _run_by(processes, monkeypatch)
    (bad,) = report.bad
    assert (bad.id, bad.outcome, bad.precision != "") == (third["begun"], Outcome.ERROR, True)
    assert what in bad.message
    assert (report.count, report.selection, len(errors)) == (12, "forward.no_state", 1)
    judged = _judged(report)
    assert judged is not None
    assert judged["conforms"] is False


def test_what_is_left_after_all_attempts_was_not_short_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = _Processes(*((_lines({"all": 12}, _passes(number)[0]), -11) for number in range(parts.ATTEMPTS)))
    report, _ = _run_by(processes, monkeypatch)
    assert len(report.bad) == report.count == parts.ATTEMPTS
    told = f"{parts.ATTEMPTS} of 12 cases; {12 - parts.ATTEMPTS} did not begin after {parts.ATTEMPTS} processes"
    assert told in str(report.selection)
    assert "time" not in str(report.selection)


def test_a_process_that_cannot_begin_is_no_lack_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = _run_by(_Processes(("", 1)), monkeypatch)
    assert not report.conforms
    assert "ended by exit code 1: the last words, before this case began" in report.bad[0].message
    assert "1 of 12 cases; 11 did not begin since a process ended at its beginning" in str(report.selection)


def test_each_call_that_warms_is_told_before_it_is_made() -> None:
    *calls, last = parts._warm(StandIn(), 0, 2, Deadline(3600))
    assert [record["calling"] for record in calls] == [str(point) for point in STAND_IN.all()[::2]]
    assert last == {"warmed": len(calls)}


def test_a_share_ends_where_the_device_is_lost() -> None:
    class Lost(StandIn):
        def lost(self) -> str | None:
            return "the device is lost"

    broken = list(parts.work(Lost(_backend(Broken)), 0, 1, 60.0, "forward.no_state"))
    assert [next(iter(record)) for record in broken] == ["all", "begun", "check", "lost"]
    first, second = (list(parts.work(Lost(), 0, 1, 60.0, "errors.x", number)) for number in (0, 1))
    assert len(first) - len(second) == 2  # what passes needs no look at the device
    assert first[-1].keys() == {"warmed"}


def test_nothing_is_begun_on_a_device_that_is_lost(tmp_path: Path) -> None:
    class Failing(StandIn):
        def lost(self) -> str | None:
            return "the device is lost" if session.points else None

    said: list[str] = []
    session = Session(Failing(), "stand-in", tmp_path, said.append)
    values = session.run(["benchmark"], 60.0, 1, None)
    first, *rest = (str(point) for point in STAND_IN.all())
    assert [one["N"] for one in values["points"]] == [STAND_IN.all()[0].N]
    assert values["not_reached"] == rest
    assert values["errors"] == [f"benchmark: RuntimeError: at {first}: the device is lost"]
    values = session.run(["micro"], 60.0, 1, None)
    assert values["errors"][1:] == ["micro: not begun, the device is lost"]
    assert not values["micro"]


# Points ---------------------------------------------------------------------------------------------------------------


def test_a_path_is_judged_and_the_fastest_that_is_right_counts() -> None:
    place = StandIn(get_backend("numpy"))
    place.paths = {"wrong": _backend(Wrong), "same": get_backend("numpy")}
    found = _compared(place)
    assert found.ours.times
    assert found.paths["wrong"].outcome == "does not conform"
    assert found.paths["same"].outcome == "unsupported"  # it would be the same again
    assert found.fastest == ""
    assert table.summary([found], {})["ratios"][0]["wrong"] == 1
    times = {"slow": 3.0, "fast": 0.5}
    paths = {name: Side("measured", times=[time] * 3) for name, time in times.items()}
    point = Compared(POINT, Side("measured", times=[1.0] * 3), Side("measured", times=[2.0] * 3), paths)
    assert (point.fastest, point.ratio) == ("fast", (4.0, 4.0, 4.0))
    figures = {one["path"]: one for one in table.summary([point], {})["paths"]}
    assert figures["fast"]["faster"] == 1
    assert figures["slow"]["slower_at"] == [f"N={POINT.N}, H={POINT.H}"]
    assert table._some(["a"] * 6) == "a, a, a, a, a, a"
    assert table._some(["a"] * 9).endswith("a and 3 more")


def test_the_default_paths_ratio_is_told_and_judges_the_goals() -> None:
    point = Point("tf32", "training", 512, 16, 512)
    peer = Side("measured", times=[2.4] * 5)

    def made(path: list[float]) -> Compared:
        return Compared(point, Side("measured", times=[2.0] * 5), peer, {"persistent": Side("noisy", times=path)})

    surely, hardly = made([1.0] * 5), made([1.9, 2.1, 1.9, 2.2, 1.0])
    for found, fastest, chosen in ((surely, 2.4, "persistent"), (hardly, 2.4 / 1.9, "")):
        values = found.to_dict()
        assert values["ratio"] == pytest.approx(fastest)
        assert (values["default_ratio"], values["chosen"]) == (pytest.approx(1.2), chosen)
        summed = table.summary([found], {})
        (ratios,) = summed["ratios"]
        assert (ratios["mean"], ratios["default"]["mean"]) == (pytest.approx(fastest), pytest.approx(1.2))
        assert summed["goals"][0]["mean"] == pytest.approx(2.4 if chosen else 1.2)
    assert table.summary([surely], {}, table=False)["goals"][0]["mean"] == pytest.approx(1.2)


def test_no_table_is_made_of_a_run_that_is_not_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = StandIn()
    place.paths = {"persistent": NaiveBackend()}
    written = tmp_path / "measured.json"
    told: list[str] = []
    session = Session(place, "stand-in", tmp_path, told.append)
    session.points = [_compared(place)]

    def reason() -> str:
        values = session.write()
        assert written.exists() == (values["no_table"] is None)
        assert values["no_table"] is None or f"  no measured.json: {values['no_table']}" in table.lines(values)
        return values["no_table"] or ""

    assert reason() == "the suite has not run on the persistent path"
    tested = BackendUnderTest(place.paths["persistent"])
    one = next(items(tested, select="forward.no_state"))
    item = run_item(tested, one)
    session.reports["persistent"] = report_on(tested, {one.check.id: [item]}, session.started, select="one")
    assert reason() == ""
    session.errors.append("micro: the device is lost")
    assert reason() == "an error was recorded: micro: the device is lost"
    session.errors.clear()
    bad = replace(item, outcome=Outcome.ERROR)
    session.reports["persistent"] = report_on(tested, {one.check.id: [bad]}, session.started, select="one")
    assert reason().startswith("the persistent path: naive does not conform")


def test_variants_of_a_path_are_those_that_it_has() -> None:
    place = StandIn(get_backend("numpy"))
    given = {"plain": draw(POINT), "peephole": draw(POINT, peephole=True)}
    plain = beside_plain(place, place.grid, POINT, given, np.random.default_rng(0))
    again = beside_plain(place, place.grid, POINT, given, np.random.default_rng(0), but=plain["plain"].how)
    assert all(side.times for side in plain.values())
    assert {side.outcome for side in again.values()} == {"unsupported"}


@pytest.mark.parametrize(
    ("kernel", "outcome", "told"),
    [
        (Wrong, "does not conform", "d_weight_h is off by"),
        (Broken, "error", "RuntimeError: the kernel ran into a wall"),
    ],
)
def test_what_is_wrong_has_no_time(kernel: type[NaiveKernel], outcome: str, told: str) -> None:
    found = _compared(StandIn(_backend(kernel)))
    assert (found.ours.outcome, found.ours.times, found.ratio) == (outcome, [], None)
    assert told in found.ours.message
    assert found.peer.outcome in ("measured", "noisy")
    if kernel is Wrong:  # the forward pass is right
        assert _compared(StandIn(_backend(kernel)), replace(POINT, mode="inference")).ratio is not None


def test_a_precision_that_is_not_declared_is_unsupported() -> None:
    found = _compared(StandIn(), replace(POINT, precision="tf32"))
    assert found.ours.outcome == "unsupported"
    assert "TF32" in found.ours.message
    assert found.peer.times


def test_a_peer_that_is_wrong_is_nothing_to_compare_with() -> None:
    class Off(StandIn):
        def peer(self, given: Any, precision: str, mode: Any) -> Ready:
            made = super().peer(given, precision, mode)
            if precision == "float64":
                return made

            def outputs() -> Named:
                found = dict(made.outputs())
                found["y"] = found["y"] + 0.5
                return found

            return Ready(made.call, outputs, made.how)

    found = _compared(Off())
    assert (found.peer.outcome, found.peer.times) == ("does not conform", [])
    assert "nothing to judge it by" in found.ours.message
    assert found.ratio is None


def test_budgets_follow_what_the_peer_loses() -> None:
    epsilon = 2.0**-23
    peer = {"y": 2 * epsilon, "dx": 0.0}
    assert judge_peer(peer, "float32") == ("right", "")
    assert judge_peer({"y": 300 * epsilon}, "float32")[0] == "does not conform"
    assert judge_peer({"y": 0.2}, "bfloat16")[0] == "does not conform"
    assert judge_ours({"y": 14.9 * epsilon, "dx": 2.9 * epsilon}, peer, "float32")[0] == "right"
    assert judge_ours({"y": 15.1 * epsilon, "dx": 0.0}, peer, "float32")[0] == "does not conform"
    outcome, message, share = judge_ours({"y": 0.0, "dx": float("inf")}, peer, "float32")
    assert (outcome, share) == ("does not conform", float("inf"))
    assert "dx" in message


def test_data_are_numbers_of_every_storage_dtype() -> None:
    given = draw(Point("float32", "training", 150, 3, 40))
    arrays = [given.x, given.dy, *given.state, *given.dstate, *given.parameters.values()]
    for array in arrays:
        np.testing.assert_array_equal(array.astype(np.float16).astype(np.float32), array)
        assert not (array.view(np.uint32) & 0xFFFF).any()  # a bfloat16 has the upper half of the bits
        assert array.std() > 0.05
    assert len(np.unique(given.x, axis=0)) == 150


def test_a_nan_is_infinitely_far() -> None:
    place = StandIn()
    assert place.error(np.array([np.nan]), np.array([0.0])) == float("inf")
    assert place.error(np.zeros(3), np.zeros(2)) == float("inf")


# Goals ----------------------------------------------------------------------------------------------------------------


def _made(point: Point, ratio: float) -> Compared:
    return Compared(point, Side("measured", times=[1.0] * 3), Side("measured", times=[ratio] * 3))


def _goals(make: Callable[[Point], float]) -> list[bool | None]:
    points = [_made(point, make(point)) for point in GPU.all()]
    return [goal["reached"] for goal in table.summary(points, {})["goals"]]


def test_the_grid_is_the_issues_and_the_goals_judge_it() -> None:
    points = GPU.all()
    assert {point.T for point in points} == {512}
    assert len(points) == 6 * 5 * 4 * 2 == len(set(points))
    assert all(point.N <= 64 and 256 <= point.H <= 1024 for point in points[: 9 * 8])
    assert _goals(lambda point: 2.1) == [True, True, True]
    assert _goals(lambda point: 1.9) == [False, True, True]
    assert _goals(lambda point: 0.96 if point.H == 1024 and point.N == 16 else 3.0) == [False, True, True]
    assert _goals(lambda point: 0.9 if point.H == 2048 else 2.5) == [True, False, True]
    assert _goals(lambda point: 0.8 if point.precision == "float16" else 2.5) == [True, True, False]
    assert _goals(lambda point: 0.8 if point.precision == "float32" else 2.5) == [True, True, True]
    assert [goal["reached"] for goal in table.summary([], {})["goals"]] == [None] * len(GOALS)
    one = [Compared(points[1], Side("does not conform"), Side("measured", times=[1.0]))]
    assert table.summary([*one, _made(points[3], 9.0)], {})["goals"][0]["reached"] is False


def test_which_points_cudnns_persistent_kernel_takes() -> None:
    taken = {(point.N, point.H) for point in GPU.all() if persistent(point)}
    assert taken == {(n, h) for n in (16, 64, 128) for h in (128, 256, 512, 1024)}


def test_a_deadline_passes() -> None:
    assert Deadline(60).left > 0
    assert Deadline(0).left <= 0
