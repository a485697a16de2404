"""The operands of a forward pass whose weights are stored in fewer bytes.

Products run in functions that are called by address; see `stored_kernels`. So one compiled loop over time serves every
format. Activations are numbers of float32, or integers with a scale for each row.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.gemm.operands import RowRange, Rows, address_of
from lstmcore_numba.gemm.stored_panel import KernelArguments, StoredPanel, call_kernel
from lstmcore_numba.gemm.vector import VECTOR_BYTES, vector_panel_matmul

#: Rows of an input product up to which its weights are widened on load; for more, a panel is widened once. The last
#: steps of a call may be as few, and both ways add in the same order up to here.
STREAMED_ROWS: Final = 2


class StoredKernels(NamedTuple):
    """Addresses of functions of `stored_kernels`, and what a panel of their weights is; 0 for what is not used.

    Attributes
    ----------
    multiply, multiply_wide
        The product with stored weights, and with a widened panel.
    widen
        Widens a panel.
    quantise, exact
        With activations in int16: rounds rows, and multiplies a row that is not finite.
    vector_bytes
        Bytes of a vector of stored weights.
    rows, wide_rows
        Rows of a microkernel at most.
    values, exact_block
        Values of K in a group of integers, and groups whose sums are exact; 1 and 0 if activations are numbers of
        float32.
    """

    multiply: int
    multiply_wide: int
    widen: int
    quantise: int
    exact: int
    vector_bytes: int
    rows: int
    wide_rows: int
    values: int
    exact_block: int


class StoredOperands(NamedTuple):
    """Weights of a layer in fewer bytes, and memory for operands.

    Attributes
    ----------
    kernels
        The functions.
    input, recurrent
        Bytes of the panels of all blocks.
    input_scale, recurrent_scale
        (B, G, lanes) scales of int8 weights; (1, 1, 1) without.
    scratch
        (threads, bytes) a widened panel of W, or rows of x in int16 with their scales.
    state
        (threads, bytes) the recurrent input in int16 with the scales of rows.
    """

    kernels: StoredKernels
    input: Any
    recurrent: Any
    input_scale: Any
    recurrent_scale: Any
    scratch: Any
    state: Any


class StoredGemm(NamedTuple):
    """GEMMs with stored weights: `StoredOperands`, the thread's memory, and an array of the dtype of the state."""

    stored: StoredOperands
    like: Any


class StoredRows(NamedTuple):
    """A left operand: `Rows`, and what integers need.

    Attributes
    ----------
    number, address, row, k, runs, run, size, gap
        As for `Rows`. A number is a group of int16 if activations are integers; then `size` counts groups.
    row_scale
        Address of the scale of each row; 0 for a row that is not finite.
    exact
        The same operand as `Rows` of float32.
    kernel
        Address of the function that multiplies a row of `exact`; 0 if all rows are finite.
    """

    number: Any
    address: int
    row: int
    k: int
    runs: int
    run: int
    size: int
    gap: int
    row_scale: int
    exact: Rows
    kernel: int


@compiled
def multiply_stored(left: Any, panel: Any, sums: Any, rows: Any) -> None:
    """Multiply `StoredRows` with a `StoredPanel`; see `product.multiply_panel`."""
    vector_panel_matmul(left, panel, sums, rows)
    if left.kernel == 0:
        return
    exact = left.exact
    for row in range(rows.total):
        if scale_is_zero(left.row_scale + 4 * row):
            group = row // rows.group
            a = exact.address + row * exact.row + group * exact.gap
            c = sums.address + row * sums.row + group * sums.gap
            call_kernel(
                left.kernel, KernelArguments(a, 0, 0, panel.address, c, 0, 0, exact.size, 1, 0, 1, 0, panel.scale, 0)
            )


@plain_intrinsic
def scale_is_zero(context: Any, address: Any) -> Any:
    """Return whether the float32 at an address is 0."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, args: Any) -> Any:
        word = ir.IntType(32)
        return builder.icmp_signed("==", builder.load(builder.inttoptr(args[0], word.as_pointer())), word(0))

    return types.boolean(types.int64), emit


@plain_intrinsic
def read_flag(context: Any, address: Any) -> Any:
    """Return the int32 at an address, and write 0 there."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, args: Any) -> Any:
        word = ir.IntType(32)
        place = builder.inttoptr(args[0], word.as_pointer())
        value = builder.load(place)
        builder.store(word(0), place)
        return value

    return types.int32(types.int64), emit


@compiled
def groups_of(kernels: Any, k_size: int) -> Any:
    """Return the number of groups of K of `StoredKernels`."""
    return (k_size + kernels.values - 1) // kernels.values


