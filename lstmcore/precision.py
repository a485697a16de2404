"""Named precision policies: the dtypes of storage and of computation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

import numpy as np

from lstmcore.stored_weights import FORMATS, INT8A16, SAME

#: The epsilon of products of int8 weights and int16 activations: that of an activation at the largest one of its row.
INTEGER_EPSILON: Final = 2.0**-15


@dataclass(frozen=True, slots=True)
class Precision:
    """A policy for the numbers of a kernel.

    Attributes
    ----------
    name
        The policy's name.
    storage
        Name of the dtype of x, y, h, the parameters and their gradients.
    compute
        Name of the dtype of the cell state c, of the masks and (at least) of every sum.
    epsilon
        The unit in which errors are stated: the distance from 1 to the next number of the coarsest format that
        a product may round its operands to.
    operands
        What a product of matrices does with its operands: takes them as they are, or rounds them to the 10 bits of
        TF32, to the nearest number or towards zero.
    weights
        The format in which the weight matrices are stored: a name of `stored_weights.FORMATS`, or ``"same"`` for the
        storage dtype. With ``"int8a16"``, products are those of int8 weights and int16 activations.
    """

    name: str
    storage: str
    compute: str
    epsilon: float
    operands: Literal["as they are", "nearest", "towards zero"] = "as they are"
    weights: str = SAME

    @property
    def label(self) -> str:
        """The name, and the format of the weights unless it is the same."""
        return self.name if self.weights == SAME else f"{self.name} with {self.weights} weights"

    def with_weights(self, form: str) -> Self:
        """Return this policy with weights stored in a format.

        Raises
        ------
        TypeError
            No name.
        ValueError
            An unknown format, one for a precision whose weights have 16 bits already, or ``"int8a16"`` for another one
            than float32.
        """
        if not isinstance(form, str):
            raise TypeError(f"weights: expected the name of a format; got {form!r}, a {type(form).__name__}")
        if form == self.weights:
            return self
        if form != SAME and form not in FORMATS:
            raise ValueError(f"weights: expected one of {', '.join((SAME, *FORMATS))}; got {form!r}")
        if form != SAME and self.storage not in ("float32", "float64"):
            raise ValueError(f"weights: expected {SAME!r}, since {self.name} has 16 bits a weight; got {form!r}")
        if form == INT8A16 and self.name != "float32":
            raise ValueError(
                f"weights: expected a format other than {INT8A16!r}, which has float32 sums, for {self.name}"
            )
        epsilon = INTEGER_EPSILON if form == INT8A16 else PRECISIONS[self.name].epsilon
        return replace(self, weights=form, epsilon=epsilon)


PRECISIONS: Final[Mapping[str, Precision]] = {
    precision.name: precision
    for precision in (
        Precision("float64", "float64", "float64", 2.0**-52),
        Precision("float32", "float32", "float32", 2.0**-23),
        Precision("tf32", "float32", "float32", 2.0**-10, "nearest"),
        Precision("bfloat16", "bfloat16", "float32", 2.0**-7),
        Precision("float16", "float16", "float32", 2.0**-10),
    )
}


def get_precision(name: object) -> Precision:
    """Return the policy of a name or of a dtype such as ``numpy.float32``; ``"int8a16"`` is float32 with such weights.

    Raises
    ------
    ValueError
        No policy has that name.
    """
    if isinstance(name, Precision):
        return name
    text = name if isinstance(name, str) else getattr(name, "__name__", None) or str(name)
    if text == INT8A16:
        return PRECISIONS["float32"].with_weights(INT8A16)
    if text not in PRECISIONS:
        raise ValueError(f"dtype: expected one of {', '.join(PRECISIONS)}; got {name!r}")
    return PRECISIONS[text]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a `Precision.storage` or `Precision.compute`.

    Raises
    ------
    ImportError
        bfloat16, which the package ml_dtypes defines, without that package.
    """
    if name == "bfloat16":
        try:
            import ml_dtypes  # type: ignore[import-not-found,unused-ignore]  # optional, not in the base installation
        except ImportError:
            raise ImportError("dtype bfloat16: needs the package ml_dtypes: 'pip install ml_dtypes'") from None
        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(name)
