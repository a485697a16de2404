"""Work of one compiled pass on several threads, which wait for it in compiled code.

A thread that waits has a slot: some integers in a cache line of its own. A pass puts its address and that of its
arguments there, and the thread takes them within a microsecond, without the interpreter. One that has waited for long
falls asleep, and only the interpreter can wake it (`threads`).
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

from lstmcore_numba.codegen.emitter import INDEX
from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic

_INTEGER: Final = INDEX.as_pointer()
#: Numba has types where it is installed, but not of everything.
_TYPES: Final[Any] = types
_CODE: Final[Any] = cgutils
#: Bytes of memory for arguments that are kept.
KEPT_BYTES: Final = 1 << 13
#: How often a thread looks whether the others have arrived before it gives way to them, some tens of microseconds; and
#: where they may have more left to do than a step. On a busy machine who gives way is away for milliseconds.
_SPINS: Final = 1_000
MANY_SPINS: Final = 10_000


class Slot(IntEnum):
    """Where the integers of a slot are, in bytes. `PARTS` is 0 until the work may begin."""

    STATE = 0
    FUNCTION = 8
    ARGUMENTS = 16
    PART = 24
    PARTS = 32
    DONE = 40


class Waiting(IntEnum):
    """What a thread does: looks for work, has some to take, has taken it, sleeps."""

    IDLE = 0
    POSTED = 1
    TAKEN = 2
    ASLEEP = 3


@plain_intrinsic
def read(context: Any, address: Any) -> Any:
    """The integer at `address`, before all that is read after."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _INTEGER), "acquire", 8)

    return types.int64(types.int64), emit


