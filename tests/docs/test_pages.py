"""Every page of docs/: its blocks run in order, each page in a folder of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import doc_pages
from lstmcore import registry

#: README.md has a fast test.
PAGES = [
    path
    for path in doc_pages.pages()
    if path.name != "README.md" and any(block.runs for block in doc_pages.blocks(path.read_text("utf-8")))
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(doc_pages.ROOT)))
def test_the_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors; what a block prints is what the page says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv(registry.BACKEND_VARIABLE, "numpy")  # it compiles nothing
    assert doc_pages.run_page(path.name, path.read_text("utf-8"), tmp_path) > 0
    sys.modules.pop("mine", None)


def test_there_are_pages() -> None:
    names = {path.name for path in PAGES}
    assert {"start.md", "resume.md", "write-a-backend.md", "verify-a-c-kernel.md"} <= names
    assert len(PAGES) > 14
