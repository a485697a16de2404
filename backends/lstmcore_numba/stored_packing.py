"""Weights in fewer bytes in the order in which compiled code reads them, and the functions that multiply by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from lstmcore.precision import Precision
from lstmcore.stored_weights import INT8A16, SAME, StoredMatrix, read_parameters
from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.gemm.stored_emitters import INTEGER_FORMS, WEIGHT_BYTES, multiplies_bytes
from lstmcore_numba.gemm.stored_kernels import compile_kernel, stored_table, widens
from lstmcore_numba.gemm.stored_operands import StoredKernels, StoredOperands
from lstmcore_numba.gemm.tile_shapes import tile_table
from lstmcore_numba.gemm.vector import VECTOR_BYTES
from lstmcore_numba.packing import Array, Layout, Weights, empty_aligned, pack, packed_copy

#: Matrices that a step reads in the stored format; the projection is widened when it is packed.
_STORED: Final = ("weight_x", "weight_h")


def stored_form(precision: Precision, k_size: int) -> str | None:
    """Return the form of weights that compiled code reads (`stored_emitters.WEIGHT_BYTES`); None if it reads float32.

    The largest K of a layer decides whether sums of bytes are exact.
    """
    if precision.weights == INT8A16:
        values, exact_groups = INTEGER_FORMS["quads"]
        return "quads" if multiplies_bytes(compile_target()) and k_size <= values * exact_groups else "pairs"
    if precision.weights == SAME or precision.storage != "float32" or not widens(precision.weights, compile_target()):
        return None
    return precision.weights


def _compiled_kernels(form: str, cols: int) -> tuple[StoredKernels, tuple[Any, ...]]:
    """Return the functions of panels of `cols` vectors, and what keeps their code alive."""
    target, integers = compile_target(), INTEGER_FORMS.get(form)
    wanted = {
        "multiply": form,
        "multiply_wide": None if integers else "scaled" if form == "int8" else "float32",
        "widen": None if integers else form,
        "quantise": form if integers else None,
        "exact": form if integers else None,
    }
    made = {
        name: compile_kernel(name.removesuffix("_wide"), kind, cols)
        for name, kind in wanted.items()
        if kind is not None
    }
    addresses = {name: made[name].address if name in made else 0 for name in wanted}
    kernels = StoredKernels(
        **addresses,
        vector_bytes=VECTOR_BYTES // 4 * WEIGHT_BYTES[form],
        rows=stored_table(target, form).panels[cols - 1].rows,
        wide_rows=tile_table(target).panels[cols - 1].rows,
        values=integers.values if integers else 1,
        exact_block=integers.exact_groups if integers else 0,
    )
    return kernels, tuple(made.values())


def _pack_values(layout: Layout, values: Array, form: str) -> Array:
    """Return the values (G H, K) of a stored matrix as the bytes of the panels of all blocks."""
    blocks = layout.pack_gates(values)  # (B, K, G, lanes)
    if form in INTEGER_FORMS:
        count, k_size, gates, lanes = blocks.shape
        group = INTEGER_FORMS[form].values
        whole = np.zeros((count, -(-k_size // group) * group, gates, lanes), np.int8)
        whole[:, :k_size] = blocks
        blocks = whole.reshape(count, -1, group, gates, lanes).transpose(0, 1, 3, 4, 2)
    elif form == "bfloat16":
        blocks = _in_words(blocks)
    return packed_copy(blocks).view(np.uint8).reshape(-1)


def _in_words(blocks: Array) -> Array:
    """Return weights (B, K, G, lanes) of 16 bits whose vectors alternate two by two: the halves of words of 32 bits."""
    count, k_size, gates, lanes = blocks.shape
    even = gates // 2 * 2
    words = blocks[:, :, :even].reshape(count, k_size, even // 2, 2, lanes).swapaxes(3, 4)
    return np.concatenate([words.reshape(count, k_size, even, lanes), blocks[:, :, even:]], axis=2)


def _pack_scales(layout: Layout, matrix: StoredMatrix, form: str) -> Array:
    """Return the scales of a matrix as (B, G, lanes).

    For quads, as many int32 follow in each block: what subtracts the offset of activations from the sums of their high
    bytes.
    """
    scales = layout.pad_gates(matrix.scale)
    if form != "quads":
        return scales
    offsets = layout.pad_gates(matrix.values.sum(axis=1, dtype=np.int32) * np.int32(-(2**7)))
    return packed_copy(np.concatenate([scales, offsets.view(np.float32)], axis=1))


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Packed parameters whose matrices are stored in fewer bytes.

    Attributes
    ----------
    layout, parameters
        The layout and what was packed.
    form
        A name of `stored_emitters.WEIGHT_BYTES`.
    small
        All other parameters, with empty matrices.
    operands
        The stored matrices and their functions, without the memory of a call.
    """

    layout: Layout
    parameters: Mapping[str, Array | StoredMatrix]
    form: str
    small: Weights
    operands: StoredOperands
    _engines: tuple[Any, ...]
    _wide: list[Weights] = field(default_factory=list)

    def wide(self) -> Weights:
        """Return all parameters in float32, which are made at the first call."""
        if not self._wide:
            self._wide.append(pack(self.layout, read_parameters(self.parameters, self.layout.dtype)))
        return self._wide[0]