@plain_intrinsic
def write(context: Any, address: Any, value: Any) -> Any:
    """Put `value` at `address`, after all that was written before."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], _INTEGER), "release", 8)
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@plain_intrinsic
def exchange(context: Any, address: Any, expected: Any, value: Any) -> Any:
    """Put `value` at `address` where `expected` is there; whether it was."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, args: Any) -> Any:
        found = builder.cmpxchg(builder.inttoptr(args[0], _INTEGER), args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@plain_intrinsic
def arrive(context: Any, counter: Any) -> Any:
    """Add 1 to the integer at the address `counter`, after all that was written before."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        builder.atomic_rmw("add", builder.inttoptr(args[0], _INTEGER), ir.Constant(INDEX, 1), "acq_rel")
        return target.get_dummy_value()

    return types.void(types.int64), emit


@plain_intrinsic
def relax(context: Any) -> Any:
    """Tell the processor that this is a loop that waits, where it has an instruction for that."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, __: Any) -> Any:
        if "x86" in builder.module.triple or "i686" in builder.module.triple:
            _outside(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return target.get_dummy_value()

    return types.void(), emit


@plain_intrinsic
def give_way(context: Any) -> Any:
    """Let another thread have the processor."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, __: Any) -> Any:
        _outside(builder, "SwitchToThread" if sys.platform == "win32" else "sched_yield", ir.IntType(32))
        return target.get_dummy_value()

    return types.void(), emit


def _outside(builder: ir.IRBuilder, name: str, result: ir.Type) -> None:
    """Call a function without arguments."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, []), name)
    builder.call(function, [])


@plain_intrinsic
def outlined(context: Any, inner: Any, args: Any) -> Any:
    """The addresses of a function ``(arguments, part, parts)`` that calls ``inner(part, parts, *args)``, and of `args`.

    Both hold until the caller returns.
    """

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        found, tuple_type = signature.args[0].dispatcher, signature.args[1]
        room = _CODE.alloca_once_value(builder, values[1])
        function = _outlined(target, builder, found, tuple_type, values[1].type)
        both = [builder.ptrtoint(function, INDEX), builder.ptrtoint(room, INDEX)]
        return target.make_tuple(builder, signature.return_type, both)

    return _TYPES.UniTuple(_TYPES.int64, 2)(inner, args), emit


def _outlined(target: Any, builder: ir.IRBuilder, found: Any, tuple_type: Any, stored: ir.Type) -> ir.Function:
    wanted = types.void(types.int64, types.int64, *tuple_type.types)
    body = target.compile_subroutine(builder, found.py_func, wanted)
    kind = ir.FunctionType(ir.VoidType(), [INDEX] * 3)
    function = ir.Function(builder.module, kind, builder.module.get_unique_name("outlined"))
    function.linkage = "internal"
    inside = ir.IRBuilder(function.append_basic_block())
    given = inside.load(inside.inttoptr(function.args[0], stored.as_pointer()))
    each = [inside.extract_value(given, k) for k in range(len(tuple_type.types))]
    target.call_internal_no_propagate(inside, body.fndesc, wanted, [*function.args[1:], *each])
    inside.ret_void()
    return function


@plain_intrinsic
def kept(context: Any, inner: Any, args: Any, room: Any, places: Any) -> Any:
    """As `outlined`, with `args` in the memory at the address `room`: both hold as long as the arrays do.

    At the address `places`, an integer for each of `args` becomes the address at which that of an array's numbers is
    kept, so that another array of the same shape can take its place; 0 where there is no array.
    """

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        found, tuple_type = signature.args[0].dispatcher, signature.args[1]
        function = _outlined(target, builder, found, tuple_type, values[1].type)
        if target.get_abi_sizeof(values[1].type) > KEPT_BYTES:
            raise ValueError(f"kept arguments: expected at most {KEPT_BYTES} bytes")
        _, _, room, places = values
        stored = builder.inttoptr(room, values[1].type.as_pointer())
        builder.store(_without_owners(target, builder, tuple_type, values[1]), stored)
        index = builder.inttoptr(places, _INTEGER)
        for k, kind in enumerate(tuple_type.types):
            place: ir.Value = ir.Constant(INDEX, 0)
            if isinstance(kind, types.Array):
                data = target.data_model_manager[kind].get_field_position("data")
                place = builder.ptrtoint(_CODE.gep_inbounds(builder, stored, 0, k, data), INDEX)
            builder.store(place, builder.gep(index, [ir.Constant(INDEX, k)]))
        return builder.ptrtoint(function, INDEX)

    return types.int64(inner, args, types.int64, types.int64), emit


def _without_owners(target: Any, builder: ir.IRBuilder, kind: Any, value: ir.Value) -> ir.Value:
    """Arguments whose arrays do not count who refers to them: whoever keeps them sees to that."""
    if isinstance(kind, _TYPES.BaseTuple):
        for k, item in enumerate(kind.types):
            bare = _without_owners(target, builder, item, builder.extract_value(value, k))
            value = builder.insert_value(value, bare, k)
    elif isinstance(kind, types.Array):
        array = _CODE.create_struct_proxy(kind)(target, builder, value=value)
        for name in ("meminfo", "parent"):
            setattr(array, name, ir.Constant(getattr(array, name).type, None))
        value = array._getvalue()
    return value


@plain_intrinsic
def call_part(context: Any, function: Any, arguments: Any, part: Any, parts: Any) -> Any:
    """Call what `outlined` made."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [INDEX] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return target.get_dummy_value()

    return types.void(*(types.int64,) * 4), emit


@compiled
def look(address: int, count: int) -> None:
    """Look `count` times, as a thread that waits does."""
    for _ in range(count):
        read(address)
        relax()


@compiled
def serve(slot: int, patience: int) -> None:
    """Do the work that is put into the slot at this address, until there was none for as many looks as `patience`."""
    waited = 0
    while True:
        if read(slot + Slot.STATE) == Waiting.POSTED and exchange(slot + Slot.STATE, Waiting.POSTED, Waiting.TAKEN):
            wait_for(slot + Slot.PARTS, 1)
            call_part(
                read(slot + Slot.FUNCTION),
                read(slot + Slot.ARGUMENTS),
                read(slot + Slot.PART),
                read(slot + Slot.PARTS),
            )
            write(slot + Slot.STATE, Waiting.IDLE)
            write(slot + Slot.DONE, 1)
            waited = 0
        elif waited < patience:
            relax()
            waited += 1
        elif exchange(slot + Slot.STATE, Waiting.IDLE, Waiting.ASLEEP):
            return


@compiled
def side_by_side(team: Any, work: Any) -> None:
    """Call the two addresses `work` of `outlined` for every part: one here, one on each thread of `team` awake.

    ``team[0]`` says how often to look whether a thread has taken its part; who has not by then gets none. The others
    are addresses of slots.
    """
    function, arguments = work
    for slot in team[1:]:
        write(slot + Slot.FUNCTION, function)
        write(slot + Slot.ARGUMENTS, arguments)
        write(slot + Slot.PARTS, 0)
        write(slot + Slot.DONE, 0)
        exchange(slot + Slot.STATE, Waiting.IDLE, Waiting.POSTED)
    for _ in range(team[0]):
        taken = 0
        for slot in team[1:]:
            taken += read(slot + Slot.STATE) == Waiting.TAKEN
        if taken == len(team) - 1:
            break
        relax()
    parts = 1
    for slot in team[1:]:
        if not exchange(slot + Slot.STATE, Waiting.POSTED, Waiting.IDLE) and read(slot + Slot.STATE) == Waiting.TAKEN:
            write(slot + Slot.PART, parts)
            parts += 1
    for slot in team[1:]:
        if read(slot + Slot.STATE) == Waiting.TAKEN:
            write(slot + Slot.PARTS, parts)
    call_part(function, arguments, 0, parts)
    for slot in team[1:]:
        if read(slot + Slot.PARTS) > 0:
            wait_for(slot + Slot.DONE, 1, MANY_SPINS)


@compiled
def wait_for(address: int, least: int, looks: int = _SPINS) -> None:
    """Wait until the integer at `address` is `least` or more; gives way to others after so many looks."""
    spins = 0
    while read(address) < least:
        spins += 1
        if spins < looks:
            relax()
        else:
            give_way()


@compiled
def meet(counter: int, number: int) -> None:
    """Wait until all have arrived, `number` times in total."""
    arrive(counter)
    wait_for(counter, number)
