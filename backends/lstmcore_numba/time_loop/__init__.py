"""The loops over time: forward, backward and along tangents, and the products around them.

Every public pass takes a team of threads and what the function with an underscore before it takes after `part` and
`parts`.

Arrays have whole vectors on their last axis: Hp and Pp are H and P padded, B the blocks of hidden units, and gates of
one step are (B, N, G, lanes). Names of arrays are those of the equations.
"""

from __future__ import annotations

from lstmcore_numba.gemm.bf16x3_passes import Cut, CutBack
from lstmcore_numba.time_loop.backward import backward, backward_both
from lstmcore_numba.time_loop.forward import (
    X_PLACE,
    Y_PLACE,
    forward,
    forward_again,
    forward_both,
    forward_wave,
    keep_forward,
)
from lstmcore_numba.time_loop.gradients import input_gradient, weight_gradient
from lstmcore_numba.time_loop.jvp import tangent
from lstmcore_numba.time_loop.step_arrays import Norms, Short, Wave

__all__ = [
    "X_PLACE",
    "Y_PLACE",
    "Cut",
    "CutBack",
    "Norms",
    "Short",
    "Wave",
    "backward",
    "backward_both",
    "forward",
    "forward_again",
    "forward_both",
    "forward_wave",
    "input_gradient",
    "keep_forward",
    "tangent",
    "weight_gradient",
]
