"""`LSTM`: layers and directions, computed by a backend on arrays of NumPy or of the backend's device."""
# long file: one class with the whole public interface; almost half of its lines are docstrings

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore import registry, validation
from lstmcore.arrays import device_of, namespace_of, to_host
from lstmcore.backend import (
    Backend,
    Gradients,
    StackKernel,
    StackMasks,
    State,
    Tangents,
    UnsupportedError,
    Weights,
)
from lstmcore.call_layout import CallLayout, StateLike
from lstmcore.config import SHARED_SWITCHES, SIGMOID, TANH, Activation, Coupling, LSTMConfig, Recurrence, StackConfig
from lstmcore.declaration import Explanation, require_trainable
from lstmcore.dialects.names import reader_of
from lstmcore.dialects.torch import read_torch, to_state_dict
from lstmcore.initialization import initial_parameters
from lstmcore.interchange import Interchange
from lstmcore.layer_file import LSTM_FORMAT, LayerFile
from lstmcore.locks import ForkSafeLock
from lstmcore.masks import stack_masks
from lstmcore.notices import notify
from lstmcore.placement import drawing, place_parameters
from lstmcore.precision import Precision, get_precision
from lstmcore.scalars import flag, unsigned
from lstmcore.stack import HostStack
from lstmcore.stored_weights import SAME, StoredMatrix, read_parameters, store_parameters

#: No machine holds more, and NumPy's message for larger arrays names no argument.
_MOST_PARAMETERS: Final = 2**48

#: The end of the notice about dropout with one layer.
_IDLE_DROPOUT: Final = (
    "does nothing with num_layers=1, since it acts between layers: use more layers, recurrent_dropout or zoneout"
)

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tape:
    """A recorded call, for `LSTM.backward`. May be used more than once, also after `LSTM.load_parameters`.

    Attributes
    ----------
    masks
        The random masks of the call, None if no rate is above 0. ``lstm.record(..., masks=tape.masks)`` runs it
        again.
    lengths
        The lengths of the call, None if every row had all steps.
    """

    masks: StackMasks | None = field(repr=False)
    lengths: Array | None = field(repr=False)
    _owner: LSTM = field(repr=False)
    _weights: Weights = field(repr=False)
    _saved: Any = field(repr=False)
    _call: CallLayout = field(repr=False)


class _Options(NamedTuple):
    """Arguments that the constructors of `LSTM` share; their meaning is in its docstring."""

    batch_first: bool
    dtype: Any
    backend: str | Backend | None
    strict: bool
    seed: int | None
    init: str
    forget_bias: float | None
    weights: str | None


