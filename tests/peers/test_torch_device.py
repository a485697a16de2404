"""`lstmcore.torch.LSTM` with a backend that takes tensors where they are, by DLPack, as CuPy's does on a GPU.

No GPU has run this. Here the device is memory of the processor, whose tensors a backend takes as those of a device.
"""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lstmcore.torch
from lstmcore import registry
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.torch.shared_memory import adopt, apart, release
from lstmcore.torch.tensor_stack import Inputs, TensorStack
from lstmcore_conformance.bench import cuda, torch_tensors
from plugins import Install

#: The NumPy backend as one of a device: `taken` has the addresses of the tensors that it was given.
#: With `views` the last output is the final state, in the same memory.
NEAR = """
import dataclasses
import numpy as np
import torch
from lstmcore.backend import Forward, State
from lstmcore.hookspecs import BackendInfo, hookimpl
from lstmcore.stack import ComposedStack
from lstmcore_numpy.kernel import NumpyBackend

class Views(ComposedStack):
    def forward(self, *arguments, **named):
        y, last, tape = super().forward(*arguments, **named)
        return Forward(y, State(y[-1:], last.c) if Near.views else last, tape)

class Near(NumpyBackend):
    name = "NAME"
    taken = []
    views = False

    def _compile_stack(self, stack, precision):
        return Views(self, stack, precision)

    def capabilities(self):
        return dataclasses.replace(super().capabilities(), device="near:0")

    def locate(self, array):
        if not isinstance(array, torch.Tensor):
            return None
        self.taken.append(array.data_ptr())
        return "near:0", np.from_dlpack(array)

    def to_device(self, array):
        raise AssertionError("a copy")

    to_host = to_device

@hookimpl
def lstmcore_backend_info():
    return BackendInfo("NAME", "1", "a test")

@hookimpl
def lstmcore_backend():
    return Near()
"""
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*CUDA.*")

NUMBERS = itertools.count(1)
RANDOM: dict[str, Any] = {"num_layers": 2, "dropout": 0.3, "zoneout_hidden": 0.2, "recurrent_dropout": 0.25}


@pytest.fixture
def near(install: Install) -> Any:
    """Install the backend under a name of its own, since stacks are kept by the name, and return it."""
    name = f"near-{next(NUMBERS)}"
    install(name, NEAR.replace("NAME", name))
    return registry.get_backend(name)


def both(near: Any, dtype: Any = torch.float64, **options: Any) -> tuple[Any, Any]:
    """Return a module of the backend and one of NumPy's on the host, with the same weights."""
    torch.manual_seed(3)
    ours = lstmcore.torch.LSTM(3, 5, dtype=dtype, backend=near.name, **options)
    host = lstmcore.torch.LSTM(3, 5, dtype=dtype, backend="numpy", **options)
    host.load_state_dict(ours.state_dict())
    return ours, host


