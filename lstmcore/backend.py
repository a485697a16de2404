"""What a backend implements: `Backend` makes a `Kernel` for a configuration and a precision.

A backend writes the methods with a leading underscore (`Kernel._forward` and so on). The public ones check their
arguments once, here and for all backends alike, so that a kernel can trust what it is given and every
backend explains a mistake in the same words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias, final

from lstmcore import validation
from lstmcore.config import FEATURES, LSTMConfig, StackConfig
from lstmcore.precision import PRECISIONS, Precision, get_precision

#: An array of whatever library the backend computes with; it has at least ``shape`` and ``dtype``.
Array: TypeAlias = Any
#: Parameters as a backend wants them, made by `Kernel.pack`; opaque to everybody else.
Weights: TypeAlias = Any

DERIVATIVES: Final = frozenset({"backward", "jvp"})


class UnsupportedError(ValueError):
    """Something that the backend does not declare was asked of it; the message says what and why."""


class State(NamedTuple):
    """The state between steps: ``h`` (N, P) in the storage dtype, ``c`` (N, H) in the compute dtype."""

    h: Array
    c: Array


class Masks(NamedTuple):
    """The random masks of one layer in one direction, in the compute dtype; None is the inference behaviour.

    Attributes
    ----------
    recurrent
        (N, R), values 0 or ``1 / (1 - recurrent_dropout)``; multiplies the recurrent input at every step.
    zoneout_hidden, zoneout_cell
        (T, N, P) and (T, N, H), 1 where the old value is kept and 0 where the new one is taken. None blends the two
        by the rate.
    """

    recurrent: Array | None = None
    zoneout_hidden: Array | None = None
    zoneout_cell: Array | None = None


class StackMasks(NamedTuple):
    """The masks of a stack: one `Masks` for each of `StackConfig.configs`, and the dropout between layers.

    ``dropout[l]`` (T, N, D * P), values 0 or ``1 / (1 - dropout)``, multiplies the outputs of layer ``l`` before
    layer ``l + 1`` reads them; empty for none.
    """

    layers: tuple[Masks, ...]
    dropout: tuple[Array, ...] = ()


class Forward(NamedTuple):
    """The result of a forward pass: ``y`` (T, N, P), the final state, and the tape where one was recorded."""

    y: Array
    state: State
    tape: Any = None


class Gradients(NamedTuple):
    """Gradients of a scalar: of x, of the initial state and of every parameter, each with its shape and dtype."""

    x: Array
    state: State
    parameters: dict[str, Array]


class Tangents(NamedTuple):
    """Directions for `jvp`: of x, of the initial state, of parameters by name. What is left out is zero."""

    x: Array | None = None
    state: State | None = None
    parameters: Mapping[str, Array] | None = None


@dataclass(frozen=True, slots=True)
class Tape:
    """What `forward(record=True)` keeps for `backward`. May be used more than once; never changes."""

    owner: object
    steps: int
    batch: int
    saved: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Which path a kernel takes and why.

    Attributes
    ----------
    backend, device, precision, path
        Names. `path` is the backend's own name for the code that runs.
    reason
        Why that path.
    fallback
        None where this is the backend's best path, else why a faster one could not be taken;
        ``LSTM(..., strict=True)`` refuses to run then.
    """

    backend: str
    device: str
    precision: str
    path: str
    reason: str
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend declares. What is declared is tested; what is not is refused, with the reason.

    Attributes
    ----------
    device
        ``"cpu"`` where the backend computes on NumPy arrays in place, else the name of its device.
    precisions
        Names from `PRECISIONS`.
    features
        Names from `config.FEATURES`.
    derivatives
        Names from `DERIVATIVES`.
    reasons
        Precision, feature or derivative -> why it is not there.
    """

    device: str
    precisions: frozenset[str]
    features: frozenset[str]
    derivatives: frozenset[str] = DERIVATIVES
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("precisions", frozenset(PRECISIONS)),
            ("features", FEATURES),
            ("derivatives", DERIVATIVES),
        ):
            value = frozenset(getattr(self, name))
            if unknown := sorted(value - allowed):
                raise ValueError(f"{name}: unknown {', '.join(unknown)}; known are {', '.join(sorted(allowed))}")
            object.__setattr__(self, name, value)

    def missing(self, what: str) -> str:
        """A sentence's end that says why `what` is not there."""
        return f"{what}: {self.reasons.get(what, 'not implemented')}"

    def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
        """Why `config` in `precision` cannot run, or None where it can."""
        wanted = [name for name in (precision.name,) if name not in self.precisions]
        wanted += sorted(config.features - self.features)
        return "; ".join(self.missing(name) for name in wanted) or None


