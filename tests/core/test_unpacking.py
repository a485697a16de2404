"""Packed files from elsewhere: what they may unpack to, and which errors are those of a damaged file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.cli._formats import format_of_source
from lstmcore.datasets import read_archive
from lstmcore.files import tell_damage
from lstmcore.unpacking import DEFAULT_MIB, LIMIT_VARIABLE, UnpackBudget, asked_limit

MIB = 1 << 20
#: Errors of a program, which say nothing about a file.
MISTAKES = (AttributeError, NameError, UnboundLocalError, AssertionError, KeyError, IndexError, TypeError, MemoryError)
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, struct.error, zlib.error, ValueError)


def test_bytes_that_the_file_holds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 300 MiB with arrays of 100 MiB, each read once, under a limit of nothing."""
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    budget = UnpackBudget(300 * MIB)
    for name in "abc":
        budget.take(name, 100 * MIB, 100 * MIB)
    with pytest.raises(ValueError, match=r"^d: expected at most 0 MiB .*named more than once; got 104,857,856 bytes"):
        budget.take("d", 100 * MIB, 100 * MIB)


def test_what_counts_is_what_is_read_and_not_what_the_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size in the file beyond the file is a lie."""
    monkeypatch.setenv(LIMIT_VARIABLE, "3")
    budget = UnpackBudget(1000)
    budget.take("packed", 150_000, 900)  # not over 200 times
    budget.take("zeros", 2 * MIB, 1 << 40)
    with pytest.raises(ValueError, match=r"^zeros: expected at most 3 MiB .* got 4,194,816 bytes .* to 5 or more"):
        budget.take("zeros", 2 * MIB, 1 << 40)


def test_small_arrays_count_as_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million names of one number are a million arrays."""
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    budget = UnpackBudget(0)
    for _ in range(MIB // 260):
        budget.take("bias", 4, 4)
    with pytest.raises(ValueError, match="expected at most 1 MiB"):
        budget.take("bias", 4, 4)


def test_a_packed_file_in_a_file_counts_to_the_same_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the inner file are worth a tenth: 1 MiB there are 0.1 MiB of the file."""
    monkeypatch.setenv(LIMIT_VARIABLE, "50")
    budget = UnpackBudget(2 * MIB)
    inner = budget.open("inner", 10 * MIB, MIB)
    inner.take("packed 19 times", 19 * MIB, MIB)  # 190 times, in the file
    inner.take("packed 21 times", 21 * MIB, MIB)
    budget.take("outer", 28 * MIB, 0)
    with pytest.raises(ValueError, match=r"^last: expected at most 50 MiB .* got 52,429,568 bytes"):
        inner.take("last", MIB, 0)


@pytest.mark.parametrize(
    ("arrays", "key", "mib"),
    [
        ({"X": np.zeros((4, 1 << 9, 1 << 10), np.uint8)}, "X", 9 * 2),
        ({"X": np.zeros((1, 1 << 10, 1 << 10), np.float16)}, "X", 10),
        ({"X": np.zeros((1, 1 << 10, 1 << 10), ">f8")}, "X", 16),
        ({"X": np.zeros((1, 1 << 10, 1 << 10))}, "X", 8),
        ({"X": np.zeros((1 << 16, 1), np.uint8)}, "X", 16),
        ({"X": np.zeros((1, 1)), "y": np.zeros((1 << 16,), "S1")}, "y", 16),
        ({"X": np.zeros((1, 1)), "y": np.zeros((1,), f"U{1 << 20}")}, "y", 36),
    ],
)
def test_what_is_made_of_an_array_counts(
    arrays: dict[str, Any], key: str, mib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are copied to float64, each sequence has a name, and each label is a text."""
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, **arrays)
    monkeypatch.setenv(LIMIT_VARIABLE, str(mib - 1))
    with pytest.raises(ValueError, match=f"^{path}: .*{key}: expected at most {mib - 1} MiB .* to {mib + 1} or more"):
        read_archive(path)
    if key == "X":
        monkeypatch.setenv(LIMIT_VARIABLE, str(mib + 1))
        assert len(read_archive(path)) == len(arrays[key])


