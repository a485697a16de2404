"""Every command and snippet of README.md runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lstmcore.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_snippets_run(tmp_path: Path) -> None:
    """The snippets run one after another in one file, with warnings as errors."""
    (backend,) = (block for block in _blocks("python") if "class MyBackend" in block)
    (tmp_path / "mine.py").write_text(backend, encoding="utf-8")
    script = tmp_path / "readme.py"
    script.write_text("\n".join(_blocks("python")), encoding="utf-8")
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (printed,) = re.findall(r"It prints `(.*)`\.", README)
    assert printed in done.stdout.splitlines()
    assert (tmp_path / "speakers.safetensors").is_file()


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run as written, with fewer epochs, on a small file where they name one."""
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"{week},{week % 13 + 0.1 * week}" for week in range(160))
    Path("my.csv").write_text(f"week,column\n{rows}\n", encoding="utf-8")
    shops = "\n".join(f"{shop},{2000 + week},{week % 11 + week / 9}" for shop in "ab" for week in range(160))
    Path("shops.csv").write_text(f"shop,year,sales\n{shops}\n", encoding="utf-8")
    commands = [line for block in _blocks("sh") for line in block.splitlines() if line.startswith("lstmcore ")]
    assert {shlex.split(line)[1] for line in commands} == {"backends", "conform", "train", "evaluate", "predict"}
    for line in commands:
        words = shlex.split(line)[1:]
        if words[0] == "train":
            words += ["--epochs", "1", "--quiet"]
        if words[0] == "conform":
            words += ["-k", "errors"]  # the whole suite has a session of its own
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert Path("co2.safetensors").is_file()


def test_sessions_named_in_readme_exist() -> None:
    """``nox -s NAME`` of the README are sessions of the noxfile."""
    sessions = (Path(__file__).parents[2] / "noxfile.py").read_text(encoding="utf-8")
    for name in re.findall(r"nox -s (\w+)", README):
        assert f"def {name}(" in sessions
