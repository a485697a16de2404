"""Cases: a model, a precision and sizes, from which the same data are drawn on every machine."""

from __future__ import annotations

from dataclasses import dataclass

from lstmcore_conformance.cases.call_data import Array, Data, storage_dtype
from lstmcore_conformance.cases.case_spec import CaseSpec
from lstmcore_conformance.cases.drawing import rounded
from lstmcore_conformance.cases.quality import case_data

__all__ = ["Array", "Case", "Data", "rounded", "storage_dtype"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(CaseSpec):
    """A case with its data; `CaseSpec` describes the fields."""

    @property
    def data(self) -> Data:
        """The case's arrays, which are shared: treat them as read-only."""
        return case_data(self)
