"""A device that is timed: its clock and how arrays get there; a GPU, or the processor as a stand-in for one.

The stand-in is there to try all of a run's logic where there is no GPU.
"""

from __future__ import annotations

import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from lstmcore import reference
from lstmcore.backend import Array, Backend, State, Tangents
from lstmcore.precision import get_precision
from lstmcore_conformance.bench.classifiers import Arrays, Classifier, OwnClassifier, Start
from lstmcore_conformance.bench.grids import STAND_IN, DeviceGrid
from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.machine import cores
from lstmcore_conformance.bench.runtimes import Prepared, resident
from lstmcore_conformance.bench.worker_client import Candidate
from lstmcore_conformance.cases.case import Data, storage_dtype
from lstmcore_conformance.oracle.naive import NaiveBackend

#: Steps whose data are drawn.
DRAWN: Final = 64

#: Arrays of the device by their names: y, h_n, c_n, and in training dx, dh0, dc0 and d_<parameter>.
Named = Mapping[str, Any]


class Device(ABC):
    """What a run needs of the device: memory, a clock, the backend and a peer on it."""

    name: str
    peer: Candidate
    grid: DeviceGrid
    backend: Backend
    #: Paths of the backend that it does not take by itself, by their names: they are judged and timed too.
    paths: Mapping[str, Backend] = MappingProxyType({})
    #: The backend with loops over time as graphs, None if it has none.
    recorded: Backend | None = None

    def on(self, path: str) -> Self:
        """Return this device with one of its paths as the backend, and no other."""
        other = copy(self)
        other.backend, other.paths = self.paths[path], {}
        return other

    def with_graphs(self) -> Self | None:
        """Return this device with graphs as the only path beside the backend, None if it has none."""
        if self.recorded is None:
            return None
        other = copy(self)
        other.paths = {"graphs": self.recorded}
        return other

    def candidate(self, path: str = "") -> Candidate:
        """Return the backend as a candidate, on the path that it takes by itself or on another one."""
        return Candidate("backend", f"{self.backend.name}:{path}" if path else self.backend.name, 1, resident=True)

    def lost(self) -> str | None:
        """Return why nothing runs here any more, as after a kernel that wrote where it must not; or None."""
        return None

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return the device, as the fields processor, cores and others, and the versions, for the JSON."""

    @abstractmethod
    def to_device(self, array: npt.NDArray[np.float32], dtype: str) -> Array:
        """Return the array in that dtype as the backend takes it, without a copy on its way from the peer's kind."""

    @abstractmethod
    def bind_peer(self, job: Job, data: Data) -> Prepared:
        """Return the call of the peer."""

    @abstractmethod
    def truth(self, job: Job, data: Data) -> Named:
        """Return all outputs and gradients in float64, by code that is neither ours nor in the peer's precision."""

    @abstractmethod
    def error(self, got: Any, want: Any) -> float:
        """Return the largest difference; infinite if one has a NaN or another shape."""

    @abstractmethod
    def scale(self, want: Any) -> float:
        """Return the largest magnitude."""

    @abstractmethod
    def seconds(self, call: Callable[[], Any]) -> float:
        """Return how long the call keeps the device busy, from its start to its end."""

    @abstractmethod
    def peer_classifier(self, precision: str, start: Start, arrays: Arrays) -> Classifier | None:
        """Return the peer's classifier for arrays of one kind, None if there is none."""

    @abstractmethod
    def micro(self) -> dict[str, float | str]:
        """Return what single operations cost, in microseconds, or why that was not found out."""

    @abstractmethod
    def tensors(self) -> dict[str, float | str]:
        """Return how tensors of PyTorch on the device fared in `lstmcore.torch`, or why they were not tried."""

    def forget(self, data: Data | None = None) -> None:  # noqa: B027  (the processor has nothing to give back)
        """Give memory back that nobody uses; with `data`, also that of its copies on the device."""

    def refusal(self, precision: str) -> str | None:
        """Return why the backend is not run in that precision, or None."""
        declared = self.backend.capabilities()
        return None if precision in declared.precisions else declared.missing(precision)

    def bind(self, job: Job, data: Data) -> Prepared:
        """Return the call of the backend: its kernel on arrays that are on the device before the clock starts."""
        kernel = self.backend.compile(job.config, job.precision)
        return resident.bind(
            kernel, job, self._moved(job, data), fetch=lambda array: array, finish=lambda *arrays: None
        )

    def _moved(self, job: Job, data: Data) -> Data:
        """Return the data on the device, in the dtypes of the job's precision."""
        policy = get_precision(job.precision)

        def put(array: Any, dtype: str = policy.storage) -> Array:
            return self.to_device(array, dtype)

        def pair(state: State | None) -> State | None:
            return None if state is None else State(put(state.h), put(state.c, policy.compute))

        parameters = {name: put(array) for name, array in data.parameters.items()}
        dy = None if data.dy is None else put(data.dy)
        return replace(
            data, parameters=parameters, x=put(data.x), state=pair(data.state), dy=dy, dstate=pair(data.dstate)
        )


