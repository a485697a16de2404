"""The persistent kernels on the processor: each block of them in a thread of the operating system."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emulation import EmulatedDevice, EmulatedProgram, Order
from lstmcore.backend import Forward, Gradients, Masks
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws, same_bits
from lstmcore_conformance.suite.runner import Item, items, run_item
from lstmcore_cupy import persistent, program_source, tuning
from lstmcore_cupy.kernel import CupyBackend, CupyKernel
from smoke import CHEAP, require_passed, smoke_or_slow

pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

#: Precision -> the items that run in it.
SELECTED = {
    "float32": "(switches or lengths or masks or sizes or stack or contract) and not layer_norm",
    "float64": "(forward.switches or backward.switches) and (plain or reverse or recurrence_cell)",
    "tf32": "(forward or backward) and (plain or recurrence_cell or masks or lengths)"
    " and not (rows or layer_norm or extremes)",
    "bfloat16": "(forward or backward) and (plain or coupling or recurrence_cell or masks or lengths)"
    " and not (rows or layer_norm or extremes)",
    "float16": "(forward or backward) and (plain or recurrence_cell) and not (rows or layer_norm or extremes)",
}
#: The order of the threads of a block, and the seed of the turns of blocks: see `EmulatedDevice`.
Schedule = tuple[Order, int | None]
#: The right code gives the same bits on each of these, and each planted fault gives others.
SCHEDULES: tuple[Schedule, ...] = (("ascending", None), ("descending", None), ("mixed", None), ("mixed", 0))


def _device(tested: BackendUnderTest) -> EmulatedDevice:
    device: EmulatedDevice = tested.backend.device  # type: ignore[attr-defined]  # of CupyBackend
    return device


def _tested(**options: object) -> BackendUnderTest:
    backend = CupyBackend(EmulatedDevice(**options), persistent=True)  # type: ignore[arg-type]
    return BackendUnderTest(backend, Draws(max_examples=4))


SUBJECT = _tested()
ITEMS: list[Item] = [
    item for precision, chosen in SELECTED.items() for item in items(SUBJECT, [precision], f"({chosen}) and {CHEAP}")
]


@pytest.mark.parametrize("item", smoke_or_slow(ITEMS))
def test_conforms(item: Item) -> None:
    require_passed(run_item(SUBJECT, item))


def _launched(tested: BackendUnderTest) -> list[str]:
    return [kernel for program in _device(tested)._programs.values() for kernel in program.launches]


def _wide(name: str, batch: int = 19, precision: str = "float32") -> Case:
    """Return a case whose blocks have 21 and 20 units; 19 rows are 16 and 3. With three rows there are four blocks."""
    changes = {**SWITCHES[name], "hidden_size": 41}
    lengths = (4, 3, 2, *range(5), *(3,) * 11)[:batch]
    model = config_of(changes)
    return Case(name=f"wide,{name}", model=model, precision=precision, steps=4, batch=batch, lengths=lengths)


def _both(tested: BackendUnderTest, case: Case) -> dict[str, np.ndarray]:
    """Return the results of the two passes."""
    return {**tested.forward(case), **tested.gradients(case)}


@pytest.mark.slow  # compiling takes seconds for each
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("name", ["plain", "recurrence_cell"])
def test_the_order_in_which_threads_run_changes_no_bit(name: str, precision: str) -> None:
    first, *others = (_tested(order=order, seed=seed) for order, seed in SCHEDULES)
    case = _wide(name, precision=precision)
    expected = _both(first, case)
    assert all(np.isfinite(array.astype(np.float32)).all() for array in expected.values())
    for other in others:
        same_bits("another order", _both(other, case), expected)
    launched, kind = set(_launched(first)), "_tf32" if precision == "tf32" else ""
    assert {f"forward_persistent{kind}", f"backward_persistent{kind}"} <= launched
    assert not {"forward_cell", "backward_cell", "backward_last"} & launched


def _parameters(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) / 6 for name, shape in shapes.items()}


def _arrays(done: Forward, found: Gradients) -> dict[str, np.ndarray]:
    return {"y": done.y, "h": done.state.h, "c": done.state.c, "x": found.x, **found.parameters} | {
        "dh": found.state.h,
        "dc": found.state.c,
    }


def _stack_passes(device: EmulatedDevice, *, persistent: bool) -> dict[str, np.ndarray]:
    stack = StackConfig.make(LSTMConfig(input_size=3, hidden_size=41), num_layers=2, bidirectional=True)
    kernel = CupyBackend(device, persistent=persistent).compile_stack(stack, "float32")
    shapes = {
        name + suffix: shape
        for config, suffix in zip(stack.configs, stack.suffixes, strict=True)
        for name, shape in config.parameter_shapes.items()
    }
    weights = kernel.pack(_parameters(shapes))
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((4, 3, 3), np.float32), rng.standard_normal((4, 3, 82), np.float32)
    lengths = np.array((4, 0, 3))
    done = kernel.forward(weights, x, None, lengths=lengths, record=True)
    return _arrays(done, kernel.backward(weights, done.tape, dy, done.state))


def _of_device(device: EmulatedDevice) -> list[str]:
    return [kernel for program in device._programs.values() for kernel in program.launches]


def test_both_directions_are_one_launch() -> None:
    want = _stack_passes(EmulatedDevice(), persistent=False)
    for schedule in SCHEDULES:
        device = EmulatedDevice(*schedule)
        found = _stack_passes(device, persistent=True)
        assert _of_device(device).count("forward_persistent") == 2  # of two layers
        assert _of_device(device).count("backward_persistent") == 2
        for name, array in want.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=400 * 2.0**-24 * np.abs(array).max())


def test_directions_that_do_not_fit_run_in_turn() -> None:
    """Two directions that do not fit on the device together run one after the other."""

    class Narrow(EmulatedDevice):
        multiprocessors = 1

    narrow, wide = Narrow(), EmulatedDevice()
    same_bits("one by one", _stack_passes(narrow, persistent=True), _stack_passes(wide, persistent=True))
    assert _of_device(narrow).count("forward_persistent") == _of_device(narrow).count("backward_persistent") == 4


def test_a_tile_in_parts_of_its_columns() -> None:
    class Small(EmulatedDevice):
        shared_bytes = 20 << 10

    tested = BackendUnderTest(CupyBackend(Small(), persistent=True), Draws(max_examples=1))
    kernel = tested.backend.compile(LSTMConfig(input_size=2, hidden_size=41), "float32")
    assert isinstance(kernel, CupyKernel)
    found = [
        kernel.plan(kernel.programs(kernel.backend.device), name, 19, 1)
        for name in ("forward_persistent", "backward_persistent")
    ]
    assert [plan.depth for plan in found if isinstance(plan, persistent.Plan)] == [41, 64]  # of 41 and of 164
    one, two = _both(tested, _wide("plain")), _both(_tested(), _wide("plain"))
    for name, array in two.items():
        np.testing.assert_allclose(one[name], array, rtol=0, atol=64 * 2.0**-24 * np.abs(array).max())


def test_steps_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "FORWARD_BUFFER", 2 * 19 * 4 * 41)
    tested = _tested()
    case = _wide("plain")
    (config,) = case.configs
    kernel = tested.backend.compile(config, "float32")
    x = np.random.default_rng(0).standard_normal((5, 19, config.input_size), np.float32)
    weights = kernel.pack(_parameters(dict(config.parameter_shapes)))
    whole = kernel.forward(weights, x, record=True)
    assert _launched(tested).count("forward_persistent") == 1
    parts = kernel.forward(weights, x)
    assert _launched(tested).count("forward_persistent") == 1 + 3
    np.testing.assert_array_equal(parts.y, whole.y)
    for found, want in zip(parts.state, whole.state, strict=True):
        np.testing.assert_array_equal(found, want)


#: Text of the source -> its replacement, and a batch size at which that is wrong on every schedule.
BARRIERS = {
    "        if (step > 0 && !grid_barrier(a, step)) return forward_failed(a, share, s);\n": ("", 3),
    "        if (s < a.T - 1 && !grid_barrier(a, a.T - 1 - s)) return backward_failed(a, share, s);\n": ("", 3),
    "        __syncthreads();  // other threads may still read the last tile and sums\n": ("", 19),
    "        __syncthreads();  // the tile, and the weights\n": ("", 3),
    "    __syncthreads();  // the sums\n": ("", 3),
    "    __syncthreads();  // the block's writes\n": ("", 3),
}
FAULTS = {
    "const long long n = first + row, j": ("const long long n = (first + row) ^ 1, j", 18),  # a row off by one
    "const long long n = first + e / units, j": ("const long long n = (first + e / units) ^ 1, j", 18),
    "for (int k = lane; k < columns; k += WARP)\n#pragma": (
        "for (int k = lane + 1; k < columns; k += WARP)\n#pragma",
        3,
    ),
    "a.r_turns ? s % 2": ("a.r_turns ? 0", 3),  # one r for all steps
    "a.dz + (time_of(a, s + 1)": ("a.dz + (time_of(a, s + 2 < a.T ? s + 2 : s + 1)", 3),  # dz of the step before
    "begin ? sums[n * outputs + o] + part[0] : part[0]": ("part[0]", 19),  # parts of columns are not added up
    "part[0] += __shfl_xor_sync(0xffffffffu, part[0], 1);": ("part[0] *= 2;", 3),  # one of two lanes for both
    "a.H + share.first_unit + o];": ("a.H + share.first_unit + (o + 1) % units];", 3),  # another column of R
    "long long* arrived = a.arrived + blockIdx.y;": ("long long* arrived = a.arrived;", 19),  # one barrier for all rows
    "own = before_product(a, s, own_row, own_unit);": (
        "own = before_product(a, a.s, own_row, own_unit);",
        3,
    ),  # one W x
    "first == share.first_row && e == threadIdx.x;": ("e == threadIdx.x;", 19),  # the first tile's for every tile
    "here.from_x[gate] + sums[row * outputs + output] + bias[output];": (
        "here.from_x[gate] + sums[row * outputs + output] + bias[unit];",  # that of gate 0
        3,
    ),
}


class _Cut(EmulatedDevice):
    """A device with so little shared memory that the tiles of backward are cut into parts."""

    shared_bytes = 20 << 10


@pytest.fixture(scope="module")
def right() -> dict[int, dict[str, np.ndarray]]:
    tested = BackendUnderTest(CupyBackend(_Cut(), persistent=True))
    return {batch: _both(tested, _wide("plain", batch)) for batch in (3, 18, 19)}


def _edited(there: str, instead: str, batch: int, schedule: Schedule) -> dict[str, np.ndarray]:
    """Return the results of a changed source on a schedule."""
    device = _Cut(*schedule, edit=lambda text: text.replace(there, instead))
    device.check = lambda: None  # type: ignore[method-assign]  # the values have to show the fault
    return _both(BackendUnderTest(CupyBackend(device, persistent=True)), _wide("plain", batch))


def _equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], array, equal_nan=True) for name, array in other.items())


def _bits(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.slow  # as many sums as for the faults
@pytest.mark.parametrize(
    "schedule", [*SCHEDULES, *((order, seed) for order in ("ascending", "descending") for seed in (0, 1))]
)
def test_right_code_is_right_on_every_schedule(schedule: Schedule, right: dict[int, dict[str, np.ndarray]]) -> None:
    """The code in which faults are planted, at their batch sizes."""
    for batch, arrays in right.items():
        assert _bits(_edited("", "", batch, schedule)) == _bits(arrays)


@pytest.mark.slow  # compiling takes seconds for each
@pytest.mark.parametrize("there", [*BARRIERS, *FAULTS])
def test_a_planted_fault_is_caught(there: str, right: dict[int, dict[str, np.ndarray]]) -> None:
    instead, batch = {**BARRIERS, **FAULTS}[there]
    assert program_source.source("lstm.cu").count(there) == 1
    wrong = {schedule: _edited(there, instead, batch, schedule) for schedule in SCHEDULES}
    assert [schedule for schedule, found in wrong.items() if _equal(found, right[batch])] == []
    last = SCHEDULES[-1]
    again = _edited(there, instead, batch, last)
    assert _bits(again) == _bits(wrong[last])  # wrong in the same way, each time


#: Name -> text of the source and its replacement, with which a kernel waits in vain.
DIVERGENCES = {
    "forward, a block that leaves": (
        "        const long long s = a.s + step;\n",
        "        const long long s = a.s + step;\n        if (blockIdx.x == 1 && s == 2) return;\n",
    ),
    "backward, a block that leaves": (
        "    for (long long s = a.T - 1; s >= -1; --s) {",
        "    for (long long s = a.T - 1; s >= (blockIdx.x == 1 ? 2 : -1); --s) {",
    ),
    "forward, a barrier that wants too many": ("!grid_barrier(a, step)", "!grid_barrier(a, step + 1)"),
    "backward, a barrier that wants too many": ("!grid_barrier(a, a.T - 1 - s)", "!grid_barrier(a, a.T - s)"),
}


@pytest.mark.slow  # compiling takes seconds for each
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_barrier_that_never_opens_is_an_error(name: str) -> None:
    """A barrier that never opens ends in an error and not in a hang."""
    there, instead = DIVERGENCES[name]
    assert there in program_source.source("lstm.cu")

    def edit(text: str) -> str:
        return text.replace(there, instead).replace("POLLS 8388608", "POLLS 20000")

    device = EmulatedDevice(edit=edit)
    config = LSTMConfig(input_size=2, hidden_size=41)
    kernel = CupyBackend(device, persistent=True).compile(config, "float32")
    weights = kernel.pack(_parameters(dict(config.parameter_shapes)))
    x = np.random.default_rng(0).standard_normal((5, 19, 2), np.float32)

    def both() -> dict[str, np.ndarray]:
        done = kernel.forward(weights, x, record=True)
        return _arrays(done, kernel.backward(weights, done.tape, done.y))

    with pytest.raises(RuntimeError, match="emulated: the blocks of a persistent kernel waited too long"):
        both()
    assert not device.failed[0]
    device.check = lambda: None  # type: ignore[method-assign]  # as before the device has run what was started
    found = both()
    if name.startswith("forward"):
        assert np.isnan(found["y"][3]).any() and np.isnan(found["h"]).any() and np.isnan(found["c"]).any()
    else:
        assert np.isfinite(found["y"]).all()
    for array in ("x", "weight_x", "weight_h", "bias", "dh", "dc"):
        assert np.isnan(found[array]).any()


def test_receipts_say_which_path_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(EmulatedDevice):
        shared_bytes = 1 << 10

    config = LSTMConfig(input_size=2, hidden_size=41)
    backend = CupyBackend(EmulatedDevice(), persistent=True)
    found = backend.compile(config, "float32").receipt(4, 19)
    assert (found.path, found.fallback) == ("all steps in one launch", None)
    assert "forward in 4 blocks that keep R on chip, 2 over the units, 2 over the rows" in found.reason
    both = backend.compile_stack(StackConfig.make(config, bidirectional=True), "float32").receipts(4, 19)
    assert all(
        "backward in 4 blocks that keep R on chip, 1 over the units, 2 over the rows, 2 directions" in each.reason
        for each in both
    )
    two = "a product and a kernel a step"
    for device, changes, path, reason in (
        (EmulatedDevice(), {"proj_size": 3}, two, "the persistent kernels have no projection"),
        (EmulatedDevice(), {"layer_norm": True}, two, "the persistent kernels have no layer norm"),
        (
            Small(),
            {},
            two,
            "forward_persistent needs 12256 bytes of the shared memory of each multiprocessor of emulated",
        ),
    ):
        config = LSTMConfig(input_size=2, hidden_size=41, **changes)  # type: ignore[arg-type]
        found = CupyBackend(device, persistent=True).compile(config, "float32").receipt(4, 19)
        assert found.path == path
        assert found.fallback is not None and reason in found.fallback
        assert CupyBackend(device, persistent=False).compile(config, "float32").receipt(4, 19).fallback is None
    monkeypatch.setattr(EmulatedProgram, "resident_blocks", lambda self, kernel, *_: 3 + (kernel[0] == "f"))
    found = backend.compile(LSTMConfig(input_size=2, hidden_size=41), "float32").receipt(4, 19)
    assert found.path == f"forward all steps in one launch, backward {two}"
    assert found.fallback == "emulated holds 3 of the 4 blocks of backward_persistent at once"


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("batch", [1, 16, 17, 64, 256])
@pytest.mark.parametrize("hidden", [1, 7, 64, 100, 256, 512, 768, 1024, 2048])
def test_plans_cover_all_units_and_rows_within_what_a_device_has(
    hidden: int, batch: int, directions: int, precision: str
) -> None:
    device = SimpleNamespace(multiprocessors=132, shared_bytes=227 << 10, name="cuda:0")
    program = SimpleNamespace(resident_blocks=lambda kernel, threads, shared_bytes: 132)
    config, real = LSTMConfig(input_size=2, hidden_size=hidden), np.dtype(np.float32)
    sizes = {"real": real, "storage": np.dtype(np.uint16) if precision == "bfloat16" else real}
    formats = {"tensor_cores": precision != "float32", **sizes}
    programs: Any = SimpleNamespace(config=config, device=device, program=program, **formats)
    for kernel in ("forward_persistent", "backward_persistent"):
        found = persistent.plan(programs, kernel, batch, directions)  # type: ignore[arg-type]  # one of the two names
        if hidden == 2048:
            assert isinstance(found, str)
            continue
        assert isinstance(found, persistent.Plan)
        units, rows, sides = found.grid
        assert (units - 1) * found.units < hidden <= units * found.units
        assert (rows - 1) * found.rows < batch <= rows * found.rows
        assert found.blocks <= 132
        assert found.shared_bytes <= 227 << 10
        assert found.threads % 32 == 0 and 32 <= found.threads <= 256
        assert sides == (1 if hidden == 1024 and precision != "bfloat16" else directions)


def test_the_next_plan_is_taken_where_the_best_is_not_resident() -> None:
    device = SimpleNamespace(multiprocessors=132, shared_bytes=227 << 10, name="cuda:0")
    config, real = LSTMConfig(input_size=2, hidden_size=100), np.dtype(np.float32)
    asked: list[int] = []

    def resident(kernel: str, threads: int, shared_bytes: int) -> int:
        asked.append(shared_bytes)
        return 0 if len(asked) <= refused else 132

    program = SimpleNamespace(resident_blocks=resident)
    formats = {"tensor_cores": False, "real": real, "storage": real}
    programs: Any = SimpleNamespace(config=config, device=device, program=program, **formats)
    for refused in (0, 1, 3):
        asked.clear()
        found = persistent.plan(programs, "forward_persistent", 64)
        assert isinstance(found, persistent.Plan)
        assert len(asked) == refused + 1
        assert found.shared_bytes == asked[-1]
    refused = 1000
    assert persistent.plan(programs, "forward_persistent", 64) == (
        "cuda:0 holds 0 of the 100 blocks of forward_persistent at once"
    )


def test_sizes_are_those_of_the_source() -> None:
    text = program_source.source("lstm.cu")
    assert f"#define TILE {persistent._TILE} " in text
    assert f"#define BLOCK {persistent._BLOCK} " in text
    assert f"#define MMA_ROWS {persistent._TILE} " in text
    assert f"#define MMA_OUTPUTS {persistent._OUTPUTS} " in text
    assert f"#define MMA_DEPTH ({persistent._FRAGMENT} / (int)sizeof(stored)) " in text
    assert f"#define MAX_THREADS {persistent._WARP * persistent._MOST_WARPS}\n" in text


def test_masks_of_recurrent_dropout_reach_the_persistent_kernel() -> None:
    config = LSTMConfig(input_size=2, hidden_size=9, recurrent_dropout=0.5)
    rng = np.random.default_rng(1)
    parameters = {name: rng.standard_normal(shape, np.float32) for name, shape in config.parameter_shapes.items()}
    x, mask = rng.standard_normal((4, 3, 2), np.float32), rng.integers(0, 2, (3, 9)).astype(np.float32) * 2
    one, two = (CupyBackend(EmulatedDevice(), persistent=flag).compile(config, "float32") for flag in (False, True))
    want, found = (each.forward(each.pack(parameters), x, masks=Masks(recurrent=mask)).y for each in (one, two))
    np.testing.assert_allclose(found, want, atol=64 * 2.0**-24)
