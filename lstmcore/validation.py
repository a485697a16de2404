"""Checks of arguments that all backends share. Each error names the argument, the expected value and the actual one."""

# long file: every check of an argument that is an array

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.arrays import dtype_kind, dtype_name
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.containers import Masks, StackMasks, State, Tangents
from lstmcore.precision import Precision
from lstmcore.stored_weights import StoredMatrix

Lengths = npt.NDArray[np.int64]

#: NumPy's own dtypes by name. Each is one object, which a comparison with `is` finds sooner than one with a name.
DTYPES: Final = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
#: DLPack's device types of memory that the processor reads: its own, and what is pinned for a GPU.
_HOST_MEMORY: Final = (1, 3, 11)
OVERLAP: Final = "out: expected memory of its own; it overlaps an input, which must not be written to"


def check_array(name: str, array: Any, shape: tuple[int | None, ...], dtype: str, *, letters: str = "") -> None:
    """Raise unless `array` has that shape (None matches any size) and dtype.

    Parameters
    ----------
    name
        That of the argument, for messages.
    array
        The argument.
    shape, dtype
        The expected ones; None in `shape` matches any size.
    letters
        The letters of the shape, for messages, for example ``"(T, N, I)"``.

    Raises
    ------
    TypeError
        Not an array, or another dtype.
    ValueError
        Another shape.
    """
    actual = getattr(array, "shape", None)
    kind = getattr(array, "dtype", None)
    if type(array) is not np.ndarray:
        refuse_masked(name, array)
    if actual == shape and kind is not None and (kind is DTYPES.get(dtype) or kind == dtype):  # most calls end here
        return
    if actual is None or kind is None:
        raise TypeError(f"{name}: expected an array of {dtype}; got {type(array).__name__}")
    if kind != dtype and dtype_name(kind) != dtype:  # the comparison is a thirtieth of the time of str
        raise TypeError(f"{name}: expected dtype {dtype}; got {kind}: convert it with {name}.astype({dtype!r})")
    if len(actual) != len(shape) or any(want not in (None, size) for want, size in zip(shape, actual, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape) + ("," if len(shape) == 1 else "")
        meaning = f" = {letters}" if letters else ""
        raise ValueError(f"{name}: expected shape ({wanted}){meaning}; got {tuple(actual)}")


def check_real(name: str, array: Any, *, axes: int = 0, width: int | None = None, kinds: str = "fiu") -> None:
    """Raise unless `array` is a plain array of real numbers.

    Parameters
    ----------
    name
        That of the argument, for messages.
    array
        The argument, of NumPy or of a device.
    axes
        How many axes it needs at least.
    width
        The size of its last axis; None takes any size from 1.
    kinds
        Kinds of dtypes as NumPy names them: f floating point, i and u whole numbers. The 16-bit formats that NumPy
        lacks count as f.

    Raises
    ------
    TypeError
        No array, a masked one, or numbers of another kind, such as complex ones.
    ValueError
        Too few axes, or another width.
    """
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if not isinstance(shape, tuple) or dtype is None:
        raise TypeError(f"{name}: expected an array of numbers; got {type(array).__name__}")
    refuse_masked(name, array)
    if dtype_kind(dtype) not in kinds:
        wanted = "floating-point numbers" if kinds == "f" else "real numbers" if "f" in kinds else "integers"
        raise TypeError(f"{name}: expected an array of {wanted}; got dtype {dtype}")
    if len(shape) < axes or (axes and (shape[-1] < 1 or width not in (None, shape[-1]))):
        end = "K with K >= 1" if width is None else str(width)
        raise ValueError(f"{name}: expected shape (..., {end}); got {shape}")


def refuse_masked(name: str, array: Any) -> None:
    """Raise TypeError if `array` is a NumPy masked array: NumPy's functions would drop its mask silently."""
    if type(array) is not np.ndarray and isinstance(array, np.ndarray) and isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected a plain array; got a masked one, whose mask would be lost: use {name}.filled(value), "
            "and lengths for sequences that end earlier"
        )


def as_array(name: str, values: Any) -> npt.NDArray[Any]:
    """Return `values` as an array; ragged lists are a ValueError."""
    refuse_masked(name, values)
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(f"{name}: expected an array; got rows of different lengths") from None


