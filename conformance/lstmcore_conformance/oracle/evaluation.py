"""The right answers: the reference evaluated in float64, and the naive evaluation in a lower precision.

Stacks are composed here from the reference alone, by section 6 of SPEC.md, so that the core's own composition is
checked too and not compared with itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore import reference
from lstmcore.backend import Masks, StackMasks, State, Tangents
from lstmcore.config import StackConfig
from lstmcore.precision import Precision, get_precision
from lstmcore_conformance.cases.case import Array, Case, Data, seed_of, storage_dtype

#: Largest T * N * H of all layers at which the forward passes of many cases are kept.
SMALL: Final = 512

#: Name of an output -> array: y, h_n, c_n; dx, dh0, dc0 and d_<parameter>; ty, th_n, tc_n.
Arrays = dict[str, Array]


class _Pass(NamedTuple):
    """A forward pass: outputs, and the tape of each layer and direction."""

    outputs: Arrays
    tapes: tuple[reference.Tape, ...]


@lru_cache(maxsize=8192)
def forward(case: Case, precision: Precision | str, copy: int = 0) -> Arrays:
    """y, h_n and c_n of `case` evaluated in `precision`, on its own data (copy 0) or a `moved` copy of them."""
    return _primal(case, precision, copy).outputs


@lru_cache(maxsize=8192)
def gradients(case: Case, precision: Precision | str, copy: int = 0) -> Arrays:
    """dx, dh0, dc0 and d_<parameter> for every parameter."""
    return _backward(case, moved(case, copy), _primal(case, precision, copy), precision)


@lru_cache(maxsize=8192)
def tangents(case: Case, precision: Precision | str, copy: int = 0) -> Arrays:
    """ty, th_n and tc_n along the case's tangents."""
    return _jvp(case, moved(case, copy), _primal(case, precision, copy), precision)


def _primal(case: Case, precision: Precision | str, copy: int) -> _Pass:
    """Return the forward pass that the outputs, the gradients and the tangents of a case share."""
    values = case.steps * case.batch * sum(config.hidden_size for config in case.configs)
    return (_small_pass if values <= SMALL else _large_pass)(case, precision, copy)


@lru_cache(maxsize=1500)  # the cases of one check in all their evaluations, since checks follow each other
def _small_pass(case: Case, precision: Precision | str, copy: int) -> _Pass:
    return _forward(case, moved(case, copy), precision)


@lru_cache(maxsize=6)  # a case in all its evaluations: tapes of many rows are large
def _large_pass(case: Case, precision: Precision | str, copy: int) -> _Pass:
    return _forward(case, moved(case, copy), precision)


@lru_cache(maxsize=16)
def moved(case: Case, copy: int) -> Data:
    """The data of `case` with every number but those of masks moved to the next one up or down in the compute dtype.

    Up or down is drawn anew for each copy; copy 0 is the data themselves.
    """
    data = case.data
    if copy == 0:
        return data
    rng = np.random.default_rng(seed_of(f"{case.name}/moved", copy))
    dtype = np.dtype(case.policy.compute)

    def move(array: Array) -> Array:
        towards = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(dtype)
        result: Array = np.nextafter(array.astype(dtype), towards)
        return result

    return replace(data.map(move), masks=data.masks)


def forget() -> None:
    """Free what was kept of cases."""
    for kept in (forward, gradients, tangents, _small_pass, _large_pass, moved):
        kept.cache_clear()


class Draft(NamedTuple):
    """What tells whether data are good for a case."""

    tapes: tuple[reference.Tape, ...]
    gradients: Arrays


def draft(case: Case, data: Data, precision: Precision | str) -> Draft:
    """The tapes and the gradients on `data`, which may not be the case's own."""
    done = _forward(case, data, precision)
    return Draft(done.tapes, _backward(case, data, done, precision))


def parts(stack: StackConfig, values: Mapping[str, Array], index: int) -> Arrays:
    """Entry `index` of `StackConfig.configs` out of arrays by full parameter name, without the suffix."""
    suffix = stack.suffixes[index]
    return {name: values[name + suffix] for name in stack.configs[index].parameter_shapes}


def _stored(array: Array, precision: Precision | str) -> Array:
    """What goes from layer to layer: the oracle's exact values, or those that the policy stores."""
    if precision == "float64":
        return array
    stored: Array = array.astype(storage_dtype(get_precision(precision).storage))
    return stored


