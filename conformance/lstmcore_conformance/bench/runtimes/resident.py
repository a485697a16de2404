"""A backend with a device of its own, called through its kernel on arrays that are there before the clock starts."""

from __future__ import annotations

from collections.abc import Mapping
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
        return dict(self.backend.versions())

    def prepare(self, job: Job, data: Data) -> Prepared:
        try:
            kernel = self.backend.compile(job.config, job.precision)
        except UnsupportedError as error:
            raise Unsupported(str(error)) from None
        if job.mode == "training" and "backward" not in self.backend.capabilities().derivatives:
            raise Unsupported(self.backend.capabilities().missing("backward"))
        there = data.map(lambda array: self.backend.to_device(np.ascontiguousarray(array)))
        kinds = {"inference": _Inference, "training": _Training, "streaming": _Streaming}
        made = kinds[job.mode](self.backend, kernel, there)
        return Prepared(made, made.outputs, f"{made.how}; {kernel.receipt(job.point.T, job.point.N).path}")


make = Resident


class _Inference:
    how = "Kernel.forward on arrays of the device, waited for"

    def __init__(self, backend: Backend, kernel: Kernel, data: Data) -> None:
        self.backend, self.kernel, self.data = backend, kernel, data
        self.weights = kernel.pack(data.parameters)

    def __call__(self) -> Any:
        done = self.kernel.forward(self.weights, self.data.x, self.data.state)
        wait(done.y, *done.state)
        return done

    def outputs(self) -> Mapping[str, Array]:
        return self._named(self())

    def _named(self, done: Forward) -> dict[str, Array]:
        named = {"y": done.y, "h_n": done.state.h, "c_n": done.state.c}
        return {name: self.backend.to_host(array) for name, array in named.items()}


class _Training(_Inference):
    how = "Kernel.forward and Kernel.backward on arrays of the device, waited for"

    def __call__(self) -> Any:
        data, kernel = self.data, self.kernel
        masks = data.masks if data.masks is not None and any(mask is not None for mask in data.masks) else None
        done = kernel.forward(self.weights, data.x, data.state, masks=masks, record=True)
        found = kernel.backward(self.weights, done.tape, data.dy, data.dstate)
        wait(found.x, *found.state, *found.parameters.values())
        return done, found

    def outputs(self) -> Mapping[str, Array]:
        done, found = self()
        named = {"dx": found.x, "dh0": found.state.h, "dc0": found.state.c}
        named |= {f"d_{name}": array for name, array in found.parameters.items()}
        return self._named(done) | {name: self.backend.to_host(array) for name, array in named.items()}


class _Streaming(_Inference):
    how = "Kernel.forward on arrays of the device, a step a call, the state handed on, waited for"

    def __init__(self, backend: Backend, kernel: Kernel, data: Data) -> None:
        super().__init__(backend, kernel, data)
        self.steps = [data.x[t : t + 1] for t in range(STREAMED)]
        self.last: State | None = data.state
        self.t = 0

    def __call__(self) -> Any:
        done = self.kernel.forward(self.weights, self.steps[self.t], self.last)
        wait(done.y, *done.state)
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
