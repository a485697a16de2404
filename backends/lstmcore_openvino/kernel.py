"""OpenVINO's operation LSTMSequence, behind the contract of a kernel: inference on the processor.

OpenVINO computes. This module answers calls without a step or a row, whose final state OpenVINO leaves unwritten, and
keeps the state of rows of length 0, which OpenVINO sets to 0. docs/peers-openvino.md tells what else OpenVINO does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino
from openvino import opset5

from lstmcore.backend import Array, Backend, Capabilities, Kernel, Masks, Receipt, State
from lstmcore.config import FEATURES, Activation, LSTMConfig
from lstmcore.dialects.onnx import float32_refusal
from lstmcore.precision import Precision
from lstmcore.threads import asked_threads

#: T and N of a model; None leaves both free.
Sizes: TypeAlias = tuple[int, int] | None
#: A function that compiles the model of some sizes, or returns the one that it keeps.
Programs: TypeAlias = Callable[[Sizes], openvino.CompiledModel]

REASONS: Final = {
    "float64": "OpenVINO takes double, and computes in float32",
    "float16": "OpenVINO returns c in float16; the contract keeps it in float32",
    "bfloat16": "left out of this backend: OpenVINO has it on some processors alone",
    "tf32": "processors have no TF32",
    "backward": "OpenVINO runs inference",
    "jvp": "OpenVINO runs inference",
}
#: The activations that OpenVINO's processor plug-in takes; it refuses every other one.
FUNCTIONS: Final = frozenset({"sigmoid", "tanh", "relu"})
HAS: Final = frozenset({"no_bias", "reverse", "lengths", "gate_clip"}) | {f"activation:{name}" for name in FUNCTIONS}

_GATES: Final = "figo"
#: Compiled models that packed weights keep, the last ones used: calls with lengths need one for each T and N.
_KEPT: Final = 8


class OpenVinoKernel(Kernel):
    """One layer in one direction. Packed weights are models that are compiled when a call first needs them."""

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        threads = asked_threads()
        number = "its own number of threads" if threads is None else f"LSTMCORE_NUM_THREADS={threads}"
        path = "oneDNN's LSTM" if self._is_plain() else "a loop over one step"
        reason = f"OpenVINO's CPU plug-in with {number}; one direction of one layer a call"
        if self._is_plain():
            reason += "; with lengths, a loop over one step"
        return Receipt(self.backend.name, "cpu", self.precision.name, path, reason)

    def _is_plain(self) -> bool:
        """Return whether OpenVINO has the functions and the clip of `config` in one kernel for all steps."""
        functions = (self.config.gate_activation, self.config.cell_activation, self.config.hidden_activation)
        return self.config.gate_clip is None and functions == tuple(map(Activation, ("sigmoid", "tanh", "tanh")))

    def _pack(self, parameters: Mapping[str, Array]) -> Programs:
        own = {name: np.array(array) for name, array in parameters.items()}
        return lru_cache(maxsize=_KEPT)(lambda sizes: _compiled(self._model(own, sizes)))

    def _model(self, parameters: Mapping[str, Array], sizes: Sizes) -> openvino.Model:
        """Return a model of these parameters. With sizes it has lengths as its fourth input."""
        return sequence_model(self.config, parameters, sizes)

    def _forward(  # noqa: PLR0913  (the contract of a kernel)
        self,
        weights: Programs,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, None]:
        steps, batch = x.shape[:2]
        width = self.config.hidden_size
        h, c = np.zeros((2, batch, width), np.float32) if state is None else state
        y = np.empty((steps, batch, width), np.float32) if out is None else out
        if not steps or not batch:
            return y, State(np.array(h), np.array(c)), None
        ends = None if lengths is None else lengths.astype(np.int32)
        y[...], *last = self._run(weights, x, State(h, c), ends)
        return y, State(*last), None

    def _run(
        self, weights: Programs, x: Array, state: State, ends: npt.NDArray[np.int32] | None
    ) -> tuple[Array, Array, Array]:
        """Return y (T, N, H) and the final h and c (N, H).

        A model with free sizes would ignore the lengths where OpenVINO has one kernel for all steps.
        """
        arrays = [np.swapaxes(x, 0, 1), state.h[:, None], state.c[:, None], *(() if ends is None else (ends,))]
        y, h, c = infer(weights(None if ends is None else x.shape[:2]), arrays)
        y, h, c = np.swapaxes(y[:, 0], 0, 1), h[:, 0], c[:, 0]
        if ends is not None:
            empty = ends == 0
            h[empty], c[empty] = state.h[empty], state.c[empty]
        return y, h, c


class OpenVinoBackend(Backend):
    """The features of OpenVINO's LSTMSequence: gate clip, sigmoid, tanh and ReLU, lengths; no gradient."""

    name = "openvino"

    def capabilities(self) -> Capabilities:
        """Return the features above, in float32, and no derivative."""
        return declare(HAS, "OpenVINO's LSTMSequence has none")

    def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
        """Return why `config` is refused, also for numbers that float32 does not hold; None if it is not."""
        return super().refusal(config, precision) or float32_refusal(config, "OpenVINO")

    def versions(self) -> dict[str, str]:
        """Return the version of OpenVINO."""
        return {"openvino": version("openvino")}

    def _compile(self, config: LSTMConfig, precision: Precision) -> OpenVinoKernel:
        return OpenVinoKernel(self, config, precision)


