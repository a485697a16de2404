"""Decisions on how a call runs: the split among threads, chunks of the input, wavefronts, and the use of AMX.

Every decision depends on sizes and on `Tuning` alone, so equal calls run equally. *Work* is counted in multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from lstmcore_numba.gemm.amx import TILE_ROWS, amx_usable
from lstmcore_numba.packing import Layout
from lstmcore_numba.tuning import Tuning

#: Rows of a thread's part at least. A GEMM of so few rows that one microkernel takes them all adds in another order
#: than one of several, and this number is above the rows of every microkernel.
MIN_PART_ROWS: Final = 7


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """How threads share a pass.

    Attributes
    ----------
    split
        By hidden units, with a barrier after each step, or by rows of the batch, with none.
    max_threads
        Parts at most.
    work
        Of the pass.
    shared_work
        The same, or 0 if its steps are too short for a barrier after each.
    """

    split: Literal["units", "rows"]
    max_threads: int
    work: float
    shared_work: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """The decisions for one layer in one direction; T and N are given to each method as `steps` and `batch`."""

    layout: Layout
    tuning: Tuning

    def thread_plan(self, steps: int, batch: int, k: int, *, masked: bool, units_per_thread: int = 1) -> ThreadPlan:
        """Return the plan of a pass.

        Parameters
        ----------
        steps, batch
            T and N.
        k
            Reduction dimension of the GEMMs of one step, all together.
        masked
            Whether the call has a mask of recurrent dropout.
        units_per_thread
            Blocks of hidden units that a thread takes at least.
        """
        layout, tuning = self.layout, self.tuning
        work = layout.work(steps * batch, k)
        needs_whole_rows = layout.config.proj_size > 0 or layout.config.layer_norm or masked
        if needs_whole_rows or (batch >= tuning.row_split_rows and self._weights_fit(k)):
            return ThreadPlan("rows", batch // MIN_PART_ROWS, work, work)
        shared_work = work if work >= steps * tuning.barrier_work else 0.0
        return ThreadPlan("units", -(-layout.blocks // units_per_thread), work, shared_work)

    def parallel_directions(self, steps: int, batch: int) -> bool:
        """Return whether both directions of a layer run at the same time: if rows are few and the weights fit."""
        k = layer_k(self.layout)
        few_rows = batch < self.tuning.row_split_rows and self._weights_fit(k)
        return few_rows and self.layout.work(steps * batch, k) >= self.tuning.direction_work

    def input_chunk(self, steps: int, batch: int) -> int:
        """Return the number of steps whose input projections are computed at once."""
        step_bytes = batch * self.layout.gate_row * self.layout.dtype.itemsize
        return max(1, min(steps, self.tuning.input_chunk_bytes // max(1, step_bytes)))

    def wavefront_lag(self, steps: int, batch: int, *, masked: bool) -> int:
        """Return by how many steps a layer of a wavefront is behind the layer below; 0 if layers run in turn.

        A wavefront pays if a layer has no work for two threads, or if threads would need a barrier after short steps.
        The lag is also the chunk of its input projections. A lag is not taken if the last chunk had so few rows that
        one microkernel takes them all, since this changes the order of additions.
        """
        layout, tuning = self.layout, self.tuning
        max_lag = steps // tuning.wavefront_lags
        if max_lag < tuning.wavefront_lag:
            return 0
        k = layer_k(layout)
        work = layout.work(steps * batch, k)
        if work < tuning.wavefront_work or self.forward_uses_amx(batch):
            return 0
        plan = self.thread_plan(steps, batch, k, masked=masked)
        short_steps = plan.split == "units" and work <= steps * tuning.wavefront_step_work and self._weights_fit(k)
        if plan.max_threads > 1 and plan.shared_work and not short_steps:
            return 0
        if not _chunks_have_several_tiles(steps, batch, self.input_chunk(steps, batch)):
            return 0
        min_lag = max(tuning.wavefront_lag, -(-MIN_PART_ROWS // batch))
        lags = (lag for lag in range(min_lag, max_lag + 1) if _chunks_have_several_tiles(steps, batch, lag))
        return next(lags, 0)

    def uses_amx(self, rows: int, k: int, columns: int) -> bool:
        """Return whether a GEMM of these sizes runs on AMX, with operands split into three bfloat16 numbers."""
        tuning = self.tuning
        many_rows = rows >= tuning.amx_rows
        min_work = tuning.amx_work if many_rows else tuning.amx_tile_work
        enough = (many_rows or rows == TILE_ROWS) and k >= tuning.amx_k and rows * k * columns >= min_work
        return enough and tuning.amx and self.layout.dtype == np.float32 and amx_usable()

    def forward_uses_amx(self, batch: int) -> bool:
        """Return whether the GEMMs of a forward pass run on AMX."""
        config = self.layout.config
        wide_input = config.input_size >= self.tuning.amx_k
        return wide_input and self.uses_amx(batch, config.recurrent_size, self.layout.gate_row)

    def streams_weights(self, batch: int) -> bool:
        """Return whether products are bound by the bytes of weights that they read at every step."""
        few_rows = batch <= self.tuning.stored_rows and not self._weights_fit(layer_k(self.layout))
        return batch <= 1 or few_rows

    def _weights_fit(self, k: int) -> bool:
        """Return whether the weights of one step stay in a core's L2 cache."""
        return k * self.layout.gate_row * self.layout.dtype.itemsize <= self.tuning.l2_weight_bytes


def layer_k(layout: Layout) -> int:
    """Return the reduction dimension of both GEMMs of a step together: I plus the width of the recurrent input."""
    return layout.config.recurrent_size + layout.config.input_size


def _chunks_have_several_tiles(steps: int, batch: int, chunk: int) -> bool:
    """Return whether the last of the chunks of `chunk` steps has more rows than one microkernel."""
    return batch * (steps % chunk or chunk) >= MIN_PART_ROWS
