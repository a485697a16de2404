"""Emitted functions as a program for another processor, which an emulator runs, and in this process.

The functions of a module are numbered. ``call_driver.c`` calls them on the memory that it reads.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from emitted_tiles import object_code, target_of

DRIVER: Final = Path(__file__).parents[1] / "emulated" / "call_driver.c"
#: Arrays begin at multiples of it; also the bytes of guard behind each.
_ALIGN: Final = 64
_GUARD: Final = b"\x5a"


class Emulator(NamedTuple):
    """A compiler that links for a processor, and the program that runs the result."""

    compiler: str
    words: tuple[str, ...]


#: LLVM's name of a processor -> what runs its code: AVX2 without AVX-512, and aarch64.
EMULATORS: Final = {
    "haswell": Emulator("x86_64-linux-gnu-gcc", ("qemu-x86_64", "-cpu", "Haswell")),
    "neoverse-n1": Emulator("aarch64-linux-gnu-gcc", ("qemu-aarch64",)),
}


def missing(processor: str) -> str | None:
    """Return the first program that a processor needs and that is not installed, or None."""
    compiler, words = EMULATORS[processor]
    return next((name for name in (compiler, words[0]) if shutil.which(name) is None), None)


class Memory:
    """The memory of a call. It begins with the arguments; an address is an offset into it.

    Parameters
    ----------
    function
        The index of the function.
    arguments
        Their number.
    """

    def __init__(self, function: int, arguments: int) -> None:
        self.function, self.addresses = function, list[int]()
        self.content = bytearray()
        self.add(np.zeros(arguments, np.int64))

    def add(self, array: Any) -> int:
        """Append an array and a guard; return its offset."""
        offset = len(self.content)
        self.content += array.tobytes()
        self.content += _GUARD * (_ALIGN + -len(self.content) % _ALIGN)
        return offset

    def set(self, place: int, value: int, *, address: bool = False) -> None:
        """Write an int64 at an offset."""
        struct.pack_into("<q", self.content, place, value)
        if address:
            self.addresses.append(place)

    def packed(self) -> bytes:
        """Return what the driver reads."""
        numbers = (self.function, len(self.content), len(self.addresses), *self.addresses)
        return struct.pack(f"<{len(numbers)}q", *numbers) + self.content


def add_dispatch(module: Any) -> None:
    """Add ``run(function, arguments)`` to a module, which calls its functions in their order."""
    from llvmlite import ir

    from lstmcore_numba.codegen.emitter import INDEX, POINTER

    functions = [function for function in module.functions if not function.is_declaration]
    run = ir.Function(module, ir.FunctionType(ir.VoidType(), [INDEX, INDEX]), "run")
    builder, done = ir.IRBuilder(run.append_basic_block()), run.append_basic_block()
    index, arguments = run.args
    cases = builder.switch(index, done)
    for number, function in enumerate(functions):
        block = run.append_basic_block()
        cases.add_case(ir.Constant(INDEX, number), block)
        builder.position_at_end(block)
        words = []
        for place, argument in enumerate(function.args):
            pointer = builder.inttoptr(builder.add(arguments, ir.Constant(INDEX, 8 * place)), POINTER)
            word = builder.load(pointer, typ=INDEX, align=8)
            words.append(word if argument.type == INDEX else builder.trunc(word, argument.type))
        builder.call(function, words)
        builder.branch(done)
    builder.position_at_end(done)
    builder.ret_void()


def run_emulated(
    module: Any, processor: str, calls: Sequence[Memory], folder: Path, *, code_for: str = ""
) -> list[bytes]:
    """Return the memory of each call after it, by a program that an emulator of a processor runs.

    Parameters
    ----------
    module
        Has the function ``run`` of `add_dispatch`.
    folder
        Where the program is built.
    code_for
        The processor that code is made for; `processor` if it is left out.

    Raises
    ------
    subprocess.CalledProcessError
        The program ended by a signal or an error.
    """
    compiler, words = EMULATORS[processor]
    (folder / "code.o").write_bytes(object_code(module, target_of(code_for or processor)))
    link = [compiler, "-static", "-O1", "-o", "program", str(DRIVER), "code.o", "-lm"]
    subprocess.run(link, cwd=folder, check=True)
    packed = b"".join(call.packed() for call in calls)
    done = subprocess.run([*words, "./program"], cwd=folder, input=packed, capture_output=True, check=True)
    ends = np.cumsum([len(call.content) for call in calls])
    assert len(done.stdout) == ends[-1]
    return [done.stdout[end - len(call.content) : end] for call, end in zip(calls, ends, strict=True)]


def run_here(module: Any, calls: Sequence[Memory]) -> list[bytes]:
    """Return the memory of each call after it, by code for this processor in this process."""
    from lstmcore_numba.codegen.step_compiler import compile_module

    compiled = compile_module(module, "run")
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(compiled.address)
    found = []
    for call in calls:
        room = np.zeros(len(call.content) + _ALIGN, np.uint8)
        memory = room[-room.ctypes.data % _ALIGN :][: len(call.content)]
        memory[:] = np.frombuffer(call.content, np.uint8)
        for distance in (memory.ctypes.data, -memory.ctypes.data):
            for place in call.addresses:
                memory[place : place + 8].view(np.int64)[0] += distance
            if distance > 0:
                function(call.function, distance)
        found.append(memory.tobytes())
    return found
