"""The conformance suite of lstmcore: what it takes to say that an LSTM backend is right.

``lstmcore conform NAME`` runs it; so do `run` from Python and, in pytest, ``-p lstmcore_conformance.plugin``.
"""

from __future__ import annotations

from lstmcore_conformance.suite.report import Outcome, Report
from lstmcore_conformance.suite.runner import run

__all__ = ["Outcome", "Report", "run"]
