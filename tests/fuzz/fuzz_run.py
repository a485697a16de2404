"""The fuzzer: ``python tests/fuzz/fuzz_run.py --minutes M``. Workers take inputs by seed; this process watches them.

An input is a target and bytes. A worker tells each input before it runs it, so that an input which ends the process, or
never ends, is known. What fails is shortened by Hypothesis and written to ``tests/fuzz/found``: add the file to
``tests/fuzz/corpus``, which the fast tests run, and mend the code. ``--atheris NAME`` lets atheris choose the bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import importlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
FOUND: Final = HERE / "found"
CORPUS: Final = HERE / "corpus"
#: Seconds of CPU time without an answer after which an input counts as one that never ends; and seconds by the clock,
#: since one that waits takes no CPU time, and a busy machine gives little.
PATIENCE_S: Final = 60.0
WAIT_S: Final = 1200.0
#: Bytes of address space of a worker: an array beyond it is a MemoryError, and no worker ends the machine.
MEMORY: Final = 8 << 30
#: Inputs and seconds of one worker; then a new one starts, so that no memory is gathered and every target has its turn.
TURN: Final = 40_000
TURN_S: Final = 120.0
#: Seconds for importing and compiling, before a worker's first input.
PREPARE_S: Final = 3600.0
#: A target takes turns in proportion to ``1 / cost``, up to this cost.
SHARES: Final = 64


def run_input(name: str, data: bytes) -> None:
    """Run one input of a target; raises what the target raises."""
    from fuzz_source import Source
    from fuzz_targets import TARGETS

    TARGETS[name].run(Source(data))


def prepare(folder: str) -> None:
    """Set what a process needs that runs inputs: a folder of its own, limits, no output."""
    sys.path.append(str(HERE.parent / "helpers"))  # samples of files
    os.environ["LSTMCORE_FUZZ_FOLDER"] = folder
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def work(seed: int, names: list[str], seconds: float) -> None:
    """Run inputs from `seed` on until the turn is over or standard output closes."""
    from fuzz_source import random_bytes
    from fuzz_targets import TARGETS

    out = os.fdopen(os.dup(1), "w", buffering=1)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    faulthandler.enable()
    for name in names:
        for package in TARGETS[name].needs:  # before the clock starts: on a busy machine an import takes minutes
            importlib.import_module(package)
        TARGETS[name].prepare()
    plan = [name for name in names for _ in range(max(SHARES // TARGETS[name].cost, 1))]
    random.Random(seed).shuffle(plan)
    out.write("READY\n")
    end = time.monotonic() + seconds
    for number in range(seed, seed + TURN):
        name = plan[number % len(plan)]
        out.write(f"{name} {number}\n")
        try:
            run_input(name, random_bytes(number))
        except BaseException:
            lines = traceback.format_exc().strip().splitlines()
            out.write(f"FAILED {name} {number} {lines[-1][:300]!r}\n")
        if time.monotonic() > end:
            break
    out.write("DONE\n")


def minimise(name: str, data: bytes) -> bytes:
    """Return a short input that fails in the same way, found by Hypothesis."""
    from hypothesis import HealthCheck, find, settings
    from hypothesis import strategies as st
    from hypothesis.errors import NoSuchExample

    def kind(content: bytes) -> str | None:
        try:
            run_input(name, content)
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} {last.filename}:{last.lineno}"
        return None

    wanted = kind(data)
    if wanted is None:
        return data
    for size in (len(data) // 8, len(data) // 4, len(data) // 2):
        if kind(data[:size]) == wanted:
            data = data[:size]
            break
    quiet = settings(max_examples=300, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    with contextlib.suppress(NoSuchExample):
        shorter = find(st.binary(max_size=len(data)), lambda content: kind(content) == wanted, settings=quiet)
        data = min(data, shorter, key=len)
    return data


def keep(name: str, data: bytes) -> Path:
    """Write an input that failed."""
    folder = FOUND / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    return path


def _children_s() -> float:
    """Return the seconds of CPU time that ended processes of this one took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Watched:
    """A worker and the input that it runs."""

    def __init__(self, seed: int, names: list[str], folder: str, seconds: float) -> None:
        command = [sys.executable, str(Path(__file__)), "--worker", str(seed), "--seconds", str(seconds)]
        command += ["--folder", folder, "--only", *names]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.current, self.rest, self.ready, self.done = "", "", False, False
        self.since, self.since_cpu = time.monotonic(), 0.0

    def lines(self) -> list[str]:
        """Return the lines that came since the last call."""
        assert self.process.stdout is not None
        try:
            piece = os.read(self.process.stdout.fileno(), 1 << 16).decode()
        except BlockingIOError:
            return []
        *whole, self.rest = (self.rest + piece).split("\n")
        if whole:
            self.since, self.since_cpu = time.monotonic(), self.cpu_s()
        return whole

    def cpu_s(self) -> float:
        """Return the seconds of CPU time that the process took; 0 if it has ended, or on a system that does not say."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def hangs(self) -> bool:
        """Return whether it has not answered for too long."""
        wall, cpu = (WAIT_S, PATIENCE_S) if self.ready else (PREPARE_S, PREPARE_S)
        return time.monotonic() - self.since > wall or self.cpu_s() - self.since_cpu > cpu


class Campaign:
    """A run of the fuzzer, with its counts.

    Parameters
    ----------
    lots
        Names of targets that run in one process, each with its share of the time.
    keeping
        Those whose code is compiled once, before the clock starts.
    seed
        Of the first input.
    """

    def __init__(self, lots: list[list[str]], keeping: set[str], seed: int) -> None:
        self.lots, self.keeping, self.next, self.turn = lots, keeping, seed, 0
        self.counts, self.cpu_s, self.stopped = Counter[str](), 0.0, False
        self.failures: dict[tuple[str, str], tuple[str, int]] = {}

    def run(self, seconds: float, processes: int) -> None:
        """Keep `processes` workers at work for `seconds`, from when the code of all targets is compiled."""
        # The first lot has most targets, and half of the turns.
        self.turn_s = min(TURN_S, max(seconds * processes / (4 * len(self.lots)), 5.0))
        with tempfile.TemporaryDirectory() as folder:
            for names in self.lots:
                self._prepare(folder, [name for name in names if name in self.keeping])
            before, end = _children_s(), time.monotonic() + seconds
            workers = [self._start(folder, index) for index in range(processes)]
            try:
                while time.monotonic() < end and not self.stopped:
                    time.sleep(0.05)
                    for index, worker in enumerate(workers):
                        if self._look(worker):
                            workers[index] = self._start(folder, index)
            finally:
                for worker in workers:
                    worker.process.kill()
                    worker.process.communicate()
                self.cpu_s = _children_s() - before

    def _prepare(self, folder: str, names: list[str]) -> None:
        """Compile what targets keep on the disk, where every worker finds it."""
        if not names:
            return
        own = Path(folder) / "prepared"
        own.mkdir(exist_ok=True)
        worker = Watched(self.next, names, str(own), 0.0)
        while not self._look(worker):
            time.sleep(0.05)

    def _start(self, folder: str, index: int) -> Watched:
        own = Path(folder) / str(index)
        own.mkdir(exist_ok=True)
        others, first = self.lots[1:], self.lots[0]
        names = others[self.turn // 2 % len(others)] if others and self.turn % 2 else first
        worker = Watched(self.next, names, str(own), self.turn_s)
        self.next, self.turn = self.next + TURN, self.turn + 1
        return worker

    def _look(self, worker: Watched) -> bool:
        """Take what a worker told; return whether it has ended."""
        for line in worker.lines():
            if line in ("READY", "DONE"):
                worker.ready, worker.done = True, line == "DONE"
            elif line.startswith("FAILED "):
                _, name, number, what = line.split(" ", 3)
                self._fail(name, int(number), what)
            else:
                worker.current = line
                self.counts[line.split(" ")[0]] += 1
        hung = worker.hangs()
        if hung:
            worker.process.kill()
        code = worker.process.poll()
        if code is None:
            return False
        _, errors = worker.process.communicate()
        if not worker.done:
            if not worker.current:
                raise SystemExit(f"fuzz: a worker ended before its first input:\n{errors[-3000:]}")
            name, number = worker.current.split(" ")
            ended = (
                f"no end within {PATIENCE_S:.0f} s of CPU time"
                if hung
                else f"the process ended with {code}: {errors[-300:]!r}"
            )
            self._fail(name, int(number), ended)
        return True

    def _fail(self, name: str, number: int, what: str) -> None:
        self.counts["failed"] += 1
        if (name, what) not in self.failures and len(self.failures) < 50:
            self.failures[name, what] = (name, number)
            print(f"fuzz: {name}, seed {number}: {what}", flush=True)


def shorten_and_keep(campaign: Campaign) -> None:
    """Write each kind of failure as a file; one that raises is shortened, in a process of its own."""
    from fuzz_source import random_bytes

    for name, number in campaign.failures.values():
        command = [sys.executable, str(Path(__file__)), "--minimise", name, str(number)]
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [*command, "--folder", folder], capture_output=True, text=True, timeout=120, check=False
            )
            if done.returncode == 0:
                print(f"fuzz: kept {done.stdout.strip()}")
                continue
        print(f"fuzz: kept {keep(name, random_bytes(number))}")


def with_atheris(name: str, minutes: float) -> None:
    """Let atheris choose the bytes by the coverage of the code."""
    import atheris  # type: ignore[import-not-found]  # an option of the session

    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        with atheris.instrument_imports(include=["lstmcore", "lstmcore_conformance"]):
            from fuzz_source import Source
            from fuzz_targets import TARGETS
        known = CORPUS / name
        arguments = [
            sys.argv[0],
            f"-max_total_time={int(minutes * 60)}",
            "-max_len=512",
            folder,  # what it finds goes into the first one
            *([str(known)] * known.exists()),
        ]
        atheris.Setup(arguments, lambda data: TARGETS[name].run(Source(data)))
        atheris.Fuzz()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=None, help="names of targets")
    parser.add_argument("--atheris", metavar="NAME", help="a target, by atheris")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=TURN_S, help=argparse.SUPPRESS)
    parser.add_argument("--minimise", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run the fuzzer; return 1 if an input failed."""
    sys.path.insert(0, str(HERE))
    options = _options()
    if options.atheris:
        with_atheris(options.atheris, options.minutes)
        return 0
    if options.folder:
        prepare(options.folder)
    if options.worker is not None:
        work(options.worker, options.only, options.seconds)
        return 0
    if options.minimise:
        from fuzz_source import random_bytes

        name, number = options.minimise
        print(keep(name, minimise(name, random_bytes(int(number)))))
        return 0
    return _watch(options)


