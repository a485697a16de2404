"""Faults that the suite did not see until they were invented from SPEC.md alone; each has the case that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lstmcore.backend import Array, Forward, Gradients, Kernel, State
from lstmcore_conformance.mutants.construction import Hooked, edit, fault
from lstmcore_conformance.oracle.naive import NaiveKernel

# Sizes ----------------------------------------------------------------------------------------------------------------


@fault("spot.rest_of_15_rows", "the last of 15 rows past a tile of 16 loses its last step", "forward.sizes")
class _RestOf15Rows(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        steps, rows = x.shape[:2]
        if rows > 16 and rows % 16 == 15 and steps > 1:
            last = State(np.array(last.h), last.c)
            last.h[-1] = y[1 if self.config.reverse else -2, -1]
        return y, last, tape


edit(
    "spot.norm_of_one_unit",
    "layer norm of a cell of one unit is left out",
    '        step.norms["c"] = _normalise(config, step.c)\n',
    '        step.norms["c"] = _normalise(config, step.c)\n'
    "        if config.hidden_size == 1:\n"
    '            step.norms["c"] = Normalised(step.c, np.ones_like(step.c))\n',
    "forward.sizes",
)


@fault("spot.block_of_one_row", "sums of rows leave out a last block of one", "backward.sizes")
class _BlockOfOneRow(NaiveKernel):
    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        steps, rows, _ = saved.shape
        if steps * rows > 1 and steps * rows % 256 == 1:
            each = [(t, replace(step, x=np.where(t == steps - 1, 0, step.x))) for t, step in saved.steps]
            saved = replace(saved, steps=tuple(each))
        return super()._backward(weights, saved, dy, dstate)


@fault("spot.equal_lengths_of_rows", "more than 4 rows of one length are reversed from T on", "lengths.forward")
class _EqualLengthsOfRows(Hooked):
    def before(self, weights: Any, x: Array, state: Any, lengths: Any, masks: Any) -> tuple[Any, ...]:
        equal = lengths is not None and x.shape[1] > 4 and self.config.reverse and np.ptp(lengths) == 0
        return weights, x, state, None if equal else lengths, masks


# Numbers --------------------------------------------------------------------------------------------------------------

edit(
    "spot.peephole_of_short_cell",
    "peepholes read the cell rounded to 16 bits",
    "            step.z[k] = step.z[k] + peephole[k] * c_before\n",
    "            step.z[k] = step.z[k] + peephole[k] * _stored(c_before, step.precision)\n",
    "bits16.first_step",
    "float16",
)
edit(
    "spot.least_eps",
    "the eps of layer norm is at least 1e-7",
    ".mean(axis=1, keepdims=True) + config.layer_norm_eps)",
    ".mean(axis=1, keepdims=True) + max(config.layer_norm_eps, 1e-7))",
    "models.numbers",
)
edit(
    "spot.drift_of_h",
    "h is a little too small before it is rounded",
    "    return h.astype(policy.storage).astype(h.dtype)\n",
    "    return (h * h.dtype.type(1 - 2**-12)).astype(policy.storage).astype(h.dtype)\n",
    "bits16.rounding",
    "float16",
)


@fault("spot.masks_of_ones", "zoneout masks of more than 8 ones, and nothing else, are taken for none", "masks.kept")
class _MasksOfOnes(Hooked):
    def before(self, weights: Any, x: Array, state: Any, lengths: Any, masks: Any) -> tuple[Any, ...]:
        ones = masks is not None and all(
            mask is not None and mask.size > 8 and (mask == 1).all()
            for mask in (masks.zoneout_hidden, masks.zoneout_cell)
        )
        return weights, x, state, lengths, masks._replace(zoneout_hidden=None, zoneout_cell=None) if ones else masks


# Memory ---------------------------------------------------------------------------------------------------------------


@fault("spot.gradient_of_each_step", "a dy that all steps share counts in the last one alone", "inputs.broadcast")
class _GradientOfEachStep(NaiveKernel):
    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        if dy is not None and len(dy) > 1 and dy.strides[0] == 0 != dy.strides[-1]:
            dy = np.array(dy)
            dy[:-1] = 0
        return super()._backward(weights, saved, dy, dstate)


@fault("spot.lengths_with_strides", "lengths are read one after another, whatever their stride", "lengths.dtypes")
class _LengthsWithStrides(NaiveKernel):
    def forward(self, weights: Any, x: Array, state: Any = None, **options: Any) -> Forward:  # type: ignore[misc]
        lengths = options.get("lengths")
        if isinstance(lengths, np.ndarray) and lengths.ndim == 1 and lengths.strides[0] > lengths.itemsize:
            options["lengths"] = np.lib.stride_tricks.as_strided(lengths, strides=(lengths.itemsize,))
        return Kernel.forward(self, weights, x, state, **options)


@fault("spot.lengths_added_in_a_byte", "the running sum of lengths has their dtype, and overflows", "lengths.dtypes")
class _LengthsAddedInAByte(NaiveKernel):
    def forward(self, weights: Any, x: Array, state: Any = None, **options: Any) -> Forward:  # type: ignore[misc]
        lengths: Any = options.get("lengths")
        if getattr(lengths, "itemsize", 0) == 1 and getattr(lengths, "ndim", 0) == 1:
            fits = np.cumsum(lengths, dtype=np.int64) <= np.iinfo(lengths.dtype).max
            options["lengths"] = np.where(fits, lengths, 0)
        return Kernel.forward(self, weights, x, state, **options)


# Tapes ----------------------------------------------------------------------------------------------------------------


@fault("spot.tape_changed_without_dy", "backward of the final state alone changes the tape", "tape.reuse")
class _TapeChangedWithoutDy(NaiveKernel):
    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        gradients = super()._backward(weights, saved, dy, dstate)
        for _, step in saved.steps if dy is None else ():
            step.c_before = step.c_before + 1
        return gradients


@fault("spot.weights_of_the_last_pack", "backward takes the weights that were packed last", "tape.reuse")
class _WeightsOfTheLastPack(NaiveKernel):
    packed: Any = None

    def _pack(self, parameters: Mapping[str, Array]) -> Any:
        self.packed = super()._pack(parameters)
        return self.packed

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        return super()._backward(weights, replace(saved, parameters=self.packed), dy, dstate)


# State forms ----------------------------------------------------------------------------------------------------------


@fault("spot.state_of_one_row", "a state of one row is taken for all rows", "errors.state")
class _StateOfOneRow(NaiveKernel):
    def forward(self, weights: Any, x: Array, state: Any = None, **options: Any) -> Forward:  # type: ignore[misc]
        if isinstance(state, State) and all(getattr(array, "shape", ())[:1] == (1,) for array in state):
            state = State(*(np.broadcast_to(array, (x.shape[1], array.shape[-1])) for array in state))
        return Kernel.forward(self, weights, x, state, **options)


@fault("spot.gradient_without_c", "a dstate that lacks c has zeros for it", "errors.backward")
class _GradientWithoutC(NaiveKernel):
    def backward(self, weights: Any, tape: Any, dy: Any = None, dstate: Any = None) -> Gradients:  # type: ignore[misc]
        if isinstance(dstate, tuple) and dstate[1] is None:
            dstate = State(dstate[0], np.zeros((tape.batch, self.config.hidden_size), self.precision.compute))
        return Kernel.backward(self, weights, tape, dy, dstate)
