"""Kernels: what a backend implements for one layer in one direction, and for a stack of them.

A backend writes the methods with a leading underscore (`Kernel._forward` and so on). The public ones check their
arguments once, here and for all backends alike. So a kernel can trust what it gets, and every backend explains a
mistake in the same words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any, ClassVar, final

import numpy as np

from lstmcore import validation
from lstmcore.arrays import device_of, namespace_of
from lstmcore.config import Activation, LSTMConfig, StackConfig
from lstmcore.containers import Array, Forward, Gradients, Masks, StackMasks, State, Tangents, Tape, Weights
from lstmcore.declaration import Capabilities, Receipt, UnsupportedError, require_trainable
from lstmcore.masks import MaskDraw, draw_on_host
from lstmcore.precision import Precision, get_precision
from lstmcore.stored_weights import SAME, StoredMatrix, read_parameters, store_parameters
from lstmcore.updates import Updates
from lstmcore.uploads import Uploader


class LayerBackend(ABC):
    """The part of `lstmcore.backend.Backend` that a single layer needs."""

    #: The name under which the backend is registered.
    name: str

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Return what this backend can do on this machine."""

    def versions(self) -> dict[str, str]:
        """Return versions of the libraries other than NumPy that it computes with, for reports."""
        return {}

    def to_device(self, array: Array) -> Array:
        """Return `array` as an array of this backend, without a copy if it is one already."""
        return array

    def to_host(self, array: Array) -> Array:
        """Return `array` as a NumPy array, without a copy if it is one already."""
        return array

    def locate(self, array: Array) -> tuple[str, Array] | None:
        """Return the device that holds `array`, and it as an array of this backend, without a copy.

        None if kernels do not compute with it where it is, as with arrays of the host. A backend whose kernels take
        arrays of a device overrides this, and `lstmcore.LSTM` takes them too.
        """
        return None

    def draw_mask(self, draw: MaskDraw, like: Array) -> Array:
        """Return a random mask where `like` is, an array that `locate` returned, with the bits of `draw_on_host`.

        The default draws it on the host and copies it. A backend overrides this to draw on its device.
        """
        return self.to_device(draw_on_host(draw))

    def on_stream(self, device: int, address: int) -> AbstractContextManager[object]:
        """Return a context in which calls on a device run on a stream of another library, given by its address.

        The default is for a backend without streams.
        """
        return nullcontext()

    def uploader(self) -> Uploader:
        """Return what copies the batches of a training. The default copies by `to_device`, when a batch is told."""
        return Uploader(self.to_device)

    def updates(self) -> Updates | None:
        """Return operations of training on arrays that `locate` knows, each in a kernel or two.

        None, the default, declares that there are none: optimizers and clipping compute by operations of the arrays'
        library then, and `Optimizer.explain` says so.
        """
        return None

    def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
        """Return why `config` in `precision` is refused, or None. Override it to refuse combinations of features."""
        return self.capabilities().refusal(config, precision)

    @final
    def compile(self, config: LSTMConfig, precision: Precision | str) -> Kernel:
        """Return the kernel of one layer in one direction.

        Raises
        ------
        UnsupportedError
            The backend does not declare `config` in `precision`.
        ValueError
            A number of `config` overflows the dtype of the arithmetic.
        """
        precision = get_precision(precision)
        self._refuse((config,), precision)
        return self._compile(config, precision)

    def _refuse(self, configs: tuple[LSTMConfig, ...], precision: Precision) -> None:
        for config in configs:
            if reason := self.refusal(config, precision):
                raise UnsupportedError(f"backend {self.name!r} refuses this LSTM: {reason}")
            _check_numbers(config, precision)

    @abstractmethod
    def _compile(self, config: LSTMConfig, precision: Precision) -> Kernel:
        """Make the kernel; `config` and `precision` are declared."""


def _check_numbers(config: LSTMConfig, precision: Precision) -> None:
    """Raise ValueError if a number of `config` overflows the dtype of the arithmetic: 0 times it would be NaN."""
    largest = float(np.finfo(precision.compute).max)
    for field in fields(config):
        value = getattr(config, field.name)
        numbers = {field.name: value}
        if isinstance(value, Activation):
            numbers = {f"{field.name} alpha": value.alpha, f"{field.name} beta": value.beta}
        for name, number in numbers.items():
            if isinstance(number, float) and abs(number) > largest:
                raise ValueError(
                    f"{name}: expected a magnitude of at most {largest:.4g}, the largest number of {precision.compute} "
                    f"(the arithmetic of {precision.name}); got {number!r}: take a smaller one, or dtype='float64'"
                )


