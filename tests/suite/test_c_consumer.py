"""The consumer of the golden vectors in C: no complaint of the compiler, green, and red with a fault planted."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lstmcore_conformance.vectors import entries

CONSUMER = Path(__file__).parents[2] / "examples" / "c_consumer" / "consumer.c"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ("-std=c99", "-pedantic", "-O2", "-Wall", "-Wextra", "-Werror")
#: What is over its budget with each fault.
FAULTS = {"GATE_SWAP": "outputs", "STALE_DC": "gradients", "STALE_CELL": "gradients", "MISSING_TERM": "gradients"}
LINE = re.compile(r"(ok|FAIL) (\S+) (.+): outputs (\S+) of the budget, gradients (?:not computed with (\S+)|(\S+))")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler is here")


def compiled(folder: Path, *flags: str) -> Path:
    program = folder / "consumer"
    subprocess.run([str(COMPILER), *FLAGS, *flags, str(CONSUMER), "-o", str(program), "-lm"], check=True)
    return program


def run(program: Path, folder: Path) -> tuple[int, list[re.Match[str]], str]:
    """Return the exit code, the lines of the cases that ran, and the last line."""
    done = subprocess.run([str(program), str(folder)], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    *lines, last = done.stdout.splitlines()
    return done.returncode, [match for line in lines if (match := LINE.fullmatch(line))], last


def check_green(program: Path, folder: Path) -> None:
    code, lines, last = run(program, folder)
    assert [line[0] for line in lines if line[1] == "FAIL"] == []
    assert code == 0
    single = {
        (entry.case.precision, entry.case.name)
        for precision in ("float64", "float32")
        for entry in entries(precision)
        if entry.case.stack is None
    }
    assert {(line[2], line[3]) for line in lines} == single
    whole = {(line[2], line[3]) for line in lines if line[5] is None}
    plain = ("plain", "no_bias", "reverse", "reverse,short", "T=70,N=1", "H=33", "nothing", "plain,nan_in_empty_row")
    assert {("float32", name) for name in plain} <= whole
    assert last.startswith(f"{len(single)} passed, 0 failed, ")
    assert last.endswith(f"gradients compared in {len(whole)}")


def test_it_is_green(tmp_path: Path, vectors_folder: Path) -> None:
    check_green(compiled(tmp_path), vectors_folder)


def test_it_is_green_under_the_sanitizers(tmp_path: Path, vectors_folder: Path) -> None:
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    empty = tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }")
    probe = [str(COMPILER), *flags, str(empty), "-o", str(tmp_path / "empty")]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("the compiler has no sanitizers")
    check_green(compiled(tmp_path, *flags), vectors_folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_it_catches_a_planted_fault(fault: str, tmp_path: Path, vectors_folder: Path) -> None:
    code, lines, last = run(compiled(tmp_path, f"-DPLANT_{fault}"), vectors_folder)
    assert code == 1
    assert " 0 failed" not in last
    plain = next(line for line in lines if (line[2], line[3]) == ("float32", "plain"))
    assert plain[1] == "FAIL"
    outputs, gradients = float(plain[4]), float(plain[6])
    assert gradients > 1000
    assert (outputs > 1000) == (FAULTS[fault] == "outputs")


def test_an_answer_that_is_changed_is_seen(tmp_path: Path, vectors_folder: Path) -> None:
    program, folder = compiled(tmp_path), vectors_folder
    index = (folder / "index.txt").read_text("utf-8").replace("\ngradient dx ", "\ngradient dx_other ", 1)
    (folder / "index.txt").write_text(index, "utf-8")
    done = subprocess.run([str(program), str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "nothing computes: dx_other\n")
    (folder / "index.txt").write_text("lstmcore-vectors 1\n", "utf-8")
    done = subprocess.run([str(program), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "another version" in done.stderr
