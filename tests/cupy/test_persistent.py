"""The persistent kernel on the processor: each block of it in a thread of the operating system."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from emulation import EmulatedDevice, Order

from lstmcore.backend import Masks
from lstmcore.config import LSTMConfig
from lstmcore_conformance.cases import Case
from lstmcore_conformance.report import Outcome
from lstmcore_conformance.subject import Draws, Failure, Subject, same_bits
from lstmcore_conformance.suite import Item, items, run_item
from lstmcore_conformance.switches import SWITCHES, config_of
from lstmcore_cupy import forward, persistent, variants
from lstmcore_cupy.kernel import CupyBackend

pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")
pytestmark = [pytest.mark.cupy, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]

#: Precision -> what runs in it.
SELECTED = {
    "float32": "(forward.switches or backward.switches or lengths or masks.forward or sizes) and not layer_norm",
    "float64": "forward.switches and (plain or reverse or recurrence_cell)",
    "bfloat16": "forward.switches and (plain or zoneout_hidden or coupling)",
}
ORDERS: tuple[Order, ...] = ("ascending", "descending", "mixed")


def _device(subject: Subject) -> EmulatedDevice:
    device: EmulatedDevice = subject.backend.device  # type: ignore[attr-defined]  # of CupyBackend
    return device


def _subject(**options: object) -> Subject:
    backend = CupyBackend(EmulatedDevice(**options), persistent=True)  # type: ignore[arg-type]
    return Subject(backend, Draws(max_examples=4))


SUBJECT = _subject()
ITEMS: list[Item] = [item for precision, chosen in SELECTED.items() for item in items(SUBJECT, [precision], chosen)]


@pytest.mark.parametrize("item", ITEMS, ids=[item.id for item in ITEMS])
def test_conforms(item: Item) -> None:
    found = run_item(SUBJECT, item)
    assert found.outcome is Outcome.PASSED, found.message


def _launched(subject: Subject) -> list[str]:
    return [kernel for program in _device(subject)._programs.values() for kernel in program.launches]


def _wide(name: str, batch: int = 19) -> Case:
    """A case of four blocks, the last of them with fewer units; of 19 rows two tiles, the last of them not full."""
    changes = {**SWITCHES[name], "hidden_size": 41}
    lengths = (4, 3, 2, *range(5), *(3,) * 11)[:batch]
    model = config_of(changes)
    return Case(name=f"wide,{name}", model=model, precision="float32", steps=4, batch=batch, lengths=lengths)


@pytest.mark.parametrize("name", ["plain", "recurrence_cell"])
def test_the_order_in_which_threads_run_changes_no_bit(name: str) -> None:
    first, *others = (_subject(order=order) for order in ORDERS)
    for call in (Subject.forward, Subject.gradients):
        expected = call(first, _wide(name))
        assert all(np.isfinite(array).all() for array in expected.values())
        for other in others:
            same_bits("another order", call(other, _wide(name)), expected)
    assert "forward_persistent" in _launched(first)
    assert "forward_cell" not in _launched(first)


def test_steps_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "BUFFER", 2 * 19 * 4 * 41)
    subject = _subject()
    case = _wide("plain")
    (config,) = case.configs
    kernel = subject.backend.compile(config, "float32")
    rng = np.random.default_rng(0)
    parameters = {name: rng.standard_normal(shape, np.float32) / 6 for name, shape in config.parameter_shapes.items()}
    x = rng.standard_normal((5, 19, config.input_size), np.float32)
    weights = kernel.pack(parameters)
    whole = kernel.forward(weights, x, record=True)
    assert _launched(subject).count("forward_persistent") == 1
    parts = kernel.forward(weights, x)
    assert _launched(subject).count("forward_persistent") == 1 + 3
    np.testing.assert_array_equal(parts.y, whole.y)
    for found, want in zip(parts.state, whole.state, strict=True):
        np.testing.assert_array_equal(found, want)


#: Barriers, each with a batch size: what is in the source without them is wrong there in one of the orders.
BARRIERS = {
    "        if (step > 0) grid_barrier(a, step);\n": 3,
    "            __syncthreads();  // whoever still reads the tile before this one\n": 19,
    "            __syncthreads();  // the tile, and R\n": 3,
    "    __syncthreads();  // the block's writes\n": 3,
}


@pytest.mark.parametrize("barrier", BARRIERS)
def test_a_missing_barrier_is_caught(barrier: str) -> None:
    assert barrier in variants.source("lstm.cu")
    case = _wide("plain", BARRIERS[barrier])
    right, caught = SUBJECT.forward(case), []
    for order in ORDERS:
        wrong = _subject(order=order, edit=lambda text: text.replace(barrier, "")).forward(case)
        caught.append(any(not np.array_equal(wrong[name], right[name], equal_nan=True) for name in right))
    assert any(caught)


def test_a_barrier_that_never_opens_ends_the_launch_with_an_error() -> None:
    def edit(text: str) -> str:
        return text.replace("= times * gridDim.x", "= times * gridDim.x + 1").replace("POLLS 8388608", "POLLS 20")

    with pytest.raises(Failure, match="forward_persistent: a thread trapped"):
        _subject(edit=edit).forward(_wide("plain"))


#: Name -> what is there and what is in its place.
FAULTS = {
    "a row off by one": ("const long long n = first + row + lane,", "const long long n = (first + row + lane) ^ 1,"),
    "a lane that adds nothing": ("for (long long k = lane; k < K", "for (long long k = lane + 1; k < K"),
    "one r for all steps": ("a.r_turns ? s % 2", "a.r_turns ? 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str) -> None:
    right, wrong = FAULTS[name]
    assert right in variants.source("lstm.cu")
    case = Case(name="even", model=config_of({"hidden_size": 41}), precision="float32", steps=6, batch=18)
    want = SUBJECT.forward(case)
    assert any(
        not np.array_equal(found[name], want[name])
        for order in ORDERS
        for found in [_subject(order=order, edit=lambda text: text.replace(right, wrong)).forward(case)]
        for name in want
    )


def test_receipts_say_which_path_and_why() -> None:
    class Small(EmulatedDevice):
        shared_bytes = 1 << 10

    class Busy(EmulatedDevice):
        multiprocessors = 5

    config = LSTMConfig(input_size=2, hidden_size=41)
    backend = CupyBackend(EmulatedDevice(), persistent=True)
    found = backend.compile(config, "float32").receipt(4, 19)
    assert (found.path, found.fallback) == ("all steps in one launch", None)
    for device, changes, reason in (
        (EmulatedDevice(), {"proj_size": 3}, "the persistent kernel has no projection"),
        (EmulatedDevice(), {"layer_norm": True}, "the persistent kernel has no layer norm"),
        (Small(), {}, "R and a tile of r need 9840 bytes of the shared memory of each multiprocessor of emulated"),
        (Busy(), {}, "emulated holds 4 of the 5 blocks of the persistent kernel at once"),
    ):
        config = LSTMConfig(input_size=2, hidden_size=41, **changes)  # type: ignore[arg-type]
        found = CupyBackend(device, persistent=True).compile(config, "float32").receipt(4, 19)
        assert found.path == "a product and a kernel a step"
        assert found.fallback is not None and reason in found.fallback
        assert CupyBackend(device).compile(config, "float32").receipt(4, 19).fallback is None


def test_sizes_are_those_of_the_source() -> None:
    text = variants.source("lstm.cu")
    assert f"#define TILE {persistent._TILE} " in text
    assert f"#define QUAD {persistent._QUAD} " in text
    assert f"#define MAX_THREADS {persistent._WARP * persistent._MOST_WARPS}\n" in text


def test_masks_of_recurrent_dropout_reach_the_persistent_kernel() -> None:
    config = LSTMConfig(input_size=2, hidden_size=9, recurrent_dropout=0.5)
    rng = np.random.default_rng(1)
    parameters = {name: rng.standard_normal(shape, np.float32) for name, shape in config.parameter_shapes.items()}
    x, mask = rng.standard_normal((4, 3, 2), np.float32), rng.integers(0, 2, (3, 9)).astype(np.float32) * 2
    one, two = (CupyBackend(EmulatedDevice(), persistent=flag).compile(config, "float32") for flag in (False, True))
    want, found = (each.forward(each.pack(parameters), x, masks=Masks(recurrent=mask)).y for each in (one, two))
    np.testing.assert_allclose(found, want, atol=64 * 2.0**-24)
