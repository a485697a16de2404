"""JAX: ``jit`` of ``lax.scan``, the input's product for all steps before the loop, gradients by ``vjp``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmcore_conformance.bench.jobs import STREAMED, Job
from lstmcore_conformance.bench.machine import versions
from lstmcore_conformance.bench.runtimes import Prepared, Runtime, Unsupported
from lstmcore_conformance.cases.case import Array, Data


class JAX(Runtime):
    """JAX on the processor; its threads are set by the environment, which the parent makes."""

    def __init__(self, name: str, threads: int) -> None:
        config: Any = jax.config
        config.update("jax_platforms", "cpu")
        config.update("jax_enable_x64", True)

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that it computes with."""
        return versions(("jax", "jaxlib"))

    def prepare(self, job: Job, data: Data) -> Prepared:
        """Return the call that is timed."""
        if job.precision == "tf32":
            raise Unsupported("tf32: processors have no TF32")
        if job.variant not in ("plain", "no_bias"):
            raise Unsupported(f"{job.variant}: only the plain LSTM is compared")
        made = {"inference": _Inference, "training": _Training, "streaming": _Streaming}[job.call](data)
        return Prepared(made, made.outputs, made.how)


make = JAX

_wait: Any = jax.block_until_ready


def _lstm(parameters: Mapping[str, Any], x: Any, h: Any, c: Any) -> Any:
    """y, h and c; the weights are (I, 4H) and (H, 4H), as JAX's own libraries keep them.

    Where x has 16 bits, sums, gates and c are in float32.
    """
    inputs = jnp.matmul(x, parameters["weight_x"], preferred_element_type=c.dtype)
    if "bias" in parameters:
        inputs = inputs + parameters["bias"]

    def step(state: Any, given: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(given + jnp.matmul(h, parameters["weight_h"], preferred_element_type=c.dtype), 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = (jax.nn.sigmoid(o) * jnp.tanh(c)).astype(h.dtype)
        return (h, c), h

    (h, c), y = jax.lax.scan(step, (h, c), inputs)
    return y, h, c


def _gradients(given: Any, incoming: Any) -> Any:
    done, back = jax.vjp(_lstm, *given)
    return done, back(incoming)


class _Inference:
    how = "jax.jit of lax.scan, waited for by block_until_ready"

    def __init__(self, data: Data) -> None:
        parameters = {name: jnp.asarray(_turned(name, array)) for name, array in data.parameters.items()}
        self.given: Any = (parameters, jnp.asarray(data.x), *map(jnp.asarray, data.state or ()))
        self.run = jax.jit(_lstm)

    def __call__(self) -> Any:
        return _wait(self.run(*self.given))

    def outputs(self) -> Mapping[str, Array]:
        return _named(self())


class _Training(_Inference):
    how = "jax.jit of lax.scan and its vjp for x, the state and every parameter, waited for by block_until_ready"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.incoming = (jnp.asarray(data.dy), *map(jnp.asarray, data.dstate or ()))
        self.run = jax.jit(_gradients)

    def __call__(self) -> Any:
        return _wait(self.run(self.given, self.incoming))

    def outputs(self) -> Mapping[str, Array]:
        done, (parameters, dx, dh, dc) = self()
        given = {"dx": np.asarray(dx), "dh0": np.asarray(dh), "dc0": np.asarray(dc)}
        return (
            _named(done) | given | {f"d_{name}": _turned(name, np.asarray(array)) for name, array in parameters.items()}
        )


class _Streaming(_Inference):
    how = "jax.jit of one step, the state handed on, waited for by block_until_ready"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.parameters, x, *self.state = self.given
        self.steps = [x[t : t + 1] for t in range(len(x))]
        self.last, self.t = self.state, 0

    def __call__(self) -> Any:
        y, *self.last = _wait(self.run(self.parameters, self.steps[self.t], *self.last))
        self.t = (self.t + 1) % STREAMED
        return y

    def outputs(self) -> Mapping[str, Array]:
        self.last, self.t = self.state, 0
        y = jnp.concatenate([self() for _ in self.steps])
        return _named((y, *self.last))


def _turned(name: str, array: Array) -> Array:
    """Weights as the other side has them."""
    return np.ascontiguousarray(array.T) if name.startswith("weight") else array


def _named(done: Any) -> dict[str, Array]:
    return dict(zip(("y", "h_n", "c_n"), map(np.asarray, done), strict=True))
