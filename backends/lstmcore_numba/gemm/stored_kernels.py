"""Functions in LLVM code that multiply by weights in fewer bytes, reached by their addresses.

A weight is widened to float32 when it is loaded, so a product of one row reads fewer bytes. Weights of int8 may also be
multiplied with activations of int16, whose sums are exact in int32. The loops over time call these functions by
address, so that they are compiled once for all formats.

All functions have one signature, `KernelArguments`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir

from lstmcore.locks import ForkSafeLock
from lstmcore_numba.codegen.compile_target import CompileTarget, compile_target
from lstmcore_numba.codegen.emitter import INDEX, Vector
from lstmcore_numba.codegen.step_compiler import compile_module
from lstmcore_numba.gemm.activation_rounding import emit_quantise
from lstmcore_numba.gemm.stored_emitters import INTEGER_FORMS, GroupWeights, PairEmitter, QuadEmitter, StoredEmitter
from lstmcore_numba.gemm.stored_panel import KernelArguments
from lstmcore_numba.gemm.tile_shapes import TileShape, TileTable, tile_table
from lstmcore_numba.gemm.vector import TileValues, emit_tile

_LOCK: Final = ForkSafeLock()
#: LLVM may not unroll the loops: a microkernel of one row has sums for all the values of K that registers allow. With
#: more of them in a turn, widened bfloat16 made LLVM store two sums on the stack, on AVX2 for Zen 3.
UNROLLS: Final = False
#: Bytes of a register -> pairs of registers, and the microkernels of quads.
_QUADS: Final = {
    64: (17, (TileShape(3, 1), TileShape(3, 2), TileShape(3, 3), TileShape(3, 4))),
    32: (9, (TileShape(3, 1), TileShape(3, 2), TileShape(3, 2), TileShape(3, 2))),
}


def stored_table(target: CompileTarget, form: str) -> TileTable:
    """Return the microkernels for a format: those of float32, with fewer rows where the widening needs registers."""
    table = tile_table(target)
    if form == "quads":  # a sum is two registers
        return TileTable(*_QUADS[target.vector_bytes], table.k_block)
    if form in ("float32", "scaled") or target.vector_bytes > 32:
        return table
    if form == "pairs":
        rows = 6 if target.vector_bytes > 16 else 4
        one, two = TileShape(rows, 1), TileShape(rows, 2)
        return TileTable(15, (one, two, two, two), table.k_block)
    if target.vector_registers > 16:
        return table
    panels = (TileShape(6, 1), TileShape(4, 2), TileShape(2, 3), TileShape(2, 4))
    return TileTable(15, panels, table.k_block)  # one more holds what is widened


def _switch_rows(builder: ir.IRBuilder, rows: ir.Value, most: int, emit: Callable[[int], None]) -> None:
    """Emit a case for each number of rows from 1 to `most`."""
    done = builder.append_basic_block("tiled")
    cases = builder.switch(rows, done)
    for count in range(1, most + 1):
        block = builder.append_basic_block(f"rows{count}")
        cases.add_case(ir.Constant(INDEX, count), block)
        builder.position_at_end(block)
        emit(count)
        builder.branch(done)
    builder.position_at_end(done)


def emit_multiply(
    builder: ir.IRBuilder, arguments: KernelArguments, form: str, cols: int, target: CompileTarget
) -> None:
    """Emit the product of up to as many rows as a microkernel has with a panel of `cols` vectors in a format."""
    kind = {"pairs": PairEmitter, "quads": QuadEmitter}.get(form, StoredEmitter)
    table, k = stored_table(target, form), arguments
    most, width = table.panels[cols - 1]

    def emit_rows(rows: int) -> None:
        taken = cols if rows == 1 else width
        for first in range(0, cols, taken):
            e = kind(builder, form, cols, target, arguments, first)
            numbers = e.index(4 * e.lanes * first)
            b = e.address(k.b, e.index(first * e.weight_bytes))
            c, scale = e.address(k.c, numbers), e.address(k.scale, numbers)
            e.arguments = arguments._replace(b=b, c=c, scale=scale)
            emit_tile(e, table, TileShape(rows, min(taken, cols - first)), _tile_values(e))

    _switch_rows(builder, k.rows, most, emit_rows)


def _tile_values(e: StoredEmitter) -> TileValues:
    """Return the arguments of an emitter as those of a microkernel."""
    k, zero = e.arguments, e.index(0)
    fresh = e.builder.icmp_signed("!=", k.fresh, zero)
    b_k = e.index(e.cols * e.weight_bytes)
    left, result = (k.a, k.a_row, e.index(e.number_bytes), zero, k.a_gap), (k.c, k.c_row, k.c_gap)
    return TileValues(*left, k.b, b_k, *result, e.index(1), k.size, k.place, k.group, fresh)


def emit_widen(builder: ir.IRBuilder, arguments: KernelArguments, form: str, cols: int, target: CompileTarget) -> None:
    """Emit the copy of a panel of `size` values of K as float32 to address `c`."""
    e = StoredEmitter(builder, form, cols, target, arguments)
    with e.loop(e.index(0), arguments.size, [arguments.b, arguments.c]) as loop:
        weights, place = loop.values
        for column in range(cols):
            e.store(e.load_weights(weights, column), e.address(place, e.index(4 * e.lanes * column)))
        loop.carried = [
            e.address(weights, e.index(cols * e.weight_bytes)),
            e.address(place, e.index(4 * e.lanes * cols)),
        ]


def emit_exact(builder: ir.IRBuilder, arguments: KernelArguments, form: str, cols: int, target: CompileTarget) -> None:
    """Emit the product of one row of float32, whose weights are in groups; it is added to the result."""
    e, k = GroupWeights(builder, form, cols, target, arguments), arguments
    values = e.index(INTEGER_FORMS[form].values)
    with e.loop(e.index(0), k.size, [e.constant(0).value] * cols) as loop:
        number = e.broadcast(e.address(k.a, builder.mul(loop.i, e.index(4))))
        group, place = builder.udiv(loop.i, values), builder.urem(loop.i, values)
        weights = e.address(k.b, builder.mul(group, e.index(cols * e.weight_bytes)))
        loop.carried = [
            e.multiply_add(number, e.weights_of(weights, column, place), Vector(e, total)).value
            for column, total in enumerate(loop.values)
        ]
    for column, total in enumerate(loop.values):
        place = e.address(k.c, e.index(4 * e.lanes * column))
        e.store(e.load(place) + Vector(e, total), place)


_EMIT: Final = {"multiply": emit_multiply, "widen": emit_widen, "exact": emit_exact, "quantise": emit_quantise}


def emit_kernel(module: ir.Module, what: str, form: str, cols: int, target: CompileTarget) -> None:
    """Emit the function `what` (``multiply``, ``widen``, ``exact``, ``quantise``) with this name into a module."""
    kind = ir.FunctionType(ir.VoidType(), [INDEX] * len(KernelArguments._fields))
    function = ir.Function(module, kind, what)
    builder = ir.IRBuilder(function.append_basic_block())
    _EMIT[what](builder, KernelArguments(*function.args), form, cols, target)
    builder.ret_void()


def widens(form: str, target: CompileTarget) -> bool:
    """Return whether a processor widens a format on load. Without F16C, x86 calls a function for each float16."""
    return form != "float16" or not target.triple.startswith("x86_64") or target.has("f16c") or target.has("avx512f")


@lru_cache(maxsize=64)
def _compile(what: str, form: str, cols: int) -> Any:
    module = ir.Module("lstmcore")
    module.triple = llvm.get_process_triple()
    emit_kernel(module, what, form, cols, compile_target())
    return compile_module(module, what, unrolls=UNROLLS)


def compile_kernel(what: str, form: str, cols: int) -> Any:
    """Return a `CompiledStep`: the function `what` for panels of `cols` vectors of weights in a format."""
    with _LOCK.lock:
        return _compile(what, form, cols)
