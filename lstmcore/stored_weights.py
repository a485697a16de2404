"""Weights in fewer bytes: the formats, rounding into one and back. SPEC.md, "Stored weights", defines both exactly.

An LSTM with stored weights is the float32 LSTM whose matrices are what reading back gives. Nothing else changes, except
that ``int8a16`` also rounds activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

#: The format of int8 weights whose products are those of integers: activations are rounded to int16.
INT8A16: Final = "int8a16"
#: Format -> bytes of a number.
FORMATS: Final[Mapping[str, int]] = {"bfloat16": 2, "float16": 2, "int8": 1, INT8A16: 1}
#: The format of weights that are stored as they are.
SAME: Final = "same"
#: The features of `Capabilities` that stand for the formats.
WEIGHT_FEATURES: Final = frozenset(f"weights:{name}" for name in FORMATS)

#: Parameters that are stored in a format, without their suffix: the matrices. The vectors stay as they are.
MATRICES: Final = ("weight_x", "weight_h", "weight_proj")
#: Format -> dtype of the values of a matrix.
_DTYPES: Final = {"bfloat16": "uint16", "float16": "float16", "int8": "int8", INT8A16: "int8"}
#: The largest magnitude of an int8 weight: -128 is not used, so that a weight and its negative are stored alike.
_LARGEST: Final = 127
#: Bits of a float32 that a scale leaves zero: then the product of a scale and an int8 weight is exact.
_SCALE_BITS: Final = np.uint32(0xFFFFFF00)
#: The least scale of a row: a product with it has no subnormal bits.
_LEAST_SCALE: Final = np.float32(2.0**-100)


@dataclass(frozen=True, slots=True, eq=False)
class StoredMatrix:
    """A matrix in a format.

    Attributes
    ----------
    format
        A name of `FORMATS`.
    values
        (rows, columns): int8, float16, or uint16 with the bits of bfloat16.
    scale
        (rows,), float32: the number that an int8 weight of that row is multiplied by. None for formats of 16 bits.
    """

    format: str
    values: Array
    scale: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def check(self, name: str, scale_name: str) -> None:
        """Raise unless these are numbers that a rounding can give; the names are those for messages.

        Raises
        ------
        TypeError, ValueError
            Values or scales of another type, dtype, shape or range.
        """
        wanted = ((name, self.values, _DTYPES[self.format], 2), (scale_name, self.scale, "float32", 1))
        for what, array, dtype, ndim in wanted[: 2 if has_scales(self.format) else 1]:
            if not isinstance(array, np.ndarray) or str(array.dtype) != dtype or array.ndim != ndim:
                kind = getattr(array, "dtype", type(array).__name__)
                raise TypeError(f"{what}: expected an array of {dtype} with ndim={ndim}; got {kind}")
        if self.scale is not None:
            if self.scale.shape != self.values.shape[:1]:
                raise ValueError(f"{scale_name}: expected shape {self.values.shape[:1]}; got {self.scale.shape}")
            if not (self.scale > 0).all():
                raise ValueError(f"{scale_name}: expected numbers above 0; got {self.scale.min()}")
        if has_scales(self.format) and self.values.size and self.values.min() < -_LARGEST:
            raise ValueError(f"{name}: expected -{_LARGEST} to {_LARGEST}; got {self.values.min()}")
        if not np.isfinite(self.read()).all():
            raise ValueError(f"{name}: expected finite numbers; got NaN or infinity")

    def frozen_copy(self) -> StoredMatrix:
        """Return a copy whose arrays are read-only."""
        copy = replace(self, values=self.values.copy(), scale=None if self.scale is None else self.scale.copy())
        return _frozen(copy)

    def read(self, dtype: npt.DTypeLike = np.float32) -> Array:
        """Return the matrix as numbers of `dtype`: float32 or float64, both exact."""
        if self.scale is not None:
            product: Array = self.values.astype(np.float32) * self.scale[:, None]
            return product.astype(dtype, copy=False)
        if self.format == "bfloat16":
            return (self.values.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(dtype, copy=False)
        return self.values.astype(dtype)


def _frozen(matrix: StoredMatrix) -> StoredMatrix:
    """Make the arrays of a matrix read-only and return it."""
    for array in (matrix.values, matrix.scale):
        if array is not None:
            array.flags.writeable = False
    return matrix


def store(name: str, matrix: Array, form: str) -> StoredMatrix:
    """Round a matrix into a format: to the nearest number, ties to even.

    Parameters
    ----------
    name
        That of the matrix, for messages.
    matrix
        (rows, columns), float32 or float64, finite.
    form
        A name of `FORMATS`.

    Raises
    ------
    ValueError
        A number that is too large for the format.
    """
    with np.errstate(over="ignore", under="ignore"):
        numbers = matrix.astype(np.float32)
        if has_scales(form):
            stored = _store_int8(numbers, form)
        elif form == "bfloat16":
            bits = numbers.view(np.uint32)
            rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            stored = StoredMatrix(form, (rounded >> np.uint32(16)).astype(np.uint16))
        else:
            stored = StoredMatrix(form, numbers.astype(np.float16))
    if not np.isfinite(stored.read()).all():
        largest = float(np.abs(matrix).max())
        raise ValueError(f"{name}: expected numbers that {form} can hold; got one of magnitude {largest:.4g}")
    return _frozen(stored)


def has_scales(form: str) -> bool:
    """Return whether a format holds int8 numbers with a scale for each row."""
    return _DTYPES.get(form) == "int8"


def _store_int8(numbers: Array, form: str) -> StoredMatrix:
    largest = np.abs(numbers).max(axis=1, initial=0.0)
    scale = ((largest / np.float32(_LARGEST)).view(np.uint32) & _SCALE_BITS).view(np.float32)
    scale = np.where(largest == 0, np.float32(1), np.maximum(scale, _LEAST_SCALE))
    values = np.clip(np.rint(numbers / scale[:, None]), -_LARGEST, _LARGEST).astype(np.int8)
    return StoredMatrix(form, values, scale)


def is_matrix(name: str) -> bool:
    """Return whether a parameter of this name is one of the `MATRICES`; a prefix in the name ends with a dot."""
    return name.rpartition(".")[2].startswith(MATRICES)


def store_parameters(parameters: Mapping[str, Array | StoredMatrix], form: str) -> dict[str, Array | StoredMatrix]:
    """Return the parameters with their matrices in a format; `SAME` leaves all of them as they are.

    A matrix that is stored already stays.

    Raises
    ------
    ValueError
        As `store`.
    """
    if form == SAME:
        return dict(parameters)
    return {
        name: array
        if isinstance(array, StoredMatrix) or not is_matrix(name)
        else store(f"parameters[{name!r}]", array, form)
        for name, array in parameters.items()
    }


def read_parameters(parameters: Mapping[str, Array | StoredMatrix], dtype: npt.DTypeLike) -> dict[str, Array]:
    """Return the parameters as arrays of `dtype`, a new array for each stored matrix."""
    return {name: array.read(dtype) if isinstance(array, StoredMatrix) else array for name, array in parameters.items()}


# The tensors of a file -----------------------------------------------------------------------------------------------

#: What follows the name of an int8 matrix in the name of its scales.
_SCALE: Final = ":scale"


def to_tensors(parameters: Mapping[str, Array | StoredMatrix]) -> dict[str, Array]:
    """Return the tensors of parameters: a stored matrix gives its values, and its scales under NAME:scale."""
    tensors: dict[str, Array] = {}
    for name, array in parameters.items():
        if isinstance(array, StoredMatrix):
            tensors[name] = array.values
            if array.scale is not None:
                tensors[name + _SCALE] = array.scale
        else:
            tensors[name] = array
    return tensors


def tensor_shapes(shapes: Mapping[str, tuple[int, ...]], form: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of parameters of these `shapes`."""
    scales = {name + _SCALE: shape[:1] for name, shape in shapes.items() if has_scales(form) and is_matrix(name)}
    return {**shapes, **scales}


def tensor_dtypes(shapes: Mapping[str, tuple[int, ...]], form: str) -> dict[str, str]:
    """Return the dtypes of those tensors of parameters that are not in the dtype of all others."""
    if form == SAME:
        return {}
    matrices = [name for name in shapes if is_matrix(name)]
    return dict.fromkeys(matrices, _DTYPES[form]) | {name + _SCALE: "float32" for name in matrices if has_scales(form)}


def from_tensors(tensors: Mapping[str, Array], form: str) -> dict[str, Array | StoredMatrix]:
    """Return the parameters of tensors whose names, shapes and dtypes are right.

    Raises
    ------
    ValueError
        A value or a scale that no rounding gives; the message names the tensor.
    """
    if form == SAME:
        return dict(tensors)
    parameters: dict[str, Array | StoredMatrix] = {}
    for name, array in tensors.items():
        if name.endswith(_SCALE):
            continue
        if not is_matrix(name):
            parameters[name] = array
            continue
        matrix = StoredMatrix(form, array, tensors.get(name + _SCALE))
        matrix.check(f"tensor {name!r}", f"tensor {name + _SCALE!r}")
        parameters[name] = matrix
    return parameters
