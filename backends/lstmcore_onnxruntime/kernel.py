"""ONNX Runtime's operator LSTM, behind the contract of a kernel: inference on the processor.

This module computes only what ONNX Runtime gets wrong: calls without a step, and the entries that a NaN reaches. Its
finite numbers are right, but it loses a NaN before an activation; docs/peers-onnxruntime.md shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from lstmcore.backend import Array, Backend, Capabilities, Kernel, Masks, Receipt, State, UnsupportedError
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.dialects.onnx import FUNCTIONS, float32_refusal
from lstmcore.dialects.onnx_graph import OUTPUTS
from lstmcore.dialects.onnx_writer import INPUTS, operator_model
from lstmcore.precision import Precision
from lstmcore.threads import asked_threads
from lstmcore.validation import check_finite_parameters

REASONS: Final = {
    "activation:softplus": "ONNX Runtime's is log(1 + exp(z)), infinite from z = 88.8",
    "float64": "ONNX Runtime's LSTM does not support double, microsoft/onnxruntime#28339",
    "float16": "ONNX Runtime returns c in float16; the contract keeps it in float32",
    "bfloat16": "ONNX Runtime has no LSTM in it",
    "tf32": "processors have no TF32",
    "backward": "ONNX Runtime runs inference",
    "jvp": "ONNX Runtime runs inference",
}
_HAS: Final = frozenset(
    ("no_bias", "reverse", "lengths", "peephole", "coupling:forget_from_input", "gate_clip", "activation:identity")
) | {f"activation:{name}" for name in FUNCTIONS if f"activation:{name}" not in REASONS}

#: From this many entries of an array ONNX Runtime fails or ends the process: it counts them in 32 bits.
_MAX_ENTRIES: Final = 2**31


class OnnxRuntimeKernel(Kernel):
    """One layer in one direction. The packed weights are a session."""

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        threads = asked_threads()
        number = "its own number of threads" if threads is None else f"LSTMCORE_NUM_THREADS={threads}"
        reason = f"ONNX Runtime's CPU provider with {number}; one direction of one layer a call"
        return Receipt(self.backend.name, "cpu", self.precision.name, "operator LSTM", reason)

    def _pack(self, parameters: Mapping[str, Array]) -> onnxruntime.InferenceSession:
        check_finite_parameters("parameters", parameters)  # ONNX Runtime would lose a NaN
        return start_session(operator_model(self.config, parameters).SerializeToString())

    def _forward(  # noqa: PLR0913  (the contract of a kernel)
        self,
        weights: onnxruntime.InferenceSession,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, None]:
        count, batch = x.shape[:2]
        width = self.config.hidden_size
        h, c = np.zeros((2, batch, width), np.float32) if state is None else state
        ends = np.full(batch, count, np.int32) if lengths is None else lengths.astype(np.int32)
        if not ends.any():
            y = np.empty((count, batch, width), np.float32) if out is None else out
            y[...] = 0
            return y, State(np.array(h), np.array(c)), None
        if count * batch * max(4 * width, x.shape[2]) >= _MAX_ENTRIES:
            raise UnsupportedError(
                f"backend 'onnxruntime': x: expected T N 4 H and T N I below 2^31, which ONNX Runtime can count; got "
                f"{x.shape} with H={width}: call it for fewer steps or rows at once"
            )
        finite = all(np.isfinite(array).all() for array in (x, h, c))
        if not finite:
            _refuse_infinities(x, State(h, c), ends)
        y, h_n, c_n = weights.run(OUTPUTS, dict(zip(INPUTS, (x, ends, h[None], c[None]), strict=True)))
        y, last = y[:, 0], State(h_n[0], c_n[0])
        if not finite:
            _spread_nan(y, last, x, State(h, c), ends, reverse=self.config.reverse)
        if lengths is not None:
            empty = ends == 0
            last.h[empty], last.c[empty] = h[empty], c[empty]
        if out is not None:
            out[...] = y
            y = out
        return y, last, None


class OnnxRuntimeBackend(Backend):
    """The features of ONNX Runtime's LSTM: peepholes, coupled gates, gate clip, activations, lengths; no gradient."""

    name = "onnxruntime"

    def capabilities(self) -> Capabilities:
        """Return the features above, in float32, and no derivative."""
        reasons = dict.fromkeys(FEATURES - _HAS, "ONNX's LSTM has none") | REASONS
        if other_clip := _clips_the_cell():
            reasons["gate_clip"] = "this ONNX Runtime clips the input of the hidden activation too"
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float32"}),
            features=_HAS - {"gate_clip"} if other_clip else _HAS,
            derivatives=frozenset(),
            reasons=reasons,
        )

    def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
        """Return why `config` is refused, also for numbers that float32 does not hold; None if it is not."""
        return super().refusal(config, precision) or float32_refusal(config)

    def versions(self) -> dict[str, str]:
        """Return the versions of ONNX Runtime and ONNX."""
        return {"onnxruntime": str(onnxruntime.__version__), "onnx": str(onnx.__version__)}

    def _compile(self, config: LSTMConfig, precision: Precision) -> OnnxRuntimeKernel:
        return OnnxRuntimeKernel(self, config, precision)


