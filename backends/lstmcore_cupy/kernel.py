"""The LSTM in CUDA kernels that are made for its configuration, on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
from numpy.lib import NumpyVersion

from lstmcore.backend import Backend, Capabilities, Forward, Gradients, Masks, Receipt, State, Tangents
from lstmcore.config import FEATURES, LSTMConfig, StackConfig
from lstmcore.locks import ForkSafeLock
from lstmcore.masks import MaskDraw
from lstmcore.precision import PRECISIONS, Precision, numpy_dtype
from lstmcore.scalars import flag
from lstmcore.stored_weights import FORMATS, INT8A16, SAME, WEIGHT_FEATURES, StoredMatrix, has_scales
from lstmcore.uploads import Uploader
from lstmcore_cupy.backward import backward
from lstmcore_cupy.device import Array, Device
from lstmcore_cupy.forward import Inputs, forward
from lstmcore_cupy.graphs import Graphs
from lstmcore_cupy.jvp import jvp
from lstmcore_cupy.launch import Programs
from lstmcore_cupy.mask_drawing import draw_mask
from lstmcore_cupy.packing import Weights, pack
from lstmcore_cupy.persistent import Name, Pass, Plan, plan, run_passes
from lstmcore_cupy.stack import CupyStack, DirectionKernel
from lstmcore_cupy.tape import Saved
from lstmcore_cupy.tuning import Mode, decide
from lstmcore_cupy.updates import CupyUpdates

#: The oldest NumPy with which CuPy computes in bfloat16.
OLDEST_NUMPY: Final = "2.1.2"

#: The persistent kernels of the two passes.
_KERNELS: Final[dict[str, Name]] = {"forward": "forward_persistent", "backward": "backward_persistent"}
#: Passes in a receipt: forward of an unrecorded call, then both passes of a recorded one.
_PASSES: Final[tuple[tuple[Mode, str], ...]] = (
    ("inference", "forward"),
    ("training", "forward"),
    ("training", "backward"),
)


class CupyKernel(DirectionKernel):
    """One layer in one direction. Every call has its own buffers and runs on the caller's current stream.

    Arrays of the host are copied to the device, and the results are NumPy arrays then. Weights are on the device of
    the parameters that they were packed from, and calls run there. Stored weights were rounded on the host, and are on
    the backend's device.
    """

    backend: CupyBackend
    takes_stored = True

    def __init__(self, backend: CupyBackend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self._programs: dict[str, Programs] = {}
        self._plans: dict[tuple[str, Name, Mode, int, int], Plan | str] = {}
        self._lock = ForkSafeLock()

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        return self.shared_receipt(batch, 1)

    def shared_receipt(self, batch: int | None, directions: int) -> Receipt:
        """See `DirectionKernel.shared_receipt`."""
        device, rows = self.backend.device, 1 if batch is None else batch
        one_launch, stepwise = "all steps in one launch", "a product and a kernel a step"
        if self.backend.graphs:
            stepwise = f"{stepwise}, as a CUDA graph from the second call on"
        paths, reasons, missed = [], [], []
        for mode, side in _PASSES:
            wanted, reason = self._decide(device, mode, rows)
            chosen: Plan | str = reason
            if wanted:
                with device.active():
                    chosen = self.plan(self.programs(device), _KERNELS[side], rows, directions, mode=mode)
            paths.append(one_launch if isinstance(chosen, Plan) else stepwise)
            reasons.append(_format_plan(side, chosen) if isinstance(chosen, Plan) else chosen)
            missed += [chosen] if self.backend.persistent and isinstance(chosen, str) else []
            reasons += [reason] if wanted and self.backend.persistent is None else []
        if set(paths) == {stepwise}:
            reasons.insert(0, self._stepwise_reason())
        elif set(paths) == {one_launch}:
            reasons.append("jvp step by step")
        return Receipt(
            self.backend.name,
            device.name,
            self.precision.name,
            _format_paths(*paths),
            "; ".join(dict.fromkeys(reasons)),
            missed[0] if missed else None,
        )

    def _stepwise_reason(self) -> str:
        """Return what a step is, and with stored weights how they are read."""
        form = self.precision.weights
        steps = "W x is one product for all steps, a step a product{} and a kernel made for this LSTM"
        if form == SAME:
            return steps.format(" of cuBLAS")
        rows, columns = self.config.parameter_shapes["weight_h"]
        size = FORMATS[form] * rows * columns + (4 * rows if has_scales(form) else 0)
        way = f"{form} weights widened when they are multiplied: a step reads {size:,} bytes of weight_h"
        return f"{steps.format('')}; {way}"

    def _decide(self, device: Device, mode: Mode, batch: int) -> tuple[bool, str]:
        """Return whether to run the persistent kernels for a batch size, and why.

        A recorded call was timed with its backward pass, so the mode ``"training"`` decides for both.
        """
        persistent = self.backend.persistent
        if self.precision.weights != SAME:
            return False, "the persistent kernels have no stored weights"
        if persistent is not None:
            return persistent, f"the persistent kernels are {'' if persistent else 'not '}asked for"
        return decide(device.model, self.precision.name, mode, batch, self.config.hidden_size)

    def plan(
        self, programs: Programs, kernel: Name, batch: int, directions: int, *, mode: Mode = "training"
    ) -> Plan | str:
        """Return the plan of a persistent kernel for a call, or the reason that it does not run.

        Parameters
        ----------
        programs
            Those of the device.
        kernel
            The pass.
        batch
            N.
        directions
            Passes that run side by side.
        mode
            ``"training"`` for a recorded call.
        """
        key = (programs.device.name, kernel, mode, batch, directions)
        if key not in self._plans:
            wanted, reason = self._decide(programs.device, mode, batch)
            self._plans[key] = plan(programs, kernel, batch, directions) if wanted else reason
        return self._plans[key]

    def programs(self, device: Device) -> Programs:
        """Return the programs of a device, compiled once."""
        with self._lock.lock:
            if device.name not in self._programs:
                graphs = Graphs() if self.backend.graphs else None
                self._programs[device.name] = Programs(device, self.config, self.precision, graphs)
            return self._programs[device.name]

    def _pack(self, parameters: Mapping[str, Array | StoredMatrix]) -> Weights:
        return pack([self.programs_for(parameters)], [parameters])[0][0]

    def programs_for(self, parameters: Mapping[str, Array | StoredMatrix]) -> Programs:
        """See `DirectionKernel.programs_for`."""
        first = next(iter(parameters.values()))
        return self.programs(self.backend.device.home(first.values if isinstance(first, StoredMatrix) else first))

    def _forward(  # noqa: PLR0913  (the contract of a kernel)
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
        forward_pass = self.forward_pass(weights, Inputs(x, state, lengths, masks), record=record, out=out)
        with weights.programs.device.active():
            return run_passes([forward_pass])[0]

    def forward_pass(
        self, weights: Weights, inputs: Inputs, *, record: bool, out: Array | None, directions: int = 1
    ) -> Pass[tuple[Array, State, Saved | None]]:
        """See `DirectionKernel.forward_pass`."""
        programs, x = weights.programs, inputs.x
        device = programs.device
        self._check_device(device, x=x, out=out)
        mode: Mode = "training" if record else "inference"
        chosen = self.plan(programs, "forward_persistent", x.shape[1], directions, mode=mode)
        y, last, saved = yield from forward(weights, inputs, chosen, record=record, out=out)
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
            return run_passes([self.backward_pass(saved, dy, dstate)])[0]

    def backward_pass(
        self, saved: Saved, dy: Array | None, dstate: State | None, *, directions: int = 1
    ) -> Pass[Gradients]:
        """See `DirectionKernel.backward_pass`."""
        programs = saved.weights.programs
        device = programs.device
        chosen = self.plan(programs, "backward_persistent", saved.x.shape[1], directions)
        gradients = yield from backward(saved, dy, dstate, chosen)
        if not saved.to_host:
            return gradients
        gradients = Gradients(
            device.host(gradients.x),
            State(*map(device.host, gradients.state)),
            {name: device.host(array) for name, array in gradients.parameters.items()},
        )
        device.check()
        return gradients

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        device, inputs = weights.programs.device, Inputs(x, state, lengths, masks)
        self._check_device(device, x=x)
        with device.active():
            chosen = self.plan(weights.programs, "forward_persistent", x.shape[1], 1)
            ((y, last, saved),) = run_passes([forward(weights, inputs, chosen, record=True, out=None)])
            if saved is None:
                raise RuntimeError("a recorded call returned no tape")
            primal, tangent = Forward(y, last), jvp(saved, tangents)
            if saved.to_host:
                primal, tangent = (
                    Forward(device.host(result.y), State(*map(device.host, result.state)))
                    for result in (primal, tangent)
                )
                device.check()
            return primal, tangent

    def _check_device(self, device: Device, **arrays: Array | None) -> None:
        """Raise an error if an array is on another GPU than the weights."""
        for name, array in arrays.items():
            home = device if array is None else device.home(array)
            if home is not device:
                where = f"{device.name}, where the weights are"
                raise ValueError(
                    f"{name}: expected an array on {where}; got one on {home.name}: copy {name} to {device.name}, or "
                    f"load the weights from arrays on {home.name}"
                )


class CupyBackend(Backend):
    """Every switch on an NVIDIA GPU. Calls run on the device of their weights.

    Parameters
    ----------
    device
        The device to which arrays of the host are copied.
    persistent
        Whether forward and backward run the persistent kernels if these can run the call. With None the measurements
        in `tuning` decide.
    graphs
        Whether loops over time that go step by step run as CUDA graphs. Whether that is faster was not measured yet.
    """

    name = "cupy"

    def __init__(self, device: Device, *, persistent: bool | None = None, graphs: bool = False) -> None:
        self.device, self.persistent, self.graphs = device, persistent, flag("graphs", graphs)
        self._updates = CupyUpdates(device)

    def capabilities(self) -> Capabilities:
        """Return all features but int8a16, and all derivatives, in every precision that CuPy has here."""
        integers = f"weights:{INT8A16}"
        precisions, reasons = set(PRECISIONS), {integers: "products are those of float32; int8 stores the same bytes"}
        if (reason := _no_bfloat16()) is not None:
            precisions.remove("bfloat16")
            reasons["bfloat16"] = reason
        features = FEATURES | WEIGHT_FEATURES - {integers}
        return Capabilities(self.device.name, frozenset(precisions), features, reasons=reasons)

    def versions(self) -> dict[str, str]:
        """Return the versions of CuPy and CUDA, and the GPU."""
        return self.device.versions()

    def to_device(self, array: Array) -> Array:
        """See `Backend.to_device`. An array of another GPU stays there."""
        device = self.device.home(array)
        with device.active():
            return device.array(array)

    def to_host(self, array: Array) -> Array:
        """See `Backend.to_host`."""
        device = self.device.home(array)
        with device.active():
            result = device.host(array)
        device.check()
        return result

    def locate(self, array: Array) -> tuple[str, Array] | None:
        """See `Backend.locate`."""
        return self.device.locate(array)

    def draw_mask(self, draw: MaskDraw, like: Array) -> Array:
        """See `Backend.draw_mask`. The GPU of `like` need not be that of the backend, nor the current one."""
        device = self.device.home(like)
        with device.active():
            return draw_mask(device, draw)

    def on_stream(self, device: int, address: int) -> AbstractContextManager[object]:
        """See `Backend.on_stream`."""
        return self.device.on_stream(device, address)

    def uploader(self) -> Uploader:
        """See `Backend.uploader`."""
        return self.device.uploader()

    def updates(self) -> CupyUpdates:
        """See `Backend.updates`. They compute in float32 and float64."""
        return self._updates

    def _compile(self, config: LSTMConfig, precision: Precision) -> CupyKernel:
        return CupyKernel(self, config, precision)

    def _compile_stack(self, stack: StackConfig, precision: Precision) -> CupyStack:
        return CupyStack(self, stack, precision)


def _no_bfloat16() -> str | None:
    """Return why CuPy makes no arrays of bfloat16 here, or None."""
    try:
        numpy_dtype("bfloat16")
    except ImportError as error:
        return str(error)
    if NumpyVersion(np.__version__) < OLDEST_NUMPY:
        return f"CuPy has bfloat16 with NumPy {OLDEST_NUMPY} or newer; this one is {np.__version__}"
    return None


def _format_paths(inference: str, forward: str, backward: str) -> str:
    """Return the paths of `_PASSES` as one text."""
    if inference == forward:
        return forward if forward == backward else f"forward {forward}, backward {backward}"
    recorded = forward if forward == backward else f"forward {forward} and backward {backward}"
    return f"inference {inference}, training {recorded}"


def _format_plan(side: str, chosen: Plan) -> str:
    """Return a plan of the pass `side` as text."""
    units, rows, directions = chosen.grid
    suffix = f", {directions} directions" if directions > 1 else ""
    return f"{side} in {chosen.blocks} blocks that keep R on chip, {units} over the units, {rows} over the rows{suffix}"
