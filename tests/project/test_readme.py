"""README.md: it is short, its blocks run, and the sessions and files that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import doc_pages
from lstmcore import registry

README = (doc_pages.ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without a reason not to run, with warnings as errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(registry.BACKEND_VARIABLE, "numpy")
    assert doc_pages.run_page("README.md", README, tmp_path) == 1
    assert (tmp_path / "speakers.safetensors").is_file()


def test_sessions_named_in_readme_exist() -> None:
    """``nox -s NAME`` of the README are sessions of the noxfile."""
    sessions = (doc_pages.ROOT / "noxfile.py").read_text(encoding="utf-8")
    named = re.findall(r"nox -s (\w+)", README)
    assert {"quickstart", "tests"} <= set(named)
    for name in named:
        assert f"def {name}(" in sessions


def test_files_named_in_readme_exist() -> None:
    links = [target for target in re.findall(r"\]\(([^)#]+)", README) if "://" not in target]
    links += re.findall(r"python (examples/\S+)", README)
    assert len(links) > 15
    assert [target for target in links if not (doc_pages.ROOT / target).exists()] == []
