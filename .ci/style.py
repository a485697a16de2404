"""Measure the code by the limits of docs/development.md, and print them as tables.

``python .ci/style.py`` needs ruff and pylint; ``nox -s style`` brings both.
``python .ci/style.py --repeats`` prints where lines are repeated.
"""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Final

ROOT: Final = Path(__file__).parent.parent
#: The folders that hold packages.
CODE: Final = ("lstmcore", "backends", "conformance", "examples", ".ci")

#: Lines of a function without its docstring; a function with a reason may have `LONGEST`.
LINES: Final = 40
LONGEST: Final = 80
#: Lines of a file.
FILE_LINES: Final = 400
#: Two files repeat at least so many lines with a word to be counted.
REPEATED: Final = (6, 4)

#: The reason why a function is longer, on its `def` line; a file has one on a line of its own.
LONG: Final = re.compile(r"# long: (?P<reason>\S.*)")
LONG_FILE: Final = re.compile(r"^# long file: (?P<reason>\S.*)", re.MULTILINE)

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the code.

    Parameters
    ----------
    place
        The file below the root, the line and the name.
    lines
        Lines without the docstring.
    parameters
        Parameters without `self` and `cls`.
    untyped
        Those whose type is `Any` or `Array`, which is another name of it.
    reason
        Why it is longer than `LINES`, or None.
    """

    place: str
    lines: int
    parameters: int
    untyped: int
    reason: str | None


def files(*folders: str) -> list[Path]:
    """Return the Python files below `folders` that git has, sorted."""
    return [ROOT / name for name in _listed(*folders) if name.endswith(".py") and (ROOT / name).exists()]


def _listed(*folders: str) -> list[str]:
    """Return the names of the files that git has below `folders`, or of all, sorted."""
    done = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(done.stdout.split("\0"))


def functions(path: Path, root: Path = ROOT) -> list[Function]:
    """Return the functions of a file."""
    return functions_of(path.read_text("utf-8"), str(path.relative_to(root)))


def functions_of(text: str, name: str) -> list[Function]:
    """Return the functions of a module's text; `name` is the file that messages give."""
    lines = text.splitlines()
    every = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _Function):
            signature = lines[node.lineno - 1 : node.body[0].lineno]
            reason = next((match["reason"] for line in signature if (match := LONG.search(line))), None)
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            types = [argument.annotation for argument in arguments if argument.arg not in ("self", "cls")]
            untyped = sum(map(_is_any, types))
            place = f"{name}:{node.lineno} {node.name}"
            every.append(Function(place, _lines_without_docstring(node), len(types), untyped, reason))
    return every


def _is_any(annotation: ast.expr | None) -> bool:
    return annotation is None or ast.unparse(annotation).split(" | ")[0] in ("Any", "Array")


def _docstring(node: ast.AST) -> ast.Expr | None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
        return None
    first = node.body[0]
    return first if isinstance(first, ast.Expr) and ast.get_docstring(node) is not None else None


def _lines_without_docstring(node: _Function) -> int:
    whole = (node.end_lineno or node.lineno) - node.lineno + 1
    text = _docstring(node)
    return whole - ((text.end_lineno or text.lineno) - text.lineno + 1 if text else 0)


def code_lines(path: Path) -> int:
    """Return the lines that hold code: without comments, docstrings and empty lines."""
    text = path.read_text("utf-8")
    held: set[int] = set()
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if (docstring := _docstring(node)) is not None:
            held.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return len(held)


def too_long(paths: Sequence[Path], root: Path = ROOT) -> list[str]:
    """Return a line for each function and file over its limit that gives no reason, or is over `LONGEST`."""
    wrong = []
    for path in paths:
        text = path.read_text("utf-8")
        if (count := len(text.splitlines())) > FILE_LINES and not LONG_FILE.search(text):
            wrong.append(f"{path.relative_to(root)}: {count} lines; expected at most {FILE_LINES}: split it")
        for function in functions(path, root):
            most = LONGEST if function.reason else LINES
            if function.lines > most:
                wrong.append(f"{function.place}: {function.lines} lines; expected at most {most}: split it")
    return wrong


def complexities(paths: Sequence[Path]) -> list[int]:
    """Return the cyclomatic complexity of every function, as ruff counts it."""
    words = ("ruff", "check", "--isolated", "--ignore-noqa", "--select", "C901", "--output-format", "json")
    every = [*words, "--config", "lint.mccabe.max-complexity=0", *map(str, paths)]
    # ruff ends with 1, since every function is above 0
    done = subprocess.run(every, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"ruff: {done.stderr.strip()}")
    return [int(re.findall(r"\((\d+) > 0\)", one["message"])[0]) for one in json.loads(done.stdout)]


