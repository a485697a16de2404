"""What single operations cost on the device: launches, barriers, broadcasts, and a step by libraries alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from lstmcore_conformance.bench.cuda import CUDA

ROUNDS: Final = 1000
REPEATS: Final = 5
THREADS: Final = 256
#: N and H of the states that are broadcast, in float32 and in 16 bits.
BROADCAST: Final = ((1, 1024), (16, 512), (64, 256), (64, 1024), (256, 1024))


def source() -> str:
    """Return the kernels' text."""
    return resources.files("lstmcore_conformance.bench").joinpath("micro.cu").read_text("utf-8")


def measured(device: CUDA) -> dict[str, float | str]:
    """Return the microseconds of each; why not, where the device refused."""
    found: dict[str, float | str] = {}
    for name, measure in _all(device):
        try:
            found[name] = 1e6 * measure()
        except Exception as error:  # a device that cannot do one of them does the others
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return found


def _all(device: CUDA) -> Iterator[tuple[str, Callable[[], float]]]:
    cupy = device.cupy
    # The name of the file is in the cache's key only through its text.
    module = cupy.RawModule(code=source(), options=("--std=c++17",))
    blocks = cupy.cuda.runtime.getDeviceProperties(0)["multiProcessorCount"]
    nothing, barriers, broadcasts = (module.get_function(name) for name in ("nothing", "barriers", "broadcasts"))

    def least(call: Callable[[], Any], count: int) -> float:
        call()
        return min(device.seconds(call) for _ in range(REPEATS)) / count

    def launches() -> None:
        for _ in range(ROUNDS):
            nothing((blocks,), (THREADS,), ())

    def round_trip() -> float:
        taken = []
        for _ in range(100):
            start = time.perf_counter()
            nothing((1,), (THREADS,), ())
            device.torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        return float(np.median(taken))

    def grid(run: Callable[[Any, Any], None]) -> float:
        def call() -> None:
            count, stuck = cupy.zeros(1, np.uint32), cupy.zeros(1, np.int32)
            run(count, stuck)
            stucks.append(stuck)

        stucks: list[Any] = []
        found = least(call, ROUNDS)
        if any(int(stuck[0]) for stuck in stucks):
            raise RuntimeError("the grid is not resident as a whole: a barrier was given up")
        return found

    def barrier() -> float:
        return grid(lambda count, stuck: barriers((blocks,), (THREADS,), (count, stuck, np.int32(ROUNDS))))

    def broadcast(words: int) -> float:
        buffers, sums = cupy.zeros(2 * words, np.float32), cupy.zeros(blocks * THREADS, np.float32)
        return grid(
            lambda count, stuck: broadcasts(
                (blocks,), (THREADS,), (count, stuck, np.int32(ROUNDS), buffers, np.int32(words), sums)
            )
        )

    yield "launch, one after the other", lambda: least(launches, ROUNDS)
    yield "launch and wait for it on the host", round_trip
    yield f"barrier of {blocks} blocks", barrier
    for rows, hidden in BROADCAST:
        for bits in (32, 16):
            words = max(rows * hidden * bits // 32, 4)
            name = f"barrier and a state of N={rows}, H={hidden} in {bits} bits read by all of them"
            yield name, lambda words=words: broadcast(words)  # type: ignore[misc]  # bound now
    for rows, hidden in ((16, 512), (64, 1024)):
        yield f"cuBLAS bf16 product of a step, N={rows}, H={hidden}", _product(device, rows, hidden, least)


def _product(device: CUDA, rows: int, hidden: int, least: Callable[[Callable[[], Any], int], float]) -> Any:
    def measure() -> float:
        torch = device.torch
        a = torch.zeros((rows, hidden), dtype=torch.bfloat16, device="cuda")
        b = torch.zeros((hidden, 4 * hidden), dtype=torch.bfloat16, device="cuda")
        out = torch.empty((rows, 4 * hidden), dtype=torch.bfloat16, device="cuda")

        def call() -> None:
            for _ in range(100):
                torch.mm(a, b, out=out)

        return least(call, 100)

    return measure
