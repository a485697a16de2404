"""The kernel in C of examples/c_kernel conforms, and a planted fault does not."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lstmcore_conformance import run
from lstmcore_conformance.suite.backend_under_test import Draws

EXAMPLE = Path(__file__).parents[2] / "examples" / "c_kernel"
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    shutil.copy(EXAMPLE / "c_kernel.py", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("c_kernel", None)
    yield importlib.import_module("c_kernel")
    sys.modules.pop("c_kernel", None)


def build(folder: Path, fault: tuple[str, str] = ("", "")) -> None:
    text = (EXAMPLE / "kernel.c").read_text("utf-8")
    assert not fault[0] or text.count(fault[0]) == 1
    (folder / "kernel.c").write_text(text.replace(*fault) if fault[0] else text, "utf-8")
    words = ("-std=c99", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "kernel.c", "-o", "kernel.so", "-lm")
    subprocess.run(["cc", *words], cwd=folder, check=True)


@pytest.mark.parametrize(
    ("fault", "conforms"),
    [
        (("", ""), True),
        (("sigmoid(z[H + j]) * cell[j]", "sigmoid(z[j]) * cell[j]"), False),
        (("h[n * H + j] = output[j];", "h[n * H + j] = output[0];"), False),
    ],
    ids=["right", "another gate", "another unit"],
)
def test_the_kernel_in_c(tmp_path: Path, module: Any, fault: tuple[str, str], conforms: bool) -> None:
    build(tmp_path, fault)
    report = run(module.CBackend(), profile="smoke", select="not drawn", draws=Draws.of("smoke"))
    assert report.conforms is conforms, report.verdict
    assert report.count > 30