def draw(job: Job) -> Data:
    """Return the inputs of a job, on the host, in float32: the same for every precision and mode.

    All values are exactly representable in every storage dtype, so that results are comparable across precisions.
    """
    config, point = job.config, job.point
    rng = np.random.default_rng([point.T, point.N, point.H])

    def normal(shape: tuple[int, ...], scale: float) -> npt.NDArray[np.float32]:
        return _coarse(rng.standard_normal(shape, np.float32) * np.float32(scale))

    def steps(width: int) -> npt.NDArray[np.float32]:
        """Return some steps that are drawn, then these with their columns moved on: no two are the same."""
        drawn = normal((min(point.T, DRAWN), point.N, width), 1.0)
        blocks = [np.roll(drawn, block, axis=2) for block in range(-(-point.T // DRAWN))]
        return np.concatenate(blocks)[: point.T]

    parameters: dict[str, Array] = {
        name: normal(shape, 1.0 / shape[-1] ** 0.5 if name.startswith("weight") else 0.3)
        for name, shape in config.parameter_shapes.items()
    }
    state, dstate = (State(*(normal((point.N, point.H), 0.5) for _ in range(2))) for _ in range(2))
    x, dy = steps(point.I), steps(point.H)
    return Data(parameters, x, state, None, None, dy, dstate, Tangents())


def _coarse(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the nearest multiples of 2**-10 with at most 8 significant bits: numbers of every storage dtype."""
    bits = array.view(np.uint32)
    short = ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
    found: npt.NDArray[np.float32] = np.where(np.abs(short) < 0.25, np.round(short * 1024) / 1024, short)
    return found


# The stand-in ---------------------------------------------------------------------------------------------------------


class StandIn(Device):
    """The processor, the NumPy backend, and the equations in the place of the peer and as a path of ours."""

    name = "the processor as a stand-in: times say nothing"
    peer = Candidate("peer", "reference", 1)

    def __init__(self, backend: Backend | None = None) -> None:
        self.grid = STAND_IN
        self.backend = import_module("lstmcore_numpy").lstmcore_backend() if backend is None else backend
        self.paths = {"equations": NaiveBackend()} if backend is None else {}
        self.recorded = self.paths.get("equations")

    def facts(self) -> dict[str, Any]:
        """Return the processor and NumPy's version."""
        processor = platform.processor() or platform.machine()
        return {"processor": processor, "cores": cores(), "versions": {"numpy": np.__version__}}

    def to_device(self, array: npt.NDArray[np.float32], dtype: str) -> Array:
        """Return a copy in that dtype."""
        return array.astype(storage_dtype(dtype))

    def bind_peer(self, job: Job, data: Data) -> Prepared:
        """Return the call of the reference in the job's precision."""
        policy, moved = get_precision(job.precision), self._moved(job, data)

        def outputs() -> Named:
            y, last, tape = reference.forward(job.config, moved.parameters, moved.x, moved.state, precision=policy)
            named = {"y": y, "h_n": last.h, "c_n": last.c}
            if job.mode == "training":
                gradients = reference.backward(job.config, tape, moved.dy, moved.dstate)
                named |= {"dx": gradients.x, "dh0": gradients.state.h, "dc0": gradients.state.c}
                named |= {f"d_{name}": array for name, array in gradients.parameters.items()}
            return named

        return Prepared(outputs, outputs, "the reference's equations")

    def truth(self, job: Job, data: Data) -> Named:
        """Return what the reference makes in float64."""
        return self.bind_peer(replace(job, mode="training", precision="float64"), data).outputs()

    def error(self, got: Any, want: Any) -> float:
        """Return the largest difference; infinite if one has a NaN or another shape."""
        if got.shape != want.shape:
            return float("inf")
        largest = float(np.abs(got.astype(np.float64) - want).max(initial=0.0))
        return float("inf") if np.isnan(largest) else largest

    def scale(self, want: Any) -> float:
        """Return the largest magnitude."""
        return float(np.abs(want).max(initial=0.0))

    def seconds(self, call: Callable[[], Any]) -> float:
        """Return the host's time."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def peer_classifier(self, precision: str, start: Start, arrays: Arrays) -> Classifier | None:
        """Return one that computes by the equations."""
        return OwnClassifier(NaiveBackend(), precision, start, lambda array: array)

    def micro(self) -> dict[str, float | str]:
        """Return what a call of nothing costs."""
        return {"a call of nothing": 1e6 * self.seconds(lambda: None), "grid barrier": "the stand-in has none"}

    def tensors(self) -> dict[str, float | str]:
        """Return that there are none."""
        return {"tensors": "the stand-in has none"}