class LSTM(Interchange):
    """A stack of LSTM layers in one or both directions. SPEC.md gives the equations.

    Shapes use ``T`` steps, ``N`` rows, ``I = input_size``, ``H = hidden_size``, ``P = proj_size or H``,
    ``L = num_layers``, ``D`` directions. x is (T, N, I), or (N, T, I) with `batch_first`, or (T, I) for one sequence
    without a batch axis (then y, the states and `out` have none either). A state is a pair of h (L * D, N, P) and
    c (L * D, N, H); entry ``D * layer + direction``, as in PyTorch.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size
        As in ``torch.nn.LSTM``; `dropout` acts between layers, while recording, so with one layer it is a warning.
    peephole ... recurrent_dropout
        The switches of `LSTMConfig`, with its names; zoneout and recurrent dropout draw masks while recording.
    dtype
        Name of a precision (``"float64"``, ``"float32"``, ``"tf32"``, ``"bfloat16"``, ``"float16"``) or a NumPy dtype.
        x, y, h and the parameters have its storage dtype; c has its compute dtype, which is float32 if storage
        is narrower.
    backend
        Name of a backend, or a `Backend`. None takes ``LSTMCORE_BACKEND`` from the environment, else ``"auto"``.
    strict
        Raise if the backend would not take its fastest path, or if ``"auto"`` would pass over a faster
        backend that can run on this machine or is broken.
    seed
        Whole number from 0 to 2**64 - 1. The same seed gives the same initial parameters and the same masks, on
        every backend. None draws one from the operating system; `LSTM.seed` holds it.
    init, forget_bias
        Initial parameters; see `initial_parameters`.
    weights
        The format in which the weight matrices are stored: ``"same"`` (as they are), ``"bfloat16"``, ``"float16"``,
        ``"int8"`` with a scale for each row, or ``"int8a16"``, which also multiplies in integers: activations are
        rounded to int16. With another format than ``"same"``, parameters are rounded into it when they are loaded, and
        the LSTM has no `record` and no `jvp`. None takes that of `dtype`: ``"same"``, unless it is ``"int8a16"`` or a
        `Precision` with a format.

    Attributes
    ----------
    stack : StackConfig
    precision : Precision
    backend : Backend
    batch_first, strict : bool
    seed : int

    Raises
    ------
    ValueError, TypeError
        An argument outside its domain; `UnsupportedError` if the backend does not declare this LSTM.
    lstmcore.registry.UnavailableError, lstmcore.registry.PluginError
        The backend that was named cannot run here, or is broken.

    Notes
    -----
    Streaming: hand the state on, ``y, state = lstm(x[:, None], state)`` or with any number of steps a call. It is
    the same computation as one call for all steps; parameters are packed when they are loaded, never in a call.

    Calls may run in several threads at once; `load_parameters` takes effect for the calls that start after it.

    Arrays: a call takes arrays of NumPy and returns arrays of NumPy. A backend of a device takes arrays of that device
    too, as the backend ``"cupy"`` takes CuPy's and those that DLPack hands over. All results are the backend's arrays
    then, nothing is copied to the host, and the host does not wait. All arrays of a call are in one place; lengths are
    always on the host.

    `copy.deepcopy` and `pickle` (so `multiprocessing` too) give an LSTM with the same parameters, seed and step, whose
    backend is found again by its name.

    Examples
    --------
    >>> lstm = LSTM(3, 5, bidirectional=True, seed=0)
    >>> x = np.zeros((7, 2, 3), np.float32)
    >>> y, (h_n, c_n) = lstm(x)
    >>> y.shape, h_n.shape
    ((7, 2, 10), (2, 2, 5))
    >>> y, state, tape = lstm.record(x)
    >>> lstm.backward(tape, np.ones_like(y)).parameters["bias_l0"].shape
    (20,)
    """

    stack: StackConfig
    precision: Precision
    backend: Backend
    batch_first: bool
    strict: bool
    seed: int
    file_format = LSTM_FORMAT

    def __init__(  # noqa: PLR0913  (a public constructor)
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        peephole: bool = False,
        coupling: Coupling = "none",
        gate_clip: float | None = None,
        cell_clip: float | None = None,
        proj_clip: float | None = None,
        gate_activation: Activation | str = SIGMOID,
        cell_activation: Activation | str = TANH,
        hidden_activation: Activation | str = TANH,
        recurrence: Recurrence = "hidden",
        layer_norm: bool = False,
        layer_norm_eps: float = 1e-5,
        zoneout_hidden: float = 0.0,
        zoneout_cell: float = 0.0,
        recurrent_dropout: float = 0.0,
        dtype: str | npt.DTypeLike | Precision = "float32",
        backend: str | Backend | None = None,
        strict: bool = False,
        seed: int | None = None,
        init: str = "uniform",
        forget_bias: float | None = None,
        weights: str | None = None,
    ) -> None:
        arguments = locals()
        switches = {name: arguments[name] for name in SHARED_SWITCHES}
        config = LSTMConfig(input_size=input_size, hidden_size=hidden_size, **switches)
        stack = StackConfig.make(config, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout)
        if stack.dropout and stack.num_layers == 1:
            notify(f"dropout: {stack.dropout} {_IDLE_DROPOUT}")
        self._build(stack, None, _Options(batch_first, dtype, backend, strict, seed, init, forget_bias, weights))

    @classmethod
    def from_config(  # noqa: PLR0913  (a public constructor)
        cls,
        stack: StackConfig,
        parameters: Mapping[str, Array | StoredMatrix] | None = None,
        *,
        batch_first: bool = False,
        dtype: str | npt.DTypeLike | Precision = "float32",
        backend: str | Backend | None = None,
        strict: bool = False,
        seed: int | None = None,
        init: str = "uniform",
        forget_bias: float | None = None,
        weights: str | None = None,
    ) -> Self:
        """Return an LSTM of a `StackConfig`, with `parameters`, or with initial ones if None.

        Parameters
        ----------
        stack
            Layers and directions.
        parameters
            Full parameter name -> array, as for `load_parameters`.
        batch_first, dtype, backend, strict, seed, init, forget_bias, weights
            As for the constructor.

        Raises
        ------
        TypeError, ValueError
            As the constructor and `load_parameters`.
        """
        if not isinstance(stack, StackConfig):
            raise TypeError(f"stack: expected a StackConfig; got {type(stack).__name__}")
        lstm = cls.__new__(cls)
        options = _Options(batch_first, dtype, backend, strict, seed, init, forget_bias, weights)
        lstm._build(stack, parameters, options)
        return lstm

    def _build(
        self, stack: StackConfig, parameters: Mapping[str, Array | StoredMatrix] | None, options: _Options
    ) -> None:
        for name in ("batch_first", "strict"):
            flag(name, getattr(options, name))
        self.stack, self.batch_first, self.strict = stack, options.batch_first, options.strict
        self.precision = get_precision(options.dtype)
        if options.weights is not None:
            self.precision = self.precision.with_weights(options.weights)
        if (count := sum(map(math.prod, stack.parameter_shapes.values()))) > _MOST_PARAMETERS:
            raise ValueError(
                f"input_size, hidden_size: expected sizes that give at most {_MOST_PARAMETERS} parameters; got {count}"
            )
        # 53 bits, so that any JSON reader keeps every digit
        self.seed = secrets.randbits(53) if options.seed is None else unsigned("seed", options.seed, 64)
        self._step = 0
        self.backend, self._selection, passed_over = registry.choose(options.backend, stack, self.precision)
        if self.strict and passed_over is not None:
            raise UnsupportedError(f"strict: {passed_over}")
        self._compile()
        if parameters is None:
            parameters = initial_parameters(stack, self.precision, self.seed, options.init, options.forget_bias)
        self.load_parameters(parameters)

    def _compile(self) -> None:
        """Make the parts that no copy takes along: the lock and the kernel."""
        self._step_lock = ForkSafeLock()
        self._declared = self.backend.capabilities()
        kernel = self.backend.compile_stack(self.stack, self.precision)
        #: The kernel for arrays of NumPy, and that for arrays of the backend's device.
        self._kernel: StackKernel = kernel if self._declared.device == "cpu" else HostStack(kernel)
        self._device_kernel = kernel
        self._strict_shapes: set[tuple[int, int]] = set()
        if self.strict:
            self._check_strict(None, None)

    # Copies: `copy.deepcopy` and `pickle` (of multiprocessing) take all but the kernel and its weights, which are made
    # again, and a backend that the registry knows by its name. A `Tape` belongs to the LSTM that recorded it.

    def __getstate__(self) -> dict[str, Any]:
        made = ("_step_lock", "_declared", "_kernel", "_device_kernel", "_strict_shapes", "_weights")
        state = {name: value for name, value in self.__dict__.items() if name not in made}
        return state | {"backend": registry.name_or_backend(self.backend)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.backend, str):
            self.backend = registry.get_backend(self.backend)
        self._compile()
        self.load_parameters(self._parameters)

    # Files ------------------------------------------------------------------------------------------------------------

    @property
    def content(self) -> LayerFile:
        """Layers, precision, layout and parameters: what a file holds. Arrays of a device are copied to the host."""
        return LayerFile(self.stack, self.precision, self.batch_first, self._parameters_on_host())

    @classmethod
    def from_content(
        cls,
        content: LayerFile,
        *,
        dtype: str | npt.DTypeLike | Precision | None = None,
        backend: str | Backend | None = None,
    ) -> Self:
        """Return an LSTM of what a file holds: the inverse of `content`.

        Parameters
        ----------
        content
            A stack with its parameters.
        dtype
            The precision to run it in; None takes that of `content`.
        backend
            As for the constructor.

        Raises
        ------
        TypeError, ValueError
            The layers of a chain; as `load_parameters`.
        """
        if not isinstance(content.layers, StackConfig):
            kinds = ", ".join(layer.kind for layer in content.layers)
            raise ValueError(f"expected layers of one LSTM; got {kinds}: the same call of Chain reads them")
        found = content.in_precision(content.precision if dtype is None else get_precision(dtype))
        return cls.from_config(
            content.layers, found.parameters, batch_first=found.batch_first, dtype=found.precision, backend=backend
        )

    @classmethod
    def from_torch(
        cls,
        source: Any,
        prefix: str = "",
        *,
        batch_first: bool | None = None,
        dtype: str | npt.DTypeLike | Precision | None = None,
        backend: str | Backend | None = None,
    ) -> Self:
        """Return an LSTM with the weights of a ``torch.nn.LSTM``.

        Parameters
        ----------
        source
            A state_dict (name -> tensor or array), a live module, or the path of a safetensors, .pt or .pth file, of
            which only tensors are read. The last two need PyTorch.
        prefix
            What precedes the names of the LSTM in the state_dict, for example ``"encoder.lstm."``.
        batch_first
            None takes that of a live module, else False.
        dtype
            None takes that of the tensors.
        backend
            As for the constructor.

        Raises
        ------
        TypeError, ValueError
            No LSTM under that prefix, names and shapes of another layer, numbers that are not finite, a file of another
            kind or with code in it.
        OSError, ImportError
            The file cannot be read; PyTorch is not installed.

        Examples
        --------
        >>> lstm = LSTM(3, 5, num_layers=2, seed=0)
        >>> LSTM.from_torch(lstm.to_torch("encoder."), "encoder.").stack == lstm.stack
        True
        """
        found = read_torch(source, prefix)
        if batch_first is not None:
            found = found._replace(batch_first=batch_first)
        return cls._from_source(source, found, dtype, backend)

    def to_torch(self, prefix: str = "") -> dict[str, Array]:
        """Return the state_dict of a ``torch.nn.LSTM`` with these weights, as arrays under names after `prefix`.

        ``module.load_state_dict({name: torch.from_numpy(value) for name, value in lstm.to_torch().items()})`` loads it.
        ``bias_ih`` is our bias and ``bias_hh`` is 0.

        Raises
        ------
        ValueError
            A switch that ``torch.nn.LSTM`` does not have; the message names it.
        """
        return to_state_dict(self.stack, read_parameters(self._parameters_on_host(), self.precision.storage), prefix)

    # Parameters -------------------------------------------------------------------------------------------------------

    @property
    def input_size(self) -> int:
        """I: the width of x."""
        return self.stack.input_size

    @property
    def output_width(self) -> int:
        """D * P: the width of y."""
        return self.stack.num_directions * self.stack.output_size

    @property
    def parameters(self) -> dict[str, Array]:
        """Full parameter name -> array (`StackConfig.parameter_shapes`).

        The arrays are read-only, since the backend has packed them into another form: change a copy and
        `load_parameters` it. An array that was taken from here keeps its values when others are loaded. A matrix that
        is stored in another format is read into a new array each time.

        They are arrays of a device if arrays of a device were loaded. No device has read-only arrays: do not write to
        these either, since they may be the packed weights themselves.
        """
        return read_parameters(self._parameters, self.precision.storage)

    @property
    def stored_parameters(self) -> dict[str, Array | StoredMatrix]:
        """Full parameter name -> array, or `StoredMatrix` where `weights` is another format than ``"same"``."""
        return dict(self._parameters)

    def load_parameters(self, parameters: Mapping[str, Array | StoredMatrix]) -> None:
        """Set all parameters.

        Parameters
        ----------
        parameters
            Every name of `StackConfig.parameter_shapes` with an array of the storage dtype; they are copied, and
            rounded where `weights` is another format than ``"same"``. A matrix may be a `StoredMatrix` of that format.
            Arrays of the backend's device stay there, if `weights` is ``"same"``.

        Raises
        ------
        ValueError
            A missing or unknown name, a wrong shape, a number that is not finite or too large for the format; nothing
            is changed then. Whether numbers of a device are finite is not checked, since that waits for the device.
        TypeError
            Not a mapping, a value that is not an array of the storage dtype; arrays of the host and of a device.
        """
        shapes, stored = self.stack.parameter_shapes, validation.check_stored(parameters, self.precision)
        place, parameters = place_parameters("parameters", parameters, self.backend, self.precision)
        try:
            parameters = read_parameters(parameters, self.precision.storage) if stored else parameters
            validation.check_parameters("parameters", parameters, shapes, self.precision)
        except ValueError as error:
            if hint := reader_of(parameters):
                raise ValueError(f"{error}: {hint}") from None
            raise
        if place is None:
            loaded = {name: np.array(parameters[name], order="C") for name in shapes}
            validation.check_finite_parameters("parameters", loaded)
            for array in loaded.values():
                array.flags.writeable = False
            self._load(store_parameters({**loaded, **stored}, self.precision.weights))
        else:
            weights, copies = self._device_kernel.pack_copies({name: parameters[name] for name in shapes})
            self._parameters, self._weights = dict(copies), weights

    def _parameters_on_host(self) -> dict[str, Array | StoredMatrix]:
        return {
            name: value if isinstance(value, StoredMatrix) else to_host(value)
            for name, value in self._parameters.items()
        }

    def _load(self, parameters: dict[str, Array | StoredMatrix]) -> None:
        weights = self._kernel.pack(parameters)
        self._parameters, self._weights = parameters, weights

    def compressed(self, weights: str, *, backend: str | Backend | None = None) -> Self:
        """Return this LSTM with its weight matrices stored in another format, for inference.

        Parameters
        ----------
        weights
            ``"bfloat16"``, ``"float16"`` or ``"int8"``. The result computes with the rounded weights, in all else
            exactly as before. ``"int8a16"`` stores the same as ``"int8"``, and rounds activations to int16.
        backend
            A name or a `Backend`; None takes this LSTM's.

        Raises
        ------
        ValueError
            An unknown format, one that the precision does not have, a weight that is too large for it; weights that
            are stored in a format already.
        UnsupportedError
            The backend does not declare the format.
        """
        if self.precision.weights != SAME:
            raise ValueError(
                f"weights: expected an LSTM whose weights are stored as they are; got {self.precision.weights}: "
                "compress the original one"
            )
        return self.from_config(
            self.stack,
            self._parameters_on_host(),
            batch_first=self.batch_first,
            dtype=self.precision,
            backend=self.backend if backend is None else backend,
            strict=self.strict,
            seed=self.seed,
            weights=weights,
        )

    # Calls ------------------------------------------------------------------------------------------------------------

    def __call__(
        self, x: Array, state: StateLike | None = None, lengths: Any = None, *, out: Array | None = None
    ) -> tuple[Array, State]:
        """Run all steps, without random masks.

        Parameters
        ----------
        x
            (T, N, I), (N, T, I) with `batch_first`, or (T, I); storage dtype.
        state
            Initial (h, c); zeros if None.
        lengths
            (N,) whole numbers from 0 to T, None for T everywhere. Past a row's end its state holds and y is 0; the
            reversed direction starts at the row's own end. Not for x without a batch axis.
        out
            An array for y, which must not overlap an input or itself.

        Returns
        -------
        y
            (T, N, D * P), (N, T, D * P) with `batch_first`, or (T, D * P): the forward direction's outputs, then the
            reversed one's. It is `out`, or fresh.
        state
            The final (h, c) of each row.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong type, dtype, shape or range.
        UnsupportedError
            Lengths that the backend does not declare; with `strict`, a call that would not take the fastest path.
        """
        call = self._enter(x, state, lengths)
        y, last, _ = (self._kernel if call.place is None else self._device_kernel).forward(
            self._weights,
            call.x,
            call.state,
            lengths=call.lengths,
            out=None if out is None else call.check_out(out),
        )
        y, last = call.from_time_major(y, last)
        return (y if out is None else out), last

    def record(
        self, x: Array, state: StateLike | None = None, lengths: Any = None, *, masks: StackMasks | None = None
    ) -> tuple[Array, State, Tape]:
        """Run all steps with random masks, and record them for `backward`.

        Parameters
        ----------
        x, state, lengths
            As in a call. These arrays and the masks may be written to after the call: the tape does not refer to them.
        masks
            The masks to use (time-major; of one row for x without a batch axis). None draws them with `seed` for the
            current `step`; ``StackMasks((Masks(),) * (L * D))`` uses none.

        Returns
        -------
        y
            As from a call, but read-only, since the tape may refer to it.
        state
            As from a call.
        tape
            For `backward`.

        Notes
        -----
        Every recorded call adds 1 to `step`, with or without masks.
        """
        self._require("backward")
        require_trainable(self.precision)
        call = self._enter(x, state, lengths)
        if masks is not None:
            masks = call.check_masks(masks)
            self._require("masks")
        own = None if masks is None else _with_own_dropout(masks)
        with self._step_lock.lock:
            step = self._step
            self._step = step + 1
        if masks is None:
            draw = drawing(call.place, call.x)
            size = (call.steps, call.batch)
            own = masks = stack_masks(self.stack, self.precision, *size, seed=self.seed, step=step, draw=draw)
            if masks is not None:
                self._require("masks")
        weights = self._weights
        y, last, saved = (self._kernel if call.place is None else self._device_kernel).forward(
            weights, call.x, call.state, lengths=call.lengths, masks=own, record=True
        )
        if call.place is None:
            y.flags.writeable = False
        return *call.from_time_major(y, last), Tape(masks, call.lengths, self, weights, saved, call)

    def backward(self, tape: Tape, dy: Array | None = None, dstate: StateLike | None = None) -> Gradients:
        """Return the gradients of ``sum(dy * y) + sum(dstate * final state)`` for a recorded call.

        Parameters
        ----------
        tape
            From `record` of this LSTM. The parameters and masks of that call are used, whatever was loaded since.
        dy
            Like y; zeros if None. What it holds past a row's end is ignored.
        dstate
            Like the final state; zeros if None.

        Returns
        -------
        Gradients
            ``x`` like x, ``state`` like the state, ``parameters`` by full name.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what record() returned last; got {type(tape).__name__}")
        if tape._owner is not self:
            raise ValueError("tape: expected one that record() of this LSTM returned; got one of another LSTM")
        call = tape._call
        if dy is not None:
            dy = call.check_y("dy", dy)
        incoming = call.check_state("dstate", dstate)
        kernel = self._kernel if call.place is None else self._device_kernel
        dx, dstate0, parameters = kernel.backward(tape._weights, tape._saved, dy, incoming)
        return Gradients(*call.from_time_major(dx, dstate0), parameters)

    def jvp(  # noqa: PLR0913  (the arguments of the equations)
        self,
        x: Array,
        tx: Array | None,
        state: StateLike | None = None,
        tstate: StateLike | None = None,
        tparameters: Mapping[str, Array] | None = None,
        lengths: Any = None,
        masks: StackMasks | None = None,
    ) -> tuple[Array, State]:
        """Return the derivative of y and the final state along given directions (forward mode).

        Parameters
        ----------
        x, state, lengths
            As in a call.
        tx, tstate
            Directions like x and like the state; zeros if None.
        tparameters
            Full parameter name -> direction; what is left out is zero.
        masks
            Random masks as in `record`; None is the behaviour of a call.

        Returns
        -------
        ty, tstate
            Like y and the final state.
        """
        return self.value_and_jvp(x, tx, state, tstate, tparameters, lengths, masks)[1]

    def value_and_jvp(  # noqa: PLR0913  (the arguments of the equations)
        self,
        x: Array,
        tx: Array | None,
        state: StateLike | None = None,
        tstate: StateLike | None = None,
        tparameters: Mapping[str, Array] | None = None,
        lengths: Any = None,
        masks: StackMasks | None = None,
    ) -> tuple[tuple[Array, State], tuple[Array, State]]:
        """Return ``(y, final state), (ty, tstate)``: the values beside the derivatives of `jvp`, from one pass."""
        self._require("jvp")
        require_trainable(self.precision)
        call = self._enter(x, state, lengths)
        if tx is not None:
            tx = call.check_x("tx", tx)
        tparameters = call.check_tangents(tparameters)
        if masks is not None:
            masks = call.check_masks(masks)
            self._require("masks")
        tangents = Tangents(tx, call.check_state("tstate", tstate), tparameters)
        (y, last, _), (ty, tlast, _) = (self._kernel if call.place is None else self._device_kernel).jvp(
            self._weights, call.x, call.state, tangents, lengths=call.lengths, masks=masks
        )
        return call.from_time_major(y, last), call.from_time_major(ty, tlast)

    # Final states, for a readout --------------------------------------------------------------------------------------

    def last_output(self, state: State) -> Array:
        """Return (N, D * P): the outputs of the last layer after whole rows, from the final state of a call.

        Forward that is h after a row's last valid step; for the reversed direction h at step 0, where it ends.
        """
        directions = self.stack.num_directions
        last: Array = state[0][-directions:].swapaxes(0, 1).reshape(state[0].shape[1], directions * state[0].shape[2])
        return last

    def last_output_gradient(self, state: State, gradient: Array) -> State:
        """Return the gradient of the final state from that of `last_output`, for `backward`."""
        directions, width = self.stack.num_directions, self.stack.output_size
        zeros_like = namespace_of(**{"state.h": state[0], "state.c": state[1], "gradient": gradient}).zeros_like
        dh = zeros_like(state[0])
        dh[-directions:] = gradient.reshape(-1, directions, width).swapaxes(0, 1)
        return State(dh, zeros_like(state[1]))

    # Randomness and receipts ------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Number of the next recorded call: with `seed` it fixes the masks. Set it to resume."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        step = unsigned("step", value, 32)
        with self._step_lock.lock:
            self._step = step

    def explain(self, steps: int | None = None, batch: int | None = None) -> Explanation:
        """Return which backend runs, why it was selected, and which path each layer takes and why.

        Parameters
        ----------
        steps, batch
            T and N of a call to explain; None for most calls.
        """
        return Explanation(
            self.backend.name,
            self._declared.device,
            self.precision.label,
            self._selection,
            tuple(zip(self.stack.suffixes, self._kernel.receipts(steps, batch), strict=True)),
        )

    def __repr__(self) -> str:
        config = self.stack.layers[0][0]
        shown = {
            "num_layers": (self.stack.num_layers, 1),
            "bidirectional": (self.stack.num_directions == 2, False),
            "proj_size": (config.proj_size, 0),
            "batch_first": (self.batch_first, False),
            "weights": (self.precision.weights, SAME),
        }
        changed = "".join(f", {name}={value!r}" for name, (value, default) in shown.items() if value != default)
        return (
            f"LSTM({config.input_size}, {config.hidden_size}{changed}, "
            f"dtype={self.precision.name!r}, backend={self.backend.name!r})"
        )

    def _enter(self, x: Array, state: StateLike | None, lengths: Any) -> CallLayout:
        """Check the arguments of a call, once for all backends."""
        call = CallLayout(x, self.stack, self.precision, self.batch_first, self.backend)
        if lengths is not None and not call.batched:
            raise ValueError("lengths: expected None for x of shape (T, I), which has no batch axis; got lengths")
        if state is not None:
            call.state = call.check_state("state", state)
        if lengths is not None:
            self._require("lengths")
            call.lengths = validation.check_lengths(lengths, call.steps, call.batch)
        if self.strict and (call.steps, call.batch) not in self._strict_shapes:
            self._check_strict(call.steps, call.batch)
        return call

    def _require(self, what: str) -> None:
        if what not in self._declared.features and what not in self._declared.derivatives:
            raise UnsupportedError(f"backend {self.backend.name!r} has no {self._declared.missing(what)}")

    def _check_strict(self, steps: int | None, batch: int | None) -> None:
        for suffix, receipt in zip(self.stack.suffixes, self._kernel.receipts(steps, batch), strict=True):
            if receipt.fallback is not None:
                raise UnsupportedError(
                    f"strict: backend {receipt.backend!r} would run {suffix.removeprefix('_')} on its path "
                    f"{receipt.path!r}, not on its fastest: {receipt.fallback}"
                )
        if steps is not None and batch is not None:
            self._strict_shapes.add((steps, batch))


def _with_own_dropout(masks: StackMasks) -> StackMasks:
    """Return the masks with copies of those of dropout, to which the tape of a stack refers."""
    if not masks.dropout:
        return masks
    xp, device = namespace_of(*masks.dropout), device_of(masks.dropout[0])
    return masks._replace(dropout=tuple(xp.asarray(mask, copy=True, device=device) for mask in masks.dropout))
