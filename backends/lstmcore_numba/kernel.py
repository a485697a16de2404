"""The contract of a backend, in vector code that is compiled for this processor and for each configuration."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final

import numpy as np

from lstmcore.backend import Backend, Capabilities, Forward, Gradients, Masks, Receipt, State, Tangents
from lstmcore.config import FEATURES, LSTMConfig, StackConfig, integer
from lstmcore.precision import Precision, get_precision, numpy_dtype
from lstmcore.stored_weights import FORMATS, SAME, WEIGHT_FEATURES, StoredMatrix, has_scales, read_parameters
from lstmcore_numba.backward import run_backward
from lstmcore_numba.call_cache import CallCache
from lstmcore_numba.compiled_layer import CompiledLayer
from lstmcore_numba.forward import ForwardCall, run_forward
from lstmcore_numba.jvp import run_jvp
from lstmcore_numba.packing import Array, Weights, pack
from lstmcore_numba.stack import LayerKernel, NumbaStack
from lstmcore_numba.stored_packing import StoredWeights, pack_stored
from lstmcore_numba.tuning import DEFAULT_TUNING, Tuning
from lstmcore_numba.workspace import LayerTape

_NO_BFLOAT16: Final = "NumPy has it from the package ml_dtypes alone: 'pip install ml_dtypes'"


#: Sizes of the calls that compile ahead: T, and for each call N, I and H, layers and directions. With 128 units, both
#: directions run side by side, layers run in a wavefront, and 64 rows are multiplied on AMX.
_WARM_STEPS: Final = 40
_WARM_CALLS: Final = ((1, 4, 1, 1), (3, 4, 1, 1), (1, 128, 1, 2), (1, 128, 2, 1), (64, 128, 1, 1))


class NumbaKernel(LayerKernel):
    """One layer in one direction. Every call has its own buffers, so calls may run at the same time."""

    takes_stored = True

    def __init__(self, backend: NumbaBackend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self.layer = CompiledLayer(config, precision, backend.threads, backend.tuning)
        self.cache = CallCache(self.layer)

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """Return the width of vectors, and which instructions GEMMs use for a call of `batch` rows."""
        layout = self.layer.layout
        path = f"vectors of {8 * layout.lanes * self.layer.dtype.itemsize} bits"
        if batch is not None and self.layer.schedule.forward_uses_amx(batch):
            path += ", products on AMX"
        elif self.layer.packs_pairs:
            path += ", products of bfloat16 pairs"
        if self.precision.weights != SAME:
            path += f", {self._stored_path(batch)}"
        return Receipt(self.backend.name, "cpu", self.precision.name, path, "made for this processor and this LSTM")

    def _stored_path(self, batch: int | None) -> str:
        """Return how the weights of a call of `batch` rows are read, and the bytes of weight_h that a step reads."""
        form, layer = self.precision.weights, self.layer
        count, stored = layer.layout.gate_row * self.config.recurrent_size, layer.reads_stored(batch or 1)
        number = FORMATS[form] if stored else layer.dtype.itemsize
        beside = (
            0 if not stored or not has_scales(form) else 8 if layer.stored_form == "quads" else 4
        )  # scales, offsets
        size = number * count + beside * layer.layout.gate_row
        how = "loaded" if stored else "packed"
        way = "times int16 activations" if layer.rounds_activations else f"widened when they are {how}"
        return f"{form} weights {way}: a step reads {size:,} bytes of weight_h"

    def _pack(self, parameters: Mapping[str, Array | StoredMatrix]) -> Weights | StoredWeights:
        if self.layer.stored_form is not None:
            return pack_stored(self.layer.layout, parameters, self.layer.stored_form)
        return pack(self.layer.layout, read_parameters(parameters, self.layer.dtype))

    def _forward(  # noqa: PLR0913  (the contract's signature)
        self,
        weights: Weights | StoredWeights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, LayerTape | None]:
        call = ForwardCall(weights, x, state, lengths, masks, record, out)
        return run_forward(self.layer, self.cache, call)

    def _backward(self, weights: Weights, saved: LayerTape, dy: Array | None, dstate: State | None) -> Gradients:
        return run_backward(self.layer, saved, dy, dstate)

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        y, last, tape = self._forward(weights, x, state, lengths, masks, record=True, out=None)
        if tape is None:
            raise RuntimeError("a recorded call returned no tape")
        with np.errstate(all="ignore"):  # an overflow gives infinity, as IEEE 754 says
            return Forward(y, last), run_jvp(self.layer, tape, tangents, has_lengths=lengths is not None)


class NumbaBackend(Backend):
    """Every switch, gradients and JVP, in vector code.

    Parameters
    ----------
    threads
        Threads that a call may use at most; None for ``LSTMCORE_NUM_THREADS``, else the processors that the process may
        use. The results are the same for any number.
    tuning
        Thresholds of the schedule. Those that choose other instructions (`amx`, `bf16_pairs`) change results within the
        error budget; the others do not change results.

    Raises
    ------
    TypeError, ValueError
        `threads` is no whole number, or below 1.
    """

    name = "numba"

    def __init__(self, threads: int | None = None, *, tuning: Tuning = DEFAULT_TUNING) -> None:
        self.threads = None if threads is None else integer("threads", threads, 1)
        self.tuning = tuning

    def capabilities(self) -> Capabilities:
        """Return what the backend declares; bfloat16 needs the package ml_dtypes."""
        has_bfloat16 = find_spec("ml_dtypes") is not None
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64", "float32", "float16"} | ({"bfloat16"} if has_bfloat16 else set())),
            features=FEATURES | WEIGHT_FEATURES,
            reasons={"tf32": "processors have no TF32"} | ({} if has_bfloat16 else {"bfloat16": _NO_BFLOAT16}),
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that compile the code."""
        return {name: version(name) for name in ("numba", "llvmlite")}

    def warm(self, precision: Precision | str) -> str:
        """Compile the loops over time of inference and training, and those on AMX if this processor has it."""
        for batch, size, layers, directions in _WARM_CALLS:
            both = (False, True)[:directions]
            layer = tuple(LSTMConfig(input_size=size, hidden_size=size, reverse=reverse) for reverse in both)
            _run_once(self, StackConfig((layer,) * layers), get_precision(precision), batch)
        return (
            "inference and training, with and without lengths, of one layer, of both directions and of several layers"
        )

    def _compile(self, config: LSTMConfig, precision: Precision) -> NumbaKernel:
        return NumbaKernel(self, config, precision)

    def _compile_stack(self, stack: StackConfig, precision: Precision) -> NumbaStack:
        return NumbaStack(self, stack, precision)


def _run_once(backend: NumbaBackend, stack: StackConfig, precision: Precision, batch: int) -> None:
    """Run what compiles the passes of a stack: a call, its replay, a recorded call with lengths, and its gradients."""
    kernel = backend.compile_stack(stack, precision)
    storage = numpy_dtype(precision.storage)
    weights = kernel.pack({name: np.zeros(shape, storage) for name, shape in stack.parameter_shapes.items()})
    x = np.zeros((_WARM_STEPS, batch, stack.layers[0][0].input_size), storage)
    for _ in range(2):
        kernel.forward(weights, x, None)
    y, _, tape = kernel.forward(weights, x, None, lengths=np.full(batch, _WARM_STEPS), record=True)
    kernel.backward(weights, tape, np.ones_like(y), None)
