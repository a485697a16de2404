"""Ranks of gloo, which PyTorch brings: the result of one process, and one message and no process after a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rank_runs
from lstmcore.distributed import engines, get_engine, launch
from lstmcore.ranks import launched_engine, launched_rank, launched_size
from rank_cases import CASES, assert_same
from rank_runs import TRAIN, lstmcore
from windows_locks import SYSTEMS, use_locks_of

pytest.importorskip("torch", reason="the session peers installs it")

_CALLS = """
import json, sys
import numpy as np
from lstmcore.distributed import get_engine
engine = get_engine("gloo")
wide = np.arange(5, dtype=np.float32) + 10 * engine.rank
engine.allreduce_sum(wide)
exact = np.array([0.1, 0.2]) * (engine.rank + 1)
engine.allreduce_sum(exact)
sent = [np.full(3, engine.rank, dtype) for dtype in (np.uint8, np.int64, np.float64)]
for buffer in (*sent, np.zeros(0)):
    engine.broadcast(buffer, 1)
engine.barrier()
found = [engine.rank, engine.size, wide.tolist(), exact.tolist(), [one.tolist() for one in sent]]
open(f"{sys.argv[1]}/{engine.rank}", "w").write(json.dumps(found))
"""


def test_it_is_found_and_alone_it_is_one_rank() -> None:
    """In a process of its own, since a group stays open."""
    assert "gloo" in [info.name for info in engines()]
    code = "from lstmcore.distributed import get_engine as g; e = g('gloo'); e.barrier(); print(e.rank, e.size)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 1\n"


def test_the_calls_of_the_protocol(tmp_path: Path) -> None:
    launch([sys.executable, "-c", _CALLS, str(tmp_path)], 2, "gloo")
    for rank in range(2):
        own, size, wide, exact, sent = json.loads((tmp_path / str(rank)).read_text())
        assert (own, size, wide) == (rank, 2, [10.0, 12.0, 14.0, 16.0, 18.0])
        assert exact == [0.1 + 0.2, 0.2 + 0.4]
        assert sent == [[1, 1, 1]] * 3


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_the_result_of_one(ranks: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And the same bits on every rank."""
    rank_runs.check_the_result_of_one("gloo", tmp_path, ranks, capfd)
    for case in CASES:
        first, *others = (rank_runs.parameters(tmp_path, case, rank) for rank in range(ranks))
        for other in others:
            assert_same(other, first, 0.0)


def test_the_same_ranks_give_the_same_bits(tmp_path: Path) -> None:
    rank_runs.check_the_same_bits("gloo", tmp_path)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_goes_on(rank: int, tmp_path: Path) -> None:
    rank_runs.check_a_killed_rank("gloo", tmp_path, rank, 6)


def test_a_rank_that_fails_ends_all(tmp_path: Path) -> None:
    rank_runs.check_a_rank_that_fails("gloo", tmp_path)


def test_a_rank_that_hangs_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank_runs.check_a_rank_that_hangs("gloo", tmp_path, monkeypatch)


@pytest.mark.parametrize("system", SYSTEMS)
def test_ranks_end_with_their_launcher(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the locks of Windows too, which has no fcntl: the launcher and the ranks imported it."""
    use_locks_of(system, tmp_path / "site", monkeypatch)
    (own := tmp_path / "own").mkdir()
    rank_runs.check_the_ranks_end_with_their_launcher("gloo", own)


@pytest.mark.parametrize("started", ["by torchrun", "by us"])
def test_train_writes_and_prints_once(started: str, tmp_path: Path) -> None:
    (own := tmp_path / "own").mkdir()
    words = (*TRAIN, "--out", str(own / "two"), "--json")
    if started == "by us":
        done = lstmcore(*words, "--ranks", "2", "--engine=gloo")
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        program = tmp_path / "program.py"
        program.write_text("from lstmcore.cli import main; main(prog_name='lstmcore')")
        line = [*torchrun, str(program), *words]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=1200)
    rank_runs.check_train_writes_and_prints_once(own, done)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch-size", "1"], "distributed: expected at most 1 ranks"),
        (["--resume", "gone"], "gone: expected a file that is there"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, tmp_path: Path) -> None:
    done = lstmcore(*TRAIN, *words, "--out", str(tmp_path / "model"), "--ranks", "2", "--engine", "gloo", "--quiet")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "has not answered for" not in line]  # on a busy machine
    assert len(lines) == 1 and lines[0].startswith(f"lstmcore: error: {told}"), done.stderr
    assert not list(tmp_path.iterdir())


#: What torchrun sets.
PLACE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "a",
}


def test_torchrun_counts_before_the_ranks_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm starts torchrun as a rank of its own. The first four variables alone may be another program's."""
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PMI_RANK", "3")
    assert (launched_engine(), launched_rank(), launched_size()) == ("gloo", 0, 1)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert (launched_engine(), launched_rank()) == ("mpi", 3)
    monkeypatch.delenv("PMI_RANK")
    assert launched_engine() is None


def test_ranks_within_ranks_are_refused() -> None:
    place = {**PLACE, "WORLD_SIZE": "2"}
    done = lstmcore(*TRAIN, "--ranks", "2", env={**os.environ, **place})
    assert done.stderr.startswith("lstmcore: error: --ranks: expected none under torchrun")


def test_a_place_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**PLACE, "WORLD_SIZE": "two"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Exception, match="WORLD_SIZE: expected a whole number, as torchrun sets it; got 'two'"):
        get_engine("gloo")


def test_a_process_has_one_engine() -> None:
    """Two trainings in one process share it; a second group of PyTorch would be refused."""
    code = "from lstmcore.distributed import get_engine; print(get_engine('gloo') is get_engine('gloo'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
