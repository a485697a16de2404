"""Processes that train one model: which of them this is, as a launcher such as mpiexec says, and how they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from lstmcore.file_locks import wait_for_end

#: The folder of the launcher of this package, which sets it in the ranks that it starts.
LAUNCHER_VARIABLE: Final = "LSTMCORE_LAUNCHER"
#: The file in it with the message about the end; MPI may lose what a rank prints before it ends all.
MESSAGE_FILE: Final = "message"
#: The file in it that the launcher holds a lock on while it lives.
ALIVE_FILE: Final = "alive"

#: Seconds that a rank waits for the others.
TIMEOUT_VARIABLE: Final = "LSTMCORE_MPI_TIMEOUT"
TIMEOUT_S: Final = 600.0
#: Seconds of waiting from which on a rank tells others that it is here, and looks less often.
LONG_S: Final = 1.0
#: Seconds for the others to answer after a timeout.
ROLL_CALL_S: Final = 3.0
_SPINS: Final = 200  # looks before the first sleep: a sum of small buffers ends within them
_SLEEP_S: Final = 1e-4
_LONG_SLEEP_S: Final = 2e-3
#: How the message of a rank begins that only knows that it lost another one; a launcher may know more.
LOST: Final = "another rank has ended"

#: Variables of torchrun, all of which are set. Other programs set the first four for purposes of their own.
_TORCHRUN: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
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


def launched_engine() -> str | None:
    """Return the engine of the launcher that started this process: mpi, or gloo for torchrun; None for none.

    Slurm may start torchrun as a rank of its own, so torchrun's variables count first.
    """
    if all(os.environ.get(name) for name in _TORCHRUN):
        return "gloo"
    return None if _number(_RANKS) is None else "mpi"


def launched_rank() -> int | None:
    """Return the rank that a launcher gave to this process; None if none started it."""
    return _number(_TORCHRUN[:1]) if launched_engine() == "gloo" else _number(_RANKS)


def launched_size() -> int | None:
    """Return how many ranks the launcher started; None if none did, or if it does not say."""
    engine = launched_engine()
    return None if engine is None else _number(_TORCHRUN[1:2] if engine == "gloo" else _SIZES)


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


def tell_end(message: str) -> None:
    """Show the message about the end in one line, before the process ends, and leave it for the launcher."""
    tell_launcher(message)
    print(f"lstmcore: error: {message}", file=sys.stderr, flush=True)  # noqa: T201  (this ends the process)


def asked_timeout() -> float:
    """Return the seconds in ``LSTMCORE_MPI_TIMEOUT``, 600 if it is not set.

    Raises
    ------
    ValueError
        No number above 0.
    """
    text = os.environ.get(TIMEOUT_VARIABLE)
    if text is None:
        return TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{TIMEOUT_VARIABLE}: expected seconds, a number > 0; got {text!r}")
    return seconds


def pause(looks: int, waited: float) -> None:
    """Give the processor to others between two looks, since ranks may be more than processors.

    Parameters
    ----------
    looks, waited
        How often a rank has looked, and for how many seconds.
    """
    time.sleep(0 if looks < _SPINS else _SLEEP_S if waited < LONG_S else _LONG_SLEEP_S)


def format_wait(silent: Collection[int], library: str, waited: str) -> str:
    """Return the message about a wait that took too long; `silent` are the ranks that do not wait too."""
    names = ", ".join(map(str, sorted(silent)))
    who = f"rank {names} does not answer" if silent else f"all ranks answer, but {library} does not end it"
    return f"{who}: {waited} ({TIMEOUT_VARIABLE})"


def end_with_launcher() -> None:
    """End this rank when the launcher of this package is gone, if that started it; call it once."""
    folder = os.environ.get(LAUNCHER_VARIABLE)
    if folder is not None:
        threading.Thread(target=_end_with, args=(folder,), daemon=True).start()


def _end_with(folder: str) -> None:
    """Wait for the launcher, whose lock on a file ends with it; remove its folder then."""
    with open(Path(folder, ALIVE_FILE), "rb") as alive:
        wait_for_end(alive)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(2)
