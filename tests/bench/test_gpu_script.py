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

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from lstmcore.backend import Backend
from lstmcore.cli import main as cli
from lstmcore.registry import get_backend
from lstmcore_conformance.bench import goals, micro, shards
from lstmcore_conformance.bench.device_points import Compared, compare, compare_variants
from lstmcore_conformance.bench.device_run import STAGES, DeviceRun, _judged
from lstmcore_conformance.bench.goals import GOALS, persistent
from lstmcore_conformance.bench.grids import GPU, STAND_IN
from lstmcore_conformance.bench.jobs import Job, Point
from lstmcore_conformance.bench.judging import budgets_beside_peer, judge_losses, peer_budgets
from lstmcore_conformance.bench.results import Benchmark, Result
from lstmcore_conformance.bench.results import Outcome as Timing
from lstmcore_conformance.bench.runtimes import Prepared
from lstmcore_conformance.bench.summary import variants
from lstmcore_conformance.bench.tables import verdicts
from lstmcore_conformance.bench.timed_device import Named, StandIn, draw
from lstmcore_conformance.bench.timing import Deadline
from lstmcore_conformance.bench.worker_client import Candidate
from lstmcore_conformance.gpu import main
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest
from lstmcore_conformance.suite.report import Outcome, Report
from lstmcore_conformance.suite.runner import items, report_on, run_item

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "conformance/lstmcore_conformance/bench/benchmark.schema.json").read_text("utf-8"))
JOB = Job("training", Point(6, 3, 5, 5))


def _compared(device: StandIn, job: Job = JOB) -> Compared:
    data = draw(job)
    return compare(device, job, data, device.truth(job, data), np.random.default_rng(0))


def side(outcome: Timing = Timing.MEASURED, times: tuple[float, ...] = (), job: Job = JOB) -> Result:
    """Return a result of those rounds."""
    median = float(np.median(times)) if times else None
    return Result(job, Candidate("backend", "one", 1), outcome, median_s=median, rounds=times)


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


