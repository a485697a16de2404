"""Any registered backend, called as its users call it: through `lstmcore.LSTM` on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmcore import LSTM, UnsupportedError, registry
from lstmcore.backend import Masks, StackMasks, State
from lstmcore.config import StackConfig
from lstmcore_conformance.bench.jobs import STREAMED, Job
from lstmcore_conformance.bench.runtimes import Prepared, Runtime, Unsupported
from lstmcore_conformance.cases.case import Array, Data


class Registered(Runtime):
    """A backend by its name."""

    def __init__(self, name: str, threads: int) -> None:
        self.backend = registry.get_backend(name)

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that it computes with."""
        return dict(self.backend.versions())

    def prepare(self, job: Job, data: Data) -> Prepared:
        """Return the call that is timed."""
        stack = StackConfig(layers=((job.config,),))
        (suffix,) = stack.suffixes
        parameters = {name + suffix: array for name, array in data.parameters.items()}
        try:
            lstm = LSTM.from_config(stack, parameters, dtype=job.precision, backend=self.backend, seed=0)
        except UnsupportedError as error:
            raise Unsupported(str(error)) from None
        if job.call == "training" and "backward" not in self.backend.capabilities().derivatives:
            raise Unsupported(self.backend.capabilities().missing("backward"))
        made = {"inference": _Inference, "training": _Training, "streaming": _Streaming}[job.call](lstm, data, suffix)
        how = f"{made.how}, with lengths" if data.lengths is not None else made.how
        return Prepared(made, made.outputs, f"{how}; {lstm.explain(job.point.T, job.point.N).receipts[0][1].path}")


make = Registered


class _Inference:
    how = "LSTM(x, state)"

    def __init__(self, lstm: LSTM, data: Data, suffix: str) -> None:
        self.lstm, self.suffix = lstm, suffix
        self.x, self.state, self.lengths = np.ascontiguousarray(data.x), _stacked(data.state), data.lengths

    def __call__(self) -> Any:
        return self.lstm(self.x, self.state, self.lengths)

    def outputs(self) -> Mapping[str, Array]:
        y, last = self()
        return {"y": y, "h_n": last.h[0], "c_n": last.c[0]}


class _Training(_Inference):
    how = "LSTM.record(x, state) and LSTM.backward(tape, dy, dstate)"

    def __init__(self, lstm: LSTM, data: Data, suffix: str) -> None:
        super().__init__(lstm, data, suffix)
        self.dy, self.dstate = data.dy, _stacked(data.dstate)
        self.masks = StackMasks((data.masks or Masks(),))

    def __call__(self) -> Any:
        y, last, tape = self.lstm.record(self.x, self.state, self.lengths, masks=self.masks)
        return y, last, self.lstm.backward(tape, self.dy, self.dstate)

    def outputs(self) -> Mapping[str, Array]:
        y, last, found = self()
        named = {f"d_{name.removesuffix(self.suffix)}": array for name, array in found.parameters.items()}
        given = {"dx": found.x, "dh0": found.state.h[0], "dc0": found.state.c[0]}
        return {"y": y, "h_n": last.h[0], "c_n": last.c[0]} | given | named


class _Streaming(_Inference):
    how = "y, state = LSTM(x, state), a step a call"

    def __init__(self, lstm: LSTM, data: Data, suffix: str) -> None:
        super().__init__(lstm, data, suffix)
        self.steps = [self.x[t : t + 1].copy() for t in range(len(self.x))]
        self.last, self.t = self.state, 0

    def __call__(self) -> Any:
        y, self.last = self.lstm(self.steps[self.t], self.last)
        self.t = (self.t + 1) % STREAMED
        return y

    def outputs(self) -> Mapping[str, Array]:
        self.last, self.t = self.state, 0
        y = np.concatenate([self() for _ in self.steps])
        return {"y": y, "h_n": self.last.h[0], "c_n": self.last.c[0]}


def _stacked(state: State | None) -> State:
    if state is None:
        raise ValueError("data: expected a state; got none")
    return State(np.ascontiguousarray(state.h[None]), np.ascontiguousarray(state.c[None]))