@compiled
def _rounded_rows(kernels: Any, exact: Any, rows: Any, memory: int) -> Any:
    """Return rows rounded to int16 in `memory`, which holds a flag, the scales of rows, and the integers."""
    groups, number = groups_of(kernels, exact.size), 2 * kernels.values
    scales = memory + 64
    integers = scales + (4 * rows.total + 63) // 64 * 64
    for group in range(0, rows.total, rows.group):
        source = exact.address + group * exact.row + group // rows.group * exact.gap
        count = min(rows.group, rows.total - group)
        to = integers + group * number * groups
        call_kernel(
            kernels.quantise,
            KernelArguments(
                source, exact.row, 0, 0, to, number * groups, 0, exact.size, count, 0, 1, 0, memory, scales + 4 * group
            ),
        )
    kernel = kernels.exact if read_flag(memory) != 0 else 0
    return StoredRows(exact.number, integers, number * groups, number, 1, 0, groups, 0, scales, exact, kernel)


@compiled
def _stored_rows(kernels: Any, exact: Any, rows: Any, memory: int) -> Any:
    """Return rows of float32 as the left operand of `kernels`."""
    if kernels.quantise != 0:
        return _rounded_rows(kernels, exact, rows, memory)
    return StoredRows(exact.number, exact.address, exact.row, exact.k, 1, 0, exact.size, exact.gap, 0, exact, 0)


@compiled
def stored_state_rows(gemm: Any, state: Any, k_size: int, share: Any) -> Any:
    """Return a thread's rows of a state; every thread rounds all of the units that it reads."""
    count = share.last - share.first
    exact = Rows(gemm.like.dtype.type(0), state.address + share.first * state.row, state.row, 4, 1, 0, k_size, 0)
    memory = address_of(gemm.stored.state) + share.part * gemm.stored.state.strides[0]
    return _stored_rows(gemm.stored.kernels, exact, RowRange(count, max(count, 1)), memory)


@compiled
def stored_input_rows(gemm: Any, exact: Any, steps: int, share: Any) -> Any:
    """Return a thread's rows of `steps` steps of x. A single row is two equal rows."""
    stored, count = gemm.stored, share.last - share.first
    rows = RowRange(steps * count, max(count, 1))
    if rows.total == 1:
        exact, rows = same_rows(exact), RowRange(2, 2)
    memory = address_of(stored.scratch) + share.part * stored.scratch.strides[0]
    return _stored_rows(stored.kernels, exact, rows, memory)


@compiled
def same_rows(exact: Any) -> Any:
    """Return `Rows` that are all the first one."""
    return Rows(exact.number, exact.address, 0, exact.k, exact.runs, exact.run, exact.size, 0)


@compiled
def same_stored_row_twice(left: Any) -> Any:
    """Return the row of `StoredRows` of one row, which `stored_input_rows` made, as two equal rows."""
    address, exact = left.address, same_rows(left.exact)
    return StoredRows(left.number, address, 0, left.k, 1, 0, left.size, 0, left.row_scale, exact, left.kernel)


@compiled
def _panel(stored: Any, weights: Any, scale: Any, block: int, cols: int, k_size: int) -> Any:
    kernels = stored.kernels
    address = address_of(weights) + block * groups_of(kernels, k_size) * cols * kernels.vector_bytes
    scales = address_of(scale) + block * scale.strides[0]
    return StoredPanel(address, cols, kernels.multiply, kernels.vector_bytes, kernels.rows, scales, kernels.exact_block)


@compiled
def stored_recurrent_panel(gemm: Any, block: int, cols: int, k_size: int) -> Any:
    """Return the recurrent weights of a block."""
    stored = gemm.stored
    return _panel(stored, stored.recurrent, stored.recurrent_scale, block, cols, k_size)


@compiled
def stored_input_panel(gemm: Any, block: int, cols: int, k_size: int, rows: int, part: int) -> Any:
    """Return the weights of x of a block, widened if more than `STREAMED_ROWS` rows are multiplied with them."""
    stored = gemm.stored
    kernels, panel = stored.kernels, _panel(stored, stored.input, stored.input_scale, block, cols, k_size)
    if kernels.quantise != 0 or rows <= STREAMED_ROWS:
        return panel
    memory = address_of(stored.scratch) + part * stored.scratch.strides[0]
    call_kernel(
        kernels.widen, KernelArguments(0, 0, 0, panel.address, memory, 0, 0, k_size, 0, 0, 0, 0, panel.scale, 0)
    )
    return StoredPanel(memory, cols, kernels.multiply_wide, VECTOR_BYTES, kernels.wide_rows, panel.scale, 0)
