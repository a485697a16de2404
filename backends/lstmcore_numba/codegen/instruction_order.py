"""The order of instructions: those that wait for one another apart.

A processor holds about a hundred instructions that wait for their operands, and starts those that can begin. The gates
of a step do not need each other, but each is a chain of twenty that do: gate after gate, few of the hundred can begin.
So every block of a function is put in the order in which results could be there at the earliest.
"""

from __future__ import annotations

import math
from typing import Any, Final

from llvmlite import ir

#: llvmlite has types, but not of everything.
_KINDS: Final[Any] = ir.instructions


def spread_chains(function: ir.Function) -> None:
    """Order the instructions of every block by the length of the chain before them.

    What writes to memory keeps its place among all that uses it.
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
