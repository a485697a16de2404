"""The expected results of a case: the reference in float64, and the naive evaluation in a lower precision.

The results of a case are kept, since several checks ask for them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np

from lstmcore.precision import Precision
from lstmcore_conformance.cases.call_data import Array, Data
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.drawing import seed_of
from lstmcore_conformance.oracle.composition import Arrays, Pass, backward_pass, forward_pass, jvp_pass

#: Largest T * N * H of all layers at which the forward passes of many cases are kept.
SMALL: Final = 512


@lru_cache(maxsize=8192)
def forward(case: Case, precision: Precision | str, copy: int = 0) -> Arrays:
    """Return y, h_n and c_n of `case`, evaluated in `precision` on its data (copy 0) or on a `moved` copy of them."""
    return _primal(case, precision, copy).outputs


@lru_cache(maxsize=8192)
def gradients(case: Case, precision: Precision | str, copy: int = 0) -> Arrays:
    """Return dx, dh0, dc0 and d_<parameter> for every parameter; the arguments are those of `forward`."""
    return backward_pass(case.model, moved(case, copy), _primal(case, precision, copy), precision)


@lru_cache(maxsize=8192)
def tangents(case: Case, precision: Precision | str, copy: int = 0) -> Arrays:
    """Return ty, th_n and tc_n along the case's tangents; the arguments are those of `forward`."""
    return jvp_pass(case.model, moved(case, copy), _primal(case, precision, copy), precision)


@lru_cache(maxsize=4)  # the exact results of a case serve its baseline error and its expectation
def everything(case: Case, precision: Precision | str, copy: int = 0) -> Arrays:
    """Return the results of `forward`, `gradients` and `tangents` together, from one forward pass."""
    data = move(case, copy)
    done = forward_pass(case.model, data, precision)
    backward, along = (function(case.model, data, done, precision) for function in (backward_pass, jvp_pass))
    return done.outputs | backward | along


def _primal(case: Case, precision: Precision | str, copy: int) -> Pass:
    """Return the forward pass that the outputs, the gradients and the tangents of a case share."""
    values = case.steps * case.batch * sum(config.hidden_size for config in case.configs)
    return (_small_pass if values <= SMALL else _large_pass)(case, precision, copy)


@lru_cache(maxsize=1500)  # the cases of one check in all their evaluations, since checks follow each other
def _small_pass(case: Case, precision: Precision | str, copy: int) -> Pass:
    return forward_pass(case.model, moved(case, copy), precision)


@lru_cache(maxsize=6)  # a case in all its evaluations: tapes of many rows are large
def _large_pass(case: Case, precision: Precision | str, copy: int) -> Pass:
    return forward_pass(case.model, moved(case, copy), precision)


@lru_cache(maxsize=16)
def moved(case: Case, copy: int) -> Data:
    """Return `move` of a case, which is kept for the evaluations that follow."""
    return move(case, copy)


def move(case: Case, copy: int) -> Data:
    """Return the data of `case` with every number moved to the next one up or down in the compute dtype.

    The direction is drawn for each number and copy; masks stay. Copy 0 is the data themselves.
    """
    data = case.data
    if copy == 0:
        return data
    rng = np.random.default_rng(seed_of(f"{case.name}/moved", copy))
    dtype = np.dtype(case.policy.compute)

    def each(array: Array) -> Array:
        towards = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(dtype)
        result: Array = np.nextafter(array.astype(dtype), towards)
        return result

    return replace(data.map(each), masks=data.masks)


def forget() -> None:
    """Free the results and the data that were kept."""
    for cached in (forward, gradients, tangents, everything, _small_pass, _large_pass, moved):
        cached.cache_clear()
