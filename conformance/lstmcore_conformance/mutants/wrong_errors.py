"""Kernels that raise other errors than the contract says, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lstmcore.backend import Backend, Forward, Gradients, Kernel, Masks, State
from lstmcore.stored_weights import SAME
from lstmcore_conformance.mutants.construction import backend_of, fault
from lstmcore_conformance.oracle.naive import NaiveKernel


def _overridden(id: str, what: str, caught_by: str, methods: Callable[[], dict[str, Any]]) -> None:
    """Register a kernel with replaced public methods; `final` does not stop a backend from doing so."""

    @fault(id, what, caught_by)
    def make() -> Backend:
        return backend_of(type("OverriddenKernel", (NaiveKernel,), methods()))


def _raising(kind: type[Exception], method: str) -> Callable[[], dict[str, Any]]:
    def methods() -> dict[str, Any]:
        inner = getattr(Kernel, method)

        def call(self: Kernel, *args: Any, **options: Any) -> Any:
            try:
                return inner(self, *args, **options)
            except (TypeError, ValueError) as error:
                raise kind("bad argument") from error

        return {method: call}

    return methods


def _unchecked() -> dict[str, Any]:
    def forward(self: Any, weights: Any, x: Any, state: Any = None, *, lengths: Any = None, **options: Any) -> Forward:
        if lengths is not None:
            lengths = np.clip(np.asarray(lengths, np.int64).ravel()[: x.shape[1]], 0, len(x))
        return Kernel.forward(self, weights, x, state, lengths=lengths, **options)

    return {"forward": forward}


def _converting() -> dict[str, Any]:
    def forward(self: Any, weights: Any, x: Any, state: Any = None, **options: Any) -> Forward:
        x = np.asarray(x, self.precision.storage)
        return Kernel.forward(self, weights, x, state, **options)

    return {"forward": forward}


def _named_state() -> dict[str, Any]:
    def forward(self: Any, weights: Any, x: Any, state: Any = None, **options: Any) -> Forward:
        copy = None if state is None else State(state.h, state.c)
        return Kernel.forward(self, weights, x, copy, **options)

    return {"forward": forward}


def _any_tape() -> dict[str, Any]:
    def backward(self: Any, weights: Any, tape: Any, dy: Any = None, dstate: Any = None) -> Gradients:
        tape = replace(tape, owner=self) if hasattr(tape, "owner") else tape
        return Kernel.backward(self, weights, tape, dy, dstate)

    return {"backward": backward}


def _any_parameters() -> dict[str, Any]:
    def pack(self: Any, parameters: Any) -> Any:
        return Kernel.pack(self, {name: parameters[name] for name in self.config.parameter_shapes})

    return {"pack": pack}


def _unmasked() -> dict[str, Any]:
    def forward(self: Any, weights: Any, x: Any, state: Any = None, **options: Any) -> Forward:
        return Kernel.forward(self, weights, np.asarray(x) if isinstance(x, np.ma.MaskedArray) else x, state, **options)

    return {"forward": forward}


def _unmasked_parameters() -> dict[str, Any]:
    def pack(self: Any, parameters: Any) -> Any:
        known = {k: np.asarray(v) if isinstance(v, np.ma.MaskedArray) else v for k, v in dict(parameters).items()}
        return Kernel.pack(self, known)

    return {"pack": pack}


def _out_copied() -> dict[str, Any]:
    def forward(self: Any, weights: Any, x: Any, state: Any = None, *, out: Any = None, **options: Any) -> Forward:
        try:
            return Kernel.forward(self, weights, x, state, out=out, **options)
        except ValueError as error:
            if "memory of its own for every entry" not in str(error):
                raise
        done = Kernel.forward(self, weights, x, state, **options)
        out[...] = done.y
        return done._replace(y=out)

    return {"forward": forward}


def _out_over_state() -> dict[str, Any]:
    def forward(self: Any, weights: Any, x: Any, state: Any = None, **options: Any) -> Forward:
        return Kernel.forward(self, weights, x, None if state is None else State(*map(np.array, state)), **options)

    return {"forward": forward}


def _out_over_mask() -> dict[str, Any]:
    def forward(self: Any, *arguments: Any, masks: Any = None, **options: Any) -> Forward:
        copies = masks and Masks(*(None if mask is None else np.array(mask) for mask in masks))
        return Kernel.forward(self, *arguments, masks=copies, **options)

    return {"forward": forward}


def _byte_lengths() -> dict[str, Any]:
    def forward(self: Any, weights: Any, x: Any, state: Any = None, *, lengths: Any = None, **options: Any) -> Forward:
        if getattr(lengths, "dtype", None) == np.uint8:
            lengths = lengths // np.uint8(2)
        return Kernel.forward(self, weights, x, state, lengths=lengths, **options)

    return {"forward": forward}


def _unrecorded() -> dict[str, Any]:
    def forward(self: Any, *arguments: Any, record: bool = False, **options: Any) -> Forward:
        return Kernel.forward(self, *arguments, record=record and self.precision.weights == SAME, **options)

    return {"forward": forward}


_overridden("lengths.of_bytes", "lengths of uint8 are read as half of what they say", "lengths.dtypes", _byte_lengths)
_overridden("weights.unrecorded", "a tape is asked for, and is not made", "weights.no_derivatives", _unrecorded)
_overridden("errors.runtime", "mistakes are RuntimeErrors", "errors.x", _raising(RuntimeError, "forward"))
_overridden(
    "errors.nameless", "the message does not name the argument", "errors.state", _raising(ValueError, "forward")
)
_overridden("errors.lengths_clamped", "wrong lengths are made to fit", "errors.lengths", _unchecked)
_overridden("errors.x_converted", "an x of another dtype is converted in silence", "errors.x", _converting)
_overridden("errors.tape_of_another", "a tape of another kernel is taken", "errors.backward", _any_tape)
_overridden("errors.parameters_extra", "unknown parameters are ignored", "errors.parameters", _any_parameters)
_overridden("errors.masks", "a wrong mask is a RuntimeError", "errors.masks", _raising(RuntimeError, "forward"))
_overridden("errors.out", "a wrong out is a RuntimeError", "errors.out", _raising(RuntimeError, "forward"))
_overridden("errors.tangents", "a wrong tangent is a RuntimeError", "errors.tangents", _raising(RuntimeError, "jvp"))
_overridden("errors.named_state", "a state must have the attributes h and c", "state.forms", _named_state)
_overridden("errors.masked", "the mask of a masked x is ignored", "errors.masked", _unmasked)
_overridden("errors.masked_weights", "masks of parameters are ignored", "errors.masked", _unmasked_parameters)
_overridden("errors.out_over_state", "an out that overlaps the state is written to", "errors.out", _out_over_state)
_overridden("errors.out_over_mask", "an out that overlaps a mask is written to", "errors.out", _out_over_mask)
_overridden("errors.out_of_itself", "an out whose entries share memory is written to", "errors.out", _out_copied)
