"""Running nox sessions side by side."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

from pythons import NEWER, find_python
from session_results import Result, counts_of, failures_of, slowest_of, unchecked_in

ROOT: Final = Path(__file__).resolve().parent.parent
#: Logs and results; git ignores it.
FOLDER: Final = ROOT / "reports" / "sessions"
#: Seconds between two lines about what is running.
HEARTBEAT: Final = 60.0
_CONTROL = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Session:
    """One nox session.

    Parameters
    ----------
    name
        What the table calls it; unique.
    nox
        The name that nox knows, `name` by default.
    arguments
        What follows ``--`` on nox's command line.
    environment
        Variables that are set for it.
    every_processor
        Whether it uses all processors, so that nothing runs beside it.
    needs
        Programs that must be installed, each as names of which one will do (``chromium|google-chrome``); without it
        the session is not run, and the table says so.
    installs_last
        Whether it installs what it has made, so that its environment cannot be made first.
    """

    name: str
    nox: str = ""
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    every_processor: bool = False
    needs: tuple[str, ...] = ()
    installs_last: bool = False


class Runner:
    """Runs sessions, as many side by side as there are processors, and prints what begins, ends and fails.

    Parameters
    ----------
    processors
        How many sessions run at a time.
    out
        Where lines go.
    turn
        The condition on which sessions wait for processors and for their environments; by default a new one.
    """

    def __init__(self, processors: int, out: TextIO, turn: threading.Condition | None = None) -> None:
        self._processors, self._out = processors, out
        self._first, self._free = threading.Lock(), processors
        self._turn = threading.Condition() if turn is None else turn
        self._installing = threading.Lock()  # building the package writes into the tree, so one installs at a time
        self._environments: set[str] = set()  # nox's names of those in use
        self._running: dict[str, float] = {}
        self.stopped = threading.Event()

    def run(self, sessions: Sequence[Session]) -> Iterator[Result]:
        """Run the sessions, begun in their order, and return each result when its session ends."""
        done = threading.Event()
        heartbeat = threading.Thread(target=self._tell, args=(done,), daemon=True)
        heartbeat.start()
        try:
            with ThreadPoolExecutor(self._processors) as pool:
                try:
                    for future in as_completed([pool.submit(self._turn_of, session) for session in sessions]):
                        yield future.result()
                except BaseException:  # Ctrl-C ends what is running; what has not begun must not begin
                    self.stopped.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            done.set()
            heartbeat.join()

    def _turn_of(self, session: Session) -> Result:
        """Run a session once there are processors for it."""
        wanted, environment = self._processors if session.every_processor else 1, session.nox or session.name
        with self._first, self._turn:  # a session that waits for all processors is overtaken by none
            self._turn.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            with self._turn:
                self._turn.wait_for(lambda: environment not in self._environments)
                self._environments.add(environment)
            try:
                return self._run_now(session)
            finally:
                with self._turn:
                    self._environments.remove(environment)
                    self._turn.notify_all()
        finally:
            with self._turn:
                self._free += wanted
                self._turn.notify_all()

    def _run_now(self, session: Session) -> Result:
        missing = [names for names in session.needs if not any(map(_installed, names.split("|")))]
        if missing or self.stopped.is_set():
            why = f"install {' and '.join(missing).replace('|', ' or ')} to run it" if missing else "stopped"
            result = Result(session.name, "NOT RUN", note=why)
            self._say(result.line)
            return result
        self._say(f"{session.name} begins")
        log, started = FOLDER / f"{re.sub(r'[^a-z]+', '-', session.name)}.log", time.monotonic()
        self._running[session.name] = started
        with log.open("w", encoding="utf-8") as file:
            code, cpu = self._nox(session, file)
        del self._running[session.name]
        text = _CONTROL.sub("", log.read_text(encoding="utf-8", errors="replace"))
        result = Result(
            session.name,
            "failed" if code else "passed",
            counts_of(text),
            time.monotonic() - started,
            cpu,
            slowest_of(text),
            unchecked_in(text),
        )
        self._say("\n".join((result.line, *(failures_of(text) if code else ()))))
        return result

    def _nox(self, session: Session, file: TextIO) -> tuple[int, float]:
        """Run nox, the session's environment first, and return the exit status and the CPU seconds."""
        words = [sys.executable, "-m", "nox", "--non-interactive", "-s", session.nox or session.name]
        more = ["--", *session.arguments] if session.arguments else []
        environment = {**os.environ, **session.environment}
        if session.installs_last:
            return _run([*words, *more], environment, file)
        with self._installing:
            code, installing = _run([*words, "--install-only", *more], environment, file)
        if code:
            return code, installing
        code, running = _run([*words, "-R", *more], environment, file)
        return code, installing + running

    def _tell(self, done: threading.Event) -> None:
        while not done.wait(HEARTBEAT):
            now = time.monotonic()
            running = ", ".join(f"{name} {now - started:.0f} s" for name, started in self._running.copy().items())
            self._say(f"running: {running}")

    def _say(self, text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, file=self._out, flush=True)


def _installed(name: str) -> bool:
    """Return whether the program is installed; a Python has to start too."""
    return (find_python(name) if name in NEWER else shutil.which(name)) is not None


def _run(words: Sequence[str], environment: Mapping[str, str], file: TextIO) -> tuple[int, float]:
    """Run a command and return its exit status and the CPU seconds of it and its children."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime
