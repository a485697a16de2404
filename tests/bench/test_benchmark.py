"""The benchmark: its rules hold for planted backends, and what it writes can be read again. Nothing tests speed."""

from __future__ import annotations

import gc
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from io import StringIO
from pathlib import Path
from time import sleep
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from lstmcore.cli import main
from lstmcore_conformance.bench import grids, roofline, statistics
from lstmcore_conformance.bench import machine as describing
from lstmcore_conformance.bench.array_io import load_arrays, load_data, save_arrays, save_data
from lstmcore_conformance.bench.comparing import changes, lost
from lstmcore_conformance.bench.comparing import show as show_changes
from lstmcore_conformance.bench.jobs import LENGTHS_MODES, MODES, MODES_OF_WORD, STREAMED, VARIANTS, Job, Mode, Point
from lstmcore_conformance.bench.judging import expectation, judge
from lstmcore_conformance.bench.machine import blas, commit, describe
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result
from lstmcore_conformance.bench.roofline import meter
from lstmcore_conformance.bench.run import Request, run
from lstmcore_conformance.bench.runtimes import PEERS, Prepared
from lstmcore_conformance.bench.startup import Start, start
from lstmcore_conformance.bench.summary import document, summaries, variants
from lstmcore_conformance.bench.terminal import show
from lstmcore_conformance.bench.timing import Plan, Samples, measure, timed_result
from lstmcore_conformance.bench.worker import Server, timed
from lstmcore_conformance.bench.worker_client import Candidate, EndedError, FailedError, Worker, environment
from lstmcore_conformance.cases.case import Data
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.render.benchmark_page import page
from lstmcore_conformance.suite.backend_under_test import Failure
from planted import planted
from plugins import Install
from stepping import CLOCK, SteppingWorker, take

ROOT = Path(__file__).parents[2]
SMALL = Point(4, 3, 5, 7)
PLAN = Plan(rounds=3, seconds=0.001, repeats=0)


@pytest.fixture
def plant(install: Install) -> Callable[..., tuple[str, ...]]:
    """Installs planted backends and returns their names."""

    def add(*kinds: str) -> tuple[str, ...]:
        for kind in kinds:
            install(kind, planted(kind))
        return kinds

    return add


def _run(backends: tuple[str, ...], **changes: Any) -> Benchmark:
    return run(Request(**({"backends": backends, "points": (SMALL,), "plan": PLAN, "calls": 6} | changes)))


def _by(benchmark: Benchmark) -> dict[tuple[str, Mode, Point], Result]:
    return {(one.candidate.name, one.job.mode, one.job.point): one for one in benchmark.results}


# What conforms has a time, what does not has none ---------------------------------------------------------------------


def test_what_is_wrong_has_no_time(plant: Callable[..., tuple[str, ...]]) -> None:
    found = _by(_run(plant("right", "wrong", "wrong_gradient"), modes=MODES))
    for mode in MODES:
        point = SMALL._replace(T=1) if mode == "streaming" else SMALL
        right = found["right", mode, point]
        assert right.outcome in (Outcome.MEASURED, Outcome.NOISY)
        assert right.median_s is not None
        assert right.median_s > 0
        assert right.share is not None
        assert right.share <= 1
        wrong = found["wrong", mode, point]
        assert wrong.outcome is Outcome.WRONG
        assert wrong.message.startswith("y[")
        assert wrong.share is not None
        assert wrong.share > 1
        assert (wrong.median_s, wrong.rounds, wrong.calls, wrong.gflops) == (None, (), 0, None)
    for lengths in ("", "lengths-"):
        assert found["wrong_gradient", f"{lengths}inference", SMALL].median_s is not None  # type: ignore[index]  # a mode
        wrong = found["wrong_gradient", f"{lengths}training", SMALL]  # type: ignore[index]  # a mode
        assert wrong.outcome is Outcome.WRONG
        assert wrong.message.startswith("d_weight_h[0, 0]")


def test_what_is_wrong_after_it_was_timed_has_no_time(plant: Callable[..., tuple[str, ...]]) -> None:
    found = _by(_run(plant("right", "wrong_later"), modes=("inference",)))
    assert found["right", "inference", SMALL].median_s is not None
    wrong = found["wrong_later", "inference", SMALL]
    assert wrong.outcome is Outcome.WRONG
    assert wrong.message.startswith("after it was timed: y[")
    assert (wrong.median_s, wrong.rounds, wrong.calls) == (None, (), 0)


def test_a_process_that_ends_is_an_error_and_stops_nobody(plant: Callable[..., tuple[str, ...]]) -> None:
    crash = SMALL._replace(N=2)
    found = _by(_run(plant("right", "crashing"), points=(crash, SMALL), modes=("inference",)))
    assert found["crashing", "inference", crash].outcome is Outcome.ERROR
    assert found["crashing", "inference", crash].message == "its process ended by exit code 7"
    assert found["crashing", "inference", SMALL].median_s is not None
    assert found["right", "inference", crash].median_s is not None


def test_what_is_not_declared_is_unsupported() -> None:
    (result,) = _run(("numpy",), precisions=("tf32",), modes=("inference",)).results
    assert result.outcome is Outcome.UNSUPPORTED
    assert "tf32" in result.message


