"""A backend with a device of its own, called through its kernel on arrays that are there before the clock starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lstmcore import UnsupportedError, registry
from lstmcore.backend import Array, Backend, Forward, Kernel, State
from lstmcore_conformance.bench.jobs import STREAMED, Job
from lstmcore_conformance.bench.runtimes import Prepared, Runtime, Unsupported
from lstmcore_conformance.cases.case import Data


class Resident(Runtime):
    """A backend by its name."""

    def __init__(self, name: str, threads: int) -> None:
        self.backend = registry.get_backend(name)

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that it computes with."""
        return dict(self.backend.versions())

    def prepare(self, job: Job, data: Data) -> Prepared:
        """Return the call that is timed."""
        return prepare(self.backend, job, data)


make = Resident


def prepare(backend: Backend, job: Job, data: Data) -> Prepared:
    """Return the call of a backend; what is judged comes to the host.

    Raises
    ------
    Unsupported
        The backend does not do it.
    """
    try:
        kernel = backend.compile(job.config, job.precision)
    except UnsupportedError as error:
        raise Unsupported(str(error)) from None
    if job.call == "training" and "backward" not in backend.capabilities().derivatives:
        raise Unsupported(backend.capabilities().missing("backward"))
    there = data.map(lambda array: backend.to_device(np.ascontiguousarray(array)))
    return bind(kernel, job, there, fetch=backend.to_host, finish=wait)


def bind(
    kernel: Kernel, job: Job, data: Data, *, fetch: Callable[[Array], Any], finish: Callable[..., None]
) -> Prepared:
    """Return the call of a kernel.

    Parameters
    ----------
    data
        The call's arguments, on the device.
    fetch
        Is applied to every array that is to be judged.
    finish
        Returns when the device has made the arrays that it is given.
    """
    kinds = {"inference": _Inference, "training": _Training, "streaming": _Streaming}
    made = kinds[job.call](kernel, data, fetch, finish)
    receipt = kernel.receipt(job.point.T, job.point.N)
    how = f"{made.how}, with lengths" if data.lengths is not None else made.how
    return Prepared(made, made.outputs, f"{how}; {receipt.path}", path=receipt.path, fallback=receipt.fallback)


class _Inference:
    how = "Kernel.forward on arrays of the device, waited for"

    def __init__(self, kernel: Kernel, data: Data, fetch: Callable[[Array], Any], finish: Callable[..., None]) -> None:
        self.kernel, self.data, self.fetch, self.finish = kernel, data, fetch, finish
        self.weights = kernel.pack(data.parameters)

    def __call__(self) -> Any:
        done = self.kernel.forward(self.weights, self.data.x, self.data.state, lengths=self.data.lengths)
        self.finish(done.y, *done.state)
        return done

    def outputs(self) -> Mapping[str, Array]:
        return self._named(self())

    def _named(self, done: Forward) -> dict[str, Array]:
        named = {"y": done.y, "h_n": done.state.h, "c_n": done.state.c}
        return {name: self.fetch(array) for name, array in named.items()}


class _Training(_Inference):
    how = "Kernel.forward and Kernel.backward on arrays of the device, waited for"

    def __call__(self) -> Any:
        data, kernel = self.data, self.kernel
        masks = data.masks if data.masks is not None and any(mask is not None for mask in data.masks) else None
        done = kernel.forward(self.weights, data.x, data.state, lengths=data.lengths, masks=masks, record=True)
        found = kernel.backward(self.weights, done.tape, data.dy, data.dstate)
        self.finish(found.x, *found.state, *found.parameters.values())
        return done, found

    def outputs(self) -> Mapping[str, Array]:
        done, found = self()
        named = {"dx": found.x, "dh0": found.state.h, "dc0": found.state.c}
        named |= {f"d_{name}": array for name, array in found.parameters.items()}
        return self._named(done) | {name: self.fetch(array) for name, array in named.items()}


class _Streaming(_Inference):
    how = "Kernel.forward on arrays of the device, a step a call, the state handed on, waited for"

    def __init__(self, kernel: Kernel, data: Data, fetch: Callable[[Array], Any], finish: Callable[..., None]) -> None:
        super().__init__(kernel, data, fetch, finish)
        self.steps = [data.x[t : t + 1] for t in range(STREAMED)]
        self.last: State | None = data.state
        self.t = 0

    def __call__(self) -> Any:
        done = self.kernel.forward(self.weights, self.steps[self.t], self.last)
        self.finish(done.y, *done.state)
        self.last, self.t = done.state, (self.t + 1) % STREAMED
        return done

    def outputs(self) -> Mapping[str, Array]:
        self.last, self.t = self.data.state, 0
        steps = [self._named(self()) for _ in range(STREAMED)]
        return steps[-1] | {"y": np.concatenate([step["y"] for step in steps])}


def wait(*arrays: Array) -> None:
    """Return when the device has made those arrays, by what its library has for that; NumPy's are there."""
    for array in arrays:
        if hasattr(array, "block_until_ready"):
            array.block_until_ready()
        elif hasattr(device := getattr(array, "device", None), "synchronize"):
            device.synchronize()  # type: ignore[union-attr]  # it has just been asked for
