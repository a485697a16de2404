"""The scoreboard: conformance and speed of every runtime, made from the JSON files of both and from nothing else.

``python -m lstmcore_conformance.scoreboard reports/*.json run.json --out docs/scoreboard.md --readme README.md``.
The pages of a board are in `lstmcore_conformance.render`.
"""

from __future__ import annotations

from lstmcore_conformance.scoreboard.board import Board, load

__all__ = ["Board", "load"]
