"""Copies from pinned buffers on a stream of their own: the order of events, and buffers that are in use.

On the stand-in a copy runs as late as it may: when a stream or the host waits for an event behind it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from emulation.gpu import CupyOnHost, Gpu, GpuArray
from lstmcore.kernels import LayerBackend
from lstmcore_cupy.kernel import CupyBackend
from lstmcore_cupy.tuning import UPLOAD_BUFFERS


def drawn(number: int) -> list[np.ndarray]:
    """Return arrays of several dtypes and layouts, some of them empty."""
    random = np.random.default_rng(number)
    x = random.standard_normal((7, 3, 5)).astype(np.float32)
    return [
        x.swapaxes(0, 1),
        random.integers(0, 9, 3),
        random.integers(0, 2, (7, 3)).astype(np.bool_),
        random.standard_normal((2, 11)).astype(np.float16)[:, ::2],
        np.zeros((0, 3, 5), np.float32),
    ]


def assert_same(found: Any, wanted: list[np.ndarray]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one, GpuArray)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one.get(), other)


def test_the_events_of_one_upload() -> None:
    """The copy waits for what the caller's stream had before; that stream waits for the copy. The host never does."""
    gpu = Gpu()
    uploader = gpu.uploader()
    gpu.counts.clear()
    take = uploader.start(drawn(0))
    begun = ["null: record", "stream 1: wait for null", "stream 1: copy", "stream 1: record"]
    assert gpu.counts.order == begun
    found = take()
    assert gpu.counts.order == [*begun, "null: wait for stream 1"]
    assert (gpu.counts.copies_in, gpu.counts.waits, gpu.counts.launches) == (1, 0, [])
    assert all(array._own.ctypes.data % array.dtype.itemsize == 0 for array in found)
    assert_same(found, drawn(0))


def test_the_callers_stream_waits() -> None:
    gpu = Gpu()
    uploader, stream = gpu.uploader(), gpu.cupy.cuda.Stream()
    with stream:
        take = uploader.start(drawn(0))
    gpu.counts.clear()
    with stream:
        found = take()
    assert gpu.counts.order == [f"{stream.name}: wait for stream 1"]
    assert_same(found, drawn(0))


def test_one_batch_ahead_takes_two_buffers() -> None:
    """As a training does: a buffer is written to again once its copy is over, and the host never waits."""
    gpu = Gpu()
    uploader, pinned, found = gpu.uploader(), len(list(gpu.cupy.pinned())), list[Any]()
    take = uploader.start(drawn(0))
    for number in range(1, 9):
        following = uploader.start(drawn(number))
        found.append(take())
        take = following
    assert len(list(gpu.cupy.pinned())) == pinned + 2
    assert gpu.counts.waits == 0
    for number, arrays in enumerate(found):
        assert_same(arrays, drawn(number))


def test_no_buffer_is_overwritten_before_its_copy_is_over() -> None:
    """More batches ahead than there are buffers: the host waits for the oldest copy, and writes then."""
    gpu = Gpu()
    uploader, count = gpu.uploader(), UPLOAD_BUFFERS + 3
    gpu.counts.clear()
    pending = []
    for number in range(count):
        arrays = drawn(number)
        pending.append(uploader.start(arrays))
        for array in arrays:
            array[...] = 0  # the caller's arrays are free again
    assert gpu.counts.waits == 3
    for number, take in enumerate(pending):
        assert_same(take(), drawn(number))


def test_buffers_grow() -> None:
    gpu = Gpu()
    uploader = gpu.uploader()
    for size in (1, 5000, 3, 600000, 5000):
        values = np.arange(size, dtype=np.int32)
        assert_same(uploader.start([values])(), [values])
    assert_same(uploader.start([])(), [])


def test_what_nobody_takes_is_copied_at_the_end() -> None:
    """Its memory must not be given back while the copy runs. An uploader that was closed can go on."""
    gpu = Gpu()
    uploader = gpu.uploader()
    uploader.close()
    assert gpu.counts.waits == 0
    uploader.start(drawn(0))
    uploader.close()
    assert gpu.counts.waits == 1
    assert_same(uploader.start(drawn(1))(), drawn(1))


def test_another_gpu_than_the_current_one() -> None:
    cupy = CupyOnHost()
    second = Gpu(1, cupy)
    found = CupyBackend(second).uploader().start(drawn(0))()
    assert cupy.current == 0
    assert {array.device.id for array in found} == {1}
    assert_same(found, drawn(0))


def test_memory_that_is_free() -> None:
    gpu = Gpu()
    gpu.cupy.free_bytes = 12345
    assert gpu.uploader().free_bytes() == 12345


def test_the_stand_in_finds_what_does_not_wait() -> None:
    """Memory that is not pinned is refused, and what is read without waiting is not there yet."""
    gpu = Gpu()
    block, stream, array = gpu.empty((8,), np.dtype(np.uint8)), gpu.cupy.cuda.Stream(), np.arange(8, dtype=np.uint8)
    with pytest.raises(ValueError, match="not pinned"):
        block.data.copy_from_host_async(array.ctypes.data_as(ctypes.c_void_p), 8, stream)
    pinned = np.frombuffer(gpu.cupy.cuda.alloc_pinned_memory(8), np.uint8)
    pinned[...] = array
    block.data.copy_from_host_async(pinned.ctypes.data_as(ctypes.c_void_p), 8, stream)
    event = stream.record()
    assert not event.done
    assert set(block.get()) == {255}
    gpu.cupy.cuda.get_current_stream().wait_event(event)
    assert event.done
    np.testing.assert_array_equal(block.get(), array)


def test_a_backend_without_streams_copies_at_once() -> None:
    class Plain(LayerBackend):
        """Its device is the host."""

        def capabilities(self) -> Any:
            """None are asked for."""

        def _compile(self, config: Any, precision: Any) -> Any:
            """Nothing is compiled."""

        def to_device(self, array: Any) -> Any:
            return [array.copy()]

    uploader = Plain().uploader()
    values = np.arange(3)
    take = uploader.start([values])
    values[...] = 0
    assert take()[0][0].tolist() == [0, 1, 2]
    assert uploader.free_bytes() is None
    uploader.close()
