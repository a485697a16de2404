"""The pages of docs/: their blocks of code, which run in order, and their sentences."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
#: A comment right before a block: write it to a file, or do not run it, for a reason.
MARK: Final = re.compile(r"<!-- (?P<what>file|not run): (?P<value>.+) -->")
FENCE: Final = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|:{3,})(?P<language>\S*)[^\n]*$")
#: Languages whose blocks run.
RUN: Final = ("python", "sh")
_CHECKER: Final = doctest.OutputChecker()
_OPTIONS: Final = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the line of its fence, its language, its text, and the mark before it."""

    line: int
    language: str
    text: str
    file: str | None
    reason: str | None

    @property
    def runs(self) -> bool:
        """Whether `run_page` runs it."""
        return self.language in RUN and self.file is None and self.reason is None


def pages() -> list[Path]:
    """Return the pages in Markdown that somebody wrote, sorted: README.md and those of docs/."""
    made = ("_build", "lessons", "generated")
    docs = [path for path in (ROOT / "docs").rglob("*.md") if not set(made) & set(path.parts)]
    return sorted((ROOT / "README.md", *docs))


def lessons(language: str) -> list[Path]:
    """Return the scripts of the tutorial in a language, sorted."""
    return sorted((ROOT / "docs" / "tutorial" / language).glob("*.py"))


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page in Markdown."""
    found, lines, at = [], text.splitlines(), 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence is None:
            at += 1
            continue
        end = next(n for n in range(at + 1, len(lines)) if lines[n].strip() == fence["ticks"])
        mark = MARK.fullmatch(lines[at - 1].strip()) if at else None
        what, value = (mark["what"], mark["value"]) if mark else (None, None)
        inside = "\n".join(line.removeprefix(fence["indent"]) for line in lines[at + 1 : end]) + "\n"
        file, reason = (value if what == name else None for name in ("file", "not run"))
        found.append(Block(at + 1, fence["language"], inside, file, reason))
        at = end + 1
    return found


def run_page(name: str, text: str, folder: Path) -> int:
    """Run the blocks of a page in order, in one namespace and one folder; return how many ran.

    A block of ``text`` right after one that ran is what that one prints; ``...`` stands for anything.

    Raises
    ------
    AssertionError
        A command that fails, or prints something else; the message names the page and the line.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed, ran = None, 0
    for block in blocks(text):
        where = f"{name}:{block.line}"
        if block.file is not None:
            (folder / block.file).write_text(block.text, "utf-8")
        elif block.runs:
            run = _run_python if block.language == "python" else _run_shell
            printed, ran = run(where, block.text, namespace, folder), ran + 1
            continue
        elif block.language == "text" and printed is not None:
            example = doctest.Example("", block.text)
            if not _CHECKER.check_output(example.want, printed, _OPTIONS):
                raise AssertionError(f"{where}: expected\n{example.want}\ngot\n{printed}")
        printed = None
    return ran


def _run_python(where: str, text: str, namespace: dict[str, Any], folder: Path) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(text, where, "exec"), namespace)
    return printed.getvalue()


def _run_shell(where: str, text: str, namespace: dict[str, Any], folder: Path) -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    env = {**os.environ, "PATH": path, "COLUMNS": "120", "ROOT": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AssertionError(f"{where}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def comments(source: str) -> str:
    """Return the text of a sphinx-gallery script: its docstring and the comments after a line of ``# %%``."""
    paragraphs, inside = [source.split('"""')[1]], False
    for line in source.split('"""', 2)[2].splitlines():
        inside = line.startswith("# %%") or (inside and line.startswith("#"))
        paragraphs.append("" if line.startswith("# %%") or not inside else line.removeprefix("#").removeprefix(" "))
    return "\n".join(paragraphs)


def code(source: str) -> list[str]:
    """Return the lines of code of a sphinx-gallery script, without comments and the docstring."""
    lines = source.split('"""', 2)[2].splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a page: no code, tables, headings, directives and comments."""
    text = re.sub(r"^( *)(`{3,}|:{3,}).*?^\1\2 *$", "\n\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!-- scoreboard:.*?<!-- end of the scoreboard -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^\.\. \w+::.*\n(?:\s*\n| +.*\n)*", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"<!--.*?-->|^---\n.*?^---\n", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"``[^`]+``|`[^`]+`|\$[^$]+\$", "Code", text)  # a sentence may begin with it
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    kept = [
        "" if line.lstrip().startswith(("#", "|", "..", ":")) or set(line.strip()) <= set("-=~") else line
        for line in text.splitlines()
    ]
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(kept))
    for paragraph in paragraphs:
        for sentence in re.split(r"(?<=[.!?])[\s)\"*]+(?=[A-Z\"(*])|(?<=[.!?:])\s*$", " ".join(paragraph.split())):
            if sentence.strip():
                yield sentence.strip()
