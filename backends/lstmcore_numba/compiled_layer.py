"""What a kernel knows of its layer before any call: layout, schedule, and the addresses of its step functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from lstmcore.config import LSTMConfig
from lstmcore.precision import Precision, numpy_dtype
from lstmcore.stored_weights import INT8A16
from lstmcore_numba.codegen.step_compiler import CompiledStep, compile_step
from lstmcore_numba.codegen.step_emitter import StepEmitter, StepVariant, needs_raw, step_config
from lstmcore_numba.gemm.bf16 import pairs_usable
from lstmcore_numba.packing import Array, Layout, LayoutMasks, layout_masks
from lstmcore_numba.runtime.thread_pool import CALLER_ALONE, PassSize, run_pass
from lstmcore_numba.schedule import Schedule
from lstmcore_numba.stored_packing import stored_form
from lstmcore_numba.tuning import Tuning

Emit: TypeAlias = Callable[[StepEmitter], None]


class CompiledLayer:
    """One layer in one direction, ready to be called. Thread-safe; holds no weights.

    Parameters
    ----------
    config, precision
        The layer and its precision.
    thread_limit
        Threads that a call may use, None for `thread_pool.thread_count`.
    tuning
        Thresholds of the schedule.
    """

    def __init__(self, config: LSTMConfig, precision: Precision, thread_limit: int | None, tuning: Tuning) -> None:
        self.config, self.precision, self.thread_limit, self.tuning = config, precision, thread_limit, tuning
        self.dtype, self.storage = np.dtype(precision.compute), numpy_dtype(precision.storage)
        self.same_dtype = self.dtype == self.storage
        self.layout = Layout(config, self.dtype)
        self.stored_form = stored_form(precision, max(config.input_size, config.recurrent_size))
        self.rounds_activations = precision.weights == INT8A16
        # Rounding activations to int16 gives other results than a product on AMX.
        self.schedule = Schedule(self.layout, replace(tuning, amx=False) if self.rounds_activations else tuning)
        self.recurrence_is_cell = config.recurrence == "cell"
        self.packs_pairs = (
            precision.storage == "bfloat16" and not self.recurrence_is_cell and tuning.bf16_pairs and pairs_usable()
        )
        self.raw = needs_raw(config)
        self.no_masks = layout_masks(self.layout, None, None)
        self._step_config = step_config(config, self.layout.lanes)
        self._steps: dict[Any, CompiledStep] = {}

    def reads_stored(self, batch: int) -> bool:
        """Return whether the products of a call of `batch` rows read the stored weights."""
        if self.stored_form is None:
            return False
        return self.rounds_activations or self.schedule.streams_weights(batch)

    def step_address(self, emit: Emit, masks: LayoutMasks, *, record: bool) -> int:
        """Return the address of the step function that `emit` writes, for calls with such masks."""
        key = (emit, len(masks.cell) > 0, len(masks.hidden) > 0, record)
        if key not in self._steps:
            variant = StepVariant(
                self._step_config,
                self.precision.compute,
                self.precision.storage,
                self.layout.lanes,
                masked_c=key[1],
                masked_h=key[2],
                record=record,
                padded=self.layout.padded,
            )
            self._steps[key] = compile_step(emit, variant)
        return self._steps[key].address

    def run_pass(self, function: Callable[..., None], args: tuple[Any, ...], max_threads: int, work: float) -> None:
        """Run a pass on up to `max_threads` threads; see `thread_pool.run_pass`."""
        if max_threads <= 1 or work < 2 * self.tuning.thread_work:  # as there: a step of one row notices the calls
            function(CALLER_ALONE, *args)
        else:
            run_pass(function, args, PassSize(max_threads, work), self.thread_limit, self.tuning)

    def as_compute(self, array: Array) -> Array:
        """Return `array` in the dtype of the arithmetic, C-contiguous, aligned and writable; a copy if needed.

        Compiled code is specialised for such arrays, although it does not write to inputs.
        """
        if array.dtype == self.dtype and array.flags.carray:
            return array
        return np.array(array, self.dtype, order="C")


def zero_padding(x: Array, lengths: Array) -> Array:
    """Return a copy of `x` (T, N, I) with 0 past the end of each row."""
    return np.where(np.arange(len(x))[:, None, None] < lengths[:, None], x, x.dtype.type(0))


def zero_rows(rows: Array, state: Array) -> Array:
    """Return a copy of `state` (N, ...) with 0 in the rows that the mask `rows` marks.

    The 0 has the dtype of `state`: NumPy 1 finds no common dtype of a Python integer and bfloat16.
    """
    return np.where(rows[:, None], state.dtype.type(0), state)
