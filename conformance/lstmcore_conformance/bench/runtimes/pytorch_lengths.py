"""PyTorch on sequences of different lengths: packed, and padded without its being told the lengths.

Packing and padding are done before the clock starts. A padded call computes the steps of the padding too, and has no
final c of a row that is shorter than the others; its final h is a step of y.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstmcore.backend import State
from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.runtimes import Prepared
from lstmcore_conformance.bench.runtimes.pytorch import Inference, PyTorch, Tensors, Training, bind, prepared
from lstmcore_conformance.cases.case import Array, Data


class PyTorchLengths(PyTorch):
    """PyTorch on the processor; its name says which of the two ways it takes."""

    def bind(self, job: Job, data: Data, tensors: Tensors) -> Prepared:
        """Return the call on tensors."""
        if self.name == "torch-padded":
            return _padded(job, data, tensors)
        return prepared((_PackedTraining if job.call == "training" else _PackedInference)(job, data, tensors))


make = PyTorchLengths


class _Packing:
    """How tensors (T, N, ...) of a call are packed, and unpacked again."""

    def __init__(self, data: Data) -> None:
        self.steps, self.lengths = len(data.x), torch.tensor(data.lengths)

    def pack(self, tensor: torch.Tensor) -> PackedSequence:
        """Return the rows without their padding."""
        return pack_padded_sequence(tensor, self.lengths, enforce_sorted=False)

    def unpack(self, packed: PackedSequence) -> torch.Tensor:
        """Return the rows with zeros as padding."""
        return pad_packed_sequence(packed, total_length=self.steps)[0]


class _PackedInference(Inference):
    how = "torch.nn.LSTM under torch.inference_mode, on a PackedSequence"

    def __init__(self, job: Job, data: Data, tensors: Tensors) -> None:
        super().__init__(job, data, tensors)
        self.packing = _Packing(data)
        self.packed = self.packing.pack(self.x)

    def __call__(self) -> Any:
        return self.lstm(self.packed, self.state)

    def padded(self, tensor: Any) -> torch.Tensor:
        return self.packing.unpack(tensor)


class _PackedTraining(Training):
    how = "torch.nn.LSTM on a PackedSequence, and torch.autograd.grad for its data, the state and every parameter"

    def __init__(self, job: Job, data: Data, tensors: Tensors) -> None:
        super().__init__(job, data, tensors)
        self.packing = _Packing(data)
        self.packed = self._with(self.packing.pack(self.x.detach()).data.requires_grad_())
        dy, *dstate = self.incoming
        self.inputs = (self.packed.data, *self.inputs[1:])
        self.incoming = (self.packing.pack(dy).data, *dstate)

    def _with(self, values: torch.Tensor) -> PackedSequence:
        """Return a sequence of these values, packed as x is."""
        return self.packing.pack(self.x.detach())._replace(data=values)

    def __call__(self) -> Any:
        y, last = self.lstm(self.packed, self.state)
        return (y.data, last), torch.autograd.grad((y.data, *last), self.inputs, self.incoming)

    def padded(self, tensor: Any) -> torch.Tensor:
        return self.packing.unpack(self._with(tensor))


def _padded(job: Job, data: Data, tensors: Tensors) -> Prepared:
    """Return a call over all T steps of every row; the padding of y has no gradient."""
    if data.lengths is None or data.dy is None or data.dstate is None:
        raise ValueError("data: expected lengths, dy and dstate; got a case without one of them")
    last, rows = data.lengths - 1, np.arange(len(data.lengths))
    valid = (np.arange(len(data.x))[:, None] <= last)[:, :, None]
    dy = np.where(valid, data.dy, np.zeros_like(data.dy))
    dy[last, rows] += data.dstate.h
    given = replace(data, dy=dy, dstate=State(*(part * 0 for part in data.dstate)))
    ready = bind(job, given, tensors)

    def outputs() -> Mapping[str, Array]:
        made = dict(ready.outputs())
        del made["c_n"]  # it is of step T, whatever the lengths
        made["h_n"] = made["y"][last, rows]
        return made | {"y": np.where(valid, made["y"], np.zeros_like(made["y"]))}

    return replace(ready, outputs=outputs, how=f"{ready.how}, on all T steps of every row")
