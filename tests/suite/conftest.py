"""Fixtures of the tests of the suite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lstmcore_conformance.vectors import HERE
from lstmcore_conformance.vectors.catalogue import PRECISIONS
from lstmcore_conformance.vectors.index import COMPACT, write_public


@pytest.fixture
def vectors_folder(tmp_path: Path) -> Path:
    """Return a folder of its test with all files of the golden vectors, as a wheel has them."""
    folder = tmp_path / "vectors"
    folder.mkdir()
    for name in (COMPACT, *(f"{precision}.safetensors" for precision in PRECISIONS)):
        shutil.copyfile(HERE / name, folder / name)
    write_public(folder)
    return folder
