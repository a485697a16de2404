"""The interface's GPU side on arrays that are not NumPy's. They have the parts of CuPy's that this backend uses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emulation import EmulatedDevice
from lstmcore.backend import State
from lstmcore.config import LSTMConfig
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.report import Outcome
from lstmcore_conformance.suite.runner import Item, items, run_item
from lstmcore_cupy import cuda_device
from lstmcore_cupy.cuda_device import CudaDevice
from lstmcore_cupy.device import Program
from lstmcore_cupy.kernel import CupyBackend
from smoke import smoke_or_slow

pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class _Array:
    """An array of a GPU: NumPy refuses it, and its entries come to the host by `get` alone."""

    __array_ufunc__ = None

    def __init__(self, own: np.ndarray, number: int = 0) -> None:
        self.own, self.device = own, SimpleNamespace(id=number)

    def __array__(self, *arguments: Any, **named: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array")

    def __array_namespace__(self) -> Any:
        return _namespace()

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "dtype", "ndim", "strides", "flags"):
            raise AttributeError(name)
        return getattr(self.own, name)

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self.own.ctypes.data)

    @property
    def T(self) -> _Array:
        return _Array(self.own.T)

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, index: Any) -> _Array:
        return _Array(self.own[index])

    def __setitem__(self, index: Any, value: _Array | float) -> None:
        self.own[index] = value.own if isinstance(value, _Array) else value

    def __iadd__(self, other: _Array) -> _Array:
        self.own += other.own
        return self

    def __mul__(self, other: _Array) -> _Array:
        return _Array(self.own * other.own)

    def astype(self, dtype: Any) -> _Array:
        return _Array(self.own.astype(dtype))

    def view(self, dtype: Any) -> _Array:
        return _Array(self.own.view(dtype))

    def reshape(self, shape: Any) -> _Array:
        if not self.own.flags.c_contiguous:
            raise ValueError("a copy where a view was meant")
        return _Array(self.own.reshape(shape))

    def copy(self) -> _Array:
        return _Array(self.own.copy())

    def get(self) -> np.ndarray:
        return self.own.copy()


def _contiguous(array: _Array) -> _Array:
    return array if array.own.flags.c_contiguous else _Array(np.ascontiguousarray(array.own))


def _on_gpu(array: Any) -> _Array:
    return array if isinstance(array, _Array) else _Array(np.array(array))


def _namespace() -> Any:
    return SimpleNamespace(
        ndarray=_Array,
        asarray=_on_gpu,
        ascontiguousarray=_contiguous,
        empty=lambda shape, dtype: _Array(np.full(shape, 0xFF, np.uint8).astype(dtype)),
        zeros=lambda shape, dtype: _Array(np.zeros(shape, dtype)),
        stack=lambda arrays: _Array(np.stack([array.own for array in arrays])),
    )


class _Gpu(CudaDevice):
    """The GPU's methods for arrays, with the programs and matrix products of the emulator."""

    def __init__(self) -> None:
        self._cupy, self.number, self.name, self.model = _namespace(), 0, "cuda:0", "none"
        self.emulated, self.failed = EmulatedDevice(), np.zeros(1, np.int64)

    def active(self) -> AbstractContextManager[object]:
        return nullcontext()

    def started(self) -> Callable[[], None]:
        return self.emulated.started()

    def program(self, text: str) -> Program:
        return self.emulated.program(text)

    def matmul(self, a: _Array, b: _Array, out: _Array, **options: Any) -> None:  # type: ignore[override]
        self.emulated.matmul(a.own, b.own, out.own, **options)

    def versions(self) -> dict[str, str]:
        return {}


SUBJECT = BackendUnderTest(CupyBackend(_Gpu()), Draws(max_examples=3))
ITEMS = [
    item
    for precision in ("float32", "bfloat16")
    for item in items(
        SUBJECT,
        [precision],
        "switches and (plain or everything or proj_size) or inputs or outputs or lengths.forward or lengths.backward "
        "or stack or tape or pack or masks.backward or backward.sizes "
        "or weights. and (int8,everything or float16,plain)",
    )
]


@pytest.mark.parametrize("item", smoke_or_slow(ITEMS))
def test_conforms(item: Item) -> None:
    result = run_item(SUBJECT, item)
    assert result.outcome is Outcome.PASSED, result.message


