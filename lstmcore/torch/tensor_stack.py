"""A stack's kernel on tensors of PyTorch, which share their memory with the arrays of the backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple, Self, TypeAlias

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lstmcore import registry, validation
from lstmcore.backend import StackKernel, StackMasks, State, Tangents, UnsupportedError
from lstmcore.config import StackConfig
from lstmcore.dialects.torch import our_names
from lstmcore.locks import ForkSafeLock
from lstmcore.masks import stack_masks
from lstmcore.placement import drawing, place
from lstmcore.precision import get_precision
from lstmcore.stack import HostStack
from lstmcore.torch.shared_memory import adopt, apart, bits_of, release, to_array, to_tensor
from lstmcore.torch.tape_handle import make_handle, open_handle

Array: TypeAlias = Any
Tensor: TypeAlias = torch.Tensor


class Inputs(NamedTuple):
    """The tensors of a call.

    Attributes
    ----------
    x
        (T, N, I).
    h, c
        (L * D, N, P) and (L * D, N, H); None for zeros.
    lengths
        (N,), None for T everywhere.
    seed
        A whole number that fixes the random masks, None for no masks.
    parameters
        In the order of `state_dict_shapes`, in the dtype of x.
    """

    x: Tensor
    h: Tensor | None
    c: Tensor | None
    lengths: Tensor | None
    seed: Tensor | None
    parameters: Sequence[Tensor]

    @classmethod
    def of(cls, x: Tensor, h: Tensor | None, c: Tensor | None, *others: Any) -> Self:
        """Return the tensors of one list, in which the parameters come last."""
        lengths, seed, *parameters = others
        return cls(x, h, c, lengths, seed, parameters)


class _Packed(NamedTuple):
    """Packed parameters, the copies of which they were made, and the memory of the first tensor."""

    weights: Any
    copies: list[Tensor]
    memory: StorageWeakRef


class _Side(NamedTuple):
    """Where a call computes: the host, or the device of the backend.

    Attributes
    ----------
    kernel
        Takes and returns the arrays of that side.
    to_array, to_tensor
        Return a tensor as an array of a dtype, and an array as a tensor, without a copy if both have it.
    keeps_weights
        Whether packed weights are kept: on a device it would have to be waited for to see that they are the same.
    """

    kernel: StackKernel
    to_array: Callable[[Tensor, str], Array]
    to_tensor: Callable[[Array, torch.dtype], Tensor]
    keeps_weights: bool


class TensorStack:
    """The kernel of a stack for tensors on the processor, or on the device of the backend.

    The calls do not check shapes, nor whether all tensors are on the device of x.

    Parameters
    ----------
    stack
        Layers and directions.
    dtype
        The name of the tensors' dtype, which is that of a precision.
    backend
        The name of a backend, or None.
    """

    def __init__(self, stack: StackConfig, dtype: str, backend: str | None) -> None:
        self.stack, self.precision = stack, get_precision(dtype)
        self.backend = registry.choose(backend, stack, self.precision)[0]
        self._declared = self.backend.capabilities()
        kernel = self.backend.compile_stack(stack, self.precision)
        on_host = kernel if self._declared.device == "cpu" else HostStack(kernel)
        self._host = _Side(on_host, to_array, to_tensor, True)
        self._device = _Side(kernel, partial(adopt, self.backend), release, False)
        self._names = our_names(stack)
        self._packed: dict[tuple[int, ...], _Packed] = {}
        self._lock = ForkSafeLock()

    def forward(self, inputs: Inputs, *, record: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y (T, N, D * P), the final h and c, and the handle of the tape for `backward`."""
        if record:
            self._require("backward")
        dtype = inputs.x.dtype
        with self._stream(inputs.x):
            side = self._side(inputs.x)
            weights, state = self._weights(side, inputs.parameters), self._state(side, inputs.h, inputs.c)
            x, lengths = self._array(side, inputs.x), self._lengths(inputs)
            masks = self._masks(inputs, x)
            y, last, tape = side.kernel.forward(weights, x, state, lengths=lengths, masks=masks, record=record)
            outputs = side.to_tensor(y, dtype), side.to_tensor(last.h, dtype), side.to_tensor(last.c, dtype)
        handle = make_handle((side, weights, tape)) if record else torch.zeros(1, dtype=torch.int64, device="cpu")
        return outputs[0], apart(outputs[1], outputs[0]), outputs[2], handle

    def backward(
        self, handle: Tensor, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return the gradients of x, of the initial h and c, and of the parameters; None is a gradient of 0."""
        side, weights, tape = open_handle(handle)
        given = next((tensor for tensor in (dy, dh, dc) if tensor is not None), None)
        with nullcontext() if given is None else self._stream(given):
            incoming = None if dy is None else self._array(side, dy)
            dx, state, parameters = side.kernel.backward(weights, tape, incoming, self._state(side, dh, dc))
            made = {name: parameters[ours] for name, ours in self._names.items()}
            for name in made:
                if name.startswith("bias_hh"):  # an optimizer may write to a gradient: each needs memory of its own
                    made[name] = made[name].copy()
            dtype = getattr(torch, self.precision.storage)
            return (
                side.to_tensor(dx, dtype),
                side.to_tensor(state.h, dtype),
                side.to_tensor(state.c, dtype),
                [side.to_tensor(gradient, dtype) for gradient in made.values()],
            )

    def jvp(self, inputs: Inputs, tangents: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of y and of the final h and c; `tangents` has None where nothing moves."""
        self._require("jvp")
        moving = {
            name: tangent for name, tangent in zip(self._names, tangents.parameters, strict=True) if tangent is not None
        }
        dtype = inputs.x.dtype
        with self._stream(inputs.x):
            side = self._side(inputs.x)
            along = Tangents(
                None if tangents.x is None else self._array(side, tangents.x),
                self._state(side, tangents.h, tangents.c),
                self._ours(side, moving),
            )
            x = self._array(side, inputs.x)
            _, (ty, tlast, _) = side.kernel.jvp(
                self._weights(side, inputs.parameters),
                x,
                self._state(side, inputs.h, inputs.c),
                along,
                lengths=self._lengths(inputs),
                masks=self._masks(inputs, x),
            )
            return side.to_tensor(ty, dtype), side.to_tensor(tlast.h, dtype), side.to_tensor(tlast.c, dtype)

    def _side(self, tensor: Tensor) -> _Side:
        """Return where a call with x = `tensor` computes.

        Raises
        ------
        RuntimeError
            A tensor of a device that is not the backend's.
        """
        on_host = tensor.device.type == "cpu"
        known = on_host or tensor.device.type == "cuda"  # DLPack has names for these
        if known and self.backend.locate(bits_of(tensor)) is not None:
            return self._device
        if not on_host:
            raise RuntimeError(
                f"input: expected a tensor on the processor, or where backend {self.backend.name!r} computes, on "
                f"{self._declared.device}; got {tensor.device}"
            )
        return self._host

    def _stream(self, tensor: Tensor) -> AbstractContextManager[object]:
        """Return a context in which the backend computes on PyTorch's current stream of the tensor's device."""
        if tensor.device.type != "cuda":
            return nullcontext()
        stream = torch.cuda.current_stream(tensor.device)
        return self.backend.on_stream(stream.device_index, stream.cuda_stream)

    def _array(self, side: _Side, tensor: Tensor) -> Array:
        return side.to_array(tensor, self.precision.storage)

    def _state(self, side: _Side, h: Tensor | None, c: Tensor | None) -> State | None:
        """Return a state of arrays; one of the two that is None is 0, with the rows of the other."""
        given = h if h is not None else c
        if given is None:
            return None
        widths = (self.stack.output_size, self.stack.hidden_size)
        parts = (
            given.new_zeros((*given.shape[:2], width)) if part is None else part
            for part, width in zip((h, c), widths, strict=True)
        )
        dtypes = (self.precision.storage, self.precision.compute)
        return State(*(side.to_array(part, dtype) for part, dtype in zip(parts, dtypes, strict=True)))

    def _lengths(self, inputs: Inputs) -> Array | None:
        if inputs.lengths is None:
            return None
        self._require("lengths")
        return validation.check_lengths(inputs.lengths.numpy(), *inputs.x.shape[:2])

    def _masks(self, inputs: Inputs, x: Array) -> StackMasks | None:
        """Return the masks where x is, given as an array."""
        if inputs.seed is None:
            return None
        self._require("masks")
        draw = drawing(*place("input", x, self.backend))
        sizes = inputs.x.shape[:2]
        return stack_masks(self.stack, self.precision, *sizes, seed=int(inputs.seed), step=0, draw=draw)

    def _weights(self, side: _Side, parameters: Sequence[Tensor]) -> Any:
        """Return packed parameters: those of an earlier call if the numbers are the same.

        The numbers are compared, since a version of a tensor does not count what is written through its ``data``.
        """
        if not side.keeps_weights:
            return side.kernel.pack(self._ours(side, dict(zip(self._names, parameters, strict=True))))
        key = tuple(parameter.data_ptr() for parameter in parameters)
        packed = self._packed.get(key)
        if packed is not None and not packed.memory.expired() and all(map(_same_bits, packed.copies, parameters)):
            return packed.weights
        copies = [parameter.detach().clone() for parameter in parameters]
        weights = side.kernel.pack(self._ours(side, dict(zip(self._names, copies, strict=True))))
        memory = StorageWeakRef(parameters[0].untyped_storage())
        with self._lock.lock:
            alive = {name: entry for name, entry in self._packed.items() if not entry.memory.expired()}
            self._packed = alive | {key: _Packed(weights, copies, memory)}
        return weights

    def _ours(self, side: _Side, tensors: dict[str, Tensor]) -> dict[str, Array]:
        """Return arrays under our names; what has the same name, as both biases, is added."""
        made: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            ours = self._names[name]
            made[ours] = made[ours] + tensor if ours in made else tensor
        return {name: self._array(side, tensor) for name, tensor in made.items()}

    def _require(self, what: str) -> None:
        if what not in self._declared.features and what not in self._declared.derivatives:
            raise UnsupportedError(f"backend {self.backend.name!r} has no {self._declared.missing(what)}")


def describe(stack: StackConfig, backend: str | None) -> str:
    """Return the text that `tensor_stack` makes a `TensorStack` of."""
    return json.dumps({"backend": backend, "stack": stack.to_dict()})


@lru_cache(maxsize=64)
def _tensor_stack(description: str, dtype: str) -> TensorStack:
    fields = json.loads(description)
    return TensorStack(StackConfig.from_dict(fields["stack"]), dtype, fields["backend"])


def tensor_stack(description: str, dtype: torch.dtype) -> TensorStack:
    """Return the `TensorStack` of a description for a dtype, the same object at every call.

    Raises
    ------
    ValueError
        No precision has that dtype.
    UnsupportedError
        The backend does not declare the stack in that dtype.
    """
    return _tensor_stack(description, dtype_name(dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, as NumPy and `Precision` have it."""
    return str(dtype).removeprefix("torch.")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and bits."""
    if one.dtype != other.dtype:
        return False
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return bool(torch.equal(one.view(bits), other.detach().view(bits)))