def check_state(name: str, state: State | None, config: LSTMConfig, batch: int, precision: Precision) -> None:
    """Raise unless `state` is None or a pair (h, c) of (N, P) and (N, H).

    Parameters
    ----------
    name
        That of the argument, for messages.
    state
        The argument.
    config
        The layer.
    batch
        N.
    precision
        The policy of the numbers.

    Raises
    ------
    TypeError, ValueError
        As `check_array`.
    """
    if state is None:
        return
    h, c = check_pair(name, state)
    check_array(f"{name}.h", h, (batch, config.output_size), precision.storage, letters="(N, P)")
    check_array(f"{name}.c", c, (batch, config.hidden_size), precision.compute, letters="(N, H)")


def check_pair(name: str, state: Any) -> tuple[Any, Any]:
    """Raise unless `state` is a tuple or list (h, c); return the two."""
    if not isinstance(state, tuple | list) or len(state) != 2:
        count = f" of {len(state)}" if isinstance(state, tuple | list) else ""
        raise TypeError(f"{name}: expected a pair (h, c); got {type(state).__name__}{count}")
    return state[0], state[1]


def check_lengths(lengths: Any, steps: int, batch: int) -> Lengths | None:
    """Check `lengths` against (N,) and 0 to T; return them as int64, or None if every row has all T steps."""
    if lengths is None:
        return None
    if not isinstance(lengths, np.ndarray | list | tuple) and is_on_device(lengths):
        raise TypeError(
            "lengths: expected whole numbers on the host, which are checked without waiting for a device; got "
            f"{type(lengths).__module__}.{type(lengths).__qualname__} of a device: copy lengths to the host"
        )
    array = as_array("lengths", lengths)
    if array.size == 0 and array.dtype == np.float64 and not isinstance(lengths, np.ndarray):
        array = array.astype(np.int64)  # NumPy gives an empty list float64
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected whole numbers; got dtype {array.dtype}")
    if array.shape != (batch,):
        raise ValueError(f"lengths: expected shape ({batch},) = (N,); got {array.shape}")
    wrong = np.flatnonzero((array < 0) | (array > steps))
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(f"lengths[{row}]: expected 0 to T={steps}; got {array[row]}")
    return None if bool((array == steps).all()) else array.astype(np.int64)


def check_masks(
    masks: Masks | None, steps: int, batch: int, config: LSTMConfig, precision: Precision, *, name: str = "masks"
) -> None:
    """Raise unless every mask has its shape and belongs to a rate > 0.

    Parameters
    ----------
    masks
        The argument.
    steps, batch
        T and N.
    config, precision
        Those of the kernel.
    name
        That of the argument, for messages.

    Raises
    ------
    TypeError, ValueError
        As `check_array`; a mask for a rate of 0.
    """
    if masks is None:
        return
    if not isinstance(masks, Masks):
        raise TypeError(f"{name}: expected lstmcore.backend.Masks; got {type(masks).__name__}")
    for kind, value, rate, shape in (
        ("recurrent", masks.recurrent, config.recurrent_dropout, (batch, config.recurrent_size)),
        ("zoneout_hidden", masks.zoneout_hidden, config.zoneout_hidden, (steps, batch, config.output_size)),
        ("zoneout_cell", masks.zoneout_cell, config.zoneout_cell, (steps, batch, config.hidden_size)),
    ):
        if value is None:
            continue
        if rate == 0.0:
            raise ValueError(f"{name}.{kind}: expected None, since the configuration's rate is 0; got an array")
        check_array(f"{name}.{kind}", value, shape, precision.compute)


def check_call(
    config: LSTMConfig, precision: Precision, x: Any, state: State | None, lengths: Any, masks: Masks | None
) -> Lengths | None:
    """Check the arguments of a forward pass of one layer and return the lengths as `check_lengths` does.

    Parameters
    ----------
    config, precision
        Those of the kernel.
    x, state, lengths, masks
        The arguments of `lstmcore.backend.Kernel.forward`.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type, dtype, shape or range.
    """
    check_array("x", x, (None, None, config.input_size), precision.storage, letters="(T, N, I)")
    steps, batch = x.shape[:2]
    check_state("state", state, config, batch, precision)
    check_masks(masks, steps, batch, config, precision)
    return check_lengths(lengths, steps, batch)


