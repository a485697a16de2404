"""The cases of the suite and their budgets: what they cover, and that they are the same on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.backend import Capabilities
from lstmcore.config import ACTIVATIONS, FEATURES, LSTMConfig
from lstmcore.precision import get_precision
from lstmcore.stored_weights import WEIGHT_FEATURES
from lstmcore_conformance import run
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.quality import ALSO, MARGIN, attempt_of, case_data, quality
from lstmcore_conformance.cases.switches import FACTORS, SWITCHES, config_of, covering
from lstmcore_conformance.oracle import budgets, composition, evaluation
from lstmcore_conformance.oracle.naive import NaiveBackend
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest
from lstmcore_conformance.suite.check import SECTIONS, Scope, all_checks
from lstmcore_conformance.suite.runner import items


def case_of(name: str, precision: str = "float32", **changes: Any) -> Case:
    return Case(name=name, model=config_of(SWITCHES[name]), precision=precision, **changes)


def test_every_check_is_documented() -> None:
    checks = all_checks()
    assert len({check.id for check in checks}) == len(checks)
    for check in checks:
        assert check.section in SECTIONS
        assert check.claim == check.claim.strip()
        assert "\n" not in check.claim
        assert len(check.id.split(".")) == 2


def test_sections_are_those_of_the_specification() -> None:
    text = (Path(__file__).parents[2] / "SPEC.md").read_text()
    for number, title in SECTIONS.items():
        assert f"\n## {number} {title}\n" in text


def test_ids_are_unique() -> None:
    found = [item.id for item in items(BackendUnderTest(NaiveBackend()))]
    assert len(found) == len(set(found))


def test_every_feature_is_in_a_case() -> None:
    used = frozenset().union(*(item.case.features for item in items(BackendUnderTest(NaiveBackend())) if item.case))
    assert used == FEATURES | WEIGHT_FEATURES
    assert {f"activation:{name}" for name in ACTIVATIONS} <= used


def test_every_pair_of_values_meets() -> None:
    rows = list(covering(NaiveBackend().capabilities()))
    for one, two in combinations(FACTORS, 2):
        for a in FACTORS[one]:
            for b in FACTORS[two]:
                keys = {key for name in (one, two) for value in FACTORS[name] for key in value}
                wanted = {**a, **b}
                assert any({key: row[key] for key in keys & set(row)} == wanted for row in rows), (one, a, two, b)
    assert len(rows) < 40


def test_the_covering_sample_leaves_out_what_is_not_declared() -> None:
    declared = Capabilities("cpu", frozenset({"float32"}), FEATURES - {"peephole", "lengths"})
    rows = list(covering(declared))
    assert rows
    assert not any("peephole" in row or "lengths" in row for row in rows)


@pytest.mark.parametrize("name", [name for name in SWITCHES if name not in ("plain", "square", "everything")])
def test_every_switch_matters(name: str) -> None:
    """On the same data the result without the switch is another one, by far more than the budget."""
    case = case_of(name, "float64")
    data, right = case_data(case), evaluation.forward(case, "float64")
    config = case.config
    for switch in SWITCHES[name]:
        usual: Any = {"proj_clip": None}.get(switch, LSTMConfig.__dataclass_fields__[switch].default)
        if switch in ("proj_size", "bias", "peephole", "layer_norm", "coupling", "zoneout_hidden"):
            continue  # changes the parameters, so the data do not fit: the mutants drop these
        if switch in ("recurrent_dropout", "layer_norm_eps"):
            continue
        from lstmcore import reference

        if switch == "recurrence" and config.proj_size:
            continue
        other = reference.forward(
            LSTMConfig(
                **{**{k: getattr(config, k) for k in ("input_size", "hidden_size")}, **SWITCHES[name], switch: usual}
            ),
            data.parameters,
            data.x,
            data.state,
        )
        expected = budgets.forward(case)
        assert (
            max(
                budgets.measure(key, value, expected[key]).share
                for key, value in (("y", other.y), ("h_n", other.state.h), ("c_n", other.state.c))
            )
            > 1e6
        ), switch
    assert np.isfinite(right["y"]).all()


@pytest.mark.parametrize("name", [name for name in SWITCHES if "clip" in name or name.startswith("everything")])
def test_clips_cut_some_values_and_not_all(name: str) -> None:
    case = case_of(name, "float64")
    config = case.config
    steps = [step for tape in composition.draft(case.model, case.data, "float64").tapes for _, step in tape.steps]
    for bound, values in (
        (config.gate_clip, [z for step in steps for z in step.z.values()]),
        (config.cell_clip, [step.c_unclipped for step in steps]),
        (config.proj_clip, [step.h_unclipped for step in steps]),
    ):
        if bound is not None:
            cut = np.mean(np.abs(np.concatenate(values)) > bound)
            assert 0.05 < cut < 0.95


def test_masks_and_lengths_matter() -> None:
    for name in ("zoneout_hidden", "zoneout_cell", "recurrent_dropout"):
        plain, masked = (evaluation.forward(case_of(name, masks=masks), "float64") for masks in (False, True))
        assert np.abs(plain["y"] - masked["y"]).max() > 0.05
    full, short = (evaluation.forward(case_of("reverse", lengths=ends), "float64") for ends in (None, (3, 0, 4)))
    assert np.abs(full["y"] - short["y"]).max() > 0.05


@pytest.mark.slow  # all cases in two precisions: eight seconds
def test_no_case_is_near_a_kink_or_ill_conditioned() -> None:
    poor = set()
    for item in items(BackendUnderTest(NaiveBackend()), precisions=["float32", "float16"]):
        if item.case is not None and attempt_of(item.case) and quality(item.case, item.case.data) < 1:
            poor.add(item.case.id)
    assert poor == set()


@pytest.mark.slow  # all cases in TF32: 20 seconds
def test_in_tf32_no_kink_is_nearer_than_an_error() -> None:
    """Few draws of large models keep four errors of TF32 from every kink, and the best is taken then."""
    cases = {
        item.case for item in items(BackendUnderTest(NaiveBackend()), precisions=["tf32"]) if item.case is not None
    }
    found = [quality(case, case.data) for case in cases if attempt_of(case)]
    assert MARGIN * min(found) > 1
    case = case_of("gate_clip", "tf32")  # an error of TF32 is many of float32, in which the data are far from kinks
    assert quality(case, case.data) < 0.1 * quality(case.with_precision("float32"), case.data)
    assert sum(one < 1 for one in found) <= 0.03 * len(cases)


def test_data_are_representable_and_the_same_in_every_precision() -> None:
    wide, narrow, half = (case_of("everything", precision).data for precision in ("float64", "float32", "float16"))
    assert np.array_equal(wide.x.astype(np.float32), narrow.x)
    assert half.x.dtype == np.float16
    assert half.state is not None
    assert (half.state.h.dtype, half.state.c.dtype) == (np.float16, np.float32)
    assert not np.array_equal(wide.x, narrow.x)


def test_data_do_not_depend_on_the_process() -> None:
    code = (
        "import hashlib; from lstmcore_conformance.cases.case import Case;"
        "from lstmcore_conformance.cases.switches import SWITCHES, config_of;"
        "c = Case(name='everything', model=config_of(SWITCHES['everything']), precision='float32', masks=True);"
        "print(hashlib.sha256(b''.join(a.tobytes() for _, a in c.data.arrays())).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_the_suite_needs_no_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None;"
        "from lstmcore_conformance import run; from lstmcore_reference.kernel import ReferenceBackend;"
        "assert run(ReferenceBackend(), select='forward.no_state').conforms"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# Budgets --------------------------------------------------------------------------------------------------------------


def expected(*values: float, budget: float = 0.5) -> budgets.Expected:
    return budgets.Expected(np.array(values), budget, "float64")


def test_a_share_is_the_worst_error_over_the_budget() -> None:
    found = budgets.measure("y", np.array([1.0, 2.25, 3.1]), expected(1.0, 2.0, 3.0))
    assert (found.share, found.index, found.got, found.expected) == (0.5, (1,), 2.25, 2.0)


@pytest.mark.parametrize(
    ("got", "want", "share"),
    [
        ([np.nan], [1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([np.nan], [np.nan], 0.0),
        ([np.inf], [1.0], np.inf),
        ([np.inf], [np.inf], 0.0),
        ([-np.inf], [np.inf], np.inf),
        ([], [], 0.0),
    ],
)
def test_what_is_not_finite_must_be_in_its_place(got: list[float], want: list[float], share: float) -> None:
    assert budgets.measure("y", np.array(got), expected(*want)).share == share


def test_no_budget_means_exact() -> None:
    assert budgets.measure("y", np.array([0.0]), expected(0.0, budget=0.0)).share == 0
    assert budgets.measure("y", np.array([1e-300]), expected(0.0, budget=0.0)).share == np.inf


def test_budgets_scale_with_epsilon() -> None:
    wide, narrow = (budgets.forward(case_of("plain", precision))["y"] for precision in ("float64", "float32"))
    assert wide.budget / narrow.budget == pytest.approx(2.0**-29, rel=1e-6)


def test_the_oracle_is_the_reference_in_float64() -> None:
    from lstmcore import reference

    case = case_of("everything", "float16")
    data = case.data
    right = reference.forward(case.config, data.parameters, data.x, data.state)
    assert np.array_equal(evaluation.forward(case, "float64")["y"], right.y)
    assert right.y.dtype == np.float64


def test_scope_orders_precisions() -> None:
    first = Scope(NaiveBackend().capabilities(), ("float64",))
    assert first.precisions == ("float64",)
    assert run(NaiveBackend(), precisions=["float16", "float64"], select="errors.x").precisions == (
        "float64",
        "float16",
    )


def test_what_tf32_may_lose_is_what_its_own_evaluation_loses() -> None:
    """With operands rounded to the nearest and cut off, in float32 otherwise."""
    case = case_of("plain", "tf32")
    exact, allowed = evaluation.gradients(case, "float64"), budgets.gradients(case)
    ways = get_precision("tf32"), *ALSO["tf32"]
    assert [policy.operands for policy in ways] == ["nearest", "towards zero"]
    for name, want in allowed.items():
        scale = np.abs(want.value).max()
        lost = [np.abs(evaluation.gradients(case, policy)[name] - exact[name]).max() for policy in ways]
        assert lost[0] != lost[1]
        least = budgets.SAFETY * (max(lost) + budgets.ROUNDING * case.policy.epsilon * scale)
        assert least <= want.budget * (1 + 1e-9)  # the copies of the data may have lost more
        assert want.budget < 2 * least
        assert min(lost) > 100 * np.abs(evaluation.gradients(case, "float32")[name] - exact[name]).max()


def test_the_page_lists_every_check() -> None:
    from lstmcore_conformance.render.check_table import table

    assert table() in (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
