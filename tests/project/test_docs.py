"""The pages of docs/ say what the code says, in short sentences; the session docs builds them and runs their blocks."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import doc_pages
from doc_pages import ROOT
from lstmcore import registry

#: Words of a sentence.
LONGEST = 25
#: Pages that are older than the limit of sentences, or made by a program.
OLDER = frozenset(
    f"docs/{name}.md"
    for name in (
        *("architecture", "backward", "benchmarking", "conformance", "development", "peers", "peers-jax"),
        *("peers-onnxruntime", "scoreboard", "vectors", "benchmarks/README"),
        "benchmarks/standard/README",
    )
)
#: Modules whose names a user writes.
PUBLIC = (
    "lstmcore",
    "lstmcore.training",
    "lstmcore.datasets",
    "lstmcore.layers",
    "lstmcore.backend",
    "lstmcore_conformance",
    "lstmcore_conformance.testing",
)


def public_names() -> Iterator[tuple[str, Any]]:
    """Yield the functions and classes that the public modules export, with their full names."""
    for module in map(importlib.import_module, PUBLIC):
        exported = getattr(module, "__all__", None) or ("LSTMConformance",)
        for name in exported:
            value = getattr(module, name)
            if value is not Any and (inspect.isclass(value) or inspect.isfunction(value)):
                yield f"{module.__name__}.{name}", value


def listed_names() -> list[tuple[str, str]]:
    """Return each name on the page of the interface, with the `currentmodule` above it."""
    page = (ROOT / "docs" / "reference" / "api.rst").read_text("utf-8")
    _, *parts = re.split(r"^\.\. currentmodule:: (\S+)$", page, flags=re.MULTILINE)
    return [
        (module, name)
        for module, part in zip(parts[::2], parts[1::2], strict=True)
        for name in re.findall(r"^   (\w+)$", part, re.MULTILINE)
        if module != "lstmcore.sklearn" or find_spec("sklearn")  # the session docs makes the pages of these names
    ]


NAMES = dict(public_names())
#: These, and the others on the page of the interface.
WITH_EXAMPLES = NAMES | {
    f"{module}.{name}": getattr(importlib.import_module(module), name)
    for module, name in listed_names()
    if module != "lstmcore.sklearn"  # tests/estimators has them
    and hasattr(importlib.import_module(module), name)  # a test below names those that are not there
}
#: Names whose examples need pandas; tests/estimators runs them.
ELSEWHERE = {"lstmcore.datasets.FrameWindows", "lstmcore.datasets.windows"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts() -> Iterator[tuple[str, str]]:
    """Yield the pages and the English lessons by name, as text."""
    for path in (*doc_pages.pages(), ROOT / "CONTRIBUTING.md"):
        if name_of(path) not in OLDER:
            yield name_of(path), path.read_text("utf-8")
    for path in doc_pages.lessons("en"):
        yield name_of(path), doc_pages.comments(path.read_text("utf-8"))


def test_sentences_are_short() -> None:
    long = [
        f"{name}: {len(sentence.split())} words: {sentence}"
        for name, text in texts()
        for sentence in doc_pages.sentences(text)
        if len(sentence.split()) > LONGEST
    ]
    assert long == []


def test_sentences_are_told_from_code_and_tables() -> None:
    page = "# A heading. It\n\nOne two. Three `a b c` [four five](x.md) six:\n\n- item one\n- item two\n\n"
    page += "```sh\na b\n```\n| a | b |\n"
    assert list(doc_pages.sentences(page)) == ["One two.", "Three Code four five six:", "- item one", "- item two"]


def test_blocks_are_found_with_their_marks() -> None:
    page = "<!-- file: a.py -->\n```python\nx = 1\n```\n\n<!-- not run: slow -->\n```sh\nrun\n```\n\n"
    page += "   ```python\n   y\n   ```\n"
    found = [(block.language, block.text, block.file, block.reason, block.runs) for block in doc_pages.blocks(page)]
    assert found == [
        ("python", "x = 1\n", "a.py", None, False),
        ("sh", "run\n", None, "slow", False),
        ("python", "y\n", None, None, True),
    ]


def test_a_page_that_prints_something_else_fails(tmp_path: Path) -> None:
    page = "```python\na = 1\nprint(a)\n```\n\n```text\n{}\n```\n\n```sh\ntest -n a\n```\n"
    assert doc_pages.run_page("page", page.format(1), tmp_path) == 2
    with pytest.raises(AssertionError, match="page:6: expected\n2\n"):
        doc_pages.run_page("page", page.format(2), tmp_path)
    with pytest.raises(AssertionError, match="page:1: exit code 3"):
        doc_pages.run_page("page", "```sh\nexit 3\n```\n", tmp_path)


def test_the_lessons_have_the_same_code_in_both_languages() -> None:
    english, chinese = (
        {path.name.removeprefix("zh_"): path.read_text("utf-8") for path in doc_pages.lessons(name)}
        for name in ("en", "zh")
    )
    assert len(english) > 6
    assert english.keys() == chinese.keys()
    for name in english:
        assert doc_pages.code(english[name]) == doc_pages.code(chinese[name]), name


def test_the_page_of_variables_has_those_of_the_code() -> None:
    named = re.compile(r"LSTMCORE_[A-Z0-9_]*[A-Z0-9]")
    folders = (ROOT / "lstmcore", ROOT / "backends", ROOT / "conformance")
    used = {
        name for folder in folders for path in folder.rglob("*.py") for name in named.findall(path.read_text("utf-8"))
    }
    page = (ROOT / "docs" / "reference" / "environment.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(LSTMCORE_\w+)`", page, re.MULTILINE)) == used


def test_every_public_name_is_on_the_page_of_the_interface() -> None:
    page = (ROOT / "docs" / "reference" / "api.rst").read_text("utf-8")
    listed = set(re.findall(r"^   (\w+)$", page, re.MULTILINE))
    assert {name for name in NAMES if name.rpartition(".")[2] not in listed} == set()


def test_each_name_of_the_interface_is_in_its_module() -> None:
    """A name stands alone in its line, below the `currentmodule` that has it; Sphinx makes no page of it elsewhere."""
    found = listed_names()
    assert len(found) > 60
    assert [(module, name) for module, name in found if not hasattr(importlib.import_module(module), name)] == []


@pytest.mark.parametrize("name", sorted(WITH_EXAMPLES.keys() - ELSEWHERE))
def test_a_public_name_has_an_example_that_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of a docstring run with NumPy as ``np``, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(registry.BACKEND_VARIABLE, "numpy")
    value = WITH_EXAMPLES[name]
    text = inspect.getdoc(value) or ""
    names = {**vars(sys.modules[value.__module__]), "np": np}
    test = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    assert test.examples, f"{name}: no example"
    result: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=result.append)
    assert result == []
