"""Training on two ranks beside one: steps a second in turn, in one run, and the memory of a rank.

``python -m lstmcore_conformance.bench.rank_efficiency numba`` prints the table. Two ranks have one thread each. They
are compared with one rank with one thread, at as many rows a rank, and with one rank with two threads, at as many rows
in all. A rank that has no turn sleeps. Values are compared before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from rich.console import Console

from lstmcore.distributed import DistributedError, launch
from lstmcore.files import check_writable, write_atomically
from lstmcore.threads import THREADS_VARIABLE
from lstmcore_conformance.bench import rank_turns
from lstmcore_conformance.bench.jobs import Point, parse_point
from lstmcore_conformance.bench.machine import busy, cores, describe, versions
from lstmcore_conformance.bench.statistics import paired_ratio
from lstmcore_conformance.bench.tables import Table, digits
from lstmcore_conformance.bench.terminal import print_table

#: Batch 64 a rank.
POINTS: Final = (Point(50, 64, 64, 128), Point(50, 64, 128, 256), Point(20, 64, 256, 512))
#: Of two ranks: of twice the speed of one with one thread, from 128 units on; of the speed of one with two threads.
EFFICIENCY: Final = 0.9
OF_THREADS: Final = 0.95
#: Of a rank, over one process with its share: a factor, and bytes more.
MEMORY: Final = (1.1, 64 << 20)
_ONE: Final = {THREADS_VARIABLE: "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one point.

    Attributes
    ----------
    point
        T, N of a rank, I and H.
    steps
        Of a turn.
    gradient_bytes
        What a step adds up.
    seconds
        Way -> seconds of a step in each round.
    cpu
        Way -> seconds of processor time of the process, of rank 0 for two ranks. Other work does not lengthen it much.
    sums
        Bytes -> seconds of each sum over both ranks.
    memory
        Bytes of one process, and of each rank.
    others
        Processors that other processes kept busy meanwhile.
    """

    point: Point
    steps: int
    gradient_bytes: int
    seconds: dict[str, list[float]]
    cpu: dict[str, list[float]]
    sums: dict[str, list[float]]
    memory: tuple[int, list[int]]
    others: float

    def ratio(self, way: str) -> tuple[float, float, float]:
        """Return the time of a step in that way over that of two ranks, by rounds, and its interval (95 %)."""
        return paired_ratio(self.seconds[way], self.seconds["pair"])


def measure(backend: str, point: Point, rounds: int, seconds: float, *, sums: bool) -> Measured:
    """Measure one point; the time of sums alone where `sums`.

    Raises
    ------
    DistributedError
        A rank failed, or its values are not those of one.
    """
    settings: dict[str, Any] = {"backend": backend, "point": [*point], "rounds": rounds, "seconds": seconds}
    with tempfile.TemporaryDirectory(prefix="lstmcore-ranks-") as folder:

        def words(role: str, **more: Any) -> list[str]:
            return [sys.executable, "-m", rank_turns.__name__, role, json.dumps({**settings, **more}), folder]

        started, ours, theirs = time.perf_counter(), _used(), busy()
        launch(words("turns", sums=sums), 2)
        wall = time.perf_counter() - started
        others = max(0.0, busy() - theirs - (_used() - ours)) / wall
        subprocess.run(words("memory", ranks=1), check=True)  # noqa: S603  (this interpreter and a module of here)
        launch(words("memory", ranks=2), 2)
        found = json.loads(Path(folder, "turns").read_text("utf-8"))
        one, *ranks = (int(Path(folder, f"memory-{name}").read_text()) for name in ("1-0", "2-0", "2-1"))
    return Measured(point, **found, memory=(one, ranks), others=others)


def _used() -> float:
    """Return the processor time of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def table(backend: str, found: Sequence[Measured]) -> Table:
    """Return the times of a step in ms, both ratios with their intervals, and the memory of a rank."""
    rows = []
    for point in found:
        times = (digits(float(np.median(point.seconds[way])) * 1e3) for way in ("one", "threads", "pair"))
        ratios = ("{:.2f} ({:.2f} to {:.2f})".format(*point.ratio(way)) for way in ("one", "threads"))
        one, ranks = point.memory
        memory = f"{one >> 20}", f"{max(ranks) >> 20}"
        cpu = (digits(float(np.median(point.cpu[way])) * 1e3) for way in ("one", "pair"))
        rows.append((str(point.point), *times, *ratios, *cpu, *memory, f"{point.others:.1f}"))
    headings = (
        "T, N, I, H", "1 thread, ms", "2 threads, 2 N rows, ms", "2 ranks, ms", "efficiency", "over 2 threads",
        "CPU ms, 1 thread", "CPU ms, a rank", "MiB, one", "MiB, a rank", "others busy",
    )  # fmt: skip
    goals = f"goals: efficiency {EFFICIENCY} from H = 128 on, {OF_THREADS} over two threads"
    return Table(f"{backend}: {goals}, memory at most {MEMORY[0]} times + {MEMORY[1] >> 20} MiB", headings, rows)


def _points(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[Point, ...]:
    """Return the sizes that options name."""
    try:
        return tuple(map(parse_point, texts)) or POINTS
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("backend", default="numba")
@click.option(
    "--point", "points", multiple=True, callback=_points, metavar="T,N,I,H", help="Can be repeated; N a rank."
)
@click.option("--rounds", type=click.IntRange(min=3), default=11, show_default=True, help="Turns of each way.")
@click.option("--seconds", type=click.FloatRange(min=0.01), default=1.0, show_default=True, help="Of a turn.")
@click.option("--json", "path", metavar="FILE", help="Write the figures as JSON.")
def main(backend: str, points: tuple[Point, ...], rounds: int, seconds: float, path: str | None) -> None:
    """Measure two ranks of BACKEND, whose threads LSTMCORE_NUM_THREADS sets, beside one."""
    if path is not None:
        check_writable("--json", path)
    os.environ.update(_ONE)
    console, found = Console(), list[Measured]()
    for point in points:
        try:
            found.append(measure(backend, point, rounds, seconds, sums=not found))
        except DistributedError as error:
            raise click.ClickException(f"{backend}: {error}") from None
        click.echo(f"{point}: measured", err=True)
    machine = {name: describe()[name] for name in ("processor", "cores", "features")}
    console.print(f"{machine['processor']}, {cores()} cores", markup=False, highlight=False)
    print_table(table(backend, found), console)
    if path is not None:
        told = {"backend": backend, "machine": machine, "versions": versions(("numpy", "numba", "mpi4py", "openmpi"))}
        text = json.dumps({**told, "date": time.strftime("%Y-%m-%d"), "points": [asdict(one) for one in found]})
        write_atomically(path, f"{text}\n".encode())


if __name__ == "__main__":
    main()
