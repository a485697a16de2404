"""Measured constants of the Numba backend, with their units. docs/performance-tried-numba.md has the measurements.

The fields of `Tuning` are read at every call, so an object with other values can be given to `NumbaBackend`.
The constants below it are part of compiled code, or belong to the process and not to one backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Values of K on AMX before the next block, in instructions of 32, for K of up to twice as many: operands stay in L1.
#: For a larger K, sums would be loaded and stored too often.
AMX_K_BLOCK: Final = 4
#: Rows of dz that the input gradient multiplies by all weights before the next rows.
INPUT_GRADIENT_ROWS: Final = 96
#: Rows whose part of a weight gradient is summed before the next rows, so that they stay in the cache.
WEIGHT_GRADIENT_ROWS: Final = 512
#: The same on AMX, where a split operand takes more memory.
AMX_WEIGHT_GRADIENT_ROWS: Final = 256
#: Columns of a weight gradient that are transposed together.
TRANSPOSE_COLUMNS: Final = 32

#: Bytes of the gates of a step up to which all products of the step come before the functions of the gates: the chains
#: of one block of units then overlap with those of the next.
PRODUCTS_FIRST_BYTES: Final = 1 << 13

#: Reads of a waiting thread before it yields its processor: some tens of microseconds. On a busy machine, a thread that
#: yields is away for milliseconds.
BARRIER_SPINS: Final = 1_000
#: The same for waits that may last longer than one step.
LONG_WAIT_SPINS: Final = 10_000
#: Seconds that a worker thread spins for new work before it sleeps.
WORKER_SPIN_SECONDS: Final = 2e-3

#: Bytes that the buffer pool keeps at most, and bytes from which a buffer comes from the pool.
BUFFER_POOL_BYTES: Final = 1 << 28
POOLED_BUFFER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Tuning:
    """Thresholds of the decisions that are made at every call. *Work* is counted in multiply-adds.

    Attributes
    ----------
    thread_work
        Work below which another thread costs more time than it saves.
    work_per_second
        Work that a processor does in a second, about.
    wake_fraction, wake_seconds
        A pass waits for sleeping threads for this fraction of its own time, and for so many seconds at most.
    load_pause
        Passes in a row that run on their caller alone at most, where other processes take the processors of shared
        passes; 0 for none.
    barrier_work
        Work of one step from which a barrier after each step pays.
    row_split_rows
        Rows N from which threads share rows, if the weights fit into L2; else they share hidden units.
    l2_weight_bytes
        Bytes of the weights of one step that stay in a core's L2 cache.
    input_chunk_bytes
        Bytes of input projections that are computed at once, so that they stay in the cache.
    direction_work
        Work of one direction from which both directions of a layer run at the same time.
    wavefront_work
        Work of one layer from which a wavefront of layers pays.
    wavefront_step_work
        Work of one step up to which a wavefront is faster than threads that share the step.
    wavefront_lag, wavefront_lags
        Steps that a layer is behind the layer below at least, and the least ratio of T to this lag.
    norm_work
        Work that takes as long as the layer norm of one number.
    amx
        Whether AMX may be used.
    amx_rows, amx_k, amx_work
        Rows, K and work of a GEMM from which AMX is faster.
    amx_tile_work
        The same work for a GEMM whose rows are exactly one tile (16).
    stored_rows
        Rows N up to which weights in fewer bytes are widened at every step, if the float32 weights of a step do not fit
        into L2; a single row always widens them. All other products are bound by arithmetic, and read float32.
    bf16_pairs
        Whether packed bfloat16 pairs (AVX512_BF16) may be used.
    cached_bytes, cached_workspaces
        Bytes of a workspace that a thread keeps for its next call at most, and the number of those per kernel.
    """

    thread_work: float = 500_000
    work_per_second: float = 8e10
    wake_fraction: float = 0.2
    wake_seconds: float = 5e-3
    load_pause: int = 64
    barrier_work: float = 45_000
    row_split_rows: int = 16
    l2_weight_bytes: int = 1 << 20
    input_chunk_bytes: int = 1 << 20
    direction_work: float = 2_000_000
    wavefront_work: float = 1_500_000
    wavefront_step_work: float = 1_200_000
    wavefront_lag: int = 6
    wavefront_lags: int = 4
    norm_work: int = 32
    amx: bool = True
    amx_rows: int = 32
    amx_k: int = 8
    amx_work: float = 1_000_000
    amx_tile_work: float = 4_000_000
    stored_rows: int = 4
    bf16_pairs: bool = True
    cached_bytes: int = 1 << 22
    cached_workspaces: int = 8


#: The values for all processors.
DEFAULT_TUNING: Final = Tuning()
