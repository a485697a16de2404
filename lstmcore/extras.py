"""Install lines for optional packages."""

from __future__ import annotations

import re
import shlex
from functools import cache
from importlib.metadata import PackageNotFoundError, requires


@cache
def installing(extra: str) -> str:
    """Return the command that installs what an extra of this package brings, by the names of the packages.

    The extra itself can be installed from a checkout alone, by those who have one; its packages can from anywhere.

    Parameters
    ----------
    extra
        The extra, as pyproject.toml names it.

    Examples
    --------
    >>> installing("plot")
    "pip install 'matplotlib>=3.8'"
    """
    try:
        listed = requires("lstmcore") or []
    except PackageNotFoundError:
        listed = []  # run from a checkout that is not installed
    marked = re.compile(rf"(?P<package>[^;]+);.*\bextra\s*==\s*[\"']{re.escape(extra)}[\"']")
    packages = [match["package"].strip() for text in listed if (match := marked.fullmatch(text))]
    if not packages:
        return f"pip install '.[{extra}]' in a checkout of lstmcore"
    return f"pip install {' '.join(map(shlex.quote, packages))}"
