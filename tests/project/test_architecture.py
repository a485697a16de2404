"""docs/architecture.md names what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
