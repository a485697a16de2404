"""Microkernels of the Numba backend as assembly, for processors that this machine need not have."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final, NamedTuple

_AVX512: Final = "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512vnni"
#: LLVM's name -> triple, and the features that the backend asks about. LLVM derives all others from the name.
PROCESSORS: Final = {
    "nehalem": ("x86_64-unknown-linux-gnu", ""),
    "haswell": ("x86_64-unknown-linux-gnu", "+avx2,+fma,+f16c"),
    "znver3": ("x86_64-unknown-linux-gnu", "+avx2,+fma,+f16c"),
    "skylake-avx512": ("x86_64-unknown-linux-gnu", "+avx2,+fma,+f16c,+avx512f,+avx512bw"),
    "znver4": ("x86_64-unknown-linux-gnu", f"{_AVX512},+avx512bf16"),
    "sapphirerapids": ("x86_64-unknown-linux-gnu", f"{_AVX512},+avx512bf16,+amx-tile,+amx-bf16"),
    "neoverse-n1": ("aarch64-unknown-linux-gnu", "+neon"),
    "apple-m1": ("arm64-apple-macosx", "+neon"),
}
#: The same, and one with VNNI but without AVX-512.
STORED_PROCESSORS: Final = PROCESSORS | {"alderlake": ("x86_64-unknown-linux-gnu", "+avx2,+fma,+f16c,+avxvnni")}
#: A directive or a comment; labels may begin with a point as well.
_COMMENT: Final = re.compile(r"^\s*[.#;/](?!\w*:)")
_LABEL: Final = re.compile(r"^([.\w]+):")
_JUMP: Final = re.compile(r"^\s*(?:j\w+|b(?:\.\w+)?|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+([.\w]+)")
_MULTIPLY_ADD: Final = re.compile(
    r"^\s*(?:\{vex\}\s+)?(?:vfn?madd|fmla|vdpbf16|(?:v)?mulp|v?pmaddwd|vpdp(?:busd|wssd)|smlal|smull)"
)
_SPILL: Final = re.compile(
    r"^\s*(?:v?mov(?:[au]p[sd]|dq[au]\d*)\s+%[xyz]mm\d+,\s*-?\w*\(%r[sb]p|st(?:r|ur|p)\s+q\d+,.*\[(?:sp|x29))",
    re.IGNORECASE,
)


class Loop(NamedTuple):
    """Instructions of a loop, and whether no other loop is in it."""

    instructions: list[str]
    innermost: bool

    @property
    def multiply_adds(self) -> int:
        """Number of multiply-adds of vectors; of multiplications on processors without them."""
        return sum(bool(_MULTIPLY_ADD.match(line)) for line in self.instructions)

    @property
    def spills(self) -> list[str]:
        """The vectors that it stores on the stack."""
        return [line.strip() for line in self.instructions if _SPILL.match(line)]


def loops(assembly: str) -> list[Loop]:
    """Return every loop that has multiply-adds: from a label to the last jump back to it."""
    lines = [line for line in assembly.splitlines() if line.strip() and not _COMMENT.match(line)]
    labels = {match[1]: number for number, line in enumerate(lines) if (match := _LABEL.match(line))}
    ends: dict[int, int] = {}
    for number, line in enumerate(lines):
        jump = _JUMP.match(line)
        start = labels.get(jump[1], number + 1) if jump else number + 1
        if start <= number:
            ends[start] = number
    found = []
    for start, end in ends.items():
        innermost = not any(start < other and last < end for other, last in ends.items())
        found.append(Loop([line for line in lines[start : end + 1] if not _LABEL.match(line)], innermost))
    return [loop for loop in found if loop.multiply_adds]


def instructions_per_multiply_add(assembly: str) -> float:
    """Return this ratio of the innermost loop that has most multiply-adds."""
    loop = max((loop for loop in loops(assembly) if loop.innermost), key=lambda loop: loop.multiply_adds)
    return round(len(loop.instructions) / loop.multiply_adds, 3)


@cache
def _initialise() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def target_of(processor: str) -> Any:
    """Return the `CompileTarget` of one of `STORED_PROCESSORS`."""
    from lstmcore_numba.codegen.compile_target import CompileTarget

    triple, features = STORED_PROCESSORS[processor]
    return CompileTarget(triple, processor, features)


def tile_assembly(processor: str, dtype: str, shape: Any, table: Any = None, *, transposed: bool = False) -> str:
    """Return the assembly of one microkernel, optimised as Numba does.

    Parameters
    ----------
    processor, dtype, shape
        One of `PROCESSORS`; ``int32`` stands for bfloat16 pairs; a `TileShape`.
    table
        A `TileTable`; None for that of the processor.
    transposed
        Whether the left operand is `Columns`, as for the gradients of weights; else it is `Rows`.
    """
    from llvmlite import ir

    module = ir.Module("tile")
    add_tile(module, "tile", processor, dtype, shape, table, transposed=transposed)
    return _assembly(module, target_of(processor))


def add_tile(  # noqa: PLR0913  (those of `tile_assembly`, and where the function goes)
    module: Any, name: str, processor: str, dtype: str, shape: Any, table: Any = None, *, transposed: bool = False
) -> None:
    """Add one microkernel to a module as a function of `TileValues`; see `tile_assembly`."""
    from llvmlite import ir

    from lstmcore_numba.codegen.emitter import INDEX, Emitter
    from lstmcore_numba.gemm.bf16 import PairEmitter
    from lstmcore_numba.gemm.tile_shapes import tile_table
    from lstmcore_numba.gemm.vector import TileValues, emit_tile

    target = target_of(processor)
    arguments = [*[INDEX] * (len(TileValues._fields) - 1), ir.IntType(1)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    builder = ir.IRBuilder(function.append_basic_block())
    size = 8 if dtype == "float64" else 4
    e = PairEmitter(builder) if dtype == "int32" else Emitter(builder, dtype, target.vector_bytes // size)
    values = TileValues(*function.args)._replace(**{"a_row" if transposed else "a_k": e.index(size)})
    emit_tile(e, tile_table(target) if table is None else table, shape, values)
    builder.ret_void()


def stored_assembly(processor: str, form: str, cols: int) -> str:
    """Return the assembly of the products with panels of `cols` vectors of stored weights, for all numbers of rows."""
    from llvmlite import ir

    from lstmcore_numba.gemm.stored_kernels import UNROLLS, emit_kernel

    module, target = ir.Module("stored"), target_of(processor)
    emit_kernel(module, "multiply", form, cols, target)
    machine, parsed = _optimised(module, target, unrolls=UNROLLS)
    return str(machine.emit_assembly(parsed))


def object_code(module: Any, target: Any) -> bytes:
    """Return the object file of a module, optimised as Numba does."""
    machine, parsed = _optimised(module, target)
    return bytes(machine.emit_object(parsed))


def _assembly(module: Any, target: Any) -> str:
    """Return the assembly of a module, optimised as Numba does."""
    machine, parsed = _optimised(module, target)
    return str(machine.emit_assembly(parsed))


def _optimised(module: Any, target: Any, *, unrolls: bool = True) -> tuple[Any, Any]:
    """Return LLVM's machine of a target, and the module in LLVM's form."""
    import llvmlite.binding as llvm

    from lstmcore_numba.codegen.step_compiler import optimise

    _initialise()
    module.triple = target.triple
    machine, parsed = target.machine(jit=False), llvm.parse_assembly(str(module))
    optimise(parsed, machine, unrolls=unrolls)
    return machine, parsed
