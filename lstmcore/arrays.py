"""Arrays of any library by the array API standard: NumPy's on the host, those of a backend on its device.

This is the one module that knows namespaces. Code for both asks `namespace_of` once a call, and uses what the standard
has; what the standard lacks is one small function here.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = Any

#: NumPy 2.1 has all that is used of the standard; array-api-compat fills the gaps of older versions.
_IS_STANDARD: Final = hasattr(np, "astype")

#: Numbers of a matrix of ones and zeros that `add_by_row` makes at once.
_CHOSEN: Final = 1 << 24


def _host_namespace() -> Any:
    if _IS_STANDARD:
        return np
    import array_api_compat.numpy  # here, since it takes as long as all of `import lstmcore`

    return array_api_compat.numpy


def namespace_of(*arrays: Array | None, **named: Array | None) -> Any:
    """Return the namespace of arrays of one library on one device; None is passed over.

    Parameters
    ----------
    arrays, named
        The arrays; a keyword is the name of an argument in the message of an error.

    Returns
    -------
    module
        One with the functions of the array API standard: NumPy itself for its arrays, and if there are none.

    Raises
    ------
    TypeError
        Something that is no array, or arrays of two libraries.
    ValueError
        Arrays on two devices. The messages name both arguments.

    Examples
    --------
    >>> xp = namespace_of(x=np.ones((2, 3)), mask=None)
    >>> xp.concat((np.ones(2), np.ones(1))).shape
    (3,)
    """
    for array in (*arrays, *named.values()):
        if type(array) is not np.ndarray:
            return _namespace_of_others({f"array {index}": array for index, array in enumerate(arrays)} | named)
    return _host_namespace()


def _namespace_of_others(named: dict[str, Array | None]) -> Any:
    """Return what `namespace_of` does for arrays that are not all plain arrays of NumPy."""
    given = {name: array for name, array in named.items() if array is not None}
    if not given:
        return _host_namespace()
    places = {name: _place(name, array) for name, array in given.items()}
    (first, (library, where)), *others = places.items()
    for name, (other, there) in others:
        names = [found.__name__.removeprefix("array_api_compat.") for found in (library, other)]
        got = f"expected an array of {names[0]} on {where}, as {first}; got one of {names[1]} on {there}"
        if other is not library:
            raise TypeError(f"{name}: {got}: convert one of them")
        if there != where:
            raise ValueError(f"{name}: {got}: move one of them")
    return library


def _place(name: str, array: Array) -> tuple[Any, Any]:
    """Return the namespace and the device of an array."""
    if is_on_host(array):
        return _host_namespace(), "cpu"
    from array_api_compat import array_namespace

    try:
        return array_namespace(array), device_of(array)
    except TypeError:
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(
            f"{name}: expected an array of a library with the array API standard, such as NumPy or CuPy; got {kind}"
        ) from None


def is_on_host(array: Array) -> bool:
    """Return whether `array` is an array or a number of NumPy.

    Examples
    --------
    >>> is_on_host(np.ones(2))
    True
    """
    return isinstance(array, np.ndarray | np.generic)


def to_host(array: Array) -> npt.NDArray[Any]:
    """Return an array as one of NumPy: itself if it is one, else a copy, for which the device is waited for.

    A library whose arrays are in the memory of the host may share it with the result.

    Examples
    --------
    >>> x = np.ones(2)
    >>> to_host(x) is x
    True
    """
    if isinstance(array, np.ndarray):
        return array
    if is_on_host(array):
        return np.asarray(array)
    copy = getattr(array, "get", None)  # the way of CuPy's arrays, which serves NumPy before 2.1 too
    if callable(copy):
        return np.asarray(copy())
    return np.from_dlpack(array, device="cpu") if _IS_STANDARD else np.from_dlpack(array)


def device_of(array: Array) -> Any:
    """Return the device of an array, for the argument `device` of functions that create arrays.

    Examples
    --------
    >>> device_of(np.ones(2))
    'cpu'
    """
    if is_on_host(array):
        return "cpu"
    from array_api_compat import device

    return device(array)


def move_like(values: npt.NDArray[Any], like: Array) -> Array:
    """Return an array of NumPy in the library and on the device of `like`; on the host it is the array itself.

    Examples
    --------
    >>> values = np.ones(2)
    >>> move_like(values, np.zeros(3)) is values
    True
    """
    if is_on_host(like):
        return values
    xp = namespace_of(like)  # which has no name for the dtypes that NumPy lacks too, such as bfloat16
    return xp.asarray(values, dtype=getattr(xp, values.dtype.name, None), device=device_of(like))


def as_number(value: Array) -> Any:
    """Return an array () as a float on the host; of a device as it is, since nothing shall wait for it.

    Examples
    --------
    >>> as_number(np.float32(0.5))
    0.5
    """
    return float(value) if is_on_host(value) else value


def read_number(value: Any) -> float:
    """Return what `as_number` returned as a float; a device is waited for.

    Examples
    --------
    >>> read_number(0.5)
    0.5
    """
    return value if isinstance(value, float) else float(to_host(value))


def or_one(number: Any) -> Any:
    """Return 1 in place of 0, and other numbers as they are: of what `as_number` returns, as a divisor.

    Examples
    --------
    >>> or_one(0.0), or_one(2.0)
    (1.0, 2.0)
    """
    return number or 1.0 if isinstance(number, float) else namespace_of(number).where(number == 0, 1.0, number)


def cast_number(number: Any, like: Array) -> Any:
    """Return a number for arithmetic in the dtype of `like`: a float has none; an array () of a device is cast.

    Examples
    --------
    >>> cast_number(0.5, np.ones(2, np.float32))
    0.5
    """
    return number if isinstance(number, float) else namespace_of(number).astype(number, like.dtype)


def as_real(array: Array, like: Array) -> Array:
    """Return whole numbers of a device in the dtype that NumPy's arithmetic with `like` has; all else as it is.

    NumPy's own arithmetic needs no such step.

    Examples
    --------
    >>> as_real(np.array([1, 2], np.int16), np.ones(2, np.float32)).dtype.name
    'int16'
    """
    if is_on_host(array) or dtype_kind(array.dtype) == "f":
        return array
    xp, dtype = namespace_of(array), np.result_type(dtype_name(array.dtype), dtype_name(like.dtype))
    return xp.astype(array, getattr(xp, dtype.name))


def add_to_columns(array: Array, columns: Array, value: float) -> Array:
    """Return an array (n, K) with `value` added in one column (n,) of each row; NumPy's own array, changed.

    Examples
    --------
    >>> add_to_columns(np.zeros((2, 3)), np.array([2, 0]), 1.0).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    rows, count = array.shape
    if is_on_host(array):
        array[np.arange(rows), columns] += value
        return array
    xp = namespace_of(array, columns)
    chosen = columns[:, None] == xp.arange(count, dtype=columns.dtype, device=device_of(array))
    return xp.where(chosen, array + value, array)