@pytest.mark.parametrize("text", ["", "-1", "1.5", "all"])
def test_a_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_limit() == DEFAULT_MIB == 1024
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(ValueError, match=f"^{LIMIT_VARIABLE}: expected a whole number of MiB; got '{text}'"):
        asked_limit()


def test_a_large_one_hot_table_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Honest tables get smaller than hostile ones are: 288 MiB were refused."""
    path, rows, classes = tmp_path / "words.npz", 36, 1 << 10
    table = np.eye(classes)[np.random.default_rng(0).permutation(classes)]
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows}, {classes}, {classes}), }}\n".encode()
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("X.npy", "w") as stream,
    ):
        stream.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for _ in range(rows):
            stream.write(table.tobytes())
    size = rows * table.nbytes
    assert size > 256 * MIB and size > 200 * path.stat().st_size
    data = read_archive(path)
    assert len(data) == rows
    np.testing.assert_array_equal(data.inputs[-1], table)
    monkeypatch.setenv(LIMIT_VARIABLE, "287")
    with pytest.raises(ValueError, match=f"if you trust the file, set {LIMIT_VARIABLE} to 289 or more"):
        read_archive(path)
    monkeypatch.setenv(LIMIT_VARIABLE, "289")
    assert len(read_archive(path)) == rows


@pytest.mark.parametrize(
    ("read", "owner", "method", "faults"),
    [
        (format_of_source, zipfile.ZipFile, "namelist", ZIP_ERRORS),
        (read_archive, zipfile.ZipFile, "open", ZIP_ERRORS),
        (read_archive, np.lib.format, "read_array", ZIP_ERRORS),
    ],
)
def test_errors_of_a_file_and_mistakes_of_ours(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], Any],
    owner: Any,
    method: str,
    faults: tuple[type[Exception], ...],
) -> None:
    """A damaged file is told as one; an AttributeError says that this library is wrong, and must be seen."""
    path = tmp_path / "whole.npz"
    np.savez(path, X=np.ones((2, 3, 1)))
    for kind in faults:
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, raising(kind))
            with pytest.raises(ValueError, match=f"^{path}: expected a"):
                read(path)
    for kind in set(MISTAKES) - set(faults):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, raising(kind))
            with pytest.raises(kind, match=r"^'?broken'?$"):
                read(path)


def test_errors_of_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy reads it as Python, hence by other errors than those of the rest of an archive."""
    path = tmp_path / "headers.npz"
    for header in ("{'descr': (), ", "{'descr': ('<f8',), ", "{[]: 1, ", "{1: 1, 'a': 2, ", "{'descr': '<f8' '''"):
        text = f"{header}'fortran_order': False, 'shape': (1, 1, 1), }}\n".encode()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("X.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(8))
        with pytest.raises(ValueError, match=f"^{path}: expected a NumPy archive of numbers and texts; "):
            read_archive(path)


def test_an_error_of_the_system_passes() -> None:
    """With its number, by which a program tells a full disk from a file that is not there."""
    with pytest.raises(PermissionError), tell_damage("name", "a file", ()):
        raise PermissionError(13, "denied", "name")
    told = r"^name: expected a file; got another kind, or a damaged one: Invalid"
    with pytest.raises(ValueError, match=told), tell_damage("name", "a file", ()):
        raise OSError("Invalid data stream")


def test_one_array_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    with path.open("wb") as stream:
        np.save(stream, np.ones((2, 3, 1)))
    with pytest.raises(ValueError, match=f"^{path}: .*; got no archive: save the arrays by np.savez"):
        read_archive(path)


def raising(kind: type[Exception]) -> Callable[..., Any]:
    """Return a function that raises an exception."""

    def raise_it(*arguments: Any, **named: Any) -> Any:
        raise kind("broken")

    return raise_it
