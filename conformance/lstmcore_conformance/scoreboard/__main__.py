"""The command that makes the scoreboard."""

from __future__ import annotations

from pathlib import Path

import click

from lstmcore.files import write_atomically
from lstmcore_conformance.render.scoreboard_markdown import excerpt, placed, scoreboard
from lstmcore_conformance.render.scoreboard_page import page
from lstmcore_conformance.scoreboard import load


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE...", type=click.Path(dir_okay=False))
@click.option(
    "--out",
    metavar="FILE.md",
    help="Where the page is written, with the same as .html and what both are made of as .json beside it; "
    "standard output if left out.",
)
@click.option("--readme", metavar="FILE", help="A page whose part between the marks becomes the top of the scoreboard.")
def main(paths: tuple[str, ...], out: str | None, readme: str | None) -> None:
    """Make the scoreboard of reports, of benchmarks, and of an older scoreboard's JSON."""
    try:
        board = load(paths)
        if out is not None and Path(out).suffix != ".md":
            raise ValueError(f"--out: expected a name that ends in .md; got {out}")
        text = None if readme is None else placed(Path(readme).read_text("utf-8"), excerpt(board))
        if out is not None:
            contents = {".md": scoreboard(board), ".html": page(board), ".json": board.to_json()}
            for suffix, content in contents.items():
                write_atomically(Path(out).with_suffix(suffix), content.encode())
        if readme is not None and text is not None:
            write_atomically(readme, text.encode())
    except (ImportError, OSError, ValueError) as error:
        raise click.UsageError(" ".join(str(error).split())) from None
    if out is None:
        click.echo(scoreboard(board), nl=False)


if __name__ == "__main__":
    main()
