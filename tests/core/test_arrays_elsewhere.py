"""Arrays that are neither NumPy's nor of a device that the backend has: refused, with the argument's name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.validation import check_array
from remote_arrays import Remote, RemoteBackend


class Foreign:
    """An array of the host with the dtypes of another library, as PyTorch's tensors on the processor."""

    class _Dtype:
        def __str__(self) -> str:
            return "elsewhere.float32"

    def __init__(self, values: Any) -> None:
        self.values, self.shape, self.ndim, self.dtype = values, values.shape, values.ndim, self._Dtype()

    def __array__(self, *args: Any, **options: Any) -> Any:
        return self.values

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Nowhere(Foreign):
    """One whose device DLPack does not know, as PyTorch's ``"meta"``."""

    def __dlpack_device__(self) -> tuple[int, int]:
        raise ValueError("Unknown device type meta for Dlpack")


@pytest.fixture
def lstm() -> LSTM:
    return LSTM(3, 4, dropout=0.5, num_layers=2, seed=1, backend="numpy")


@pytest.mark.parametrize("kind", [Foreign, Nowhere])
@pytest.mark.parametrize("some", [True, False])
def test_parameters_of_another_library_are_refused(lstm: LSTM, kind: Any, some: bool) -> None:
    parameters: dict[str, Any] = dict(lstm.parameters)
    for name in list(parameters)[-1 if some else 0 :]:
        parameters[name] = kind(parameters[name])
    with pytest.raises(TypeError, match=r"parameters\[.*\]: expected a NumPy array; got .*(Foreign|Nowhere)"):
        lstm.load_parameters(parameters)


@pytest.mark.parametrize("kind", [Foreign, Nowhere])
def test_arguments_of_another_library_are_refused(lstm: LSTM, kind: Any) -> None:
    x = np.ones((5, 2, 3), np.float32)
    y, _, tape = lstm.record(x)
    masks: Any = tape.masks
    with pytest.raises(TypeError, match=r"masks.*: expected a NumPy array; got"):
        lstm.record(x, masks=masks._replace(dropout=tuple(map(kind, masks.dropout))))
    tangents: Any = {name: kind(array) for name, array in lstm.parameters.items()}
    with pytest.raises(TypeError, match=r"tparameters.*: expected a NumPy array; got"):
        lstm.jvp(x, None, tparameters=tangents)
    for call in (lambda: lstm(kind(x)), lambda: lstm.backward(tape, kind(y)), lambda: lstm(x, out=kind(y))):
        with pytest.raises(TypeError, match="expected a NumPy array"):
            call()


@pytest.mark.parametrize("thing", [np.ndarray, LSTM])
def test_a_class_is_no_array(lstm: LSTM, thing: Any) -> None:
    with pytest.raises(TypeError, match="x: expected a NumPy array of float32; got "):
        lstm(thing)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("rows", [3, None])
def test_x_as_out_is_refused_for_a_library_without_addresses(batch_first: bool, rows: int | None) -> None:
    """The views that a call makes of x are other objects than x."""

    class Located(RemoteBackend):
        def locate(self, array: Any) -> tuple[str, Any] | None:
            return ("remote:0", array) if isinstance(array, Remote) else None

    shape = (4, 5) if rows is None else (4, rows, 5)
    x = Remote(np.random.default_rng(0).standard_normal(shape).astype("float32"))
    before = x.memory.copy()
    lstm = LSTM(5, 5, batch_first=batch_first, backend=Located(), seed=1)
    with pytest.raises(ValueError, match=r"out: expected memory of its own"):
        lstm(x, out=x)
    np.testing.assert_array_equal(x.memory, before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_an_object_with_a_shape_alone_is_no_array(dtype: str) -> None:
    """A DataFrame has a shape, and no dtype."""

    class Frame:
        shape = (2, 3)

    with pytest.raises(TypeError, match=f"x: expected an array of {dtype}; got Frame"):
        check_array("x", Frame(), (2, 3), dtype)