def test_a_backend_that_cannot_start_is_told(plant: Callable[..., tuple[str, ...]], install: Install) -> None:
    install("absent", reason="it needs a chip")
    benchmark = _run((*plant("right"), "absent"), modes=("inference",))
    (facts,) = (one for one in benchmark.runtimes if one["name"] == "absent")
    assert "it needs a chip" in facts["message"]
    assert _by(benchmark)["right", "inference", SMALL].median_s is not None
    absent = _by(benchmark)["absent", "inference", SMALL]
    assert absent.outcome is Outcome.ERROR
    assert "it needs a chip" in absent.message
    assert "it needs a chip" in page(benchmark)


@pytest.mark.slow  # every mode and variant of two backends, in processes: 36 seconds
def test_a_device_is_timed_with_its_arrays_there_too(plant: Callable[..., tuple[str, ...]], tmp_path: Path) -> None:
    """Through `LSTM` from host to host, and through its kernel with arrays that stay on the device."""
    plant("away", "right")
    words = ["--point", "4,3,5,7", "--threads", "1", "--peers", "none", "--rounds", "3", "--calls", "32", "--variants"]
    words += [word for mode in MODES_OF_WORD for word in ("--mode", mode)]
    file = tmp_path / "run.json"
    done = CliRunner().invoke(main, ["bench", "away", "right", *words, "--json", str(file)])
    assert done.exit_code == 0, done.output
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(file.read_text("utf-8")))
    found = Benchmark.load(file)
    grid = [one for one in found.results if not one.beside_variants]
    assert {one.candidate.label for one in grid} == {"away", "away (resident)", "right"}
    assert {one.job.mode for one in grid} == set(MODES)
    for one in grid:
        assert one.median_s is not None, one
        assert one.candidate.resident == one.how.startswith("Kernel.forward")
    assert not any(one.candidate.resident for one in found.results if one.beside_variants)
    assert {facts["label"] for facts in found.runtimes} == {"away", "away (resident)", "right"}


def test_a_process_that_ends_takes_its_other_variants_along(plant: Callable[..., tuple[str, ...]]) -> None:
    """What was prepared before goes with the process, what comes after is done by the next one."""
    found = _run(plant("right", "crashing_at_peephole"), modes=("inference",), variants=True)
    order = list(VARIANTS)
    for one in found.results:
        crashing = one.candidate.name == "crashing_at_peephole" and one.beside_variants
        gone = crashing and order.index(one.job.variant) <= order.index("peephole")
        assert (one.outcome is Outcome.ERROR) == gone, one
    assert json.loads(document(found))


def test_a_job_that_fails_while_it_is_timed_is_an_error() -> None:
    class Broken:
        def ask(self, do: str, **_: Any) -> Mapping[str, Any]:
            raise EndedError("its process ended by SIGSEGV")

    found = measure({"one": (Broken(), "key")}, PLAN, np.random.default_rng(0), threads=1)  # type: ignore[dict-item]  # a stand-in
    assert found["one"].message == "its process ended by SIGSEGV"


def test_more_threads_than_allowed_is_no_time() -> None:
    made = Result(Job("inference", SMALL), Candidate("backend", "one", 1), Outcome.MEASURED, share=0.1)
    samples = Samples(rounds=[1.0] * 3, calls=[1.0] * 3, cpu=5.7, wall=3.0, elapsed=3.0)
    found = timed_result(made, samples, PLAN)
    assert found.outcome is Outcome.THREADS
    assert found.median_s is None
    assert found.message == "1.90 processors were busy with 1 allowed"
    assert timed_result(made, replace(samples, cpu=3.1), PLAN).outcome is Outcome.MEASURED


def test_a_time_is_noisy_by_its_spread_and_by_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lstmcore_conformance.bench.machine.cores", lambda: 2)
    made = Result(Job("inference", SMALL), Candidate("backend", "one", 2), Outcome.MEASURED, share=0.1)
    quiet = Samples(rounds=[1.0] * 4, calls=[1.0] * 4, cpu=8.0, wall=4.0, elapsed=4.0)
    assert timed_result(made, quiet, PLAN).outcome is Outcome.MEASURED
    assert "the spread is" in timed_result(made, replace(quiet, rounds=[1.0, 1.0, 2.0, 2.0]), PLAN).message
    disturbed = replace(quiet, others=2.0)
    assert timed_result(made, disturbed, PLAN).outcome is Outcome.NOISY
    assert "other processes kept 0.5 processors busy" in timed_result(made, disturbed, PLAN).message
    alone = replace(made, candidate=Candidate("backend", "one", 1))
    assert timed_result(alone, replace(disturbed, cpu=4.0), PLAN).outcome is Outcome.MEASURED


# Turns ----------------------------------------------------------------------------------------------------------------


