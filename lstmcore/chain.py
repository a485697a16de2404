"""`Chain`: LSTMs of different sizes and directions, one after another, with the calls of an `LSTM`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar, cast

import numpy.typing as npt

from lstmcore import placement, validation
from lstmcore.arrays import namespace_of
from lstmcore.backend import Backend, StackMasks, State
from lstmcore.chain_layers import ChainCall, ChainState, Layer, Merge, Mode, Reversed, lstm_of, with_lstm
from lstmcore.config import StackConfig
from lstmcore.declaration import Explanation
from lstmcore.interchange import Interchange
from lstmcore.layer_file import CHAIN_FORMAT, LayerFile, LayerSpec, layer_shapes, layer_widths
from lstmcore.lstm import LSTM, Tape
from lstmcore.precision import Precision, get_precision
from lstmcore.scalars import flag
from lstmcore.stored_weights import StoredMatrix, read_parameters, store_parameters

Array: TypeAlias = npt.NDArray[Any]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class ChainTape:
    """A recorded call of a chain, for `Chain.backward`.

    Attributes
    ----------
    masks
        The random masks of each LSTM, None for one whose rates are 0.
    lengths
        The lengths of the call, None if every row had all steps.
    """

    masks: tuple[StackMasks | None, ...] = field(repr=False)
    lengths: Array | None = field(repr=False)
    _owner: Chain = field(repr=False)
    _call: ChainCall = field(repr=False)
    _kept: tuple[Tape | Array, ...] = field(repr=False)  # a tape, or what a merge read, for each layer


class ChainGradients(NamedTuple):
    """Gradients of x, of each initial state, and of every parameter by name."""

    x: Array
    state: tuple[State, ...]
    parameters: dict[str, Array]


class Chain(Interchange):
    """LSTMs one after another: what one gives, the next one reads.

    The calls, shapes and errors are those of `LSTM`, with one state for each LSTM: ``state`` is a tuple of pairs
    (h, c). Every LSTM may have other sizes, switches and layers; its own dropout stays within it.

    Parameters
    ----------
    layers
        `LSTM`, `Reversed` and `Merge` objects. The LSTMs have ``batch_first=False`` and the same dtype, and belong to
        the chain from then on. A `Merge` stands after an LSTM in both directions.
    batch_first
        Whether x with a batch axis is (N, T, I).

    Attributes
    ----------
    layers : tuple
    lstms : tuple of LSTM
        The LSTMs of `layers`, in order.
    precision : Precision
    input_size, output_width : int
        The widths of x and of y.
    batch_first : bool

    Raises
    ------
    TypeError, ValueError
        Layers of another type, or that do not fit together.

    Examples
    --------
    >>> chain = Chain([LSTM(3, 5, bidirectional=True, seed=0), Merge("sum"), Reversed(LSTM(5, 4, seed=1))])
    >>> y, state = chain(np.zeros((7, 2, 3), np.float32))
    >>> y.shape, [h.shape for h, _ in state]
    ((7, 2, 4), [(2, 2, 5), (1, 2, 4)])
    """

    file_format = CHAIN_FORMAT

    def __init__(self, layers: Sequence[Layer], *, batch_first: bool = False) -> None:
        if not isinstance(layers, Sequence) or not layers:
            raise TypeError(f"layers: expected a list of LSTM, Reversed and Merge; got {layers!r:.80}")
        for index, layer in enumerate(layers):
            if not isinstance(layer, LSTM | Reversed | Merge):
                raise TypeError(f"layers[{index}]: expected an LSTM, Reversed or Merge; got {type(layer).__name__}")
        self.layers, self.batch_first = tuple(layers), flag("batch_first", batch_first)
        self.lstms = tuple(lstm_of(layer) for layer in self.layers if not isinstance(layer, Merge))
        self.input_size, self.output_width = layer_widths(self.spec)
        self.precision: Precision = self.lstms[0].precision
        self._check_layers()

    def _check_layers(self) -> None:
        """Raise unless every LSTM may be one of this chain."""
        for index, lstm in self._placed():
            where = f"layers[{index}]"
            if lstm.batch_first:
                raise ValueError(f"{where}: expected batch_first=False, which the chain has instead; got True")
            if lstm.precision != self.precision:
                raise ValueError(
                    f"{where}: expected dtype {self.precision.label} as in the first LSTM; got {lstm.precision.label}"
                )
            if lstm.step != self.lstms[0].step:
                raise ValueError(f"{where}: expected step={self.lstms[0].step} as in the first LSTM; got {lstm.step}")
            if sum(lstm is other for other in self.lstms) > 1:
                raise ValueError(f"{where}: expected another LSTM for each layer; got one that comes twice")

    # Parameters -------------------------------------------------------------------------------------------------------

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Full parameter name -> shape: the position of the layer, a dot, and the name in its LSTM."""
        return layer_shapes(self.spec)

    @property
    def parameters(self) -> dict[str, Array]:
        """Full parameter name -> array, as `LSTM.parameters`; the names are those of `parameter_shapes`."""
        return {f"{index}.{name}": value for index, lstm in self._placed() for name, value in lstm.parameters.items()}

    @property
    def stored_parameters(self) -> dict[str, Array | StoredMatrix]:
        """Full parameter name -> array or stored matrix, as `LSTM.stored_parameters`."""
        return {
            f"{index}.{name}": value for index, lstm in self._placed() for name, value in lstm.stored_parameters.items()
        }

    def compressed(self, weights: str, *, backend: str | Backend | None = None) -> Self:
        """Return this chain with its weight matrices stored in another format; as `LSTM.compressed`."""
        parts = [
            layer if isinstance(layer, Merge) else with_lstm(layer, lstm_of(layer).compressed(weights, backend=backend))
            for layer in self.layers
        ]
        return type(self)(parts, batch_first=self.batch_first)

    def load_parameters(self, parameters: Mapping[str, Array | StoredMatrix]) -> None:
        """Set all parameters, as `LSTM.load_parameters`; if one is refused, nothing is changed."""
        stored, storage = validation.check_stored(parameters, self.precision), self.precision.storage
        place, parameters = placement.place_parameters("parameters", parameters, self.backend, self.precision)
        plain = read_parameters(parameters, storage) if stored else cast(Mapping[str, Array], parameters)
        validation.check_parameters("parameters", plain, self.parameter_shapes, self.precision)
        if place is None:
            validation.check_finite_parameters("parameters", plain)
        else:  # the first LSTM takes arrays of its device; each of the others has a backend of its own
            for index, lstm in self._placed():
                name = next(key for key in parameters if key.startswith(f"{index}."))
                placement.place(f"parameters[{name!r}]", parameters[name], lstm.backend)
        store_parameters(
            {**plain, **stored}, self.precision.weights
        )  # refuses here what an LSTM would refuse after another changed
        for index, lstm in self._placed():
            lstm.load_parameters(_part(parameters, index))

    def _placed(self) -> list[tuple[int, LSTM]]:
        return [(index, lstm_of(layer)) for index, layer in enumerate(self.layers) if not isinstance(layer, Merge)]

    # Calls ------------------------------------------------------------------------------------------------------------

    def __call__(
        self, x: Array, state: ChainState | None = None, lengths: Any = None, *, out: Array | None = None
    ) -> tuple[Array, tuple[State, ...]]:
        """Run all layers, without random masks; arguments and results are those of `LSTM.__call__`.

        `state` has an entry for each LSTM, a pair (h, c) or None for zeros; the state that comes back has pairs.
        """
        call = ChainCall(self.lstms, self.batch_first, self.output_width, x, state, lengths)
        target = None if out is None else call.check_out(out, (x, state))
        y, finals = call.x, list[State]()
        for layer in self.layers:
            if isinstance(layer, Merge):
                y = layer(y)
                continue
            y, last = lstm_of(layer)(call.turned(layer, y), call.state[len(finals)], call.lengths)
            y = call.turned(layer, y)
            finals.append(last)
        if out is None or target is None:
            return call.to_caller(y), tuple(finals)
        target[...] = call.to_caller(y)
        return out, tuple(finals)

    def record(
        self,
        x: Array,
        state: ChainState | None = None,
        lengths: Any = None,
        *,
        masks: Sequence[StackMasks | None] | None = None,
    ) -> tuple[Array, tuple[State, ...], ChainTape]:
        """Run all layers with random masks, and record them for `backward`; as `LSTM.record`.

        `masks` has an entry for each LSTM; one whose entry is None draws its own.
        """
        call = ChainCall(self.lstms, self.batch_first, self.output_width, x, state, lengths)
        given = call.check_masks(masks)
        y, finals, kept, used = call.x, list[State](), list[Tape | Array](), list[StackMasks | None]()
        for layer in self.layers:
            if isinstance(layer, Merge):
                kept.append(y)
                y = layer(y)
                continue
            number = len(finals)
            turned = call.turned(layer, y)
            y, last, tape = lstm_of(layer).record(turned, call.state[number], call.lengths, masks=given[number])
            y = call.turned(layer, y)
            finals.append(last)
            kept.append(tape)
            used.append(tape.masks)
        y = call.to_caller(y)
        if call.place is None:
            y.flags.writeable = False
        return y, tuple(finals), ChainTape(tuple(used), call.lengths, self, call, tuple(kept))

    def backward(self, tape: ChainTape, dy: Array | None = None, dstate: ChainState | None = None) -> ChainGradients:
        """Return the gradients of ``sum(dy * y) + sum(dstate * final states)`` for a recorded call.

        Parameters
        ----------
        tape
            From `record` of this chain.
        dy
            Like y; zeros if None.
        dstate
            An entry for each LSTM, like its final state or None for zeros; zeros if None.
        """
        if not isinstance(tape, ChainTape):
            raise TypeError(f"tape: expected what record() returned last; got {type(tape).__name__}")
        if tape._owner is not self:
            raise ValueError("tape: expected one that record() of this chain returned; got one of another chain")
        call = tape._call
        gradient = None if dy is None else call.check_y("dy", dy)
        incoming = list(call.check_state("dstate", dstate))
        states, parameters = list[State](), dict[str, Array]()
        for index, layer, kept in reversed(list(zip(range(len(self.layers)), self.layers, tape._kept, strict=True))):
            if isinstance(layer, Merge):
                gradient = None if gradient is None else layer.backward(cast(Array, kept), gradient)
                continue
            turned = None if gradient is None else call.turned(layer, gradient)
            found = lstm_of(layer).backward(cast(Tape, kept), turned, incoming.pop())
            gradient = call.turned(layer, found.x)
            states.append(found.state)
            parameters |= {f"{index}.{name}": value for name, value in found.parameters.items()}
        ordered = {name: parameters[name] for name in self.parameter_shapes}
        return ChainGradients(call.to_caller(cast(Array, gradient)), tuple(states[::-1]), ordered)

    def jvp(  # noqa: PLR0913  (the arguments of the equations)
        self,
        x: Array,
        tx: Array | None,
        state: ChainState | None = None,
        tstate: ChainState | None = None,
        tparameters: Mapping[str, Array] | None = None,
        lengths: Any = None,
        masks: Sequence[StackMasks | None] | None = None,
    ) -> tuple[Array, tuple[State, ...]]:
        """Return the derivative of y and the final states along given directions; arguments as of `LSTM.jvp`."""
        call = ChainCall(self.lstms, self.batch_first, self.output_width, x, state, lengths)
        given, along = call.check_masks(masks), call.check_state("tstate", tstate)
        if tparameters is not None:
            tparameters = placement.take(call.place, "tparameters", tparameters)
            shapes = self.parameter_shapes
            validation.check_parameters("tparameters", tparameters, shapes, self.precision, partial=True)
        zeros_like = namespace_of(call.x).zeros_like
        y, ty, finals = call.x, zeros_like(call.x) if tx is None else call.check_x("tx", tx), list[State]()
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Merge):
                y, ty = layer(y), layer.along(y, ty)
                continue
            number, part = len(finals), None if tparameters is None else _part(tparameters, index)
            (y, _), (ty, last) = lstm_of(layer).value_and_jvp(
                call.turned(layer, y), call.turned(layer, ty), call.state[number], along[number], part, call.lengths,
                given[number],
            )  # fmt: skip
            y, ty = call.turned(layer, y), call.turned(layer, ty)
            finals.append(last)
        return call.to_caller(ty), tuple(finals)

    # Final states, for a readout --------------------------------------------------------------------------------------

    def last_output(self, state: Sequence[State]) -> Array:
        """Return (N, output_width): the outputs of the last layer after whole rows, from the final states.

        Each direction gives its h after the last step that it reads.
        """
        features = self.lstms[-1].last_output(state[-1])
        last = self.layers[-1]
        return last(features) if isinstance(last, Merge) else features

    def last_output_gradient(self, state: Sequence[State], gradient: Array) -> ChainState:
        """Return the gradient of the final states from that of `last_output`, for `backward`."""
        last = self.layers[-1]
        if isinstance(last, Merge):
            gradient = last.backward(self.lstms[-1].last_output(state[-1]), gradient)
        return (*[None] * (len(self.lstms) - 1), self.lstms[-1].last_output_gradient(state[-1], gradient))

    # Files, randomness and receipts -----------------------------------------------------------------------------------

    @property
    def spec(self) -> list[LayerSpec]:
        """The layers without their parameters, for files."""
        return [
            LayerSpec("merge", None, layer.mode)
            if isinstance(layer, Merge)
            else LayerSpec("reversed" if isinstance(layer, Reversed) else "lstm", lstm_of(layer).stack, None)
            for layer in self.layers
        ]

    @classmethod
    def from_spec(
        cls,
        spec: Sequence[LayerSpec],
        parameters: Mapping[str, Array | StoredMatrix],
        *,
        batch_first: bool = False,
        dtype: str | npt.DTypeLike | Precision = "float32",
        backend: str | Backend | None = None,
        seed: int | None = None,
    ) -> Self:
        """Return a chain of `spec`, with `parameters`; the other arguments are those of `LSTM`."""
        layers: list[Layer] = []
        for index, (kind, stack, mode) in enumerate(spec):
            if stack is None:
                layers.append(Merge(cast(Mode, mode)))
                continue
            lstm = LSTM.from_config(stack, _part(parameters, index), dtype=dtype, backend=backend, seed=seed)
            layers.append(Reversed(lstm) if kind == "reversed" else lstm)
        return cls(layers, batch_first=batch_first)

    @property
    def content(self) -> LayerFile:
        """Layers, precision, layout and parameters: what a file holds. Arrays of a device are copied to the host."""
        parts = ((index, lstm.content.parameters) for index, lstm in self._placed())
        parameters = {f"{index}.{name}": value for index, part in parts for name, value in part.items()}
        return LayerFile(self.spec, self.precision, self.batch_first, parameters)

    @classmethod
    def from_content(
        cls,
        content: LayerFile,
        *,
        dtype: str | npt.DTypeLike | Precision | None = None,
        backend: str | Backend | None = None,
    ) -> Self:
        """Return a chain of what a file holds, or of a single stack; arguments and errors are those of `LSTM`."""
        layers, precision, batch_first, parameters = content.in_precision(
            content.precision if dtype is None else get_precision(dtype)
        )
        if isinstance(layers, StackConfig):
            parameters = {f"0.{name}": value for name, value in parameters.items()}
            layers = [LayerSpec("lstm", layers, None)]
        return cls.from_spec(layers, parameters, batch_first=batch_first, dtype=precision, backend=backend)

    @property
    def backend(self) -> Backend:
        """The backend of the first LSTM; `explain` has those of all."""
        return self.lstms[0].backend

    @property
    def seed(self) -> list[int]:
        """The seeds of the LSTMs."""
        return [lstm.seed for lstm in self.lstms]

    @property
    def step(self) -> int:
        """Number of the next recorded call, the same for all LSTMs; see `LSTM.step`."""
        return self.lstms[0].step

    @step.setter
    def step(self, value: int) -> None:
        for lstm in self.lstms:
            lstm.step = value

    def explain(self, steps: int | None = None, batch: int | None = None) -> tuple[Explanation, ...]:
        """Return `LSTM.explain` of each LSTM."""
        return tuple(lstm.explain(steps, batch) for lstm in self.lstms)

    def __repr__(self) -> str:
        return f"Chain([{', '.join(map(repr, self.layers))}]{', batch_first=True' * self.batch_first})"


def _part(parameters: Mapping[str, Value], index: int) -> dict[str, Value]:
    """Return the parameters of the layer at `index`, by their names in its LSTM."""
    prefix = f"{index}."
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
