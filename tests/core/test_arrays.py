"""Namespaces of arrays: NumPy's, and those of array-api-strict, which can do what the standard says and no more."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from lstmcore import validation
from lstmcore.arrays import (
    device_of,
    dtype_kind,
    dtype_name,
    frozen_copy,
    is_on_host,
    move_like,
    namespace_of,
    to_host,
)

DEVICE = strict.Device("device1")
VALUES = np.random.default_rng(0).standard_normal((3, 2))


def away(values: Any, device: Any = DEVICE) -> Any:
    """Return an array on a device that is not the host."""
    return strict.asarray(values, device=device)


def test_the_namespace_of_numpy_is_numpy() -> None:
    """NumPy 2.1 is the standard; array-api-compat's module, whose functions take longer, is for those before."""
    found = namespace_of(VALUES, None, mask=VALUES > 0)
    assert found.__name__ == ("numpy" if hasattr(np, "astype") else "array_api_compat.numpy")
    assert namespace_of(np.float32(1)) is found
    assert namespace_of(x=VALUES.view(np.memmap), y=VALUES) is found
    for name in ("asarray", "astype", "concat", "count_nonzero", "matrix_transpose", "take_along_axis"):
        assert callable(getattr(found, name))


def test_the_namespace_of_another_library() -> None:
    assert namespace_of(away(VALUES), x=away(VALUES), mask=None) is strict


def test_mixed_arrays_name_both_arguments() -> None:
    """The message of two libraries, and of two devices of one, has the names of both arguments."""
    with pytest.raises(TypeError, match=r"targets: expected .*strict on .*device1.*, as outputs; got .*numpy"):
        namespace_of(outputs=away(VALUES), mask=None, targets=VALUES)
    with pytest.raises(TypeError, match=r"array 1: expected an array of .*numpy on cpu, as array 0; got .*strict"):
        namespace_of(VALUES, away(VALUES))
    other = strict.Device("device2")
    with pytest.raises(ValueError, match=r"h: expected .*device1.*, as x; got .*device2.*: move one of them"):
        namespace_of(x=away(VALUES), h=away(VALUES, other))


def test_what_has_no_namespace_is_refused() -> None:
    for wrong in ([1.0], "text", 2.0, object()):
        with pytest.raises(TypeError, match=r"x: expected an array of a library .*; got builtins"):
            namespace_of(x=wrong)
    assert namespace_of() is namespace_of(x=None, y=None) is namespace_of(VALUES)


def test_to_host_and_back() -> None:
    """Bits, dtypes and shapes are kept both ways, of no rows and of one number too; NumPy's arrays are not copied."""
    for values in (VALUES, np.float32(0.1) * VALUES[:0], np.array(7, np.uint32), VALUES > 0):
        moved = move_like(values, away([1.0]))
        assert moved.device == DEVICE == device_of(moved)
        assert not is_on_host(moved)
        back = to_host(moved)
        assert type(back) is np.ndarray
        assert back.dtype == values.dtype
        np.testing.assert_array_equal(back, values)
        assert to_host(values) is values
        assert move_like(values, VALUES) is values
    assert device_of(VALUES) == "cpu"
    assert is_on_host(np.float32(1)) and type(to_host(np.float32(1))) is np.ndarray
    with pytest.raises((RuntimeError, TypeError)):
        np.asarray(away(VALUES))  # nothing but `to_host` brings them back


def test_an_array_that_copies_itself_is_asked_to() -> None:
    class Array:
        def get(self) -> Any:
            return VALUES

    np.testing.assert_array_equal(to_host(Array()), VALUES)


def test_a_frozen_copy_is_one() -> None:
    own = VALUES.copy()
    kept = frozen_copy(own)
    moved = away(own)
    kept_away = frozen_copy(moved)
    own[0, 0], moved[0, 0] = 9.0, 9.0
    np.testing.assert_array_equal(kept, VALUES)
    np.testing.assert_array_equal(to_host(kept_away), VALUES)
    assert kept_away.device == DEVICE
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1.0


def test_dtypes_of_any_library() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name, kind in (("float32", "f"), ("float64", "f"), ("int8", "i"), ("uint64", "u"), ("bool", "b")):
        assert dtype_name(getattr(strict, name)) == name == dtype_name(np.dtype(name))
        assert dtype_kind(getattr(strict, name)) == kind == dtype_kind(np.dtype(name))
    assert dtype_kind(strict.complex64) == "c" == dtype_kind(np.dtype("complex64"))
    assert dtype_kind(np.dtype(ml_dtypes.bfloat16)) == "f"
    assert dtype_kind(np.dtype([("a", "f4")])) == "V"


def test_checks_take_dtypes_of_any_library() -> None:
    validation.check_array("x", strict.asarray(VALUES), (None, 2), "float64")
    validation.check_real("x", strict.asarray(VALUES), axes=1, width=2)
    with pytest.raises(TypeError, match="x: expected dtype float32; got"):
        validation.check_array("x", strict.asarray(VALUES), (None, 2), "float32")
    with pytest.raises(TypeError, match="x: expected an array of integers; got dtype"):
        validation.check_real("x", strict.asarray(VALUES), kinds="iu")


def test_the_host_loads_no_library_for_namespaces() -> None:
    """What array-api-compat loads for NumPy takes longer than lstmcore itself."""
    if not hasattr(np, "astype"):
        pytest.skip("an older NumPy needs it")
    code = (
        "import sys, numpy as np; from lstmcore.arrays import *; to_host(frozen_copy(np.ones(2))); "
        "namespace_of(np.ones(2)); print([name for name in sys.modules if name.startswith('array_api')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