class Fake:
    """A worker whose calls take what `times` says; it writes down when it was asked."""

    def __init__(self, name: str, log: list[str], times: Callable[[int], float] = lambda turn: 1e-3) -> None:
        self.name, self.log, self.times, self.turn = name, log, times, 0
        self.asked: list[Mapping[str, Any]] = []

    def ask(self, do: str, **details: Any) -> Mapping[str, Any]:
        assert do == "measure"
        self.asked.append(details)
        self.log.append(self.name)
        self.turn += 1
        taken = int(self.times(self.turn - 1) * 1e9)
        return {"ns": [taken] * 3, "cpu_ns": 3 * taken, "wall_ns": 3 * taken, "used_ns": 4 * taken}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing else runs."""
    monkeypatch.setattr("lstmcore_conformance.bench.machine.busy", lambda: 0.0)


def _fakes(*fakes: Fake) -> dict[str, Any]:
    return {fake.name: (fake, "key") for fake in fakes}


@pytest.mark.usefixtures("quiet")
def test_candidates_take_turns_in_an_order_drawn_anew() -> None:
    log: list[str] = []
    names = ["a", "b", "c", "d"]
    plan = Plan(rounds=12, repeats=0)
    found = measure(_fakes(*(Fake(name, log) for name in names)), plan, np.random.default_rng(1), threads=1)
    rounds = [tuple(log[i : i + 4]) for i in range(0, 48, 4)]
    assert all(sorted(one) == names for one in rounds)
    assert len(set(rounds)) > 6
    assert all(len(one.rounds) == 12 for one in found.values())


@pytest.mark.usefixtures("quiet")
def test_a_wide_spread_is_measured_again_with_all_others() -> None:
    """A spread above the bound is measured again, with all others."""
    log: list[str] = []
    wild = Fake("wild", log, lambda turn: 1e-3 * (1 + turn % 2) if turn < 10 else 1e-3)
    found = measure(_fakes(wild, Fake("calm", log)), Plan(rounds=10, repeats=3), np.random.default_rng(1), threads=1)
    assert found["wild"].attempts == found["calm"].attempts == 2
    assert found["wild"].spread == 0
    assert log.count("calm") == 20
    still = Fake("still", [], lambda turn: 1e-3 * (1 + turn % 2))
    found = measure(_fakes(still), Plan(rounds=10, repeats=3), np.random.default_rng(1), threads=1)
    assert found["still"].attempts == 4
    assert found["still"].spread > 0.1


@pytest.mark.usefixtures("quiet")
def test_calls_before_the_clock_starts() -> None:
    """A short call is made once before the clock starts, and single steps make a sequence of them."""
    plan = Plan(rounds=3, repeats=0)

    def asked(fake: Fake, calls: int | None = None) -> list[int]:
        measure(_fakes(fake), plan, np.random.default_rng(1), threads=1, calls=calls)
        return [details["settle"] for details in fake.asked]

    assert asked(Fake("short", [])) == [1, 1, 1]
    assert asked(Fake("long", [], lambda turn: plan.seconds)) == [1, 0, 0]
    assert asked(Fake("steps", []), calls=30) == [STREAMED] * 3


def test_a_turn_enters_once_and_collects_no_imports(tmp_path: Path) -> None:
    """Neither is in a call's time."""
    log: list[str] = []

    @contextmanager
    def around() -> Iterator[None]:
        log.append("enter")
        yield
        log.append("leave")

    class Made:
        def prepare(self, job: Job, data: Data) -> Prepared:
            return Prepared(lambda: log.append("call"), lambda: {"y": np.zeros(2)}, "how", around)

    job, frozen = Job("inference", SMALL), gc.get_freeze_count()
    save_data(tmp_path / "data", job.case.data)
    server = Server.__new__(Server)
    server.runtime, server.jobs, server.clock = Made(), {}, CLOCK  # type: ignore[assignment]  # a stand-in
    files = {"data": str(tmp_path / "data"), "outputs": str(tmp_path / "outputs")}
    server.prepare("key", job.to_dict(), **files)
    assert log == ["enter", "call", "leave", "enter", "leave"]  # the first call, and the values
    try:
        assert gc.get_freeze_count() > 10_000
        log.clear()
        assert len(server.measure("key", 60.0, 5, 2)["ns"]) == 5
        assert log == ["enter", *["call"] * 7, "leave"]
    finally:
        server.drop("key", files["outputs"])
    assert gc.get_freeze_count() == frozen


def test_calls_are_timed_one_by_one() -> None:
    taken = iter(range(1, 100))
    assert timed(lambda: take(next(taken)), 10**9, 5, CLOCK.wall_ns) == [1, 2, 3, 4, 5]
    assert timed(lambda: take(next(taken)), 0, 5, CLOCK.wall_ns) == [6]
    assert timed(lambda: take(next(taken)), 7 + 8 + 1, 5, CLOCK.wall_ns) == [7, 8, 9]
    done: list[int] = []
    assert min(timed(lambda: done.append(1), 0, 5)) > 0  # by the clock of the system
    assert len(done) == 1
    assert timed(lambda: sleep(0.02), 0, 5)[0] >= 20_000_000  # which goes on while a call waits


# Jobs, grids, files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_grids_have_each_point_once(mode: Mode) -> None:
    quick, standard, full = (grids.points(name, mode) for name in grids.NAMES)
    assert len(set(full)) == len(full)
    assert set(quick) <= set(standard) <= set(full)
    if mode == "streaming":
        assert {point.T for point in full} == {1}
    with pytest.raises(ValueError, match="grid: expected one of quick"):
        grids.points("other", mode)


def test_operations_of_a_call() -> None:
    assert Job("inference", Point(2, 3, 5, 7)).flops == 8 * 2 * 3 * 7 * 12
    assert Job("training", Point(2, 3, 5, 7)).flops == 3 * 8 * 2 * 3 * 7 * 12
    assert Job("inference", Point(2, 3, 5, 7)).bytes == 4 * (2 * 4 * 7 * 12 + 2 * 3 * 12)
    lengths = Job("lengths-training", Point(9, 4, 5, 7))
    assert lengths.flops == 3 * 8 * sum(lengths.lengths or ()) * 7 * 12
    assert lengths.flops < Job("training", lengths.point).flops


