"""Runs that take long: the same bits from two runs, and memory that stays flat. And compiled loops under memcheck."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM, registry
from lstmcore.training import Adam, MeanSquaredError
from lstmcore_conformance.bench.instructions import CHIP

AVAILABLE = {record.name for record in registry.backends() if record.available}
BACKENDS = [name for name in ("numpy", "numba") if name in AVAILABLE]
#: Bytes by which the memory of a process may grow after its first tenth: pages of the allocator.
SLACK = 4 << 20


@pytest.fixture(autouse=True)
def chosen(request: pytest.FixtureRequest) -> None:
    option = "--memcheck" if "memcheck" in request.node.name else "--long"
    if not request.config.getoption(option):
        pytest.skip(f"takes long: {option}")


def resident() -> int:
    """Return the bytes of memory that this process has."""
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def flat(steps: Iterator[Any], count: int) -> Any:
    """Run all steps, and return the last; the memory at the end is that after a tenth."""
    after_a_tenth, last = 0, None
    for number, values in enumerate(steps):
        last = values
        if number == count // 10:
            gc.collect()
            after_a_tenth = resident()
    gc.collect()
    assert number + 1 == count
    assert resident() - after_a_tenth < SLACK
    return last


def streaming(backend: str, count: int) -> Iterator[Any]:
    lstm = LSTM(4, 16, seed=0, backend=backend)
    x = np.random.default_rng(0).standard_normal((64, 1, 1, 4)).astype(np.float32)
    state = None
    for number in range(count):
        y, state = lstm(x[number % 64], state)
        yield y, *state


def training(backend: str, count: int) -> Iterator[Any]:
    lstm = LSTM(4, 8, seed=0, backend=backend, recurrent_dropout=0.25)
    rule, loss = Adam(1e-3), MeanSquaredError()
    random = np.random.default_rng(0)
    x, wanted = (random.standard_normal((5, 3, size)).astype(np.float32) for size in (4, 8))
    for _ in range(count):
        y, _, tape = lstm.record(x)
        _, dy = loss(y, wanted)
        lstm.load_parameters(rule.step(lstm.parameters, lstm.backward(tape, dy).parameters))
        yield list(lstm.parameters.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("run", "count"), [(streaming, 10**6), (training, 10**5)])
def test_long_runs_are_flat_and_repeatable(run: Any, count: int, backend: str) -> None:
    first, second = (flat(run(backend, count), count) for _ in range(2))
    assert all(np.isfinite(value).all() for value in first)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


#: Small sizes that divide nothing, and ones that divide everything; each switch that has a loop of its own.
CHECKED = """
import numpy as np
from lstmcore import LSTM
random = np.random.default_rng(0)
for size, hidden, steps, batch, switches in (
    (3, 7, 4, 3, {}), (8, 16, 3, 8, {}), (3, 5, 3, 2, {"bidirectional": True, "peephole": True, "proj_size": 2}),
    (3, 5, 3, 2, {"layer_norm": True, "zoneout_hidden": 0.25, "num_layers": 2}),
):
    lstm = LSTM(size, hidden, seed=0, backend="numba", **switches)
    x = random.standard_normal((steps, batch, size)).astype(np.float32)
    lengths = np.arange(batch) % (steps + 1)
    for call in range(2):
        y, state, tape = lstm.record(x, lengths=lengths)
        lstm.backward(tape, y, state)
        lstm(x[:1])
    lstm.jvp(x, x)
print("whole")
"""


@pytest.mark.skipif("numba" not in BACKENDS or shutil.which("valgrind") is None, reason="needs numba and valgrind")
def test_memcheck_finds_nothing_in_compiled_loops(tmp_path: Path) -> None:
    """Code for haswell, which valgrind knows; it is compiled and kept before, since LLVM would take an hour there.

    What Python and LLVM read and write has no place in compiled code: an error counts if its frame has no file, as code
    that was made while the process ran.
    """
    environment = {**os.environ, **CHIP, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "LSTMCORE_NUM_THREADS": "1",
                   "PYTHONMALLOC": "malloc", "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
    log = tmp_path / "memcheck.log"
    words = ("valgrind", "--tool=memcheck", "--undef-value-errors=no", "--smc-check=all-non-file", f"--log-file={log}")
    for before in ((), words):
        command = [*before, sys.executable, "-c", CHECKED]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr[-3000:]
    text = log.read_text("utf-8", errors="replace")
    assert "ERROR SUMMARY" in text
    blocks = re.findall(r"Invalid (?:read|write) of size.*?(?=\n==\d+== \n)", text, re.DOTALL)
    made = [block for block in blocks if re.search(r"at 0x[0-9A-F]+: \?\?\?", block)]
    print(f"memcheck: {len(blocks)} invalid accesses, {len(made)} of them in compiled code")
    assert made == []
