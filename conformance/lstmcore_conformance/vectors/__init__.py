"""Golden vectors: inputs, right answers and how far off each may be, for those who do not write Python.

docs/vectors.md describes the files. ``python -m lstmcore_conformance.vectors`` writes them anew, and
``python -m lstmcore_conformance.vectors.mutants_caught`` counts the faults that they catch.
"""

from __future__ import annotations

from lstmcore_conformance.vectors.reader import HERE, Entry, entries, verify

__all__ = ["HERE", "Entry", "entries", "verify"]
