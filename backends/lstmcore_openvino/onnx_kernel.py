"""OpenVINO's reading of ONNX's operator LSTM, behind the contract of a kernel: as OpenVINO runs a file, untouched.

The backend declares what OpenVINO reads without an error. Some of it OpenVINO computes wrong: docs/peers-openvino.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

import numpy as np
import numpy.typing as npt
import openvino

from lstmcore.backend import Array, Capabilities, State
from lstmcore.config import LSTMConfig
from lstmcore.dialects.onnx_writer import operator_model
from lstmcore.precision import Precision
from lstmcore_openvino.kernel import HAS, OpenVinoBackend, OpenVinoKernel, Programs, Sizes, declare, infer, read_model

_HAS: Final = HAS | {"peephole", "coupling:forget_from_input"}


class OpenVinoOnnxKernel(OpenVinoKernel):
    """One layer in one direction. Packed weights are an ONNX model with free sizes, as OpenVINO reads it."""

    batch_first = False

    def _model(self, parameters: Mapping[str, Array], sizes: Sizes) -> openvino.Model:
        return read_model(operator_model(self.config, parameters, batch_first=self.batch_first).SerializeToString())

    def _run(
        self, weights: Programs, x: Array, state: State, ends: npt.NDArray[np.int32] | None
    ) -> tuple[Array, Array, Array]:
        steps, batch = x.shape[:2]
        lengths = np.full(batch, steps, np.int32) if ends is None else ends
        axis = int(self.batch_first)  # of the direction in h and c; y has it one place later
        arrays = (np.swapaxes(x, 0, 1) if axis else x, *(np.expand_dims(part, axis) for part in state))
        y, h, c = infer(weights(None), (arrays[0], lengths, *arrays[1:]))
        y = y.take(0, axis + 1)
        return np.swapaxes(y, 0, 1) if axis else y, h.take(0, axis), c.take(0, axis)


class OpenVinoOnnxBackend(OpenVinoBackend):
    """The features of ONNX's LSTM that OpenVINO reads: peepholes and coupled gates too; no gradient."""

    name = "openvino-onnx"
    kernel: type[OpenVinoOnnxKernel] = OpenVinoOnnxKernel

    def capabilities(self) -> Capabilities:
        """Return the features above, in float32, and no derivative."""
        return declare(_HAS, "ONNX's LSTM has none")

    def versions(self) -> dict[str, str]:
        """Return the versions of OpenVINO and ONNX."""
        return super().versions() | {"onnx": version("onnx")}

    def _compile(self, config: LSTMConfig, precision: Precision) -> OpenVinoOnnxKernel:
        return self.kernel(self, config, precision)


class _BatchFirstKernel(OpenVinoOnnxKernel):
    batch_first = True


class OpenVinoOnnxBatchFirst(OpenVinoOnnxBackend):
    """The same with ONNX's ``layout=1``: no plug-in, but ``lstmcore conform MODULE:ATTRIBUTE`` takes it."""

    name = "openvino-onnx-batch-first"
    kernel = _BatchFirstKernel