class Backend(ABC):
    """Makes kernels. One object per process and name; cheap to make."""

    #: The name under which the backend is registered.
    name: str

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this backend can do on this machine."""

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that it computes with beside NumPy, for reports."""
        return {}

    def to_device(self, array: Array) -> Array:
        """`array` as an array of this backend, without a copy where it is one already."""
        return array

    def to_host(self, array: Array) -> Array:
        """`array` as a NumPy array, without a copy where it is one already."""
        return array

    def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
        """Why `config` in `precision` is refused, or None. Override it to refuse combinations of features."""
        return self.capabilities().refusal(config, precision)

    @final
    def compile(self, config: LSTMConfig, precision: Precision | str) -> Kernel:
        """The kernel of one layer in one direction.

        Raises
        ------
        UnsupportedError
            The backend does not declare `config` in `precision`.
        """
        precision = get_precision(precision)
        self._refuse((config,), precision)
        return self._compile(config, precision)

    @final
    def compile_stack(self, stack: StackConfig, precision: Precision | str) -> StackKernel:
        """The kernel of all layers and directions. Raises as `compile`."""
        precision = get_precision(precision)
        self._refuse(stack.configs, precision)
        return self._compile_stack(stack, precision)

    def _refuse(self, configs: tuple[LSTMConfig, ...], precision: Precision) -> None:
        for config in configs:
            if reason := self.refusal(config, precision):
                raise UnsupportedError(f"backend {self.name!r} refuses this LSTM: {reason}")

    @abstractmethod
    def _compile(self, config: LSTMConfig, precision: Precision) -> Kernel:
        """Make the kernel; `config` and `precision` are declared."""

    def _compile_stack(self, stack: StackConfig, precision: Precision) -> StackKernel:
        """Make the stack's kernel. The default composes the kernels of `_compile`."""
        from lstmcore.stack import ComposedStack  # stack.py is built on this module

        return ComposedStack(self, stack, precision)


class Kernel(ABC):
    """One layer in one direction in one precision. Holds no weights and no state; thread-safe.

    Inputs are never written to; read-only and non-contiguous ones work. Outputs are fresh, or the `out` given.
    """

    def __init__(self, backend: Backend, config: LSTMConfig, precision: Precision) -> None:
        self.backend = backend
        self.config = config
        self.precision = precision
        self.declared = backend.capabilities()

    @final
    def pack(self, parameters: Mapping[str, Array]) -> Weights:
        """Bring parameters (``LSTMConfig.parameter_shapes``, storage dtype) into the kernel's own form.

        Later changes of the arrays in `parameters` do not reach the result.
        """
        validation.check_parameters("parameters", parameters, self.config.parameter_shapes, self.precision)
        return self._pack(parameters)

    @final
    def forward(
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
            Initial state, zeros where None.
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
        call = validation.check_call(self.config, self.precision, x, state, lengths, masks)
        validation.check_out(out, (*x.shape[:2], self.config.output_size), self.precision, (x, state, masks))
        y, last, saved = self._forward(weights, x, state, call, masks, record=record, out=out)
        return Forward(y, last, Tape(self, x.shape[0], x.shape[1], saved) if record else None)

    @final
    def backward(self, weights: Weights, tape: Tape, dy: Array | None = None, dstate: State | None = None) -> Gradients:
        """Gradients of ``sum(dy * y) + sum(dstate * final state)``.

        Parameters
        ----------
        weights
            The ones that the tape was recorded with.
        tape
            From `forward(record=True)` of this kernel.
        dy
            (T, N, P), storage dtype; zeros where None. What it holds past a row's end is ignored.
        dstate
            Like the state; zeros where None.
        """
        self._declared("backward", True)
        if not isinstance(tape, Tape) or tape.owner is not self:
            raise ValueError("tape: expected one that this kernel's forward(record=True) returned; got another")
        shape = (tape.steps, tape.batch)
        if dy is not None:
            validation.check_array("dy", dy, (*shape, self.config.output_size), self.precision.storage)
        validation.check_state("dstate", dstate, self.config, tape.batch, self.precision)
        return self._backward(weights, tape.saved, dy, dstate)

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
        """The forward pass and its directional derivative along `tangents` (each like what it is a tangent of)."""
        self._declared("jvp", True)
        self._declared("lengths", lengths is not None)
        self._declared("masks", masks is not None)
        call = validation.check_call(self.config, self.precision, x, state, lengths, masks)
        validation.check_tangents(tangents, x.shape, self.config, self.precision)
        return self._jvp(weights, x, state, tangents, call, masks)

    def _declared(self, what: str, used: bool) -> None:
        if used and what not in self.declared.features and what not in self.declared.derivatives:
            raise UnsupportedError(f"backend {self.backend.name!r} has no {self.declared.missing(what)}")

    @abstractmethod
    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """Which path runs for a call of that many steps and rows (None: for most), and why."""

    @abstractmethod
    def _pack(self, parameters: Mapping[str, Array]) -> Weights:
        """See `pack`. Copy what must not change under the result."""

    @abstractmethod
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


class StackKernel(ABC):
    """All layers and directions, and the dropout between layers. What `lstmcore.LSTM` talks to.

    `LSTM` checks the arguments, so these methods trust them. Arrays are time-major; states are stacked to
    ``(L * D, N, ...)`` in the order of `StackConfig.configs`; parameter names carry their suffix.
    """

    def __init__(self, backend: Backend, stack: StackConfig, precision: Precision) -> None:
        self.backend = backend
        self.stack = stack
        self.precision = precision

    @abstractmethod
    def pack(self, parameters: Mapping[str, Array]) -> Weights:
        """Bring all parameters into the kernel's own form."""

    @abstractmethod
    def forward(
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
        """As `Kernel.forward`: y is (T, N, D * P), the tape is opaque."""

    @abstractmethod
    def backward(self, weights: Weights, tape: Any, dy: Array | None, dstate: State | None) -> Gradients:
        """As `Kernel.backward`."""

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
        """As `Kernel.jvp`."""

    @abstractmethod
    def receipts(self, steps: int | None = None, batch: int | None = None) -> tuple[Receipt, ...]:
        """One receipt for each of `StackConfig.configs`."""
