"""``--help`` of each command shows examples."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from lstmcore.cli import main

COMMANDS = main.list_commands(click.Context(main))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_has_a_line_of_its_own(command: str) -> None:
    """click wraps a paragraph unless it begins with the backspace character, which a raw string does not have."""
    help_text = CliRunner().invoke(main, [command, "--help"]).output
    assert re.search(rf"^ +lstmcore {command}\b", help_text, re.MULTILINE)
    assert "\\b" not in help_text
