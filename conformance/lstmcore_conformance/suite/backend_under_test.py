"""The backend under test, called as its users call it, with NumPy arrays as inputs and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lstmcore.backend import Backend, Capabilities, Forward, Gradients, Kernel, StackKernel, State
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import Precision
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.oracle.budgets import Expectation, Expected, Measure, measure


class Failure(Exception):  # noqa: N818  (it names an outcome)
    """The backend does not do what the check claims.

    Parameters
    ----------
    message
        One line.
    worst
        The worst element, if numbers were compared.
    arrays
        Name -> the array that was compared and what was expected, if numbers were compared.
    """

    def __init__(
        self,
        message: str,
        worst: Measure | None = None,
        arrays: Mapping[str, tuple[Array, Expected]] | None = None,
    ) -> None:
        super().__init__(message)
        self.worst = worst
        self.arrays = arrays or {}


class NotChecked(Exception):  # noqa: N818  (it names an outcome)
    """A check cannot be made on this backend; the message says why, in one line after "because"."""


#: The defaults of `Draws`.
SEED: Final = 0
EXAMPLES: Final = 30
#: The number of cases that a check draws in the profile smoke.
SMOKE_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class Draws:
    """The way in which random cases are drawn.

    Attributes
    ----------
    seed, max_examples
        The same seed and number draw the same cases.
    shrink
        Whether hypothesis makes a case that fails small.
    """

    seed: int = SEED
    max_examples: int = EXAMPLES
    shrink: bool = True

    @classmethod
    def of(cls, profile: str, seed: int | None = None, max_examples: int | None = None) -> Draws:
        """Return the draws of a profile; an argument that is None has the profile's default."""
        examples = SMOKE_EXAMPLES if profile == "smoke" else EXAMPLES
        return cls(SEED if seed is None else seed, examples if max_examples is None else max_examples)

    @property
    def options(self) -> str:
        """The options of the command line that differ from the defaults, each with a space before it."""
        seed = f" --seed {self.seed}" if self.seed != SEED else ""
        return seed + (f" --max-examples {self.max_examples}" if self.max_examples != EXAMPLES else "")


def above(max_work: int) -> str:
    """Return the reason of a case that is left out for its cost."""
    return f"more than {max_work:,} multiply-adds (--max-work)"