def _watch(options: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LSTMCORE_FUZZ_FOLDER"] = folder
        from fuzz_targets import TARGETS, missing

        names = options.only or list(TARGETS)
        if unknown := sorted(set(names) - set(TARGETS)):
            raise SystemExit(f"fuzz: expected some of {', '.join(TARGETS)}; got {', '.join(unknown)}")
        chosen = [name for name in names if missing(name) is None]
    together = [name for name in chosen if not TARGETS[name].apart]
    apart = [[name] for name in chosen if TARGETS[name].apart]
    keeping = {name for name in chosen if TARGETS[name].keeps}
    campaign = Campaign([together, *apart] if together else apart, keeping, options.seed)
    for number in (signal.SIGINT, signal.SIGTERM):  # the counts up to then are printed
        signal.signal(number, lambda *_: setattr(campaign, "stopped", True))
    started = time.monotonic()
    campaign.run(options.minutes * 60, options.processes)
    minutes = (time.monotonic() - started) / 60
    cpu_s = campaign.cpu_s
    shorten_and_keep(campaign)
    failed = campaign.counts.pop("failed", 0)
    for name, count in sorted(campaign.counts.items()):
        print(f"fuzz: {name}: {count} inputs")
    for name in names:
        if name not in chosen:
            print(f"NOT CHECKED {name}: needs {missing(name)}")
    ways = len(campaign.failures)
    print(f"fuzz: {minutes:.1f} minutes with compiling, {cpu_s:.0f} s of CPU time in {options.processes} processes")
    print(f"fuzz: {campaign.counts.total()} inputs from seed {options.seed}, {failed} failed in {ways} ways")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
