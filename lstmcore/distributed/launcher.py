"""Ranks of MPI on this machine: started with what it needs, watched, and ended with one message."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from lstmcore.config import integer
from lstmcore.extras import installing
from lstmcore.plugin_calls import UnavailableError
from lstmcore.ranks import ALIVE_FILE, LAUNCHER_VARIABLE, MESSAGE_FILE, DistributedError
from lstmcore.threads import THREADS_VARIABLE

#: Settings of Open MPI 4 and 5 for one machine; MPICH needs none. More ranks than processors, a user who is root as
#: in a container, no rank bound to one processor (its threads would share it), waits that yield the processor.
_SETTINGS: Final = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
#: Numbers of threads; the processors are shared among the ranks where the user does not set them.
_THREADS: Final = (THREADS_VARIABLE, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_OWN: Final = "lstmcore: error: "
#: Where the text of Open MPI, PRRTE or MPICH about an end begins.
_NOISE: Final = re.compile(
    r"-{20,}|={20,}|(prterun|prted|mpirun|mpiexec|orterun|hydra)\b|\[[\w.-]+:\d+\]|Abort\(|application called MPI_Abort"
)
_KILLED: Final = re.compile(r"process rank (\d+) .*?exited on\s+signal (\d+)", re.DOTALL)
_END_S: Final = 10.0  # for mpiexec to end the ranks


def launch(command: Sequence[str], ranks: int) -> None:
    """Run a command as several ranks of MPI on this machine, and wait for them.

    What the ranks write passes through, but for errors: of all that the ranks and MPI say about the end of a run, one
    message is left. The processors are shared among the ranks where no variable sets the number of threads.

    Parameters
    ----------
    command
        The program with its arguments.
    ranks
        At least 1.

    Raises
    ------
    ValueError
        `ranks` is below 1.
    UnavailableError
        There is no mpiexec.
    DistributedError
        A rank failed or was killed; the message names it where MPI does.

    Examples
    --------
    >>> launch([sys.executable, "train_on_ranks.py"], 2)  # doctest: +SKIP
    """
    ranks = integer("ranks", ranks, 1)
    words = [_mpiexec(), "-n", str(ranks), *command]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with (
        tempfile.TemporaryDirectory(prefix="lstmcore-") as folder,
        _locked(Path(folder, ALIVE_FILE)),
        subprocess.Popen(words, env={**_environment(ranks), LAUNCHER_VARIABLE: folder}, **pipes) as process,  # noqa: S603  (the caller's command)
    ):
        messages = _Messages(Path(folder, MESSAGE_FILE))
        reader = threading.Thread(target=messages.read, args=(process,), daemon=True)
        reader.start()
        try:
            process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            reader.join(_END_S)
        if process.returncode:
            raise DistributedError(messages.cause(process.returncode))
        messages.show_rest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on a new file, which no child inherits: it ends with this process, however that ends."""
    import fcntl  # Windows has none, and no mpiexec that this starts

    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mpiexec() -> str:
    """Return the mpiexec beside this Python, where a wheel of an MPI puts it, or else that of the path."""
    own = str(Path(sys.executable).parent)
    found = shutil.which("mpiexec", path=own) or shutil.which("mpiexec")
    if found is None:
        raise UnavailableError(f"expected an MPI with mpiexec; found none: {installing('mpi')}")
    return found


def _environment(ranks: int) -> dict[str, str]:
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    return {**_SETTINGS, **dict.fromkeys(_THREADS, threads), **os.environ}


def _end(process: subprocess.Popen[str]) -> None:
    """End mpiexec, which ends the ranks; if it does not in time, they end with the launcher."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Messages:
    """The standard error of all ranks and of mpiexec: what passes, and what tells of an end.

    Parameters
    ----------
    file
        Where a rank leaves its message about the end.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.error, self.rest = file, "", list[str]()

    def read(self, process: subprocess.Popen[str]) -> None:
        """Read all, and let pass what is no message about an end."""
        for text in process.stderr or ():
            line = text.replace("\0", "")
            if line.startswith(_OWN):
                self.error = self.error or line.removeprefix(_OWN).strip()
            elif self.error or self.rest or _NOISE.match(line):
                self.rest.append(line)
            else:
                sys.stderr.write(line)

    def cause(self, code: int) -> str:
        """Return the one message about a run that ended with that code."""
        if self.file.exists():
            return self.file.read_text(encoding="utf-8")
        if self.error:
            return self.error
        text = "".join(self.rest)
        if killed := _KILLED.search(text):
            number = int(killed[2])
            return f"rank {killed[1]} was killed by signal {number} ({signal.strsignal(number)})"
        lines = [line.strip() for line in self.rest if any(map(str.isalnum, line))]
        return f"mpiexec ended with code {code}: {' '.join(lines)[:400] or 'it does not say why'}"

    def show_rest(self) -> None:
        """Write what was held back, after a run that ended well."""
        sys.stderr.writelines(self.rest)
