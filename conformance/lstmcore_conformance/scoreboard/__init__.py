"""The scoreboard: conformance and speed of every runtime, made from the JSON files of both and from nothing else.

``python -m lstmcore_conformance.scoreboard reports/*.json run.json --out docs/scoreboard.md --readme README.md``
"""

from __future__ import annotations

from lstmcore_conformance.scoreboard.board import Board, load
from lstmcore_conformance.scoreboard.html import page
from lstmcore_conformance.scoreboard.markdown import excerpt, placed, scoreboard

__all__ = ["Board", "load", "scoreboard", "excerpt", "placed", "page"]
