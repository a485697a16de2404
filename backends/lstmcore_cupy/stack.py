"""The stack: the loops over time of a layer's two directions share their launches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lstmcore.backend import Forward, Gradients, Kernel, Receipt, StackMasks, State, Tangents
from lstmcore.stack import ComposedStack, StackTape
from lstmcore.stored_weights import StoredMatrix
from lstmcore_cupy.device import Array
from lstmcore_cupy.forward import Inputs
from lstmcore_cupy.launch import Programs
from lstmcore_cupy.packing import Weights, pack
from lstmcore_cupy.persistent import Pass, run_passes
from lstmcore_cupy.tape import Saved


class DirectionKernel(Kernel):
    """A kernel whose loop over time can share a launch with that of the other direction."""

    @abstractmethod
    def programs_for(self, parameters: Mapping[str, Array | StoredMatrix]) -> Programs:
        """Return the programs of the device that holds the parameters; for those of the host, the backend's device."""

    @abstractmethod
    def forward_pass(
        self, weights: Weights, inputs: Inputs, *, record: bool, out: Array | None, directions: int = 1
    ) -> Pass[tuple[Array, State, Saved | None]]:
        """Return `_forward` as a pass, to be run while the device of the weights is active.

        Parameters
        ----------
        weights, inputs, record, out
            See `Kernel._forward`.
        directions
            Passes that run side by side.
        """

    @abstractmethod
    def backward_pass(
        self, saved: Saved, dy: Array | None, dstate: State | None, *, directions: int = 1
    ) -> Pass[Gradients]:
        """Return `_backward` as a pass, to be run while the device of the weights is active.

        Parameters
        ----------
        saved, dy, dstate
            See `Kernel._backward`.
        directions
            Passes that run side by side.
        """

    @abstractmethod
    def shared_receipt(self, batch: int | None, directions: int) -> Receipt:
        """Return the receipt of a direction that runs side by side with others, `directions` in all."""


class CupyStack(ComposedStack):
    """Kernels of all layers and directions.

    Arrays between the layers, such as halves of y and masks, are made on the device of the weights as well.
    """

    kernels: tuple[DirectionKernel, ...]
    copies_states = False  # the kernels' are nobody else's

    def pack(self, parameters: Mapping[str, Array]) -> Any:
        """See `StackKernel.pack`. All parameters are one launch."""
        return self._pack(parameters, copies=False)[0]

    def pack_copies(self, parameters: Mapping[str, Array]) -> tuple[Any, dict[str, Array]]:
        """See `StackKernel.pack_copies`. The launch that packs makes the copies too."""
        weights, copies = self._pack(parameters, copies=True)
        names = (full for names in self._names for _, full in names)
        return weights, dict(zip(names, copies, strict=True))

    def _pack(self, parameters: Mapping[str, Array], *, copies: bool) -> tuple[Any, list[Array]]:
        groups = [{name: parameters[full] for name, full in names} for names in self._names]
        programs = [kernel.programs_for(group) for kernel, group in zip(self.kernels, groups, strict=True)]
        return pack(programs, groups, copies=copies)

    def forward(  # noqa: PLR0913  (the contract of a stack)
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
        """See `StackKernel.forward`."""
        device = weights[0].programs.device
        with device.active():
            ends = None if lengths is None else device.array(lengths)  # one copy for all layers
            return super().forward(weights, x, state, lengths=ends, masks=masks, record=record, out=out)

    def backward(self, weights: Any, tape: StackTape, dy: Array | None, dstate: State | None) -> Gradients:
        """See `StackKernel.backward`."""
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
        """See `StackKernel.jvp`."""
        with weights[0].programs.device.active():
            return super().jvp(weights, x, state, tangents, lengths=lengths, masks=masks)

    def _forward_layer(
        self, first: int, calls: Sequence[tuple[Any, ...]], *, record: bool
    ) -> Sequence[tuple[Array, State, Any]]:
        passes = [
            kernel.forward_pass(weights, Inputs(*inputs), record=record, out=out, directions=len(calls))
            for kernel, (weights, *inputs, out) in zip(self.kernels[first : first + len(calls)], calls, strict=True)
        ]
        return run_passes(passes)

    def _backward_layer(self, first: int, calls: Sequence[tuple[Any, ...]]) -> Sequence[Gradients]:
        passes = [
            kernel.backward_pass(*args, directions=len(calls))
            for kernel, (_, *args) in zip(self.kernels[first : first + len(calls)], calls, strict=True)
        ]
        return run_passes(passes)

    def receipts(self, steps: int | None = None, batch: int | None = None) -> tuple[Receipt, ...]:
        """See `StackKernel.receipts`."""
        return tuple(kernel.shared_receipt(batch, self.stack.num_directions) for kernel in self.kernels)