@pytest.mark.slow  # every stage in processes of its own: three to eight seconds
def test_every_stage_runs_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep" / "gpu"
    words = ["--stand-in", "-k", "forward.no_state", "--workers", "2", "--commit", "abc", "--out", str(folder)]
    assert main(words) == 0
    values = json.loads((folder / "results.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(values)
    device = values["device"]
    assert (values["schema"], values["version"], device["commit"]) == ("lstmcore-benchmark", 1, "abc")
    assert device["conformance"]["conforms"]
    report = json.loads((folder / "conformance.json").read_text("utf-8"))
    assert report["schema"] == "lstmcore-conformance"
    assert [check["id"] for check in report["checks"]] == ["forward.no_state"]
    assert report["counts"] == {"passed": device["conformance"]["cases"]}
    assert device["paths"]["equations"]["conforms"]
    report = json.loads((folder / "conformance-equations.json").read_text("utf-8"))
    assert (report["backend"], report["counts"]) == ("naive", {"passed": device["paths"]["equations"]["cases"]})
    benchmark = Benchmark.load(folder / "results.json")
    grid = [one for one in benchmark.results if not one.beside_variants]
    assert [one.job for one in grid[::3]] == STAND_IN.all()
    assert len(device["points"]) == len(STAND_IN.all()) == 16
    for one in grid:
        assert one.outcome in (Timing.MEASURED, Timing.NOISY)
        assert one.median_s is not None
        assert one.median_s > 0
        assert one.share is not None
        assert one.share <= 1
        assert len(one.rounds) == STAND_IN.plan.rounds
    assert {one.candidate.label for one in grid} == {
        "numpy (resident)",
        "numpy:equations (resident)",
        "reference",
    }
    for one in device["points"]:
        assert one["fastest"] in ("", "equations")
        assert one["low"] <= one["ratio"] <= one["high"]
        assert one["default_low"] <= one["default_ratio"] <= one["default_high"]
    assert {one.name for one in variants(benchmark)} == {"layer_norm", "zoneout", "peephole", "input_from_forget"}
    assert len(variants(benchmark)) == 4 * 4
    assert device["micro"]["a call of nothing"] > 0
    assert device["tensors"] == {"tensors": "the stand-in has none"}
    kinds = [tuple(one[name] for name in ("data", "precision", "path", "peer", "arrays")) for one in device["training"]]
    sides = (("", ""), ("equations", ""), ("", "reference"))
    assert kinds == [
        (size.name, "float32", *side, arrays)
        for size in STAND_IN.training
        for side in sides
        for arrays in ("host", "device")
    ]
    assert len(device["graphs"]) == 4
    for one in device["graphs"]:
        assert one["outcome"] in ("measured", "noisy")
        assert min(one["graphs_s"], one["launches_s"], one["first_s"], one["ratio"]) > 0
    for one in device["training"]:
        assert one["step_s"] > 0
        assert one["losses"][-1] < one["losses"][0]
    assert device["not_reached"] == device["errors"] == []
    shown = CliRunner().invoke(cli, ["bench", "--read", str(folder / "results.json")])
    assert shown.exit_code == 0, shown.output
    (table,) = verdicts(benchmark)
    assert ("numpy:equations (resident)", "training, float16, 1 thread") in {tuple(row[:2]) for row in table.rows}
    assert table.caption in shown.output
    told = capsys.readouterr().out
    assert told.endswith("\n".join(goals.lines(values)) + "\n")
    assert told.endswith((folder / "table.txt").read_text("utf-8"))
    for text in (
        "12 selected cases",
        "training from end to end, Japanese Vowels, N=4, H=5, with a linear readout:",
        "training from end to end, drawn sequences, N=9, H=6, T=5, with a linear readout:",
        "float32, reference, arrays of the device: ",
        "float16   training   default",
        "float16   training   fastest",
        "biased upwards",
        "times say nothing",
        "input_from_forget",
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
    device, said = StandIn(), []
    device_run = DeviceRun(device, "stand-in", tmp_path, said.append)
    values = device_run.run(["benchmark"], 0.0, 1, None)
    assert values["results"] == values["device"]["points"] == []
    assert values["device"]["not_reached"] == [str(job) for job in STAND_IN.all()]
    assert any("no time was left for 16 points" in line for line in goals.lines(values))


def test_a_suite_that_was_cut_off_is_no_verdict_on_the_suite() -> None:
    report, errors = shards.conformance(StandIn(), "stand-in", "", 1, 0.0, "forward.no_state")
    assert not errors
    assert report.count < 12
    assert "cases, for which there was time" in str(report.selection)
    assert "the suite was not run as a whole" in report.verdict or not report.conforms


def test_every_case_is_in_one_share_and_a_kernel_is_compiled_once() -> None:
    tested = BackendUnderTest(get_backend("numpy"))
    every = list(items(tested))
    shares = [[item for item in every if shards.share_of(item.case, 4) == index] for index in range(4)]
    assert sum(map(len, shares)) == len(every)
    assert all(len(share) > len(every) / 8 for share in shares)
    kernels = [{(item.case.model, item.case.precision) for item in share if item.case} for share in shares]
    assert len(set().union(*kernels)) == sum(map(len, kernels))


def test_a_stage_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(StandIn):
        def micro(self) -> dict[str, float | str]:
            raise RuntimeError("the device is lost")

        def truth(self, job: Job, data: Any) -> Named:
            if job.point.N == 2:
                raise MemoryError("no room")
            return super().truth(job, data)

    monkeypatch.setattr("lstmcore_conformance.bench.device_run.conformance", lambda *_: 1 / 0)
    device_run = DeviceRun(Gone(), "stand-in", tmp_path, lambda text: None)
    values = device_run.run(STAGES, 60.0, 1, None)
    device = values["device"]
    assert device["errors"][:2] == [
        "conformance: ZeroDivisionError: division by zero",
        "micro: RuntimeError: the device is lost",
    ]
    assert device["errors"][2] == "N=2, H=5 in float64: MemoryError: no room"
    assert len(device["points"]) == len(device["not_reached"]) == 8
    assert not device_run.good


class _Processes:
    """In the device of processes: what each writes and how it ends, None for one that hangs."""

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
    ran = [{"check": item.check.id, "item": run_item(tested, item).to_record()} for item in three]
    begun = [{"begun": item.id} for item in three]
    whole = _lines({"all": 4}, begun[0], ran[0], begun[1])
    processes = _Processes(
        (whole + '{"check": "forw', -11),
        (_lines({"all": 4}, begun[2], ran[2], {"lost": "the device is lost: x"}), 0),
        (_lines({"all": 4}, {"begun": "d"}), None),
        (_lines({"all": 4}, {"warming": True}, {"calling": "a point"}), 1),
    )
    monkeypatch.setattr(subprocess, "Popen", processes)
    monkeypatch.setattr(shards, "STALLED", 0.01)
    found = shards._part(tmp_path / "0.json", ["stand-in", "", "0", "1"], 3600.0, Deadline(3600), [])
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
    monkeypatch.setattr(shards, "STALLED", 0.01)
    monkeypatch.setattr(shards, "LOOK", 0.01)
    return shards.conformance(StandIn(), "stand-in", "", 1, 60.0, "forward.no_state")


def _passes(*numbers: int) -> list[dict[str, Any]]:
    tested = BackendUnderTest(get_backend("numpy"))
    every = list(items(tested, select="forward.no_state"))
    some = [every[number] for number in numbers]
    pairs = [({"begun": it.id}, {"check": it.check.id, "item": run_item(tested, it).to_record()}) for it in some]
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
    processes = _Processes(*((_lines({"all": 12}, _passes(number)[0]), -11) for number in range(shards.ATTEMPTS)))
    report, _ = _run_by(processes, monkeypatch)
    assert len(report.bad) == report.count == shards.ATTEMPTS
    told = f"{shards.ATTEMPTS} of 12 cases; {12 - shards.ATTEMPTS} did not begin after {shards.ATTEMPTS} processes"
    assert told in str(report.selection)
    assert "time" not in str(report.selection)


def test_a_process_that_cannot_begin_is_no_lack_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = _run_by(_Processes(("", 1)), monkeypatch)
    assert not report.conforms
    assert "ended by exit code 1: the last words, before this case began" in report.bad[0].message
    assert "1 of 12 cases; 11 did not begin since a process ended at its beginning" in str(report.selection)


def test_each_call_that_warms_is_told_before_it_is_made() -> None:
    *calls, last = shards._warm(StandIn(), 0, 2, Deadline(3600))
    assert [record["calling"] for record in calls] == [str(point) for point in STAND_IN.all()[::2]]
    assert last == {"warmed": len(calls)}


def test_a_share_ends_where_the_device_is_lost() -> None:
    class Lost(StandIn):
        def lost(self) -> str | None:
            return "the device is lost"

    broken = list(shards.work(Lost(_backend(Broken)), 0, 1, 60.0, "forward.no_state"))
    assert [next(iter(record)) for record in broken] == ["all", "begun", "check", "lost"]
    first, second = (list(shards.work(Lost(), 0, 1, 60.0, "errors.x", number)) for number in (0, 1))
    assert len(first) - len(second) == 2  # what passes needs no look at the device
    assert first[-1].keys() == {"warmed"}


def test_nothing_is_begun_on_a_device_that_is_lost(tmp_path: Path) -> None:
    class Failing(StandIn):
        def lost(self) -> str | None:
            return "the device is lost" if device_run.compared else None

    said: list[str] = []
    device_run = DeviceRun(Failing(), "stand-in", tmp_path, said.append)
    values = device_run.run(["benchmark"], 60.0, 1, None)
    first, *rest = (str(point) for point in STAND_IN.all())
    assert [one["job"] for one in values["device"]["points"]] == [STAND_IN.all()[0].to_dict()]
    assert values["device"]["not_reached"] == rest
    assert values["device"]["errors"] == [f"benchmark: RuntimeError: at {first}: the device is lost"]
    values = device_run.run(["micro"], 60.0, 1, None)
    assert values["device"]["errors"][1:] == ["micro: not begun, the device is lost"]
    assert not values["device"]["micro"]


def test_a_training_is_told_beside_the_peers() -> None:
    """Its time over ours, of the same data, precision and kind of arrays; none without the peer."""
    told = {"data": "drawn", "precision": "tf32", "path": "", "losses": [2.0, 1.0]}
    runs = [
        told | {"arrays": arrays, "peer": peer, "step_s": step}
        for arrays, peer, step in (("host", "", 1e-3), ("device", "", 2e-4), ("device", "PyTorch", 3e-4))
    ]
    assert list(goals._training_lines(runs)) == [
        "training from end to end, drawn, with a linear readout:",
        "  tf32, default, arrays of the host: 1000 us a step, loss 2.000 to 1.000",
        "  tf32, default, arrays of the device: 200 us a step, 1.50 of the peer's speed, loss 2.000 to 1.000",
        "  tf32, PyTorch, arrays of the device: 300 us a step, loss 2.000 to 1.000",
    ]


# Points ---------------------------------------------------------------------------------------------------------------


def test_a_path_is_judged_and_the_fastest_that_is_right_counts() -> None:
    device = StandIn(get_backend("numpy"))
    device.paths = {"wrong": _backend(Wrong), "same": get_backend("numpy")}
    found = _compared(device)
    assert found.ours.rounds
    assert found.paths["wrong"].outcome is Timing.WRONG
    assert found.paths["same"].outcome is Timing.UNSUPPORTED  # it would be the same again
    assert found.fastest == ""
    assert goals.summary([found])["ratios"][0]["wrong"] == 1
    paths = {name: side(times=(time,) * 3) for name, time in {"slow": 3.0, "fast": 0.5}.items()}
    point = Compared(side(times=(1.0,) * 3), side(times=(2.0,) * 3), paths)
    assert (point.fastest, point.ratio_of("fast")) == ("fast", (4.0, 4.0, 4.0))
    figures = {one["path"]: one for one in goals.summary([point])["paths"]}
    assert figures["fast"]["faster"] == 1
    assert figures["slow"]["slower_at"] == [f"N={JOB.point.N}, H={JOB.point.H}"]
    assert goals.shortened(["a"] * 6) == "a, a, a, a, a, a"
    assert goals.shortened(["a"] * 9).endswith("a and 3 more")


def test_the_default_paths_ratio_is_told_and_judges_the_goals() -> None:
    job = Job("training", Point(512, 16, 512, 512), "tf32")
    peer = side(times=(2.4,) * 5, job=job)

    def made(path: tuple[float, ...]) -> Compared:
        return Compared(side(times=(2.0,) * 5, job=job), peer, {"persistent": side(Timing.NOISY, path, job)})

    surely, hardly = made((1.0,) * 5), made((1.9, 2.1, 1.9, 2.2, 1.0))
    for found, fastest, chosen in ((surely, 2.4, "persistent"), (hardly, 2.4 / 1.9, "")):
        values = found.to_dict()
        assert values["ratio"] == pytest.approx(fastest)
        assert (values["default_ratio"], values["chosen"]) == (pytest.approx(1.2), chosen)
        summed = goals.summary([found])
        (ratios,) = summed["ratios"]
        assert (ratios["mean"], ratios["default"]["mean"]) == (pytest.approx(fastest), pytest.approx(1.2))
        assert summed["goals"][0]["mean"] == pytest.approx(2.4 if chosen else 1.2)
    assert goals.summary([surely], table=False)["goals"][0]["mean"] == pytest.approx(1.2)


def test_no_table_is_made_of_a_run_that_is_not_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = StandIn()
    device.paths = {"persistent": NaiveBackend()}
    written = tmp_path / "measured.json"
    told: list[str] = []
    device_run = DeviceRun(device, "stand-in", tmp_path, told.append)
    device_run.compared = [_compared(device)]

    def reason() -> str:
        values = device_run.write()
        assert written.exists() == (values["device"]["no_table"] is None)
        why = values["device"]["no_table"]
        assert why is None or f"  no measured.json: {why}" in goals.lines(values)
        return why or ""

    assert reason() == "the suite has not run on the persistent path"
    tested = BackendUnderTest(device.paths["persistent"])
    one = next(items(tested, select="forward.no_state"))
    item = run_item(tested, one)
    device_run.reports["persistent"] = report_on(tested, {one.check.id: [item]}, device_run.started, select="one")
    assert reason() == ""
    device_run.errors.append("micro: the device is lost")
    assert reason() == "an error was recorded: micro: the device is lost"
    device_run.errors.clear()
    bad = replace(item, outcome=Outcome.ERROR)
    device_run.reports["persistent"] = report_on(tested, {one.check.id: [bad]}, device_run.started, select="one")
    assert reason().startswith("the persistent path: naive does not conform")


def test_variants_of_a_path_are_those_that_it_has() -> None:
    device = StandIn(get_backend("numpy"))
    device.paths = {"same": get_backend("numpy")}
    jobs = {job: draw(job) for job in (JOB, replace(JOB, variant="peephole"))}
    default = compare_variants(device, jobs, np.random.default_rng(0))
    again = compare_variants(device, jobs, np.random.default_rng(0), path="same")
    assert [one.job for one in default] == list(jobs)
    assert all(one.rounds and one.beside_variants for one in default)
    assert {one.outcome for one in again} == {Timing.UNSUPPORTED}


@pytest.mark.parametrize(
    ("kernel", "outcome", "told"),
    [
        (Wrong, Timing.WRONG, "d_weight_h is off by"),
        (Broken, Timing.ERROR, "RuntimeError: the kernel ran into a wall"),
    ],
)
def test_what_is_wrong_has_no_time(kernel: type[NaiveKernel], outcome: Timing, told: str) -> None:
    found = _compared(StandIn(_backend(kernel)))
    assert (found.ours.outcome, found.ours.rounds, found.ours.median_s) == (outcome, (), None)
    assert found.ratio_of("") is None
    assert told in found.ours.message
    assert found.peer.outcome in (Timing.MEASURED, Timing.NOISY)
    if kernel is Wrong:  # the forward pass is right
        assert _compared(StandIn(_backend(kernel)), replace(JOB, mode="inference")).ratio_of("") is not None


def test_a_side_that_fails_while_it_is_timed_has_no_time() -> None:
    class Later(NaiveKernel):
        """It fails once it has been judged."""

        calls = 0

        def _forward(self, *args: Any, **more: Any) -> Any:
            Later.calls += 1
            if Later.calls > 4:
                raise RuntimeError("it is lost")
            return super()._forward(*args, **more)

    found = _compared(StandIn(_backend(Later)))
    assert (found.ours.outcome, found.ours.message) == (Timing.ERROR, "RuntimeError: it is lost")
    assert found.ratio_of("") is None


def test_a_precision_that_is_not_declared_is_unsupported() -> None:
    found = _compared(StandIn(), replace(JOB, precision="tf32"))
    assert found.ours.outcome is Timing.UNSUPPORTED
    assert "TF32" in found.ours.message
    assert found.peer.rounds


def test_a_peer_that_is_wrong_is_nothing_to_compare_with() -> None:
    class Off(StandIn):
        def bind_peer(self, job: Job, data: Any) -> Prepared:
            made = super().bind_peer(job, data)
            if job.precision == "float64":
                return made

            def outputs() -> Named:
                found = dict(made.outputs())
                found["y"] = found["y"] + 0.5
                return found

            return Prepared(made.call, outputs, made.how)

    found = _compared(Off())
    assert (found.peer.outcome, found.peer.rounds) == (Timing.WRONG, ())
    assert "nothing to judge it by" in found.ours.message
    assert found.ratio_of("") is None


def test_budgets_follow_what_the_peer_loses() -> None:
    epsilon = 2.0**-23
    peer = {"y": 2 * epsilon, "dx": 0.0}

    def ours(lost: dict[str, float]) -> tuple[float, str]:
        return judge_losses(lost, budgets_beside_peer(peer, "float32"))

    assert judge_losses(peer, peer_budgets(peer, "float32"))[1] == ""
    assert "y is off by" in judge_losses({"y": 300 * epsilon}, peer_budgets("y", "float32"))[1]
    assert "y is off by" in judge_losses({"y": 0.2}, peer_budgets("y", "bfloat16"))[1]
    assert ours({"y": 14.9 * epsilon, "dx": 2.9 * epsilon})[1] == ""
    assert "y is off by" in ours({"y": 15.1 * epsilon, "dx": 0.0})[1]
    share, message = ours({"y": 0.0, "dx": float("inf")})
    assert share == float("inf")
    assert "dx" in message


def test_data_are_numbers_of_every_storage_dtype() -> None:
    given = draw(Job("training", Point(150, 3, 40, 40)))
    arrays = [array for _, array in given.arrays()]
    assert len(arrays) == 6 + len(given.parameters)
    for array in arrays:
        np.testing.assert_array_equal(array.astype(np.float16).astype(np.float32), array)
        assert not (array.view(np.uint32) & 0xFFFF).any()  # a bfloat16 has the upper half of the bits
        assert array.std() > 0.05
    assert len(np.unique(given.x, axis=0)) == 150


def test_a_nan_is_infinitely_far() -> None:
    device = StandIn()
    assert device.error(np.array([np.nan]), np.array([0.0])) == float("inf")
    assert device.error(np.zeros(3), np.zeros(2)) == float("inf")


# Goals ----------------------------------------------------------------------------------------------------------------


def _made(job: Job, ratio: float) -> Compared:
    return Compared(side(times=(1.0,) * 3, job=job), side(times=(ratio,) * 3, job=job))


def _goals(make: Callable[[Job], float]) -> list[bool | None]:
    points = [_made(job, make(job)) for job in GPU.all()]
    return [goal["reached"] for goal in goals.summary(points)["goals"]]


def test_the_grid_is_the_issues_and_the_goals_judge_it() -> None:
    jobs = GPU.all()
    assert {(job.point.T, job.point.I - job.point.H) for job in jobs} == {(512, 0)}
    assert len(jobs) == 6 * 5 * 4 * 2 == len(set(jobs))
    assert all(job.point.N <= 64 and 256 <= job.point.H <= 1024 for job in jobs[: 9 * 8])
    assert _goals(lambda job: 2.1) == [True, True, True]
    assert _goals(lambda job: 1.9) == [False, True, True]
    assert _goals(lambda job: 0.96 if job.point.H == 1024 and job.point.N == 16 else 3.0) == [False, True, True]
    assert _goals(lambda job: 0.9 if job.point.H == 2048 else 2.5) == [True, False, True]
    assert _goals(lambda job: 0.8 if job.precision == "float16" else 2.5) == [True, True, False]
    assert _goals(lambda job: 0.8 if job.precision == "float32" else 2.5) == [True, True, True]
    assert [goal["reached"] for goal in goals.summary([])["goals"]] == [None] * len(GOALS)
    one = [Compared(side(Timing.WRONG, job=jobs[1]), side(times=(1.0,), job=jobs[1]))]
    assert goals.summary([*one, _made(jobs[3], 9.0)])["goals"][0]["reached"] is False


def test_which_points_cudnns_persistent_kernel_takes() -> None:
    taken = {(job.point.N, job.point.H) for job in GPU.all() if persistent(job)}
    assert taken == {(n, h) for n in (16, 64, 128) for h in (128, 256, 512, 1024)}


def test_a_deadline_passes() -> None:
    assert Deadline(60).left > 0
    assert Deadline(0).left <= 0
