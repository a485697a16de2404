"""Values of the microkernels and of the step functions on processors that this machine need not have.

Object files are linked with a small C program, and run on AVX2 without AVX-512 and on aarch64 by qemu-user. No speed is
measured. Functions that Numba compiles (the loops over time) are not run here: they need its runtime.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emitted_tiles import add_tile, target_of
from emulated_code import EMULATORS, Memory, add_dispatch, missing, run_emulated, run_here
from lstmcore.config import Activation, LSTMConfig

pytest.importorskip("numba", reason="numba is not installed")

#: Rows and hidden blocks of a step; the row of index `ENDED` has no step any more.
ROWS, BLOCKS, ENDED = 5, 3, 2
#: Numbers of each array of a step: more than any of them has.
ROOM = 1024


@pytest.fixture(params=EMULATORS)
def processor(request: pytest.FixtureRequest) -> str:
    """Each processor that can be emulated here."""
    name = str(request.param)
    if program := missing(name):
        pytest.skip(f"{program} is not installed")
    return name


# Microkernels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TileCall:
    """A call of a microkernel of r rows: 2 runs of K of 7 values; groups of 4 rows, the first row is number 3 of its.

    Strides in numbers differ from each other, so that no two can be exchanged.
    """

    rows: int
    cols: int
    lanes: int
    dtype: str
    transposed: bool
    fresh: bool

    RUNS, SIZE, PLACE, GROUP, A_GAP, C_GAP = 2, 7, 3, 4, 3, 16

    def arrays(self) -> dict[str, Any]:
        """Return a and b, what c holds before, and the offsets of the numbers of a and c, in numbers."""
        rng = np.random.default_rng([self.rows, self.cols, self.transposed])
        wraps = (self.PLACE + np.arange(self.rows)) // self.GROUP
        row, k = (1, 19) if self.transposed else (23, 1)
        run = self.SIZE * k + 5
        along = np.arange(self.RUNS)[:, None] * run + np.arange(self.SIZE) * k
        places = (np.arange(self.rows) * row + wraps * self.A_GAP)[:, None] + along.reshape(-1)
        width = self.cols * self.lanes
        c_row = width + 5
        c_places = (np.arange(self.rows) * c_row + wraps * self.C_GAP)[:, None] + np.arange(width)

        def drawn(size: int) -> Any:
            return rng.standard_normal(size).astype(self.dtype)

        return {
            "a": drawn(places.max() + 1),
            "b": drawn(self.RUNS * self.SIZE * (width + 3)),
            "c": drawn(c_places.max() + 9),
            "places": places,
            "c_places": c_places,
            "strides": (row, k, run, width + 3, c_row),
        }

    def memory(self, function: int) -> tuple[Memory, int]:
        """Return the call's memory, and where c is in it."""
        arrays, size = self.arrays(), np.dtype(self.dtype).itemsize
        row, k, run, b_k, c_row = (size * stride for stride in arrays["strides"])
        memory = Memory(function, 15)
        a, b, c = (memory.add(arrays[name]) for name in "abc")
        words = (a, row, k, run, size * self.A_GAP, b, b_k, c, c_row, size * self.C_GAP)
        for place, word in enumerate((*words, self.RUNS, self.SIZE, self.PLACE, self.GROUP, self.fresh)):
            memory.set(8 * place, int(word), address=place in (0, 5, 7))
        return memory, c

    def check(self, before: Memory, c: int, after: bytes) -> None:
        """Fail unless c is a b, plus what it was unless it is fresh, and nothing else has changed."""
        arrays = self.arrays()
        width, b_k = self.cols * self.lanes, self.cols * self.lanes + 3
        a = arrays["a"][arrays["places"]].astype(np.float64)
        b = arrays["b"].reshape(-1, b_k)[:, :width].astype(np.float64)
        old = 0 if self.fresh else arrays["c"][arrays["c_places"]].astype(np.float64)
        whole = np.frombuffer(after, self.dtype, arrays["c"].size, c)
        epsilon, terms = np.finfo(self.dtype).eps, self.RUNS * self.SIZE + 1
        bound = terms * epsilon / 2 * (np.abs(a) @ np.abs(b) + np.abs(old))  # of a sum in any order
        error = np.abs(whole[arrays["c_places"]] - (a @ b + old))
        assert (error <= bound).all(), (self, (error / bound).max())
        restored = whole.copy()
        restored[arrays["c_places"]] = arrays["c"][arrays["c_places"]]
        assert after[:c] + restored.tobytes() + after[c + restored.nbytes :] == before.content, self


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_microkernels_multiply(processor: str, dtype: str, tmp_path: Path) -> None:
    """Every shape, with rows and with columns, against float64 (with longer sums than its own bound for float64)."""
    from llvmlite import ir

    from lstmcore_numba.gemm.tile_shapes import tile_table

    module, calls = ir.Module("tiles"), []
    lanes = target_of(processor).vector_bytes // np.dtype(dtype).itemsize
    for number, (transposed, shape) in enumerate(
        (transposed, shape) for transposed in (False, True) for shape in tile_table(target_of(processor)).shapes()
    ):
        add_tile(module, f"tile{number}", processor, dtype, shape, transposed=transposed)
        for fresh in (False, True):
            call = TileCall(*shape, lanes, dtype, transposed, fresh)
            calls.append((call, *call.memory(number)))
    add_dispatch(module)
    found = run_emulated(module, processor, [memory for _, memory, _ in calls], tmp_path)
    for (call, memory, c), after in zip(calls, found, strict=True):
        call.check(memory, c, after)


