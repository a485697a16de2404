"""Random masks that the GPU draws: the bits of the host, one launch each, on the GPU of x."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from emulation import EmulatedDevice
from emulation.gpu import CupyOnHost, Gpu, GpuArray
from lstmcore import LSTM
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.masks import BatchRows, MaskDraw, draw_on_host, stack_masks
from lstmcore.placement import drawing, place
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.oracle import philox
from lstmcore_cupy.kernel import CupyBackend
from lstmcore_cupy.mask_drawing import draw_mask

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

GPU = Gpu()
BACKEND = CupyBackend(GPU, persistent=False)
EVERY: dict[str, Any] = {"recurrent_dropout": 0.25, "zoneout_hidden": 0.2, "zoneout_cell": 0.3}
STACK = StackConfig.make(
    LSTMConfig(input_size=4, hidden_size=3, proj_size=2, **EVERY), num_layers=2, bidirectional=True, dropout=0.4
)
#: The whole batch, then rows of one of 7, whose words begin in any lane of a block.
ROWS = {"whole": None, "some": BatchRows(np.array([0, 2, 3, 6]), 7), "last": BatchRows(np.array([6]), 7)}


def _each(masks: Any) -> list[Any]:
    return [mask for part in (*masks.layers, masks.dropout) for mask in part]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("precision", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (2**40 + 3, 2**31), (2**64 - 1, 2**32 - 1)])
def test_every_mask_has_the_bits_of_the_host(precision: str, rows: str, seed: int, step: int) -> None:
    """Dropout, recurrent dropout and both kinds of zoneout, by one launch each; only numbers of rows are copied."""
    own = ROWS[rows]
    sizes = 5, 7 if own is None else len(own.numbers)
    options: Any = {"seed": seed, "step": step, "rows": own}
    wanted = stack_masks(STACK, PRECISIONS[precision], *sizes, **options)
    draw = drawing(*place("x", GPU.array_of(np.zeros(1, np.float32)), BACKEND))
    GPU.counts.clear()
    found = stack_masks(STACK, PRECISIONS[precision], *sizes, **options, draw=draw)
    count = 4 * 3 + 1
    assert GPU.counts.launches == ["draw_mask"] * count
    assert GPU.counts.copies_in == (0 if own is None else count)
    assert (GPU.counts.copies_out, GPU.counts.waits) == (0, 0)
    for one, other in zip(_each(found), _each(wanted), strict=True):
        assert isinstance(one, GpuArray) and one.dtype == other.dtype
        np.testing.assert_array_equal(one.get().view(np.uint8), other.view(np.uint8))


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0, 3), (3, 0), (2, 3, 5), (1030,), (4, 9, 257)], ids=str)
def test_sizes_that_divide_nothing(shape: tuple[int, ...]) -> None:
    """The words are those of an evaluation on whole numbers of Python, one block after the other."""
    draw = MaskDraw(2**33 + 5, 7, 9, shape, "float64", 0.375, (1.0, -2.5))
    with GPU.active():
        found = draw_mask(GPU, draw)
    count = int(np.prod(shape))
    words = [philox.block((e // 4, 0, 9, 7), (5, 2))[e % 4] for e in range(count)]
    wanted = [1.0 if word < 0.375 * 2**32 else -2.5 for word in words]
    assert found.shape == shape
    assert found.get().reshape(-1).tolist() == wanted


@pytest.mark.parametrize("rate", [0.0, 2.0**-32, 1 - 2.0**-33])
def test_rates_at_the_ends(rate: float) -> None:
    draw = MaskDraw(3, 1, 0, (9, 11), "float32", rate, (0.0, 3.0))
    np.testing.assert_array_equal(BACKEND.draw_mask(draw, GPU.array_of([0.0])).get(), draw_on_host(draw))


def test_a_word_at_the_limit_is_not_below_it() -> None:
    word = philox.block((1, 0, 0, 1), (3, 0))[2]
    draw = MaskDraw(3, 1, 0, (9,), "float32", word / 2.0**32, (0.0, 3.0))
    assert draw.limit == word
    found = BACKEND.draw_mask(draw, GPU.array_of([0.0])).get()
    assert found[6] == 3.0
    np.testing.assert_array_equal(found, draw_on_host(draw))


def test_the_order_of_threads_changes_nothing() -> None:
    draw = MaskDraw(3, 1, 4, (6, 3, 10), "float32", 0.4, (0.0, 3.0), BatchRows(np.array([1, 4, 5]), 8))
    for order in ("ascending", "descending", "mixed"):
        np.testing.assert_array_equal(draw_mask(EmulatedDevice(order), draw), draw_on_host(draw))  # type: ignore[arg-type]


def test_a_recorded_call_copies_no_mask() -> None:
    """A step with every mask copies its lengths alone; the tape has the masks on the GPU, with the bits of the host."""
    lstm = LSTM(4, 3, 2, bidirectional=True, dropout=0.4, proj_size=2, backend=BACKEND, seed=11, **EVERY)
    x = np.random.default_rng(0).standard_normal((5, 7, 4)).astype(np.float32)
    _, _, host = lstm.record(x)
    lstm.step = 0
    gx = GPU.array_of(x)
    lstm.record(gx)
    lstm.step = 0
    GPU.counts.clear()
    _, _, tape = lstm.record(gx, lengths=[5, 1, 0, 2, 5, 3, 4])
    assert GPU.counts.launches.count("draw_mask") == 4 * 3 + 1
    assert (GPU.counts.copies_in, GPU.counts.copies_out, GPU.counts.waits) == (1, 0, 0)
    for one, other in zip(_each(tape.masks), _each(host.masks), strict=True):
        np.testing.assert_array_equal(one.get(), other)


def test_masks_are_drawn_on_the_gpu_of_x() -> None:
    """Another GPU is current, and the program runs where its memory is."""
    running: list[int] = []

    class Watched(CupyOnHost):
        def launched(self, name: str, number: int | None = None) -> None:
            running.append(self.current)
            super().launched(name, number)

    cupy = Watched()
    second = Gpu(1, cupy)
    draw = MaskDraw(3, 1, 4, (6, 3, 10), "float32", 0.4, (0.0, 3.0), BatchRows(np.array([1, 4, 5]), 8))
    found = CupyBackend(second).draw_mask(draw, second.array_of([0.0]))
    assert (cupy.current, found.device.id, running) == (0, 1, [1])
    np.testing.assert_array_equal(found.get(), draw_on_host(draw))


def test_masks_of_the_caller_are_copied_on_their_gpu() -> None:
    """Another GPU is current; CuPy would make the copy there."""
    second = Gpu(1, CupyOnHost())
    lstm = LSTM(4, 3, num_layers=2, dropout=0.5, backend=CupyBackend(second), seed=11)
    x = second.array_of(np.ones((2, 3, 4), np.float32))
    drawn, _, tape = lstm.record(x)
    given, _, again = lstm.record(x, masks=tape.masks)
    np.testing.assert_array_equal(given.get(), drawn.get())
    dx = lstm.backward(again, given).x
    assert {array.device.id for array in (given, dx)} == {1}  # type: ignore[attr-defined]
    np.testing.assert_array_equal(dx.get(), lstm.backward(tape, drawn).x.get())  # type: ignore[attr-defined]


def test_a_step_out_of_range_is_told_before_anything_is_drawn() -> None:
    lstm = LSTM(4, 3, recurrent_dropout=0.5, backend=BACKEND, seed=11)
    lstm.step = 2**32 - 1
    x = GPU.array_of(np.zeros((2, 1, 4), np.float32))
    lstm.record(x)
    with pytest.raises(ValueError, match=r"step: expected 0 to 2\*\*32 - 1; got 4294967296"):
        lstm.record(x)
