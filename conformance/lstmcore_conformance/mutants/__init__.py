"""Backends with one deliberate fault each. A suite that lets one pass does not check what it claims.

Most faults are an edit of the reference's own equations, given as the text that is replaced; the rest change how a
kernel treats its arguments. They are made of the naive evaluation and not of a backend that is made for speed: its
text changes with every gain, and its own roundings would be part of what is judged. Each names the check that must
catch it. To add one, write `edit(...)` or decorate a function that returns a backend with `fault(...)`.
"""

from __future__ import annotations

from lstmcore_conformance.mutants import (  # noqa: F401  (they register)
    subtle,
    wrong_equations,
    wrong_errors,
    wrong_kernels,
    wrong_stacks,
)
from lstmcore_conformance.mutants.construction import MUTANTS, Mutant, backend_of, edited

__all__ = ["MUTANTS", "Mutant", "backend_of", "edited"]
