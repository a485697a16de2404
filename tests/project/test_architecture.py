"""docs/architecture.md names what is there, and its picture is that of its source."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE, PICTURE = (ROOT / "docs" / f"architecture.{ending}" for ending in ("dot", "svg"))
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_every_path_is_there() -> None:
    paths = re.findall(r"`((?:\.ci|lstmcore|backends|conformance|tests|docs|examples)/[\w./-]*)`", PAGE)
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_name_is_in_the_file_that_is_named_for_it() -> None:
    names = re.findall(r"`([\w.]+)` in `([\w/.]+\.py)`", PAGE)
    assert len(names) > 6
    for name, path in names:
        text = (ROOT / path).read_text("utf-8")
        for part in name.split("."):
            defined = rf"^\s*(?:(?:def|class) {part}\b|(?:self\.)?{part}(?::| =))"
            assert re.search(defined, text, re.MULTILINE), f"{name}: not in {path}"


def test_the_picture_is_that_of_the_source() -> None:
    """The same boxes with the same words, and the same arrows; where they lie is for graphviz to say."""
    source = SOURCE.read_text("utf-8")
    boxes = {
        name: label.split("\\n") for name, label in re.findall(r"^  (\w+) \[label=\"(.*?)\"", source, re.MULTILINE)
    }
    arrows = {f"{start}->{end}" for start, end in re.findall(r"^  (\w+) -> (\w+)", source, re.MULTILINE)}
    labels = dict(re.findall(r"^  (\w+ -> \w+) \[.*label=\"(.*?)\"", source, re.MULTILINE))
    svg = "{http://www.w3.org/2000/svg}"
    drawn: dict[str, dict[str, list[str]]] = {"node": {}, "edge": {}}
    for group in xml.etree.ElementTree.parse(PICTURE).iter(f"{svg}g"):
        if group.get("class") in drawn:
            words = [text.text or "" for text in group.iter(f"{svg}text")]
            drawn[group.get("class", "")][group.findtext(f"{svg}title", "")] = words
    assert len(boxes) == 8 and drawn["node"] == boxes
    assert set(drawn["edge"]) == arrows
    assert {name.replace("->", " -> "): words[0] for name, words in drawn["edge"].items() if words} == labels
    assert "architecture.svg" in PAGE


def test_the_paths_of_the_picture_are_there() -> None:
    paths = re.findall(r"(?:lstmcore|backends|conformance)/[\w./]*", SOURCE.read_text("utf-8"))
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


#: Entries of the top level that belong to it. What an example writes there is left over.
TOP_LEVEL = {
    ".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md",
    "LICENSE", "README.md", "SECURITY.md", "SPEC.md", "backends", "conformance", "docs", "examples", "lstmcore",
    "noxfile.py", "pyproject.toml", "requirements.lock", "setup.py", "tests",
}  # fmt: skip


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git knows what is committed")
def test_nothing_is_left_over_at_the_top_level() -> None:
    listed = subprocess.run(("git", "ls-files", "-z"), cwd=ROOT, capture_output=True, check=True).stdout.decode()
    assert {name.partition("/")[0] for name in listed.split("\0") if name} == TOP_LEVEL
