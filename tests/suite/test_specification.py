"""SPEC.md against the suite: every claim has a check or a reason, and every check holds a claim."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

import doc_pages
from claims import Claim, claims
from lstmcore.config import FEATURES
from lstmcore.declaration import DERIVATIVES
from lstmcore.precision import PRECISIONS
from lstmcore.stored_weights import WEIGHT_FEATURES
from lstmcore_conformance.render.capability_table import table
from lstmcore_conformance.suite.check import all_checks

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SPEC.md").read_text("utf-8")
CLAIMS = claims(TEXT)
#: Words of a sentence.
LONGEST = 25
#: The claims without a check; SPEC.md has the reason of each.
UNCHECKED: set[str] = set()


def test_claims_without_a_check_are_these() -> None:
    """A new one is printed with its sentence: give it a check, or its reason and a line here."""
    without = [claim for claim in CLAIMS if not claim.checks]
    for claim in without:
        print(f"[{claim.id}] {claim.text} not checked: {claim.reason}")
    assert {claim.id for claim in without} == UNCHECKED
    assert all(len(claim.reason.split()) > 3 for claim in without)


def test_ids_count_from_1_in_each_section() -> None:
    for section, group in groupby(CLAIMS, lambda claim: claim.section):
        numbers = [claim.number for claim in group]
        assert numbers == list(range(1, len(numbers) + 1)), f"section {section}"


def test_every_named_check_exists() -> None:
    known = {check.id for check in all_checks()}
    assert [(claim.id, name) for claim in CLAIMS for name in claim.checks if name not in known] == []
    assert [claim.id for claim in CLAIMS if len(set(claim.checks)) < len(claim.checks)] == []


def test_every_check_holds_a_claim() -> None:
    named = {name for claim in CLAIMS for name in claim.checks}
    assert [check.id for check in all_checks() if check.id not in named] == []


def test_a_check_belongs_to_a_section_that_names_it() -> None:
    sections = {
        name: {claim.section for claim in CLAIMS if name in claim.checks} for claim in CLAIMS for name in claim.checks
    }
    assert [check.id for check in all_checks() if check.section not in sections.get(check.id, ())] == []


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_claim_has_one_keyword_of_rfc_2119(claim: Claim) -> None:
    words = Counter(re.findall(r"MUST NOT|MUST|MAY|SHOULD|SHALL|REQUIRED|RECOMMENDED|OPTIONAL", claim.text))
    assert words, "expected MUST, MUST NOT or MAY"
    assert set(words) <= {"MUST", "MUST NOT", "MAY"}


def test_keywords_stand_in_claims_alone() -> None:
    """A sentence elsewhere with a keyword is a claim without an id."""
    lines = [line for line in TEXT.splitlines() if re.search(r"\b(MUST|MAY)\b", line)]
    assert [line for line in lines if not line.startswith("- **[S")] == [
        line for line in lines if line.startswith("A claim is a numbered sentence")
    ]


def test_references_to_claims_exist() -> None:
    named = set(re.findall(r"\[(S\d+\.\d+)\]", TEXT))
    assert named == {claim.id for claim in CLAIMS}


def test_sentences_are_short() -> None:
    text = re.sub(r" \*\(.*\)\*$|^    .*$", "", TEXT, flags=re.MULTILINE)  # no checks, no equations
    long = [sentence for sentence in doc_pages.sentences(text) if len(sentence.split()) > LONGEST]
    assert long == []


@pytest.mark.parametrize(
    "line",
    [
        "- **[S1.1]** Without checks.",
        "- **[S2.1]** In another section. *(forward.sizes)*",
        "- **[S1.x]** Without a number. *(forward.sizes)*",
    ],
)
def test_a_line_that_is_no_claim_is_told(line: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        claims(f"## 1 Shapes and names\n\n{line}\n")


def test_the_page_lists_the_names_to_declare() -> None:
    assert table() in (ROOT / "docs" / "reference" / "capabilities.md").read_text("utf-8")


def test_every_name_to_declare_has_one_row() -> None:
    rows = [(field, name) for field, name in re.findall(r"^\| `(\w+)` \| `([\w:]+)` \|", table(), re.MULTILINE)]
    wanted = {"precisions": PRECISIONS, "features": FEATURES | WEIGHT_FEATURES, "derivatives": DERIVATIVES}
    assert sorted(rows) == sorted((field, name) for field, names in wanted.items() for name in names)
