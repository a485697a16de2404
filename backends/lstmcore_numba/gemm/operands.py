"""Operands of matrix products in compiled code: named groups of addresses and strides, all in bytes.

The types of the operands select the instructions while Numba compiles; see `product`. A type for weights in fewer bytes
needs a panel type, and a microkernel that loads them. The loops over time stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from lstmcore_numba.codegen.numba_compiler import compiled

_CODE: Final[Any] = cgutils  # Numba's type stubs are incomplete


class Plane(NamedTuple):
    """Rows in memory: the address of the first one, and the stride of rows."""

    address: int
    row: int


class Rows(NamedTuple):
    """A left operand in vectors, whose values of k lie side by side.

    Attributes
    ----------
    number
        0 in the dtype of the operand. `bf16.PAIR` stands for packed bfloat16 pairs; then K counts pairs.
    address
        Of the first row.
    row, k
        Strides of rows and of values of k. The latter is the size of a number.
    runs, run, size
        K consists of `runs` runs of `size` values, and `run` is the stride of runs.
    gap
        Added to the stride of rows between the last row of a group and the first row of the next.
    """

    number: Any
    address: int
    row: int
    k: int
    runs: int
    run: int
    size: int
    gap: int


class Columns(NamedTuple):
    """A left operand like `Rows`, but transposed: the values of a k lie side by side, and `row` is the size of one."""

    number: Any
    address: int
    row: int
    k: int
    runs: int
    run: int
    size: int
    gap: int


class SplitRows(NamedTuple):
    """A left operand on AMX: each number as three of bfloat16. Non-finite rows are multiplied in float32.

    Attributes
    ----------
    exact
        The same operand as `Rows` of float32.
    address
        Of the first row of the first parts.
    row, part, gap
        Strides of rows and of parts, and what is added between groups of rows.
    flags
        (threads, rows) bytes: 1 if the part of a row that a thread split is not finite.
    non_finite
        Whether any row is not finite.
    height
        Rows of a tile: 16, or the number of rows if there are fewer.
    """

    exact: Rows
    address: int
    row: int
    part: int
    gap: int
    flags: Any
    non_finite: bool
    height: int


class Panel(NamedTuple):
    """A right operand: the address of weights (K, vectors), and the number of vectors."""

    address: int
    cols: int


class SplitPanel(NamedTuple):
    """A right operand on AMX.

    Attributes
    ----------
    exact
        The same weights in float32.
    address
        Of their parts.
    following
        Address of the parts that are multiplied next; they are prefetched.
    """

    exact: Panel
    address: int
    following: int


class Sums(NamedTuple):
    """The result of a product.

    Attributes
    ----------
    address, row
        Of the first row, and the stride of rows.
    gap
        Added to the stride between groups of rows.
    fresh
        Whether the product replaces what is there; else it is added.
    """

    address: int
    row: int
    gap: int
    fresh: bool


class RowRange(NamedTuple):
    """The rows of a product: `total` rows, in groups of `group`."""

    total: int
    group: int


@compiled
def address_of(array: Any) -> Any:
    """Return the address of an array as a signed integer, as all members of operands are."""
    return np.int64(array.ctypes.data)


def is_split(gemm: Any) -> bool:
    """Return whether the type of the operands of a pass is one on AMX."""
    return "split" in gemm.fields


def unpack(builder: ir.IRBuilder, kind: Any, value: ir.Value) -> Any:
    """Return a group of this Numba type as the same `NamedTuple` of LLVM values."""
    return kind.instance_class(*_CODE.unpack_tuple(builder, value))


def call_microkernel(
    builder: ir.IRBuilder, name: str, emit: Callable[..., None], arguments: Sequence[ir.Value]
) -> None:
    """Call a microkernel, whose code a module has once for all products.

    Inlined, LLVM would compile it for each product.

    Parameters
    ----------
    builder
        Where it is called.
    name
        Of the code, the same for the same code.
    emit
        Emits the code for a builder and LLVM values of the types of `arguments`.
    arguments
        LLVM values.
    """
    module, symbol = builder.module, f"lstmcore_{name}"
    function = module.globals.get(symbol)
    if function is None:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [value.type for value in arguments]), symbol)
        function.linkage = "linkonce_odr"  # one remains where modules are joined
        function.attributes.add("noinline")
        function.attributes.add("nounwind")
        inside = ir.IRBuilder(function.append_basic_block())
        emit(inside, *function.args)
        inside.ret_void()
    builder.call(function, arguments)
