"""ONNX Runtime's dynamic int8 of the operator LSTM, with its default settings, behind the contract of a kernel.

The weights are rounded to int8 by ONNX Runtime's own rule, so the values are not those of SPEC.md's formats. This
backend is there for the checks of rows and steps: docs/deviations/onnxruntime-int8.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnxruntime
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from lstmcore.backend import Array, Capabilities, Receipt
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.dialects.onnx_writer import operator_model
from lstmcore.precision import Precision
from lstmcore.validation import check_finite_parameters
from lstmcore_onnxruntime.kernel import REASONS, OnnxRuntimeBackend, OnnxRuntimeKernel, start_session

_HAS: Final = frozenset({"no_bias", "reverse", "lengths"})


class DynamicInt8Kernel(OnnxRuntimeKernel):
    """One layer in one direction. The packed weights are a session of the operator DynamicQuantizeLSTM."""

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        reason = "quantize_dynamic, defaults: one scale for x of all rows and steps, and one for h of a thread's rows"
        return Receipt(self.backend.name, "cpu", self.precision.name, "operator DynamicQuantizeLSTM", reason)

    def _pack(self, parameters: Mapping[str, Array]) -> onnxruntime.InferenceSession:
        check_finite_parameters("parameters", parameters)
        model = operator_model(self.config, parameters)
        add_pre_process_metadata(model)  # one node: without this mark ONNX Runtime asks for a step that changes nothing
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model.onnx"
            quantize_dynamic(model, target)
            return start_session(target.read_bytes())


class DynamicInt8Backend(OnnxRuntimeBackend):
    """Plain LSTMs with lengths, in float32 as far as the caller sees; no gradient."""

    name = "onnxruntime-int8"

    def capabilities(self) -> Capabilities:
        """Return the features above, in float32, and no derivative."""
        reasons = dict.fromkeys(FEATURES - _HAS, "left out of this backend, which is there for rows and steps")
        return Capabilities("cpu", frozenset({"float32"}), _HAS, frozenset(), REASONS | reasons)

    def _compile(self, config: LSTMConfig, precision: Precision) -> DynamicInt8Kernel:
        return DynamicInt8Kernel(self, config, precision)
