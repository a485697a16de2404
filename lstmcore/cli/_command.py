"""The class of the sub-commands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import click

from lstmcore.files import UnwritableError

_WORDS: Final = "lstmcore.words"


class Command(click.Command):
    """A command in which an option that takes one value may be given once: click would take the last silently."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, after a check that nothing is given twice.

        Raises
        ------
        ValueError
            An option that is given twice.
        """
        ctx.meta[_WORDS] = list(args)
        if not ctx.resilient_parsing:
            try:
                _, _, order = self.make_parser(ctx).parse_args(list(args))
            except click.UsageError as error:
                error.ctx = error.ctx or ctx  # click leaves it out for an option without its value
                raise
            for parameter, count in Counter(order).items():
                if isinstance(parameter, click.Option) and count > 1 and not _repeatable(parameter):
                    several = parameter.help is not None and "commas between" in parameter.help
                    hint = ": put commas between several values" if several else ""
                    raise ValueError(f"{parameter.opts[0]}: expected once; got {count} times{hint}")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a file that cannot be written any more is told by its option."""
        try:
            return super().invoke(ctx)
        except UnwritableError as error:
            raise UnwritableError(self._option_of(ctx, error), error.problem, error.path) from error

    def _option_of(self, ctx: click.Context, error: UnwritableError) -> str:
        """Return the option that gave the path of `error`, or the folder of it; else the name that it has."""
        path = Path(error.path)
        for parameter in self.params:
            given = ctx.params.get(parameter.name or "") if isinstance(parameter, click.Option) else None
            if isinstance(given, str) and given and (path == Path(given) or Path(given) in path.parents):
                return parameter.opts[0]
        return error.name


def _repeatable(option: click.Option) -> bool:
    """Return whether an option says the same, or more, if it is repeated."""
    return option.multiple or option.count or (option.is_flag and not option.secondary_opts)


def words_of(ctx: click.Context, *without: str) -> list[str]:
    """Return the words after the name of the command, without the options `without` and their values."""
    words: list[str] = []
    skip = False
    for word in ctx.meta[_WORDS]:
        if not skip and word.partition("=")[0] not in without:
            words.append(word)
        skip = not skip and word in without
    return words