def test_lengths_are_uniform_from_a_quarter() -> None:
    """Of all steps; one row has them all, as the longest of a batch has."""
    assert Job("training", SMALL).lengths is None
    for steps in (1, 2, 7, 40):
        jobs = [Job("lengths-inference", Point(steps, 50, 5, hidden)) for hidden in range(1, 9)]
        every = [job.lengths for job in jobs]
        assert all(lengths is not None and len(lengths) == 50 and max(lengths) == steps for lengths in every)
        assert {length for lengths in every for length in lengths or ()} == set(range(-(-steps // 4), steps + 1))
        assert every == [replace(job, mode="lengths-training").lengths for job in jobs]
    assert len(set(every)) == len(every)
    assert Job("lengths-training", SMALL).case.features == {"lengths"}


def test_a_peer_is_judged_by_what_it_has() -> None:
    """Padding without lengths has no final c of a shorter row; nobody else is spared it."""
    expected = expectation(Job("lengths-inference", SMALL))
    peers = {name: set(Candidate("peer", name, 1).judged(expected)) for name in PEERS}
    assert {name for name, judged in peers.items() if judged != set(expected)} == {"torch-padded"}
    assert set(expected) - peers["torch-padded"] == {"c_n"}
    assert set(Candidate("backend", "torch-padded", 1).judged(expected)) == set(expected)
    budgets.forget()


def test_lengths_have_peers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes part in its modes alone; --peers auto starts none that takes part in nothing."""
    asked: list[Request] = []

    def ask(request: Request, tell: Any) -> Benchmark:
        asked.append(request)
        raise SystemExit

    monkeypatch.setattr("lstmcore_conformance.bench.runtimes.missing", lambda name: None)
    monkeypatch.setattr("lstmcore_conformance.bench.run.run", ask)
    for modes in (["training"], ["lengths"], ["streaming", "lengths"]):
        CliRunner().invoke(main, ["bench", "numpy", *(word for mode in modes for word in ("--mode", mode))])
    assert [request.modes for request in asked] == [("training",), LENGTHS_MODES, ("streaming", *LENGTHS_MODES)]
    plain, lengths = {"torch", "jax"}, {"torch-packed", "torch-padded"}
    assert [set(one.peers) - {"onnxruntime"} for one in asked] == [plain, lengths, plain | lengths]
    for mode in MODES:
        taking = {name for name in PEERS if Candidate("peer", name, 1).takes(mode)}
        assert taking - {"onnxruntime"} == (lengths if mode in LENGTHS_MODES else plain | {"tutorial"})
        assert Candidate("backend", "torch", 1).takes(mode)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
def test_data_go_to_a_worker_and_back(variant: str, mode: Mode, tmp_path: Path) -> None:
    job = Job(mode, SMALL, "float32", variant)
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    save_data(tmp_path / "data", job.case.data)
    found, given = load_data(tmp_path / "data"), job.case.data
    sent = {name: array for name, array in given.arrays() if not name.startswith("tangents")}
    came = dict(found.arrays())
    assert set(came) == set(sent)
    for name, array in came.items():
        np.testing.assert_array_equal(array, sent[name])
    assert (found.masks is not None) == (job.call == "training" and variant in ("zoneout", "recurrent_dropout"))
    for pair, want in ((found.state, given.state), (found.dstate, given.dstate)):
        np.testing.assert_array_equal(np.concatenate(pair, axis=1), np.concatenate(want, axis=1))


def test_values_are_judged_by_the_budget(tmp_path: Path) -> None:
    job = Job("training", SMALL)
    expected = expectation(job)
    assert {"y", "h_n", "c_n", "dx", "dh0", "dc0", "d_weight_x", "d_weight_h", "d_bias"} == set(expected)
    right = {name: one.value.astype(one.dtype) for name, one in expected.items()}
    save_arrays(tmp_path / "outputs", right)
    assert judge(load_arrays(tmp_path / "outputs"), expected).share < 1
    for name, one in expected.items():
        moved = right[name].copy()
        moved.flat[0] += 2 * one.budget
        with pytest.raises(Failure, match=name):
            judge(right | {name: moved}, expected)
        with pytest.raises(Failure, match=f"{name}: expected; got nothing"):
            judge({other: array for other, array in right.items() if other != name}, expected)
    budgets.forget()


def test_the_threads_are_told_to_every_library(plant: Callable[..., tuple[str, ...]]) -> None:
    assert environment(1)["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false"
    assert "XLA_FLAGS" not in environment(2)
    assert {environment(2)[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL", "LSTMCORE")} == {"2"}
    plant("right")
    with Worker(Candidate("backend", "right", 1)) as worker:
        with pytest.raises(FailedError, match="KeyError: 'none'"):
            worker.ask("measure", key="none", seconds=0.001, most=1, settle=0)
        text = Path(f"/proc/{worker.process.pid}/environ")
        if text.exists():
            assert b"\0LSTMCORE_NUM_THREADS=1\0" in b"\0" + text.read_bytes()


def test_the_roof_is_the_best_that_was_seen() -> None:
    """Other work on the machine lowers a measurement, so that a later one never lowers the roof."""
    pytest.importorskip("llvmlite", reason="the loop of multiply-adds is compiled by llvmlite")
    found = meter(1, "float32")
    assert found is not None
    found.again()
    first = found.roof
    found.again()
    assert 0 < first.gflops <= found.roof.gflops
    assert all(0 < speed <= found.roof.copies[size] for size, speed in first.copies.items())
    assert meter(1, "float16") is None


def test_a_copy_counts_the_bytes_that_it_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two threads, of which each touches as much memory as is said."""
    moved: list[int] = []

    def copyto(taken: Any, given: Any) -> None:
        assert taken.nbytes == given.nbytes == 2**25
        assert not np.shares_memory(taken, given)
        moved.append(taken.nbytes + given.nbytes)

    def best(threads: int, work: Callable[[int], object]) -> float:
        for thread in range(threads):
            work(thread)
        return 0.5

    monkeypatch.setattr(np, "copyto", copyto)
    monkeypatch.setattr(roofline, "_best", best)
    assert roofline._copy(2, 2**26) == pytest.approx(sum(moved) / 0.5 / 1e9)
    assert len(moved) == 8


# What a run comes to --------------------------------------------------------------------------------------------------


def _made(name: str, kind: Any, point: Point, median: float, **changes: Any) -> Result:
    rounds = tuple(median * factor for factor in (0.98, 1.0, 1.02, 1.0, 1.0))
    known = {"share": 0.2, "median_s": median, "spread": 0.02, "rounds": rounds, "quantiles": {"0.99": median}}
    job = changes.pop("job", Job("inference", point))
    return Result(job, Candidate(kind, name, 1), Outcome.MEASURED, **(known | changes))


def made_benchmark(results: tuple[Result, ...]) -> Benchmark:
    machine = {"processor": "made up", "cores": 2, "load": 0.0}
    candidates = dict.fromkeys(one.candidate for one in results)
    runtimes = tuple({"name": c.name, "kind": c.kind, "threads": c.threads, "label": c.label} for c in candidates)
    return Benchmark("2026-01-01T00:00:00+00:00", 1.0, machine, {}, {}, runtimes, (), results)


def test_ratios_are_of_the_best_peer() -> None:
    one, two = Point(4, 3, 5, 7), Point(4, 3, 5, 8)
    results = (
        _made("numpy", "backend", one, 2e-3),
        _made("torch", "peer", one, 8e-3),
        _made("jax", "peer", one, 4e-3),
        _made("numpy", "backend", two, 4e-3),
        _made("torch", "peer", two, 2e-3),
        replace(_made("jax", "peer", two, 1e-3), outcome=Outcome.WRONG, median_s=None),
    )
    (found,) = summaries(made_benchmark(results))
    assert [comparison.ratio for comparison in found.comparisons] == [2.0, 0.5]
    assert [comparison.peer.candidate.name for comparison in found.comparisons] == ["jax", "torch"]
    assert found.mean == pytest.approx(1.0)
    assert found.worst.ours.job.point == two
    assert found.comparisons[0].low <= 2 <= found.comparisons[0].high


def test_no_number_is_cut_where_the_terminal_is_narrow() -> None:
    names = ("numpy", "own_backend", "third")
    results = [_made(name, "backend", Point(100, 128, 1024, 1024), 0.04567e-3) for name in names]
    results += [_made(name, "peer", Point(100, 128, 1024, 1024), 0.04567e-3) for name in ("torch", "onnxruntime")]
    results += [replace(one, beside_variants=True) for one in results[:3]]
    slow = Job("inference", Point(100, 128, 1024, 1024), variant="input_from_forget")
    results += [_made(name, "backend", slow.point, 0.1e-3, beside_variants=True, job=slow) for name in names]
    console = Console(file=StringIO(), width=40)
    show(made_benchmark(tuple(results)), console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert text.count("0.0457") == 5
    assert {line[-1] for line in text.splitlines() if line.startswith("│")} == {"│"}


def test_variants_are_beside_the_plain_layer_of_the_same_round() -> None:
    grid = _made("numpy", "backend", SMALL, 9e-3)
    plain = _made("numpy", "backend", SMALL, 2e-3, beside_variants=True)
    slow = _made("numpy", "backend", SMALL, 3e-3, beside_variants=True, job=Job("inference", SMALL, variant="peephole"))
    (found,) = variants(made_benchmark((plain, slow, grid)))
    assert (found.name, found.mean, found.noisy) == ("peephole", pytest.approx(1.5), frozenset())
    made = made_benchmark((replace(plain, outcome=Outcome.NOISY), slow, grid))
    (found,) = variants(made)
    assert found.noisy == {slow.job}
    assert "~1.50" in page(made)
    console = Console(file=StringIO(), width=200)
    show(made, console)
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().count("~1.50") == 2


SCHEMA = json.loads((resources.files("lstmcore_conformance.bench") / "benchmark.schema.json").read_text("utf-8"))


def test_a_run_fits_the_schema() -> None:
    """A run fits the schema, in which only what conforms has a time."""
    results = [_made("numpy", "backend", SMALL, 2e-3), _made("torch", "peer", SMALL, 8e-3)]
    results.append(Result(Job("training", SMALL), Candidate("peer", "jax", 1), Outcome.WRONG, "y[0]", share=7.0))
    starts = (Start(Candidate("backend", "numpy", 1), 0.1, 0.2, 0.3, 10**7),)
    values = json.loads(document(replace(made_benchmark(tuple(results)), starts=starts)))
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(values)
    for change in ({"outcome": "does not conform"}, {"share": 1.5}, {"median_s": None}):
        values["results"][0] = results[0].to_dict() | change
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(values)


def test_a_run_is_read_again(plant: Callable[..., tuple[str, ...]], tmp_path: Path) -> None:
    benchmark = _run(plant("right", "wrong"), modes=("inference",), variants=True)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(document(benchmark)))
    assert {one.job.variant for one in benchmark.results if one.beside_variants} == set(VARIANTS)
    file = tmp_path / "run.json"
    file.write_text(document(benchmark))
    assert Benchmark.load(file).to_dict() == benchmark.to_dict()
    assert {one.candidate.name for one in Benchmark.load(file).timed()} == {"right"}
    text = json.loads(file.read_text())
    file.write_text(json.dumps(text | {"version": 99}))
    with pytest.raises(ValueError, match="run version: expected at most 1; got 99, written by a newer lstmcore"):
        Benchmark.load(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="expected a file that lstmcore bench wrote"):
        Benchmark.load(file)
    for name in ("machine", "results", "runtimes"):
        file.write_text(json.dumps({key: value for key, value in text.items() if key != name}))
        with pytest.raises(ValueError, match=f"run.json: the whole: expected what bench/benchmark.*'{name}'"):
            Benchmark.load(file)
    file.write_text(json.dumps(text | {"results": [{"job": 3}]}))
    with pytest.raises(ValueError, match=r"run.json: results\[0\].*: expected what bench/benchmark.schema.json says"):
        Benchmark.load(file)


def test_a_run_tells_the_commit_and_the_users_settings(
    plant: Callable[..., tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run tells which lstmcore ran and what the user had set."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # every worker has its own
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/some/where")
    monkeypatch.setattr(describing, "commit", lambda: "0123456789ab")
    told = json.loads(document(_run(plant("right"), modes=("inference",))))
    own = {name: value for name, value in told["settings"]["environment"].items() if not name.startswith("LSTMCORE_")}
    assert own == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert told["versions"]["lstmcore"].endswith("+g0123456789ab")
    assert told["versions"]["blas"] == blas() != "unknown"


def test_the_commit_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is that of the repository which the code belongs to."""

    def git(*words: str) -> str:
        own = ("-c", "user.name=one", "-c", "user.email=one@example.org", "-C", str(tmp_path / "source"))
        return subprocess.run(["git", *own, *words], capture_output=True, text=True, check=True).stdout.strip()

    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("lstmcore", "backends/lstmcore_one", "conformance/lstmcore_two"):
        (source / name).mkdir(parents=True)
        (source / name / "__init__.py").write_text(f"name = {name!r}\n")
        shutil.copytree(source / name, installed / Path(name).name)
    (source / "pyproject.toml").touch()
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "one")):
        git(*words)
    head = git("rev-parse", "--short=12", "HEAD")
    monkeypatch.setattr(describing.lstmcore, "__file__", str(source / "lstmcore" / "__init__.py"))
    assert commit() == head
    (source / "README.md").touch()
    assert commit() == head
    changed = source / "backends" / "lstmcore_one" / "__init__.py"
    changed.write_text("name = 1\n")
    assert commit() == f"{head}.changed"
    monkeypatch.setattr(describing.lstmcore, "__file__", str(installed / "lstmcore" / "__init__.py"))
    monkeypatch.setattr(describing, "_source", lambda own: source)
    assert commit() is None  # the copy is of other code
    git("checkout", "-q", ".")
    assert commit() == head
    monkeypatch.setattr(describing, "_source", lambda own: installed)
    assert commit() is None


def test_a_slower_kernel_shows_and_a_slower_machine_not() -> None:
    """A slower kernel shows beyond the noise; a slower machine does not."""

    def result(name: str, kind: Any, median: float) -> Result:
        rng = np.random.default_rng(len(name))
        rounds = tuple(median * (1 + 0.02 * rng.standard_normal(15)))
        return replace(_made(name, kind, SMALL, median), rounds=rounds)

    def of(ours: float, machine: float) -> Benchmark:
        both = (result("numpy", "backend", ours * machine), result("torch", "peer", 1e-3 * machine))
        return made_benchmark(both)

    (same,) = changes(of(2e-3, 1.0), of(2e-3, 1.0))
    assert same.ratio == pytest.approx(1.0)
    assert not same.slower
    assert not same.faster
    (slow_machine,) = changes(of(2e-3, 1.5), of(2e-3, 1.0))
    assert not slow_machine.slower
    assert slow_machine.peers == ("torch",)
    (slower,) = changes(of(2.4e-3, 0.7), of(2e-3, 1.0))
    assert slower.slower
    assert slower.low < 1.2 < slower.high
    (faster,) = changes(of(2e-3, 1.0), of(2.4e-3, 1.0))
    assert faster.faster
    alone = replace(of(2e-3, 1.5), results=of(2e-3, 1.5).results[:1])
    (without,) = changes(alone, of(2e-3, 1.0))
    assert without.slower
    assert without.peers == ()
    with pytest.raises(ValueError, match="expected runs of one machine; got cores 2 and 64"):
        changes(replace(alone, machine={"processor": "made up", "cores": 64}), of(2e-3, 1.0))


def _timed(name: str, kind: Any, median: float, outcome: Outcome = Outcome.MEASURED) -> Result:
    return replace(_made(name, kind, SMALL, median), outcome=outcome)


def test_a_peer_of_another_version_is_no_measure_of_the_machine() -> None:
    """A new release of it that is twice as fast makes nobody slower."""

    def of(peer: float, version: str) -> Benchmark:
        found = made_benchmark((_timed("numpy", "backend", 2e-3), _timed("torch", "peer", peer)))
        versions = {"numpy": {}, "torch": {"torch": version}}
        return replace(found, runtimes=tuple(one | {"versions": versions[one["name"]]} for one in found.runtimes))

    (same,) = changes(of(1e-3, "1"), of(2e-3, "1"))
    assert same.slower
    assert same.peers == ("torch",)
    (other,) = changes(of(1e-3, "2"), of(2e-3, "1"))
    assert not other.slower
    assert other.peers == ()


def test_a_time_that_is_no_more_is_told() -> None:
    old = made_benchmark((_timed("numpy", "backend", 1.0),))
    gone = replace(old.results[0], outcome=Outcome.UNSUPPORTED, message="not now", median_s=None, rounds=())
    new = made_benchmark((gone,))
    assert changes(new, old) == []
    assert lost(new, old) == [gone]
    assert lost(old, new) == []
    console = Console(file=StringIO(), width=200)
    show_changes([], [gone], console)
    assert isinstance(console.file, StringIO)
    told = "inference float32 4, 3, 5, 7, numpy, 1 thread: no time any more: unsupported: not now"
    assert told in console.file.getvalue()


def test_a_change_of_noisy_times_is_marked() -> None:
    old, new = made_benchmark((_timed("numpy", "backend", 1.0),)), made_benchmark((_timed("numpy", "backend", 2.0),))
    noisy = replace(new, results=tuple(replace(one, outcome=Outcome.NOISY) for one in new.results))
    console = Console(file=StringIO(), width=200)
    for found in (new, noisy):
        show_changes(changes(found, old), [], console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert text.count(" 2.00 slower") == text.count("~2.00 slower") == text.count("~ is of noisy times") == 1


def test_few_rounds_are_not_compared() -> None:
    whole = made_benchmark((_timed("numpy", "backend", 1.0),))
    few = replace(whole, results=tuple(replace(one, rounds=(1.0, 1.0, 1.0)) for one in whole.results))
    for new, old in ((few, whole), (whole, few)):
        with pytest.raises(ValueError, match="compare: expected runs of at least 5 rounds; got one of 3"):
            changes(new, old)


@pytest.mark.usefixtures("quiet")
def test_a_planted_slow_backend_shows_up(
    plant: Callable[..., tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same name with 6 ms a call in the place of 1 ms is slower."""
    monkeypatch.setattr("lstmcore_conformance.bench.run.Worker", SteppingWorker)
    plant("stepping")
    common = ["--point", "4,3,5,7", "--mode", "inference", "--threads", "1", "--peers", "none", "--rounds", "5"]
    old, new = str(tmp_path / "old.json"), str(tmp_path / "new.json")
    assert CliRunner().invoke(main, ["bench", "stepping", *common, "--json", old]).exit_code == 0
    (module,) = tmp_path.glob("plugin_stepping_*.py")
    # Python runs stored code for a file of the same size that was written in the same second.
    module.write_text(planted("slow").replace("'slow'", "'stepping'") + "# of another size\n")
    done = CliRunner().invoke(main, ["bench", "stepping", *common, "--json", new, "--compare", old])
    assert done.exit_code == 1
    assert " 6.00 slower" in done.output
    assert "1 slower, 0 faster, 0 without a change" in done.output
    assert [one.median_s for file in (old, new) for one in Benchmark.load(Path(file)).results] == [1e-3, 6e-3]
    assert {one.outcome for file in (old, new) for one in Benchmark.load(Path(file)).results} == {Outcome.MEASURED}
    again = CliRunner().invoke(main, ["bench", "--read", new, "--compare", new])
    assert again.exit_code == 0
    assert "0 slower, 0 faster, 1 without a change" in again.output
    piped = CliRunner().invoke(main, ["bench", "--read", new, "--compare", old, "--json", "-"])
    assert json.loads(piped.stdout)
    assert "1 slower, 0 faster" in piped.stderr


def test_what_cannot_be_compared_is_an_error(plant: Callable[..., tuple[str, ...]], tmp_path: Path) -> None:
    """Another machine before anything is measured; no call in common once what was measured is written."""
    plant("right")
    words = ["bench", "right", "--mode", "inference", "--threads", "1", "--peers", "none", "--rounds", "5"]
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    words += ["--compare", str(old), "--json", str(new)]
    made = made_benchmark((_made("right", "backend", SMALL._replace(N=8), 1.0),))
    old.write_text(document(made), "utf-8")
    done = CliRunner().invoke(main, words)  # the standard grid, had it begun
    assert done.exit_code == 2
    assert "compare: expected runs of one machine; got processor made up and" in done.output
    assert not new.exists()
    old.write_text(document(replace(made, machine=describe())), "utf-8")
    done = CliRunner().invoke(main, [*words, "--point", "4,3,5,7"])
    assert done.exit_code == 2
    assert "compare: expected runs with a backend, call and number of threads in common" in done.output
    assert len(list(Benchmark.load(new).timed())) == 1


@pytest.mark.slow  # new processes: four to six seconds
def test_a_start_counts_only_with_the_right_result(plant: Callable[..., tuple[str, ...]], tmp_path: Path) -> None:
    plant("right", "wrong")
    found = {name: start(Candidate("backend", name, 1)) for name in ("right", "wrong", "absent")}
    right = found["right"]
    assert right.message == ""
    assert right.import_s is not None
    assert right.warm_s is not None
    assert 0 < right.import_s < right.warm_s
    assert right.installed_bytes is not None
    assert right.installed_bytes > 10**6
    assert found["wrong"].message.startswith("does not conform: y[49, 15, 127]")
    assert "'absent'" in found["absent"].message
    assert found["wrong"].warm_s is found["absent"].warm_s is None
    file = tmp_path / "run.json"
    file.write_text(document(replace(made_benchmark(()), starts=tuple(found.values()))))
    assert Benchmark.load(file).starts == tuple(found.values())


def test_statistics() -> None:
    assert statistics.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert statistics.geometric_mean([0.5, 8.0]) == pytest.approx(2.0)
    rng = np.random.default_rng(0)
    drift = 1 + 0.5 * rng.random(15)  # the machine's speed changes from round to round, for both alike
    ratio, low, high = statistics.paired_ratio(1.1 * drift, drift)
    assert ratio == pytest.approx(1.1)
    assert low == pytest.approx(1.1)
    assert high == pytest.approx(1.1)
    ratio, low, high = statistics.unpaired_ratio(2 * drift, drift)
    assert low <= 2 <= high
    assert low < high


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command(plant: Callable[..., tuple[str, ...]], tmp_path: Path) -> None:
    plant("right", "wrong")
    common = ["--point", "4,3,5,7", "--mode", "inference", "--threads", "1", "--peers", "none", "--rounds", "3"]
    file = tmp_path / "run.json"
    done = CliRunner().invoke(main, ["bench", "right", *common, "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "inference, float32, 1 thread" in done.output
    assert re.fullmatch(r"bench: \d+:\d\d:\d\d, 0 of 1 done, now inference float32 4, 3, 5, 7\n", done.stderr)
    assert Benchmark.load(file).settings["backends"] == ["right"]
    done = CliRunner().invoke(main, ["bench", "right", "wrong", *common])
    assert done.exit_code == 1
    assert "does not conform" in done.output


COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "benchmarking.md").read_text("utf-8"), flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("lstmcore bench ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_documentation_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, on NumPy without peers, at one size and for a moment."""
    monkeypatch.chdir(tmp_path)
    slow = _made("numpy", "backend", SMALL, 1e6)  # a run now is not slower, whatever else the machine does
    Path("run.json").write_text(document(replace(made_benchmark((slow,)), machine=describe())), "utf-8")
    words = ["numpy" if word == "numba" else word for word in shlex.split(line)[1:]]
    words = [word for word in words if word not in ("quick", "standard") and not word.startswith("--grid")]
    if "--read" not in words:
        small = {"--point": "4,3,5,7", "--peers": "none", "--rounds": "5", "--calls": "6", "--threads": "1"}
        for option, value in small.items():
            if option in words and option != "--point":
                words[words.index(option) + 1] = value
            else:
                words += [option, value]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output


def test_what_is_read_is_not_measured() -> None:
    done = CliRunner().invoke(main, ["bench", "--read", "run.json", "--mode", "training", "--grid", "standard"])
    assert done.exit_code == 2
    assert "--read: expected nothing that says what to measure; got --grid, --mode" in done.output


def test_a_report_replaces_no_page_of_others(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# mine\n", "utf-8")
    done = CliRunner().invoke(main, ["bench", "numpy", "--report", str(tmp_path)])
    assert done.exit_code == 2
    assert "--report: expected a folder of its own" in done.output
    assert page.read_text("utf-8") == "# mine\n"


def test_a_report_takes_no_files_of_others_away(tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "holiday.png"
    picture.parent.mkdir()
    picture.touch()
    done = CliRunner().invoke(main, ["bench", "numpy", "--report", str(tmp_path)])
    assert done.exit_code == 2
    assert "--report: expected a folder of its own" in done.output
    assert "which has files of others" in done.output
    assert picture.exists()


def test_too_few_rounds_are_an_error_before_anything_runs(tmp_path: Path) -> None:
    """With fewer rounds nothing could be compared."""
    made = replace(made_benchmark((_timed("numpy", "backend", 1.0),)), machine=describe())
    (tmp_path / "old.json").write_text(document(made), "utf-8")
    done = CliRunner().invoke(main, ["bench", "numpy", "--rounds", "3", "--compare", str(tmp_path / "old.json")])
    assert done.exit_code == 2
    assert "compare: expected runs of at least 5 rounds; got one of 3" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "0"], "--threads: expected whole numbers from 1 to"),
        (["--threads", "1,many"], "got 'many'"),
        (["--point", "4,3,5"], "--point: expected four whole numbers T,N,I,H of at least 1; got '4,3,5'"),
        (
            ["--peers", "other"],
            "--peers: expected some of torch, torch-packed, torch-padded, onnxruntime, jax, tutorial, or auto or none; "
            "got 'other'",
        ),
        (["--read", "run.json"], "--read: expected no backends, since nothing is measured; got numpy"),
        (["--json", "/nowhere/run.json"], "--json: expected a file in a folder that exists"),
        (["--json", "."], "--json: expected a file; got the folder '.'"),
        (["--html", "."], "--html: expected a file; got the folder '.'"),
        (
            ["--json", "both", "--html", "both"],
            "--html: expected a file of its own; got 'both'",
        ),
        (["--pictures", "/nowhere/pictures"], "--pictures: expected a folder, or a new one in a folder that exists"),
        (["--report", __file__], "--report: expected a folder, or a new one in a folder that exists"),
    ],
)
def test_mistakes_are_told_before_anything_runs(words: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["bench", "numpy", *words])
    assert done.exit_code == 2
    assert message in done.output
