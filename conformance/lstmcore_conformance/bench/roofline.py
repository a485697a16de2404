"""What the machine can do at most: a bare loop of multiply-adds, and a copy.

The loop is written in LLVM's language, so that no compiler decides how wide it is: `CHAINS` independent sums, more
than a processor needs to hide a multiply-add's latency, in vectors as wide as the host has. Needs llvmlite, which the
extra `numba` brings.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from lstmcore_conformance.bench.results import Roof

CHAINS: Final = 16
#: Turns of the loop in a call, and how often it is repeated each time that `Meter.again` is called.
TURNS: Final = 2_000_000
REPEATS: Final = 3
#: Working sets of the copies: within a core's second cache, and beyond every cache but the largest.
COPIES: Final = (512 * 1024, 256 * 1024 * 1024)


def meter(threads: int, precision: str) -> Meter | None:
    """Return a meter of the roof with that many threads, in float32 or float64; None if there can be none."""
    if precision not in ("float32", "float64"):
        return None
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return None
    return Meter(llvm, threads, precision)


class Meter:
    """Measures the roof again and again in a run: other work on the machine lowers it, and the best counts."""

    def __init__(self, llvm: Any, threads: int, precision: str) -> None:
        features = llvm.get_host_cpu_features()
        bits = 512 if features.get("avx512f") else 256 if features.get("avx2") else 128
        self.lanes = bits // (32 if precision == "float32" else 64)
        self.threads, self.precision = threads, precision
        self._engine, self._run = _loop(llvm, precision, self.lanes)
        self._seconds = float("inf")
        self._copies = dict.fromkeys(COPIES, 0.0)

    def again(self) -> None:
        """Measure once more."""
        self._seconds = min(self._seconds, _best(self.threads, lambda _: self._run(TURNS)))
        for size in COPIES:
            self._copies[size] = max(self._copies[size], _copy(self.threads, size))

    @property
    def roof(self) -> Roof:
        """The best so far."""
        gflops = 2.0 * TURNS * CHAINS * self.lanes * self.threads / self._seconds / 1e9
        copies = {str(size): speed for size, speed in self._copies.items()}
        return Roof(self.threads, self.precision, gflops, self.lanes, copies)


def _loop(llvm: Any, precision: str, lanes: int) -> tuple[Any, Callable[[int], float]]:
    """Return the compiled loop and what keeps it alive."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    module = llvm.parse_assembly(source(precision, lanes))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    number = ctypes.c_float if precision == "float32" else ctypes.c_double
    function = ctypes.CFUNCTYPE(number, ctypes.c_int64)(engine.get_function_address("loop"))
    return engine, function


def source(precision: str, lanes: int) -> str:
    """Return the loop in LLVM's language: it returns a sum, so that nothing can be left out."""
    scalar = "float" if precision == "float32" else "double"
    vector, kind = f"<{lanes} x {scalar}>", f"v{lanes}f{32 if precision == 'float32' else 64}"
    one = f"<{', '.join([f'{scalar} 5.000000e-01'] * lanes)}>"
    begin = "\n".join(
        f"  %a{k} = phi {vector} [ <{', '.join([f'{scalar} {k}.0'] * lanes)}>, %entry ], [ %b{k}, %body ]"
        for k in range(CHAINS)
    )
    work = "\n".join(
        f"  %b{k} = call {vector} @llvm.fma.{kind}({vector} %a{k}, {vector} {one}, {vector} {one})"
        for k in range(CHAINS)
    )
    total = "\n".join(f"  %s{k} = fadd {vector} {'%b0' if k == 1 else f'%s{k - 1}'}, %b{k}" for k in range(1, CHAINS))
    return f"""
declare {vector} @llvm.fma.{kind}({vector}, {vector}, {vector})
define {scalar} @loop(i64 %count) {{
entry:
  br label %body
body:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
{begin}
{work}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %body, label %end
end:
{total}
  %r = extractelement {vector} %s{CHAINS - 1}, i32 0
  ret {scalar} %r
}}
"""


def _copy(threads: int, size: int) -> float:
    """Bytes read and written per 1e-9 s by copies that touch `size` bytes in each thread."""
    pairs = [np.ones((2, size // 2), np.uint8) for _ in range(threads)]
    times = max(1, 2**28 // size)

    def work(thread: int) -> None:
        given, taken = pairs[thread]
        for _ in range(times):
            np.copyto(taken, given)

    return size * times * threads / _best(threads, work) / 1e9


def _best(threads: int, work: Callable[[int], object]) -> float:
    """Return the least seconds that `work` takes on all threads at once, from the first start to the last end."""
    least = float("inf")
    for _ in range(REPEATS):
        gate, spans = threading.Barrier(threads), [(0.0, 0.0)] * threads

        def run(thread: int, gate: threading.Barrier = gate, spans: list[tuple[float, float]] = spans) -> None:
            gate.wait()
            start = time.perf_counter()
            work(thread)
            spans[thread] = (start, time.perf_counter())

        team = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
        for one in team:
            one.start()
        for one in team:
            one.join()
        starts, ends = zip(*spans, strict=True)
        least = min(least, max(ends) - min(starts))
    return least
