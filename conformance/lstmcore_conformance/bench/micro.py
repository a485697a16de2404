"""What single operations cost on the device: launches, barriers, broadcasts, and a step by libraries alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
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
    for name, measure in _Kernels(device).all():
        try:
            found[name] = 1e6 * measure()
        except Exception as error:  # a device that cannot do one of them does the others
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return found


class _Kernels:
    """The compiled kernels of `micro.cu`; each method returns seconds."""

    def __init__(self, device: CUDA) -> None:
        self.device, self.cupy = device, device.cupy
        # The name of the file is in the cache's key only through its text.
        module = self.cupy.RawModule(code=source(), options=("--std=c++17",))
        self.blocks = self.cupy.cuda.runtime.getDeviceProperties(0)["multiProcessorCount"]
        names = ("nothing", "barriers", "broadcasts")
        self.nothing, self.barriers, self.broadcasts = (module.get_function(name) for name in names)

    def all(self) -> Iterator[tuple[str, Callable[[], float]]]:
        """Yield the name of each operation and what measures it."""
        yield "launch, one after the other", self.launches
        yield "launch and wait for it on the host", self.round_trip
        yield f"barrier of {self.blocks} blocks", self.barrier
        for rows, hidden in BROADCAST:
            for bits in (32, 16):
                words = max(rows * hidden * bits // 32, 4)
                name = f"barrier and a state of N={rows}, H={hidden} in {bits} bits read by all of them"
                yield name, partial(self.broadcast, words)
        for rows, hidden in ((16, 512), (64, 1024)):
            yield f"cuBLAS bf16 product of a step, N={rows}, H={hidden}", partial(self.matmul, rows, hidden)

    def least(self, call: Callable[[], Any], count: int) -> float:
        """Return the least time of a call that does something `count` times, for one of them."""
        call()
        return min(self.device.seconds(call) for _ in range(REPEATS)) / count

    def launches(self) -> float:
        """Launch a kernel that does nothing, again and again."""

        def call() -> None:
            for _ in range(ROUNDS):
                self.nothing((self.blocks,), (THREADS,), ())

        return self.least(call, ROUNDS)

    def round_trip(self) -> float:
        """Launch a kernel that does nothing and wait for it, by the host's clock."""
        taken = []
        for _ in range(100):
            start = time.perf_counter()
            self.nothing((1,), (THREADS,), ())
            self.device.torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        return float(np.median(taken))

    def grid(self, run: Callable[[Any, Any], None]) -> float:
        """Run a kernel whose blocks wait for each other `ROUNDS` times."""
        stucks: list[Any] = []

        def call() -> None:
            count, stuck = self.cupy.zeros(1, np.uint32), self.cupy.zeros(1, np.int32)
            run(count, stuck)
            stucks.append(stuck)

        least = self.least(call, ROUNDS)
        if any(int(stuck[0]) for stuck in stucks):
            raise RuntimeError("the grid is not resident as a whole: a barrier was given up")
        return least

    def barrier(self) -> float:
        """Let all blocks wait for each other."""
        rounds = np.int32(ROUNDS)
        return self.grid(lambda count, stuck: self.barriers((self.blocks,), (THREADS,), (count, stuck, rounds)))

    def broadcast(self, words: int) -> float:
        """Let all blocks wait for each other and read the same 4-byte words."""
        buffers = self.cupy.zeros(2 * words, np.float32)
        last = (np.int32(ROUNDS), buffers, np.int32(words), self.cupy.zeros(self.blocks * THREADS, np.float32))
        return self.grid(lambda count, stuck: self.broadcasts((self.blocks,), (THREADS,), (count, stuck, *last)))

    def matmul(self, rows: int, hidden: int) -> float:
        """Multiply what a step multiplies, in bfloat16, by cuBLAS."""
        torch = self.device.torch
        a = torch.zeros((rows, hidden), dtype=torch.bfloat16, device="cuda")
        b = torch.zeros((hidden, 4 * hidden), dtype=torch.bfloat16, device="cuda")
        out = torch.empty((rows, 4 * hidden), dtype=torch.bfloat16, device="cuda")

        def call() -> None:
            for _ in range(100):
                torch.mm(a, b, out=out)

        return self.least(call, 100)
