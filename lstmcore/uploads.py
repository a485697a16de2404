"""Copies of arrays of the host to a device, which may run beside what the device computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

Array = Any


class Uploader:
    """Copies arrays of the host to a device. This one copies each when it is told, and is ready then.

    A backend whose device copies while it computes returns a subclass from `LayerBackend.uploader`.

    Parameters
    ----------
    put
        Returns an array of the host on the device.

    Examples
    --------
    >>> import numpy as np
    >>> take = Uploader(lambda array: array).start([np.ones(2), np.zeros(3)])
    >>> [array.shape for array in take()]
    [(2,), (3,)]
    """

    def __init__(self, put: Callable[[npt.NDArray[Any]], Array]) -> None:
        self._put = put

    def start(self, arrays: Sequence[npt.NDArray[Any]]) -> Callable[[], Sequence[Array]]:
        """Begin to copy arrays, and return a function that returns them on the device.

        The function is called once. It lets the then current stream wait for the copies; the host does not wait.
        The arrays may be written to once this returns.
        """
        ready = [self._put(array) for array in arrays]
        return lambda: ready

    def free_bytes(self) -> int | None:
        """Return how many bytes of the device's memory are free, or None if it does not tell."""
        return None

    def close(self) -> None:
        """Wait for copies that nothing took, and give their memory back."""
