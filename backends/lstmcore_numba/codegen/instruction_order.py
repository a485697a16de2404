"""The order of instructions in a step function: independent chains side by side.

A processor holds about a hundred waiting instructions, and starts those whose operands are ready. The gates of a step
are independent, but each is a chain of about twenty dependent instructions. Emitted gate after gate, few of the hundred
could start. So each block is sorted by the earliest time at which a result could be ready.
"""

from __future__ import annotations

import math
from typing import Any, Final

from llvmlite import ir

#: llvmlite's type stubs are incomplete.
_KINDS: Final[Any] = ir.instructions


def spread_chains(function: ir.Function) -> None:
    """Sort the instructions of every block by the length of the chain before them.

    A write to memory keeps its order with all other uses of memory.
    """
    for block in function.blocks:
        length: dict[ir.Value, float] = {}
        read, written = 0.0, 0.0
        for instruction in block.instructions:
            before = max((length.get(operand, 0.0) for operand in instruction.operands), default=0.0)
            if isinstance(instruction, _KINDS.Terminator):
                before = math.inf
            elif isinstance(instruction, ir.LoadInstr):
                before = max(before, written)
                read = max(read, before)
            elif _uses_memory(instruction):
                before = written = max(before, read, written)
            length[instruction] = before + 1
        block.instructions.sort(key=length.__getitem__)


def _uses_memory(instruction: ir.Instruction) -> bool:
    if isinstance(instruction, _KINDS.CallInstr):
        return any(isinstance(argument.type, ir.PointerType) for argument in instruction.args)
    return isinstance(instruction, _KINDS.StoreInstr)
