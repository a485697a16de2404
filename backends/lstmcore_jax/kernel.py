"""The LSTM as users of JAX write it: `jax.lax.scan` under `jax.jit`, with the derivatives of `jax.vjp` and `jax.jvp`.

XLA compiles once for every configuration, precision, T and N, and for each of forward, recorded forward, backward and
jvp; docs/peers-jax.md has the times. Everything runs on the processor, also if JAX sees another device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstmcore.backend import (
    Array,
    Backend,
    Capabilities,
    Forward,
    Gradients,
    Kernel,
    Masks,
    Receipt,
    State,
    Tangents,
    Weights,
)
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import Precision

#: The most compiled programs of each of the four functions below. A function forgets them all before one more.
_KEPT: Final = 200
_ACTIVATIONS: Final = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}
#: A context manager that lets the calling thread compute in float64. Older versions of JAX have it in `experimental`.
_enable_x64: Callable[[bool], Any] = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64


class _Arguments(NamedTuple):
    """The arguments of a call that are differentiated."""

    parameters: Mapping[str, Array]
    x: Array
    state: State


class _Outputs(NamedTuple):
    """The results of a call that are differentiated."""

    y: Array
    state: State


class _Saved(NamedTuple):
    """The tape: T, N and the function that `jax.vjp` returned."""

    steps: int
    batch: int
    pullback: Any


class _Call(NamedTuple):
    """The arguments of a call that are not differentiated. `ends` is (N,), or None for T everywhere."""

    ends: Array | None
    masks: Masks


# The equations --------------------------------------------------------------------------------------------------------


def _own(active: Array | None, array: Array) -> Array:
    """Return `array` with zeros in padding rows.

    Everything that goes into a sum passes through here, so that a NaN in padding reaches no gradient.
    """
    return array if active is None else jnp.where(active, array, jnp.zeros_like(array))


def _clip(z: Array, bound: float | None) -> Array:
    """Clip `z` to +-`bound`. `jnp.clip` would halve the gradient on the bound."""
    return z if bound is None else jnp.where(z > bound, bound, jnp.where(z < -bound, -bound, z))


def _product(a: Array, weight: Array) -> Array:
    """Return ``a weight'`` in full precision."""
    return jnp.matmul(a, weight.T, precision=lax.Precision.HIGHEST)


def _blend(keep: Array | float, old: Array, new: Array) -> Array:
    """Return ``keep old + (1 - keep) new``."""
    return new if isinstance(keep, float) and keep == 0 else keep * old + (1 - keep) * new


def _outputs(config: LSTMConfig, call: _Call, arguments: _Arguments) -> _Outputs:
    """Return y and the final state by the equations of SPEC.md."""
    p, x, state = arguments
    active = None if call.ends is None else (jnp.arange(x.shape[0])[:, None] < call.ends)[:, :, None]
    z = _product(_own(active, x), p["weight_x"])
    if config.bias:
        z = z + p["bias"]

    def step(before: State, inputs: tuple[Array, Array | None, Array | None, Array | None]) -> tuple[State, Array]:
        z_x, now, keep_h, keep_c = inputs
        masks = Masks(
            None if call.masks.recurrent is None else _own(now, call.masks.recurrent),
            config.zoneout_hidden if keep_h is None else _own(now, keep_h),
            config.zoneout_cell if keep_c is None else _own(now, keep_c),
        )
        new = _step(config, p, masks, z_x, State(*(_own(now, array) for array in before)))
        if now is None:
            return new, new.h
        return State(*(jnp.where(now, *pair) for pair in zip(new, before, strict=True))), _own(now, new.h)

    inputs = (z, active, call.masks.zoneout_hidden, call.masks.zoneout_cell)
    last, y = lax.scan(step, state, inputs, reverse=config.reverse)
    return _Outputs(y, last)