def check_out(
    out: Any, shape: tuple[int, ...], precision: Precision, inputs: Iterable[Any], *, letters: str = "(T, N, P)"
) -> None:
    """Raise unless `out` is None or a writable array of that shape that shares no memory with `inputs`.

    Parameters
    ----------
    out
        The argument.
    shape
        The expected one.
    precision
        The policy of the numbers.
    inputs
        Arrays of the call, in tuples of any depth.
    letters
        The letters of the shape, for messages.

    Raises
    ------
    TypeError, ValueError
        As `check_array`; memory that overlaps itself or an input.
    """
    if out is None:
        return
    check_array("out", out, shape, precision.storage, letters=letters)
    if isinstance(out, np.ndarray):
        if not out.flags.writeable:
            raise ValueError("out: expected a writable array; got a read-only one")
        inputs = (array for array in _flat(inputs) if isinstance(array, np.ndarray))
    else:
        inputs = list(_flat(inputs))
        if any(array is out for array in inputs):  # of any library, whether or not it tells addresses
            raise ValueError(OVERLAP)
        out, inputs = _addresses(out), map(_addresses, inputs)
    if not out.flags.c_contiguous and _overlaps_itself(out):
        raise ValueError(
            f"out: expected memory of its own for every entry; got strides {out.strides} for shape {out.shape}, "
            "which overlap: use np.empty"
        )
    for array in inputs:
        if np.may_share_memory(out, array) and np.shares_memory(out, array):
            raise ValueError(OVERLAP)


class _Addresses:
    """The addresses of an array of a device, as NumPy's protocol for arrays has them."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = {**interface, "version": 3}


def _addresses(array: Any) -> npt.NDArray[Any]:
    """Return an array of NumPy with the addresses of `array`, to compare. Its entries must not be read.

    One without addresses, such as None or an array of another library, is empty.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        return np.empty(0)
    return np.asarray(_Addresses({key: interface[key] for key in ("data", "shape", "strides", "typestr")}))


def _overlaps_itself(array: npt.NDArray[Any]) -> bool:
    """Return whether two entries may share memory: an axis takes smaller steps than the axes inside it reach."""
    reach = array.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach += (size - 1) * stride
    return False


