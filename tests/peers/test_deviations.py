"""The pages of docs/deviations: each shows a deviation that its library still has, and the suite's files name them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import doc_pages
from doc_pages import ROOT
from lstmcore_conformance.suite.check import all_checks

FOLDER = ROOT / "docs" / "deviations"
#: The name of a page begins with the module of its library.
PAGES = sorted(FOLDER.glob("*-*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_library_still_deviates(path: Path, tmp_path: Path) -> None:
    """The block prints what the page says. If it does not, the library was mended or is wrong in another way."""
    pytest.importorskip(path.stem.partition("-")[0])
    if not path.stem.startswith("torch"):
        pytest.importorskip("onnx")
    text, marks = doc_pages.MARK.subn("", path.read_text("utf-8"))
    assert (marks, text.count("```text")) == (1, 1)
    assert doc_pages.run_page(path.name, text, tmp_path) == 1


def test_a_page_whose_library_was_mended_fails(tmp_path: Path) -> None:
    text = doc_pages.MARK.sub("", (FOLDER / "torch-bias-gradient.md").read_text("utf-8"))
    start, end = text.index("import torch"), text.index("```\n\n```text")
    with pytest.raises(AssertionError, match="right to 1e-5: True"):
        doc_pages.run_page("mended", text[:start] + 'print("right to 1e-5: True")\n' + text[end:], tmp_path)


def test_the_index_has_every_page() -> None:
    index = (FOLDER / "index.md").read_text("utf-8")
    assert PAGES
    assert {f"{name}.md" for name in re.findall(r"\]\(([a-z0-9-]+)\.md\)", index)} == {path.name for path in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_names_checks_that_exist(path: Path) -> None:
    (found,) = re.findall(r"^\| found by \| (.+) \|$", path.read_text("utf-8"), flags=re.MULTILINE)
    named = set(re.findall(r"\b(?:forward|backward|values|rows|steps|lengths)\.[a-z_]+", found))
    assert named
    assert named <= {check.id for check in all_checks()}


def test_every_expected_failure_names_its_page() -> None:
    files = sorted((ROOT / "backends").glob("*/*expected_failures.toml"))
    assert {path.parent.name for path in files} == {"lstmcore_torch", "lstmcore_onnxruntime", "lstmcore_openvino"}
    for path in files:
        for check, reason in tomllib.loads(path.read_text("utf-8")).items():
            names = re.findall(r"docs/deviations/([a-z0-9-]+\.md)", reason)
            assert names, f"{path}: {check}"
            assert all((FOLDER / name).is_file() for name in names), f"{path}: {check}"
