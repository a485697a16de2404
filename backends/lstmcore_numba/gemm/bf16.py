"""GEMM of bfloat16 with sums in float32: one instruction of AVX512_BF16 takes two values of k.

If x, h and the weights are bfloat16, their products are exact in float32. The instruction adds two of them where one of
float32 adds one. Two adjacent values are packed as one number of 32 bits. The microkernel loads pairs of weights and
broadcasts pairs of x or h like numbers of float32; only its multiply-add differs.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.codegen.emitter import POINTER, Emitter, Vector
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic

#: The dtype of a pair. `operands.Rows` are packed pairs if their numbers have this dtype.
PAIR: Final = np.dtype(np.int32)
#: Numbers of float32 in a vector of AVX-512; narrower vectors are not supported.
_LANES: Final = 16
_MULTIPLY: Final = "llvm.x86.avx512bf16.dpbf16ps.512"


@cache
def pairs_usable() -> bool:
    """Return whether code for pairs of bfloat16 is compiled. ``LSTMCORE_BF16=0`` disables it.

    Raises
    ------
    ValueError
        The variable is neither 0 nor 1.
    """
    asked = os.environ.get("LSTMCORE_BF16", "1")
    if asked not in ("0", "1"):
        raise ValueError(f"LSTMCORE_BF16: expected 0 or 1, got {asked!r}")
    return asked == "1" and compile_target().has("avx512f", "avx512bf16")


class PairEmitter(Emitter):
    """Emitter for sums of float32 whose factors are vectors of bfloat16 pairs."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        super().__init__(builder, "float32", _LANES)

    def multiply_add(self, a: Vector, b: Vector, term: Vector) -> Vector:
        """Add both products of each pair to the sum.

        Pairs are passed as integers, which every version of LLVM accepts.
        """
        pairs = [self.builder.bitcast(factor.value, self.integers) for factor in (a, b)]
        return Vector(self, self.call(_MULTIPLY, self.type, term.value, *pairs))


@plain_intrinsic
def narrow_to_bf16(context: Any, source: Any, target: Any, count: Any, wanted: Any) -> Any:
    """Copy `count` numbers of float32 as bfloat16, from address `source` to `target`; write zeros unless `wanted`.

    The numbers must be exact in bfloat16, since their low bits are cut off.
    """

    def emit(dummy: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        source, target, count, wanted = args
        e, half, high = Emitter(builder, "float32", _LANES), ir.IntType(16), ir.Constant(ir.IntType(32), 16)
        halves, highs = ir.VectorType(half, _LANES), ir.Constant(ir.VectorType(e.integer, _LANES), [high] * _LANES)
        with e.loop(e.index(0), builder.sdiv(count, e.index(_LANES)), [source, target]) as loop:
            here, there = loop.values
            bits = builder.bitcast(e.load(here).value, e.integers)
            short = builder.trunc(builder.lshr(bits, highs), halves)
            short = builder.select(wanted, short, ir.Constant(halves, None))
            builder.store(short, builder.inttoptr(there, POINTER), align=2)
            loop.carried = [builder.add(here, e.index(4 * _LANES)), builder.add(there, e.index(2 * _LANES))]
        with e.loop(e.index(0), builder.srem(count, e.index(_LANES)), list(loop.values)) as loop:
            here, there = loop.values
            one = builder.load(builder.inttoptr(here, POINTER), typ=e.integer, align=4)
            one = builder.select(wanted, builder.trunc(builder.lshr(one, high), half), ir.Constant(half, 0))
            builder.store(one, builder.inttoptr(there, POINTER), align=2)
            loop.carried = [builder.add(here, e.index(4)), builder.add(there, e.index(2))]
        return dummy.get_dummy_value()

    return types.void(*(types.int64,) * 3, types.boolean), emit


@compiled
def narrow_rows(source: Any, target: Any, first: int, last: int, count: int) -> None:
    """Copy `count` numbers of rows `first` to `last` of a `Plane` to another one, as bfloat16."""
    for k in range(first, last):
        narrow_to_bf16(source.address + k * source.row, target.address + k * target.row, count, True)


def pack_pairs(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows of bfloat16 as pairs, with a 0 at the end of a row of odd length.

    The result is C-contiguous, aligned and writable. It is a view of `x` if `x` allows that, else a copy.
    """
    bits, width = x.view(np.uint16), x.shape[-1]
    if width % 2 == 0 and bits.flags.carray:
        pairs = bits.view(PAIR)
        if pairs.flags.carray:
            return pairs
    whole = np.zeros((*x.shape[:-1], width + width % 2), np.uint16)
    whole[..., :width] = bits
    return whole.view(PAIR)


def pack_weight_pairs(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return weights (B, K, G, lanes) of float32, exact in bfloat16, as pairs along K: (B, K / 2, G, lanes)."""
    blocks, k_size, gates, lanes = weights.shape
    whole = np.zeros((blocks, k_size + k_size % 2, gates, lanes), np.uint16)
    whole[:, :k_size] = weights.view(np.uint32) >> 16
    apart = whole.reshape(blocks, -1, 2, gates, lanes).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(apart).view(PAIR)[..., 0]