def _step(config: LSTMConfig, p: Mapping[str, Array], masks: Masks, z_x: Array, before: State) -> State:
    """Return the state after a step; `z_x` (N, G H) is ``W x + b``. Padding rows of `masks` and `before` are 0."""
    sigmoid, a, u = (
        _ACTIVATIONS[function.name]
        for function in (config.gate_activation, config.cell_activation, config.hidden_activation)
    )
    h, c = before
    recurrent = c if config.recurrence == "cell" else h
    if masks.recurrent is not None:
        recurrent = masks.recurrent * recurrent
    parts = jnp.split(z_x + _product(recurrent, p["weight_h"]), len(config.gates), axis=1)
    z = dict(zip(config.gates, parts, strict=True))
    peephole = dict(zip(config.peephole_gates, p["peephole"], strict=True)) if config.peephole else {}

    def gate(k: str, cell: Array) -> Array:
        pre = z[k] + peephole[k] * cell if k in peephole else z[k]
        return (a if k == "g" else sigmoid)(_clip(pre, config.gate_clip))

    if config.coupling == "input_from_forget":
        f = gate("f", c)
        i = 1 - f
    else:
        i = gate("i", c)
        f = 1 - i if config.coupling == "forget_from_input" else gate("f", c)
    c = _blend(masks.zoneout_cell, c, _clip(f * c + i * gate("g", c), config.cell_clip))
    q = gate("o", c) * u(c)
    h_new = _product(q, p["weight_proj"]) if config.proj_size else q
    return State(_blend(masks.zoneout_hidden, h, _clip(h_new, config.proj_clip)), c)


def _recorded(config: LSTMConfig, call: _Call, arguments: _Arguments) -> tuple[_Outputs, Any]:
    """Return the outputs, and the function of `jax.vjp`: a tree of arrays that another jit can take."""
    outputs, pullback = jax.vjp(lambda differentiated: _outputs(config, call, differentiated), arguments)
    return outputs, pullback


def _gradients(pullback: Any, cotangents: _Outputs) -> Any:
    """Return the gradients, as `_Arguments`."""
    (gradients,) = pullback(cotangents)
    return gradients


def _jvp(config: LSTMConfig, call: _Call, arguments: _Arguments, tangents: _Arguments) -> Any:
    """Return the outputs and their tangents, both as `_Outputs`.

    What has None in `tangents` stays constant: with a tangent of zeros it would add 0 times infinity, which is NaN.
    """
    leaves, tree = jax.tree.flatten(arguments)
    directions = jax.tree.leaves(tangents, is_leaf=lambda leaf: leaf is None)
    moving = {place: direction for place, direction in enumerate(directions) if direction is not None}

    def outputs(*moved: Array) -> _Outputs:
        each = dict(enumerate(leaves)) | dict(zip(moving, moved, strict=True))
        return _outputs(config, call, jax.tree.unflatten(tree, each.values()))

    if not moving:
        primal = outputs()
        return primal, jax.tree.map(jnp.zeros_like, primal)
    return jax.jvp(outputs, tuple(leaves[place] for place in moving), tuple(moving.values()))


