"""The turns of the blocks of a cooperative launch on the processor: the same each time, and given by a seed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from emulation import EmulatedDevice
from lstmcore_cupy import program_source

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

BLOCKS, THREADS, ADDED = 4, 32, 50
#: Every thread adds to a number that others change between its read and its write, and block 0 waits for the last one.
_RACE = """
struct Race {
    long long* sum;
    long long* ended;
    long long added;
};

KERNEL(race, Race) {
    if (blockIdx.x == 0 && threadIdx.x == 0)
        while (!*(volatile long long*)a.ended) __nanosleep(20);
    for (int k = 0; k < a.added; ++k) {
        const long long before = __ldcg(a.sum);
        __threadfence();
        *a.sum = before + 1;
    }
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) *a.ended = 1;
}
"""


def _race(seed: int | None) -> int:
    """The sum that a launch comes to: the fewer, the more additions were lost."""
    numbers = np.zeros(2, np.int64)
    fields = np.array([numbers.ctypes.data, numbers.ctypes.data + 8, ADDED], np.int64)
    text = "#define STORAGE 1\n" + program_source.source("block.cuh") + _RACE
    EmulatedDevice(seed=seed).program(text).launch("race", (BLOCKS,), THREADS, fields, cooperative=True)
    return int(numbers[0])


def test_without_a_seed_a_block_runs_until_it_waits() -> None:
    assert _race(None) == BLOCKS * THREADS * ADDED


def test_a_seed_gives_the_same_race_each_time() -> None:
    found = [[_race(seed) for seed in range(6)] for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 3
    assert all(sum < BLOCKS * THREADS * ADDED for sum in found[0])


def test_a_negative_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="seed: expected 0 or more; got -1"):
        EmulatedDevice(seed=-1)


_WEIGHTS = """
struct Weights {
    long long* order;
    long long outputs;
    long long columns;
    long long outputs_first;
};

KERNEL(weights_read, Weights) {
    long long turn = 0;
    for_weights((int)a.outputs, (int)a.columns, a.outputs_first, [&](const int o, const int k) {
        a.order[turn++ * blockDim.x + threadIdx.x] = a.outputs_first ? k * a.outputs + o : o * a.columns + k;
    });
}
"""


@pytest.mark.parametrize("outputs_first", [False, True])
def test_neighbours_read_neighbouring_weights(outputs_first: bool) -> None:
    """A warp reads R in few transactions, forward by its rows and backward by its columns, once and whole."""
    outputs, columns = 6, 44
    turns = -(-outputs * columns // THREADS)
    order = np.full(turns * THREADS, -1, np.int64)
    fields = np.array([order.ctypes.data, outputs, columns, outputs_first], np.int64)
    text = "#define STORAGE 1\n" + program_source.source("block.cuh") + _WEIGHTS
    EmulatedDevice().program(text).launch("weights_read", (1,), THREADS, fields)
    np.testing.assert_array_equal(order[: outputs * columns], np.arange(outputs * columns))
    assert (order[outputs * columns :] == -1).all()
