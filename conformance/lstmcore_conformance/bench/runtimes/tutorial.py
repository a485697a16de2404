"""The LSTM as tutorials list it: one row after another, eight matrix-vector products a step. Only where it is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.machine import versions
from lstmcore_conformance.bench.runtimes import Prepared, Runtime, Unsupported
from lstmcore_conformance.cases.case import Array, Data


class Tutorial(Runtime):
    """NumPy as tutorials use it."""

    def __init__(self, name: str, threads: int) -> None:
        """Nothing is to be set: the environment tells NumPy's products their threads."""

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that it computes with."""
        return versions(("numpy",))

    def prepare(self, job: Job, data: Data) -> Prepared:
        """Return the call that is timed."""
        if job.mode != "inference" or job.variant != "plain" or data.state is None:
            raise Unsupported("tutorials list the plain forward pass only")
        if job.precision not in ("float32", "float64"):
            raise Unsupported(f"{job.precision}: tutorials have one dtype for everything")
        x, (h, c), parameters = data.x, data.state, data.parameters

        def outputs() -> dict[str, Array]:
            return dict(zip(("y", "h_n", "c_n"), forward(parameters, x, h, c), strict=True))

        return Prepared(lambda: forward(parameters, x, h, c), outputs, "a loop over rows and steps in NumPy")


make = Tutorial


def sigmoid(z: Any) -> Any:
    """As tutorials write it."""
    return 1 / (1 + np.exp(-z))


def forward(parameters: Mapping[str, Any], x: Any, h0: Any, c0: Any) -> tuple[Array, Array, Array]:
    """Return y (T, N, H), h and c (N, H) of x (T, N, I)."""
    w_i, w_f, w_g, w_o = np.split(parameters["weight_x"], 4)
    r_i, r_f, r_g, r_o = np.split(parameters["weight_h"], 4)
    b_i, b_f, b_g, b_o = np.split(parameters["bias"], 4)
    y = np.empty((*x.shape[:2], w_i.shape[0]), x.dtype)
    last_h, last_c = h0.copy(), c0.copy()
    for n in range(x.shape[1]):
        h, c = h0[n], c0[n]
        for t in range(x.shape[0]):
            i = sigmoid(w_i @ x[t, n] + r_i @ h + b_i)
            f = sigmoid(w_f @ x[t, n] + r_f @ h + b_f)
            g = np.tanh(w_g @ x[t, n] + r_g @ h + b_g)
            o = sigmoid(w_o @ x[t, n] + r_o @ h + b_o)
            c = f * c + i * g
            h = o * np.tanh(c)
            y[t, n] = h
        last_h[n], last_c[n] = h, c
    return y, last_h, last_c
