"""Step functions in machine code: emitted, optimised for this machine and kept for as long as the process runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir

from lstmcore_numba.cell import SIGNATURE, Step, Variant
from lstmcore_numba.codegen.instruction_order import spread_chains

_LOCK: Final = threading.Lock()


def machine() -> llvm.TargetMachine:
    """This machine as a target. Every engine needs one of its own, since it frees it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    found: llvm.TargetMachine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True
    )
    return found


@cache
def _compiled(emit: Callable[[Step], None], variant: Variant) -> tuple[Any, int]:
    module = ir.Module("lstmcore")
    module.triple = llvm.get_process_triple()
    function = ir.Function(module, SIGNATURE, "step")
    step = Step(variant, function)
    emit(step)
    step.builder.ret_void()
    spread_chains(function)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine(), options)
    builder.getModulePassManager().run(parsed, builder)
    engine = llvm.create_mcjit_compiler(parsed, machine())
    engine.finalize_object()
    return engine, engine.get_function_address("step")  # the engine owns the code


def address(emit: Callable[[Step], None], variant: Variant) -> int:
    """The address of the step function that `emit` makes for `variant`."""
    with _LOCK:
        return _compiled(emit, variant)[1]
