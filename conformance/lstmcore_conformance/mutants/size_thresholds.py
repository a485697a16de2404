"""Kernels that are right up to a size: the fault begins at a row, a unit, an input, a step or a number of them.

Each axis has a mutant for each usual threshold and each kind of fault. The call that is wrong (forward without and with
a tape, backward, jvp) changes from one to the next, so that every axis and every threshold meets every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore.backend import Array, Backend, Forward, Gradients, State
from lstmcore.config import SWITCHES as FIELDS
from lstmcore_conformance.cases.large_sizes import CLASSES
from lstmcore_conformance.mutants.construction import backend_of, edited, fault
from lstmcore_conformance.oracle.naive import NaiveKernel


class Axis(NamedTuple):
    """An axis along which a fault begins: the calls that it concerns, and the checks that see it up to a threshold."""

    noun: str
    only: str
    checks: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        """The axis and the calls in words."""
        return f"{self.noun} {self.only}".strip()


#: The most outputs of a projection in `large.each_switch`.
PROJECTED: Final = max(size.proj_size for size in CLASSES.values())
THRESHOLDS: Final = (9, 17, 33, 65, 129, 257, 513, 1025, 65_536)
CALLS: Final = ("forward", "recorded forward", "backward", "jvp")
AXES: Final = (
    Axis("row", "", ((65_536, "large.batches"),)),
    Axis("unit", "", ((1025, "large.widths"),)),
    Axis("input", "", ((1025, "large.widths"),)),
    Axis("step", "", ((257, "large.sequences"), (1025, "large.longest"))),
    Axis("output", "", ((257, "large.widths"),)),
    Axis("row", "with lengths", ((65_536, "large.ends"),)),
    Axis("step", "with lengths", ((257, "large.ends"), (1025, "large.longest"))),
    Axis("row", "with masks", ((257, "large.random_masks"),)),
    Axis("unit", "with masks", ((257, "large.random_masks"),)),
    Axis("step", "with masks", ((257, "large.random_masks"),)),
)
#: Kind of fault -> what it does, as the end of a sentence that begins with the call.
KINDS: Final = {
    "zero": "is 0 from {noun} {start} on",
    "wrap": "takes {noun} {start} for the first",
    "path": "of {start} or more {noun}s leaves out the bias",
}


class ThresholdKernel(NaiveKernel):
    """The naive evaluation; one call is wrong beyond a threshold of one axis."""

    axis: Axis
    start: int
    call: str
    kind: str

    def _concerns(self, call: str, lengths: bool, masks: bool) -> bool:
        return self.call == call and {"": True, "with lengths": lengths, "with masks": masks}[self.axis.only]

    def _size(self, steps: int, batch: int) -> int:
        config = self.config
        sizes = {"row": batch, "step": steps, "unit": config.hidden_size, "input": config.input_size}
        return (sizes | {"output": config.proj_size or 0})[self.axis.noun]

    def _spoilt(self, array: Array, axis: int) -> Array:
        """Return a copy with zeros, or with its beginning again, from the threshold on."""
        along: Array = np.array(np.moveaxis(array, axis, 0))
        rest = along[self.start - 1 :]
        rest[...] = 0 if self.kind == "zero" else np.resize(along[: self.start - 1], rest.shape)
        return np.moveaxis(along, 0, axis)

    def _spoil_results(self, y: Array, last: State) -> State:
        """Spoil y in place, or return another state: that of an axis of the units."""
        if self.axis.noun == "unit":
            return State(last.h, self._spoilt(last.c, 1))
        if self.axis.noun != "output" or self.config.proj_size:
            y[...] = self._spoilt(y, {"row": 1, "step": 0, "output": 2}[self.axis.noun])
        return last

    def _forward(
        self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Any, **options: Any
    ) -> tuple[Array, State, Any]:
        call = "recorded forward" if options["record"] else "forward"
        wrong = self._concerns(call, lengths is not None, bool(masks)) and self._size(*x.shape[:2]) >= self.start
        if wrong and self.kind == "path":
            weights = {**weights, "bias": np.zeros_like(weights["bias"])}
        elif wrong and self.axis.noun == "input":
            x = self._spoilt(x, 2)
        y, last, tape = super()._forward(weights, x, state, lengths, masks, **options)
        if wrong and self.kind != "path" and self.axis.noun != "input":
            last = self._spoil_results(y, last)
        return y, last, (tape, masks) if options["record"] else None

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        tape, masks = saved
        gradients = super()._backward(weights, tape, dy, dstate)
        cut = not all(step.active.all() for _, step in tape.steps)
        if not self._concerns("backward", cut, bool(masks)) or self._size(*gradients.x.shape[:2]) < self.start:
            return gradients
        changed = dict(gradients.parameters)
        if self.kind == "path":
            changed["bias"] = np.zeros_like(changed["bias"])
        elif self.axis.noun == "unit":
            gates = changed["weight_x"].reshape(-1, self.config.hidden_size, self.config.input_size)
            changed["weight_x"] = self._spoilt(gates, 1).reshape(changed["weight_x"].shape)
        elif self.axis.noun == "output":
            changed["weight_proj"] = self._spoilt(changed["weight_proj"], 0)
        else:
            axis = {"row": 1, "step": 0, "input": 2}[self.axis.noun]
            gradients = gradients._replace(x=self._spoilt(gradients.x, axis))
        return gradients._replace(parameters=changed)

    def _jvp(
        self, weights: Any, x: Array, state: Any, tangents: Any, lengths: Any, masks: Any
    ) -> tuple[Forward, Forward]:
        wrong = self._concerns("jvp", lengths is not None, bool(masks)) and self._size(*x.shape[:2]) >= self.start
        if wrong and self.kind == "path":
            others = {name: array for name, array in (tangents.parameters or {}).items() if name != "bias"}
            tangents = tangents._replace(parameters=others)
        elif wrong and self.axis.noun == "input" and tangents.x is not None:
            tangents = tangents._replace(x=self._spoilt(tangents.x, 2))
        done, moved = super()._jvp(weights, x, state, tangents, lengths, masks)
        if wrong and self.kind != "path" and self.axis.noun != "input":
            y = np.array(moved.y)
            moved = moved._replace(y=y, state=self._spoil_results(y, moved.state))
        return done, moved


def faults() -> Iterator[tuple[Axis, int, str, str, str]]:
    """Yield axis, threshold, kind, call and check of every mutant."""
    for (number, axis), (turn, kind), (place, start) in product(
        enumerate(AXES), enumerate(KINDS), enumerate(THRESHOLDS)
    ):
        if check := next((check for most, check in axis.checks if start <= most), None):
            yield axis, start, kind, CALLS[(number + turn + place) % len(CALLS)], check


def _register(axis: Axis, start: int, kind: str, call: str, check: str) -> None:
    what = KINDS[kind].format(noun=axis.noun, start=start)

    @fault(f"size.{kind}_{axis.name.replace(' ', '_')}_{start}", f"{call} {axis.only} {what}".replace("  ", " "), check)
    def make() -> Backend:
        names = {"axis": axis, "start": start, "call": call, "kind": kind}
        return backend_of(type("K", (ThresholdKernel,), names))


for _fault in faults():
    _register(*_fault)


# A switch that ends at an output --------------------------------------------------------------------------------------

#: The switches that can end at a unit: without them all arrays have the same shapes.
ENDING: Final = tuple(name for name in FIELDS if name not in ("bias", "proj_size", "coupling", "layer_norm_eps"))


class EndingSwitch(NaiveKernel):
    """The naive evaluation; y from one output on is that of a model without one switch."""

    switch: str
    start: int

    def _forward(
        self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Any, **options: Any
    ) -> tuple[Array, State, Any]:
        y, last, tape = super()._forward(weights, x, state, lengths, masks, **options)
        defaults = {name: each.default for name, each in FIELDS.items() if self.switch in (name, each.needs)}
        other = replace(self.config, **defaults)
        if other != self.config and y.shape[2] >= self.start:
            known = {name: weights[name] for name in other.parameter_shapes}
            plain = self.equations.forward(other, known, x, state, lengths=lengths, precision=self.precision).y
            y[..., self.start - 1 :] = plain[..., self.start - 1 :]
        return y, last, tape


def _register_ending(switch: str, start: int) -> None:
    what = f"the switch {switch} ends at output {start}"

    @fault(f"ending.{switch}_{start}", what, "large.each_switch", shown_by=switch)
    def make() -> Backend:
        return backend_of(type("K", (EndingSwitch,), {"switch": switch, "start": start}))


for _switch, _start in product(ENDING, (9, 17, 33, 65, 129)):
    if _switch != "proj_clip" or _start <= PROJECTED:
        _register_ending(_switch, _start)


@fault("size.masked_row_37", "the 37th row of a call with masks does not see its zoneout of h", "large.random_masks")
class _MaskedRow(NaiveKernel):
    def _forward(self, weights: Any, x: Array, state: Any, lengths: Any, masks: Any, **options: Any) -> Any:
        if masks is not None and masks.zoneout_hidden is not None and x.shape[1] > 36:
            masks = masks._replace(zoneout_hidden=masks.zoneout_hidden.copy())
            masks.zoneout_hidden[:, 36:] = 0
        return super()._forward(weights, x, state, lengths, masks, **options)


@fault("size.clip_of_unit_33", "the cell of units from the 33rd on is not clipped", "large.each_switch")
def _clip_of_unit() -> Backend:
    text = "step.c_unclipped if config.cell_clip is None else clip(step.c_unclipped, config.cell_clip)"
    right = "np.where(np.arange(config.hidden_size) < 32, clip(step.c_unclipped, config.cell_clip), step.c_unclipped)"
    module = edited((text, f"step.c_unclipped if config.cell_clip is None else {right}"))
    return backend_of(type("K", (NaiveKernel,), {"equations": module}))


# Tiles of two axes, and rests of one element --------------------------------------------------------------------------


@fault("size.tile_65_65", "the tile of the 65th row and the 65th unit is not written", "large.batches")
class _Tile(NaiveKernel):
    def _forward(self, weights: Any, x: Array, *rest: Any, **options: Any) -> tuple[Array, State, Any]:
        y, last, tape = super()._forward(weights, x, *rest, **options)
        y[:, 64:, 64:] = 0
        return y, last, tape


def _register_whole(only: str, check: str) -> None:
    """Register a mutant that leaves out the last unit where rows, units and outputs fill tiles of 16."""

    @fault(f"size.whole_tiles_{only}", f"with {only} whole tiles of 16 leave out a unit", check, shown_by="multiples")
    class _Whole(NaiveKernel):
        def _forward(self, weights: Any, x: Array, state: Any, lengths: Any, masks: Any, **options: Any) -> Any:
            y, last, tape = super()._forward(weights, x, state, lengths, masks, **options)
            used = {"lengths": lengths is not None, "masks": bool(masks)}[only]
            if used and not any(size % 16 for size in (x.shape[1], self.config.hidden_size, y.shape[2])):
                y[..., -1] = 0
            return y, last, tape


_register_whole("lengths", "large.ends")
_register_whole("masks", "large.random_masks")


def _register_rest(axis: int, width: int, noun: str, check: str) -> None:
    """Register a mutant whose dx is 0 in the last step or row if that is alone in its tile, after at least one tile."""

    @fault(f"size.rest_of_{noun}s_{width}", f"dx leaves out a last {noun} that is alone in its tile of {width}", check)
    class _Rest(NaiveKernel):
        def _backward(self, *arguments: Any) -> Gradients:
            gradients = super()._backward(*arguments)
            x = np.moveaxis(gradients.x, axis, 0)
            if len(x) > width and len(x) % width == 1:
                x[-1] = 0
            return gradients


for _width in (64, 128, 256):
    _register_rest(0, _width, "step", "large.sequences")
for _width in (128, 256, 1024):
    _register_rest(1, _width, "row", "large.batches")
