"""The limits of functions and files; ruff has those of parameters and complexity."""

from __future__ import annotations

from pathlib import Path

import pytest

import style


def test_functions_and_files_are_short_or_say_why() -> None:
    assert style.too_long(style.files(*style.CODE)) == []


def write(folder: Path, *, lines: int, mark: str = "", head: str = "") -> list[str]:
    """Write a file with one function of so many lines, and return what is wrong with it."""
    path = folder / "module.py"
    body = "\n".join(f"    x{number} = {number}" for number in range(lines - 1))
    path.write_text(
        f'"""A module."""\n{head}\n\ndef compute():{mark}\n    """Return nothing.\n\n    More.\n    """\n{body}\n'
    )
    return style.too_long([path], folder)


def test_a_long_function_is_told(tmp_path: Path) -> None:
    assert write(tmp_path, lines=style.LINES) == []
    assert write(tmp_path, lines=style.LINES + 1) == ["module.py:4 compute: 41 lines; expected at most 40: split it"]


def test_a_reason_allows_a_longer_function_to_a_point(tmp_path: Path) -> None:
    mark = "  # long: the time loop"
    assert write(tmp_path, lines=style.LONGEST, mark=mark) == []
    assert len(write(tmp_path, lines=style.LONGEST + 1, mark=mark)) == 1
    assert len(write(tmp_path, lines=style.LONGEST, mark="  # long:")) == 1  # a reason has words


def test_a_long_file_says_why(tmp_path: Path) -> None:
    many = "\n".join(f"Y{number} = {number}" for number in range(style.FILE_LINES))
    assert write(tmp_path, lines=2, head=many) == ["module.py: 408 lines; expected at most 400: split it"]
    assert write(tmp_path, lines=2, head=f"# long file: a table\n{many}") == []


def test_any_hides_behind_array_and_none() -> None:
    """`Array` is another name of Any, and ``Array | None`` says no more."""
    source = "def f(self, a: Any, b: Array | None, c, d: int, *, e: str = ''): ...\n"
    assert [(one.parameters, one.untyped) for one in style.functions_of(source, "module.py")] == [(5, 3)]


@pytest.mark.parametrize(
    ("shared", "runs"), [(6, {6: 1, 4: 1}), (5, {6: 0, 4: 1}), (4, {6: 0, 4: 1}), (3, {6: 0, 4: 0})]
)
def test_runs_of_lines_in_two_files(tmp_path: Path, shared: int, runs: dict[int, int]) -> None:
    """Comments, docstrings, imports and lines without a word do not count; the session style brings pylint."""
    pytest.importorskip("pylint", reason="the session style brings it")
    lines = "\n".join(f"VALUE_{number} = compute({number})\n# a comment" for number in range(shared))
    for name in ("first", "second"):
        text = f'"""A module."""\n\nimport json\nimport os\n\n{name.upper()} = (\n{name!r}\n)\n{lines}\n'
        (tmp_path / f"{name}.py").write_text(text)
    found = style.repeats(sorted(tmp_path.iterdir()), root=tmp_path)
    assert {number: len(places) for number, places in found.items()} == runs
    assert set().union(*found.values()) <= {"first.py:8 second.py:8"}  # from the bracket on


def test_lines_of_code_by_package(tmp_path: Path) -> None:
    """A backend and the suite count under the name of the package, all else under its folder."""
    for name, package in (("backends/lstmcore_x/a.py", "lstmcore_x"), ("lstmcore/cli/a.py", "lstmcore")):
        assert style.package_of(tmp_path / name, tmp_path) == package
    (tmp_path / "a.py").write_text(
        '"""A module."""\n\n# a comment\nX = (\n    1,\n)\n\n\ndef f():\n    """No."""\n    return X\n'
    )
    assert style.code_lines(tmp_path / "a.py") == 5
