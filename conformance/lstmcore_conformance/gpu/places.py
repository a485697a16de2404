"""Where a run takes place: a GPU, or the processor as a stand-in on which all of the run's logic is tried."""

from __future__ import annotations

import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from lstmcore import reference
from lstmcore.backend import Array, Backend, State
from lstmcore.config import LSTMConfig
from lstmcore.precision import get_precision
from lstmcore_conformance.cases.case import storage_dtype
from lstmcore_conformance.gpu.plan import STAND_IN, Grid, Mode, Point
from lstmcore_conformance.oracle.naive import NaiveBackend

#: Steps whose data are drawn.
DRAWN: Final = 64

#: Arrays of the place by their names: y, h_n, c_n, and in training dx, dh0, dc0 and d_<parameter>.
Named = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Given:
    """What a call is given, on the host; every number is one of each storage dtype, so that none rounds it.

    dy and the pair dstate are what is differentiated along.
    """

    config: LSTMConfig
    parameters: Mapping[str, npt.NDArray[np.float32]]
    x: npt.NDArray[np.float32]
    state: State
    dy: npt.NDArray[np.float32]
    dstate: State


@dataclass(frozen=True, slots=True)
class Ready:
    """A call that can be timed: `call` does it, `outputs` does it and names what came of it, `how` says what it is.

    `fallback` is that of its receipt: why it is not what was asked for.
    """

    call: Callable[[], Any]
    outputs: Callable[[], Named]
    how: str
    fallback: str | None = None


class Place(ABC):
    """What a run needs of the place where it takes place."""

    name: str
    peer_name: str
    grid: Grid
    backend: Backend
    #: Paths of the backend that it does not take by itself, by their names: they are judged and timed beside it.
    paths: Mapping[str, Backend] = MappingProxyType({})

    def on(self, path: str) -> Self:
        """This place with one of its paths as the backend, and no other."""
        other = copy(self)
        other.backend, other.paths = self.paths[path], {}
        return other

    def lost(self) -> str | None:
        """Why nothing runs here any more, as after a kernel that wrote where it must not; or None."""
        return None

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """The device and the versions, for the JSON."""

    @abstractmethod
    def to_place(self, array: npt.NDArray[np.float32], dtype: str) -> Array:
        """The array in that dtype as the backend takes it, without a copy on its way from the peer's kind."""

    @abstractmethod
    def peer(self, given: Given, precision: str, mode: Mode) -> Ready:
        """The call of the peer."""

    @abstractmethod
    def truth(self, given: Given) -> Named:
        """All outputs and gradients in float64, by code that is neither ours nor in the precision of the peer."""

    @abstractmethod
    def error(self, got: Any, want: Any) -> float:
        """The largest difference; infinite where one has a NaN or another shape."""

    @abstractmethod
    def scale(self, want: Any) -> float:
        """The largest magnitude."""

    @abstractmethod
    def seconds(self, call: Callable[[], Any]) -> float:
        """How long the call keeps the device busy, from its start to its end."""

    @abstractmethod
    def micro(self) -> dict[str, float | str]:
        """What single operations cost, in microseconds, or why it was not found out."""

    def forget(self, given: Given | None = None) -> None:  # noqa: B027  (the processor has nothing to give back)
        """Give memory back that nobody uses; with `given`, that of data which are on the device too."""

    def refusal(self, precision: str) -> str | None:
        """Why the backend is not run in that precision, or None."""
        declared = self.backend.capabilities()
        return None if precision in declared.precisions else declared.missing(precision)

    def ours(self, given: Given, precision: str, mode: Mode) -> Ready:
        """The call of the backend: its kernel on arrays that are on the device before the clock starts."""
        policy = get_precision(precision)
        kernel = self.backend.compile(given.config, precision)
        receipt = kernel.receipt(*given.x.shape[:2])

        def put(array: Any, dtype: str = policy.storage) -> Array:
            return self.to_place(array, dtype)

        def pair(state: State) -> State:
            return State(put(state.h), put(state.c, policy.compute))

        weights = kernel.pack({name: put(array) for name, array in given.parameters.items()})
        x, state, dy, dstate = put(given.x), pair(given.state), put(given.dy), pair(given.dstate)

        def inference() -> Any:
            return kernel.forward(weights, x, state)

        def training() -> Any:
            done = kernel.forward(weights, x, state, record=True)
            return done, kernel.backward(weights, done.tape, dy, dstate)

        def outputs() -> Named:
            if mode == "inference":
                done = inference()
                return {"y": done.y, "h_n": done.state.h, "c_n": done.state.c}
            done, found = training()
            named = {"y": done.y, "h_n": done.state.h, "c_n": done.state.c}
            named |= {"dx": found.x, "dh0": found.state.h, "dc0": found.state.c}
            return named | {f"d_{name}": array for name, array in found.parameters.items()}

        return Ready(inference if mode == "inference" else training, outputs, receipt.path, receipt.fallback)


