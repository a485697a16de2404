"""Reports against the JSON Schema that is shipped with the suite."""

from __future__ import annotations

import json
from importlib import resources

import jsonschema
import pytest

from lstmcore.registry import get_backend
from lstmcore_conformance import run
from lstmcore_conformance.mutants import MUTANTS

SCHEMA = json.loads((resources.files("lstmcore_conformance") / "report.schema.json").read_text())


@pytest.mark.parametrize(("name", "passes"), [("reference", True), ("contract.none_state", False)])
def test_a_report_fits_the_schema(name: str, passes: bool) -> None:
    backend = get_backend(name) if passes else MUTANTS[name].make()
    report = run(backend, select="forward.no_state or refusals")
    assert report.conforms is passes
    values = json.loads(report.to_json())
    jsonschema.Draft202012Validator(SCHEMA).validate(values)
    del values["verdict"]
    with pytest.raises(jsonschema.ValidationError, match="verdict"):
        jsonschema.Draft202012Validator(SCHEMA).validate(values)
