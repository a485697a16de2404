"""Tasks: a compiled function with its arguments, which any thread can call by two addresses.

The function of a task has the signature ``(arguments, part, parts)``: the address of its arguments, the index of the
caller's part of the work, and the number of parts.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

from lstmcore_numba.codegen.emitter import INDEX
from lstmcore_numba.codegen.numba_compiler import plain_intrinsic
from lstmcore_numba.runtime.barrier import INTEGER_POINTER

_TYPES: Final[Any] = types  # Numba's type stubs are incomplete
_CODE: Final[Any] = cgutils
#: Bytes of memory for the arguments of a stored task. Those of the forward pass take about half of it.
STORED_TASK_BYTES: Final = 1 << 13


@plain_intrinsic
def make_task(context: Any, inner: Any, args: Any) -> Any:
    """Return the addresses of a function that calls ``inner(part, parts, *args)``, and of a copy of `args`.

    Both are valid until the caller returns.
    """

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        dispatcher, tuple_type = signature.args[0].dispatcher, signature.args[1]
        arguments = _CODE.alloca_once_value(builder, values[1])
        function = _emit_task_function(target, builder, dispatcher, tuple_type, values[1].type)
        both = [builder.ptrtoint(function, INDEX), builder.ptrtoint(arguments, INDEX)]
        return target.make_tuple(builder, signature.return_type, both)

    return _TYPES.UniTuple(_TYPES.int64, 2)(inner, args), emit


def _emit_task_function(
    target: Any, builder: ir.IRBuilder, dispatcher: Any, tuple_type: Any, stored: ir.Type
) -> ir.Function:
    """Emit the function of a task, whose arguments have the LLVM type `stored`."""
    signature = types.void(types.int64, types.int64, *tuple_type.types)
    dispatcher.compile(signature.args)
    body = dispatcher.overloads[signature.args]
    target.active_code_library.add_linking_library(body.library)
    kind = ir.FunctionType(ir.VoidType(), [INDEX] * 3)
    function = ir.Function(builder.module, kind, builder.module.get_unique_name("outlined"))
    function.linkage = "internal"
    inside = ir.IRBuilder(function.append_basic_block())
    arguments = inside.load(inside.inttoptr(function.args[0], stored.as_pointer()))
    each = [inside.extract_value(arguments, k) for k in range(len(tuple_type.types))]
    target.call_internal_no_propagate(inside, body.fndesc, signature, [*function.args[1:], *each])
    inside.ret_void()
    return function


@plain_intrinsic
def store_task(context: Any, inner: Any, args: Any, memory: Any, fields: Any) -> Any:
    """Store `args` at the address `memory` and return the address of the task's function.

    Both are valid as long as the caller keeps the arrays among `args` alive.

    Parameters
    ----------
    inner, args
        The function ``inner(part, parts, *args)``, and a tuple of its arguments.
    memory
        Address of `STORED_TASK_BYTES`.
    fields
        Address of an integer for each of `args`. For an array, it becomes the address at which the stored arguments
        hold the data pointer. The caller can replace this pointer by that of another array of the same shape. For all
        other arguments it becomes 0.

    Raises
    ------
    ValueError
        The arguments take more than `STORED_TASK_BYTES`; raised while the caller is compiled.
    """

    def emit(target: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        dispatcher, tuple_type = signature.args[0].dispatcher, signature.args[1]
        function = _emit_task_function(target, builder, dispatcher, tuple_type, values[1].type)
        if target.get_abi_sizeof(values[1].type) > STORED_TASK_BYTES:
            raise ValueError(f"stored arguments: expected at most {STORED_TASK_BYTES} bytes")
        _, _, memory, fields = values
        stored = builder.inttoptr(memory, values[1].type.as_pointer())
        builder.store(_without_reference_counts(target, builder, tuple_type, values[1]), stored)
        table = builder.inttoptr(fields, INTEGER_POINTER)
        for k, kind in enumerate(tuple_type.types):
            address: ir.Value = ir.Constant(INDEX, 0)
            if isinstance(kind, types.Array):
                data = target.data_model_manager[kind].get_field_position("data")
                address = builder.ptrtoint(_CODE.gep_inbounds(builder, stored, 0, k, data), INDEX)
            builder.store(address, builder.gep(table, [ir.Constant(INDEX, k)]))
        return builder.ptrtoint(function, INDEX)

    return types.int64(inner, args, types.int64, types.int64), emit


def _without_reference_counts(target: Any, builder: ir.IRBuilder, kind: Any, value: ir.Value) -> ir.Value:
    """Return arguments whose arrays own nothing; the caller of `store_task` keeps the owners alive."""
    if isinstance(kind, _TYPES.BaseTuple):
        for k, item in enumerate(kind.types):
            bare = _without_reference_counts(target, builder, item, builder.extract_value(value, k))
            value = builder.insert_value(value, bare, k)
    elif isinstance(kind, types.Array):
        array = _CODE.create_struct_proxy(kind)(target, builder, value=value)
        for name in ("meminfo", "parent"):
            setattr(array, name, ir.Constant(getattr(array, name).type, None))
        value = array._getvalue()
    return value


@plain_intrinsic
def call_task(context: Any, function: Any, arguments: Any, part: Any, parts: Any) -> Any:
    """Call a task's function for one part."""

    def emit(target: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [INDEX] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return target.get_dummy_value()

    return types.void(*(types.int64,) * 4), emit
