"""Ranks of MPI on this machine: the result of one process, and one message and no process after a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rank_program
from lstmcore.distributed import DistributedError, launch
from lstmcore.distributed.launcher import _environment, _mpiexec
from lstmcore.training import load_model
from rank_cases import CASES, assert_same, fit_case

pytest.importorskip("mpi4py", reason="the session mpi installs it", exc_type=ImportError)

#: The ranks that are killed, and the steps; four batches an epoch, three epochs.
KILLS = [divmod(int(number), 12) for number in np.random.default_rng(21).permutation(24)[:20]]
TRAIN = ["train", "japanese-vowels", "--epochs", "2", "--hidden-size", "6", "--backend", "numpy", "--seed", "4"]


def run(folder: Path, ranks: int, **settings: Any) -> None:
    """Run the program on some ranks; after a fault too, none of them may be left."""
    try:
        launch([sys.executable, rank_program.__file__, str(folder), json.dumps(settings)], ranks)
    finally:
        assert_none_left(str(folder))


def assert_none_left(mark: str) -> None:
    """Wait until no process but this one has `mark` in its command."""
    end = time.monotonic() + 60
    while left := [process for process in Path("/proc").glob("[0-9]*") if has(process, mark)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def has(process: Path, mark: str) -> bool:
    try:
        words = (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return False
    return int(process.name) != os.getpid() and mark.encode() in words


def parameters(folder: Path, case: str, rank: int) -> dict[str, Any]:
    with np.load(folder / f"{case}-{rank}.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_give_the_result_of_one(ranks: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ranks, cases=list(CASES))
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for case, stopped in zip(CASES, told, strict=True):  # rank 0 alone prints
        wanted, history = fit_case(case)
        assert stopped == {case: history.stopped}
        for rank in range(ranks):
            assert_same(parameters(tmp_path, case, rank), wanted)


def test_the_same_ranks_give_the_same_bits(tmp_path: Path) -> None:
    found = []
    for name in ("first", "second"):
        (folder := tmp_path / name).mkdir()
        run(folder, 3, cases=["masks"])
        found.append(parameters(folder, "masks", 2))
    assert_same(*found, 0.0)


@pytest.mark.parametrize(("rank", "step"), KILLS)
def test_a_killed_rank_ends_all_and_the_run_goes_on(rank: int, step: int, tmp_path: Path) -> None:
    """With one message; the checkpoint of the last whole epoch goes on with one rank."""
    path = tmp_path / "run"
    with pytest.raises(DistributedError, match=rf"^rank {rank} was killed by signal 9 \(Killed\)$"):
        run(tmp_path, 2, cases=["masks"], epochs=3, checkpoint=str(path), fault=["kill", rank, step])
    assert {file.name for file in tmp_path.iterdir()} <= {"run"}
    done = step // 4
    assert path.exists() == (done > 0)
    parameters, history = fit_case("masks", epochs=3, resume=path if done else None)
    assert len(history.epochs) == 3
    assert_same(parameters, fit_case("masks", epochs=3)[0])


def test_a_run_goes_on_with_other_ranks(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    run(tmp_path, 3, cases=["masks"], epochs=1, checkpoint=path)
    run(tmp_path, 2, cases=["masks"], epochs=3, resume=path)
    assert_same(parameters(tmp_path, "masks", 1), fit_case("masks", epochs=3)[0])


def test_a_rank_that_fails_ends_all(tmp_path: Path) -> None:
    with pytest.raises(DistributedError, match=r"^rank 1: MemoryError: no room for a step$"):
        run(tmp_path, 3, cases=["masks"], fault=["raise", 1, 2])


def test_a_rank_that_hangs_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTMCORE_MPI_TIMEOUT", "20")
    with pytest.raises(DistributedError, match=r"^rank 2 does not answer: rank [01] waited 20 s for a sum"):
        run(tmp_path, 3, cases=["masks"], fault=["hang", 2, 2])


def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    """Also where it is killed and can end nothing itself."""
    path = tmp_path / "run"
    settings = json.dumps({"cases": ["masks"], "epochs": 10**6, "checkpoint": str(path)})
    words = [sys.executable, rank_program.__file__, str(tmp_path), settings]
    program = f"from lstmcore.distributed import launch; launch({words!r}, 2)"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as process:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert_none_left(str(tmp_path))


def lstmcore(*words: str, program: tuple[str, ...] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    own = (sys.executable, "-c", "from lstmcore.cli import main; main(prog_name='lstmcore')")
    return subprocess.run([*program, *own, *words], capture_output=True, text=True, check=False, timeout=1200, **more)


@pytest.mark.parametrize("started", ["by mpiexec", "by us"])
def test_train_writes_and_prints_once(started: str, tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    alone = lstmcore(*TRAIN, "--out", str(files[0]), "--json")
    if started == "by us":
        done = lstmcore(*TRAIN, "--out", str(files[1]), "--json", "--ranks", "2")
    else:
        program = (_mpiexec(), "-n", "2")
        done = lstmcore(*TRAIN, "--out", str(files[1]), "--json", program=program, env=_environment(2))
    assert (alone.returncode, done.returncode) == (0, 0), done.stderr
    wanted, found = (json.loads(run.stdout) for run in (alone, done))
    assert len(found["history"]["epochs"]) == len(wanted["history"]["epochs"]) == 2
    assert done.stderr.count("the model goes to") == 1
    one, two = (load_model(file).parameters for file in files)
    assert_same(two, one, 1e-4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch-size", "1"], "distributed: expected at most 1 ranks"),
        (["--target", "a"], "--target: only for forecasting"),
        (["--resume", "gone"], "gone: expected a file that is there"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, tmp_path: Path) -> None:
    done = lstmcore(*TRAIN, *words, "--out", str(tmp_path / "model"), "--ranks", "2", "--quiet")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"lstmcore: error: {told}")
    assert not list(tmp_path.iterdir())


def test_ranks_within_ranks_are_refused() -> None:
    done = lstmcore(*TRAIN, "--ranks", "2", env={**os.environ, "OMPI_COMM_WORLD_RANK": "0"})
    assert done.stderr.startswith("lstmcore: error: --ranks: expected none under mpiexec")


def test_a_launcher_of_another_mpi_is_told() -> None:
    """Each process would train alone, and all would write the same files."""
    more = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    done = lstmcore(*TRAIN, env={**_environment(1), **more, "PMIX_RANK": ""})
    assert done.returncode == 2
    assert "expected 2 ranks, as the launcher says" in done.stderr