def pack_stored(layout: Layout, parameters: Mapping[str, Array | StoredMatrix], form: str) -> StoredWeights:
    """Return packed copies of the parameters; `weight_x` and `weight_h` are `StoredMatrix` objects."""
    kernels, engines = _compiled_kernels(form, layout.gates)
    packed, scales = [], []
    for name in _STORED:
        matrix = parameters[name]
        if not isinstance(matrix, StoredMatrix):
            raise TypeError(f"parameters[{name!r}]: expected a StoredMatrix; got {type(matrix).__name__}")
        values = matrix.values.view(np.uint16) if matrix.format == "float16" else matrix.values
        packed.append(_pack_values(layout, values, form))
        scales.append(_pack_scales(layout, matrix, form))
    none = np.zeros((0, 64), np.uint8)
    operands = StoredOperands(kernels, packed[0], packed[1], scales[0], scales[1], none, none)
    small = {name: array for name, array in parameters.items() if name not in _STORED}
    absent = dict.fromkeys(_STORED, np.zeros((layout.real_gate_row, 0), layout.dtype))
    light = pack(layout, read_parameters(small, layout.dtype) | absent)
    return StoredWeights(layout, dict(parameters), form, light, operands, engines)


def stored_memory(layout: Layout, form: str, threads: int, batch: int, chunk: int) -> tuple[Array, Array]:
    """Return the memory `StoredOperands.scratch` and `state` of a call of `batch` rows and chunks of `chunk` steps."""
    inputs, recurrent = layout.config.input_size, layout.config.recurrent_size
    if form in INTEGER_FORMS:
        group = INTEGER_FORMS[form].values
        sizes = [_rounded_bytes(max(2, chunk * batch), inputs, group), _rounded_bytes(max(2, batch), recurrent, group)]
    else:
        sizes = [inputs * layout.gates * VECTOR_BYTES, 64]
    scratch, state = (empty_aligned((threads, -(-size // 64) * 64), np.dtype(np.uint8)) for size in sizes)
    scratch[:, :64] = state[:, :64] = 0  # the flag of rows that are not finite
    return scratch, state


def _rounded_bytes(rows: int, k_size: int, group: int) -> int:
    """Return the bytes of rows in int16, in whole groups of K, with their flag and scales."""
    return 64 + 4 * rows + 64 + rows * 2 * (k_size + group - 1)


def with_memory(operands: StoredOperands, memory: tuple[Array, Array]) -> StoredOperands:
    """Return operands with the memory of a call."""
    return operands._replace(scratch=memory[0], state=memory[1])
