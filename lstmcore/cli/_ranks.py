"""A command that several ranks run together: started by us, or by mpiexec or torchrun."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import click

from lstmcore.cli._command import words_of
from lstmcore.distributed import Engine, agree, engines, get_engine, launch
from lstmcore.distributed.launcher import STARTERS
from lstmcore.plugin_calls import UnavailableError
from lstmcore.ranks import launched_engine, launched_rank, launched_size

R = TypeVar("R")
_PROGRAM = "from lstmcore.cli import main; main(prog_name='lstmcore')"


def joined_ranks() -> Engine | None:
    """Return the ranks that this process belongs to, if a launcher of MPI or PyTorch started several."""
    name = launched_engine()
    return None if name is None or launched_size() == 1 else get_engine(name)


def launch_command(name: str, ranks: int, engine: str) -> None:
    """Run this command again as several ranks of an engine, without its options ``--ranks`` and ``--engine``.

    Raises
    ------
    ValueError
        This process is a rank already.
    UnavailableError, DistributedError
        The engine cannot run here; the one message about the end of the ranks.
    """
    if launched_rank() is not None:
        starter = "mpiexec" if launched_engine() == "mpi" else "torchrun"
        raise ValueError(f"--ranks: expected none under {starter}, which starts the ranks; got {ranks}")
    reasons = {info.name: info.unavailable() for info in engines() if info.name in STARTERS}
    if reason := reasons.get(engine, "it is not installed with this lstmcore"):
        others = [other for other in STARTERS if other != engine and reasons.get(other, "") is None]
        raise UnavailableError(f"--ranks: {reason}{''.join(f', or give --engine {other}' for other in others)}")
    words = words_of(click.get_current_context(), "--ranks", "--engine")
    launch([sys.executable, "-c", _PROGRAM, name, *words], ranks, engine)


def agreed(engine: Engine | None, action: Callable[[], R]) -> R:
    """Return the result of `action`, which is done on every rank, or raise on all."""
    return action() if engine is None else agree(engine, action)
