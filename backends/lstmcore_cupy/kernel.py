"""The LSTM in CUDA kernels that are made for its configuration, on an NVIDIA GPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from lstmcore.backend import Backend, Capabilities, Forward, Gradients, Kernel, Masks, Receipt, State, Tangents
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import PRECISIONS, Precision, numpy_dtype
from lstmcore_cupy.backward import backward
from lstmcore_cupy.calls import Programs
from lstmcore_cupy.device import Array, Device
from lstmcore_cupy.forward import forward
from lstmcore_cupy.persistent import Plan, plan
from lstmcore_cupy.tangent import jvp
from lstmcore_cupy.weights import Saved, Weights

Result = TypeVar("Result")


class CupyKernel(Kernel):
    """One layer in one direction. Every call has its own buffers and runs on the caller's current stream.

    Arrays are taken where they are: those of the host are copied to the device and come back as NumPy's. Weights are on
    the device of the parameters that they were packed from, and calls run there.
    """

    backend: CupyBackend

    def __init__(self, backend: CupyBackend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self._programs: dict[str, Programs] = {}
        self._lock = threading.Lock()

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        device = self.backend.device
        one, two = "all steps in one launch", "a product and a kernel a step"
        if not self.backend.persistent:
            reason = "W x is one product for all steps, a step a product of cuBLAS and a kernel made for this LSTM"
            return Receipt(self.backend.name, device.name, self.precision.name, two, reason)
        with device.active():
            found = self.plan(self.programs(device), 1 if batch is None else batch)
        if isinstance(found, Plan):
            reason = f"forward in {found.blocks} blocks that keep R in shared memory; backward and jvp step by step"
            return Receipt(self.backend.name, device.name, self.precision.name, one, reason)
        return Receipt(self.backend.name, device.name, self.precision.name, two, found, found)

    def plan(self, programs: Programs, batch: int) -> Plan | str:
        """How the persistent kernel runs a call, or why it does not."""
        return plan(programs, batch) if self.backend.persistent else "the persistent kernel is not asked for"

    def programs(self, device: Device) -> Programs:
        """What is compiled for a device."""
        with self._lock:
            if device.name not in self._programs:
                self._programs[device.name] = Programs(device, self.config, self.precision)
            return self._programs[device.name]

    def _pack(self, parameters: Mapping[str, Array]) -> Weights:
        device = self.backend.device.home(next(iter(parameters.values())))
        programs = self.programs(device)
        with device.active():
            return Weights(programs, {name: programs.widen(parameters[name]) for name in self.config.parameter_shapes})

    def _forward(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Saved | None]:
        device = weights.programs.device
        self._check_device(device, x)
        with device.active():
            y, last, saved = forward(self, weights, x, state, lengths, masks, record=record, out=out)
            if isinstance(x, np.ndarray):
                y = out if y is out else device.host(y)
                last = State(*map(device.host, last))
            if out is not None and y is not out:
                device.assign(out, y)
                y = out
        return y, last, saved

    def _backward(self, weights: Weights, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
        device = saved.weights.programs.device
        with device.active():
            found = backward(self, saved, dy, dstate)
            if not saved.to_host:
                return found
            return Gradients(
                device.host(found.x),
                State(*map(device.host, found.state)),
                {name: device.host(array) for name, array in found.parameters.items()},
            )

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        device = weights.programs.device
        self._check_device(device, x)
        with device.active():
            y, last, saved = forward(self, weights, x, state, lengths, masks, record=True, out=None)
            if saved is None:  # never: it was recorded
                raise RuntimeError("forward: recorded nothing")
            both = (Forward(y, last), jvp(self, saved, tangents))
            if not saved.to_host:
                return both
            one, two = (Forward(device.host(each.y), State(*map(device.host, each.state))) for each in both)
            return one, two

    def _check_device(self, device: Device, x: Array) -> None:
        """Raise where `x` is on another GPU than the weights."""
        home = device.home(x)
        if home is not device:
            raise ValueError(f"x: expected an array on {device.name}, where the weights are; got one on {home.name}")


class CupyBackend(Backend):
    """Every switch on an NVIDIA GPU. `device` is where arrays of the host go; calls run where their weights are.

    `persistent`: whether forward takes the persistent kernel where it can. It is not the default, since no GPU has run
    it yet.
    """

    name = "cupy"

    def __init__(self, device: Device, *, persistent: bool = False) -> None:
        self.device, self.persistent = device, persistent

    def capabilities(self) -> Capabilities:
        precisions, reasons = set(PRECISIONS), {}
        try:
            numpy_dtype("bfloat16")
        except ImportError as error:
            precisions.remove("bfloat16")
            reasons["bfloat16"] = str(error)
        return Capabilities(self.device.name, frozenset(precisions), FEATURES, reasons=reasons)

    def versions(self) -> dict[str, str]:
        return self.device.versions()

    def to_device(self, array: Array) -> Array:
        device = self.device.home(array)
        with device.active():
            return device.array(array)

    def to_host(self, array: Array) -> Array:
        return self.device.host(array)

    def _compile(self, config: LSTMConfig, precision: Precision) -> CupyKernel:
        return CupyKernel(self, config, precision)
