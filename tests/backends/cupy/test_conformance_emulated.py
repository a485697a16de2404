"""The conformance suite on the CuPy backend, its kernels compiled for the processor.

It says nothing about what only a GPU has: its memory model, its occupancy, cuBLAS, speed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emulation import EmulatedDevice
from lstmcore.stored_weights import SAME
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws, same_bits
from lstmcore_conformance.suite.report import Outcome
from lstmcore_conformance.suite.runner import Item, items, run_item
from lstmcore_cupy import program_source, tuning
from lstmcore_cupy.kernel import CupyBackend
from smoke import CHEAP, require_passed, smoke_or_slow

pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

#: Precision -> the items that run in it. Storage and compute formats differ; the rest of the source is the same.
SELECTED = {
    "float32": "not (backward.rows and layer_norm)",
    "float64": "switches or lengths.backward or masks.jvp or sizes or kinks or weights.",
    "tf32": "switches or lengths.backward or masks or sizes or backward.combinations or drawn.backward or drawn.jvp"
    " or declared or weights. and plain",
    "bfloat16": "switches or lengths or masks or sizes or extremes or contract or errors",
    "float16": "switches or lengths or masks or sizes or extremes or contract",
}
HERE = Path(__file__).parent


def _tested(**options: object) -> BackendUnderTest:
    return BackendUnderTest(CupyBackend(EmulatedDevice(**options)), Draws(max_examples=10))  # type: ignore[arg-type]


TESTED = _tested()


def _selected() -> Iterator[Item]:
    for precision, chosen in SELECTED.items():
        # Emulated threads take turns, which takes long for what is large; int8a16 is not declared.
        yield from items(TESTED, [precision], f"({chosen}) and {CHEAP} and not large. and not tiles and not int8a16")


ITEMS = list(_selected())


@pytest.fixture(scope="module", autouse=True)
def _programs(request: pytest.FixtureRequest) -> None:
    """Compile what the selected items need, two programs at a time."""
    called = [test.callspec.params for test in request.session.items if hasattr(test, "callspec")]
    selected = {params["item"].id for params in called if "item" in params}
    cases = [item.case for item in ITEMS if item.case is not None and item.id in selected]
    texts = {program_source.program(config, case.policy) for case in cases for config in case.configs}
    device = TESTED.backend.device  # type: ignore[attr-defined]
    texts |= {program_source.product_program(case.policy) for case in cases if case.weights != SAME}
    device.prepare(texts | {program_source.rows_program(case.policy) for case in cases})


@pytest.mark.parametrize("item", smoke_or_slow(ITEMS))
def test_conforms(item: Item) -> None:
    require_passed(run_item(TESTED, item))


def _wide(name: str) -> Case:
    """A case whose blocks have three warps, the last of them not full."""
    changes = {**SWITCHES[name], "hidden_size": 70}
    lengths, masks = (4, 0, 2), "everything" in name or "zoneout" in name
    return Case(
        name=f"wide,{name}",
        model=config_of(changes),
        precision="float32",
        steps=4,
        batch=3,
        lengths=lengths,
        masks=masks,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "layer_norm", "zoneout_cell,peephole", "everything", "everything_coupled"])
def test_the_order_in_which_threads_run_changes_no_bit(name: str) -> None:
    case = _wide(name)
    first, *others = (_tested(order=order) for order in ("ascending", "descending", "mixed"))
    for call in (BackendUnderTest.forward, BackendUnderTest.gradients, BackendUnderTest.tangents):
        expected = call(first, case)
        assert all(np.isfinite(array).all() for array in expected.values())
        for other in others:
            same_bits("another order", call(other, case), expected)


@pytest.mark.slow
def test_steps_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "FORWARD_BUFFER", 1)
    chosen = "forward.switches and (plain or reverse or everything) or lengths.forward"
    for item in items(TESTED, ["float32", "bfloat16"], chosen):
        assert run_item(TESTED, item).outcome is Outcome.PASSED


#: Barriers that layer norm needs. Without one of them the result is wrong in one of the orders.
BARRIERS = (
    "    __syncthreads();  // the sums read dz of all units\n",
    "    __syncthreads();  // other threads may still read the last sum\n",
    "    __syncthreads();  // the sums of all warps\n",
)


@pytest.mark.slow
@pytest.mark.parametrize("barrier", BARRIERS)
def test_a_missing_barrier_is_caught(barrier: str) -> None:
    case, source = _wide("layer_norm"), program_source.source("lstm.cu")
    assert barrier in source
    right, caught = TESTED.gradients(case), []
    for order in ("ascending", "descending", "mixed"):
        wrong = _tested(order=order, edit=lambda text: text.replace(barrier, "")).gradients(case)
        caught.append(any(not np.array_equal(wrong[name], right[name], equal_nan=True) for name in right))
    assert any(caught)


#: Name -> text of the source, its replacement, and the items that must find the fault.
FAULTS = {
    "a row off by one": ("a.dr[n * a.R + j]", "a.dr[(n > 0 ? n - 1 : n) * a.R + j]", "backward.switches and plain"),
    "a length off by one": (
        "time_of(a, s) < a.ends[n]",
        "time_of(a, s) <= a.ends[n]",
        "lengths.forward and (plain or reverse)",
    ),
    "a gate in another's place": (
        "gates.i = gate_value(a, I_GATE, z[I_GATE])",
        "gates.i = gate_value(a, I_GATE, z[F_GATE < 0 ? I_GATE : F_GATE])",
        "forward.switches and plain",
    ),
    "a step off by one": (
        "const real* c_after = a.c + (s + 1) * a.c_stride",
        "const real* c_after = a.c + s * a.c_stride",
        "backward.switches and plain",
    ),
    "a sum that ends early": (
        "begin + a.part < rows ? begin + a.part : rows",
        "begin + a.part < rows ? begin + a.part : rows - 1",
        "backward.switches and plain",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str) -> None:
    right, wrong, chosen = FAULTS[name]
    assert right in program_source.source("lstm.cu") + program_source.source("rows.cu")
    tested = _tested(edit=lambda text: text.replace(right, wrong))
    outcomes = [run_item(tested, item).outcome for item in items(tested, ["float32"], chosen)]
    assert Outcome.FAILED in outcomes


_SANITIZED = """
import sys
sys.path.insert(0, {folder!r})
from emulation import EmulatedDevice
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest
from lstmcore_conformance.suite.runner import items, run_item
from lstmcore_cupy.kernel import CupyBackend

