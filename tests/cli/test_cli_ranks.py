"""``lstmcore train --ranks``: what is refused before any rank starts, and what is made of the ends of mpiexec."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from cli_runs import error
from lstmcore.distributed import DistributedError, launch
from lstmcore.plugin_calls import UnavailableError

TRAIN = ("train", "co2", "--epochs", 1)

#: What Open MPI 5 writes when a rank is killed.
KILLED = """\
--------------------------------------------------------------------------
prterun noticed that process rank 1 with PID 4023 on node here exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""

#: What torchrun of PyTorch 2.13 writes when a rank is killed, shortened.
KILLED_OF_TORCHRUN = """\
W1129 10:14:05.481000 413 site-packages/torch/distributed/elastic/multiprocessing/api.py:1012] Sending process 420
E1129 10:14:05.502000 413 torch/distributed/elastic/multiprocessing/api.py:986] failed (exitcode: -9) local_rank: 1 \
(pid: 421) of binary: /usr/bin/python3
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without MPI: a folder that is the path, in which no mpiexec is yet."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def make_mpiexec(folder: Path, text: str, code: int) -> None:
    """Write an mpiexec that starts nothing, leaves a text on standard error, and ends with a code."""
    (folder / "text").write_text(text)
    program = folder / "mpiexec"
    program.write_text(f"#!/bin/sh\nwhile read -r line; do echo \"$line\" >&2; done < '{folder}/text'\nexit {code}\n")
    program.chmod(0o755)


def test_no_ranks_are_refused() -> None:
    assert error(*TRAIN, "--ranks", 0).startswith("--ranks: expected a whole number >= 1; got '0'")


def test_ranks_need_mpi4py(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert error(*TRAIN, "--ranks", 2).startswith("--ranks: mpi4py is not installed: pip install ")


def test_the_other_engine_is_named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mpi4py" else object())
    for module in (importlib.import_module(name) for name in ("lstmcore_torch.gloo", "lstmcore.distributed.mpi")):
        if hasattr(module, "find_spec"):
            monkeypatch.setattr(module, "find_spec", importlib.util.find_spec)
    told = error(*TRAIN, "--ranks", 2)
    assert told.startswith("--ranks: mpi4py is not installed: pip install ")
    assert told.endswith(", or give --engine gloo")


def test_an_engine_is_for_several_ranks() -> None:
    assert error(*TRAIN, "--engine", "gloo") == "--engine: only with --ranks of 2 or more; got 'gloo'"
    assert error(*TRAIN, "--ranks", 2, "--engine", "nccl").startswith("--engine: expected one of mpi, gloo; got 'nccl'")


def test_a_launch_by_torchrun_needs_pytorch(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"^PyTorch is not installed: pip install "):
        launch(["true"], 2, "gloo")
    with pytest.raises(ValueError, match=r"^engine: expected one of mpi, gloo; got 'nccl'$"):
        launch(["true"], 2, "nccl")


def test_a_launch_needs_mpiexec(bare: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^expected an MPI with mpiexec; found none: pip install "):
        launch(["true"], 2)


def test_ranks_of_ranks_are_refused(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    assert error(*TRAIN, "--ranks", 2) == "--ranks: expected none under mpiexec, which starts the ranks; got 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KILLED, r"^rank 1 was killed by signal 9 \(Killed\)$"),
        (f"lstmcore: error: rank 0: no data\n{KILLED}", r"^rank 0: no data$"),
        (f"lstmcore: error: another rank has ended: rank 0 waited\n{KILLED_OF_TORCHRUN}", r"^rank 1 was killed by sig"),
        ("lstmcore: error: another rank has ended: rank 0 waited\n", r"^another rank has ended: rank 0 waited$"),
        (KILLED_OF_TORCHRUN, r"^rank 1 was killed by signal 9 \(Killed\)$"),
        ("prterun: no such host\n", r"^mpiexec ended with code 3: prterun: no such host$"),
        ("", r"^mpiexec ended with code 3: it does not say why$"),
    ],
)
def test_an_end_is_one_message(bare: Path, text: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What the ranks wrote before it passes through."""
    make_mpiexec(bare, f"epoch 1/2\n{text}", 3)
    with pytest.raises(DistributedError, match=message):
        launch(["true"], 2)
    assert capfd.readouterr().err == "epoch 1/2\n"


def test_an_end_without_fault_keeps_every_line(bare: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_mpiexec(bare, f"{KILLED}epoch 1/2\n", 0)
    launch(["true"], 2)
    assert capfd.readouterr().err == f"{KILLED}epoch 1/2\n"
