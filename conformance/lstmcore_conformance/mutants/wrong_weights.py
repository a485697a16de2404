"""Wrong readings of weights that are stored in fewer bytes, and wrong roundings of what they are multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore.backend import Array, Backend, Masks, State
from lstmcore.stored_weights import INT8A16, StoredMatrix, is_matrix
from lstmcore_conformance.mutants.construction import Hooked, backend_of, edits, fault, preceded
from lstmcore_conformance.oracle.naive import NaiveKernel

Scale = Callable[[Array], Array]


def _scaled_inputs(axes: tuple[int, ...]) -> Backend:
    """Return a mutant that rounds x to 22 bits with a scale that is shared along `axes` of (T, N, I)."""

    class ScaledInputs(Hooked):
        def before(
            self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None
        ) -> tuple[Any, ...]:
            wide = np.asarray(x, np.float64)
            scale = np.abs(wide).max(axis=axes, keepdims=True, initial=2.0**-20) / 2.0**22
            return weights, (np.rint(wide / scale) * scale).astype(x.dtype), state, lengths, masks

    return backend_of(ScaledInputs)


@fault("scales.of_batch", "inputs are rounded with one scale for all rows of a step", "rows.large")
def _scale_of_batch() -> Backend:
    return _scaled_inputs((1, 2))


@fault("scales.of_sequence", "inputs are rounded with one scale for all steps of a row", "steps.large")
def _scale_of_sequence() -> Backend:
    return _scaled_inputs((0, 2))


def _integer_inputs(axes: tuple[int, ...], scaled: float = 1.0) -> Backend:
    """Return a mutant that, with int8a16, rounds x to int16 with a scale that is shared along `axes` of (T, N, I).

    The scale is `scaled` times the right one; what is larger than 32767 of it is cut off.
    """

    class IntegerInputs(Hooked):
        def before(
            self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None
        ) -> tuple[Any, ...]:
            if self.precision.weights == INT8A16:
                scale = np.abs(x).max(axis=axes, keepdims=True, initial=2.0**-20) * np.float32(scaled / 32767)
                x = np.clip(np.rint(x / scale), -32767, 32767) * scale
            return weights, x, state, lengths, masks

    return backend_of(IntegerInputs)


@fault("int8a16.scale_of_batch", "activations have one scale for all rows of a step", "rows.large")
def _activations_of_batch() -> Backend:
    return _integer_inputs((1, 2))


@fault("int8a16.scale_of_sequence", "activations have one scale for all steps of a row", "steps.large")
def _activations_of_sequence() -> Backend:
    return _integer_inputs((0, 2))


@fault("int8a16.saturated", "activations above half of the largest are cut off", "weights.int8a16")
def _saturated() -> Backend:
    return _integer_inputs((2,), 0.5)


@fault("int8a16.eight_bits", "activations are rounded to int8", "weights.int8a16")
def _eight_bits() -> Backend:
    return _integer_inputs((2,), 256.0)


@fault("int8a16.sums_of_16_bits", "sums of two products are cut off at 16 bits", "weights.int8a16")
def _sums_of_16_bits() -> Backend:
    """Return a mutant like one instruction for int8 weights and int8 activations, whose sums do not fit."""

    class Saturating(Hooked):
        def before(
            self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None
        ) -> tuple[Any, ...]:
            if self.precision.weights == INT8A16:
                weights = {name: _cut_pairs(array) if is_matrix(name) else array for name, array in weights.items()}
            return weights, x, state, lengths, masks

    return backend_of(Saturating)


def _cut_pairs(matrix: Array) -> Array:
    """Return a matrix whose pairs of columns are scaled down where two products of 8 bits can exceed 16 bits."""
    scale = np.abs(matrix).max(axis=1, keepdims=True, initial=2.0**-20) / 127
    padded = np.pad(np.abs(matrix) / scale, ((0, 0), (0, matrix.shape[1] % 2)))
    sums = np.repeat(padded[:, ::2] + padded[:, 1::2], 2, axis=1)[:, : matrix.shape[1]] * 255
    return np.asarray(matrix * np.minimum(1, 32767 / np.maximum(sums, 1)), matrix.dtype)


def _reading(read: Callable[[str, StoredMatrix], Array]) -> Backend:
    """Return the naive backend that reads stored matrices by `read`, a function of the name and the matrix."""

    class Reading(NaiveKernel):
        takes_stored = True

        def _pack(self, parameters: Mapping[str, Any]) -> Any:
            return {
                name: read(name, array) if isinstance(array, StoredMatrix) else np.array(array)
                for name, array in parameters.items()
            }

    return backend_of(Reading)


def _scaled(scale: Scale) -> Backend:
    """Return a mutant that changes the scales (rows,) of int8 matrices."""

    def read(name: str, matrix: StoredMatrix) -> Array:
        return matrix.read() if matrix.scale is None else replace(matrix, scale=scale(matrix.scale)).read()

    return _reading(read)


#: The id of the check of int8a16 begins with that of int8.
_ALONE: Final = "not int8a16"


def _int8(id: str, what: str, scale: Scale) -> None:
    fault(f"weights.{id}", what, "weights.int8", shown_by=_ALONE)(lambda: _scaled(scale))


_int8("scale_of_next_row", "a row has the scale of the next one", lambda scale: np.roll(scale, -1))
_int8("scale_of_tensor", "all rows have the largest scale", lambda scale: np.full_like(scale, scale.max(initial=0)))
_int8("scale_of_last_row", "the last row has the scale of the one before", lambda s: np.append(s[:-1], s[-2:][:1]))
_int8("scale_in_half", "scales are rounded to float16", lambda scale: scale.astype(np.float16).astype(np.float32))
_int8("scale_of_127_by_128", "scales are largest / 128", lambda scale: scale * np.float32(127 / 128))


def _by_reciprocal(matrix: StoredMatrix) -> Array:
    """Return an int8 matrix whose integers are divided by the reciprocal of the scale, which is rounded."""
    if matrix.scale is None:
        return matrix.read()
    return np.asarray(matrix.values / (np.float32(1) / matrix.scale)[:, None].astype(np.float32), np.float32)


@fault("weights.reciprocal", "int8 weights are divided by the reciprocal of their scale", "weights.exact")
def _reciprocal() -> Backend:
    return _reading(lambda name, matrix: _by_reciprocal(matrix))


@fault("weights.smallest_float16", "the two smallest numbers of float16 are read as zero", "weights.exact")
def _smallest() -> Backend:
    def read(name: str, matrix: StoredMatrix) -> Array:
        numbers = matrix.read()
        if matrix.format == "float16":
            numbers[np.abs(numbers) <= 2.0**-23] = 0
        return numbers

    return _reading(read)


@fault("weights.int8_unsigned", "int8 weights are read as unsigned", "weights.int8", shown_by=_ALONE)
def _unsigned() -> Backend:
    def read(name: str, matrix: StoredMatrix) -> Array:
        if matrix.scale is None:
            return matrix.read()
        return replace(matrix, values=matrix.values.view(np.uint8)).read()

    return _reading(read)


@fault("weights.bfloat16_cut", "the last bit of bfloat16 weights is lost", "weights.bfloat16")
def _cut() -> Backend:
    def read(name: str, matrix: StoredMatrix) -> Array:
        if matrix.format != "bfloat16":
            return matrix.read()
        return replace(matrix, values=matrix.values & np.uint16(0xFFFE)).read()

    return _reading(read)


@fault("weights.float16_subnormal", "subnormal float16 weights are read as zero", "weights.float16")
def _subnormal() -> Backend:
    def read(name: str, matrix: StoredMatrix) -> Array:
        numbers = matrix.read()
        if matrix.format == "float16":
            numbers[np.abs(numbers) < 2.0**-14] = 0
        return numbers

    return _reading(read)


@fault("weights.float16_as_bfloat16", "float16 weights of the projection are read as bfloat16", "weights.float16")
def _projection() -> Backend:
    def read(name: str, matrix: StoredMatrix) -> Array:
        if matrix.format != "float16" or name != "weight_proj":
            return matrix.read()
        return StoredMatrix("bfloat16", matrix.values.view(np.uint16)).read()

    return _reading(read)


# int8a16 --------------------------------------------------------------------------------------------------------------

#: A function that the equations of a mutant call by name.
_PARTS: Final = "def _operand(array: Array, policy: Precision) -> Array:\n"
_OF_BATCH: Final = """def _of_batch(array, policy):
    scale = np.float32(max(np.abs(array).max(initial=0) / 32767, 2.0**-100))
    return np.rint(array / scale) * scale if policy.weights == "int8a16" else array


