"""A command that several ranks of MPI run together: started by us, or by mpiexec."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import click

from lstmcore.cli._command import words_of
from lstmcore.distributed import Engine, agree, engines, get_engine, launch
from lstmcore.plugin_calls import UnavailableError
from lstmcore.ranks import launched_rank, launched_size

R = TypeVar("R")
_PROGRAM = "from lstmcore.cli import main; main(prog_name='lstmcore')"


def joined_ranks() -> Engine | None:
    """Return the ranks that this process belongs to, if a launcher of MPI started several."""
    return None if launched_rank() is None or launched_size() == 1 else get_engine("mpi")


def launch_command(name: str, ranks: int) -> None:
    """Run this command again as several ranks, without its option ``--ranks``.

    Raises
    ------
    ValueError
        This process is a rank already.
    UnavailableError, DistributedError
        No MPI; the one message about the end of the ranks.
    """
    if launched_rank() is not None:
        raise ValueError(f"--ranks: expected none under mpiexec, which starts the ranks; got {ranks}")
    (info,) = (info for info in engines() if info.name == "mpi")
    if reason := info.unavailable():
        raise UnavailableError(f"--ranks: {reason}")
    words = words_of(click.get_current_context(), without="--ranks")
    launch([sys.executable, "-c", _PROGRAM, name, *words], ranks)


def agreed(engine: Engine | None, action: Callable[[], R]) -> R:
    """Return the result of `action`, which is done on every rank, or raise on all."""
    return action() if engine is None else agree(engine, action)
