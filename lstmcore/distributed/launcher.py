"""Ranks on this machine, of MPI or of gloo: started with what these need, watched, and ended with one message."""

from __future__ import annotations

import importlib.util
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
from lstmcore.file_locks import hold_while_alive
from lstmcore.plugin_calls import UnavailableError
from lstmcore.ranks import ALIVE_FILE, LAUNCHER_VARIABLE, LOST, MESSAGE_FILE, DistributedError
from lstmcore.threads import THREADS_VARIABLE

#: Engines whose ranks `launch` starts.
STARTERS: Final = ("mpi", "gloo")

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
#: Of gloo: the interface of this machine alone, since the address of its name may be of none.
_LOOPBACK: Final = {"linux": {"GLOO_SOCKET_IFNAME": "lo"}}
#: Numbers of threads; the processors are shared among the ranks where the user does not set them.
_THREADS: Final = (THREADS_VARIABLE, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_OWN: Final = "lstmcore: error: "
#: Where the text of Open MPI, PRRTE, MPICH or torchrun about an end begins.
_NOISE: Final = re.compile(
    r"-{20,}|={20,}|(prterun|prted|mpirun|mpiexec|orterun|hydra)\b|\[[\w.-]+:\d+\]|Abort\(|application called MPI_Abort"
    r"|\[?E\d{4} \d\d:\d\d:\d\d"
)
#: A single line of torchrun that is no error, and tells of an end or of nothing.
_ASIDE: Final = re.compile(r"\[?[WI]\d{4} \d\d:\d\d:\d\d")
_KILLED: Final = re.compile(r"process rank (?P<rank>\d+) .*?exited on\s+signal (?P<signal>\d+)", re.DOTALL)
_KILLED_OF_TORCHRUN: Final = re.compile(r"failed \(exitcode: -(?P<signal>\d+)\) local_rank: (?P<rank>\d+)")
_END_S: Final = 10.0  # for mpiexec to end the ranks


def launch(command: Sequence[str], ranks: int, engine: str = "mpi") -> None:
    """Run a command as several ranks on this machine, and wait for them.

    What the ranks write passes through, but for errors: of all that the ranks and their starter say about the end of a
    run, one message is left. The processors are shared among the ranks where no variable sets the number of threads.

    Parameters
    ----------
    command
        The program with its arguments.
    ranks
        At least 1.
    engine
        ``"mpi"``, whose mpiexec starts them, or ``"gloo"``, where PyTorch's torchrun does.

    Raises
    ------
    ValueError
        `ranks` is below 1, or an unknown engine.
    UnavailableError
        There is no mpiexec, or no PyTorch.
    DistributedError
        A rank failed or was killed; the message names it where its starter does.

    Examples
    --------
    >>> launch([sys.executable, "train_on_ranks.py"], 2)  # doctest: +SKIP
    """
    ranks = integer("ranks", ranks, 1)
    if engine not in STARTERS:
        raise ValueError(f"engine: expected one of {', '.join(STARTERS)}; got {engine!r}")
    words = [*(_torchrun(ranks) if engine == "gloo" else (_mpiexec(), "-n", str(ranks))), *command]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with (
        # On Windows a rank that still ends has the lock file open; it removes the folder itself.
        tempfile.TemporaryDirectory(prefix="lstmcore-", ignore_cleanup_errors=sys.platform == "win32") as folder,
        _locked(Path(folder, ALIVE_FILE)),
        subprocess.Popen(words, env={**_environment(ranks), LAUNCHER_VARIABLE: folder}, **pipes) as process,  # noqa: S603  (the caller's command)
    ):
        messages = _Messages(Path(folder, MESSAGE_FILE), "torchrun" if engine == "gloo" else "mpiexec")
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
    with path.open("wb") as file:
        hold_while_alive(file)
        yield


def _mpiexec() -> str:
    """Return the mpiexec beside this Python, where a wheel of an MPI puts it, or else that of the path."""
    own = str(Path(sys.executable).parent)
    found = shutil.which("mpiexec", path=own) or shutil.which("mpiexec")
    if found is None:
        raise UnavailableError(f"expected an MPI with mpiexec; found none: {installing('mpi')}")
    return found


def _torchrun(ranks: int) -> tuple[str, ...]:
    """Return the words that start ranks by torchrun, which is a part of PyTorch."""
    if importlib.util.find_spec("torch") is None:
        raise UnavailableError(f"PyTorch is not installed: {installing('torch')}")
    ours = ("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks), "--no-python")
    return (sys.executable, "-m", "torch.distributed.run", *ours)


def _environment(ranks: int) -> dict[str, str]:
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    return {**_SETTINGS, **_LOOPBACK.get(sys.platform, {}), **dict.fromkeys(_THREADS, threads), **os.environ}


def _end(process: subprocess.Popen[str]) -> None:
    """End the starter, which ends the ranks; if it does not in time, they end with the launcher."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Messages:
    """The standard error of all ranks and of their starter: what passes, and what tells of an end.

    Parameters
    ----------
    file
        Where a rank leaves its message about the end.
    starter
        The program that starts the ranks, for the message.
    """

    def __init__(self, file: Path, starter: str) -> None:
        self.file, self.starter, self.error, self.rest, self.ends = file, starter, "", list[str](), False

    def read(self, process: subprocess.Popen[str]) -> None:
        """Read all, and let pass what is no message about an end."""
        for text in process.stderr or ():
            line = text.replace("\0", "")
            if line.startswith(_OWN):
                self.error = self.error or line.removeprefix(_OWN).strip()
            elif self.error or self.ends or _NOISE.match(line):
                self.rest.append(line)
                self.ends = True
            elif _ASIDE.match(line):
                self.rest.append(line)
            else:
                sys.stderr.write(line)

    def cause(self, code: int) -> str:
        """Return the one message about a run that ended with that code."""
        told = self.file.read_text(encoding="utf-8") if self.file.exists() else self.error
        if told and not told.startswith(LOST):
            return told
        text = "".join(self.rest)
        if killed := _KILLED.search(text) or _KILLED_OF_TORCHRUN.search(text):
            number = int(killed["signal"])
            return f"rank {killed['rank']} was killed by signal {number} ({signal.strsignal(number)})"
        if told:
            return told
        lines = [line.strip() for line in self.rest if any(map(str.isalnum, line))]
        return f"{self.starter} ended with code {code}: {' '.join(lines)[:400] or 'it does not say why'}"

    def show_rest(self) -> None:
        """Write what was held back, after a run that ended well."""
        sys.stderr.writelines(self.rest)