class BackendUnderTest:
    """The runs of cases on a backend. Any exception of a declared call becomes a `Failure`.

    Results are arrays of the device in `output_arrays` and `derivative_arrays`, else copies on the host.

    Parameters
    ----------
    backend, draws
        The backend, and the way in which random cases are drawn.
    max_work
        The most multiply-adds of a case that runs; None for no limit.

    Attributes
    ----------
    command_name
        What ``lstmcore conform`` calls the backend: its name, or ``MODULE:ATTRIBUTE``.
    extent
        Kind of call -> the largest size of each axis that a call of this kind was shown.
    failures
        The folder for the files of failing calls, None for none.
    last
        The last call: its kind, its case and its data on the device. None before the first one.

    Raises
    ------
    TypeError
        The argument is no backend, or it has no name.
    """

    def __init__(self, backend: Backend, draws: Draws | None = None, max_work: int | None = None) -> None:
        if not isinstance(backend, Backend):
            raise TypeError(
                f"backend: expected an object of a class that inherits Backend; got {_format_type(backend)}"
            )
        if not isinstance(getattr(backend, "name", None), str):
            raise TypeError(f"backend: expected {type(backend).__name__}.name, a text; got none")
        self.backend = backend
        self.draws = Draws() if draws is None else draws
        self.max_work = max_work
        self.command_name: str = backend.name
        self.extent: dict[str, dict[str, int]] = {}
        self.failures: Path | None = None
        self.last: tuple[str, Case, Data] | None = None
        self.declared: Capabilities = backend.capabilities()
        self._kernels: dict[tuple[LSTMConfig | StackConfig, Precision], Any] = {}

    def refusal(self, case: Case) -> str | None:
        """Return why the backend does not run `case`, or None."""
        if self.max_work is not None and case.work > self.max_work:
            return above(self.max_work)
        reasons = [reason for config in case.configs if (reason := self.backend.refusal(config, case.policy))]
        if not reasons:
            reasons = [self.declared.missing(name) for name in sorted(case.features - self.declared.features)]
        return reasons[0] if reasons else None

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Turn any exception of the block into a failure of `what`."""
        try:
            yield
        except Failure:
            raise
        except Exception as error:
            raise Failure(f"{what} raised {type(error).__name__}: {_format_line(error)}") from error

    def kernel(self, case: Case) -> Any:
        """Return the `Kernel` or `StackKernel` of the case, which is compiled once."""
        key = (case.model, case.policy)
        if key not in self._kernels:
            with self.guard("compile"):
                self._kernels[key] = self.compile(case)
        return self._kernels[key]

    def compile(self, case: Case) -> Kernel | StackKernel:
        """Return a new kernel; errors of the backend pass."""
        if isinstance(case.model, StackConfig):
            return self.backend.compile_stack(case.model, case.policy)
        return self.backend.compile(case.model, case.policy)

    def device(self, data: Data) -> Data:
        """Return copies of all arrays on the backend's device, so that a backend that writes to them spoils no case."""
        return data.map(lambda array: self.backend.to_device(np.array(array)))

    def host(self, array: Any) -> Array:
        """Return a NumPy array of the result.

        Raises
        ------
        Failure
            The backend does not return a NumPy array.
        """
        with self.guard("to_host"):
            copy = self.backend.to_host(array)
        if not isinstance(copy, np.ndarray):
            raise Failure(f"to_host: expected a numpy.ndarray; got {type(copy).__name__}")
        return copy

    # The calls ----------------------------------------------------------------------------------------------------

    def pack(self, case: Case, data: Data) -> Any:
        """Return the packed weights."""
        with self.guard("pack"):
            return self.kernel(case).pack(data.parameters)

    def call(self, case: Case, data: Data, *, record: bool = False, out: Any = None, weights: Any = None) -> Forward:
        """Return the result of one forward call with device arrays.

        Parameters
        ----------
        case, data
            The case, and its data on the device.
        record
            Whether the call records a tape.
        out
            The array for y, or None.
        weights
            Packed weights; the parameters of `data` are packed if None.
        """
        kernel, packed = (self.kernel(case), self.pack(case, data) if weights is None else weights)
        self._note("recorded forward" if record else "forward", case, data)
        with self.guard("forward"):
            result: Forward = kernel.forward(
                packed, data.x, data.state, lengths=data.lengths, masks=data.masks, record=record, out=out
            )
            return result

    def forward(self, case: Case, data: Data | None = None) -> dict[str, Array]:
        """Return y, h_n and c_n."""
        return self.outputs(self.call(case, self.device(data or case.data)))

    def gradients(self, case: Case, data: Data | None = None) -> dict[str, Array]:
        """Return dx, dh0, dc0 and d_<parameter>."""
        arguments = self.device(data or case.data)
        weights = self.pack(case, arguments)
        done = self.call(case, arguments, record=True, weights=weights)
        return self.backward(case, arguments, weights, done)

    def backward(self, case: Case, data: Data, weights: Any, done: Forward) -> dict[str, Array]:
        """Return the gradients from a tape, with device arrays.

        Parameters
        ----------
        case, data, weights
            The case, its data on the device, and the packed weights of the forward call.
        done
            The result of that call, with its tape.
        """
        return self.on_host(self.derivative_arrays(case, data, weights, done))

    def derivative_arrays(self, case: Case, data: Data, weights: Any, done: Forward) -> dict[str, Any]:
        """Return what `backward` returns, on the device."""
        kernel = self.kernel(case)
        self._note("backward", case, data)
        with self.guard("backward"):
            result = kernel.backward(weights, done.tape, data.dy, data.dstate)
        return self.named_gradients(case, result)

    def tangents(self, case: Case, data: Data | None = None) -> dict[str, Array]:
        """Return y, h_n, c_n of the forward pass and their tangents ty, th_n, tc_n."""
        device = self.device(data or case.data)
        done, tangents = self.jvp(case, device, self.pack(case, device))
        moved = self.outputs(tangents)
        return self.outputs(done) | {"ty": moved["y"], "th_n": moved["h_n"], "tc_n": moved["c_n"]}

    def jvp(self, case: Case, data: Data, weights: Any) -> tuple[Forward, Forward]:
        """Return the forward pass and its tangents, with device arrays."""
        self._note("jvp", case, data)
        with self.guard("jvp"):
            done, tangents = self.kernel(case).jvp(
                weights, data.x, data.state, data.tangents, lengths=data.lengths, masks=data.masks
            )
            return done, tangents

    def _note(self, kind: str, case: Case, data: Data) -> None:
        """Keep a call as `last`, and raise the sizes of `extent`; with lengths or masks it counts as such too."""
        self.last = (kind, case, data)
        config, (steps, batch) = case.configs[0], data.x.shape[:2]
        sizes = {"T": steps, "N": batch, "I": config.input_size, "H": config.hidden_size, "P": config.proj_size}
        for name, used in (("", True), (" with lengths", data.lengths is not None), (" with masks", bool(data.masks))):
            if used:
                self.raise_extent(kind + name, sizes)

    def raise_extent(self, kind: str, sizes: Mapping[str, int]) -> None:
        """Raise the sizes of `extent` for a kind of call to `sizes`."""
        known = self.extent.setdefault(kind, dict.fromkeys(sizes, 0))
        known.update({axis: max(size, known[axis]) for axis, size in sizes.items()})

    def outputs(self, result: Any) -> dict[str, Array]:
        """Return the arrays of a `Forward` on the host."""
        return self.on_host(self.output_arrays(result))

    def output_arrays(self, result: Any) -> dict[str, Any]:
        """Return the arrays of a `Forward` on the device."""
        if not isinstance(result, Forward):
            raise Failure(f"forward: expected a Forward(y, state, tape); got {type(result).__name__}")
        h, c = self.pair("the final state", result.state)
        return {"y": result.y, "h_n": h, "c_n": c}

    def on_host(self, arrays: Mapping[str, Any]) -> dict[str, Array]:
        """Return arrays of the device on the host, each by `host`."""
        return {name: self.host(array) for name, array in arrays.items()}

    def named_gradients(self, case: Case, result: Any) -> dict[str, Any]:
        """Return the arrays of `Gradients` by name."""
        if not isinstance(result, Gradients) or not isinstance(result.parameters, Mapping):
            raise Failure(f"backward: expected Gradients(x, state, parameters); got {type(result).__name__}")
        names = set(case.model.parameter_shapes)
        if set(result.parameters) != names:
            raise Failure(
                f"backward: expected gradients of {', '.join(sorted(names))}; "
                f"got {', '.join(sorted(map(str, result.parameters)))}"
            )
        h, c = self.pair("the gradient of the state", result.state)
        named = {f"d_{name}": result.parameters[name] for name in case.model.parameter_shapes}
        return {"dx": result.x, "dh0": h, "dc0": c} | named

    def pair(self, what: str, state: Any) -> tuple[Any, Any]:
        """Return the h and c of a state; `what` names it in errors."""
        if not isinstance(state, State):
            raise Failure(f"{what}: expected a State(h, c); got {type(state).__name__}")
        return state.h, state.c


