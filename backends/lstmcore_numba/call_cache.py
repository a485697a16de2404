"""Cached calls: a thread keeps workspace and arguments of a call, and replays it with other arrays of equal sizes.

A short call spends most of its time before and after its pass. A replay skips all of it that does not change.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from lstmcore.backend import Forward, State
from lstmcore_numba import time_loop
from lstmcore_numba.compiled_layer import CompiledLayer
from lstmcore_numba.gemm.bf16 import pack_pairs
from lstmcore_numba.packing import Array, Weights
from lstmcore_numba.runtime.tasks import STORED_TASK_BYTES
from lstmcore_numba.runtime.thread_pool import thread_count
from lstmcore_numba.stored_packing import StoredWeights
from lstmcore_numba.workspace import CallSizes, Workspace, make_workspace


class CachedCall:
    """Workspace of one size, and the stored task of a forward pass in it.

    Attributes
    ----------
    weights
        Those of the stored pass; None if there is no stored pass.
    function, arguments
        Addresses of the task.
    fields
        Addresses at which the arguments hold the data pointers of y and x.
    keepalive
        The arrays that the arguments point to.
    """

    __slots__ = ("arguments", "fields", "function", "keepalive", "weights", "workspace")

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.weights: Weights | StoredWeights | None = None
        self.function, self.arguments, self.fields = 0, 0, (0, 0)
        self.keepalive: tuple[Any, ...] = ()

    def store(self, weights: Weights | StoredWeights, function: int, memory: Array, keepalive: tuple[Any, ...]) -> None:
        """Keep a pass for replays.

        Parameters
        ----------
        weights
            Those that the pass reads.
        function
            Address of the task's function.
        memory
            The stored arguments, then an int64 field for each; see `tasks.store_task`.
        keepalive
            What the arguments point to.
        """
        fields = memory[STORED_TASK_BYTES // 8 :]
        self.function, self.arguments = function, memory.ctypes.data
        self.fields = int(fields[time_loop.Y_INDEX]), int(fields[time_loop.X_INDEX])
        self.weights, self.keepalive = weights, (memory, *keepalive)


class CallCache:
    """The cached calls of one kernel. Each thread has its own."""

    def __init__(self, layer: CompiledLayer) -> None:
        self.layer = layer
        self._local = threading.local()

    def call(self, sizes: CallSizes) -> CachedCall:
        """Return the cached call of these sizes; a new one if there is none, or if the call is recorded."""
        if sizes.record:
            return self._make(sizes)
        calls, tuning = self._calls(), self.layer.tuning
        cached = calls.get(sizes)
        if cached is None:
            cached = self._make(sizes)
            if cached.workspace.size <= tuning.cached_bytes:
                while len(calls) >= tuning.cached_workspaces:
                    del calls[next(iter(calls))]
                calls[sizes] = cached
        return cached

    def _make(self, sizes: CallSizes) -> CachedCall:
        layer = self.layer
        packs_pairs = layer.packs_pairs and not sizes.masked and not layer.schedule.forward_uses_amx(sizes.batch)
        form = layer.stored_form if layer.reads_stored(sizes.batch) else None
        threads = layer.thread_limit or thread_count()
        return CachedCall(
            make_workspace(
                layer.schedule, sizes, raw=layer.raw, packed_pairs=packs_pairs, stored_form=form, threads=threads
            )
        )

    def _calls(self) -> dict[tuple[Any, ...], CachedCall]:
        """Return the cached calls of this thread by `CallSizes`."""
        calls: dict[tuple[Any, ...], CachedCall] | None = getattr(self._local, "calls", None)
        if calls is None:
            calls = self._local.calls = {}
        return calls

    def replay(
        self, weights: Weights | StoredWeights, x: Array, state: State | None, out: Array | None
    ) -> Forward | None:
        """Return the result of a stack of this kernel alone; None if this thread has no such call to replay.

        Parameters
        ----------
        weights
            From `packing.pack`; a call is only replayed with the same object.
        x
            (T, N, I), storage dtype.
        state
            (1, N, P) and (1, N, H), or None for zeros.
        out
            (T, N, P) or None: where y is written.
        """
        layer = self.layer
        cached = self._calls().get((x.shape[0], x.shape[1], False, False, None, None))  # equals a CallSizes
        if cached is None or cached.weights is not weights or not x.flags.carray:
            return None
        workspace, dtype = cached.workspace, layer.dtype
        if workspace.packed_h is None and not layer.same_dtype:
            return None
        y_shape, h_shape, c_shape = workspace.shapes
        first_h, first_c = workspace.zero_state if state is None else state
        if out is None:
            out = np.empty(y_shape, layer.storage)
        if not (out.flags.carray and first_h.flags.carray and first_c.flags.carray):
            return None
        y = out
        if workspace.packed_h is not None:
            y, x, first_h = out.view(np.uint16), pack_pairs(x), first_h.astype(dtype)
        last_h, last_c = np.empty(h_shape, dtype), np.empty(c_shape, dtype)
        args = (
            cached.function,
            cached.arguments,
            *cached.fields,
            workspace.counter,
            first_h,
            first_c,
            last_h,
            last_c,
            layer.config.reverse,
            workspace.h,
            workspace.c,
            y,
            x,
        )
        plan = workspace.plan
        layer.run_pass(time_loop.replay_forward, args, plan.max_threads, plan.shared_work)
        return Forward(out, State(last_h if layer.same_dtype else last_h.astype(layer.storage), last_c), None)
