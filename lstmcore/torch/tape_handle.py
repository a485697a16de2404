"""Tapes as tensors: a handle is a tensor whose memory owns the tape of a recorded call.

A tape belongs to a backend: objects, packed weights, buffers. PyTorch keeps tensors for the backward pass, so a tape
goes through it as a tensor of one number. The memory of that tensor is a NumPy array, which owns the tape. The tape
is freed when the last tensor on that memory is freed: after the backward pass, or with a graph that is never used.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Final

import numpy as np
import torch


class _Owner(np.ndarray):  # type: ignore[type-arg,unused-ignore]
    """The memory of a handle, which owns a tape."""

    tape: Any


_numbers: Final = itertools.count(1)
_owners: Final[weakref.WeakValueDictionary[int, _Owner]] = weakref.WeakValueDictionary()


def make_handle(tape: Any) -> torch.Tensor:
    """Return a tensor (1,) of int64 that owns `tape`; the number in it is not that of any other handle."""
    number = next(_numbers)
    owner = np.array([number], np.int64).view(_Owner)
    owner.tape = tape
    _owners[number] = owner
    return torch.from_numpy(owner)


def open_handle(handle: torch.Tensor) -> Any:
    """Return the tape of a handle.

    Raises
    ------
    RuntimeError
        A copy of a handle whose memory was freed.
    """
    owner = _owners.get(int(handle))
    if owner is None:
        raise RuntimeError(
            "lstmcore.torch.LSTM: expected the record of the forward pass; got a copy of its handle, and the record "
            "was freed with the original: saved_tensors_hooks that keep copies of tensors cannot be used here"
        )
    return owner.tape


def count_tapes() -> int:
    """Return how many tapes are alive in this process."""
    return len(_owners)
