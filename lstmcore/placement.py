"""Where the arrays of a call are: on the host as NumPy's, or all on one device of the backend.

Nothing is copied here, in either direction: arrays in two places are an error that names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lstmcore import validation
from lstmcore.arrays import to_host
from lstmcore.config import StackConfig
from lstmcore.containers import Masks, StackMasks
from lstmcore.kernels import LayerBackend
from lstmcore.masks import Drawing, draw_on_host
from lstmcore.precision import Precision
from lstmcore.stored_weights import SAME
from lstmcore.validation import is_on_device, way_to_host

Array = Any


class Placement(NamedTuple):
    """The device of a call's arrays.

    Attributes
    ----------
    name
        The argument that the others go by, such as ``"x"``.
    device
        Its device, as the backend names it.
    library
        The library of its array.
    backend
        The backend whose kernels take such arrays.
    """

    name: str
    device: str
    library: str
    backend: LayerBackend

    def take(self, name: str, array: Any) -> Array:
        """Return `array` as one of the backend's, without a copy.

        Raises
        ------
        TypeError
            No array of a device, or one of a third library.
        ValueError
            An array of another device.
        """
        located = self.backend.locate(array)
        if located is None:
            raise TypeError(
                f"{name}: expected an array on {self.device}, where {self.name} is; got {_type_name(array)}: copy "
                f"{name} to {self.device}, or {self.name} to the host"
            )
        device, own = located
        if device != self.device:
            raise ValueError(
                f"{name}: expected an array on {self.device}, where {self.name} is; got one on {device}: copy "
                f"{name} to {self.device}, or {self.name} to {device}"
            )
        if (library := _library(array)) not in (self.library, _library(own)):
            raise TypeError(
                f"{name}: expected an array of {self.library}, as {self.name} is, or of {_library(own)}; got one of "
                f"{library}: convert {name} or {self.name}"
            )
        return own


def place(name: str, array: Any, backend: LayerBackend) -> tuple[Placement | None, Any]:
    """Return where `array` is, and the array as one of the backend's; None if it is no array of its devices.

    Parameters
    ----------
    name
        The argument, for messages.
    array
        It.
    backend
        The backend that computes with it.

    Raises
    ------
    TypeError
        An array of a device whose arrays the backend does not take.
    """
    if isinstance(array, np.ndarray):
        return None, array
    located = backend.locate(array)
    if located is None:
        if is_on_device(array):
            raise TypeError(
                f"{name}: expected a NumPy array, which backend {backend.name!r} computes with; got "
                f"{_type_name(array)} of a device: copy {name} to the host, or take a backend of that device"
            )
        return None, array
    return Placement(name, located[0], _library(array), backend), located[1]


def drawing(found: Placement | None, like: Array) -> Drawing:
    """Return the function that draws random masks where `like` is, an array of the call as `place` returned it."""
    return draw_on_host if found is None else partial(found.backend.draw_mask, like=like)


def place_parameters(
    name: str, parameters: Any, backend: LayerBackend, precision: Precision
) -> tuple[Placement | None, Any]:
    """Return where arrays of a mapping are, and the arrays as the backend's.

    The host rounds weights into a format, so arrays of a device are copied there if `precision` has one.

    Parameters
    ----------
    name, parameters
        The argument; what is no mapping is returned as it is.
    backend
        The backend that computes with it.
    precision
        The policy of the numbers.

    Raises
    ------
    TypeError, ValueError
        Arrays in two places, as `Placement.take`.
    """
    if not isinstance(parameters, Mapping) or all(isinstance(array, np.ndarray) for array in parameters.values()):
        return None, parameters
    first = f"{name}[{next(iter(parameters))!r}]"
    found, _ = place(first, next(iter(parameters.values())), backend)
    if found is None:
        refuse_device(name, parameters, first)
        return None, parameters
    taken = take(found, name, parameters)
    if precision.weights != SAME:
        return None, {key: to_host(array) for key, array in taken.items()}
    return found, taken


# Arguments of a call, where it computes; with no placement, on the host -----------------------------------------------


def check(
    found: Placement | None, name: str, array: Any, shape: tuple[int | None, ...], dtype: str, letters: str
) -> Array:
    """Check an array and return it where the call computes.

    Parameters
    ----------
    found
        The place of the call.
    name, array, shape, dtype, letters
        As for `lstmcore.validation.check_array`.
    """
    if found is None:
        validation.check_numpy(name, array, shape, dtype, letters=letters)
    else:
        array = found.take(name, array)
        validation.check_array(name, array, shape, dtype, letters=letters)
    return array


def check_state(
    found: Placement | None, name: str, state: Any, stack: StackConfig, rows: tuple[int, ...], precision: Precision
) -> tuple[Array, Array] | None:
    """Check a state and return its pair where the call computes; None stays None.

    Parameters
    ----------
    found
        The place of the call.
    name, state, stack, rows, precision
        As for `lstmcore.validation.check_stack_state`.
    """
    if found is None or state is None:
        return validation.check_stack_state(name, state, stack, rows, precision)
    h, c = validation.check_pair(name, state)
    pair = found.take(f"{name}.h", h), found.take(f"{name}.c", c)
    return validation.check_stack_state(name, pair, stack, rows, precision, host=False)


def take_out(found: Placement | None, out: Any) -> Array:
    """Return the argument `out` where the call computes."""
    if found is not None:
        return found.take("out", out)
    if not isinstance(out, np.ndarray):
        refuse_device("out", out, "x")
        raise TypeError(f"out: expected a NumPy array; got {type(out).__name__}")
    return out


def take(found: Placement | None, name: str, arrays: Any) -> Any:
    """Return a mapping of arrays, or masks, where the call computes; None and what is no array stay.

    Parameters
    ----------
    found
        The place of the call.
    name, arrays
        The argument.
    """
    if found is None:
        refuse_device(name, arrays, "x")
        return arrays
    if isinstance(arrays, Mapping):
        return {key: found.take(f"{name}[{key!r}]", array) for key, array in arrays.items()}
    if isinstance(arrays, StackMasks):
        layers = (take(found, f"{name}.layers[{index}]", layer) for index, layer in enumerate(arrays.layers))
        return StackMasks(tuple(layers), take(found, f"{name}.dropout", tuple(arrays.dropout)))
    if isinstance(arrays, Masks):
        return Masks(*(take(found, f"{name}.{kind}", mask) for kind, mask in arrays._asdict().items()))
    if isinstance(arrays, tuple):
        return tuple(found.take(f"{name}[{index}]", array) for index, array in enumerate(arrays))
    return arrays if arrays is None else found.take(name, arrays)


def refuse_device(name: str, arrays: Any, other: str) -> None:
    """Raise TypeError if an array is on a device or of another library, though the argument `other` is on the host.

    What has a dtype of NumPy, as a data set of h5py, may pass: it is read as an array.

    Parameters
    ----------
    name
        The argument, for messages.
    arrays
        An array, or a mapping, masks or tuple of arrays.
    other
        The argument that is NumPy's.
    """
    if arrays is None or isinstance(arrays, np.ndarray):
        return
    if isinstance(arrays, Mapping):
        for key, array in arrays.items():
            refuse_device(f"{name}[{key!r}]", array, other)
    elif isinstance(arrays, tuple):
        keys = getattr(arrays, "_fields", None)
        for index, array in enumerate(arrays):
            refuse_device(f"{name}.{keys[index]}" if keys else f"{name}[{index}]", array, other)
    elif is_on_device(arrays):
        raise TypeError(
            f"{name}: expected a NumPy array, as {other} is; got {_type_name(arrays)}{way_to_host(name, other)}"
        )
    elif not isinstance(getattr(arrays, "dtype", None), np.dtype | None):
        raise TypeError(
            f"{name}: expected a NumPy array; got {_type_name(arrays)}, of dtype {arrays.dtype}: convert {name}"
        )


def _type_name(array: Any) -> str:
    if isinstance(array, np.ndarray):
        return "a NumPy array"
    return f"{type(array).__module__}.{type(array).__qualname__}"


def _library(array: Any) -> str:
    return type(array).__module__.partition(".")[0]
