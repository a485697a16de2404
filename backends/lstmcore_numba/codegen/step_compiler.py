"""Compilation of step functions: emit, and optimise for this processor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

from lstmcore.locks import ForkSafeLock
from lstmcore_numba.codegen.compile_target import CompileTarget, compile_target
from lstmcore_numba.codegen.instruction_order import spread_chains
from lstmcore_numba.codegen.step_emitter import SIGNATURE, StepEmitter, StepVariant

_LOCK: Final = ForkSafeLock()
#: Step functions that are kept for later layers, after the last layer that used them is gone.
KEPT_STEPS: Final = 64


class CompiledStep(NamedTuple):
    """A function: the engine that owns its code, and its address, which is valid as long as the engine lives."""

    engine: Any
    address: int


@dataclass(slots=True)
class CompileCosts:
    """CPU seconds that step functions took to compile in this process, and their instructions before LLVM's optimiser.

    They are compiled before the loops over time, so they tell how fast this processor compiles.
    """

    instructions: int = 0
    seconds: float = 0.0

    def add(self, module: ir.Module, seconds: float) -> None:
        """Count a module that took so long."""
        self.instructions += sum(len(block.instructions) for function in module.functions for block in function.blocks)
        self.seconds += seconds


STEP_COSTS: Final = CompileCosts()


def emit_module(emit: Callable[[StepEmitter], None], variant: StepVariant) -> ir.Module:
    """Return the LLVM module of a step function, in its final order and before LLVM's optimiser."""
    module = ir.Module("lstmcore")
    module.triple = llvm.get_process_triple()
    add_step(module, "step", emit, variant)
    return module


def add_step(module: ir.Module, name: str, emit: Callable[[StepEmitter], None], variant: StepVariant) -> None:
    """Add a step function to a module under a name."""
    function = ir.Function(module, SIGNATURE, name)
    step = StepEmitter(variant, function)
    emit(step)
    step.builder.ret_void()
    spread_chains(function)


def optimise(module: Any, machine: Any, *, unrolls: bool = True) -> None:
    """Let LLVM optimise a module in its own form for a machine.

    With `unrolls` false it leaves loops as they are: their code has no registers for more than one turn.
    """
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = unrolls
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)


def compile_module(
    module: ir.Module, name: str, target: CompileTarget | None = None, *, unrolls: bool = True
) -> CompiledStep:
    """Return the function `name` of a module, for this processor or another one whose code it runs; see `optimise`."""
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = target or compile_target()
    optimise(parsed, target.machine(), unrolls=unrolls)
    engine = llvm.create_mcjit_compiler(parsed, target.machine())
    engine.finalize_object()
    return CompiledStep(engine, engine.get_function_address(name))


@lru_cache(maxsize=KEPT_STEPS)
def _compile(emit: Callable[[StepEmitter], None], variant: StepVariant) -> CompiledStep:
    began = time.thread_time()
    module = emit_module(emit, variant)
    step = compile_module(module, "step")
    STEP_COSTS.add(module, time.thread_time() - began)
    return step


def compile_step(emit: Callable[[StepEmitter], None], variant: StepVariant) -> CompiledStep:
    """Return the step function that `emit` writes for `variant`; compile it unless it is kept."""
    with _LOCK.lock:
        return _compile(emit, variant)
