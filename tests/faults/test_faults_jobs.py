"""Workers of joblib and Dask: the results of one process, tasks that kill their worker, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import job_tasks
from cli_runs import run, succeed
from lstmcore.cli import _workers
from lstmcore.cli._workers import open_workers, run_tasks

get_reusable_executor = pytest.importorskip("joblib.externals.loky").get_reusable_executor
ENGINES = ["joblib", pytest.param("dask", marks=pytest.mark.filterwarnings("ignore::ResourceWarning"))]
TRAIN = ("--hidden-size", "5", "--epochs", "1", "--backend", "numpy", "--quiet")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(job_tasks.LOG, str(tmp_path / "log"))
    get_reusable_executor().shutdown(wait=True)  # its workers have the environment of the test before
    return tmp_path


def need(engine: str) -> None:
    if engine == "dask":
        pytest.importorskip("distributed")


def write_shops(count: int) -> None:
    Path("shops").mkdir()
    for number in range(count):
        values = np.random.default_rng(number).normal(size=50 + number).cumsum().round(4).tolist()
        Path("shops", f"s{number:03}.csv").write_text("\n".join(["load", *map(str, values)]) + "\n")
    succeed("train", "shops/s000.csv", "--target", "load", "--window", 8, "--out", "m", *TRAIN)


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_write_what_one_process_writes(engine: str) -> None:
    need(engine)
    write_shops(7)
    jobs = ("--jobs", 2, "--engine", engine, "--backend", "numpy")
    assert run("predict", "m", "shops", "--out", "one", "--backend", "numpy").exit_code == 0
    result = run("predict", "m", "shops", "--out", "two", *jobs)
    assert result.exit_code == 0, result.output
    one, two = ({file.name: file.read_bytes() for file in Path(name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 7
    alone = succeed("evaluate", "m", "shops", "--backend", "numpy", "--json")
    assert succeed("evaluate", "m", "shops", "--json", *jobs) == alone


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_that_kills_its_worker_is_named(engine: str) -> None:
    """It is tried twice, and all others are done."""
    need(engine)
    texts = [f"t{number}" for number in range(9)]
    texts[2:2], texts[6:6], texts[11:] = ["dies"], ["dies-once"], ["fails"]  # too far apart to run at the same time
    with open_workers(2, engine) as workers:
        found = {texts[number]: outcome for number, outcome in run_tasks(job_tasks.work, texts, workers)}
    assert found.keys() == set(texts)
    assert {text for text, outcome in found.items() if outcome.error} == {"dies", "fails"}
    assert all(outcome.value == text[::-1] for text, outcome in found.items() if not outcome.error)
    tries = Counter(Path("log").read_text().split())
    assert tries["fails"] == 2
    assert tries["dies"] in (2, 3) and tries["dies-once"] in (2, 3)  # 3: the first time another task ran beside it


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_workers_of_dask_share_their_own_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processors are those of the worker's machine, shared by the tasks that run there at a time.

    A worker kept the number of its first command. A command may ask for a number of its own.
    """
    distributed = pytest.importorskip("distributed")
    monkeypatch.delenv("LSTMCORE_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)  # of the client, which counts for nothing
    with distributed.LocalCluster(n_workers=2, threads_per_worker=3, dashboard_address=":0") as cluster:
        with distributed.Client(cluster) as client:
            client.wait_for_workers(2)
            client.run(job_tasks.have_processors, 24)
        for jobs, asked, threads in ((4, None, 24 // 4), (40, None, 24 // 6), (4, "9", 9), (4, None, 24 // 4)):
            if asked is None:
                monkeypatch.delenv("LSTMCORE_NUM_THREADS", raising=False)
            else:
                monkeypatch.setenv("LSTMCORE_NUM_THREADS", asked)
            address = {"scheduler-address": cluster.scheduler_address}
            with distributed_config(address), open_workers(jobs, "dask") as workers:
                ends = dict(run_tasks(job_tasks.tell_threads, ["one"], workers))
            assert ends[0].value == f"{threads} None", ends


def distributed_config(values: dict[str, object]) -> Any:
    import dask

    return dask.config.set(values)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_command_leaves_no_worker_and_no_half_file(engine: str) -> None:
    need(engine)
    write_shops(60)
    words = ["predict", "m", "shops", "--out", "found", "--jobs", "2", "--engine", engine, "--backend", "numpy"]
    program = f"from lstmcore.cli import main\nif __name__ == '__main__': main({words!r})"
    Path("program.py").write_text(program)
    command = [sys.executable, "program.py"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not list(Path().glob("found/s*.csv")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60
    while left := [pid for pid in os.listdir("/proc") if pid.isdigit() and session_of(pid) == process.pid]:
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert run("predict", "m", "shops", "--out", "one", "--backend", "numpy").exit_code == 0
    for file in Path("found").glob("s*.csv"):
        assert file.read_bytes() == Path("one", file.name).read_bytes()


def session_of(pid: str) -> int:
    """Return the session of a process; 0 if it has ended."""
    try:
        state, _, _, session = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return 0
    return 0 if state == "Z" else int(session)


def test_workers_that_die_before_a_task_runs_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory lacks; it is joblib's own error, after three starts."""
    monkeypatch.setattr(_workers, "_attempt_in", job_tasks.die_at_once)
    with open_workers(2, "joblib") as workers, pytest.raises(Exception, match="worker process"):
        list(run_tasks(job_tasks.work, ["one", "two"], workers))
    assert not Path("log").exists()
