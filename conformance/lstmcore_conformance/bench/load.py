"""A call with two threads beside one with one thread, on a quiet machine and beside processes that spin.

``python -m lstmcore_conformance.bench.load numba`` prints the medians and their ratio. Both runtimes have a process of
their own, and are timed in turn only after their values passed, as in every benchmark here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
from rich.console import Console

from lstmcore_conformance.bench.array_io import load_arrays, save_data
from lstmcore_conformance.bench.jobs import Job, Point, parse_point
from lstmcore_conformance.bench.judging import expectation, judge
from lstmcore_conformance.bench.machine import cores, describe
from lstmcore_conformance.bench.statistics import paired_ratio
from lstmcore_conformance.bench.tables import Table, digits
from lstmcore_conformance.bench.terminal import print_table
from lstmcore_conformance.bench.timing import Plan, Samples, measure
from lstmcore_conformance.bench.timing import Worker as Timed
from lstmcore_conformance.bench.worker_client import Candidate, EndedError, FailedError, Worker
from lstmcore_conformance.suite.backend_under_test import Failure

#: The call of the goal: weights that do not fit into a core's L2, one row, so that threads meet at every step.
POINT: Final = Point(60, 1, 300, 400)
#: Under load two threads take at most this many times the median of one.
GOAL: Final = 1.3
#: It ends when the process that started it has ended.
SPIN: Final = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The turns of both numbers of threads, beside so many processes that spin."""

    spinning: int
    one: Samples
    two: Samples

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The time with two threads over that with one, by rounds, and its bootstrap interval (95 %)."""
        return paired_ratio(self.two.rounds, self.one.rounds)


@contextmanager
def spinning(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep so many processes busy meanwhile."""
    words = [sys.executable, "-c", SPIN, str(os.getpid())]
    busy = [subprocess.Popen(words) for _ in range(count)]  # noqa: S603  (this interpreter and a line of here)
    try:
        yield busy
    finally:
        for process in busy:
            process.kill()
            process.wait()


def prepare(workers: Sequence[Worker], job: Job) -> None:
    """Let each worker have the job ready; raise a `Failure` where its values are not right."""
    expected = expectation(job)
    with tempfile.TemporaryDirectory(prefix="lstmcore-load-") as name:
        data, outputs = Path(name, "data.safetensors"), Path(name, "outputs.safetensors")
        save_data(data, job.case.data)
        for worker in workers:
            worker.ask("prepare", key=str(job), job=job.to_dict(), data=str(data), outputs=str(outputs))
            judge(load_arrays(outputs), expected)


def compare(workers: Mapping[int, Timed], job: Job, counts: Sequence[int], plan: Plan) -> Iterator[Loaded]:
    """Time the job, which the workers with one and with two threads have ready, beside each count of processes.

    Raises
    ------
    EndedError
        A worker failed while it was timed.
    """
    rng = np.random.default_rng(0)
    for count in counts:
        with spinning(count):
            found = measure({threads: (one, str(job)) for threads, one in workers.items()}, plan, rng, threads=2)
        for samples in found.values():
            if samples.message:
                raise EndedError(samples.message)
        yield Loaded(count, found[1], found[2])


def table(backend: str, job: Job, found: Sequence[Loaded]) -> Table:
    """Return the medians in ms, the ratio with its interval, and the CPU time of a call."""
    rows = []
    for loaded in found:
        ratio, low, high = loaded.ratio
        times = (digits(float(np.median(one.rounds)) * 1e3) for one in (loaded.one, loaded.two))
        cpu = (digits(one.cpu / len(one.calls) * 1e3) for one in (loaded.one, loaded.two))
        rows.append((str(loaded.spinning), *times, f"{ratio:.2f} ({low:.2f} to {high:.2f})", *cpu))
    headings = ("processes that spin", "1 thread, ms", "2 threads, ms", "2 over 1", "CPU ms, 1", "CPU ms, 2")
    return Table(f"{backend}, {job}: medians; under load the goal is at most {GOAL} times", headings, rows)


def _point(context: click.Context, parameter: click.Parameter, text: str) -> Point:
    """Return the sizes that an option names."""
    try:
        return parse_point(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("backend", default="numba")
@click.option("--spin", type=click.IntRange(min=1), default=None, help="Processes that spin  [default: every core].")
@click.option("--point", default=",".join(map(str, POINT)), callback=_point, metavar="T,N,I,H", show_default=True)
@click.option("--rounds", type=click.IntRange(min=3), default=31, show_default=True, help="Turns of each.")
@click.option("--seconds", type=float, default=0.5, show_default=True, help="Of a turn.")
def main(backend: str, spin: int | None, point: Point, rounds: int, seconds: float) -> None:
    """Measure BACKEND with one and two threads, alone and beside processes that spin."""
    job, plan = Job("inference", point), Plan(rounds=rounds, seconds=seconds, repeats=0)
    with ExitStack() as running:
        try:
            workers = {n: running.enter_context(Worker(Candidate("backend", backend, n))) for n in (1, 2)}
            prepare(list(workers.values()), job)
            found = list(compare(workers, job, (0, spin or cores()), plan))
        except (Failure, FailedError, EndedError) as error:
            kind = "does not conform: " * isinstance(error, Failure)
            raise click.ClickException(f"{backend}: {kind}{error}") from None
    console = Console()
    console.print(f"{describe()['processor']}, {cores()} cores", markup=False, highlight=False)
    print_table(table(backend, job, found), console)


if __name__ == "__main__":
    main()
