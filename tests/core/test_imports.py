"""What importing costs: only light packages are loaded, so that ``import lstmcore`` and ``--help`` are quick."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

import lstmcore
from lstmcore.cli import COMMANDS, main

_TELL = """
import json, sys
names = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(json.dumps([sorted(name for name in names if not name.startswith("_")), sorted(sys.modules)]))
"""
#: Packages that old versions of the dependencies load: Cython's in NumPy 1.26, and attrs, if installed, in rich 13.7.
_OF_OLD_VERSIONS: Final = {"cython_runtime", "attr"}


def _loaded(code: str) -> tuple[set[str], set[str]]:
    """Packages that are not Python's own, and all modules, that `code` loads in a new process."""
    found = []
    for text in ("", code):  # what every process of this environment loads is not counted
        done = subprocess.run([sys.executable, "-c", text + _TELL], capture_output=True, text=True, check=True)
        found.append([set(names) for names in json.loads(done.stdout.splitlines()[-1])])
    (packages, modules), (more_packages, more_modules) = found
    return more_packages - packages - _OF_OLD_VERSIONS, more_modules - modules


def _imported(path: Path, modules: set[str]) -> set[str]:
    """Return those of `modules` that a file imports anywhere, in functions and for types alone too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= members or {node.module}
    return found & modules - {"lstmcore"}  # the package has its version, which any module may read


def test_no_module_of_the_package_is_in_a_circle() -> None:
    """Imports inside functions and under TYPE_CHECKING count."""
    folder = Path(lstmcore.__file__).parent
    names = {
        ".".join(("lstmcore", *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in folder.rglob("*.py")
    }
    graph = {name: _imported(path, set(names)) for name, path in names.items()}
    assert graph["lstmcore.backend"] >= {"lstmcore.kernels", "lstmcore.stack"}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_package_imports_numpy_and_pluggy_alone() -> None:
    packages, modules = _loaded("import lstmcore")
    assert packages <= {"lstmcore", "numpy", "pluggy"}
    assert "numpy.random" not in modules - _loaded("import numpy")[1]  # NumPy 1.26 loads it by itself
    assert not {name for name in modules if name.startswith(("lstmcore.cli", "lstmcore.training", "lstmcore.datasets"))}


@pytest.mark.parametrize("words", [["--help"], ["bench", "--help"], ["conform", "--help"], ["backends", "--help"]])
def test_help_loads_nothing_that_computes(words: list[str]) -> None:
    """--help loads no backend, no suite and no library that computes."""
    code = f"from lstmcore.cli import main; main({words!r}, standalone_mode=False)"
    packages, _ = _loaded(code)
    assert packages <= {"lstmcore", "numpy", "pluggy", "click", "rich", "safetensors"}


def test_help_lists_every_command_and_loads_none() -> None:
    packages, modules = _loaded("from lstmcore.cli import main; main(['--help'], standalone_mode=False)")
    assert packages <= {"lstmcore", "numpy", "pluggy", "click"}
    assert not {
        name for name in modules if name.startswith(("lstmcore.cli.", "lstmcore.training", "lstmcore.datasets"))
    }
    found = CliRunner().invoke(main, ["--help"])
    assert re.findall(r"^  ([a-z]+)  ", found.output.split("Commands:")[1], flags=re.MULTILINE) == list(COMMANDS)
    for name in COMMANDS:
        own = CliRunner().invoke(main, [name, "--help"])
        assert own.exit_code == 0
        assert f"Usage: main {name} " in own.output


def test_the_benchmark_is_described_without_what_it_times() -> None:
    """A page is made from a run's JSON where no runtime is installed."""
    packages, _ = _loaded("import lstmcore_conformance.render.benchmark_page")
    assert not packages & {"torch", "jax", "onnxruntime", "onnx", "numba", "llvmlite", "matplotlib"}
