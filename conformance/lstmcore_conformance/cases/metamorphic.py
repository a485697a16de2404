"""Transforms of a case's data with known effect: a choice of rows or steps, another order of units, reversed time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lstmcore.backend import Masks, StackMasks, State, Tangents
from lstmcore.config import LSTMConfig
from lstmcore_conformance.cases.case import Array, Case, Data

#: Parameters with rows for each gate.
_GATED = ("weight_x", "weight_h", "bias", "norm_gain_x", "norm_gain_h")


def rows_of(data: Data, rows: Any) -> Data:
    """Return the data with those rows of the batch, by index; a row may occur more than once."""

    def state(pair: State | None) -> State | None:
        return None if pair is None else State(pair.h[..., rows, :], pair.c[..., rows, :])

    tangents = data.tangents
    return replace(
        data,
        x=data.x[:, rows],
        state=state(data.state),
        lengths=None if data.lengths is None else data.lengths[rows],
        masks=_masks(data.masks, lambda mask: mask[rows], lambda mask: mask[:, rows]),
        dy=None if data.dy is None else data.dy[:, rows],
        dstate=state(data.dstate),
        tangents=tangents._replace(x=None if tangents.x is None else tangents.x[:, rows], state=state(tangents.state)),
    )


def piece(data: Data, start: int, stop: int, state: State | None) -> Data:
    """Return some steps of the data.

    Parameters
    ----------
    data
        The data of a case.
    start, stop
        The first step, and the one after the last.
    state
        The initial state of the piece.
    """
    lengths = data.lengths
    return replace(
        data,
        x=data.x[start:stop],
        state=state,
        masks=_masks(data.masks, lambda mask: mask, lambda mask: mask[start:stop]),
        dy=None if data.dy is None else data.dy[start:stop],
        lengths=None if lengths is None else np.clip(lengths - start, 0, stop - start),
    )


def past_end(case: Case) -> Array:
    """Return an array (T, N) that is true in the padding."""
    return np.arange(case.steps)[:, None] >= np.array(case.lengths, np.int64)[None, :]


def padded_with(case: Case, content: float) -> Data:
    """Return the data with `content` in all padding of x, dy, masks and tangents."""
    data, padding = case.data.map(np.array), past_end(case)

    def put(array: Array) -> Array:
        array[padding] = content
        return array

    for array in (data.x, data.dy, data.tangents.x):
        if array is not None:
            put(array)
    return replace(data, masks=_masks(data.masks, lambda mask: mask, put))


def reversed_rows(case: Case, array: Array) -> Array:
    """Return `array` (T, N, ...) with every row reversed within its length."""
    result = np.array(array)
    for row, end in enumerate(case.lengths or (case.steps,) * case.batch):
        result[:end, row] = array[:end, row][::-1]
    return result


def backwards(case: Case) -> Data:
    """Return the data with every row reversed within its length."""
    data, tangents = case.data, case.data.tangents
    return replace(
        data,
        x=reversed_rows(case, data.x),
        masks=_masks(data.masks, lambda mask: mask, lambda mask: reversed_rows(case, mask)),
        dy=None if data.dy is None else reversed_rows(case, data.dy),
        tangents=tangents._replace(x=None if tangents.x is None else reversed_rows(case, tangents.x)),
    )


def units_of(config: LSTMConfig, data: Data, order: Array) -> Data:
    """Return the data with hidden units in another order: all that belongs to unit ``order[k]`` moves to unit ``k``."""
    outputs = np.arange(config.proj_size) if config.proj_size else order

    def state(pair: State | None) -> State | None:
        return None if pair is None else State(pair.h[:, outputs], pair.c[:, order])

    masks = data.masks
    if isinstance(masks, Masks):
        recurrent = order if config.recurrence == "cell" else outputs
        masks = Masks(
            None if masks.recurrent is None else masks.recurrent[:, recurrent],
            None if masks.zoneout_hidden is None else masks.zoneout_hidden[..., outputs],
            None if masks.zoneout_cell is None else masks.zoneout_cell[..., order],
        )
    tangents = data.tangents
    return replace(
        data,
        parameters=parameters_of(config, data.parameters, order),
        state=state(data.state),
        masks=masks,
        dy=None if data.dy is None else data.dy[..., outputs],
        dstate=state(data.dstate),
        tangents=Tangents(
            tangents.x,
            state(tangents.state),
            None if tangents.parameters is None else parameters_of(config, tangents.parameters, order),
        ),
    )


def parameters_of(config: LSTMConfig, parameters: Mapping[str, Array], order: Array) -> dict[str, Array]:
    """Return parameters, or gradients of them, with the hidden units in another order."""
    gated = np.concatenate([order + gate * config.hidden_size for gate in range(len(config.gates))])
    by_unit = config.recurrence == "cell" or not config.proj_size
    reordered = {}
    for name, array in parameters.items():
        moved = array[gated] if name in _GATED else array[..., order]  # all others have the units last
        reordered[name] = moved[:, order] if name == "weight_h" and by_unit else moved
    return reordered


def _masks(masks: Any, each: Callable[[Array], Array], every_step: Callable[[Array], Array]) -> Any:
    """Return masks changed by `each` if they are one row for a sequence, by `every_step` if they are one for a step."""
    if isinstance(masks, StackMasks):
        layers = tuple(_masks(layer, each, every_step) for layer in masks.layers)
        return StackMasks(layers, tuple(every_step(mask) for mask in masks.dropout))
    if not isinstance(masks, Masks):
        return masks
    return Masks(
        None if masks.recurrent is None else each(masks.recurrent),
        None if masks.zoneout_hidden is None else every_step(masks.zoneout_hidden),
        None if masks.zoneout_cell is None else every_step(masks.zoneout_cell),
    )
