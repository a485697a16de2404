"""The prose of the pages and lessons, read by proselint: clichés, weasel words, words that say nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import doc_pages

#: Checks that take code for prose, or a term of the field for a slip.
IGNORED = (
    "typography",  # straight quotes and dots belong to code
    "lexical_illusions",  # the placeholder of code stands twice
    "misc.phrasal_adjectives",  # "multiply-adds"
    "dates_times",  # 2^-31
)


def found(texts: dict[str, str], folder: Path) -> list[str]:
    """Return what proselint says of texts, with their names in front."""
    names = {}
    for number, (name, text) in enumerate(texts.items()):
        file = folder / f"{number}.txt"
        file.write_text(" ".join(text.split()), "utf-8")
        names[str(file)] = name
    program = str(Path(sys.executable).with_name("proselint"))
    done = subprocess.run([program, "-o", "compact", "check", *names], capture_output=True, text=True, check=False)
    lines = [line.split(":", 4) for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if bool(done.returncode) != bool(lines) or any(len(line) < 5 or line[0] not in names for line in lines):
        raise RuntimeError(f"proselint ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    return [
        f"{names[file]}: {check.strip()}: {message.strip()}"
        for file, _, _, check, message in lines
        if not check.strip().startswith(IGNORED)
    ]


def test_proselint_finds_nothing(tmp_path: Path) -> None:
    pages = (*doc_pages.pages(), doc_pages.ROOT / "CONTRIBUTING.md")
    texts = {path.relative_to(doc_pages.ROOT).as_posix(): path.read_text("utf-8") for path in pages}
    texts |= {path.name: doc_pages.comments(path.read_text("utf-8")) for path in doc_pages.lessons("en")}
    prose = {name: " ".join(doc_pages.sentences(text)) for name, text in texts.items()}
    assert found(prose, tmp_path) == []


def test_proselint_reads_what_it_is_given(tmp_path: Path) -> None:
    told = found({"good": "The state is held.", "bad": "At the end of the day, the state is held."}, tmp_path)
    assert told
    assert {line.partition(": ")[0] for line in told} == {"bad"}
