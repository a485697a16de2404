"""SHA-256 of arrays: whether two runs have the same numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hashlib import _Hash


def add_array(digest: _Hash, array: npt.NDArray[Any]) -> None:
    """Add the dtype, the shape and the numbers of an array to a digest."""
    digest.update(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


def digest_of(arrays: Iterable[npt.NDArray[Any]]) -> str:
    """Return the digest of all arrays, in their order."""
    digest = hashlib.sha256()
    for array in arrays:
        add_array(digest, array)
    return digest.hexdigest()