def outcome(module: Any, x: Any, *rest: Any, **named: Any) -> list[Any]:
    """Return y, h and c of a call, and the gradients of x and of all parameters."""
    torch.manual_seed(7)  # the masks
    x = x.detach().requires_grad_()
    y, (h, c) = module(x, *rest, **named)
    loss = sum((torch.sin(value) * (1 + index)).sum() for index, value in enumerate((y, h, c)))
    return [y, h, c, *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.parametrize(
    "options",
    [{}, RANDOM, {"bidirectional": True, "proj_size": 2, "batch_first": True}, {"peephole": True, "bias": False}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_device_gives_the_bits_of_the_host(near: Any, dtype: Any, options: dict[str, Any]) -> None:
    """The backend's own arithmetic is the same, so all bits are: values, gradients, masks, lengths, states."""
    ours, host = both(near, dtype, **options)
    x = torch.randn(4, 6, 3).to(dtype)
    rows = 4 if options.get("batch_first") else 6
    steps = 10 - rows
    entries = ours.num_layers * (1 + ours.bidirectional)
    state = tuple(torch.randn(entries, rows, width).to(dtype) for width in (ours.proj_size or 5, 5))
    for given in ((x,), (x, state), (x, state, [steps - index % 3 for index in range(rows)])):
        for one, other in zip(outcome(ours, *given), outcome(host, *given), strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)


def test_tensors_are_taken_where_they_are(near: Any) -> None:
    ours, host = both(near, num_layers=2)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    near.taken.clear()
    with torch.no_grad():
        y, _ = ours(x)
    weights = [parameter.data_ptr() for name, parameter in ours.named_parameters() if name.startswith("weight")]
    assert {x.data_ptr(), *weights} <= set(near.taken)
    ours.weight_hh_l0.data[0, 0] += 1  # no version of the tensor counts this
    host.weight_hh_l0.data[0, 0] += 1
    with torch.no_grad():
        assert not torch.equal(ours(x)[0], y)
        assert torch.equal(ours(x)[0], host(x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_shared_both_ways(near: Any, dtype: Any) -> None:
    if dtype == torch.bfloat16:
        pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")
    tensor = torch.arange(6.0).reshape(2, 3).to(dtype).requires_grad_()
    array = adopt(near, tensor, str(dtype)[6:])
    assert array.ctypes.data == tensor.data_ptr() and array.dtype.name == str(dtype)[6:]
    array = np.array(array)
    back = release(array, dtype)
    assert back.data_ptr() == array.ctypes.data and torch.equal(back, tensor)
    assert release(np.zeros((3, 2), np.float32).T, torch.float64).is_contiguous()


def test_y_and_h_have_memory_of_their_own(near: Any) -> None:
    """A loss may write to one of them."""
    near.__class__.views = True
    ours, host = both(near)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        y, (h, _) = ours(x)
        y.zero_()
        assert torch.equal(h, host(x)[1][0])


def test_parts_of_one_memory_are_taken_apart() -> None:
    memory = torch.arange(10.0)
    assert apart(memory[2:4], memory).data_ptr() != memory[2:4].data_ptr()
    assert apart(memory[:5], memory[5:]).data_ptr() == memory.data_ptr()
    assert apart(memory[5:], memory[:5]).data_ptr() == memory[5:].data_ptr()
    assert torch.equal(apart(memory[2:4], memory), memory[2:4])


def test_forward_mode_on_a_device(near: Any) -> None:
    ours, host = both(near)
    x, along = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    found, wanted = (torch.func.jvp(lambda given, lstm=lstm: lstm(given)[0], (x,), (along,)) for lstm in (ours, host))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_packed_sequences_on_a_device(near: Any) -> None:
    ours, host = both(near, bidirectional=True)
    rows = [torch.randn(length, 3, dtype=torch.float64) for length in (2, 5, 3)]
    packed = torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    (y, last), (other, wanted) = ours(packed), host(packed)
    assert torch.equal(y.data, other.data)
    assert all(map(torch.equal, last, wanted))


def test_devices_that_are_refused() -> None:
    """A device that the backend does not know is told, and so are tensors in two places."""
    stack = TensorStack(StackConfig.make(LSTMConfig(input_size=3, hidden_size=5)), "float32", "numpy")
    inputs = Inputs(torch.zeros(2, 1, 3, device="meta"), None, None, None, None, [])
    with pytest.raises(
        RuntimeError, match=r"input: expected a tensor on the processor, .* 'numpy' .* on cpu; got meta"
    ):
        stack.forward(inputs, record=False)
    module = lstmcore.torch.LSTM(3, 5, backend="numpy")
    state = torch.zeros(1, 1, 5), torch.zeros(1, 1, 5, device="meta")
    with pytest.raises(RuntimeError, match=r"hx\[1\]: expected a tensor on cpu, where the weights are; got meta"):
        module(torch.zeros(2, 1, 3), state)
    with pytest.raises(RuntimeError, match="input: expected tensors on the processor or a GPU; got meta"):
        module.to("meta")(torch.zeros(2, 1, 3, device="meta"))
    with pytest.raises(ValueError, match="expected tensors on the device of backend 'numpy'; got one on cpu"):
        adopt(registry.get_backend("numpy"), torch.zeros(2), "float32")


def test_the_gpu_script_checks_tensors(near: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check passes on the device of this test, and finds wrong numbers and copies."""
    found = torch_tensors.check("cpu", near.name)
    assert set(found) == {"float32", "float64"}
    assert all(0 <= value < 1 for value in found.values())
    kernel: Any = sys.modules["lstmcore.torch.tensor_stack"].TensorStack
    forward = kernel.forward

    def wrong(self: Any, inputs: Any, *, record: bool) -> Any:
        y, *rest = forward(self, inputs, record=record)
        return y + 0.01, *rest

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "forward", wrong)
        with pytest.raises(ValueError, match="float64: a difference of"):
            torch_tensors.check("cpu", near.name)
    monkeypatch.setattr(type(near), "locate", lambda self, tensor: ("near:0", np.from_dlpack(tensor.clone())))
    with pytest.raises(ValueError, match="float64: x is copied"):
        torch_tensors.check("cpu", near.name)


def test_the_gpu_script_tells_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run from a checkout; a module names its backend, so its stage is told as not tried."""
    device: Any = object.__new__(cuda.CUDA)
    device.backend = SimpleNamespace(name="nobody")
    assert device.tensors()["tensors"].startswith("not tried: backend: expected one of ")
    device.backend = SimpleNamespace(name="numpy")
    monkeypatch.setattr(torch_tensors, "check", lambda where, name: {"float32": (where, name)})
    assert device.tensors() == {"float32": ("cuda", "numpy")}
