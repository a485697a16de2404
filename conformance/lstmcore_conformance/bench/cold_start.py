"""From nothing compiled to the first result: inference and training, each in a new process with an empty cache folder.

``python -m lstmcore_conformance.bench.cold_start numba`` prints wall and CPU seconds since the interpreter runs. Values
are judged: a start with a wrong result has no time.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click
import numpy as np
from rich.console import Console

from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.judging import expectation, judge
from lstmcore_conformance.bench.machine import cores, describe
from lstmcore_conformance.bench.startup import BACKEND, JOB, run_script, write_arrays
from lstmcore_conformance.bench.tables import Table
from lstmcore_conformance.bench.terminal import print_table
from lstmcore_conformance.bench.worker_client import Candidate
from lstmcore_conformance.suite.backend_under_test import Failure

TRAINING: Final = """
from lstmcore import LSTM
imported = time.perf_counter()
with np.load("data.npz") as data:
    given = dict(data)
x, h, c, dy, dh, dc = (given.pop(name) for name in ("x", "h", "c", "dy", "dh", "dc"))
lstm = LSTM(x.shape[2], h.shape[2], backend=sys.argv[1], seed=0)
lstm.load_parameters({f"{name}_l0": array for name, array in given.items()})
y, _, tape = lstm.record(x, (h, c))
gradients = lstm.backward(tape, dy, (dh, dc))
made = {"y": y, "dx": gradients.x, "d_weight_h": gradients.parameters["weight_h_l0"]}
"""

_AFTER: Final = """
seconds, cpu = time.perf_counter() - start, time.process_time() - started
np.savez("made.npz", **made)
import json
print(json.dumps({"wall_s": seconds, "cpu_s": cpu, "import_s": imported - start}))
"""


class Kind(NamedTuple):
    """A first result: its script, the call whose values it has, and the goal in seconds on a quiet machine."""

    script: str
    job: Job
    goal: float


KINDS: Final = {
    "inference": Kind(BACKEND, JOB, 6.0),
    "training": Kind(TRAINING, Job("training", JOB.point), 10.0),
}


class Cold(NamedTuple):
    """One start from an empty folder, in seconds since the interpreter runs."""

    wall_s: float
    cpu_s: float
    import_s: float


def cold_start(candidate: Candidate, kind: Kind) -> Cold:
    """Start once, with empty folders for all that libraries keep of compiled code.

    Raises
    ------
    Failure
        The result is wrong.
    RuntimeError, subprocess.TimeoutExpired
        The script failed, or took too long.
    """
    expected = expectation(kind.job)
    with tempfile.TemporaryDirectory(prefix="lstmcore-cold-") as name:
        write_arrays(Path(name), kind.job)
        seconds = run_script(candidate, Path(name), kind.script, _AFTER)
        with np.load(Path(name, "made.npz")) as made:
            judge(dict(made), {array: one for array, one in expected.items() if array in made})
    return Cold(**seconds)


def table(candidate: Candidate, starts: dict[str, Sequence[Cold]]) -> Table:
    """Return the medians of each kind of start."""
    rows = []
    for name, cold in starts.items():
        medians = (f"{np.median(values):.1f}" for values in zip(*cold, strict=True))
        rows.append((name, *medians, f"{KINDS[name].goal:.0f}", str(len(cold))))
    headings = ("first", "wall s", "CPU s", "of these to import, wall s", "goal, wall s, quiet machine", "starts")
    return Table(f"{candidate.described}: from an empty cache folder at {JOB.point}", headings, rows)


@click.command()
@click.argument("backend", default="numba")
@click.option("--times", type=click.IntRange(min=1), default=3, show_default=True, help="Starts of each kind.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--only", type=click.Choice(tuple(KINDS)), default=None, help="Only this kind.")
def main(backend: str, times: int, threads: int, only: str | None) -> None:
    """Measure the first inference and the first training of BACKEND with nothing compiled."""
    candidate = Candidate("backend", backend, threads)
    kinds = {name: kind for name, kind in KINDS.items() if only in (None, name)}
    try:
        starts: dict[str, Sequence[Cold]] = {
            name: [cold_start(candidate, kind) for _ in range(times)] for name, kind in kinds.items()
        }
    except Failure as error:
        raise click.ClickException(f"{backend}: does not conform: {error}") from None
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        raise click.ClickException(f"{backend}: {' '.join(str(error).split())}") from None
    console = Console()
    console.print(f"{describe()['processor']}, {cores()} cores", markup=False, highlight=False)
    print_table(table(candidate, starts), console)


if __name__ == "__main__":
    main()
