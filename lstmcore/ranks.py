"""Processes that train one model: which of them this is, as a launcher such as mpiexec says, and their error."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

#: The folder of the launcher of this package, which sets it in the ranks that it starts.
LAUNCHER_VARIABLE: Final = "LSTMCORE_LAUNCHER"
#: The file in it with the message about the end; MPI may lose what a rank prints before it ends all.
MESSAGE_FILE: Final = "message"
#: The file in it that the launcher holds a lock on while it lives.
ALIVE_FILE: Final = "alive"

#: Variables of Open MPI, MPICH and Slurm.
_RANKS: Final = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
_SIZES: Final = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


class DistributedError(RuntimeError):
    """A training over several processes cannot start or go on; the message names the rank and the cause.

    Parameters
    ----------
    message
        One line.
    told
        Whether every rank raises it, so that no rank waits for another.

    Examples
    --------
    >>> DistributedError("rank 1: out of memory", told=True).told
    True
    """

    def __init__(self, message: str, *, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


def launched_rank() -> int | None:
    """Return the rank that a launcher gave to this process; None if none started it."""
    return _number(_RANKS)


def launched_size() -> int | None:
    """Return how many ranks the launcher started; None if none did, or if it does not say."""
    return None if launched_rank() is None else _number(_SIZES)


def _number(names: tuple[str, ...]) -> int | None:
    texts = (os.environ.get(name, "") for name in names)
    return next((int(text) for text in texts if text.isdecimal()), None)


def tell_launcher(message: str) -> None:
    """Leave the message about the end for the launcher, if it started this rank; the first message of all stays."""
    folder = os.environ.get(LAUNCHER_VARIABLE)
    if folder is None:
        return
    own = Path(folder, f"{os.getpid()}")
    with contextlib.suppress(OSError):  # another rank was first, or the launcher is gone
        own.write_text(message, encoding="utf-8")
        os.link(own, Path(folder, MESSAGE_FILE))