class Kernel(ABC):
    """One layer in one direction in one precision. Holds no weights and no state; thread-safe.

    Inputs are never written to; read-only and non-contiguous ones work. Outputs are fresh, or the `out` given.

    Attributes
    ----------
    takes_stored
        Whether `_pack` gets each matrix as a `StoredMatrix` if `Precision.weights` is a format; else it gets what
        `StoredMatrix.read` returns.

    Examples
    --------
    >>> from lstmcore.config import LSTMConfig
    >>> from lstmcore.registry import get_backend
    >>> kernel = get_backend("numpy").compile(LSTMConfig(input_size=3, hidden_size=5, bias=False), "float32")
    >>> weights = kernel.pack({"weight_x": np.ones((20, 3), np.float32), "weight_h": np.ones((20, 5), np.float32)})
    >>> y, state, tape = kernel.forward(weights, np.ones((7, 2, 3), np.float32), record=True)
    >>> kernel.backward(weights, tape, np.ones_like(y)).parameters["weight_x"].shape
    (20, 3)
    """

    takes_stored: ClassVar[bool] = False

    def __init__(self, backend: LayerBackend, config: LSTMConfig, precision: Precision) -> None:
        self.backend = backend
        self.config = config
        self.precision = precision
        self.declared = backend.capabilities()

    @final
    def pack(self, parameters: Mapping[str, Array]) -> Weights:
        """Return parameters (``LSTMConfig.parameter_shapes``, storage dtype) in the kernel's own form.

        Matrices are rounded into the format of `Precision.weights` first, on the host. Later changes of the arrays in
        `parameters` do not reach the result.
        """
        validation.check_parameters("parameters", parameters, self.config.parameter_shapes, self.precision)
        if self.precision.weights != SAME:
            parameters = {name: self.backend.to_host(array) for name, array in parameters.items()}
        return self.pack_stored(store_parameters(parameters, self.precision.weights))

    @final
    def pack_stored(self, parameters: Mapping[str, Array | StoredMatrix]) -> Weights:
        """Return parameters whose matrices are in the format of `Precision.weights` in the kernel's own form."""
        return self._pack(parameters if self.takes_stored else read_parameters(parameters, self.precision.storage))

    @final
    def forward(  # noqa: PLR0913  (the arguments of the equations)
        self,
        weights: Weights,
        x: Array,
        state: State | None = None,
        *,
        lengths: Any = None,
        masks: Masks | None = None,
        record: bool = False,
        out: Array | None = None,
    ) -> Forward:
        """Run all steps.

        Parameters
        ----------
        weights
            From `pack`.
        x
            (T, N, I), storage dtype.
        state
            Initial state, zeros if None. A plain tuple or list of h and c is a state too, here and in all other calls.
        lengths
            (N,) whole numbers from 0 to T, or None for T everywhere. Past a row's end its state holds and y is 0.
        masks
            The random masks, or None for inference.
        record
            Keep a tape for `backward`.
        out
            (T, N, P), storage dtype: where y is written; must not overlap an input.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong type, dtype, shape or range.
        UnsupportedError
            Lengths, masks or a tape that the backend does not declare.
        """
        self._declared("lengths", lengths is not None)
        self._declared("masks", masks is not None)
        self._declared("backward", record)
        if record:
            require_trainable(self.precision)
        call = validation.check_call(self.config, self.precision, x, state, lengths, masks)
        validation.check_out(out, (*x.shape[:2], self.config.output_size), self.precision, (x, state, masks))
        y, last, saved = self._forward(weights, x, _as_state(state), call, masks, record=record, out=out)
        return Forward(y, last, Tape(self, x.shape[0], x.shape[1], saved) if record else None)

    @final
    def backward(self, weights: Weights, tape: Tape, dy: Array | None = None, dstate: State | None = None) -> Gradients:
        """Return the gradients of ``sum(dy * y) + sum(dstate * final state)``.

        Parameters
        ----------
        weights
            The ones that the tape was recorded with.
        tape
            From `forward(record=True)` of this kernel.
        dy
            (T, N, P), storage dtype; zeros if None. What it holds past a row's end is ignored.
        dstate
            Like the state; zeros if None.
        """
        self._declared("backward", True)
        if not isinstance(tape, Tape) or tape.owner is not self:
            raise ValueError("tape: expected one that this kernel's forward(record=True) returned; got another")
        shape = (tape.steps, tape.batch)
        if dy is not None:
            validation.check_array("dy", dy, (*shape, self.config.output_size), self.precision.storage)
        validation.check_state("dstate", dstate, self.config, tape.batch, self.precision)
        return self._backward(weights, tape.saved, dy, _as_state(dstate))

    @final
    def jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        *,
        lengths: Any = None,
        masks: Masks | None = None,
    ) -> tuple[Forward, Forward]:
        """Return the forward pass and its derivative along `tangents`.

        Parameters
        ----------
        weights, x, state, lengths, masks
            As for `forward`.
        tangents
            One for each array that moves; it has shape and dtype of its array. What is left out is zero.
        """
        self._declared("jvp", True)
        require_trainable(self.precision)
        self._declared("lengths", lengths is not None)
        self._declared("masks", masks is not None)
        call = validation.check_call(self.config, self.precision, x, state, lengths, masks)
        validation.check_tangents(tangents, x.shape, self.config, self.precision)
        if tangents.state is not None:
            tangents = tangents._replace(state=_as_state(tangents.state))
        return self._jvp(weights, x, _as_state(state), tangents, call, masks)

    def _declared(self, what: str, used: bool) -> None:
        if used and what not in self.declared.features and what not in self.declared.derivatives:
            raise UnsupportedError(f"backend {self.backend.name!r} has no {self.declared.missing(what)}")

    @abstractmethod
    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """Return which path a call of that many steps and rows takes (None: most calls), and why."""

    @abstractmethod
    def _pack(self, parameters: Mapping[str, Array]) -> Weights:
        """See `pack`. Copy what must not change under the result."""

    @abstractmethod
    def _forward(  # noqa: PLR0913  (the arguments of the equations)
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Any]:
        """See `forward`. `lengths` is an int64 NumPy array with an entry below T, or None.

        Returns y, the final state and what `_backward` needs (None unless `record`).
        """

    def _backward(self, weights: Weights, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        """See `backward`; declared as ``"backward"``."""
        raise UnsupportedError(f"backend {self.backend.name!r} declares a backward that it does not implement")

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        """See `jvp`; declared as ``"jvp"``."""
        raise UnsupportedError(f"backend {self.backend.name!r} declares a jvp that it does not implement")


def _as_state(pair: Any) -> State | None:
    """Return a pair that was checked, which may be a plain tuple or a list, as a `State`."""
    return pair if pair is None or type(pair) is State else State(*pair)


class StackKernel(ABC):
    """All layers and directions, and the dropout between layers; `lstmcore.LSTM` computes with it.

    `LSTM` checks the arguments, so these methods trust them. Arrays are time-major; states are stacked to
    ``(L * D, N, ...)`` in the order of `StackConfig.configs`; parameter names carry their suffix.

    Examples
    --------
    >>> from lstmcore.config import LSTMConfig, StackConfig
    >>> from lstmcore.registry import get_backend
    >>> stack = StackConfig.make(LSTMConfig(input_size=3, hidden_size=5), num_layers=2)
    >>> kernel = get_backend("numpy").compile_stack(stack, "float32")
    >>> weights = kernel.pack({name: np.ones(shape, np.float32) for name, shape in stack.parameter_shapes.items()})
    >>> kernel.forward(weights, np.ones((7, 2, 3), np.float32), None).y.shape
    (7, 2, 5)
    """

    def __init__(self, backend: LayerBackend, stack: StackConfig, precision: Precision) -> None:
        self.backend = backend
        self.stack = stack
        self.precision = precision

    @abstractmethod
    def pack(self, parameters: Mapping[str, Array]) -> Weights:
        """Return all parameters in the kernel's own form; in a format, matrices are `StoredMatrix` objects."""

    def pack_copies(self, parameters: Mapping[str, Array]) -> tuple[Weights, dict[str, Array]]:
        """Return what `pack` returns for arrays of a device, and a copy of each array.

        A backend may make all copies together, as parts of its weights: nobody writes to them.
        """
        xp, device = namespace_of(**parameters), device_of(next(iter(parameters.values())))
        copies = {name: xp.asarray(array, copy=True, device=device) for name, array in parameters.items()}
        return self.pack(copies), copies

    @abstractmethod
    def forward(  # noqa: PLR0913  (the arguments of the equations)
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
        record: bool = False,
        out: Array | None = None,
    ) -> Forward:
        """Run all steps as `Kernel.forward` does: y is (T, N, D * P), the tape is opaque."""

    @abstractmethod
    def backward(self, weights: Weights, tape: Any, dy: Array | None, dstate: State | None) -> Gradients:
        """Return gradients as `Kernel.backward` does."""

    @abstractmethod
    def jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
    ) -> tuple[Forward, Forward]:
        """Return the forward pass and its derivative as `Kernel.jvp` does."""

    @abstractmethod
    def receipts(self, steps: int | None = None, batch: int | None = None) -> tuple[Receipt, ...]:
        """Return one receipt for each of `StackConfig.configs`."""
