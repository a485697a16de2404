"""``--help`` of the scripts in ``examples/``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What tells scripts what they import only from extras, and runs each with ``--help``.
RUNNER = """
import contextlib, importlib.abc, importlib.machinery, io, json, runpy, sys
from unittest.mock import MagicMock

EXTRAS = ("torch", "sklearn", "pandas", "joblib", "optuna", "lstmcore.sklearn", "lstmcore.torch")

class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        extra = any(name == one or name.startswith(one + ".") for one in EXTRAS)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if extra else None
    def create_module(self, spec):
        return MagicMock(name=spec.name, __path__=[])
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, StandIn())
told = {}
for script in sys.argv[1:]:
    out = io.StringIO()
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
            told[script] = [None, out.getvalue()]
        except SystemExit as end:
            told[script] = [end.code, out.getvalue()]
print(json.dumps(told))
"""


def test_each_script_says_what_it_does_and_runs_nothing() -> None:
    """Frameworks are stood in for, since help needs none of them."""
    texts = {path: path.read_text() for path in sorted((ROOT / "examples").rglob("*.py"))}
    scripts = [path for path, text in texts.items() if "__main__" in text]
    assert len(scripts) >= 10
    words = [sys.executable, "-c", RUNNER, *map(str, scripts)]
    told = json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=600).stdout)
    for path in scripts:
        code, shown = told[str(path)]
        first = texts[path].removeprefix('"""').split()[:4]
        assert code == 0 and shown.startswith("Usage:"), path
        assert shown.split("\n\n")[1].split()[:4] == first, (path, shown)
