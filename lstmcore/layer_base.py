"""The base of the layers around an LSTM: parameters by name, which are where those were that were loaded last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore import validation
from lstmcore.arrays import frozen_copy, is_on_host, namespace_of
from lstmcore.precision import get_precision
from lstmcore.validation import is_on_device

Array: TypeAlias = npt.NDArray[Any]


class LayerGradients(NamedTuple):
    """Gradients of the input (None if it is no real number), of the parameters by name, and of queries (if any).

    Examples
    --------
    >>> from lstmcore.layers import Linear
    >>> linear = Linear(3, 2, seed=0)
    >>> y, tape = linear.record(np.ones((4, 3), np.float32))
    >>> linear.backward(tape, np.ones_like(y)).parameters["bias"]
    array([4., 4.], dtype=float32)
    """

    x: Array | None
    parameters: dict[str, Array]
    queries: Array | None = None


class Layer(ABC):
    """A layer with parameters.

    Parameters
    ----------
    shapes
        Parameter name -> shape.
    fan_in
        Initial numbers are uniform in ``+-1 / sqrt(fan_in)``.
    dtype
        ``"float32"`` or ``"float64"``.
    seed
        Of the initial numbers; None draws one from the operating system.
    """

    _on_devices: ClassVar[bool] = False  # whether it computes where its parameters are, else on the host alone

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], fan_in: int, dtype: str, seed: int | None) -> None:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype: expected 'float32' or 'float64'; got {dtype!r}")
        self.dtype, self.parameter_shapes = dtype, dict(shapes)
        random, bound = np.random.default_rng(seed), fan_in**-0.5
        self.load_parameters({name: random.uniform(-bound, bound, s).astype(dtype) for name, s in shapes.items()})

    @property
    def parameters(self) -> dict[str, Array]:
        """Parameter name -> array, read-only."""
        return dict(self._parameters)

    def load_parameters(self, parameters: Mapping[str, Array], prefix: str = "") -> None:
        """Set all parameters (copied).

        Parameters
        ----------
        parameters
            Names and arrays; those without `prefix` are passed over if there is one.
        prefix
            What precedes the names, for example ``"encoder."``.

        Raises
        ------
        TypeError, ValueError
            A missing or unknown name, a wrong shape or dtype, a number on the host that is not finite; arrays on two
            devices, or on a device that the layer does not take. Nothing waits for numbers on a device.
        """
        validation.check_mapping("parameters", parameters)
        text = {str(name): value for name, value in parameters.items()}  # what is no text is no name of ours either
        found = {name.removeprefix(prefix): value for name, value in text.items() if name.startswith(prefix)}
        validation.check_parameters("parameters", found, self.parameter_shapes, get_precision(self.dtype))
        if away := [name for name, value in found.items() if is_on_device(value)]:
            self._load_from_device(found, away[0])
            return
        copies = {name: np.array(found[name], order="C") for name in self.parameter_shapes}
        validation.check_finite_parameters("parameters", copies)
        for array in copies.values():
            array.flags.writeable = False
        self._parameters = copies

    def _load_from_device(self, found: Mapping[str, Array], away: str) -> None:
        if not self._on_devices:
            raise TypeError(
                f"parameters[{away!r}]: expected a NumPy array, which {type(self).__name__} computes with; got one of "
                "a device: copy it to the host"
            )
        namespace_of(**{f"parameters[{name!r}]": found[name] for name in self.parameter_shapes})
        self._parameters = {name: frozen_copy(found[name]) for name in self.parameter_shapes}

    def __call__(self, x: Array) -> Array:
        """Return y as `record` does, without the tape."""
        return self.record(x)[0]

    @abstractmethod
    def record(self, x: Array) -> tuple[Array, Any]:
        """Return y, and what `backward` needs."""

    @abstractmethod
    def backward(self, tape: Any, dy: Array) -> LayerGradients:
        """Return the gradients of ``sum(dy * y)`` for a recorded call."""

    def _check(self, name: str, array: Any, shape: tuple[int | None, ...], letters: str) -> None:
        validation.check_numpy(name, array, shape, self.dtype, letters=letters)

    def _check_place(self, name: str, array: Any, shape: tuple[int | None, ...], letters: str) -> Any:
        """Check an array that has to be where the parameters are, and return their namespace."""
        parameter = next(iter(self._parameters.values()))
        if is_on_host(parameter):
            self._check(name, array, shape, letters)
        xp = namespace_of(**{"parameters": parameter, name: array})
        validation.check_array(name, array, shape, self.dtype, letters=letters)
        return xp
