"""Stacks for tests: the reference composed by hand, cases to run, and a backend for every precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmcore import reference
from lstmcore.backend import (
    Backend,
    Capabilities,
    Forward,
    Gradients,
    Kernel,
    Masks,
    Receipt,
    StackMasks,
    State,
    Tangents,
)
from lstmcore.config import FEATURES, LSTMConfig, StackConfig
from lstmcore.masks import stack_masks
from lstmcore.precision import PRECISIONS, Precision

Array = np.ndarray[Any, np.dtype[Any]]


def by_hand(
    stack: StackConfig,
    parameters: Mapping[str, Array],
    x: Array,
    state: State | None,
    lengths: Any = None,
    masks: StackMasks | None = None,
) -> Forward:
    """The stack of SPEC.md, section 6, from the reference of one layer in one direction. Also complex."""
    last_h, last_c, index = [], [], 0
    for layer, configs in enumerate(stack.layers):
        if layer and masks is not None and masks.dropout:
            x = x * masks.dropout[layer - 1]
        halves = []
        for direction, config in enumerate(configs):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            own = {name: parameters[name + suffix] for name in config.parameter_shapes}
            entry = None if state is None else State(state.h[index], state.c[index])
            layer_masks = None if masks is None else masks.layers[index]
            y, last, _ = reference.forward(config, own, x, entry, lengths=lengths, masks=layer_masks)
            halves.append(y)
            last_h.append(last.h)
            last_c.append(last.c)
            index += 1
        x = np.concatenate(halves, axis=2)
    return Forward(x, State(np.array(last_h), np.array(last_c)))


@dataclass(frozen=True)
class StackCase:
    """All that a call of a stack needs, random and asymmetric, in one dtype."""

    stack: StackConfig
    parameters: dict[str, Array]
    x: Array
    state: State
    lengths: Array
    masks: StackMasks | None
    dy: Array
    dstate: State
    tx: Array
    tstate: State
    tparameters: dict[str, Array]


def make_stack_case(
    stack: StackConfig, *, steps: int = 4, batch: int = 3, seed: int = 0, dtype: str = "float64"
) -> StackCase:
    """Return a case whose first row has no steps and whose last row has all; other rows have some."""
    rng = np.random.default_rng(seed)
    policy = PRECISIONS[dtype]

    def normal(shape: tuple[int, ...], to: str = policy.storage) -> Array:
        return (rng.standard_normal(shape) * 0.7 + 0.05).astype(to)

    entries, width = len(stack.configs), stack.num_directions * stack.output_size

    def state() -> State:
        return State(
            normal((entries, batch, stack.output_size)), normal((entries, batch, stack.hidden_size), policy.compute)
        )

    def parameters() -> dict[str, Array]:
        return {name: normal(shape) for name, shape in stack.parameter_shapes.items()}

    lengths = rng.integers(0, steps + 1, batch)
    lengths[:1], lengths[-1:] = 0, steps
    x_shape, y_shape = (steps, batch, stack.input_size), (steps, batch, width)
    return StackCase(
        stack,
        parameters(),
        normal(x_shape),
        state(),
        lengths,
        stack_masks(stack, policy, steps, batch, seed=seed, step=0),
        normal(y_shape),
        state(),
        normal(x_shape),
        state(),
        parameters(),
    )


class NaiveKernel(Kernel):
    """The reference evaluated in the kernel's precision.

    It asserts what fast kernels rely on: arrays have the dtype of the contract, `backward` gets the weights of the
    recorded call, and nobody writes to the final state that the tape shares.
    """

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        slow = steps is not None and steps > 100
        fallback = "more than 100 steps" if slow else None
        return Receipt(self.backend.name, "cpu", self.precision.name, "naive", "for tests", fallback)

    def _pack(self, parameters: Mapping[str, Array]) -> Any:
        assert isinstance(self.backend, NaiveBackend)
        self.backend.packed += 1
        return {name: np.array(array) for name, array in parameters.items()}

    def _forward(  # noqa: PLR0913  (the contract's)
        self,
        weights: Any,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Any]:
        assert x.dtype == self.precision.storage
        y, last, tape = reference.forward(
            self.config, weights, x, state, lengths=lengths, masks=masks, precision=self.precision
        )
        if out is None:
            out = np.empty(y.shape, self.precision.storage)
        out[...] = y
        last = self._state(last)
        return out, last, (tape, weights, last, State(last.h.copy(), last.c.copy())) if record else None

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        tape, recorded, last, before = saved
        assert weights is recorded
        assert all(np.array_equal(now, then) for now, then in zip(last, before, strict=True))
        assert dy is None or dy.dtype == self.precision.storage
        gradients = reference.backward(self.config, tape, dy, dstate)
        storage = self.precision.storage
        parameters = {name: value.astype(storage) for name, value in gradients.parameters.items()}
        return Gradients(gradients.x.astype(storage), self._state(gradients.state), parameters)

    def _jvp(
        self,
        weights: Any,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        results = reference.jvp(
            self.config, weights, x, state, tangents, lengths=lengths, masks=masks, precision=self.precision
        )
        primal, tangent = (Forward(each.y.astype(self.precision.storage), self._state(each.state)) for each in results)
        return primal, tangent

    def _state(self, state: State) -> State:
        return State(state.h.astype(self.precision.storage), state.c)


class NaiveBackend(Backend):
    """Every switch in the precisions that NumPy stores. Counts what it packs."""

    name = "naive"

    def __init__(self, device: str = "cpu", without: frozenset[str] = frozenset()) -> None:
        self.device, self.without, self.packed = device, without, 0
        self.moved: list[str] = []

    def capabilities(self) -> Capabilities:
        return Capabilities(
            device=self.device,
            precisions=frozenset({"float64", "float32", "float16"}),
            features=FEATURES - self.without,
            derivatives=frozenset({"backward", "jvp"}) - self.without,
            reasons=dict.fromkeys(self.without, "left out for a test"),
        )

    def to_device(self, array: Array) -> Array:
        self.moved.append("in")
        return array.copy()

    def to_host(self, array: Array) -> Array:
        self.moved.append("out")
        return array

    def _compile(self, config: LSTMConfig, precision: Precision) -> NaiveKernel:
        return NaiveKernel(self, config, precision)
