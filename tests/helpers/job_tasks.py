"""Tasks of workers: what they return, and how they fail; each leaves a line in the file LOG for every try."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

from lstmcore.threads import THREADS_VARIABLE, asked_threads

#: Variable with the file that has a line for each try.
LOG = "JOB_TASKS_LOG"


def work(text: str) -> str:
    """Return the text backwards.

    One of ``dies``, ``fails``, ``warns``, ``dies-once`` and ``fails-once`` does that before.
    """
    log = Path(os.environ[LOG])
    before = log.read_text().split() if log.exists() else []
    with log.open("a") as stream:
        stream.write(f"{text}\n")
    if not text.endswith("-once") or text not in before:
        if text.startswith("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if text.startswith("fails"):
            raise OSError(f"{text} cannot be read")
        if text.startswith("warns"):
            warnings.warn("overflow of a task", RuntimeWarning, stacklevel=1)
    return text[::-1]


def tell_threads(text: str) -> str:
    """Return the number of threads that this task was given, and the variable of its process."""
    return f"{asked_threads()} {os.environ.get(THREADS_VARIABLE)}"


def have_processors(count: int) -> None:
    """Make Dask believe that this process runs on a machine with so many processors."""
    import dask.system

    dask.system.CPU_COUNT = count


def die_at_once(*arguments: object) -> None:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)