class _Program:
    """A function under jit that forgets its compiled programs once there are `_KEPT` of them.

    A program takes about 40 memory mappings. Linux allows a process 65530, and XLA ends the process without them.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self._jitted: Any = jax.jit(function, **options)

    def __call__(self, *arguments: Any) -> Any:
        if self._jitted._cache_size() >= _KEPT:
            self._jitted.clear_cache()
        return self._jitted(*arguments)


_run_outputs = _Program(_outputs, static_argnums=0)
_run_recorded = _Program(_recorded, static_argnums=0)
_run_gradients = _Program(_gradients)
_run_jvp = _Program(_jvp, static_argnums=0)


# The kernel -----------------------------------------------------------------------------------------------------------


class JaxKernel(Kernel):
    """One layer in one direction."""

    def __init__(self, backend: Backend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self.dtype = np.dtype(precision.storage)

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        reason = "XLA's code for this configuration and these sizes, on threads of its own"
        return Receipt(self.backend.name, "cpu", self.precision.name, "lax.scan under jit", reason)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Return a context in which this thread computes in the kernel's dtype; it restores the user's settings."""
        with (
            _enable_x64(self.dtype == np.float64),
            jax.numpy_rank_promotion("allow"),
            jax.numpy_dtype_promotion("standard"),
            jax.transfer_guard("allow"),
        ):
            yield

    def _state(self, state: State | None, batch: int) -> State:
        """Return `state`, zeros if None."""
        widths = (self.config.output_size, self.config.hidden_size)
        return State(*(np.zeros((batch, width), self.dtype) for width in widths)) if state is None else State(*state)

    def _call(
        self, weights: Weights, x: Array, state: State | None, lengths: Any, masks: Masks | None
    ) -> tuple[_Call, _Arguments]:
        """Return the arguments of `_forward` in the form of `_outputs`."""
        call = _Call(None if lengths is None else lengths.astype(np.int32), masks or Masks())
        return call, _Arguments(weights, x, self._state(state, x.shape[1]))

    def _pack(self, parameters: Mapping[str, Array]) -> Weights:
        # JAX computes on the device of the weights, so they go to the processor.
        copies = {name: np.array(parameters[name], order="C") for name in self.config.parameter_shapes}
        with self._computing():
            return jax.device_put(copies, jax.local_devices(backend="cpu")[0])

    def _forward(  # noqa: PLR0913  (the contract of a kernel)
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, _Saved | None]:
        call, arguments = self._call(weights, x, state, lengths, masks)
        pullback = None
        with self._computing():
            if record:
                # JAX may keep using the memory of a NumPy array, so the tape gets copies.
                call, copies = jax.tree.map(np.array, (call, arguments._replace(parameters={})))
                (y, last), pullback = _run_recorded(self.config, call, copies._replace(parameters=weights))
            else:
                y, last = _run_outputs(self.config, call, arguments)
            last = _fetch(last)
            if out is None:
                out = np.array(y)
            else:
                out[...] = y
        return out, last, _Saved(x.shape[0], x.shape[1], pullback) if record else None

    def _backward(self, weights: Weights, saved: _Saved, dy: Array | None, dstate: State | None) -> Gradients:
        shape = (saved.steps, saved.batch, self.config.output_size)
        dy = np.zeros(shape, self.dtype) if dy is None else dy
        with self._computing():
            gradients = _fetch(_run_gradients(saved.pullback, _Outputs(dy, self._state(dstate, saved.batch))))
        return Gradients(gradients.x, gradients.state, gradients.parameters)

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        moved = tangents.parameters or {}
        parameters = {name: moved.get(name) for name in self.config.parameter_shapes}
        call, arguments = self._call(weights, x, state, lengths, masks)
        directions = _Arguments(parameters, tangents.x, State(*(tangents.state or (None, None))))
        with self._computing():
            primal, tangent = _fetch(_run_jvp(self.config, call, arguments, directions))
        return Forward(*primal), Forward(*tangent)


def _fetch(tree: Any) -> Any:
    """Return `tree` with every array as a fresh NumPy array."""
    return jax.tree.map(np.array, tree)


class JaxBackend(Backend):
    """Every switch but layer norm and the rarer activations, gradients and jvp, through XLA on the processor."""

    name = "jax"

    def capabilities(self) -> Capabilities:
        """Return the features above, in float64 and float32."""
        left_out = "left out of this backend, which compiles what users of JAX write most"
        features = FEATURES - {name for name in FEATURES if name.startswith("activation:")} - {"layer_norm"}
        features |= {f"activation:{name}" for name in _ACTIVATIONS}
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64", "float32"}),
            features=features,
            reasons={
                **dict.fromkeys(FEATURES - features, left_out),
                "tf32": "processors have no TF32",
                "bfloat16": left_out,
                "float16": left_out,
            },
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of JAX and jaxlib, and XLA's flags if they are set: they change the compiled code."""
        flags = os.environ.get("XLA_FLAGS")
        versions = {name: metadata.version(name) for name in ("jax", "jaxlib")}
        return versions | {"XLA_FLAGS": flags} if flags else versions

    def _compile(self, config: LSTMConfig, precision: Precision) -> JaxKernel:
        return JaxKernel(self, config, precision)
