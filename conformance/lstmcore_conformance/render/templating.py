"""The templates of pages, tables and badges, which Jinja2 fills in."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from lstmcore.extras import installing

if TYPE_CHECKING:
    from jinja2 import Environment


def require_jinja2() -> None:
    """Raise ImportError with the install line if Jinja2 is missing."""
    try:
        import jinja2  # noqa: F401  (only to see that it is installed)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "jinja2":
            raise
        raise ImportError(
            f"pages and badges: need Jinja2, which is not installed: {installing('conformance')}"
        ) from None


def render(template: str, **values: Any) -> str:
    """Return the text of a template in `templates/`.

    Every value is escaped as HTML, unless the template passes it through the filter `md`, which escapes Markdown.

    Parameters
    ----------
    template
        The file's name.
    values
        The variables of the template. One that the template uses and that is missing is an error.

    Raises
    ------
    ImportError
        Jinja2 is not installed.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    require_jinja2()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"md": _markdown, "md_row": _markdown_row}
    return environment


def _markdown(text: object) -> str:
    """Return the text on one line, with every character that has a meaning in Markdown escaped."""
    from markupsafe import Markup

    words = " ".join(str(text).split())
    for sign in "\\`*<>[]|":
        words = words.replace(sign, f"\\{sign}")
    return Markup(words)  # noqa: S704  (Markdown, escaped above)


def _markdown_row(cells: Iterable[object]) -> str:
    """Return a row of a Markdown table, its cells escaped."""
    from markupsafe import Markup

    return Markup(f"| {' | '.join(map(_markdown, cells))} |")  # noqa: S704  (as above)
