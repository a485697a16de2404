"""PyTorch: ``torch.nn.LSTM`` under ``inference_mode``, and with all gradients by autograd."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from lstmcore_conformance.bench.jobs import STREAMED, Job
from lstmcore_conformance.bench.runtimes import Prepared, Runtime, Unsupported
from lstmcore_conformance.cases.case import Array, Data, storage_dtype


class PyTorch(Runtime):
    """PyTorch on the processor."""

    def __init__(self, name: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def prepare(self, job: Job, data: Data) -> Prepared:
        if job.precision == "tf32":
            raise Unsupported("tf32: processors have no TF32")
        if job.variant not in ("plain", "no_bias"):
            raise Unsupported(f"torch.nn.LSTM has no {job.variant}")
        made = {"inference": _Inference, "training": _Training, "streaming": _Streaming}[job.mode](job, data)
        return Prepared(made, made.outputs, made.how, nullcontext if job.mode == "training" else torch.inference_mode)


make = PyTorch


class _Inference:
    how = "torch.nn.LSTM under torch.inference_mode"

    def __init__(self, job: Job, data: Data) -> None:
        config = job.config
        self.lstm: Any = torch.nn.LSTM(
            config.input_size, config.hidden_size, bias=config.bias, dtype=getattr(torch, job.precision)
        )
        #: our name -> theirs; their second bias, which they add to the first, is 0 and has no gradient
        self.names = {"weight_x": "weight_ih_l0", "weight_h": "weight_hh_l0"}
        self.names |= {"bias": "bias_ih_l0"} if config.bias else {}
        with torch.no_grad():
            for ours, theirs in self.names.items():
                getattr(self.lstm, theirs).copy_(_tensor(data.parameters[ours]))
            if config.bias:
                torch.nn.init.zeros_(self.lstm.get_parameter("bias_hh_l0")).requires_grad_(False)
        self.x = _tensor(data.x.copy())
        self.state = _state(data.state, self.x.dtype)

    def __call__(self) -> Any:
        return self.lstm(self.x, self.state)

    def outputs(self) -> Mapping[str, Array]:
        return _named(self())


class _Training(_Inference):
    how = "torch.nn.LSTM and torch.autograd.grad for x, the state and every parameter"

    def __init__(self, job: Job, data: Data) -> None:
        super().__init__(job, data)
        self.x.requires_grad_()
        self.state = tuple(part.requires_grad_() for part in self.state)
        self.inputs = (self.x, *self.state, *(getattr(self.lstm, name) for name in self.names.values()))
        self.incoming = (_tensor(np.array(data.dy)), *_state(data.dstate, self.x.dtype))

    def __call__(self) -> Any:
        y, last = self.lstm(self.x, self.state)
        return (y, last), torch.autograd.grad((y, *last), self.inputs, self.incoming)

    def outputs(self) -> Mapping[str, Array]:
        done, (dx, dh, dc, *rest) = self()
        given = {"dx": _array(dx), "dh0": _array(dh[0]), "dc0": _cell(dc[0])}
        named = {f"d_{name}": _array(found) for name, found in zip(self.names, rest, strict=True)}
        return _named(done) | given | named


class _Streaming(_Inference):
    how = "torch.nn.LSTM under torch.inference_mode, a step a call, the state handed on"

    def __init__(self, job: Job, data: Data) -> None:
        super().__init__(job, data)
        self.steps = [self.x[t : t + 1].clone() for t in range(len(self.x))]
        self.last, self.t = self.state, 0

    def __call__(self) -> Any:
        y, self.last = self.lstm(self.steps[self.t], self.last)
        self.t = (self.t + 1) % STREAMED
        return y

    def outputs(self) -> Mapping[str, Array]:
        self.last, self.t = self.state, 0
        y = torch.cat([self() for _ in self.steps])
        return _named((y, self.last))


def _tensor(array: Array) -> torch.Tensor:
    """The array's memory as a tensor; PyTorch takes NumPy's bfloat16 by its bits alone."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: torch.Tensor) -> Array:
    """The tensor's memory as an array."""
    tensor, short = tensor.detach(), tensor.dtype == torch.bfloat16
    found: Array = (tensor.contiguous().view(torch.int16) if short else tensor).numpy()
    return found.view(storage_dtype("bfloat16")) if short else found


def _cell(tensor: torch.Tensor) -> Array:
    """A cell state, which PyTorch keeps in 16 bits where x has them: as the contract names it, in float32."""
    return _array(tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor)


def _state(state: Any, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(_tensor(np.array(part[None], order="C")).to(dtype) for part in state)


def _named(done: Any) -> dict[str, Array]:
    y, (h, c) = done
    return {"y": _array(y), "h_n": _array(h[0]), "c_n": _cell(c[0])}
