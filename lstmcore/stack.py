"""Stacks of kernels: layers and directions composed from `Kernel`s, and copies to a device and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np

from lstmcore.arrays import namespace_of
from lstmcore.config import StackConfig
from lstmcore.containers import Array, Forward, Gradients, Masks, StackMasks, State, Tangents, Weights
from lstmcore.declaration import Receipt
from lstmcore.kernels import Kernel, LayerBackend, StackKernel
from lstmcore.precision import Precision
from lstmcore.stored_weights import StoredMatrix


class StackTape(NamedTuple):
    """The records of the kernels, in the order of `StackConfig.configs`, and the dropout masks between the layers."""

    saved: tuple[Any, ...]
    dropout: tuple[Array, ...]


class ComposedStack(StackKernel):
    """A stack made of one `Kernel` for each layer and direction: the default of every backend.

    Both directions of a layer write into the halves of one array, so nothing is concatenated. Arrays that are not
    NumPy's need a namespace of the array API standard that array-api-compat finds, and assignment to slices; a backend
    whose arrays have neither overrides `Backend._compile_stack`.

    Attributes
    ----------
    copies_states
        Whether final states of a recorded call are copied, since a tape may share their memory.
    """

    copies_states: ClassVar[bool] = True

    def __init__(self, backend: LayerBackend, stack: StackConfig, precision: Precision) -> None:
        super().__init__(backend, stack, precision)
        compiled = {config: backend.compile(config, precision) for config in dict.fromkeys(stack.configs)}
        self.kernels: tuple[Kernel, ...] = tuple(compiled[config] for config in stack.configs)
        self._names = tuple(
            tuple((name, name + suffix) for name in config.parameter_shapes)
            for config, suffix in zip(stack.configs, stack.suffixes, strict=True)
        )
        self._layers, self._directions, self._width = (stack.num_layers, stack.num_directions, stack.output_size)

    def pack(self, parameters: Mapping[str, Array]) -> Weights:
        """See `StackKernel.pack`."""
        return tuple(
            kernel.pack_stored({name: parameters[full] for name, full in names})
            for kernel, names in zip(self.kernels, self._names, strict=True)
        )

    def forward(  # noqa: PLR0913  (the arguments of the equations)
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
        record: bool = False,
        out: Array | None = None,
    ) -> Forward:
        """See `StackKernel.forward`."""
        if len(self.kernels) == 1:  # as below without its lists: calls of one step are many
            mask = None if masks is None else masks.layers[0]
            y, last, kept = self.kernels[0]._forward(
                weights[0], x, _entry(state, 0), lengths, mask, record=record, out=out
            )
            last = _stacked([last], copy=record and self.copies_states)
            return Forward(y, last, StackTape((kept,), ()) if record else None)
        finals: list[State] = []
        saved: list[Any] = []
        layer_masks = (None,) * len(self.kernels) if masks is None else masks.layers
        dropout = () if masks is None else masks.dropout
        y = x
        for layer in range(self._layers):
            source = _times(y, dropout[layer - 1]) if layer and dropout else y
            y, halves = self._outputs(source, out if layer == self._layers - 1 else None)
            first = len(finals)
            calls = [
                (weights[index], source, _entry(state, index), lengths, layer_masks[index], half)
                for index, half in enumerate(halves, first)
            ]
            results = self._forward_layer(first, calls, record=record)
            finals += [last for _, last, _ in results]
            saved += [kept for _, _, kept in results]
            y = results[0][0] if self._directions == 1 else y
        tape = StackTape(tuple(saved), dropout) if record else None
        return Forward(y, _stacked(finals, copy=record), tape)

    def _outputs(self, x: Array, out: Array | None) -> tuple[Array | None, tuple[Array | None, ...]]:
        """Return where a layer writes y, and the part of it for each direction; None leaves it to the kernel."""
        if self._directions == 1:
            return out, (out,)
        if out is None:
            out = namespace_of(x).empty((*x.shape[:2], 2 * self._width), dtype=x.dtype)
        return out, (out[:, :, : self._width], out[:, :, self._width :])

    def backward(self, weights: Weights, tape: StackTape, dy: Array | None, dstate: State | None) -> Gradients:
        """See `StackKernel.backward`."""
        states: list[State] = []
        parameters: list[dict[str, Array]] = []
        for layer in reversed(range(self._layers)):
            dx = None
            first = layer * self._directions
            halves: tuple[Array | None, ...] = (dy,) * self._directions
            if dy is not None and self._directions == 2:
                halves = (dy[:, :, : self._width], dy[:, :, self._width :])
            calls = [
                (weights[index], tape.saved[index], half, _entry(dstate, index))
                for index, half in enumerate(halves, first)
            ]
            for index, gradients in reversed(list(enumerate(self._backward_layer(first, calls), first))):
                states.append(gradients.state)
                parameters.append({full: gradients.parameters[name] for name, full in self._names[index]})
                if dx is None:
                    dx = gradients.x
                else:
                    dx += gradients.x  # a fresh array of the kernel's
            dy = _times(dx, tape.dropout[layer - 1]) if layer and tape.dropout else dx
        merged = {name: value for group in reversed(parameters) for name, value in group.items()}
        return Gradients(dy, _stacked(states[::-1], copy=False), merged)

    def jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
    ) -> tuple[Forward, Forward]:
        """See `StackKernel.jvp`."""
        directions = tangents.parameters or {}
        finals: list[State] = []
        tfinals: list[State] = []
        dropout = masks.dropout if masks is not None else ()
        y, ty = x, tangents.x
        for layer in range(self._layers):
            if layer and dropout:
                y, ty = _times(y, dropout[layer - 1]), _times(ty, dropout[layer - 1])
            outputs = []
            for _ in range(self._directions):
                index = len(finals)
                primal, tangent = self.kernels[index]._jvp(
                    weights[index],
                    y,
                    _entry(state, index),
                    Tangents(
                        ty,
                        _entry(tangents.state, index),
                        {name: directions[full] for name, full in self._names[index] if full in directions},
                    ),
                    lengths,
                    None if masks is None else masks.layers[index],
                )
                finals.append(primal.state)
                tfinals.append(tangent.state)
                outputs.append((primal.y, tangent.y))
            y, ty = outputs[0] if self._directions == 1 else map(self._joined, *outputs)
        return Forward(y, _stacked(finals, copy=False)), Forward(ty, _stacked(tfinals, copy=False))

    def _forward_layer(
        self, first: int, calls: Sequence[tuple[Any, ...]], *, record: bool
    ) -> Sequence[tuple[Array, State, Any]]:
        """Call `Kernel._forward` for the directions of a layer, kernels from `first` on, with arguments in its order.

        Directions do not need each other's results.
        """
        return [
            kernel._forward(*args, record=record, out=out)
            for kernel, (*args, out) in zip(self.kernels[first : first + len(calls)], calls, strict=True)
        ]

    def _backward_layer(self, first: int, calls: Sequence[tuple[Any, ...]]) -> Sequence[Gradients]:
        """Call `Kernel._backward` for the directions of a layer, kernels from `first` on."""
        return [
            kernel._backward(*args)
            for kernel, args in zip(self.kernels[first : first + len(calls)], calls, strict=True)
        ]

    def receipts(self, steps: int | None = None, batch: int | None = None) -> tuple[Receipt, ...]:
        """See `StackKernel.receipts`."""
        return tuple(kernel.receipt(steps, batch) for kernel in self.kernels)

    def _joined(self, forward: Array, reverse: Array) -> Array:
        both = namespace_of(forward).empty((*forward.shape[:2], 2 * self._width), dtype=forward.dtype)
        both[:, :, : self._width] = forward
        both[:, :, self._width :] = reverse
        return both


class HostStack(StackKernel):
    """A stack that takes and returns NumPy arrays, around the stack of a backend that computes on a device.

    `lstmcore.LSTM` gives arrays of the device to the inner stack itself.
    """

    def __init__(self, inner: StackKernel) -> None:
        super().__init__(inner.backend, inner.stack, inner.precision)
        self.inner = inner

    def pack(self, parameters: Mapping[str, Array]) -> Weights:
        """See `StackKernel.pack`."""
        return self.inner.pack({name: self._in(value) for name, value in parameters.items()})

    def forward(  # noqa: PLR0913  (the arguments of the equations)
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
        record: bool = False,
        out: Array | None = None,
    ) -> Forward:
        """See `StackKernel.forward`."""
        y, last, tape = self.inner.forward(
            weights, self._in(x), self._state_in(state), lengths=lengths, masks=self._masks_in(masks), record=record
        )
        y = self._out(y)
        if out is not None:
            out[...] = y
            y = out
        return Forward(y, self._state_out(last), tape)

    def backward(self, weights: Weights, tape: Any, dy: Array | None, dstate: State | None) -> Gradients:
        """See `StackKernel.backward`."""
        gradients = self.inner.backward(weights, tape, self._in(dy), self._state_in(dstate))
        parameters = {name: self._out(value) for name, value in gradients.parameters.items()}
        return Gradients(self._out(gradients.x), self._state_out(gradients.state), parameters)

    def jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
    ) -> tuple[Forward, Forward]:
        """See `StackKernel.jvp`."""
        along = Tangents(
            self._in(tangents.x),
            self._state_in(tangents.state),
            {name: self._in(value) for name, value in (tangents.parameters or {}).items()},
        )
        primal, tangent = self.inner.jvp(
            weights, self._in(x), self._state_in(state), along, lengths=lengths, masks=self._masks_in(masks)
        )
        return (
            Forward(self._out(primal.y), self._state_out(primal.state)),
            Forward(self._out(tangent.y), self._state_out(tangent.state)),
        )

    def receipts(self, steps: int | None = None, batch: int | None = None) -> tuple[Receipt, ...]:
        """See `StackKernel.receipts`."""
        return self.inner.receipts(steps, batch)

    def _in(self, array: Array | None) -> Array | None:
        """Return `array` on the device; a stored matrix stays, since the kernel copies its parts."""
        return array if array is None or isinstance(array, StoredMatrix) else self.backend.to_device(array)

    def _out(self, array: Array) -> Array:
        return self.backend.to_host(array)

    def _state_in(self, state: State | None) -> State | None:
        return None if state is None else State(self._in(state[0]), self._in(state[1]))

    def _state_out(self, state: State) -> State:
        return State(self._out(state.h), self._out(state.c))

    def _masks_in(self, masks: StackMasks | None) -> StackMasks | None:
        if masks is None:
            return None
        layers = tuple(Masks(*(self._in(mask) for mask in layer)) for layer in masks.layers)
        return StackMasks(layers, tuple(self._in(mask) for mask in masks.dropout))


def _entry(state: State | None, index: int) -> State | None:
    """Return the state of one layer in one direction, as views."""
    return None if state is None else State(state[0][index], state[1][index])


def _stacked(states: list[State], *, copy: bool) -> State:
    """Return states as (L * D, N, ...); a single one is a view of what the kernel returned unless `copy`."""
    if len(states) == 1 and not copy:
        h, c = states[0]
        return State(h[None], c[None])
    stack = namespace_of(states[0].h).stack
    return State(stack([state.h for state in states]), stack([state.c for state in states]))


def _times(array: Array, mask: Array) -> Array:
    """Return `array` times a dropout mask in the dtype of `array`; entries of a mask in padding may be infinite."""
    with np.errstate(invalid="ignore"):
        product = array * mask
    if product.dtype != array.dtype:
        product = product.astype(array.dtype)
    return cast(Array, product)
