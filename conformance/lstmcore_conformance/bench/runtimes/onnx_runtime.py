"""ONNX Runtime: a session of one LSTM node, inputs and outputs bound once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from lstmcore.dialects.onnx import tensors
from lstmcore_conformance.bench.jobs import STREAMED, Job
from lstmcore_conformance.bench.runtimes import Prepared, Runtime, Unsupported
from lstmcore_conformance.cases.case import Array, Data

_OUTPUTS: Final = ("Y", "Y_h", "Y_c")


class ONNXRuntime(Runtime):
    """The CPU execution provider."""

    def __init__(self, name: str, threads: int) -> None:
        self.threads = threads

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that it computes with."""
        return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}

    def prepare(self, job: Job, data: Data) -> Prepared:
        """Return the call that is timed."""
        if job.call == "training":
            raise Unsupported("ONNX Runtime computes no gradients")
        if job.precision != "float32":
            raise Unsupported(f"the CPU provider's LSTM has no {job.precision}")
        if job.variant not in ("plain", "no_bias"):
            raise Unsupported(f"{job.variant}: only the plain LSTM is compared")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        # Its threads spin while a call runs, which is its fastest, and not after: they would take the next one's cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        content = model(job, data).SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        made = (_Streaming if job.mode == "streaming" else _Inference)(session, job, data)
        how = f"{made.how}, with lengths" if data.lengths is not None else made.how
        return Prepared(made, made.outputs, how)


make = ONNXRuntime


def model(job: Job, data: Data) -> Any:
    """One LSTM node with its weights; the initial state, and lengths if the job has them, as inputs."""
    steps, batch, width, hidden = job.point

    lengths, constants = data.lengths is not None, tensors((job.config, data.parameters))
    node = helper.make_node(
        "LSTM",
        ["X", "W", "R", "B" if job.config.bias else "", "lengths" if lengths else "", "h", "c"],
        list(_OUTPUTS),
        hidden_size=hidden,
    )
    shapes = {"X": (steps, batch, width), "h": (1, batch, hidden), "c": (1, batch, hidden)}
    results = {"Y": (steps, 1, batch, hidden), "Y_h": (1, batch, hidden), "Y_c": (1, batch, hidden)}
    graph = helper.make_graph(
        [node],
        "lstm",
        [
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()),
            *[helper.make_tensor_value_info("lengths", TensorProto.INT32, (batch,))] * lengths,
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in results.items()],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


class _Inference:
    how = "InferenceSession.run_with_iobinding of one LSTM node, spinning only within the call"

    def __init__(self, session: Any, job: Job, data: Data) -> None:
        self.session = session
        steps, batch, _, hidden = job.point
        self.x, self.state, self.last = data.x, _pair(data.state), _pair(data.state)
        self.y = np.empty((steps, 1, batch, hidden), data.x.dtype)
        self.binding = _bound(session, self.x, self.state, self.y, self.last)
        if data.lengths is not None:
            self.lengths = data.lengths.astype(np.int32)
            _bind(self.binding.bind_input, {"lengths": self.lengths})

    def __call__(self) -> Any:
        self.session.run_with_iobinding(self.binding)

    def outputs(self) -> Mapping[str, Array]:
        self()
        return {"y": self.y[:, 0], "h_n": self.last[0][0], "c_n": self.last[1][0]}


class _Streaming:
    how = "InferenceSession.run_with_iobinding of one LSTM node, a step a call, two states that take turns"

    def __init__(self, session: Any, job: Job, data: Data) -> None:
        self.run, self.initial = session.run_with_iobinding, data.state
        self.states = (_pair(data.state), _pair(data.state))
        self.y = np.empty((STREAMED, 1, job.point.N, job.point.H), data.x.dtype)
        self.steps = [data.x[t : t + 1].copy() for t in range(STREAMED)]
        self.bindings = [
            _bound(session, self.steps[t], self.states[t % 2], self.y[t : t + 1], self.states[(t + 1) % 2])
            for t in range(STREAMED)
        ]
        self.t = 0

    def __call__(self) -> Any:
        self.run(self.bindings[self.t])
        self.t = (self.t + 1) % STREAMED

    def outputs(self) -> Mapping[str, Array]:
        for part, value in zip(self.states[0], _pair(self.initial), strict=True):
            part[...] = value
        self.t = 0
        for _ in range(STREAMED):
            self()
        h, c = self.states[STREAMED % 2]
        return {"y": self.y[:, 0].copy(), "h_n": h[0].copy(), "c_n": c[0].copy()}


def _pair(state: Any) -> tuple[Array, Array]:
    """Return copies of h and c as the node takes them."""
    return np.array(state.h[None], order="C"), np.array(state.c[None], order="C")


def _bound(session: Any, x: Array, state: tuple[Array, Array], y: Array, last: tuple[Array, Array]) -> Any:
    """Return a binding of the node to that memory, which has to stay."""
    binding = session.io_binding()
    _bind(binding.bind_input, dict(zip(("X", "h", "c"), (x, *state), strict=True)))
    _bind(binding.bind_output, dict(zip(_OUTPUTS, (y, *last), strict=True)))
    return binding


def _bind(bind: Callable[..., None], arrays: Mapping[str, Array]) -> None:
    """Bind arrays to the inputs or the outputs of those names."""
    for name, array in arrays.items():
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
