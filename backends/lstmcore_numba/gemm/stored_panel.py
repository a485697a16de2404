"""Panels of weights in fewer bytes, whose microkernel is called by its address."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.codegen.emitter import INDEX
from lstmcore_numba.codegen.numba_compiler import plain_intrinsic
from lstmcore_numba.gemm.operands import unpack
from lstmcore_numba.gemm.tile_shapes import tile_table

#: Values of K that all rows take before the next ones, as for weights of float32.
K_BLOCK: Final = tile_table(compile_target()).k_block


class KernelArguments(NamedTuple):
    """The arguments of every function of this module, all int64; addresses, and strides in bytes.

    Attributes
    ----------
    a, a_row, a_gap
        The first row of the left operand, and its strides; see `operands.Rows`.
    b
        Weights (K, columns), or (groups of K, columns, values of a group).
    c, c_row, c_gap
        The result.
    size
        K. It counts groups if activations are integers.
    rows, place, group, fresh
        See `vector.Tile`.
    scale, row_scale
        The scales of the columns of int8 weights, and of rows of integers. For quads, an int32 for each column of the
        panel follows the scales; see `stored_emitters.QuadEmitter`.
    """

    a: Any
    a_row: Any
    a_gap: Any
    b: Any
    c: Any
    c_row: Any
    c_gap: Any
    size: Any
    rows: Any
    place: Any
    group: Any
    fresh: Any
    scale: Any
    row_scale: Any


class StoredPanel(NamedTuple):
    """A right operand in fewer bytes, whose microkernel is called by its address; see `stored_kernels`.

    Attributes
    ----------
    address, cols
        Of the weights; the number of vectors.
    kernel
        Address of the microkernel.
    vector_bytes, rows
        Bytes of a vector of weights; rows of a microkernel at most.
    scale
        Address of the scales of columns.
    exact_block
        Groups of K whose sums of integers are exact; 0 if activations are numbers of float32.
    """

    address: int
    cols: int
    kernel: int
    vector_bytes: int
    rows: int
    scale: int
    exact_block: int


@plain_intrinsic
def call_kernel(context: Any, function: Any, arguments: Any) -> Any:
    """Call a function of `stored_kernels` with `KernelArguments`."""

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        values = unpack(builder, signature.args[1], args[1])
        kind = ir.FunctionType(ir.VoidType(), [INDEX] * len(values))
        whole = [builder.zext(value, INDEX) if value.type.width < INDEX.width else value for value in values]
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), whole)
        return target.get_dummy_value()

    return types.void(types.int64, arguments), emit


def run_stored_tile(tile: Any, left: Any, panel: Any, sums: Any) -> None:
    """Run the microkernel of a `StoredPanel` for a `vector.Tile` of `StoredRows`."""
    call_kernel(
        panel.kernel,
        KernelArguments(
            tile.a,
            left.row,
            left.gap,
            tile.b,
            tile.c,
            sums.row,
            sums.gap,
            tile.size,
            tile.rows,
            tile.place,
            tile.group,
            tile.fresh,
            panel.scale,
            left.row_scale + 4 * tile.first,
        ),
    )


def stored_panel_tiles(panel: Any, values: int, rows: int) -> Any:
    """Return the same as `vector._panel_tiles`."""
    block = panel.exact_block if panel.exact_block > 0 else K_BLOCK if rows > 1 else max(values, 1)
    return panel.rows, panel.cols, panel.vector_bytes, (values + block - 1) // block
