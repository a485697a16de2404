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
