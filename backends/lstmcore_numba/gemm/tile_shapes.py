"""The shapes of microkernels, by the number and the size of the vector registers.

A microkernel of r rows and c vectors keeps r c sums in registers. Beside them it needs either c vectors of weights and
one broadcast number, or r broadcast numbers and one vector of weights. A sum that does not fit is stored and loaded
again for every value of K.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lstmcore_numba.codegen.compile_target import CompileTarget

#: Vectors in a row of a panel of weights at most.
PANEL_VECTORS: Final = 4


class TileShape(NamedTuple):
    """A microkernel: rows at most, and vectors of weights."""

    rows: int
    cols: int


class TileTable(NamedTuple):
    """The microkernels for one kind of registers.

    Attributes
    ----------
    registers
        Number of vector registers that may hold operands and sums.
    panels
        For panels of 1, 2, 3 and 4 vectors: the largest microkernel, which takes some or all of the vectors.
    k_block
        Values of K that all microkernels of a panel take before the next block: this part of the weights stays in L1.
    """

    registers: int
    panels: tuple[TileShape, TileShape, TileShape, TileShape]
    k_block: int

    def shapes(self) -> list[TileShape]:
        """Return every shape for which code is emitted."""
        largest = {shape.cols: shape.rows for shape in self.panels}
        return [TileShape(rows, cols) for cols, most in sorted(largest.items()) for rows in range(1, most + 1)]

    def broadcasts_first(self, shape: TileShape) -> bool:
        """Return whether the weights do not fit beside the sums, so that the microkernel holds the broadcasts."""
        return shape.rows * shape.cols + shape.cols + 1 > self.registers

    def unroll(self, shape: TileShape) -> int:
        """Return how many values of K have sums of their own, since few sums would wait for each other."""
        return min(4, (self.registers - 4) // shape.cols) if shape.rows == 1 else 1


def _shapes(*rows: int) -> tuple[TileShape, TileShape, TileShape, TileShape]:
    one, two, three, four = (TileShape(most, cols) for cols, most in enumerate(rows, 1))
    return one, two, three, four


#: Number of vector registers and bytes of each -> microkernels.
TILE_TABLES: Final = {
    (32, 64): TileTable(32, _shapes(6, 6, 6, 6), 128),  # AVX-512
    (32, 16): TileTable(32, _shapes(6, 6, 6, 6), 256),  # NEON
    (16, 32): TileTable(16, _shapes(6, 6, 4, 3), 256),  # AVX2
    (16, 16): TileTable(15, _shapes(6, 6, 3, 2), 256),  # SSE: one more holds a product before it is added
}


def tile_table(target: CompileTarget) -> TileTable:
    """Return the microkernels for a processor."""
    return TILE_TABLES[target.vector_registers, target.vector_bytes]
