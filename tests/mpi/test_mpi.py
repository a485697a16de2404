"""Ranks of MPI on this machine: the result of one process, and one message and no process after a fault."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import rank_runs
from lstmcore.distributed.launcher import _environment, _mpiexec
from rank_cases import assert_same, fit_case
from rank_runs import TRAIN, lstmcore

pytest.importorskip("mpi4py", reason="the session mpi installs it", exc_type=ImportError)

#: The ranks that are killed, and the steps; four batches an epoch, three epochs.
KILLS = [divmod(int(number), 12) for number in np.random.default_rng(21).permutation(24)[:20]]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_give_the_result_of_one(ranks: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rank_runs.check_the_result_of_one("mpi", tmp_path, ranks, capfd)


def test_the_same_ranks_give_the_same_bits(tmp_path: Path) -> None:
    rank_runs.check_the_same_bits("mpi", tmp_path)


@pytest.mark.parametrize(("rank", "step"), KILLS)
def test_a_killed_rank_ends_all_and_the_run_goes_on(rank: int, step: int, tmp_path: Path) -> None:
    rank_runs.check_a_killed_rank("mpi", tmp_path, rank, step)


def test_a_run_goes_on_with_other_ranks(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    rank_runs.run("mpi", tmp_path, 3, cases=["masks"], epochs=1, checkpoint=path)
    rank_runs.run("mpi", tmp_path, 2, cases=["masks"], epochs=3, resume=path)
    assert_same(rank_runs.parameters(tmp_path, "masks", 1), fit_case("masks", epochs=3)[0])


def test_a_rank_that_fails_ends_all(tmp_path: Path) -> None:
    rank_runs.check_a_rank_that_fails("mpi", tmp_path)


def test_a_rank_that_hangs_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank_runs.check_a_rank_that_hangs("mpi", tmp_path, monkeypatch)


def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    rank_runs.check_the_ranks_end_with_their_launcher("mpi", tmp_path)


@pytest.mark.parametrize("started", ["by mpiexec", "by us"])
def test_train_writes_and_prints_once(started: str, tmp_path: Path) -> None:
    words = (*TRAIN, "--out", str(tmp_path / "two"), "--json")
    if started == "by us":
        done = lstmcore(*words, "--ranks", "2")
    else:
        done = lstmcore(*words, program=(_mpiexec(), "-n", "2"), env=_environment(2))
    rank_runs.check_train_writes_and_prints_once(tmp_path, done)


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
