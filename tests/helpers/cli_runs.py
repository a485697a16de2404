"""Runs of the command line in a test, and what they end with."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from lstmcore.cli import main


def run(*arguments: object) -> Result:
    """Run the command with arguments as texts."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Any:
    """Return what a command that succeeds prints, parsed with ``--json``."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def error(*arguments: object) -> str:
    """Return the message of a command that fails with one line."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("lstmcore: error: ")
