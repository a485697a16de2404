"""A stack's kernel on tensors of PyTorch, which share their memory with NumPy's arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lstmcore import registry, validation
from lstmcore.backend import StackKernel, StackMasks, State, Tangents, UnsupportedError
from lstmcore.config import StackConfig
from lstmcore.dialects.torch import our_names
from lstmcore.locks import ForkSafeLock
from lstmcore.masks import stack_masks
from lstmcore.precision import get_precision, numpy_dtype
from lstmcore.stack import HostStack
from lstmcore.torch.tape_handle import make_handle, open_handle

Array: TypeAlias = npt.NDArray[Any]
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


class TensorStack:
    """The kernel of a stack for tensors on the processor; the calls do not check shapes.

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
        self._kernel: StackKernel = kernel if self._declared.device == "cpu" else HostStack(kernel)
        self._names = our_names(stack)
        self._packed: dict[tuple[int, ...], _Packed] = {}
        self._lock = ForkSafeLock()

    def forward(self, inputs: Inputs, *, record: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y (T, N, D * P), the final h and c, and the handle of the tape for `backward`."""
        if record:
            self._require("backward")
        weights, state = self._weights(inputs.parameters), self._state(inputs.h, inputs.c)
        x, lengths, masks = self._array(inputs.x), self._lengths(inputs), self._masks(inputs)
        y, last, tape = self._kernel.forward(weights, x, state, lengths=lengths, masks=masks, record=record)
        handle = make_handle((weights, tape)) if record else torch.zeros(1, dtype=torch.int64)
        h = np.array(last.h) if np.may_share_memory(y, last.h) else last.h
        dtype = inputs.x.dtype
        return to_tensor(y, dtype), to_tensor(h, dtype), to_tensor(last.c, dtype), handle

    def backward(
        self, handle: Tensor, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return the gradients of x, of the initial h and c, and of the parameters; None is a gradient of 0."""
        weights, tape = open_handle(handle)
        incoming = None if dy is None else self._array(dy)
        dx, state, parameters = self._kernel.backward(weights, tape, incoming, self._state(dh, dc, like=dy))
        made = {name: parameters[ours] for name, ours in self._names.items()}
        for name in made:
            if name.startswith("bias_hh"):  # an optimizer may write to a gradient: each needs memory of its own
                made[name] = made[name].copy()
        dtype = getattr(torch, self.precision.storage)
        return (
            to_tensor(dx, dtype),
            to_tensor(state.h, dtype),
            to_tensor(state.c, dtype),
            [to_tensor(gradient, dtype) for gradient in made.values()],
        )

    def jvp(self, inputs: Inputs, tangents: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of y and of the final h and c; `tangents` has None where nothing moves."""
        self._require("jvp")
        moving = {
            name: tangent for name, tangent in zip(self._names, tangents.parameters, strict=True) if tangent is not None
        }
        along = Tangents(
            None if tangents.x is None else self._array(tangents.x),
            self._state(tangents.h, tangents.c, like=inputs.x),
            self._ours(moving),
        )
        _, (ty, tlast, _) = self._kernel.jvp(
            self._weights(inputs.parameters),
            self._array(inputs.x),
            self._state(inputs.h, inputs.c),
            along,
            lengths=self._lengths(inputs),
            masks=self._masks(inputs),
        )
        dtype = inputs.x.dtype
        return to_tensor(ty, dtype), to_tensor(tlast.h, dtype), to_tensor(tlast.c, dtype)

    def _array(self, tensor: Tensor) -> Array:
        return to_array(tensor, self.precision.storage)

    def _state(self, h: Tensor | None, c: Tensor | None, like: Tensor | None = None) -> State | None:
        """Return a state of arrays; one of the two that is None is 0, with the rows of `like` (T, N, ...) or of c."""
        if h is None and c is None:
            return None
        entries, rows = len(self.stack.configs), (h if h is not None else c).shape[1]  # type: ignore[union-attr,unused-ignore]
        widths = (self.stack.output_size, self.stack.hidden_size)
        storage, compute = self.precision.storage, self.precision.compute
        return State(
            *(
                np.zeros((entries, rows, width), numpy_dtype(dtype)) if part is None else to_array(part, dtype)
                for part, width, dtype in zip((h, c), widths, (storage, compute), strict=True)
            )
        )

    def _lengths(self, inputs: Inputs) -> Array | None:
        if inputs.lengths is None:
            return None
        self._require("lengths")
        return validation.check_lengths(inputs.lengths.numpy(), *inputs.x.shape[:2])

    def _masks(self, inputs: Inputs) -> StackMasks | None:
        if inputs.seed is None:
            return None
        self._require("masks")
        return stack_masks(self.stack, self.precision, *inputs.x.shape[:2], seed=int(inputs.seed), step=0)

    def _weights(self, parameters: Sequence[Tensor]) -> Any:
        """Return packed parameters: those of an earlier call if the numbers are the same.

        The numbers are compared, since a version of a tensor does not count what is written through its ``data``.
        """
        key = tuple(parameter.data_ptr() for parameter in parameters)
        packed = self._packed.get(key)
        if packed is not None and not packed.memory.expired() and all(map(_same_bits, packed.copies, parameters)):
            return packed.weights
        copies = [parameter.detach().clone() for parameter in parameters]
        weights = self._kernel.pack(self._ours(dict(zip(self._names, copies, strict=True))))
        memory = StorageWeakRef(parameters[0].untyped_storage())
        with self._lock.lock:
            alive = {name: entry for name, entry in self._packed.items() if not entry.memory.expired()}
            self._packed = alive | {key: _Packed(weights, copies, memory)}
        return weights

    def _ours(self, tensors: dict[str, Tensor]) -> dict[str, Array]:
        """Return arrays under our names; what has the same name, as both biases, is added."""
        made: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            ours = self._names[name]
            made[ours] = made[ours] + tensor if ours in made else tensor
        return {name: self._array(tensor) for name, tensor in made.items()}

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


def to_array(tensor: Tensor, dtype: str) -> Array:
    """Return a tensor's numbers as an array of `dtype`; they share memory if the tensor has that dtype."""
    tensor = tensor.detach().to(getattr(torch, dtype))
    if dtype == "bfloat16":  # PyTorch hands NumPy no such numbers, but their bits
        array: Array = tensor.view(torch.int16).numpy().view(numpy_dtype(dtype))
        return array
    array = tensor.numpy()
    return array


def to_tensor(array: Array, dtype: torch.dtype) -> Tensor:
    """Return an array's numbers as a contiguous tensor of `dtype`; they share memory if the array has both."""
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(dtype)
    return torch.from_numpy(array).to(dtype)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and bits."""
    if one.dtype != other.dtype:
        return False
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return bool(torch.equal(one.view(bits), other.detach().view(bits)))
