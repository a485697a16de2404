"""The arrays of a case, and the dtypes in which they are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Masks, StackMasks, State, Tangents

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Data:
    """The arguments of every call of a case."""

    parameters: dict[str, Array]
    x: Array
    state: State | None
    lengths: Array | None
    masks: Any
    dy: Array | None
    dstate: State | None
    tangents: Tangents

    def map(self, function: Callable[[Array], Any]) -> Data:
        """Return a copy with `function` applied to every array but the lengths."""

        def each(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, dict):
                return {key: each(item) for key, item in value.items()}
            if isinstance(value, State | Masks | StackMasks | Tangents):
                return type(value)(*(each(item) for item in value))
            if isinstance(value, tuple):
                return tuple(each(item) for item in value)
            return function(value)

        return Data(
            each(self.parameters),
            each(self.x),
            each(self.state),
            None if self.lengths is None else self.lengths.copy(),
            each(self.masks),
            each(self.dy),
            each(self.dstate),
            each(self.tangents),
        )

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield every array with a name for messages."""
        yield from ((f"parameters[{name!r}]", array) for name, array in self.parameters.items())
        yield "x", self.x
        for name, pair in (("state", self.state), ("dstate", self.dstate), ("tangents.state", self.tangents.state)):
            if pair is not None:
                yield f"{name}.h", pair.h
                yield f"{name}.c", pair.c
        if self.lengths is not None:
            yield "lengths", self.lengths
        for position, mask in enumerate(_flat(self.masks)):
            yield f"masks[{position}]", mask
        if self.dy is not None:
            yield "dy", self.dy
        if self.tangents.x is not None:
            yield "tangents.x", self.tangents.x
        yield from ((f"tangents.parameters[{name!r}]", a) for name, a in (self.tangents.parameters or {}).items())


def _flat(value: Any) -> Iterator[Array]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    elif value is not None:
        yield value


def storage_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of that name.

    Raises
    ------
    ModuleNotFoundError
        The name is bfloat16 and ml_dtypes, which has that dtype, is not installed.
    """
    if name == "bfloat16":
        try:
            import ml_dtypes  # type: ignore[import-not-found,unused-ignore]  # optional
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "bfloat16 on the host needs ml_dtypes: install it with 'pip install ml_dtypes'"
            ) from error
        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(name)
