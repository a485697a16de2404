"""Runs of ranks that every engine of distributed training passes; the tests of an engine call them with its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import rank_program
from lstmcore.distributed import DistributedError, launch
from lstmcore.training import load_model
from rank_cases import CASES, assert_same, fit_case

#: A training of two epochs.
TRAIN: Final = (
    *("train", "japanese-vowels", "--epochs", "2", "--hidden-size", "6"),
    *("--backend", "numpy", "--seed", "4"),
)


def run(engine: str, folder: Path, ranks: int, **settings: Any) -> None:
    """Run the program on some ranks; after a fault too, none of them may be left."""
    words = [sys.executable, rank_program.__file__, str(folder), json.dumps({"name": engine, **settings})]
    try:
        launch(words, ranks, engine)
    finally:
        assert_none_left(str(folder))


def assert_none_left(mark: str) -> None:
    """Wait until no process but this one has `mark` in its command."""
    end = time.monotonic() + 60
    while left := [process for process in Path("/proc").glob("[0-9]*") if _has(process, mark)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def _has(process: Path, mark: str) -> bool:
    try:
        words = (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return False
    return int(process.name) != os.getpid() and mark.encode() in words


def parameters(folder: Path, case: str, rank: int) -> dict[str, Any]:
    """Return what a rank trained."""
    with np.load(folder / f"{case}-{rank}.npz") as stored:
        return dict(stored)


def check_the_result_of_one(engine: str, folder: Path, ranks: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Every case in float64, to 1e-10; rank 0 alone prints."""
    run(engine, folder, ranks, cases=list(CASES))
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for case, stopped in zip(CASES, told, strict=True):
        wanted, history = fit_case(case)
        assert stopped == {case: history.stopped}
        for rank in range(ranks):
            assert_same(parameters(folder, case, rank), wanted)


def check_the_same_bits(engine: str, folder: Path) -> None:
    """Two runs with three ranks."""
    found = []
    for name in ("first", "second"):
        (own := folder / name).mkdir()
        run(engine, own, 3, cases=["masks"])
        found.append(parameters(own, "masks", 2))
    assert_same(*found, 0.0)


def check_a_killed_rank(engine: str, folder: Path, rank: int, step: int) -> None:
    """One message; the checkpoint of the last whole epoch, of four batches, goes on with one rank."""
    path = folder / "run"
    with pytest.raises(DistributedError, match=rf"^rank {rank} was killed by signal 9 \(Killed\)$"):
        run(engine, folder, 2, cases=["masks"], epochs=3, checkpoint=str(path), fault=["kill", rank, step])
    assert {file.name for file in folder.iterdir()} <= {"run"}
    done = step // 4
    assert path.exists() == (done > 0)
    found, history = fit_case("masks", epochs=3, resume=path if done else None)
    assert len(history.epochs) == 3
    assert_same(found, fit_case("masks", epochs=3)[0])


def check_a_rank_that_fails(engine: str, folder: Path) -> None:
    """One message of rank 1."""
    with pytest.raises(DistributedError, match=r"^rank 1: MemoryError: no room for a step$"):
        run(engine, folder, 3, cases=["masks"], fault=["raise", 1, 2])


def check_a_rank_that_hangs(engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others name rank 2 when they have waited long enough."""
    monkeypatch.setenv("LSTMCORE_MPI_TIMEOUT", "20")
    with pytest.raises(DistributedError, match=r"^rank 2 does not answer: rank [01] waited 20 s for a sum"):
        run(engine, folder, 3, cases=["masks"], fault=["hang", 2, 2])


def check_the_ranks_end_with_their_launcher(engine: str, folder: Path, prelude: str = "") -> None:
    """Also where it is killed and can end nothing itself. `prelude` is code that the launcher runs first."""
    path = folder / "run"
    settings = json.dumps({"name": engine, "cases": ["masks"], "epochs": 10**6, "checkpoint": str(path)})
    words = [sys.executable, rank_program.__file__, str(folder), settings]
    program = f"{prelude}\nfrom lstmcore.distributed import launch; launch({words!r}, 2, {engine!r})"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as process:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert_none_left(str(folder))


def lstmcore(*words: str, program: Sequence[str] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of lstmcore, by itself or by a program that starts ranks of it."""
    own = (sys.executable, "-c", "from lstmcore.cli import main; main(prog_name='lstmcore')")
    return subprocess.run([*program, *own, *words], capture_output=True, text=True, check=False, timeout=1200, **more)


def check_train_writes_and_prints_once(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    """`done` is TRAIN with ``--out`` two and ``--json``, on two ranks; its model is that of one."""
    alone = lstmcore(*TRAIN, "--out", str(folder / "one"), "--json")
    assert (alone.returncode, done.returncode) == (0, 0), done.stderr
    wanted, found = (json.loads(one.stdout) for one in (alone, done))
    assert len(found["history"]["epochs"]) == len(wanted["history"]["epochs"]) == 2
    assert done.stderr.count("the model goes to") == 1
    one, two = (load_model(folder / name).parameters for name in ("one", "two"))
    assert_same(two, one, 1e-4)
    assert sorted(file.name for file in folder.iterdir()) == ["one", "two"]
