"""Files of TFLite: the tensors and operators of each graph. The package tflite knows the layout of the file."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.extras import installing
from lstmcore.files import check_regular

Array: TypeAlias = npt.NDArray[Any]

#: TFLite's number of a type -> NumPy's name.
_DTYPES: Final = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float64",
}  # fmt: skip
#: Offsets in the file have 32 bits, of which the format uses 31.
_MOST_BYTES: Final = 2**31 - 1
#: What reading of a damaged model raises.
DAMAGE: Final = (struct.error, IndexError, TypeError, ValueError, OverflowError, AttributeError)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph.

    Attributes
    ----------
    name
        Its name, which may be '' or that of another tensor too.
    shape
        -1 stands for an axis of any length.
    dtype
        NumPy's name, or TFLite's number of a type that NumPy lacks.
    data
        The bytes of a constant, None for a tensor that is computed.
    scale, zero, axis
        Of a quantised tensor: one number, or one for each place of the axis; else empty.
    sparse
        Whether the constant has only some of its numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None
    scale: Array
    zero: Array
    axis: int
    sparse: bool

    def stored(self) -> Array:
        """Return the numbers of a constant as the file has them.

        Raises
        ------
        ValueError
            Not a constant, one with only some of its numbers, or with more or fewer bytes than its shape needs.
        """
        if self.data is None:
            raise ValueError(f"expected a constant of the model; got {self.name!r}, which is known in a run alone")
        if self.sparse or self.dtype not in _DTYPES.values():
            kind = "a sparse one" if self.sparse else f"type {self.dtype}"
            raise ValueError(f"expected a dense tensor of a known type; got {kind} in {self.name!r}")
        size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if min(self.shape, default=0) < 0 or size != len(self.data):
            raise ValueError(f"expected {self.dtype} {self.shape} in {self.name!r}; got {len(self.data)} bytes")
        return self.data.view(np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape).astype(self.dtype)

    def values(self) -> Array:
        """Return the numbers that a constant stands for: float32 of a quantised one, as TFLite reads it back.

        Raises
        ------
        ValueError
            As `stored`; scales of another number.
        """
        stored = self.stored()
        if not self.scale.size or stored.dtype.kind not in "iu":
            return stored
        return ((stored.astype(np.int64) - self.by_place(self.zero)) * self.by_place(self.scale)).astype(np.float32)

    def by_place(self, numbers: Array) -> Array:
        """Return scales or zero points in the shape that is broadcast along the other axes; raise ValueError."""
        if len(numbers) == 1:
            return numbers
        if not 0 <= self.axis < len(self.shape) or len(numbers) != self.shape[self.axis]:
            raise ValueError(
                f"expected one scale, or one for each place of an axis, of {self.name!r}; got {len(numbers)}"
            )
        return numbers.reshape([-1 if place == self.axis else 1 for place in range(len(self.shape))])


@dataclass(frozen=True)
class Operator:
    """An operator: its name in TFLite, places of tensors in its graph (-1 for one left out), and its options."""

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    table: Any

    def first(self) -> int:
        """Return the place of the first input; raise ValueError if there is none."""
        if not self.inputs or self.inputs[0] < 0:
            raise ValueError(f"expected an input of the operator {self.code}; got none")
        return self.inputs[0]

    def options(self, kind: str) -> Any:
        """Return the options, whose table TFLite names `kind`; raise ValueError if it has none."""
        import tflite

        if self.table is None:
            raise ValueError(f"expected options of the operator {self.code}; got none")
        options = getattr(tflite, kind)()
        options.Init(self.table.Bytes, self.table.Pos)
        return options


@dataclass(frozen=True)
class Graph:
    """A graph of a model; its operators are in an order in which they can be computed."""

    tensors: Sequence[Tensor]
    operators: Sequence[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def open_tflite(path: str | Path) -> list[Graph]:
    """Return the graphs of a model; the first is the model, others are bodies of loops and the like.

    Raises
    ------
    ValueError
        A file of another kind, or a damaged one.
    OSError, ImportError
        The file cannot be read; the package tflite is not installed.
    """
    check_regular(path)
    try:
        import tflite
    except ImportError:
        raise ImportError(f"{path}: needs the package tflite to be read: {installing('tflite')}") from None
    if (size := Path(path).stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{path}: expected less than 2 GiB, as a TFLite model has; got {size:,} bytes")
    content = Path(path).read_bytes()
    if content[4:8] != b"TFL3":
        raise ValueError(f"{path}: expected a TFLite model; got another kind of file")
    try:
        return _Reader(tflite, content).graphs()
    except DAMAGE as error:
        raise ValueError(f"{path}: expected a whole TFLite model; got a damaged one: {error}") from error


class _Reader:
    """Reads a model once. A file whose parts overlap may stand for far more than its size: it is refused."""

    def __init__(self, tflite: Any, content: bytes) -> None:
        self._left = len(content)
        model = tflite.Model.GetRootAs(content, 0)
        codes = self._tables(model, "OperatorCodes")
        numbers = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes]
        self._codes = [tflite.BUILTIN_OPCODE2NAME.get(number, f"operator {number}") for number in numbers]
        self._buffers = self._tables(model, "Buffers")
        self._graphs = self._tables(model, "Subgraphs")

    def _spend(self, size: int) -> int:
        self._left -= size
        if self._left < 0:
            raise ValueError("parts that overlap")
        return size

    def _tables(self, table: Any, name: str) -> list[Any]:
        count = getattr(table, f"{name}Length")()
        self._spend(4 * count)
        return [getattr(table, name)(place) for place in range(count)]

    def _numbers(self, table: Any, name: str) -> Array:
        if not self._spend(4 * getattr(table, f"{name}Length")()):
            return np.zeros(0)
        numbers: Array = getattr(table, f"{name}AsNumpy")()
        return numbers

    def _places(self, table: Any, name: str, least: int, count: int) -> tuple[int, ...]:
        places = tuple(map(int, self._numbers(table, name)))
        if places and not (least <= min(places) and max(places) < count):
            raise ValueError(f"{name.lower()}: expected places of {count} tensors; got {min(places)} to {max(places)}")
        return places

    def graphs(self) -> list[Graph]:
        """Return all graphs."""
        if not self._graphs:
            raise ValueError("no graph")
        return [self._graph(table) for table in self._graphs]

    def _graph(self, table: Any) -> Graph:
        tensors = [self._tensor(each) for each in self._tables(table, "Tensors")]
        operators = [self._operator(each, len(tensors)) for each in self._tables(table, "Operators")]
        ends = (self._places(table, name, 0, len(tensors)) for name in ("Inputs", "Outputs"))
        return Graph(tensors, operators, *ends)

    def _operator(self, table: Any, count: int) -> Operator:
        inputs = self._places(table, "Inputs", -1, count)
        outputs = self._places(table, "Outputs", 0, count)
        return Operator(self._codes[table.OpcodeIndex()], inputs, outputs, table.BuiltinOptions())

    def _tensor(self, table: Any) -> Tensor:
        name = table.Name() or b""
        self._spend(len(name))
        free = self._numbers(table, "ShapeSignature")
        shape = tuple(map(int, free if free.size else self._numbers(table, "Shape")))
        quantization, scale, zero, axis = table.Quantization(), np.zeros(0), np.zeros(0), 0
        if quantization is not None:
            scale, zero = (self._numbers(quantization, part).copy() for part in ("Scale", "ZeroPoint"))
            axis = quantization.QuantizedDimension()
        zero = zero if zero.size else np.zeros(1, np.int64)
        dtype = _DTYPES.get(table.Type(), str(table.Type()))
        sparse = table.Sparsity() is not None
        return Tensor(name.decode("utf-8", "replace"), shape, dtype, self._data(table), scale, zero, axis, sparse)

    def _data(self, table: Any) -> Array | None:
        """Return the bytes of a constant; those after the end of the model, as of 2 GiB and more, are refused."""
        buffer = self._buffers[table.Buffer()]
        if buffer.Offset() > 1:
            raise ValueError("constants outside of the model's part of the file, which are not read")
        data: Array | None = buffer.DataAsNumpy() if buffer.DataLength() else None
        return data
