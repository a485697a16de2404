"""Install lines name packages, which can be installed from anywhere, and not an extra of a checkout."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from lstmcore import extras

LISTED = [
    "numpy>=1.26",
    'matplotlib>=3.8; extra == "plot"',
    "cupy-cuda12x[ctk]>=14; extra == 'cupy'",
    'ml_dtypes>=0.5; extra == "cupy"',
    'x>=1; python_version > "3" and extra == "plotting"',
]


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ("plot", "pip install 'matplotlib>=3.8'"),
        ("cupy", "pip install 'cupy-cuda12x[ctk]>=14' 'ml_dtypes>=0.5'"),
        ("plotting", "pip install 'x>=1'"),
        ("lot", "pip install '.[lot]' in a checkout of lstmcore"),
    ],
)
def test_the_packages_of_an_extra(monkeypatch: pytest.MonkeyPatch, extra: str, line: str) -> None:
    monkeypatch.setattr(extras, "requires", lambda _: LISTED)
    assert extras.installing.__wrapped__(extra) == line


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", missing)
    assert extras.installing.__wrapped__("plot") == "pip install '.[plot]' in a checkout of lstmcore"


def test_no_message_names_an_extra_by_hand() -> None:
    root = Path(__file__).parents[2]
    files = [file for folder in ("lstmcore", "backends", "conformance") for file in (root / folder).rglob("*.py")]
    assert [file.name for file in files if re.search(r"lstmcore\[\w", file.read_text("utf-8"))] == []
