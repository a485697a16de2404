"""A stack of layers: both directions of a layer at the same time, and layers of one direction in a wavefront."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore.backend import Forward, Gradients, Kernel, Receipt, StackMasks, State
from lstmcore.config import StackConfig
from lstmcore.precision import Precision
from lstmcore.stack import ComposedStack, StackTape
from lstmcore_numba import time_loop
from lstmcore_numba.backward import finish_backward, prepare_backward
from lstmcore_numba.call_cache import CallCache
from lstmcore_numba.compiled_layer import CompiledLayer
from lstmcore_numba.forward import ForwardCall, PreparedForward, WavefrontLayer, finish_forward, prepare_forward
from lstmcore_numba.packing import Array
from lstmcore_numba.runtime import buffer_pool
from lstmcore_numba.runtime.thread_pool import PassSize, run_pass, thread_count
from lstmcore_numba.schedule import ThreadPlan

#: Integers from one thread's counter of steps to the next thread's: each has a cache line that no other thread writes.
_COUNTER_STRIDE: Final = 16


class LayerKernel(Kernel):
    """A kernel that runs as part of a stack; `kernel.NumbaKernel` implements it."""

    layer: CompiledLayer
    cache: CallCache


class _Wavefront(NamedTuple):
    """Layers that run at the same time, in order, with the caller's state and `out` of each."""

    layers: list[tuple[CompiledLayer, PreparedForward, State | None, Array | None]]

    @property
    def plans(self) -> list[ThreadPlan]:
        """The thread plans of the layers."""
        return [prepared.workspace.plan for _, prepared, _, _ in self.layers]