"""
edits(
    "int8a16.scale_of_outputs",
    "the inputs of the projection have one scale for all rows",
    (
        ("step.h_unclipped = _operand(step.q, step.precision)", "step.h_unclipped = _of_batch(step.q, step.precision)"),
        preceded(_PARTS, _OF_BATCH),
    ),
    "rows.large",
)
edits(
    "int8a16.scale_of_states",
    "the recurrent inputs have one scale for all rows",
    (
        ("_operand(x, policy), _operand(recurrent, policy)", "_operand(x, policy), _of_batch(recurrent, policy)"),
        preceded(_PARTS, _OF_BATCH),
    ),
    "rows.large",
)
edits(
    "int8a16.sums_of_32_bits",
    "sums of more than 516 products of integers overflow 32 bits",
    (
        ('from_x, from_h = step.x @ p["weight_x"].T,', 'from_x, from_h = _in_32_bits(step.x, p["weight_x"], step),'),
        preceded(
            _PARTS,
            """def _in_32_bits(a, w, step):
    scales = [np.maximum(np.abs(m).max(axis=1, keepdims=True), 2.0**-100) / most for m, most in ((a, 32767), (w, 127))]
    sums = np.rint(a / scales[0]) @ np.rint(w / scales[1]).T
    wrapped = ((sums + 2.0**31) % 2.0**32 - 2.0**31) * scales[0] * scales[1].T
    return wrapped.astype(a.dtype) if step.precision.weights == "int8a16" else a @ w.T


""",
        ),
    ),
    "weights.int8a16",
)