def repeats(paths: Sequence[Path], least: Sequence[int] = REPEATED, root: Path = ROOT) -> dict[int, list[str]]:
    """Return the runs of at least so many lines that two files share: each number -> one line of text for each run.

    It is the search of pylint's message R0801, without comments, docstrings, imports and signatures. Pylint reports
    what is longer than its option ``min-similarity-lines``, which is therefore one less here.
    """
    from pylint.checkers.symilar import Symilar

    search = Symilar(ignore_comments=True, ignore_docstrings=True, ignore_imports=True, ignore_signatures=True)
    for path in paths:
        with path.open(encoding="utf-8") as stream:
            search.append_stream(str(path.relative_to(root)), stream)
    found = {}
    for lines in least:
        search.namespace.min_similarity_lines = lines - 1
        found[lines] = sorted(
            f"{one.fst_lset.name}:{one.fst_file_start + 1} {one.snd_lset.name}:{one.snd_file_start + 1}"
            for one in search._iter_sims()  # each pair of files; the public `run` prints groups of them
        )
    return found


def generated_lines() -> int:
    """Return the lines of files in git that a program wrote: data, pages and pictures."""
    kinds = (".json", ".html", ".svg")
    generated = [name for name in _listed() if name.endswith(kinds) and "schema" not in name]
    return sum(len((ROOT / name).read_bytes().splitlines()) for name in generated)


def table() -> str:
    """Return the table of limits in Markdown."""
    paths = files(*CODE)
    every = [function for path in paths for function in functions(path)]
    lengths = sorted(function.lines for function in every)
    parameters = [function.parameters for function in every]
    counts = complexities(paths)
    sizes = {path: len(path.read_text("utf-8").splitlines()) for path in paths}
    rows = [
        ("lines of a function, without its docstring", f"p90 {quantiles(lengths, n=10)[-1]:.0f}, max {max(lengths)}"),
        (f"functions over {LINES} lines", _over(lengths, LINES)),
        (f"functions over {LONGEST} lines", _over(lengths, LONGEST)),
        ("functions with more than 6 parameters", f"{_over(parameters, 6)}, max {max(parameters)}"),
        (
            "cyclomatic complexity (ruff)",
            f"max {max(counts)}; {_over(counts, 12)} over 12, {_over(counts, 20)} over 20",
        ),
        ("lines of a file", f"max {max(sizes.values())}; {_over(list(sizes.values()), FILE_LINES)} over {FILE_LINES}"),
        *(
            (f"parameters typed Any or Array, lstmcore_{name}", _untyped(f"backends/lstmcore_{name}"))
            for name in ("numba", "numpy", "cupy")
        ),
        *(
            (f"runs of {lines} lines or more in two files (pylint R0801)", str(len(found)))
            for lines, found in repeats(paths).items()
        ),
        ("lines of generated files in git", f"{generated_lines():,}"),
    ]
    return _markdown("measure", "value", rows)


def package_of(path: Path, root: Path = ROOT) -> str:
    """Return the package of a file, or the folder at the root."""
    parts = path.relative_to(root).parts
    return parts[1] if parts[0] in ("backends", "conformance") else parts[0]


def lines_table() -> str:
    """Return the lines of code of each package in Markdown: without tests, comments, docstrings and empty lines."""
    counts: Counter[str] = Counter()
    for path in files(*CODE):
        counts[package_of(path)] += code_lines(path)
    rows = [(name, f"{lines:,}") for name, lines in counts.most_common()]
    return _markdown("package", "lines of code", [*rows, ("all", f"{counts.total():,}")])


def _markdown(first: str, second: str, rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"| {a} | {b} |" for a, b in ((first, second), ("---", "---"), *rows))


def _over(values: Sequence[int], limit: int) -> str:
    return str(sum(value > limit for value in values))


def _untyped(folder: str) -> str:
    every = [function for path in files(folder) for function in functions(path)]
    return f"{100 * sum(one.untyped for one in every) / sum(one.parameters for one in every):.0f} %"


if __name__ == "__main__":
    if sys.argv[1:] == ["--repeats"]:
        for number, places in repeats(files(*CODE)).items():
            print(f"{len(places)} runs of {number} lines or more", *places, sep="\n  ")
    else:
        print(table(), lines_table(), sep="\n\n")
