"""The golden vectors: written anew they are the same, backends pass on them, mutants do not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lstmcore_conformance.mutants import MUTANTS
from lstmcore_conformance.textbook import TextbookBackend
from lstmcore_conformance.vectors import HERE, verify, write

CONSUMER = Path(__file__).parent.parent / "examples" / "c_consumer" / "consumer.c"
FILES = ("float64.safetensors", "float32.safetensors", "float16.safetensors", "index.json", "index.txt")


def test_written_anew_they_are_the_same(tmp_path: Path) -> None:
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (HERE / name).read_bytes(), name


def test_they_are_small_enough_to_ship() -> None:
    assert sum((HERE / name).stat().st_size for name in FILES) < 5 << 20


@pytest.mark.parametrize("precision", ["float64", "float32", "float16"])
def test_the_textbook_passes(precision: str) -> None:
    assert verify(TextbookBackend(), precision) == []


@pytest.mark.parametrize("id", [id for id, mutant in MUTANTS.items() if mutant.caught_by == "backward.switches"][::3])
def test_a_fault_of_the_gradient_is_caught(id: str) -> None:
    assert verify(MUTANTS[id].make(), MUTANTS[id].precision)


@pytest.mark.parametrize("id", [id for id, mutant in MUTANTS.items() if mutant.caught_by == "forward.switches"][::3])
def test_a_fault_of_the_values_is_caught(id: str) -> None:
    assert verify(MUTANTS[id].make(), MUTANTS[id].precision)


def test_the_consumer_in_c_is_green_and_catches_a_gate_swap(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is here")
    for planted, expected in (((), 0), (("-DPLANT_GATE_SWAP",), 1)):
        program = tmp_path / f"consumer{expected}"
        flags = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
        subprocess.run([compiler, *flags, *planted, str(CONSUMER), "-o", str(program), "-lm"], check=True)
        done = subprocess.run([str(program), str(HERE)], capture_output=True, text=True, check=False)
        assert done.returncode == expected, done.stdout[-2000:] + done.stderr
        assert ("FAIL" in done.stdout) == bool(expected)
        assert "ok" in done.stdout