def test_what_comes_out_is_where_x_was() -> None:
    config = LSTMConfig(input_size=2, hidden_size=3)
    kernel = SUBJECT.backend.compile(config, "float32")
    weights = kernel.pack({name: np.ones(shape, "float32") for name, shape in config.parameter_shapes.items()})
    x = np.ones((4, 3, 2), "float32")
    for array, kind in ((x, np.ndarray), (_Array(x), _Array)):
        done = kernel.forward(weights, array, record=True)
        gradients = kernel.backward(weights, done.tape, done.y)
        arrays = (done.y, *done.state, gradients.x, *gradients.state, *gradients.parameters.values())
        assert {type(array) for array in arrays} == {kind}


class _Foreign:
    """An array of another library. It has a device by DLPack or by the CUDA array interface."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def test_the_arrays_tell_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _Gpu()
    other = object()
    monkeypatch.setattr(cuda_device, "cuda_device", lambda number: (other, number))
    monkeypatch.setattr(device._cupy, "asarray", lambda array: _Array(np.zeros(1), 2))
    torch = SimpleNamespace(type="cuda", index=1)  # no `id`
    assert device.home(np.zeros(1)) is device
    assert device.home(_Array(np.zeros(1))) is device
    assert device.home(_Array(np.zeros(1), 1)) == (other, 1)
    assert device.home(_Foreign(device=torch, __dlpack_device__=lambda: (2, 1))) == (other, 1)
    assert device.home(_Foreign(device=torch, __dlpack_device__=lambda: (2, 0))) is device
    assert device.home(_Foreign(__dlpack_device__=lambda: (1, 0))) is device  # of a processor
    assert device.home(_Foreign(__cuda_array_interface__={})) == (other, 2)


def test_other_libraries_arrays_come_by_dlpack() -> None:
    """DLPack orders the producer's stream before the one that reads; the interface of PyTorch's tensors does not."""
    device, own = _Gpu(), np.arange(6, dtype="float32").reshape(2, 3)
    device._cupy.from_dlpack = lambda array: _Array(array.own)
    device._cupy.asarray = lambda array: _Array(array.__cuda_array_interface__["own"])
    interface = {"own": own}
    both = _Foreign(own=own, __dlpack_device__=lambda: (2, 0), __cuda_array_interface__={"own": own + 1})
    np.testing.assert_array_equal(device.array(both).own, own)
    np.testing.assert_array_equal(device.array(_Foreign(__cuda_array_interface__=interface)).own, own)


def test_dlpack_of_the_processor_is_copied() -> None:
    """CuPy's `from_dlpack` refuses an array of the processor."""

    class Host:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **options: Any) -> Any:
            return np.arange(3.0).__dlpack__(**options)

    np.testing.assert_array_equal(_Gpu().array(Host()).own, np.arange(3.0))


def test_an_array_of_another_gpu_is_refused() -> None:
    """No kernel may get the address of such an array: the state, a mask, dy and out as well as x."""
    config = LSTMConfig(input_size=2, hidden_size=3)
    kernel = SUBJECT.backend.compile(config, "float32")
    weights = kernel.pack({name: np.ones(shape, "float32") for name, shape in config.parameter_shapes.items()})
    x, h = _Array(np.ones((4, 1, 2), "float32")), np.ones((1, 3), "float32")
    with pytest.raises(ValueError, match="array: expected one on cuda:0, where this call runs; got one on cuda:1"):
        kernel.forward(weights, x, State(_Array(h), _Array(h, 1)))
    done = kernel.forward(weights, x, record=True)
    with pytest.raises(ValueError, match="got one on cuda:1"):
        kernel.backward(weights, done.tape, _Array(done.y.own, 1))
    assert not _Gpu().writable(_Array(done.y.own, 1))


def test_an_array_that_is_not_aligned_is_copied() -> None:
    memory = np.zeros(49, np.uint8)
    own = memory[1:].view("float32").reshape(4, 3)
    own[...] = np.arange(12).reshape(4, 3)
    copy = _Gpu().array(_Array(own))
    assert copy.own.ctypes.data % 4 == 0
    np.testing.assert_array_equal(copy.own, own)


def test_an_array_of_the_gpu_is_not_copied() -> None:
    device = _Gpu()
    array = _Array(np.ones((4, 3), "float32"))
    assert device.array(array).own.ctypes.data == array.own.ctypes.data
    assert device.writable(array)
    assert not device.writable(_Array(array.own[:, ::2]))
    assert not device.writable(array.own)