class NumbaStack(ComposedStack):
    """All layers and directions of a model, on the kernels of `NumbaBackend`.

    Parameters
    ----------
    backend
        The `NumbaBackend`.
    stack, precision
        As for `ComposedStack`.
    """

    kernels: tuple[LayerKernel, ...]

    def __init__(self, backend: Any, stack: StackConfig, precision: Precision) -> None:
        super().__init__(backend, stack, precision)
        self.thread_limit: int | None = backend.threads
        self.tuning = backend.tuning
        one_direction = stack.num_layers > 1 and stack.num_directions == 1
        self.may_use_wavefront = one_direction and self.kernels[0].layer.same_dtype

    def _wavefront_lag(self, steps: int, batch: int, *, masked: bool = False) -> int:
        """Return by how many steps a layer of a wavefront is behind the layer below; 0 without a wavefront."""
        if not self.may_use_wavefront:
            return 0
        schedules = [kernel.layer.schedule for kernel in dict.fromkeys(self.kernels)]
        lag = min(schedule.wavefront_lag(steps, batch, masked=masked) for schedule in schedules)
        return lag if lag and (self.thread_limit or thread_count()) > 1 else 0

    def forward(  # noqa: PLR0913  (the contract's signature)
        self,
        weights: Any,
        x: Array,
        state: State | None,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
        record: bool = False,
        out: Array | None = None,
    ) -> Forward:
        """Run all layers; see `StackKernel.forward`."""
        if len(self.kernels) == 1 and lengths is None and masks is None and not record:
            replayed = self.kernels[0].cache.replay(weights[0], x, state, out)
            if replayed is not None:
                return replayed
        masked = masks is not None and any(layer_masks.recurrent is not None for layer_masks in masks.layers)
        lag = self._wavefront_lag(*x.shape[:2], masked=masked)
        if not lag:
            return super().forward(weights, x, state, lengths=lengths, masks=masks, record=record, out=out)
        layer_masks = (None,) * len(self.kernels) if masks is None else masks.layers
        calls = [
            ForwardCall(
                weights[index],
                x,
                None if state is None else State(state.h[index], state.c[index]),
                lengths,
                layer_masks[index],
                record,
                out if index == len(self.kernels) - 1 else None,
            )
            for index in range(len(self.kernels))
        ]
        return self._forward_in_wavefronts(lag, calls, masks.dropout if masks is not None else ())

    def _forward_in_wavefronts(self, lag: int, calls: Sequence[ForwardCall], dropout: tuple[Array, ...]) -> Forward:
        """Run as many layers at the same time as there are threads, each `lag` steps behind the layer below.

        Parameters
        ----------
        lag
            From `_wavefront_lag`.
        calls
            Of every layer; the x of all but the first is replaced.
        dropout
            (T, N, P) masks between the layers, or none.
        """
        threads, source = self.thread_limit or thread_count(), calls[0].x
        results: list[tuple[Array, State, Any]] = []
        for start in range(0, len(calls), threads):
            group = range(start, min(len(calls), start + threads))
            wavefront, source = self._prepare_wavefront(group, lag, calls, source, dropout)
            prepared = [layer[1] for layer in wavefront.layers]
            tasks = np.array([call.args[:2] for call in prepared])
            args = _pad_to_power_of_two([call.args[2:] for call in prepared])
            self._run_pass(time_loop.forward_wavefront, wavefront.plans, tasks, args)
            results += [finish_forward(*layer) for layer in wavefront.layers]
        h, c = (np.stack([state[part] for _, state, _ in results]) for part in range(2))
        tape = StackTape(tuple(saved for _, _, saved in results), dropout) if calls[0].record else None
        return Forward(results[-1][0], State(h, c), tape)

    def _prepare_wavefront(
        self,
        group: range,
        lag: int,
        calls: Sequence[ForwardCall],
        source: Array,
        dropout: tuple[Array, ...],
    ) -> tuple[_Wavefront, Array]:
        """Prepare the calls of a group of layers, whose lowest reads `source`; return also what the next one reads."""
        threads = self.thread_limit or thread_count()
        done = np.zeros((len(group), -(-threads // len(group)), _COUNTER_STRIDE), np.int64)
        below = done[0, :0]
        layers = []
        for position, (index, own_done) in enumerate(zip(group, done, strict=True)):
            kernel = self.kernels[index]
            mask = masked = np.zeros((0, 1, 1), self.kernels[0].layer.dtype)
            if index < len(calls) - 1 and dropout:
                mask = kernel.layer.as_compute(dropout[index])
                masked = buffer_pool.empty(mask.shape, kernel.layer.dtype)
            progress = time_loop.WavefrontProgress(below, own_done, mask, masked)
            place = WavefrontLayer(index == 0, position, lag, progress)
            call = calls[index]._replace(x=source)
            prepared = prepare_forward(kernel.layer, kernel.cache, call, place)
            layers.append((kernel.layer, prepared, call.state, call.out))
            below, source = own_done, masked if len(mask) else prepared.y
        return _Wavefront(layers), source

    def receipts(self, steps: int | None = None, batch: int | None = None) -> tuple[Receipt, ...]:
        """Return which path each kernel takes; see `StackKernel.receipts`."""
        receipts = super().receipts(steps, batch)
        if steps is None or batch is None or not self._wavefront_lag(steps, batch):
            return receipts
        return tuple(replace(receipt, path=f"{receipt.path}, layers in a wavefront") for receipt in receipts)

    def _forward_layer(
        self, first: int, calls: Sequence[tuple[Any, ...]], *, record: bool
    ) -> Sequence[tuple[Array, State, Any]]:
        kernels, (_, x, *_) = self.kernels[first : first + len(calls)], calls[0]
        if not self._runs_in_parallel(kernels, x):
            return super()._forward_layer(first, calls, record=record)
        both = [
            ForwardCall(weights, source, state, lengths, masks, record, out)
            for weights, source, state, lengths, masks, out in calls
        ]
        prepared = [
            prepare_forward(kernel.layer, kernel.cache, call) for kernel, call in zip(kernels, both, strict=True)
        ]
        self._run_pass(
            time_loop.forward_both, [call.workspace.plan for call in prepared], *(call.args for call in prepared)
        )
        return [
            finish_forward(kernel.layer, done, call.state, call.out)
            for kernel, done, call in zip(kernels, prepared, both, strict=True)
        ]

    def _backward_layer(self, first: int, calls: Sequence[tuple[Any, ...]]) -> Sequence[Gradients]:
        kernels, (_, tape, *_) = self.kernels[first : first + len(calls)], calls[0]
        if not self._runs_in_parallel(kernels, tape.x):
            return super()._backward_layer(first, calls)
        prepared = [
            prepare_backward(kernel.layer, tape, dy, dstate)
            for kernel, (_, tape, dy, dstate) in zip(kernels, calls, strict=True)
        ]
        self._run_pass(time_loop.backward_both, [call.plan for call in prepared], *(call.args for call in prepared))
        return [
            finish_backward(kernel.layer, tape, done)
            for kernel, done, (_, tape, _, _) in zip(kernels, prepared, calls, strict=True)
        ]

    def _runs_in_parallel(self, kernels: Sequence[LayerKernel], x: Array) -> bool:
        """Return whether the directions of a layer with input `x` (T, N, I) run at the same time."""
        return len(kernels) == 2 and kernels[0].layer.schedule.parallel_directions(len(x), x.shape[1])

    def _run_pass(self, function: Callable[..., None], plans: Sequence[ThreadPlan], *args: Any) -> None:
        """Run a pass with one thread for each direction or layer, or more if these share their work."""
        parts = sum(max(1, plan.max_threads) if plan.shared_work else 1 for plan in plans)
        work = sum(plan.work for plan in plans)
        run_pass(function, args, PassSize(max(len(plans), parts), work), self.thread_limit, self.tuning)


def _pad_to_power_of_two(layers: list[Any]) -> tuple[Any, ...]:
    """Repeat the last entry up to the next power of two, since each number of layers has compiled code."""
    return (*layers, *layers[-1:] * ((1 << (len(layers) - 1).bit_length()) - len(layers)))
