"""Atomic operations on integers at an address, spinning waits and a barrier, in compiled code.

An address is an int64. Every integer is an int64 too.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from llvmlite import ir
from numba import types

from lstmcore_numba.codegen.emitter import INDEX
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
from lstmcore_numba.tuning import BARRIER_SPINS

INTEGER_POINTER: Final = INDEX.as_pointer()


@plain_intrinsic
def read(context: Any, address: Any) -> Any:
    """Return the integer at `address`, before all later reads (acquire)."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], INTEGER_POINTER), "acquire", 8)

    return types.int64(types.int64), emit


@plain_intrinsic
def write(context: Any, address: Any, value: Any) -> Any:
    """Store `value` at `address`, after all earlier writes (release)."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], INTEGER_POINTER), "release", 8)
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@plain_intrinsic
def compare_and_swap(context: Any, address: Any, expected: Any, value: Any) -> Any:
    """Store `value` at `address` if `expected` is there. Return whether it was."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], INTEGER_POINTER)
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "acq_rel", "acquire"), 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@plain_intrinsic
def increment(context: Any, counter: Any) -> Any:
    """Add 1 to the integer at the address `counter`, after all earlier writes."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        builder.atomic_rmw("add", builder.inttoptr(args[0], INTEGER_POINTER), ir.Constant(INDEX, 1), "acq_rel")
        return target.get_dummy_value()

    return types.void(types.int64), emit


@plain_intrinsic
def pause(context: Any) -> Any:
    """Execute the processor's instruction for spinning loops, if it has one."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, __: Any) -> Any:
        if "x86" in builder.module.triple or "i686" in builder.module.triple:
            _call_external(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return target.get_dummy_value()

    return types.void(), emit


@plain_intrinsic
def yield_processor(context: Any) -> Any:
    """Let the operating system run another thread on this processor."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, __: Any) -> Any:
        _call_external(builder, "SwitchToThread" if sys.platform == "win32" else "sched_yield", ir.IntType(32))
        return target.get_dummy_value()

    return types.void(), emit


def _call_external(builder: ir.IRBuilder, name: str, result: ir.Type) -> None:
    """Emit a call of an external function without arguments."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, []), name)
    builder.call(function, [])


@compiled
def spin(address: int, count: int) -> None:
    """Read `count` times, like a waiting thread does."""
    for _ in range(count):
        read(address)
        pause()


@compiled
def wait_for(address: int, least: int, spin_limit: int = BARRIER_SPINS) -> None:
    """Wait until the integer at `address` is `least` or more; yield the processor after `spin_limit` reads."""
    spins = 0
    while read(address) < least:
        spins += 1
        if spins < spin_limit:
            pause()
        else:
            yield_processor()


@compiled
def barrier(counter: int, total: int) -> None:
    """Count this thread's arrival and wait until the integer at `counter` is `total`."""
    increment(counter)
    wait_for(counter, total)