def _flat(items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        if isinstance(item, tuple | list):
            yield from _flat(item)
        else:
            yield item


def check_mapping(name: str, parameters: Any) -> None:
    """Raise TypeError unless the argument `name` is a mapping, whatever it holds."""
    if not isinstance(parameters, Mapping):
        raise TypeError(f"{name}: expected a mapping of name to array; got {type(parameters).__name__}")


def check_parameters(
    name: str, parameters: Any, shapes: Mapping[str, tuple[int, ...]], precision: Precision, *, partial: bool = False
) -> None:
    """Raise unless `parameters` maps the names of `shapes` (some of them, if `partial`) to fitting arrays.

    Parameters
    ----------
    name
        That of the argument, for messages.
    parameters
        The argument.
    shapes
        Parameter name -> shape.
    precision
        The policy of the numbers.
    partial
        Whether names may be missing.

    Raises
    ------
    TypeError, ValueError
        As `check_array`; an unknown or a missing name.
    """
    check_mapping(name, parameters)
    if unknown := sorted(set(map(str, parameters)) - set(shapes)):
        raise ValueError(f"{name}: unknown {', '.join(unknown)}; expected {', '.join(shapes)}")
    missing = [key for key in shapes if key not in parameters]
    if missing and not partial:
        raise ValueError(f"{name}: {', '.join(missing)} missing; expected {', '.join(shapes)}")
    for key, value in parameters.items():
        check_array(f"{name}[{key!r}]", value, shapes[key], precision.storage)


def check_stored(parameters: Any, precision: Precision) -> dict[str, StoredMatrix]:
    """Return copies of the stored matrices in `parameters`; raise for another format and for wrong numbers."""
    found = {}
    for name, value in parameters.items() if isinstance(parameters, Mapping) else ():
        if isinstance(value, StoredMatrix):
            if value.format != precision.weights:
                raise ValueError(
                    f"parameters[{name!r}]: expected the format of the weights, {precision.weights}; got {value.format}"
                )
            value.check(f"parameters[{name!r}]", f"parameters[{name!r}].scale")
            found[name] = value.frozen_copy()
    return found


def check_tangents(tangents: Tangents, shape: tuple[int, ...], config: LSTMConfig, precision: Precision) -> None:
    """Raise unless every tangent has the shape and dtype of its array.

    Parameters
    ----------
    tangents
        The argument.
    shape
        (T, N, I), that of x.
    config, precision
        Those of the kernel.

    Raises
    ------
    TypeError, ValueError
        As `check_array`.
    """
    if tangents.x is not None:
        check_array("tangents.x", tangents.x, shape, precision.storage, letters="(T, N, I)")
    check_state("tangents.state", tangents.state, config, shape[1], precision)
    if tangents.parameters is not None:
        check_parameters("tangents.parameters", tangents.parameters, config.parameter_shapes, precision, partial=True)


# Stacks: what `lstmcore.LSTM` checks once for all layers and directions ---------------------------------------------


def check_stack_state(
    name: str, state: Any, stack: StackConfig, rows: tuple[int, ...], precision: Precision, *, host: bool = True
) -> tuple[Any, Any] | None:
    """Raise unless `state` is None or a pair (h, c) of (L * D, N, P) and (L * D, N, H); return the pair.

    Parameters
    ----------
    name
        That of the argument, for messages.
    state
        The argument.
    stack
        All layers and directions.
    rows
        ``(N,)``, or empty for one sequence without a batch axis.
    precision
        The policy of the numbers.
    host
        Whether only arrays of NumPy are taken.

    Raises
    ------
    TypeError, ValueError
        As `check_array`.
    """
    if state is None:
        return None
    h, c = check_pair(name, state)
    directions, check = stack.layers[0], check_numpy if host else check_array
    config, entries, axis = directions[0], len(stack.layers) * len(directions), ", N" if rows else ""
    check(f"{name}.h", h, (entries, *rows, config.output_size), precision.storage, letters=f"(L * D{axis}, P)")
    check(f"{name}.c", c, (entries, *rows, config.hidden_size), precision.compute, letters=f"(L * D{axis}, H)")
    return h, c


def check_stack_masks(
    masks: StackMasks | None, steps: int, batch: int, stack: StackConfig, precision: Precision
) -> None:
    """Raise unless `masks` has one `Masks` for each of `StackConfig.configs`, and dropout masks for a rate > 0.

    Parameters
    ----------
    masks
        The argument.
    steps, batch
        T and N.
    stack, precision
        Those of the kernel.

    Raises
    ------
    TypeError, ValueError
        As `check_masks`.
    """
    if masks is None:
        return
    if not isinstance(masks, StackMasks):
        raise TypeError(f"masks: expected lstmcore.backend.StackMasks; got {type(masks).__name__}")
    layers, dropout = masks
    if not isinstance(layers, tuple | list) or not isinstance(dropout, tuple | list):
        raise TypeError("masks: expected StackMasks of two tuples, layers and dropout; got something else in it")
    if len(layers) != len(stack.configs):
        raise ValueError(
            f"masks.layers: expected {len(stack.configs)}, one for each layer and direction; got {len(layers)}"
        )
    for index, (config, layer) in enumerate(zip(stack.configs, layers, strict=True)):
        if layer is None:
            raise TypeError(
                f"masks.layers[{index}]: expected lstmcore.backend.Masks; got None: use Masks() for no mask"
            )
        check_masks(layer, steps, batch, config, precision, name=f"masks.layers[{index}]")
    between = stack.num_layers - 1 if stack.dropout else 0
    if dropout and len(dropout) != between:
        raise ValueError(f"masks.dropout: expected {between}, one between each two layers, or none; got {len(dropout)}")
    shape = (steps, batch, stack.num_directions * stack.output_size)
    for index, mask in enumerate(dropout):
        check_array(f"masks.dropout[{index}]", mask, shape, precision.compute, letters="(T, N, D * P)")


def check_finite_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Raise unless every number of `parameters` is finite."""
    for key, value in parameters.items():
        finite = np.isfinite(value)
        if not finite.all():
            where = tuple(int(axis[0]) for axis in np.nonzero(~finite))
            raise ValueError(f"{name}[{key!r}]: expected finite numbers; got {value[where]} at {list(where)}")


def check_numpy(name: str, array: Any, shape: tuple[int | None, ...], dtype: str, *, letters: str = "") -> None:
    """Raise as `check_array` does, and unless `array` is a NumPy array.

    Parameters
    ----------
    name, array, shape, dtype, letters
        As for `check_array`.
    """
    if not isinstance(array, np.ndarray):
        kind = type(array)
        hint = way_to_host(name, "x") if is_on_device(array) else ""
        raise TypeError(f"{name}: expected a NumPy array of {dtype}; got {kind.__module__}.{kind.__qualname__}{hint}")
    check_array(name, array, shape, dtype, letters=letters)


def is_on_device(array: Any) -> bool:
    """Return whether `array` says that its numbers are not in the host's memory; False if it cannot tell."""
    if isinstance(array, type):
        return False
    if hasattr(array, "__dlpack_device__"):
        try:
            return int(array.__dlpack_device__()[0]) not in _HOST_MEMORY
        except Exception:  # each library raises its own for a device that DLPack does not know
            return False
    return hasattr(array, "__cuda_array_interface__")


def way_to_host(name: str, other: str) -> str:
    """Return the end of a message about an array of a device, where the argument `other` is NumPy's."""
    copy = f" of a device: copy {name} to the host"
    return copy if name == other else f"{copy}, or {other}, which is on the host, to the device"
