"""The random data of a case, the same on every machine.

The data are asymmetric: sizes differ from each other and divide nothing, and states are not zero. They are scaled so
that every clip cuts some values and not all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore.backend import Masks, StackMasks, State, Tangents
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import Precision
from lstmcore.stored_weights import read_parameters, store_parameters
from lstmcore_conformance.cases.call_data import Array, Data, storage_dtype
from lstmcore_conformance.cases.case_spec import CaseSpec

#: What is equal in an array -> the axis along which it is; None for every axis.
REPEATED: Final[Mapping[str, int | None]] = {"units": -1, "rows": -2, "steps": -3, "all elements": None}


class Sizes(NamedTuple):
    """The shapes of the arrays of a case, for a layer and a stack alike."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    h: tuple[int, ...]
    c: tuple[int, ...]


def sizes(case: CaseSpec) -> Sizes:
    """Return the shapes of x, y, and of the h and c of a state."""
    model, steps, batch = case.model, case.steps, case.batch
    if isinstance(model, StackConfig):
        rows, width = len(model.configs), model.num_directions * model.output_size
        return Sizes(
            (steps, batch, model.input_size),
            (steps, batch, width),
            (rows, batch, model.output_size),
            (rows, batch, model.hidden_size),
        )
    return Sizes(
        (steps, batch, model.input_size),
        (steps, batch, model.output_size),
        (batch, model.output_size),
        (batch, model.hidden_size),
    )


def seed_of(name: str, attempt: int) -> int:
    """Return the seed of a case: the first 8 bytes of the SHA-256 of its name and the number of the draw."""
    return int.from_bytes(hashlib.sha256(f"{name}/{attempt}".encode()).digest()[:8], "little")


def draw(case: CaseSpec, attempt: int) -> Data:
    """Return draw number `attempt` of the data of `case`, in float64."""
    rng = np.random.default_rng(seed_of(case.name, attempt))
    shape = sizes(case)

    def normal(size: tuple[int, ...], scale: float, shift: float) -> Array:
        return rng.standard_normal(size) * scale + shift

    def parameter(name: str, size: tuple[int, ...]) -> Array:
        kind = name.split("_l")[0] if isinstance(case.model, StackConfig) else name
        if kind.startswith("weight"):
            return normal(size, 1.2 / size[-1] ** 0.5, 0.04)
        if kind.startswith("norm_gain"):
            return normal(size, 0.3, 1.1)
        return normal(size, 0.4, 0.1)

    shapes = case.model.parameter_shapes
    parameters = {name: parameter(name, size) for name, size in shapes.items()}
    for name, gate, number in case.shifts:
        gates = parameters[name].reshape(len(case.config.gates), case.config.hidden_size, -1)
        gates[case.config.gates.index(gate) if gate else slice(None)] += number
    x = case.scale * normal(shape.x, 1.0, 0.1)
    state = State(case.scale * normal(shape.h, 0.5, 0.05), case.scale * normal(shape.c, 0.6, -0.05))
    masks = draw_masks(case, rng) if case.masks else None
    dy, dh, dc = (normal(shape.y, 1.0, 0.1), normal(shape.h, 1.0, -0.1), normal(shape.c, 1.0, 0.1))
    tangents = Tangents(
        normal(shape.x, 1.0, 0.1),
        State(normal(shape.h, 1.0, 0.1), normal(shape.c, 1.0, -0.1)),
        {name: normal(size, 0.5, 0.05) for name, size in shapes.items()},
    )
    data = Data(
        parameters,
        x,
        state if case.state else None,
        None if case.lengths is None else np.array(case.lengths, np.int64),
        masks,
        dy if case.dy else None,
        State(dh * case.dh, dc * case.dc) if case.dh or case.dc else None,
        tangents if case.state else tangents._replace(state=None),
    )
    return repeated(data, case.repeated) if case.repeated else data


def repeated(data: Data, what: str) -> Data:
    """Return the data with arrays that repeat units, rows or steps; parameters of one number only would test little."""
    equal = data.map(partial(repeat, what=what))
    return replace(equal, parameters=data.parameters) if REPEATED[what] is None else equal


def repeat(array: Array, what: str) -> Array:
    """Return a view like `array` that holds one of its rows, units or steps, or one element, and repeats it."""
    axis = REPEATED[what]
    if array.size == 0 or (axis is not None and array.ndim < -axis):
        return array
    axes = range(array.ndim) if axis is None else (array.ndim + axis,)
    first = array[tuple(slice(1) if k in axes else slice(None) for k in range(array.ndim))]
    return np.broadcast_to(first, array.shape)


def draw_masks(case: CaseSpec, rng: np.random.Generator) -> Masks | StackMasks:
    """Return masks for every rate that is not 0.

    An element is drawn with probability 1/2 whatever its rate, so that small masks have both values.
    """

    def of(config: LSTMConfig) -> Masks:
        def mask(rate: float, size: tuple[int, ...], kept: float) -> Array | None:
            return np.where(rng.random(size) < 0.5, 0.0, kept) if rate else None

        masks = Masks(
            mask(config.recurrent_dropout, (case.batch, config.recurrent_size), 1 / (1 - config.recurrent_dropout)),
            mask(config.zoneout_hidden, (case.steps, case.batch, config.output_size), 1.0),
            mask(config.zoneout_cell, (case.steps, case.batch, config.hidden_size), 1.0),
        )
        return masks if case.masks is True else Masks(**{str(case.masks): getattr(masks, str(case.masks))})

    if not isinstance(case.model, StackConfig):
        return of(case.model)
    stack = case.model
    between = (case.steps, case.batch, stack.num_directions * stack.output_size)
    count = stack.num_layers - 1 if stack.dropout else 0
    return StackMasks(
        tuple(of(config) for config in stack.configs),
        tuple(np.where(rng.random(between) < 0.5, 0.0, 1 / (1 - stack.dropout)) for _ in range(count)),
    )


def rounded(data: Data, policy: Precision) -> Data:
    """Return `data` in the dtypes and the weights' format of `policy`: the backend and the oracle get these numbers."""
    storage, compute = storage_dtype(policy.storage), np.dtype(policy.compute)

    def state(pair: State | None) -> State | None:
        return None if pair is None else State(pair.h.astype(storage), pair.c.astype(compute))

    def masks(value: Any) -> Any:
        if isinstance(value, Masks | StackMasks):
            return type(value)(*(masks(item) for item in value))
        if isinstance(value, tuple):
            return tuple(masks(item) for item in value)
        return None if value is None else value.astype(compute)

    tangents = data.tangents
    return Data(
        read_parameters(
            store_parameters({name: array.astype(storage) for name, array in data.parameters.items()}, policy.weights),
            storage,
        ),
        data.x.astype(storage),
        state(data.state),
        data.lengths,
        masks(data.masks),
        None if data.dy is None else data.dy.astype(storage),
        state(data.dstate),
        Tangents(
            None if tangents.x is None else tangents.x.astype(storage),
            state(tangents.state),
            {name: array.astype(storage) for name, array in (tangents.parameters or {}).items()},
        ),
    )