def compare(got: Mapping[str, Array], expected: Expectation) -> Measure:
    """Return the worst element over all arrays of `expected`.

    Raises
    ------
    Failure
        An array has another shape or dtype, or an error above its budget.
    """
    worst = Measure(0.0)
    for name, want in expected.items():
        array = got[name]
        if array.shape != want.value.shape:
            raise Failure(f"{name}: expected shape {want.value.shape}; got {array.shape}")
        if str(array.dtype) != want.dtype:
            raise Failure(f"{name}: expected dtype {want.dtype}; got {array.dtype}")
        measured = measure(name, array, want)
        if not measured.share <= worst.share:
            worst = measured
    if not worst.share <= 1:
        raise Failure(str(worst), worst, {name: (got[name], want) for name, want in expected.items()})
    return worst


def same_bits(what: str, got: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Raise `Failure` unless all arrays are equal bit by bit (a NaN is equal to a NaN)."""
    for name, want in expected.items():
        array = got[name]
        if array.shape != want.shape or array.dtype != want.dtype:
            raise Failure(f"{what}: {name}: expected {want.dtype}{want.shape}; got {array.dtype}{array.shape}")
        different = (array != want) & ~(np.isnan(array) & np.isnan(want))
        if different.any():
            index = tuple(int(i) for i in np.argwhere(different)[0])
            raise Failure(f"{what}: {name}{list(index)}: expected the same bits, {want[index]!r}; got {array[index]!r}")


def _format_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "(no message)"


def _format_type(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
