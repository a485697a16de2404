"""Compilation of step functions: emit, optimise for this processor, and keep for the lifetime of the process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir

from lstmcore.locks import ForkSafeLock
from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.codegen.instruction_order import spread_chains
from lstmcore_numba.codegen.step_emitter import SIGNATURE, StepEmitter, StepVariant

_LOCK: Final = ForkSafeLock()


def emit_module(emit: Callable[[StepEmitter], None], variant: StepVariant) -> ir.Module:
    """Return the LLVM module of a step function, in its final order and before LLVM's optimiser."""
    module = ir.Module("lstmcore")
    module.triple = llvm.get_process_triple()
    function = ir.Function(module, SIGNATURE, "step")
    step = StepEmitter(variant, function)
    emit(step)
    step.builder.ret_void()
    spread_chains(function)
    return module


@cache
def _compile(emit: Callable[[StepEmitter], None], variant: StepVariant) -> tuple[Any, int]:
    """Return the engine, which owns the code, and the address of the function."""
    parsed = llvm.parse_assembly(str(emit_module(emit, variant)))
    parsed.verify()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target, options = compile_target(), llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(target.machine(), options)
    builder.getModulePassManager().run(parsed, builder)
    engine = llvm.create_mcjit_compiler(parsed, target.machine())
    engine.finalize_object()
    return engine, engine.get_function_address("step")


def step_address(emit: Callable[[StepEmitter], None], variant: StepVariant) -> int:
    """Return the address of the step function that `emit` writes for `variant`; compile it if it is new."""
    with _LOCK.lock:
        return _compile(emit, variant)[1]
