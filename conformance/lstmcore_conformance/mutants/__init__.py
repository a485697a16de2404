"""Backends with one deliberate fault each. A suite that lets one pass does not check what it claims.

Most faults are an edit of the reference's equations, given as the text that is replaced. The others change how a
kernel treats its arguments. Mutants are made from the naive evaluation and not from a fast backend: the text of a fast
backend changes often, and its roundings would be judged with the fault. Each mutant names the check that must catch
it. To add one, call `edit` or `edits`, or decorate a function that returns a backend with `fault(...)`.
"""

from __future__ import annotations

from lstmcore_conformance.mutants import (  # noqa: F401  (they register)
    blind_spots,
    second_blind_spots,
    shortcuts,
    side_effects,
    size_thresholds,
    subtle,
    subtle_contract,
    subtle_kernels,
    subtle_regular_data,
    wide_values,
    wrong_claims,
    wrong_derivatives,
    wrong_equations,
    wrong_errors,
    wrong_kernels,
    wrong_precision,
    wrong_stacks,
    wrong_updates,
    wrong_weights,
)
from lstmcore_conformance.mutants.construction import MUTANTS, Mutant, backend_of, edited

__all__ = ["MUTANTS", "Mutant", "backend_of", "edited"]
