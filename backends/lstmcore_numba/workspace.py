"""The arrays that a forward pass works in, and how it is shared among threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from lstmcore_numba.gemm.amx import APART, DEPTH, PARTS, TILE, usable
from lstmcore_numba.packing import Array, Layout, aligned
from lstmcore_numba.runtime.thread_pool import ROWS

#: Bytes of the input's products that are made at once, so that they stay in the cache.
_AHEAD: Final = 1 << 20
#: Rows from which threads take rows of the batch where the weights fit into a core's cache; else they take hidden
#: units, and meet after every step.
_ROWSAPART: Final = 16
#: Rows from which products run on AMX, values of the inner size, and multiply-adds of a product; the same of one tile.
_AMX_ROWS: Final = 32
_AMX_INNER: Final = 8
_AMX_WORTH: Final = 1_000_000
_AMX_TILE_WORTH: Final = 4_000_000
#: Bytes of weights that fit.
_FIT: Final = 1 << 20
#: Multiply-adds of a step for which a meeting is worth its time.
_STEP_WORTH: Final = 45_000
#: Multiply-adds of a direction for which it is worth to run another one beside it.
_BESIDE_WORTH: Final = 2_000_000
#: Multiply-adds of a layer for which a wavefront is worth it, and of a step at most where threads could share a layer
#: as well; steps at least by which a layer is behind the one below, and how many times as many there are.
_WAVE_WORTH: Final = 1_500_000
_WAVE_STEP: Final = 1_200_000
_WAVE_AHEAD: Final = 6
_WAVE_RUNS: Final = 4


@dataclass(frozen=True, slots=True)
class Sharing:
    """How threads share a pass: by hidden units or by rows, and in how many parts at most.

    Attributes
    ----------
    work
        Its multiply-adds.
    cost
        The same, or 0 where steps are too short for threads to meet after each.
    """

    by_units: bool
    most: int
    work: float
    cost: float


def sharing(layout: Layout, steps: int, batch: int, inner: int, *, masked: bool, units_at_once: int = 1) -> Sharing:
    """For products of `inner` values at every step; a thread takes `units_at_once` blocks of hidden units or more."""
    config, work = layout.config, layout.work(steps * batch, inner)
    apart = config.proj_size > 0 or config.layer_norm or masked
    if apart or (batch >= _ROWSAPART and _fits(layout, inner)):
        return Sharing(False, batch // ROWS, work, work)
    worth = work >= steps * _STEP_WORTH
    return Sharing(True, -(-layout.blocks // units_at_once), work, work if worth else 0.0)


def run_beside(layout: Layout, steps: int, batch: int) -> bool:
    """Whether two directions had better run side by side: for few rows, and weights that fit into a core's cache."""
    inner = layout.config.recurrent_size + layout.config.input_size
    return batch < _ROWSAPART and _fits(layout, inner) and layout.work(steps * batch, inner) >= _BESIDE_WORTH


