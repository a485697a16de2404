"""Golden vectors: inputs, expected results and their budgets, for implementations in any language.

docs/vectors.md describes the files. ``python -m lstmcore_conformance.vectors`` writes them again, and
``python -m lstmcore_conformance.vectors.mutants_caught`` counts the faults that they catch.
"""

from __future__ import annotations

from lstmcore_conformance.vectors.index import HERE
from lstmcore_conformance.vectors.reader import Entry, entries, verify

__all__ = ["HERE", "Entry", "entries", "verify"]
