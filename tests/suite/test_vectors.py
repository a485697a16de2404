"""The golden vectors: they can be written again, the index is complete, right backends pass and mutants fail."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from golden_vectors import allowed
from lstmcore.backend import Capabilities
from lstmcore.registry import get_backend
from lstmcore_conformance.cases.case import Array
from lstmcore_conformance.checks.derivatives import KINKS
from lstmcore_conformance.mutants import MUTANTS, Mutant
from lstmcore_conformance.oracle.naive import NaiveBackend
from lstmcore_conformance.vectors import HERE, entries, verify
from lstmcore_conformance.vectors import index as index_module
from lstmcore_conformance.vectors.catalogue import PRECISIONS, vectors
from lstmcore_conformance.vectors.index import COMPACT, PUBLIC, read_index
from lstmcore_conformance.vectors.mutants_caught import BEYOND, BEYOND_ALONE, FIRST, caught, reason
from lstmcore_conformance.vectors.reader import draws
from lstmcore_conformance.vectors.writer import pinned, write

FILES = (*(f"{precision}.safetensors" for precision in PRECISIONS), COMPACT)
DOCS = Path(__file__).parents[2] / "docs" / "vectors.md"
#: A budget is measured in float32, on arrays of a few elements partly by luck; another BLAS moved one by 3.7.
FACTOR = 8.0


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Array]]]:
    return read_index(folder), {precision: load_file(folder / f"{precision}.safetensors") for precision in PRECISIONS}


def without_numbers(index: dict[str, Any]) -> dict[str, Any]:
    for entry in index["cases"]:
        for row in entry["tensors"].values():
            row.pop("budget", None)
    return index


@pytest.mark.slow  # all vectors: five to ten seconds
def test_written_anew_they_are_the_same(tmp_path: Path) -> None:
    write(tmp_path, draws())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, *PUBLIC])
    (index, arrays), (new_index, new_arrays) = read(HERE), read(tmp_path)
    for entry, new_entry in zip(index["cases"], new_index["cases"], strict=True):
        for name, row in entry["tensors"].items():
            precision, key = entry["precision"], f"{entry['name']}/{name}"
            old, new = arrays[precision][key], new_arrays[precision][key]
            assert (old.dtype, old.shape) == (new.dtype, new.shape), key
            if "budget" not in row:  # one place: another libm may draw and round so
                np.testing.assert_array_max_ulp(np.nan_to_num(old), np.nan_to_num(new), 1)
                np.testing.assert_array_equal(np.isnan(old), np.isnan(new))
                continue
            budget, new_budget = row["budget"], new_entry["tensors"][name]["budget"]
            assert new_budget / FACTOR <= budget <= new_budget * FACTOR, key
            both = 2 * allowed(precision, budget)  # old and new may each be off
            np.testing.assert_allclose(new, old, rtol=0, atol=both, err_msg=key)
    assert without_numbers(new_index) == without_numbers(index)


def test_all_forms_of_the_index_say_the_same(vectors_folder: Path) -> None:
    index, arrays = read(HERE)
    assert json.loads((vectors_folder / "index.json").read_text("utf-8")) == index
    lines = iter((vectors_folder / "index.txt").read_text("utf-8").splitlines())
    assert next(lines) == f"{index['schema']} {index['version']}"

    def word(value: Any) -> str:
        return str(int(value)) if isinstance(value, bool) else str(value).replace(" ", "").replace("None", "none")

    for key, value in index["defaults"].items():
        assert next(lines) == f"default {key} {word(value)}"
    kinds = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64"}
    raw = {}
    for precision in PRECISIONS:
        data = (HERE / f"{precision}.safetensors").read_bytes()
        raw[precision] = data[8 + int.from_bytes(data[:8], "little") :]
    for entry in index["cases"]:
        precision = entry["precision"]
        assert (
            next(lines) == f"case {precision} {precision}.safetensors {entry['steps']} {entry['batch']} {entry['name']}"
        )
        for key, value in entry["model"].items():
            assert next(lines) == f"model {key} {word(value)}"
        for name, row in entry["tensors"].items():
            role, tensor, kind, offset, budget, rank, *shape = next(lines).split(" ")
            array = arrays[precision][f"{entry['name']}/{name}"]
            assert (role, tensor, float(budget)) == (row["role"], name, row.get("budget", 0.0))
            assert (kind, int(rank)) == (kinds[array.dtype.name], array.ndim)
            assert [int(size) for size in shape if size] == list(array.shape)
            start = int(offset)
            assert raw[precision][start : start + array.nbytes] == array.tobytes()
        assert next(lines) == "end"
    assert next(lines, None) is None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_index_alone_tells_what_to_run(precision: str) -> None:
    numbers = draws()
    made = [pinned(vector, numbers) for vector in vectors() if vector.case.precision == precision]
    for vector, entry in zip(made, entries(precision), strict=True):
        case, data = vector.case, vector.answer(vector.case).data
        assert (entry.case.name, entry.case.model) == (case.name, case.model)
        assert (entry.case.steps, entry.case.batch, entry.case.lengths) == (case.steps, case.batch, case.lengths)
        assert bool(entry.case.masks) == any(mask is not None for mask in flat(data.masks))
        given = dict(entry.data.arrays())
        for name, array in data.arrays():
            if not name.startswith("tangents"):
                np.testing.assert_array_equal(given.pop(name), array, err_msg=f"{case.id} {name}")
        assert not given


def flat(value: Any) -> list[Any]:
    return [item for part in value for item in flat(part)] if isinstance(value, tuple) else [value]


def test_the_public_files_alone_can_be_read(vectors_folder: Path) -> None:
    """A folder with ``index.json`` and the safetensors files, and no compact index, has the same cases."""
    (vectors_folder / COMPACT).unlink()
    names = [entry.case.name for entry in entries("float16", vectors_folder)]
    assert names == [entry.case.name for entry in entries("float16")]


def test_the_public_files_are_made_without_the_package(vectors_folder: Path) -> None:
    """The build runs the module by its path, where nothing is installed; the second run replaces no file."""
    before = {name: (vectors_folder / name).read_bytes() for name in PUBLIC}
    for name in PUBLIC:
        (vectors_folder / name).unlink()
    command = [sys.executable, "-I", "-S", inspect.getfile(index_module), str(vectors_folder)]
    subprocess.run(command, check=True)
    assert {name: (vectors_folder / name).read_bytes() for name in PUBLIC} == before
    files = {name: (vectors_folder / name).stat().st_ino for name in PUBLIC}
    subprocess.run(command, check=True)
    assert {name: (vectors_folder / name).stat().st_ino for name in PUBLIC} == files


def test_another_index_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"schema": "lstmcore-vectors", "version": 1}')
    with pytest.raises(ValueError, match="expected lstmcore-vectors 2; got lstmcore-vectors 1"):
        next(entries("float32", tmp_path))


def test_a_precision_that_they_lack_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected one of float16, float32, float64, .*; got 'tf32'"):
        next(entries("tf32"))


def test_they_are_small_enough_to_ship(vectors_folder: Path) -> None:
    others = {path.name for path in HERE.iterdir() if path.suffix not in ("", ".py", ".pyc")}
    shipped = {*FILES, "stored_weights.safetensors"}
    assert others - set(PUBLIC) == shipped  # an editable install writes the public files there
    assert sum((vectors_folder / name).stat().st_size for name in (*FILES, *PUBLIC)) < 5 << 20


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["naive", "reference", "numpy"])
def test_a_right_backend_passes(name: str, precision: str) -> None:
    backend = NaiveBackend() if name == "naive" else get_backend(name)
    assert list(verify(backend, precision)) == []


def test_a_backend_that_raises_fails() -> None:
    class Broken(NaiveBackend):
        def _compile(self, *_: Any) -> Any:
            raise RuntimeError("no")

    names = [name for name, message in verify(Broken(), "float16") if "RuntimeError" in message]
    assert names == [entry.case.name for entry in entries("float16")]


def test_gradients_are_asked_of_a_backend_that_declares_them() -> None:
    class Inference(NaiveBackend):
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities(), derivatives=frozenset())

    assert list(verify(Inference(), "float16")) == []


@pytest.mark.parametrize("id", [id for id, mutant in MUTANTS.items() if reason(mutant) is None])
def test_every_fault_that_numbers_can_show_is_caught(id: str) -> None:
    assert caught(MUTANTS[id])


def test_what_vectors_cannot_show_is_in_use_and_in_the_docs() -> None:
    beyond = [mutant for mutant in MUTANTS.values() if reason(mutant)]
    assert all(any(mutant.caught_by.startswith(start) for mutant in beyond) for start in BEYOND)
    assert all(id in MUTANTS for id in BEYOND_ALONE)
    text = DOCS.read_text("utf-8")
    for why in {*BEYOND.values(), *BEYOND_ALONE.values()}:
        assert f"{why} | {sum(reason(mutant) == why for mutant in beyond)} |" in text
    within = len(MUTANTS) - len(beyond)
    assert f"{within} of the {within}" in text


def test_mutants_of_a_precision_that_they_lack_are_beyond() -> None:
    """The command that counts runs every mutant, those too."""
    others = [mutant for mutant in MUTANTS.values() if mutant.precision not in PRECISIONS]
    assert others
    for mutant in others:
        assert caught(mutant) is None
        assert reason(mutant)


def test_the_cases_that_are_run_first_exist() -> None:
    assert set(FIRST) <= {entry.case.name for entry in entries("float32")}
    assert len(set(FIRST)) == len(FIRST)


def test_a_fault_of_one_call_is_not_beyond() -> None:
    wrong = Mutant("new", "", "forward.switches", "float32", "", NaiveBackend)
    assert reason(wrong) is None
    assert caught(wrong) is None


def test_every_precision_has_every_kink() -> None:
    cases = read_index(HERE)["cases"]
    found = {(case["precision"], case["name"]) for case in cases if case["name"].startswith("kink,")}
    assert found == {(precision, f"kink,{name}") for precision in PRECISIONS for name in KINKS}