def test_code_for_avx512_does_not_run_on_avx2(tmp_path: Path) -> None:
    """An emulator that had all instructions would find no wrong one."""
    from llvmlite import ir

    from lstmcore_numba.gemm.tile_shapes import TileShape

    if program := missing("haswell"):
        pytest.skip(f"{program} is not installed")
    module, name = ir.Module("tiles"), "skylake-avx512"
    add_tile(module, "tile", name, "float32", TileShape(6, 2))
    add_dispatch(module)
    memory, _ = TileCall(6, 2, 16, "float32", False, True).memory(0)
    with pytest.raises(subprocess.CalledProcessError, match="SIGILL"):
        run_emulated(module, "haswell", [memory], tmp_path, code_for=name)


# Step functions -------------------------------------------------------------------------------------------------------

_EVERY = LSTMConfig(
    input_size=4,
    hidden_size=48,
    peephole=True,
    coupling="none",
    gate_clip=1.5,
    cell_clip=1.0,
    zoneout_hidden=0.2,
    zoneout_cell=0.1,
)
_CONFIGS = {
    "plain": LSTMConfig(input_size=4, hidden_size=48),
    "every": _EVERY,
    "coupled": LSTMConfig(input_size=4, hidden_size=48, coupling="input_from_forget"),
    "projected": LSTMConfig(input_size=4, hidden_size=48, proj_size=32, proj_clip=0.7),
    "normed": LSTMConfig(input_size=4, hidden_size=48, layer_norm=True),
    **{
        name: LSTMConfig(
            input_size=4,
            hidden_size=48,
            gate_activation=Activation("hard_sigmoid"),
            cell_activation=Activation(name),
            hidden_activation=Activation(name),
        )
        for name in ("softsign", "softplus", "elu", "scaled_tanh", "thresholded_relu")
    },
}
_PRECISIONS = [("float32", "float32"), ("float64", "float64"), ("float32", "bfloat16"), ("float32", "float16")]


def emits_of(config: LSTMConfig) -> list[Callable[..., None]]:
    """Return the step functions of a configuration: forward, backward and jvp, each in one or two parts."""
    from lstmcore_numba import cell

    emits = [cell.forward, cell.forward_cell, cell.backward, cell.jvp, cell.jvp_fixed_peepholes]
    if config.layer_norm:
        emits += [cell.backward_cell, cell.jvp_cell]
    if config.proj_size:
        emits += [cell.forward_output, cell.backward_output, cell.jvp_output]
    return emits


def variants(lanes: int, dtype: str, storage: str) -> Iterator[tuple[Callable[..., None], Any]]:
    """Yield every step function of every configuration, and its variant."""
    from lstmcore_numba.codegen.step_emitter import StepVariant, step_config

    for config in _CONFIGS.values():
        for emit in emits_of(config):
            for masked in (False, True) if config.zoneout_cell else (False,):
                yield (
                    emit,
                    StepVariant(
                        step_config(config, lanes),
                        dtype,
                        storage,
                        lanes,
                        masked_c=masked,
                        masked_h=masked,
                        record=not masked,
                        padded=masked,
                    ),
                )


