"""The LSTM in CUDA kernels that are made for its configuration, on an NVIDIA GPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.lib import NumpyVersion

from lstmcore.backend import (
    Backend,
    Capabilities,
    Forward,
    Gradients,
    Kernel,
    Masks,
    Receipt,
    StackMasks,
    State,
    Tangents,
)
from lstmcore.config import FEATURES, LSTMConfig, StackConfig
from lstmcore.precision import PRECISIONS, Precision, numpy_dtype
from lstmcore.stack import ComposedStack, StackTape
from lstmcore_cupy.backward import backward
from lstmcore_cupy.device import Array, Device
from lstmcore_cupy.forward import forward
from lstmcore_cupy.jvp import jvp
from lstmcore_cupy.launch import Programs
from lstmcore_cupy.packing import Saved, Weights
from lstmcore_cupy.persistent import Name, Pass, Plan, plan, together
from lstmcore_cupy.tuning import Mode, decide

#: With which CuPy computes in bfloat16.
OLDEST_NUMPY: Final = "2.1.2"

#: The persistent kernels of the two passes.
_KERNELS: Final[dict[str, Name]] = {"forward": "forward_persistent", "backward": "backward_persistent"}
#: What a receipt tells: forward of a call that is not recorded, then both passes of one that is.
_PASSES: Final[tuple[tuple[Mode, str], ...]] = (
    ("inference", "forward"),
    ("training", "forward"),
    ("training", "backward"),
)


class CupyKernel(Kernel):
    """One layer in one direction. Every call has its own buffers and runs on the caller's current stream.

    Arrays are taken where they are: those of the host are copied to the device and come back as NumPy's. Weights are on
    the device of the parameters that they were packed from, and calls run there.
    """

    backend: CupyBackend

    def __init__(self, backend: CupyBackend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self._programs: dict[str, Programs] = {}
        self._plans: dict[tuple[str, Name, Mode, int, int], Plan | str] = {}
        self._lock = threading.Lock()

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        return self.receipt_beside(batch, 1)

    def receipt_beside(self, batch: int | None, directions: int) -> Receipt:
        """The receipt of a direction where `directions` run side by side."""
        device = self.backend.device
        name, where, precision = self.backend.name, device.name, self.precision.name
        one, two = "all steps in one launch", "a product and a kernel a step"
        rows = 1 if batch is None else batch
        paths, reasons, missed = [], [], []
        for mode, side in _PASSES:
            kernel = _KERNELS[side]
            wanted, why = self._decided(device, mode, rows)
            found: Plan | str = why
            if wanted:
                with device.active():
                    found = self.plan(self.programs(device), kernel, rows, directions, mode=mode)
            paths.append(one if isinstance(found, Plan) else two)
            reasons.append(_told(side, found) if isinstance(found, Plan) else found)
            missed += [found] if self.backend.persistent and isinstance(found, str) else []
            reasons += [why] if wanted and self.backend.persistent is None else []
        if set(paths) == {two}:
            reasons.insert(
                0, "W x is one product for all steps, a step a product of cuBLAS and a kernel made for this LSTM"
            )
        elif set(paths) == {one}:
            reasons.append("jvp step by step")
        reason = "; ".join(dict.fromkeys(reasons))
        return Receipt(name, where, precision, _path(*paths), reason, missed[0] if missed else None)

    def _decided(self, device: Device, mode: Mode, batch: int) -> tuple[bool, str]:
        """Whether the persistent kernels are to run calls of a batch size, and why.

        A call that is recorded was timed with its backward pass, so what holds for training decides for both.
        """
        asked = self.backend.persistent
        if asked is not None:
            return asked, f"the persistent kernels are {'' if asked else 'not '}asked for"
        return decide(device.model, self.precision.name, mode, batch, self.config.hidden_size)

    def plan(
        self, programs: Programs, kernel: Name, batch: int, directions: int, *, mode: Mode = "training"
    ) -> Plan | str:
        """How a persistent kernel runs a call, or why it does not. What is recorded is training."""
        key = (programs.device.name, kernel, mode, batch, directions)
        if key not in self._plans:
            wanted, why = self._decided(programs.device, mode, batch)
            self._plans[key] = plan(programs, kernel, batch, directions) if wanted else why
        return self._plans[key]

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
        passed = self.forward_pass(weights, x, state, lengths, masks, record=record, out=out)
        with weights.programs.device.active():
            return together([passed])[0]

    def forward_pass(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
        directions: int = 1,
    ) -> Pass[tuple[Array, State, Saved | None]]:
        """`_forward` as a pass, to be run while the weights' device is active."""
        device = weights.programs.device
        self._check_device(device, x=x, out=out)
        y, last, saved = yield from forward(
            self, weights, x, state, lengths, masks, record=record, out=out, directions=directions
        )
        if isinstance(x, np.ndarray):
            y = out if y is out else device.host(y)
            last = State(*map(device.host, last))
            device.check()
        if out is not None and y is not out:
            device.assign(out, y)
            y = out
        return y, last, saved

    def _backward(self, weights: Weights, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
        with saved.weights.programs.device.active():
            return together([self.backward_pass(saved, dy, dstate)])[0]

    def backward_pass(
        self, saved: Saved, dy: Array | None, dstate: State | None, *, directions: int = 1
    ) -> Pass[Gradients]:
        """`_backward` as a pass, to be run while the weights' device is active."""
        device = saved.weights.programs.device
        found = yield from backward(self, saved, dy, dstate, directions)
        if not saved.to_host:
            return found
        found = Gradients(
            device.host(found.x),
            State(*map(device.host, found.state)),
            {name: device.host(array) for name, array in found.parameters.items()},
        )
        device.check()
        return found

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
        self._check_device(device, x=x)
        with device.active():
            (found,) = together([forward(self, weights, x, state, lengths, masks, record=True, out=None)])
            y, last, saved = found
            if saved is None:  # never: it was recorded
                raise RuntimeError("forward: recorded nothing")
            both = (Forward(y, last), jvp(self, saved, tangents))
            if not saved.to_host:
                return both
            one, two = (Forward(device.host(each.y), State(*map(device.host, each.state))) for each in both)
            device.check()
            return one, two

    def _check_device(self, device: Device, **arrays: Array | None) -> None:
        """Raise where an array is on another GPU than the weights."""
        for name, array in arrays.items():
            home = device if array is None else device.home(array)
            if home is not device:
                where = f"{device.name}, where the weights are"
                raise ValueError(f"{name}: expected an array on {where}; got one on {home.name}")


class CupyStack(ComposedStack):
    """Kernels of all layers and directions; the loops over time of a layer's two directions share their launches."""

    kernels: tuple[CupyKernel, ...]

    # What the layers share, halves of y and masks between them, is made on the weights' device as well.

    def forward(
        self,
        weights: Any,
        x: Array,
        state: State | None,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
        record: bool = False,
        out: Array | None = None,
    ) -> Forward:
        with weights[0].programs.device.active():
            return super().forward(weights, x, state, lengths=lengths, masks=masks, record=record, out=out)

    def backward(self, weights: Any, tape: StackTape, dy: Array | None, dstate: State | None) -> Gradients:
        with weights[0].programs.device.active():
            return super().backward(weights, tape, dy, dstate)

    def jvp(
        self,
        weights: Any,
        x: Array,
        state: State | None,
        tangents: Tangents,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
    ) -> tuple[Forward, Forward]:
        with weights[0].programs.device.active():
            return super().jvp(weights, x, state, tangents, lengths=lengths, masks=masks)

    def _forward_layer(
        self, first: int, calls: Sequence[tuple[Any, ...]], *, record: bool
    ) -> Sequence[tuple[Array, State, Any]]:
        passes = [
            kernel.forward_pass(*args, record=record, out=out, directions=len(calls))
            for kernel, (*args, out) in zip(self.kernels[first : first + len(calls)], calls, strict=True)
        ]
        return together(passes)

    def _backward_layer(self, first: int, calls: Sequence[tuple[Any, ...]]) -> Sequence[Gradients]:
        passes = [
            kernel.backward_pass(*args, directions=len(calls))
            for kernel, (_, *args) in zip(self.kernels[first : first + len(calls)], calls, strict=True)
        ]
        return together(passes)

    def receipts(self, steps: int | None = None, batch: int | None = None) -> tuple[Receipt, ...]:
        return tuple(kernel.receipt_beside(batch, self.stack.num_directions) for kernel in self.kernels)


class CupyBackend(Backend):
    """Every switch on an NVIDIA GPU. `device` is where arrays of the host go; calls run where their weights are.

    `persistent`: whether forward and backward take the persistent kernels where they can. None: where they were
    measured to be faster, see measured.py; no GPU has run them yet.
    """

    name = "cupy"

    def __init__(self, device: Device, *, persistent: bool | None = None) -> None:
        self.device, self.persistent = device, persistent

    def capabilities(self) -> Capabilities:
        precisions, reasons = set(PRECISIONS), {}
        if (reason := _no_bfloat16()) is not None:
            precisions.remove("bfloat16")
            reasons["bfloat16"] = reason
        return Capabilities(self.device.name, frozenset(precisions), FEATURES, reasons=reasons)

    def versions(self) -> dict[str, str]:
        return self.device.versions()

    def to_device(self, array: Array) -> Array:
        device = self.device.home(array)
        with device.active():
            return device.array(array)

    def to_host(self, array: Array) -> Array:
        device = self.device.home(array)
        with device.active():
            found = device.host(array)
        device.check()
        return found

    def _compile(self, config: LSTMConfig, precision: Precision) -> CupyKernel:
        return CupyKernel(self, config, precision)

    def _compile_stack(self, stack: StackConfig, precision: Precision) -> CupyStack:
        return CupyStack(self, stack, precision)


def _no_bfloat16() -> str | None:
    """Why CuPy makes no arrays of bfloat16 here, or None."""
    try:
        numpy_dtype("bfloat16")
    except ImportError as error:
        return str(error)
    if NumpyVersion(np.__version__) < OLDEST_NUMPY:
        return f"CuPy has bfloat16 with NumPy {OLDEST_NUMPY} or newer; this one is {np.__version__}"
    return None


def _path(inference: str, forward: str, backward: str) -> str:
    """The paths of `_PASSES` in a receipt."""
    if inference == forward:
        return forward if forward == backward else f"forward {forward}, backward {backward}"
    recorded = forward if forward == backward else f"forward {forward} and backward {backward}"
    return f"inference {inference}, training {recorded}"


def _told(what: str, found: Plan) -> str:
    """A plan in a receipt."""
    units, rows, directions = found.grid
    sides = f", {directions} directions" if directions > 1 else ""
    return f"{what} in {found.blocks} blocks that keep R on chip, {units} over the units, {rows} over the rows{sides}"