def draw(point: Point, **switches: Any) -> Given:
    """Data of a layer of those sizes, the same for every precision and mode."""
    config = LSTMConfig(input_size=point.H, hidden_size=point.H, **switches)
    rng = np.random.default_rng([point.T, point.N, point.H])

    def normal(shape: tuple[int, ...], scale: float) -> npt.NDArray[np.float32]:
        return _coarse(rng.standard_normal(shape, np.float32) * np.float32(scale))

    def steps() -> npt.NDArray[np.float32]:
        """Some steps are drawn, the others are those with their columns moved on: no two are the same."""
        drawn = normal((min(point.T, DRAWN), point.N, point.H), 1.0)
        blocks = [np.roll(drawn, block, axis=2) for block in range(-(-point.T // DRAWN))]
        return np.concatenate(blocks)[: point.T]

    parameters = {
        name: normal(shape, 1.0 / shape[-1] ** 0.5 if name.startswith("weight") else 0.3)
        for name, shape in config.parameter_shapes.items()
    }
    pairs = [State(*(normal((point.N, point.H), 0.5) for _ in range(2))) for _ in range(2)]
    return Given(config, parameters, steps(), pairs[0], steps(), pairs[1])


def _coarse(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest multiples of 2**-10 with at most 8 significant bits: numbers of every storage dtype."""
    bits = array.view(np.uint32)
    short = ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
    found: npt.NDArray[np.float32] = np.where(np.abs(short) < 0.25, np.round(short * 1024) / 1024, short)
    return found


# The stand-in ---------------------------------------------------------------------------------------------------------


class StandIn(Place):
    """The processor, the NumPy backend, and the equations in the place of the peer and as a path of ours."""

    name = "the processor as a stand-in: times say nothing"
    peer_name = "the reference"

    def __init__(self, backend: Backend | None = None) -> None:
        self.grid = STAND_IN
        self.backend = import_module("lstmcore_numpy").lstmcore_backend() if backend is None else backend
        self.paths = {"equations": NaiveBackend()} if backend is None else {}

    def facts(self) -> dict[str, Any]:
        return {"device": platform.processor() or platform.machine(), "versions": {"numpy": np.__version__}}

    def to_place(self, array: npt.NDArray[np.float32], dtype: str) -> Array:
        return array.astype(storage_dtype(dtype))

    def peer(self, given: Given, precision: str, mode: Mode) -> Ready:
        policy = get_precision(precision)

        def pair(state: State) -> State:
            return State(self.to_place(state.h, policy.storage), self.to_place(state.c, policy.compute))

        parameters = {name: self.to_place(array, policy.storage) for name, array in given.parameters.items()}
        x, dy = (self.to_place(array, policy.storage) for array in (given.x, given.dy))

        def outputs() -> Named:
            y, last, tape = reference.forward(given.config, parameters, x, pair(given.state), precision=policy)
            named = {"y": y, "h_n": last.h, "c_n": last.c}
            if mode == "training":
                found = reference.backward(given.config, tape, dy, pair(given.dstate))
                named |= {"dx": found.x, "dh0": found.state.h, "dc0": found.state.c}
                named |= {f"d_{name}": array for name, array in found.parameters.items()}
            return named

        return Ready(outputs, outputs, "the reference's equations")

    def truth(self, given: Given) -> Named:
        return self.peer(given, "float64", "training").outputs()

    def error(self, got: Any, want: Any) -> float:
        if got.shape != want.shape:
            return float("inf")
        found = float(np.abs(got.astype(np.float64) - want).max(initial=0.0))
        return float("inf") if np.isnan(found) else found

    def scale(self, want: Any) -> float:
        return float(np.abs(want).max(initial=0.0))

    def seconds(self, call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def micro(self) -> dict[str, float | str]:
        def nothing() -> None:
            return None

        return {"a call of nothing": 1e6 * self.seconds(nothing), "grid barrier": "the stand-in has none"}
