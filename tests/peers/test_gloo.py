"""Ranks of gloo, which PyTorch brings: the result of one process, and one message and no process after a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rank_program
from lstmcore.distributed import DistributedError, engines, get_engine, launch
from lstmcore.ranks import launched_engine, launched_rank, launched_size
from lstmcore.training import load_model
from rank_cases import CASES, assert_same, fit_case

pytest.importorskip("torch", reason="the session peers installs it")

TRAIN = ["train", "japanese-vowels", "--epochs", "2", "--hidden-size", "6", "--backend", "numpy", "--seed", "4"]
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


def run(folder: Path, ranks: int, **settings: Any) -> None:
    launch(
        [sys.executable, rank_program.__file__, str(folder), json.dumps({"name": "gloo", **settings})], ranks, "gloo"
    )


def parameters(folder: Path, case: str, rank: int) -> dict[str, Any]:
    with np.load(folder / f"{case}-{rank}.npz") as stored:
        return dict(stored)


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
    """In float64 to 1e-10, every case; and the same bits on every rank."""
    run(tmp_path, ranks, cases=list(CASES))
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for case, stopped in zip(CASES, told, strict=True):  # rank 0 alone prints
        wanted, history = fit_case(case)
        assert stopped == {case: history.stopped}
        for rank in range(ranks):
            assert_same(parameters(tmp_path, case, rank), wanted)
            assert_same(parameters(tmp_path, case, rank), parameters(tmp_path, case, 0), 0.0)


def test_the_same_ranks_give_the_same_bits(tmp_path: Path) -> None:
    found = []
    for name in ("first", "second"):
        (folder := tmp_path / name).mkdir()
        run(folder, 3, cases=["masks"])
        found.append(parameters(folder, "masks", 2))
    assert_same(*found, 0.0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_goes_on(rank: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(DistributedError, match=rf"^rank {rank} was killed by signal 9 \(Killed\)$"):
        run(tmp_path, 2, cases=["masks"], epochs=3, checkpoint=str(path), fault=["kill", rank, 6])
    parameters, history = fit_case("masks", epochs=3, resume=path)
    assert len(history.epochs) == 3
    assert_same(parameters, fit_case("masks", epochs=3)[0])


def test_a_rank_that_fails_ends_all(tmp_path: Path) -> None:
    with pytest.raises(DistributedError, match=r"^rank 1: MemoryError: no room for a step$"):
        run(tmp_path, 2, cases=["masks"], fault=["raise", 1, 2])


def test_a_rank_that_hangs_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTMCORE_MPI_TIMEOUT", "20")
    with pytest.raises(DistributedError, match=r"^rank 2 does not answer: rank [01] waited 20 s for a sum"):
        run(tmp_path, 3, cases=["masks"], fault=["hang", 2, 2])


def lstmcore(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    own = [sys.executable, "-c", "from lstmcore.cli import main; main(prog_name='lstmcore')"]
    return subprocess.run([*own, *words], capture_output=True, text=True, check=False, timeout=1200, **more)


@pytest.mark.parametrize("started", ["by torchrun", "by us"])
def test_train_writes_and_prints_once(started: str, tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    alone = lstmcore(*TRAIN, "--out", str(files[0]), "--json")
    words = [*TRAIN, "--out", str(files[1]), "--json"]
    if started == "by us":
        done = lstmcore(*words, "--ranks", "2", "--engine=gloo")
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        program = tmp_path / "program.py"
        program.write_text("from lstmcore.cli import main; main(prog_name='lstmcore')")
        done = subprocess.run(
            [*torchrun, str(program), *words], capture_output=True, text=True, check=False, timeout=1200
        )
        program.unlink()
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