def steps_ahead(layout: Layout, steps: int, batch: int) -> int:
    """Steps whose products of the input are made at once."""
    return max(1, min(steps, _AHEAD // max(1, batch * layout.wide * layout.dtype.itemsize)))


def wave_ahead(layout: Layout, steps: int, batch: int, *, masked: bool) -> int:
    """Steps by which a layer of a wavefront works behind the one below; 0 where layers had better run in turn.

    A wavefront pays where a layer has no work for two threads, and where these would have to meet after short steps.
    Its products of the input are those of fewer steps: no number of steps is taken that would leave some with so few
    rows that they are one tile, which adds in another order.
    """
    most = steps // _WAVE_RUNS
    if most < _WAVE_AHEAD:
        return 0
    inner = layout.config.recurrent_size + layout.config.input_size
    work = layout.work(steps * batch, inner)
    if work < _WAVE_WORTH or forward_on_amx(layout, batch):
        return 0
    shared = sharing(layout, steps, batch, inner, masked=masked)
    short = shared.by_units and work <= steps * _WAVE_STEP and _fits(layout, inner)
    if shared.most > 1 and shared.cost and not short:
        return 0
    if not _several(steps, batch, steps_ahead(layout, steps, batch)):
        return 0
    least = max(_WAVE_AHEAD, -(-ROWS // batch))
    return next((ahead for ahead in range(least, most + 1) if _several(steps, batch, ahead)), 0)


def _several(steps: int, batch: int, ahead: int) -> bool:
    """Whether steps in runs of `ahead` leave no run with the rows of one tile."""
    return batch * (steps % ahead or ahead) >= ROWS


def _fits(layout: Layout, inner: int) -> bool:
    """Whether the weights of a step fit into a core's cache."""
    return inner * layout.wide * layout.dtype.itemsize <= _FIT


def on_amx(layout: Layout, rows: int, inner: int, outer: int) -> bool:
    """Whether a product of `rows` rows and of `inner` values is made from parts; `outer` is its number of columns."""
    worth = _AMX_WORTH if rows >= _AMX_ROWS else _AMX_TILE_WORTH
    enough = (rows >= _AMX_ROWS or rows == TILE) and inner >= _AMX_INNER and rows * inner * outer >= worth
    return enough and layout.dtype == np.float32 and usable()


def forward_on_amx(layout: Layout, batch: int) -> bool:
    """Whether the products of a forward pass of `batch` rows are made from parts."""
    config = layout.config
    return config.input_size >= _AMX_INNER and on_amx(layout, batch, config.recurrent_size, layout.wide)


def in_parts(parts: tuple[int, ...], rows: int, inner: int) -> Array:
    """Room for `rows` rows of `inner` values in parts: 0 where a row has no values, anything elsewhere."""
    whole = -(-inner // DEPTH) * DEPTH
    found = aligned((*parts, rows, whole + APART // 2), np.dtype(np.uint16))
    found[..., inner:] = 0
    return found


@dataclass(frozen=True, slots=True)
class Room:
    """For T steps of N rows. Arrays are those of `passes.forward`; what a configuration does not have is tiny.

    Attributes
    ----------
    full
        (N,) the length of rows without one.
    zero_h, zero_c, no_state
        The state before the first step where none is given, and the same with an axis before it.
    shapes
        Of y, and of a state with an axis before it.
    ahead
        Steps whose products of the input are made at once.
    norms
        Rows and deviations of `passes.Norms`.
    counter
        Where threads meet.
    cut
        The arrays of `passes.Cut` that hold no weights.
    short
        ``passes.Short.h``, where products are those of pairs of bfloat16.
    """

    gates: Array
    raw: Array
    operand: Array
    q: Array
    projected: Array
    h: Array
    c: Array
    norms: tuple[Array, Array, Array, Array, Array, Array] | None
    full: Array
    zero_h: Array
    zero_c: Array
    no_state: tuple[Array, Array]
    shapes: tuple[tuple[int, ...], ...]
    ahead: int
    sharing: Sharing
    counter: Array
    cut: tuple[Array, ...] | None
    short: Array | None

    @property
    def size(self) -> int:
        """Bytes of the largest arrays."""
        return int(self.gates.nbytes + self.h.nbytes + self.c.nbytes + sum(part.nbytes for part in self.cut or ()))


def make_room(
    layout: Layout,
    steps: int,
    batch: int,
    *,
    masked: bool,
    record: bool,
    raw: bool,
    most_ahead: int | None = None,
    short: bool = False,
) -> Room:
    """Room for a call; for all steps where it is recorded. Products of x are made for `most_ahead` steps at most.

    `short` tells whether products are those of pairs of bfloat16.
    """
    config, dtype = layout.config, layout.dtype
    kept = steps + 1 if record else 2
    ahead = steps_ahead(layout, steps, batch)
    if most_ahead is not None:
        ahead = min(ahead, most_ahead)
    each = steps if record else 1
    products = steps if record else ahead
    wide = (layout.blocks, batch, layout.gates, layout.lanes)
    gates = aligned((products if record or not config.layer_norm else 1, *wide), dtype)
    projects = config.proj_size > 0
    norms = None
    if config.layer_norm:
        norms = (
            aligned((products, *wide), dtype),
            np.empty((steps, batch), dtype),
            aligned((each, *wide), dtype),
            np.empty((each, batch), dtype),
            aligned((each, layout.blocks, batch, 1, layout.lanes), dtype),
            np.empty((each, batch), dtype),
        )
    inner = config.recurrent_size
    shared = sharing(layout, steps, batch, inner + config.input_size, masked=masked)
    cut = None
    if forward_on_amx(layout, batch):
        cut = (
            in_parts((PARTS,), ahead * batch, config.input_size),
            in_parts((2, PARTS), batch, inner),
            np.zeros(ahead * batch, np.uint8),
            np.zeros((2, max(1, shared.most), batch), np.uint8),
            np.zeros((3, max(1, shared.most)), np.int64),
        )
    short_h = None
    if short:
        short_h = aligned((2, batch, layout.output + APART // 2), np.dtype(np.uint16))
        short_h[...] = 0
    zero_h, zero_c = np.zeros((batch, config.output_size), dtype), np.zeros((batch, config.hidden_size), dtype)
    return Room(
        gates=gates,
        raw=np.empty_like(gates) if record and raw else np.empty((1, 1, 1, 1, 1), dtype),
        operand=np.empty((each, batch, inner) if masked else (1, 1, inner), dtype),
        q=np.zeros((each if projects else 1, batch, layout.hidden), dtype),
        projected=np.empty((each if projects else 1, batch, layout.output), dtype),
        h=aligned((kept, batch, layout.output), dtype),
        c=aligned((kept, batch, layout.hidden), dtype),
        norms=norms,
        full=np.full(batch, steps, np.int64),
        zero_h=zero_h,
        zero_c=zero_c,
        no_state=(zero_h[None], zero_c[None]),
        shapes=((steps, *zero_h.shape), (1, *zero_h.shape), (1, *zero_c.shape)),
        ahead=ahead,
        sharing=shared,
        counter=np.zeros(1, np.int64),
        cut=cut,
        short=short_h,
    )
