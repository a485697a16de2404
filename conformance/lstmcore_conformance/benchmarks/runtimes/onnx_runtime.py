"""ONNX Runtime: a session of one LSTM node, inputs and outputs bound once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from lstmcore_conformance.benchmarks.jobs import STREAMED, Job
from lstmcore_conformance.benchmarks.runtimes import Prepared, Runtime, Unsupported
from lstmcore_conformance.cases import Array, Data

#: Gate rows in the node's order i, o, f, g out of ours, i, f, g, o.
_ORDER: Final = (0, 3, 1, 2)
_OUTPUTS: Final = ("Y", "Y_h", "Y_c")


class ONNXRuntime(Runtime):
    """The CPU execution provider."""

    def __init__(self, name: str, threads: int) -> None:
        self.threads = threads

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}

    def prepare(self, job: Job, data: Data) -> Prepared:
        if job.mode == "training":
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
        model = _model(job, data).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        made = (_Streaming if job.mode == "streaming" else _Inference)(session, data)
        return Prepared(made, made.outputs, made.how)


make = ONNXRuntime


def _model(job: Job, data: Data) -> Any:
    steps, batch, width, hidden = job.point

    def rows(array: Array) -> Array:
        return np.concatenate([np.split(array, 4)[k] for k in _ORDER])

    constants = {"W": rows(data.parameters["weight_x"])[None], "R": rows(data.parameters["weight_h"])[None]}
    if job.config.bias:
        bias = rows(data.parameters["bias"])
        constants["B"] = np.concatenate([bias, np.zeros_like(bias)])[None]
    node = helper.make_node(
        "LSTM", ["X", "W", "R", "B" if job.config.bias else "", "", "h", "c"], list(_OUTPUTS), hidden_size=hidden
    )
    shapes = {"X": (steps, batch, width), "h": (1, batch, hidden), "c": (1, batch, hidden)}
    results = {"Y": (steps, 1, batch, hidden), "Y_h": (1, batch, hidden), "Y_c": (1, batch, hidden)}
    graph = helper.make_graph(
        [node],
        "lstm",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in results.items()],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


class _Inference:
    how = "InferenceSession.run_with_iobinding of one LSTM node, spinning only within the call"

    def __init__(self, session: Any, data: Data) -> None:
        self.session = session
        self.x, self.h, self.c = data.x, *(np.ascontiguousarray(part[None]) for part in data.state or ())
        self.binding = session.io_binding()
        for name, array in (("X", self.x), ("h", self.h), ("c", self.c)):
            self.binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in _OUTPUTS:
            self.binding.bind_output(name)

    def __call__(self) -> Any:
        self.session.run_with_iobinding(self.binding)

    def outputs(self) -> Mapping[str, Array]:
        self()
        y, h, c = self.binding.copy_outputs_to_cpu()
        return {"y": y[:, 0], "h_n": h[0], "c_n": c[0]}


class _Streaming:
    how = "InferenceSession.run of one LSTM node, a step a call, the state handed on"

    def __init__(self, session: Any, data: Data) -> None:
        self.run = session.run
        self.state = [np.ascontiguousarray(part[None]) for part in data.state or ()]
        self.steps = [data.x[t : t + 1].copy() for t in range(len(data.x))]
        self.last, self.t = self.state, 0

    def __call__(self) -> Any:
        y, *self.last = self.run(_OUTPUTS, {"X": self.steps[self.t], "h": self.last[0], "c": self.last[1]})
        self.t = (self.t + 1) % STREAMED
        return y

    def outputs(self) -> Mapping[str, Array]:
        self.last, self.t = self.state, 0
        y = np.concatenate([self() for _ in self.steps])
        return {"y": y[:, 0], "h_n": self.last[0][0], "c_n": self.last[1][0]}
