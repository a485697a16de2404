"""Tensors of PyTorch as arrays, and arrays as tensors, that share memory: NumPy's on the host, else by DLPack."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lstmcore.arrays import dtype_name
from lstmcore.kernels import LayerBackend
from lstmcore.precision import numpy_dtype

Array: TypeAlias = Any
Tensor: TypeAlias = torch.Tensor


def bits_of(tensor: Tensor) -> Tensor:
    """Return a tensor that NumPy and DLPack take: itself, or the bits of one of bfloat16; without its gradient."""
    tensor = tensor.detach()
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


# On the host ----------------------------------------------------------------------------------------------------------


def to_array(tensor: Tensor, dtype: str) -> npt.NDArray[Any]:
    """Return a tensor's numbers as an array of `dtype`; they share memory if the tensor has that dtype."""
    array: npt.NDArray[Any] = bits_of(tensor.detach().to(getattr(torch, dtype))).numpy()
    return array.view(numpy_dtype(dtype)) if dtype == "bfloat16" else array


def to_tensor(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    """Return an array's numbers as a contiguous tensor of `dtype`; they share memory if the array has both."""
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(dtype)
    return torch.from_numpy(array).to(dtype)


# On the device of a backend -------------------------------------------------------------------------------------------


def adopt(backend: LayerBackend, tensor: Tensor, dtype: str) -> Array:
    """Return a tensor of a device as an array of `dtype` of the backend; they share memory if the tensor has it.

    Raises
    ------
    ValueError
        A tensor that is elsewhere.
    """
    located = backend.locate(bits_of(tensor.detach().to(getattr(torch, dtype))))
    if located is None:
        raise ValueError(f"expected tensors on the device of backend {backend.name!r}; got one on {tensor.device}")
    return located[1].view(numpy_dtype(dtype)) if dtype == "bfloat16" else located[1]


def release(array: Array, dtype: torch.dtype) -> Tensor:
    """Return an array of a device as a contiguous tensor of `dtype`; they share memory if the array has both."""
    if dtype_name(array.dtype) == "bfloat16":
        bits: Tensor = torch.from_dlpack(array.view(np.dtype(np.int16)))
        return bits.contiguous().view(torch.bfloat16).to(dtype)
    tensor: Tensor = torch.from_dlpack(array)
    return tensor.contiguous().to(dtype)


def apart(tensor: Tensor, other: Tensor) -> Tensor:
    """Return `tensor`, or a copy if it begins in the memory of `other`; both are contiguous."""
    begin, end = other.data_ptr(), other.data_ptr() + other.nbytes
    overlap = tensor.data_ptr() < end and begin < tensor.data_ptr() + tensor.nbytes
    return tensor.clone() if overlap else tensor