def step_memory(function: int, dtype: str, block: int) -> tuple[Memory, dict[str, int]]:
    """Return the memory of a step of one block of all rows, and the offset of each array."""
    from lstmcore_numba.codegen.step_emitter import KernelArgs

    rng, memory = np.random.default_rng([function, block]), Memory(function, 4)
    table = memory.add(np.zeros(len(KernelArgs), np.int64))
    offsets = {}
    for field in KernelArgs:
        if field in (KernelArgs.STEP, KernelArgs.BATCH):
            memory.set(table + 8 * field, 6 if field == KernelArgs.STEP else ROWS)
            continue
        numbers = rng.standard_normal(ROOM).astype(dtype)
        if field == KernelArgs.GATES:  # what a step of infinities and of tiny numbers gives
            numbers[: ROOM // 2 : 7] = np.resize([np.inf, -np.inf, np.nan, -0.0, 1e-30, 88.0, -104.0], 74)
        lengths = np.where(np.arange(ROWS) == ENDED, 6, 9)
        offsets[field.name] = memory.add(lengths if field == KernelArgs.LENGTHS else numbers)
        memory.set(table + 8 * field, offsets[field.name], address=True)
    for place, word in enumerate((table, block, 0, ROWS)):
        memory.set(8 * place, word, address=place == 0)
    return memory, offsets


@pytest.mark.parametrize(("dtype", "storage"), _PRECISIONS)
def test_step_functions_give_the_bits_of_this_machine(processor: str, dtype: str, storage: str, tmp_path: Path) -> None:
    """The suite judges this machine's: every operation has one right result, so that the others have the same."""
    from llvmlite import ir

    from lstmcore_numba.codegen.compile_target import compile_target
    from lstmcore_numba.codegen.step_compiler import add_step

    if not (compile_target().has("fma") or compile_target().triple.startswith(("aarch64", "arm64"))):
        pytest.skip("this machine has no multiply-add with one rounding")
    lanes = target_of(processor).vector_bytes // np.dtype(dtype).itemsize
    module = ir.Module("steps")
    calls = []
    for number, (emit, variant) in enumerate(variants(lanes, dtype, storage)):
        add_step(module, f"step{number}", emit, variant)
        calls += [step_memory(number, dtype, block) for block in range(BLOCKS)]
    add_dispatch(module)
    memories = [memory for memory, _ in calls]
    there = run_emulated(module, processor, memories, tmp_path)
    module.triple = compile_target().triple
    for (memory, offsets), here, other in zip(calls, run_here(module, memories), there, strict=True):
        changed = 0
        for name, offset in offsets.items():
            arrays = [np.frombuffer(content, dtype, ROOM, offset) for content in (here, other, bytes(memory.content))]
            np.testing.assert_array_equal(arrays[1], arrays[0], err_msg=f"step {memory.function}, {name}")
            changed += not np.array_equal(arrays[0], arrays[2], equal_nan=True)
        assert changed


def test_a_plain_step_is_the_equations(processor: str, tmp_path: Path) -> None:
    """In float64 from the same numbers; each function of a gate is within 1.5 epsilons."""
    from llvmlite import ir

    from lstmcore_numba import cell
    from lstmcore_numba.codegen.step_compiler import add_step
    from lstmcore_numba.codegen.step_emitter import StepVariant, step_config

    def emit(step: Any) -> None:
        cell.forward(step)
        cell.forward_cell(step)

    lanes = target_of(processor).vector_bytes // 4
    module = ir.Module("steps")
    add_step(
        module,
        "step",
        emit,
        StepVariant(step_config(_CONFIGS["plain"], lanes), "float32", "float32", lanes, record=True),
    )
    add_dispatch(module)
    memory, offsets = step_memory(0, "float32", 0)
    width = 48 // lanes * lanes
    numbers = {name: np.frombuffer(bytes(memory.content), "f4", ROOM, offset) for name, offset in offsets.items()}
    z = numbers["GATES"][: ROWS * 4 * lanes].reshape(ROWS, 4, lanes) + numbers["BIAS"][: 4 * lanes].reshape(4, lanes)
    c_before = numbers["C_BEFORE"][: ROWS * width].reshape(ROWS, width)[:, :lanes].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        i, f, o = (1 / (1 + np.exp(-z[:, k].astype(np.float64))) for k in (0, 1, 3))
        g = np.tanh(z[:, 2].astype(np.float64))
        c = f * c_before + i * g
        h = o * np.tanh(c)
    (after,) = run_emulated(module, processor, [memory], tmp_path)
    got = {name: np.frombuffer(after, "f4", ROOM, offset)[: ROWS * width] for name, offset in offsets.items()}
    epsilon, active = np.finfo("f4").eps, np.arange(ROWS) != ENDED
    c_bound = epsilon * (1.5 * np.abs(f * c_before) + 3.5 * np.abs(i * g) + 0.5 * np.abs(c))
    for name, want, bound in (("C", c, c_bound), ("H", h, epsilon * 3.5 * np.abs(h) + o * c_bound)):
        found = got[name].reshape(ROWS, width)[:, :lanes].astype(np.float64)
        finite = np.isfinite(want) & active[:, None]
        assert finite.sum() > ROWS * lanes // 3
        assert (np.abs(found - want)[finite] <= bound[finite] + 1e-38).all(), name
        assert np.array_equal(np.isnan(found[active]), np.isnan(want[active]))
        before = numbers["C_BEFORE" if name == "C" else "H_BEFORE"][: ROWS * width].reshape(ROWS, width)
        assert np.array_equal(found[ENDED], before[ENDED, :lanes])
