"""The interface's GPU side on arrays that are not NumPy's: `emulation.gpu` stands in for CuPy."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emulation.gpu import CupyOnHost, Gpu, GpuArray
from lstmcore.backend import Masks, State
from lstmcore.config import LSTMConfig
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.runner import Item, items, run_item
from lstmcore_cupy import cuda_device
from lstmcore_cupy.kernel import CupyBackend
from smoke import CHEAP, require_passed, smoke_or_slow

pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

GPU = Gpu()
SUBJECT = BackendUnderTest(CupyBackend(GPU), Draws(max_examples=3))
ITEMS = [
    item
    for precision in ("float32", "bfloat16")
    for item in items(
        SUBJECT,
        [precision],
        "(switches and (plain or everything or proj_size) or inputs or outputs or errors or refusals.calls "
        "or lengths.dtypes or lengths.forward or lengths.backward or stack or tape or pack "
        "or masks.backward or backward.sizes or updates "
        f"or weights. and (int8,everything or float16,plain)) and not tiles and {CHEAP}",
    )
]


@pytest.mark.parametrize("item", smoke_or_slow(ITEMS))
def test_conforms(item: Item) -> None:
    require_passed(run_item(SUBJECT, item))


def test_what_comes_out_is_where_x_was() -> None:
    config = LSTMConfig(input_size=2, hidden_size=3)
    kernel = SUBJECT.backend.compile(config, "float32")
    weights = kernel.pack({name: np.ones(shape, "float32") for name, shape in config.parameter_shapes.items()})
    x = np.ones((4, 3, 2), "float32")
    for array, kind in ((x, np.ndarray), (GPU.array_of(x), GpuArray)):
        done = kernel.forward(weights, array, record=True)
        gradients = kernel.backward(weights, done.tape, done.y)
        arrays = (done.y, *done.state, gradients.x, *gradients.state, *gradients.parameters.values())
        assert {type(array) for array in arrays} == {kind}


class _Foreign:
    """An array of another library. It has a device by DLPack or by the CUDA array interface."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def test_the_stand_in_has_what_the_arrays_of_cupy_have() -> None:
    """A test on the stand-in says nothing about attributes that CuPy's arrays lack."""
    import cupy

    own = {name for name in vars(GpuArray) if name not in ("__module__", "__doc__", "__dict__", "__weakref__")}
    private = {name for name in own if name.startswith("_") and not name.startswith("__")}
    by_type = {"__array_namespace__"}  # array-api-compat knows CuPy's arrays by their type
    assert own - private - by_type <= set(dir(cupy.ndarray)) | {
        "__orig_bases__",
        "__static_attributes__",
        "__firstlineno__",
    }
    assert not hasattr(cupy.ndarray, "__array_namespace__")


def test_numpy_refuses_arrays_of_the_stand_in() -> None:
    array = GPU.array_of([1.0, 2.0])
    for function in (np.asarray, np.array, np.isfinite, lambda array: np.stack([array])):
        with pytest.raises(TypeError):
            function(array)
    for left, right in ((array, np.ones(2)), (np.ones(2), array)):
        with pytest.raises(TypeError, match="Unsupported type"):
            left + right
    with pytest.raises(BufferError):
        np.from_dlpack(array)


def test_the_stand_in_counts() -> None:
    gpu = Gpu()
    array = gpu.array([1.0, 2.0] * np.ones(2))
    assert gpu.counts.copies_in == 1
    assert (gpu.counts.copies_out, gpu.counts.waits, gpu.counts.launches) == (0, 0, [])
    assert (array[1:].reshape(1, 1) + array[:1]).shape == (1, 1)
    assert gpu.counts.launches == ["add"]
    for read in (float, int, bool):
        read(array[0])
    assert (gpu.counts.copies_out, gpu.counts.waits) == (3, 3)
    array[array > 1]
    assert (gpu.counts.copies_out, gpu.counts.waits) == (3, 4)
    gpu.clear(array)
    assert gpu.counts.memsets == 1
    assert gpu.host(array).tolist() == [0, 0]
    gpu.counts.clear()
    assert gpu.counts == CupyOnHost().counts


def test_the_arrays_tell_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device, other = Gpu(), object()
    monkeypatch.setattr(cuda_device, "cuda_device", lambda number: (other, number))
    monkeypatch.setattr(device.cupy, "asarray", lambda array: GpuArray(np.zeros(1), device.cupy, 2))
    torch = SimpleNamespace(type="cuda", index=1)  # no `id`
    assert device.home(np.zeros(1)) is device
    assert device.home(device.array_of([0.0])) is device
    assert device.home(GpuArray(np.zeros(1), device.cupy, 1)) == (other, 1)
    assert device.home(_Foreign(device=torch, __dlpack_device__=lambda: (2, 1))) == (other, 1)
    assert device.home(_Foreign(device=torch, __dlpack_device__=lambda: (2, 0))) is device
    assert device.home(_Foreign(__dlpack_device__=lambda: (1, 0))) is device  # of a processor
    assert device.home(_Foreign(__cuda_array_interface__={})) == (other, 2)
    assert device.locate(np.zeros(1)) is device.locate(_Foreign(__dlpack_device__=lambda: (1, 0))) is None
    array = GpuArray(np.zeros(1), device.cupy, 1)
    assert device.locate(array) == ("cuda:1", array)


