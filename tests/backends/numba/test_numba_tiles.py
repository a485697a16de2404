"""The microkernels as assembly: no sum is stored inside a loop, on any processor that LLVM knows.

No test here needs the processor. LLVM compiles for all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emitted_tiles import (
    PROCESSORS,
    STORED_PROCESSORS,
    instructions_per_multiply_add,
    loops,
    stored_assembly,
    target_of,
    tile_assembly,
)

#: Processor -> dtype -> shape -> instructions for each multiply-add, by the version of llvmlite that made the code.
GOLDEN = Path(__file__).with_name("tile_instructions.json")
#: Growth of a count that fails.
MORE = 0.02


def dtypes(processor: str) -> list[str]:
    """Return the dtypes of microkernels; int32 stands for pairs of bfloat16."""
    return ["float32", "float64", *(["int32"] if target_of(processor).has("avx512bf16") else [])]


@pytest.fixture(scope="module")
def assembly() -> Any:
    """Return a function that gives the assembly of every shape, by dtype and shape; each processor is compiled once."""
    from lstmcore_numba.gemm.tile_shapes import tile_table

    compiled: dict[str, dict[tuple[str, str], str]] = {}

    def of(processor: str) -> dict[tuple[str, str], str]:
        if processor not in compiled:
            shapes = tile_table(target_of(processor)).shapes()
            compiled[processor] = {
                (dtype, f"{shape.rows}x{shape.cols}"): tile_assembly(processor, dtype, shape)
                for dtype in dtypes(processor)
                for shape in shapes
            }
        return compiled[processor]

    return of


def spilled(code: str) -> list[str]:
    """Return the vectors that loops with multiply-adds store on the stack."""
    found = loops(code)
    assert found, "no loop with multiply-adds was found"
    return [store for loop in found for store in loop.spills]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_no_microkernel_spills_a_vector(processor: str, assembly: Any) -> None:
    """A sum that is stored and loaded for every value of K takes longer than its multiply-add."""
    assert {tile: stored for tile, code in assembly(processor).items() if (stored := spilled(code))} == {}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_no_transposed_microkernel_spills_a_vector(processor: str) -> None:
    from lstmcore_numba.gemm.tile_shapes import tile_table

    for shape in tile_table(target_of(processor)).panels:
        assert spilled(tile_assembly(processor, "float32", shape, transposed=True)) == [], shape


@pytest.mark.parametrize("processor", STORED_PROCESSORS)
def test_no_product_with_stored_weights_spills_a_vector(processor: str) -> None:
    """All numbers of rows are cases of one function, so that only its innermost loops are one product each."""
    from lstmcore_numba.gemm.stored_emitters import multiplies_bytes
    from lstmcore_numba.gemm.stored_kernels import widens

    forms = ["bfloat16", "float16", "int8", "pairs", *(["quads"] if multiplies_bytes(target_of(processor)) else [])]
    for form in forms:
        for cols in (3, 4) if widens(form, target_of(processor)) else ():
            innermost = [loop for loop in loops(stored_assembly(processor, form, cols)) if loop.innermost]
            assert len(innermost) > 1
            assert [store for loop in innermost for store in loop.spills] == [], (form, cols)


@pytest.mark.parametrize(
    ("processor", "form", "instruction"),
    [("haswell", "pairs", "vpmaddwd"), ("alderlake", "quads", "vpdpbusd"), ("znver4", "quads", "vpdpbusd")],
)
def test_integers_are_multiplied_in_groups(processor: str, form: str, instruction: str) -> None:
    assert instruction in stored_assembly(processor, form, 4)


@pytest.mark.parametrize(("processor", "rows", "cols"), [("znver3", 3, 4), ("haswell", 4, 4), ("neoverse-n1", 7, 4)])
def test_a_spill_is_found(processor: str, rows: int, cols: int) -> None:
    """The order of AVX-512, which takes the weights first, needs a register more than there are."""
    from lstmcore_numba.gemm.tile_shapes import TileShape, tile_table

    weights_first = tile_table(target_of(processor))._replace(registers=99)
    code = tile_assembly(processor, "float32", TileShape(rows, cols), weights_first)
    assert spilled(code)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_loops_have_no_more_instructions_than_before(processor: str, assembly: Any) -> None:
    import llvmlite

    golden = json.loads(GOLDEN.read_text("utf-8"))
    if golden["llvmlite"] != llvmlite.__version__:
        pytest.skip(f"the counts are of llvmlite {golden['llvmlite']}, which makes other code")
    counts: dict[str, dict[str, float]] = {}
    for (dtype, shape), code in assembly(processor).items():
        counts.setdefault(dtype, {})[shape] = instructions_per_multiply_add(code)
    assert counts.keys() == golden[processor].keys()
    for dtype, by_shape in counts.items():
        assert by_shape.keys() == golden[processor][dtype].keys()
        more = {
            shape: count for shape, count in by_shape.items() if count > golden[processor][dtype][shape] * (1 + MORE)
        }
        assert more == {}, dtype


def test_the_tables_fit_into_the_registers() -> None:
    """Sums, one kind of operand and one number of the other kind are in registers at once."""
    from lstmcore_numba.gemm.tile_shapes import PANEL_VECTORS, TILE_TABLES
    from lstmcore_numba.schedule import MIN_PART_ROWS

    for (registers, _), table in TILE_TABLES.items():
        assert table.registers <= registers
        for vectors, largest in enumerate(table.panels, 1):
            assert largest.cols <= vectors <= PANEL_VECTORS
            assert largest.rows < MIN_PART_ROWS  # else the number of threads would change bits
        for shape in table.shapes():
            rows, cols = shape
            held = 1 if rows == 1 else rows if table.broadcasts_first(shape) else cols
            assert rows * cols * table.unroll(shape) + held + 1 <= table.registers, shape