edit = (lambda text: text.replace(*{fault!r})) if {fault!r} else None
device = EmulatedDevice(sanitize=True, edit=edit)
backends_under_test = [BackendUnderTest(CupyBackend(device, persistent=persistent)) for persistent in (True, False)]
chosen = "(forward or backward or jvp or masks or lengths) and (plain or everything or everything_coupled)"
runs = [(tested, precision, chosen) for tested in backends_under_test for precision in ("float32", "float16")]
runs.append((backends_under_test[0], "tf32", "(forward or backward) and plain"))
cheap = " and not rows and not long and not combination and not large."
outcomes = [
    run_item(tested, item).outcome.value
    for tested, precision, some in runs
    for item in items(tested, [precision], "(" + some + ")" + cheap)
]
print(len(outcomes), sorted(set(outcomes)))
"""


def _sanitized(fault: tuple[str, str] | None) -> subprocess.CompletedProcess[str]:
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {**os.environ, "LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    code = _SANITIZED.format(folder=str(HERE), fault=fault)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_sanitizers_find_nothing() -> None:
    run = _sanitized(None)
    assert run.returncode == 0, run.stderr[-3000:]
    number, outcomes = run.stdout.split(maxsplit=1)
    assert int(number) > 100
    assert outcomes == "['passed']\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        ("a.narrow_target[blockIdx.x * a.width + k]", "a.narrow_target[blockIdx.x * a.width + k + 1]"),
        ("Product::tile_bytes(a.depth)", "Product::tile_bytes(5 * a.depth)"),
    ],
    ids=["global memory", "shared memory"],
)
def test_sanitizers_find_a_write_past_the_end(fault: tuple[str, str]) -> None:
    assert fault[0] in program_source.source("lstm.cu") + program_source.source("rows.cu")
    run = _sanitized(fault)
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr
