"""A backend whose arrays are no NumPy arrays, as those of a device: views and writing work, and there are no flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lstmcore.backend import Array, Backend, Capabilities, Forward, Gradients, State
from lstmcore.config import FEATURES
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel


class Remote:
    """An array on a device, which is memory of NumPy."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory
        self.shape, self.dtype, self.ndim, self.strides = memory.shape, memory.dtype, memory.ndim, memory.strides

    def __getitem__(self, key: Any) -> Remote:
        return type(self)(self.memory[key])

    def __setitem__(self, key: Any, values: Any) -> None:
        self.memory[key] = held(values)

    @property
    def T(self) -> Remote:
        return type(self)(self.memory.T)

    def swapaxes(self, first: int, second: int) -> Remote:
        return type(self)(self.memory.swapaxes(first, second))


class Frozen(Remote):
    """An array that cannot change and tells no strides, as those of JAX."""

    def __init__(self, memory: Array) -> None:
        super().__init__(np.array(memory))
        del self.strides

    def __setitem__(self, key: Any, values: Any) -> None:
        raise TypeError("arrays are immutable")


def held(value: Any) -> Any:
    """Return a value with memory in place of each array of the device."""
    if isinstance(value, Remote):
        return value.memory
    if isinstance(value, Mapping):
        return {name: held(each) for name, each in value.items()}
    if isinstance(value, tuple):
        each = [held(item) for item in value]
        return type(value)(*each) if hasattr(value, "_fields") else tuple(each)
    return value


class RemoteKernel(NaiveKernel):
    """The naive evaluation on memory that arrays of the device hold."""

    arrays: ClassVar[type[Remote]] = Remote

    def _put(self, state: State) -> State:
        return State(*(self.arrays(array) for array in state))

    def _pack(self, parameters: Mapping[str, Any]) -> Any:
        return super()._pack(held(parameters))

    def _forward(self, weights: Any, *arguments: Any, record: bool, out: Any) -> tuple[Any, State, Any]:
        y, last, tape = super()._forward(weights, *held(arguments), record=record, out=None)
        if out is None:
            return self.arrays(y), self._put(last), tape
        out[...] = y
        return out, self._put(last), tape

    def _backward(self, weights: Any, saved: Any, dy: Any, dstate: Any) -> Gradients:
        x, state, parameters = super()._backward(weights, saved, held(dy), held(dstate))
        return Gradients(self.arrays(x), self._put(state), {name: self.arrays(a) for name, a in parameters.items()})

    def _jvp(self, weights: Any, *arguments: Any) -> tuple[Forward, Forward]:
        done, moved = (
            Forward(self.arrays(result.y), self._put(result.state))
            for result in super()._jvp(weights, *held(arguments))
        )
        return done, moved


class RemoteBackend(NaiveBackend):
    """The backend of a kernel."""

    name = "remote"

    def __init__(self, kernel: type[RemoteKernel] = RemoteKernel) -> None:
        self.kernel: type[RemoteKernel] = kernel

    def capabilities(self) -> Capabilities:
        return Capabilities("remote", frozenset({"float32"}), FEATURES)

    def to_device(self, array: Any) -> Any:
        return array if isinstance(array, Remote) else self.kernel.arrays(np.array(array))

    def to_host(self, array: Any) -> Array:
        copy: Array = np.array(held(array))
        return copy


def remote(arrays: type[Remote] = Remote, **methods: Any) -> Backend:
    """Return a backend with arrays of a type, and with other methods of its kernel."""
    return RemoteBackend(type("K", (RemoteKernel,), {"arrays": arrays, **methods}))
