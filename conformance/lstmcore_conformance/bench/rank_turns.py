"""Turns of training steps, on one rank and on two: the program of the ranks that `rank_efficiency` starts.

``python -m lstmcore_conformance.bench.rank_turns ROLE SETTINGS FOLDER`` writes its figures to FOLDER, by role and rank.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore import LSTM
from lstmcore.distributed import Engine, get_engine
from lstmcore.threads import THREADS_VARIABLE
from lstmcore.training import Adam, CrossEntropy, Readout, SequenceModel
from lstmcore.training.data_parallel import DataParallel, OneRank
from lstmcore.training.learning import Learner, Recipe
from lstmcore.training.network import Examples

#: Bytes of the buffers that are added up.
SIZES: Final = tuple(8 << 3 * power for power in range(8))
_REPEATS: Final = 40
_PAUSE_S: Final = 0.02  # after a turn, in which threads that spin for more work stop
_LOOK_S: Final = 0.02  # between the looks of a rank without a turn: each look takes a processor from the other
_MEMORY_STEPS: Final = 4
_CLASSES: Final = 7
#: The parameters of two ranks may differ from those of one by this share, as docs/howto/several-processes.md promises.
_TOLERANCE: Final = 1e-4


def make_learner(settings: Mapping[str, Any], ranks: OneRank) -> Learner:
    """Return a model at its first parameters that learns batches of N rows for each rank."""
    _, rows, inputs, hidden = settings["point"]
    lstm = LSTM(inputs, hidden, backend=settings["backend"], seed=1)
    model = SequenceModel(lstm, Readout.of(lstm, _CLASSES, activation="softmax", seed=1))
    return Learner(model, CrossEntropy(), Adam(1e-4), Recipe(rows * ranks.size, 1.0, 0.0, seed=0, ranks=ranks))


def make_examples(settings: Mapping[str, Any], rows: int) -> Examples:
    """Return `rows` sequences of T steps, the same in every process."""
    steps, _, width, _ = settings["point"]
    random = np.random.default_rng(5)
    return Examples(
        list(random.standard_normal((rows, steps, width), np.float32)), random.integers(_CLASSES, size=rows)
    )


class Took(NamedTuple):
    """Seconds of a step, and of processor time of this process in it."""

    wall: float
    cpu: float


class Turns:
    """What one process does in a turn: so many steps of training, timed.

    Parameters
    ----------
    learner, settings
        The model, and the settings of the run.
    batch
        Rows of a step.
    """

    def __init__(self, learner: Learner, settings: Mapping[str, Any], batch: int) -> None:
        self.learner, self.batch = learner, batch
        self.examples = make_examples(settings, batch)

    def take(self, steps: int) -> Took:
        """Train for so many steps."""
        examples = Examples([*self.examples.inputs] * steps, np.tile(np.asarray(self.examples.targets), steps))
        started, cpu = time.perf_counter(), time.process_time()
        self.learner.learn_epoch(1, examples)
        return Took((time.perf_counter() - started) / steps, (time.process_time() - cpu) / steps)


class ThreadedProcess:
    """One rank that has the processors of both: a process with two threads, asked by its standard input."""

    def __init__(self, settings: Mapping[str, Any], folder: str) -> None:
        words = [sys.executable, "-m", __spec__.name, "threads", json.dumps(settings), folder]
        env = {**os.environ, THREADS_VARIABLE: "2"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, env=env, stdin=pipe, stdout=pipe, text=True)  # noqa: S603  (this program)

    def take(self, steps: int) -> Took:
        """Let the process train for so many steps."""
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        print(steps, file=stdin, flush=True)
        return Took(*map(float, stdout.readline().split()))

    def end(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def answer_turns(settings: Mapping[str, Any], folder: str) -> None:
    """Take a turn for each line of standard input, as the process with two threads."""
    rows = 2 * settings["point"][1]
    learner = make_learner(settings, OneRank())
    learner.recipe = Recipe(rows, 1.0, 0.0, seed=0)
    turns = Turns(learner, settings, rows)
    for line in sys.stdin:
        print(*turns.take(int(line)), flush=True)


def take_turns(settings: Mapping[str, Any], folder: str) -> None:
    """Time the three ways in turn, in an order that is drawn anew in each round; rank 0 writes what they took."""
    engine = get_engine("mpi")
    rows, leads = settings["point"][1], engine.rank == 0
    check_values(settings, engine)
    pair = Turns(make_learner(settings, DataParallel(engine)), settings, 2 * rows)
    ways: dict[str, Callable[[int], Took]] = {"pair": pair.take, "one": _rest, "threads": _rest}
    threaded = ThreadedProcess(settings, folder) if leads else None
    if threaded is not None:
        ways |= {"one": Turns(make_learner(settings, OneRank()), settings, rows).take, "threads": threaded.take}
    for take in ways.values():  # compiles, and packs the weights
        _in_turn(take, 1)
    steps = np.maximum(np.ceil(settings["seconds"] / np.array([_in_turn(ways["one"], 1).wall])), 1.0)
    engine.broadcast(steps)
    took: dict[str, list[Took]] = {way: [] for way in ways}
    for order in (np.random.default_rng(seed).permutation(list(ways)) for seed in range(settings["rounds"])):
        for way in order:
            took[way].append(_in_turn(ways[way], int(steps[0])))
    sums = time_sums(engine) if settings["sums"] else {}
    if threaded is not None:
        threaded.end()
        size = sum(value.nbytes for value in pair.learner.model.parameters.values())
        seconds, cpu = ({way: [one[kind] for one in turns] for way, turns in took.items()} for kind in (0, 1))
        found = {"steps": int(steps[0]), "gradient_bytes": size, "seconds": seconds, "cpu": cpu, "sums": sums}
        Path(folder, "turns").write_text(json.dumps(found), "utf-8")


def _rest(steps: int) -> Took:
    return Took(1.0, 1.0)


def _in_turn(take: Callable[[int], Took], steps: int) -> Took:
    """Return what a turn took, between two meetings in which a rank that has nothing to do sleeps."""
    _meet()
    found = take(steps)
    _meet()
    time.sleep(_PAUSE_S)
    return found


def _meet() -> None:
    from mpi4py import MPI

    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test():
        time.sleep(_LOOK_S)


def check_values(settings: Mapping[str, Any], engine: Engine) -> None:
    """Raise unless two steps on all ranks give the parameters of one rank."""
    rows = settings["point"][1] * engine.size
    pair, one = (make_learner(settings, ranks) for ranks in (DataParallel(engine), OneRank()))
    one.recipe = pair.recipe.__class__(rows, 1.0, 0.0, seed=0)
    for learner in (pair, one):
        Turns(learner, settings, rows).take(2)
    start = make_learner(settings, OneRank()).model.parameters
    for name, value in one.model.parameters.items():
        moved = float(np.abs(value - start[name]).max())
        error = float(np.abs(value - pair.model.parameters[name]).max()) / float(np.abs(value).max())
        if error > _TOLERANCE or not moved:
            raise ValueError(
                f"{name}: expected the parameters of one rank to {_TOLERANCE}; got an error of {error:.1e}"
            )


def time_sums(engine: Engine) -> dict[int, list[float]]:
    """Return bytes -> seconds of each sum over all ranks."""
    found: dict[int, list[float]] = {}
    for size in SIZES:
        buffer, times = np.zeros(size // 4, np.float32), []
        for _ in range(_REPEATS):
            engine.barrier()
            started = time.perf_counter()
            engine.allreduce_sum(buffer)
            times.append(time.perf_counter() - started)
        found[size] = times
    return found


def measure_memory(settings: Mapping[str, Any], folder: str) -> None:
    """Write the most memory that this process had, in bytes: as a rank, or without MPI if it is alone."""
    ranks = DataParallel(get_engine("mpi")) if settings["ranks"] > 1 else OneRank()
    Turns(make_learner(settings, ranks), settings, settings["point"][1] * ranks.size).take(_MEMORY_STEPS)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    Path(folder, f"memory-{ranks.size}-{ranks.rank}").write_text(str(int(line.split()[1]) << 10), "utf-8")


ROLES: Final = {"turns": take_turns, "threads": answer_turns, "memory": measure_memory}

if __name__ == "__main__":
    ROLES[sys.argv[1]](json.loads(sys.argv[2]), sys.argv[3])
