"""The loops over time (forward, backward, JVP) and the gradients after them, as compiled passes.

The first argument of every public pass is `threads`, from `thread_pool.acquire_threads`. The others are those of the
function of the same name with an underscore, after `part` and `parts`.

The last axis of an array is padded to whole vectors. Arrays have the names of the equations. In shapes, Hp and Pp are H
and P padded, B is the number of blocks of hidden units, and the gates of one step are (B, N, G, lanes).
"""

from __future__ import annotations

from lstmcore_numba.gemm.backward_operands import BackwardSplitOperands
from lstmcore_numba.gemm.forward_operands import PackedPairs, SplitOperands
from lstmcore_numba.time_loop.backward import backward, backward_both
from lstmcore_numba.time_loop.forward_entries import (
    X_INDEX,
    Y_INDEX,
    forward,
    forward_both,
    forward_wavefront,
    replay_forward,
    store_forward,
)
from lstmcore_numba.time_loop.gradients import input_gradient, weight_gradient
from lstmcore_numba.time_loop.jvp import jvp
from lstmcore_numba.time_loop.norm_gradients import cell_gradients, gain_gradients, norm_backward_steps
from lstmcore_numba.time_loop.step_arrays import Norms, WavefrontProgress

__all__ = [
    "X_INDEX",
    "Y_INDEX",
    "BackwardSplitOperands",
    "Norms",
    "PackedPairs",
    "SplitOperands",
    "WavefrontProgress",
    "backward",
    "backward_both",
    "cell_gradients",
    "forward",
    "forward_both",
    "forward_wavefront",
    "gain_gradients",
    "input_gradient",
    "jvp",
    "norm_backward_steps",
    "replay_forward",
    "store_forward",
    "weight_gradient",
]