def add_by_row(count: int, rows: Array, values: Array) -> Array:
    """Return the sums (count, W) of values (n, W) by their rows (n,).

    On a device it is a product with ones and zeros, in parts, so that the sums have one order.

    Examples
    --------
    >>> add_by_row(3, np.array([2, 0, 2]), np.array([[1.0], [2.0], [3.0]])).tolist()
    [[2.0], [0.0], [4.0]]
    """
    if is_on_host(values):
        total = np.zeros((count, values.shape[1]), values.dtype)
        np.add.at(total, rows, values)
        return total
    xp, part = namespace_of(rows, values), max(1, _CHOSEN // max(1, rows.shape[0]))
    rows, sums = xp.astype(rows, xp.int64, copy=False), []  # a short dtype may have no number for the last rows
    for first in range(0, count, part):
        names = xp.arange(first, min(first + part, count), dtype=xp.int64, device=device_of(values))
        sums.append(xp.astype(names[:, None] == rows[None, :], values.dtype) @ values)
    return sums[0] if len(sums) == 1 else xp.concat(sums, axis=0)


def frozen_copy(array: Array) -> Array:
    """Return a copy of an array on its device, read-only if its library has such arrays.

    Examples
    --------
    >>> frozen_copy(np.ones(2)).flags.writeable
    False
    """
    if not is_on_host(array):
        return namespace_of(array).asarray(array, copy=True, device=device_of(array))
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of any library, as NumPy spells it.

    Examples
    --------
    >>> dtype_name(np.dtype("float32"))
    'float32'
    """
    return str(dtype).rpartition(".")[2]


def dtype_kind(dtype: Any) -> str:
    """Return the kind of a dtype of any library as NumPy names it: f, i, u, b, c and so on.

    The 16-bit and 8-bit floating-point formats that NumPy lacks count as f.

    Examples
    --------
    >>> dtype_kind(np.dtype("float32")), dtype_kind(np.dtype("uint8"))
    ('f', 'u')
    """
    kind = getattr(dtype, "kind", None)
    if kind is None or (kind == "V" and dtype.names is None):
        name = dtype_name(dtype)
        return "f" if "float" in name else kind or name[:1]
    return str(kind)