def _forward(case: Case, data: Data, precision: Precision | str) -> _Pass:
    if case.stack is None:
        result = reference.forward(
            case.config,
            data.parameters,
            data.x,
            data.state,
            lengths=data.lengths,
            masks=data.masks,
            precision=precision,
        )
        return _Pass({"y": result.y, "h_n": result.state.h, "c_n": result.state.c}, (result.tape,))
    stack, masks = (case.stack, data.masks or StackMasks(tuple(Masks() for _ in case.configs)))
    below, tapes, last = data.x, [], []
    for layer in range(stack.num_layers):
        if layer:
            below = _stored(below * masks.dropout[layer - 1] if masks.dropout else below, precision)
        outputs = []
        for direction in range(stack.num_directions):
            index = layer * stack.num_directions + direction
            result = reference.forward(
                stack.configs[index],
                parts(stack, data.parameters, index),
                below,
                None if data.state is None else State(data.state.h[index], data.state.c[index]),
                lengths=data.lengths,
                masks=masks.layers[index],
                precision=precision,
            )
            outputs.append(result.y)
            tapes.append(result.tape)
            last.append(result.state)
        below = np.concatenate(outputs, axis=2)
    h_n, c_n = (np.stack(arrays) for arrays in zip(*last, strict=True))
    return _Pass({"y": below, "h_n": h_n, "c_n": c_n}, tuple(tapes))


def _backward(case: Case, data: Data, done: _Pass, precision: Precision | str) -> Arrays:
    if case.stack is None:
        result = reference.backward(case.config, done.tapes[0], data.dy, data.dstate)
        return {"dx": result.x, "dh0": result.state.h, "dc0": result.state.c} | {
            f"d_{name}": array for name, array in result.parameters.items()
        }
    stack, masks = (case.stack, data.masks or StackMasks(tuple(Masks() for _ in case.configs)))
    count, width = stack.num_directions, stack.output_size
    named: Arrays = {}
    dh0: list[Any] = [None] * len(stack.configs)
    dc0: list[Any] = [None] * len(stack.configs)
    above: Any = data.dy
    for layer in reversed(range(stack.num_layers)):
        total: Any = 0
        for direction in range(count):
            index = layer * count + direction
            result = reference.backward(
                stack.configs[index],
                done.tapes[index],
                None if above is None else above[:, :, direction * width : (direction + 1) * width],
                None if data.dstate is None else State(data.dstate.h[index], data.dstate.c[index]),
            )
            total = _stored(total + _stored(result.x, precision), precision)
            dh0[index], dc0[index] = result.state
            named |= {f"d_{name}{stack.suffixes[index]}": array for name, array in result.parameters.items()}
        above = _stored(total * masks.dropout[layer - 1] if layer and masks.dropout else total, precision)
    ordered = {f"d_{name}": named[f"d_{name}"] for name in stack.parameter_shapes}
    return {"dx": above, "dh0": np.stack(dh0), "dc0": np.stack(dc0)} | ordered


def _jvp(case: Case, data: Data, done: _Pass, precision: Precision | str) -> Arrays:
    given = data.tangents
    if case.stack is None:
        along = reference.along(case.config, done.tapes[0], given)
        return {"ty": along.y, "th_n": along.state.h, "tc_n": along.state.c}
    stack, masks = (case.stack, data.masks or StackMasks(tuple(Masks() for _ in case.configs)))
    below: Any = given.x
    last = []
    for layer in range(stack.num_layers):
        if layer and masks.dropout:
            below = _stored(below * masks.dropout[layer - 1], precision)
        outputs = []
        for direction in range(stack.num_directions):
            index = layer * stack.num_directions + direction
            along = reference.along(
                stack.configs[index],
                done.tapes[index],
                Tangents(
                    below,
                    None if given.state is None else State(given.state.h[index], given.state.c[index]),
                    parts(stack, given.parameters or {}, index),
                ),
            )
            outputs.append(_stored(along.y, precision))
            last.append(along.state)
        below = np.concatenate(outputs, axis=2)
    th_n, tc_n = (np.stack(arrays) for arrays in zip(*last, strict=True))
    return {"ty": below, "th_n": th_n, "tc_n": tc_n}
