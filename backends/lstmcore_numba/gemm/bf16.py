"""Products of bfloat16 with sums in float32: two values of the inner size in one instruction of AVX512_BF16.

Where x, h and the weights are bfloat16, their products are exact in float32, and the instruction takes twice as many of
them as one of float32 does. A pair of values that lie side by side counts as one number of 32 bits: a tile loads pairs
of weights and broadcasts pairs of x or h as it does with float32, and only its multiply-add is another one.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import config

from lstmcore_numba.codegen.emitter import POINTER, Emitter, Vector, vector_bytes
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic

#: The dtype of a pair, by which the products of `tiles` know that they are of pairs.
PAIR: Final = np.dtype(np.int32)
#: Numbers of float32 in a vector of AVX-512, the only ones that this is for.
_LANES: Final = 16
#: Numba has types where it is installed, but not of everything.
_NUMBA: Final[Any] = config
_MULTIPLY: Final = "llvm.x86.avx512bf16.dpbf16ps.512"


@cache
def usable() -> bool:
    """Whether this processor multiplies pairs of bfloat16. ``LSTMCORE_BF16=0`` says no.

    So does a processor that Numba is told to compile for in place of this one (``NUMBA_CPU_NAME``,
    ``NUMBA_CPU_FEATURES``): an instruction that it does not have would end the process.

    Raises
    ------
    ValueError
        The variable is neither 0 nor 1.
    """
    asked = os.environ.get("LSTMCORE_BF16", "1")
    if asked not in ("0", "1"):
        raise ValueError(f"LSTMCORE_BF16: expected 0 or 1, got {asked!r}")
    if asked == "0" or _NUMBA.CPU_NAME is not None or _NUMBA.CPU_FEATURES is not None:
        return False
    return vector_bytes() == 4 * _LANES and bool(llvm.get_host_cpu_features().get("avx512bf16"))


class PairEmitter(Emitter):
    """Emits code for sums of float32, whose factors are vectors of pairs of bfloat16."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        super().__init__(builder, "float32", _LANES)

    def intrinsic(self, name: str, *values: Vector) -> Vector:
        """A multiply-add: both products of a pair are added to the sum. There is no other operation on pairs.

        LLVM before version 16 has pairs as integers; later ones take these too.
        """
        if name != "fma":
            raise ValueError(f"expected fma, got {name!r}: pairs of bfloat16 have no other operation")
        *factors, term = (value.value for value in values)
        pairs = [self.builder.bitcast(factor, self.integers) for factor in factors]
        return Vector(self, self.call(_MULTIPLY, self.type, term, *pairs))


@plain_intrinsic
def shorten_numbers(context: Any, source: Any, target: Any, count: Any, wanted: Any) -> Any:
    """Copy `count` numbers of float32 that are rounded to bfloat16, as bfloat16; zeros unless they are `wanted`.

    `source` and `target` are addresses.
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
def shorten_rows(source: int, row: int, target: int, target_row: int, first: int, last: int, count: int) -> None:
    """Copy `count` numbers of rows `first` to `last` as bfloat16; distances between rows are in bytes."""
    for k in range(first, last):
        shorten_numbers(source + k * row, target + k * target_row, count, True)


@compiled
def shorten_outputs(
    source: int, row: int, target: int, target_row: int, lengths: Any, t: int, first: int, last: int, count: int
) -> None:
    """As `shorten_rows`, to the outputs of step `t`: 0 past a row's end."""
    for k in range(first, last):
        shorten_numbers(source + k * row, target + k * target_row, count, t < lengths[k])


def paired(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of bfloat16 as pairs, with 0 at the end where their number is odd: a view of `x` where that can be.

    What is returned is in order, aligned and may be written to.
    """
    bits, width = x.view(np.uint16), x.shape[-1]
    if width % 2 == 0 and bits.flags.carray:
        found = bits.view(PAIR)
        if found.flags.carray:
            return found
    whole = np.zeros((*x.shape[:-1], width + width % 2), np.uint16)
    whole[..., :width] = bits
    return whole.view(PAIR)


def paired_weights(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Weights (B, K, G, lanes) of float32, rounded to bfloat16, as pairs of K: (B, K / 2, G, lanes)."""
    blocks, inner, gates, lanes = weights.shape
    whole = np.zeros((blocks, inner + inner % 2, gates, lanes), np.uint16)
    whole[:, :inner] = weights.view(np.uint32) >> 16
    apart = whole.reshape(blocks, -1, 2, gates, lanes).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(apart).view(PAIR)[..., 0]