def start_session(serialized: bytes) -> onnxruntime.InferenceSession:
    """Return a session on the processor for a model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = asked_threads() or 0  # 0 is ONNX Runtime's default
    options.log_severity_level = 4  # an error raises an exception as well
    # Every session has its own threads. Without this they would spin on cores that the next session needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


@cache
def _clips_the_cell() -> bool:
    """Return whether `clip` bounds the input of the hidden activation, as ONNX says: microsoft/onnxruntime#27224."""
    config = LSTMConfig(input_size=1, hidden_size=1, gate_clip=1.0)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in config.parameter_shapes.items()}
    session = start_session(operator_model(config, zeros).SerializeToString())
    zero = np.zeros((1, 1, 1), np.float32)
    (h,) = session.run(["Y_h"], dict(zip(INPUTS, (zero, np.ones(1, np.int32), zero, zero + 8), strict=True)))
    return bool(h < np.tanh(2.0) / 2)  # tanh(4) / 2, or tanh(1) / 2


def _active(count: int, ends: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Return a mask (T, N), False in padding."""
    return np.arange(count)[:, None] < ends


def _refuse_infinities(x: Array, state: State, ends: npt.NDArray[np.int32]) -> None:
    """Raise UnsupportedError if a step would read an infinity."""
    live = ends > 0
    places = {"x": np.isinf(x).any(axis=2) & _active(len(x), ends)}
    places |= {f"state.{name}": np.isinf(getattr(state, name)).any(axis=1) & live for name in ("h", "c")}
    for name, infinite in places.items():
        if infinite.any():
            where = ", ".join(str(int(index)) for index in np.argwhere(infinite)[0])
            raise UnsupportedError(
                f"backend 'onnxruntime': {name}: expected finite numbers or NaN; got an infinity in {name}[{where}]: "
                "ONNX Runtime makes it the largest float32"
            )


def _spread_nan(y: Array, last: State, x: Array, state: State, ends: npt.NDArray[np.int32], *, reverse: bool) -> None:
    """Write to `y` and `last` the NaN that follow from those in x and the state.

    A NaN in x[t] or h[t-1] reaches all gates, so all of h and c from step t on. A NaN in c[t-1] reaches its unit at
    step t and, through h[t], all units at the next step.

    Parameters
    ----------
    y, last
        (T, N, H) and the final state, which are changed.
    x, state
        The inputs of the call.
    ends
        (N,), the lengths.
    reverse
        Whether each row runs from its last step to its first.
    """
    count = len(x)
    order = np.arange(count)[:, None]
    if reverse:
        order = ends - 1 - order
    active = _active(count, ends)
    first = np.where(np.isnan(x).any(axis=2) & active, order, count).min(axis=0)
    units = np.isnan(state.c)
    first[units.any(axis=1)] = np.minimum(first, 1)[units.any(axis=1)]
    first[np.isnan(state.h).any(axis=1)] = 0
    y[active & (order >= first)] = np.nan
    y[(active & (order == 0))[:, :, None] & units] = np.nan
    for array in last:
        array[(ends == 1)[:, None] & units] = np.nan
        array[first < ends] = np.nan