def test_other_libraries_arrays_come_by_dlpack(monkeypatch: pytest.MonkeyPatch) -> None:
    """DLPack orders the producer's stream before the one that reads; the interface of PyTorch's tensors does not."""
    device, own = Gpu(), np.arange(6, dtype="float32").reshape(2, 3)
    monkeypatch.setattr(device.cupy, "asarray", lambda array: device.array_of(array.__cuda_array_interface__["own"]))
    interface = {"own": own}
    both = _Foreign(_own=own, __dlpack_device__=lambda: (2, 0), __cuda_array_interface__={"own": own + 1})
    np.testing.assert_array_equal(device.array(both).get(), own)
    np.testing.assert_array_equal(device.array(_Foreign(__cuda_array_interface__=interface)).get(), own)


def test_dlpack_of_the_processor_is_copied() -> None:
    """CuPy's `from_dlpack` refuses an array of the processor."""

    class Host:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **options: Any) -> Any:
            return np.arange(3.0).__dlpack__(**options)

    np.testing.assert_array_equal(Gpu().array(Host()).get(), np.arange(3.0))


def test_an_array_of_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel may get the address of such an array: the state, a mask, dy and out as well as x."""
    config = LSTMConfig(input_size=2, hidden_size=3)
    kernel = SUBJECT.backend.compile(config, "float32")
    weights = kernel.pack({name: np.ones(shape, "float32") for name, shape in config.parameter_shapes.items()})
    x, h = GPU.array_of(np.ones((4, 1, 2), "float32")), np.ones((1, 3), "float32")
    with pytest.raises(ValueError, match="array: expected one on cuda:0, where this call runs; got one on cuda:1"):
        kernel.forward(weights, x, State(GPU.array_of(h), GpuArray(h, GPU.cupy, 1)))
    done = kernel.forward(weights, x, record=True)
    with pytest.raises(ValueError, match="got one on cuda:1"):
        kernel.backward(weights, done.tape, GpuArray(done.y.get(), GPU.cupy, 1))
    assert not GPU.writable(GpuArray(done.y.get(), GPU.cupy, 1))
    monkeypatch.setattr(cuda_device, "cuda_device", lambda number: SimpleNamespace(name=f"cuda:{number}"))
    with pytest.raises(
        ValueError, match="x: expected an array on cuda:0, where the weights are; got one on cuda:1: co"
    ):
        kernel.forward(weights, GpuArray(np.ones((4, 1, 2), "float32"), GPU.cupy, 1))


def test_out_without_entries_is_no_overlap() -> None:
    """CuPy gives the address 0 for an array without entries."""
    config = LSTMConfig(input_size=3, hidden_size=3)
    kernel = SUBJECT.backend.compile(config, "float32")
    weights = kernel.pack({name: np.ones(shape, "float32") for name, shape in config.parameter_shapes.items()})
    for shape in ((0, 2, 3), (4, 0, 3)):
        out = GPU.array_of(np.ones(shape, "float32"))
        assert kernel.forward(weights, GPU.array_of(np.ones(shape, "float32")), out=out).y is out


@pytest.mark.parametrize("what", ["x itself", "x, one step off", "h, a row of it", "c", "a mask", "its own rows"])
def test_out_must_not_overlap_an_input_of_the_gpu(what: str) -> None:
    """The addresses of arrays are compared, as those of NumPy are; nothing is copied."""
    config = LSTMConfig(input_size=3, hidden_size=3, zoneout_hidden=0.5)
    kernel = SUBJECT.backend.compile(config, "float32")
    weights = kernel.pack({name: np.ones(shape, "float32") for name, shape in config.parameter_shapes.items()})
    room = GPU.array_of(np.zeros((6, 2, 3), "float32"))
    x, h, c, masks = (GPU.array_of(np.zeros(shape, "float32")) for shape in ((4, 2, 3), (2, 3), (2, 3), (4, 2, 3)))
    right = {"x": x, "state": State(h, c), "masks": Masks(zoneout_hidden=masks), "out": room[:4]}
    wrong = {
        "x itself": {"x": room[:4]},
        "x, one step off": {"x": room[1:5]},
        "h, a row of it": {"state": State(room[3], c)},
        "c": {"state": (h, room[0])},
        "a mask": {"masks": Masks(zoneout_hidden=room[2:])},
        "its own rows": {"out": GPU.cupy.broadcast_to(room[:4, :1], (4, 2, 3))},
    }

    def call(x: Any, state: Any, masks: Masks, out: Any) -> None:
        kernel.forward(weights, x, state, masks=masks, out=out)

    call(**right)
    GPU.counts.clear()
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        call(**{**right, **wrong[what]})
    assert (GPU.counts.copies_in, GPU.counts.copies_out, GPU.counts.waits) == (0, 0, 0)


def test_an_array_that_is_not_aligned_is_copied() -> None:
    memory = np.zeros(49, np.uint8)
    own = memory[1:].view("float32").reshape(4, 3)
    own[...] = np.arange(12).reshape(4, 3)
    copy = GPU.array(GpuArray(own, GPU.cupy))
    assert copy.data.ptr % 4 == 0
    np.testing.assert_array_equal(copy.get(), own)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_an_array_without_axes_stays_one(dtype: str) -> None:
    """CuPy's `ascontiguousarray` makes an array of one entry of it, and so does NumPy's."""
    given = np.array(3, dtype)
    here = SUBJECT.backend.to_device(given)
    assert here.shape == GPU.array(here).shape == ()
    back = SUBJECT.backend.to_host(here)
    assert (back.shape, back.dtype, float(back)) == ((), given.dtype, 3)


def test_an_array_of_the_gpu_is_not_copied() -> None:
    array = GPU.array_of(np.ones((4, 3), "float32"))
    assert GPU.array(array).data.ptr == array.data.ptr
    assert GPU.writable(array)
    assert not GPU.writable(array[:, ::2])
    assert not GPU.writable(array.get())
