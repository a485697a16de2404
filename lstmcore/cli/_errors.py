"""Errors of the command line in one line each, whoever found them: click, this package, or Python."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from lstmcore.suggestions import did_you_mean

#: What click's types say they expected -> what this package says.
_KINDS: Final = {
    "integer": "a whole number",
    "integer range": "a whole number",
    "float": "a number",
    "float range": "a number",
    "boolean": "true or false",
}


class OneLine(click.ClickException):
    """An error that click shows as ``lstmcore: error: ...`` and ends with exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print the error on standard error."""
        click.echo(f"lstmcore: error: {self.message}", err=True)


def as_one_line(error: click.UsageError) -> OneLine:
    """Return an error of click in the words of this package: the argument, what was expected, what came."""
    path = error.ctx.command_path if error.ctx is not None else ""
    command = " ".join(("lstmcore", *path.split(" ")[1:]))
    if isinstance(error, click.NoSuchOption):
        near = f"; did you mean {error.possibilities[0]!r}?" if error.possibilities else ""
        text = f"expected an option of {command}; got {error.option_name!r}{near}"
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        text = f"{_name(error.param)}: expected {_meaning(error.param)}; got none"
    elif isinstance(error, click.BadOptionUsage):
        text = (
            f"{error.option_name}: expected a value; got none" if "requires an arg" in error.message else error.message
        )
    elif isinstance(error, click.BadParameter) and error.param is not None:
        text = f"{_name(error.param)}: {_expected(error.param.type, error.message)}"
    elif match := re.fullmatch(r"Got unexpected extra arguments? \((.*)\)", error.message):
        text = f"expected no more arguments; got {match[1]!r}"
    elif match := re.match(r"No such command '([^']*)'", error.message):
        text = _no_command(error, match[1])
    else:
        text = error.message.rstrip(".")
    return OneLine(f"{' '.join(text.split())} (see {command} --help)")


def _name(parameter: click.Parameter) -> str:
    return parameter.opts[0] if isinstance(parameter, click.Option) else (parameter.name or "").upper()


def _meaning(parameter: click.Parameter) -> str:
    return "this option" if isinstance(parameter, click.Option) else "an argument"


def _expected(kind: Any, message: str) -> str:
    """Return what a type expected and what came, which click's message begins with."""
    came = re.match(r"(?P<value>.*?) is not (?P<what>.*)", message, re.DOTALL)
    if came is None:
        return message.rstrip(".")
    value = came["value"] if came["value"].startswith("'") else repr(came["value"])
    if isinstance(kind, click.Choice):
        return f"expected one of {', '.join(map(str, kind.choices))}; got {value}"
    name = _KINDS.get(kind.name, "")
    if not name:
        return message.rstrip(".")
    return f"expected {name}{_bounds(kind)}; got {value}"


def _bounds(kind: Any) -> str:
    parts = []
    for bound, is_open, signs in (("min", "min_open", (">", ">=")), ("max", "max_open", ("<", "<="))):
        if (value := getattr(kind, bound, None)) is not None:
            parts.append(f"{signs[0] if getattr(kind, is_open) else signs[1]} {value:g}")
    return f" {' and '.join(parts)}" if parts else ""


def _no_command(error: click.UsageError, name: str) -> str:
    names: list[str] = []
    if error.ctx is not None and isinstance(error.ctx.command, click.Group):
        names = error.ctx.command.list_commands(error.ctx)
    return f"expected one of the commands {', '.join(names)}; got {name!r}{did_you_mean(name, names)}"
