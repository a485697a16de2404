"""PyTorch: ``torch.nn.LSTM`` under ``inference_mode``, and with all gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from lstmcore_conformance.bench.jobs import STREAMED, Job
from lstmcore_conformance.bench.runtimes import Prepared, Runtime, Unsupported
from lstmcore_conformance.cases.case import Array, Data, storage_dtype


class PyTorch(Runtime):
    """PyTorch on the processor."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that it computes with."""
        return {"torch": torch.__version__}

    def prepare(self, job: Job, data: Data) -> Prepared:
        """Return the call that is timed."""
        if job.precision == "tf32":
            raise Unsupported("tf32: processors have no TF32")
        if job.variant not in ("plain", "no_bias"):
            raise Unsupported(f"torch.nn.LSTM has no {job.variant}")
        kind = getattr(torch, job.precision)
        tensors = Tensors(lambda array: _tensor(np.array(array, order="C")).to(kind), _array, _cell, kind)
        return self.bind(job, data, tensors)

    def bind(self, job: Job, data: Data, tensors: Tensors) -> Prepared:
        """Return the call on tensors."""
        return bind(job, data, tensors)


make = PyTorch


class Tensors(NamedTuple):
    """How arrays become tensors and back.

    Attributes
    ----------
    put
        Makes a tensor of the dtype, on the device; nobody else writes to it.
    take, take_cell
        Make of a tensor what is judged; `take_cell` is for cell states.
    """

    put: Callable[[Array], torch.Tensor]
    take: Callable[[torch.Tensor], Any]
    take_cell: Callable[[torch.Tensor], Any]
    dtype: torch.dtype
    device: str = "cpu"


def bind(job: Job, data: Data, tensors: Tensors) -> Prepared:
    """Return the call of ``torch.nn.LSTM``."""
    return prepared(
        {"inference": Inference, "training": Training, "streaming": _Streaming}[job.call](job, data, tensors)
    )


def prepared(made: Inference) -> Prepared:
    """Return what is timed, in inference mode unless it makes gradients."""
    return Prepared(made, made.outputs, made.how, nullcontext if isinstance(made, Training) else torch.inference_mode)


class Inference:
    """A forward pass."""

    how = "torch.nn.LSTM under torch.inference_mode"

    def __init__(self, job: Job, data: Data, tensors: Tensors) -> None:
        config, self.tensors = job.config, tensors
        sizes, kind = (config.input_size, config.hidden_size), tensors.dtype
        self.lstm: Any = torch.nn.LSTM(*sizes, bias=config.bias, dtype=kind, device=tensors.device)
        #: our name -> theirs; their second bias, which they add to the first, is 0 and has no gradient
        self.names = {"weight_x": "weight_ih_l0", "weight_h": "weight_hh_l0"}
        self.names |= {"bias": "bias_ih_l0"} if config.bias else {}
        with torch.no_grad():
            for ours, theirs in self.names.items():
                getattr(self.lstm, theirs).copy_(tensors.put(data.parameters[ours]))
            if config.bias:
                torch.nn.init.zeros_(self.lstm.get_parameter("bias_hh_l0")).requires_grad_(False)
        self.lstm.flatten_parameters()
        self.x, self.state = tensors.put(data.x), self.pair(data.state)

    def pair(self, state: Any) -> tuple[torch.Tensor, ...]:
        """Return h and c (1, N, H)."""
        return tuple(self.tensors.put(part)[None] for part in state)

    def __call__(self) -> Any:
        """Return what the call gives."""
        return self.lstm(self.x, self.state)

    def outputs(self) -> Mapping[str, Array]:
        """Return what is judged."""
        return self.named(self())

    def padded(self, tensor: Any) -> torch.Tensor:
        """Return y, or the gradient of x, as (T, N, ...)."""
        found: torch.Tensor = tensor
        return found

    def named(self, done: Any) -> dict[str, Any]:
        """Return y and the final states by their names."""
        y, (h, c) = done
        return {
            "y": self.tensors.take(self.padded(y)),
            "h_n": self.tensors.take(h[0]),
            "c_n": self.tensors.take_cell(c[0]),
        }


class Training(Inference):
    """A forward pass and every gradient."""

    how = "torch.nn.LSTM and torch.autograd.grad for x, the state and every parameter"

    def __init__(self, job: Job, data: Data, tensors: Tensors) -> None:
        super().__init__(job, data, tensors)
        self.x.requires_grad_()
        self.state = tuple(part.requires_grad_() for part in self.state)
        self.inputs = (self.x, *self.state, *(getattr(self.lstm, name) for name in self.names.values()))
        if data.dy is None:
            raise ValueError("data: expected dy; got none")
        self.incoming = (tensors.put(data.dy), *self.pair(data.dstate))

    def __call__(self) -> Any:
        """Return what the call gives."""
        y, last = self.lstm(self.x, self.state)
        return (y, last), torch.autograd.grad((y, *last), self.inputs, self.incoming)

    def outputs(self) -> Mapping[str, Array]:
        """Return what is judged."""
        done, (dx, dh, dc, *rest) = self()
        take = self.tensors.take
        inputs = {"dx": take(self.padded(dx)), "dh0": take(dh[0]), "dc0": self.tensors.take_cell(dc[0])}
        parameters = {f"d_{name}": take(gradient) for name, gradient in zip(self.names, rest, strict=True)}
        return self.named(done) | inputs | parameters


class _Streaming(Inference):
    how = "torch.nn.LSTM under torch.inference_mode, a step a call, the state handed on"

    def __init__(self, job: Job, data: Data, tensors: Tensors) -> None:
        super().__init__(job, data, tensors)
        self.steps = [self.x[t : t + 1].clone() for t in range(len(self.x))]
        self.last, self.t = self.state, 0

    def __call__(self) -> Any:
        y, self.last = self.lstm(self.steps[self.t], self.last)
        self.t = (self.t + 1) % STREAMED
        return y

    def outputs(self) -> Mapping[str, Array]:
        self.last, self.t = self.state, 0
        y = torch.cat([self() for _ in self.steps])
        return self.named((y, self.last))


def _tensor(array: Array) -> torch.Tensor:
    """Return the array's memory as a tensor; PyTorch takes NumPy's bfloat16 only by its bits."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: torch.Tensor) -> Array:
    """Return the tensor's memory as an array."""
    tensor, short = tensor.detach(), tensor.dtype == torch.bfloat16
    found: Array = (tensor.contiguous().view(torch.int16) if short else tensor).numpy()
    return found.view(storage_dtype("bfloat16")) if short else found


def _cell(tensor: torch.Tensor) -> Array:
    """Return a cell state in float32, as the contract wants it; PyTorch keeps it in 16 bits if x has them."""
    return _array(tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor)