def declare(features: frozenset[str], lacking: str) -> Capabilities:
    """Return capabilities in float32, without derivatives; `lacking` is the reason for the other features."""
    reasons = dict.fromkeys(FEATURES - features, lacking)
    others = [name for name in reasons if name.startswith("activation:")]
    reasons |= dict.fromkeys(others, "OpenVINO's CPU plug-in refuses it in an LSTM")
    return Capabilities("cpu", frozenset({"float32"}), features, frozenset(), reasons | REASONS)


def infer(program: openvino.CompiledModel, arrays: Sequence[Array]) -> list[Array]:
    """Return copies of all outputs for the inputs in their order. Each call has a request of its own."""
    results = program.create_infer_request().infer(dict(enumerate(map(np.ascontiguousarray, arrays))))
    return [np.array(results[index]) for index in range(len(results))]


def sequence_model(config: LSTMConfig, parameters: Mapping[str, Array], sizes: Sizes) -> openvino.Model:
    """Return a model of one LSTMSequence.

    Its inputs are x (N, T, I), h and c (N, 1, H), and with sizes lengths (N,) of int32. Its outputs are y
    (N, 1, T, H), h and c, all in the dtype of the parameters. Without sizes T and N are free, and all rows have T
    steps.
    """
    steps, batch = sizes or (-1, -1)
    width = config.hidden_size
    shapes = ([batch, steps, config.input_size], [batch, 1, width], [batch, 1, width])
    dtype = parameters["weight_x"].dtype
    inputs = [opset5.parameter(openvino.PartialShape(shape), dtype.type) for shape in shapes]
    if sizes:
        lengths = opset5.parameter(openvino.PartialShape([batch]), np.int32)
        inputs.append(lengths)
    else:
        rows, count = (
            opset5.gather(opset5.shape_of(inputs[0], "i32"), np.array([axis], np.int32), np.int32(0)) for axis in (0, 1)
        )
        lengths = opset5.broadcast(count, rows)
    bias = parameters["bias"] if config.bias else np.zeros(4 * width, dtype)
    arrays = (parameters["weight_x"], parameters["weight_h"], bias)
    functions = (config.gate_activation, config.cell_activation, config.hidden_activation)
    node = opset5.lstm_sequence(
        *inputs[:3],
        lengths,
        *(opset5.constant(_rows(config, array)) for array in arrays),
        width,
        "reverse" if config.reverse else "forward",
        [function.name for function in functions],
        clip=config.gate_clip or 0.0,
    )
    return openvino.Model(node.outputs(), inputs, "lstm")


def _rows(config: LSTMConfig, array: Array) -> Array:
    """Return rows by gate in OpenVINO's order, with an axis of one direction before them."""
    rows = dict(zip(config.gates, np.split(array, len(config.gates)), strict=True))
    return np.concatenate([rows[gate] for gate in _GATES])[None]


@cache
def _core() -> openvino.Core:
    return openvino.Core()


def _compiled(model: openvino.Model) -> openvino.CompiledModel:
    """Return a model that is compiled for the processor.

    OpenVINO's own default is bfloat16 on processors that have it; this asks for float32.
    """
    options = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False, "NUM_STREAMS": 1}
    if threads := asked_threads():
        options["INFERENCE_NUM_THREADS"] = threads
    return _core().compile_model(model, "CPU", options)


def read_model(serialized: bytes) -> openvino.Model:
    """Return OpenVINO's reading of an ONNX model."""
    return _core().read_model(serialized)
