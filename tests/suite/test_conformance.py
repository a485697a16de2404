"""The conformance suite itself: what it lets pass, what it reports, and that it is the same on every machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lstmcore.backend import Backend, Capabilities, Kernel
from lstmcore.config import ACTIVATIONS, FEATURES, LSTMConfig
from lstmcore.precision import Precision, get_precision
from lstmcore_conformance import Outcome, Report, run
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.quality import ALSO, MARGIN, attempt_of, case_data, quality
from lstmcore_conformance.cases.switches import FACTORS, SWITCHES, config_of, covering
from lstmcore_conformance.mutants import MUTANTS, backend_of, edited
from lstmcore_conformance.oracle import budgets, composition, evaluation
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.check import PROFILES, SECTIONS, Scope, all_checks
from lstmcore_conformance.suite.report import Result
from lstmcore_conformance.suite.runner import Item, items
from lstmcore_conformance.suite.selection import selector
from lstmcore_reference.kernel import ReferenceBackend


@pytest.fixture(scope="module")
def naive() -> Report:
    return run(NaiveBackend())


@pytest.fixture(scope="module")
def report() -> Report:
    """The report of a part of the suite."""
    return run(NaiveBackend(), precisions=["float32"], select="state or sizes")


def case_of(name: str, precision: str = "float32", **changes: Any) -> Case:
    return Case(name=name, model=config_of(SWITCHES[name]), precision=precision, **changes)


# What passes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # .ci/run has it all the same: the session conformance(backend='reference')
def test_the_reference_conforms() -> None:
    report = run(ReferenceBackend())
    assert not report.bad
    assert report.conforms
    assert {item.outcome for check in report.checks for item in check.items} == {Outcome.PASSED}


@pytest.mark.slow  # the whole suite in four precisions: two minutes
def test_the_naive_evaluation_conforms(naive: Report) -> None:
    assert [item.message for item in naive.bad] == []
    assert naive.precisions == ("float64", "float32", "tf32", "float16")
    quick = {check.id for check in all_checks() if check.runs_in("quick")}
    assert {check.id for check in naive.checks} == quick


@pytest.mark.slow  # the whole suite in four precisions: two minutes
def test_the_naive_evaluation_uses_a_sixth_of_its_budget(naive: Report) -> None:
    shares = [c.worst.worst.share for c in naive.checks if c.id.endswith(".switches") and c.worst and c.worst.worst]
    assert shares
    assert max(shares) <= 1 / budgets.SAFETY


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


class _TF32(Backend):
    """Declares TF32 and computes with products of TF32, or with better ones."""

    name = "tf32"

    def __init__(self, kernel: type[NaiveKernel]) -> None:
        self.kernel = kernel

    def capabilities(self) -> Capabilities:
        return Capabilities("cpu", frozenset({"tf32"}), FEATURES)

    def _compile(self, config: LSTMConfig, precision: Precision) -> Kernel:
        return self.kernel(self, config, precision)


def test_tf32_passes_where_it_is_declared() -> None:
    products = (
        'from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T',
        'from_x, from_h = _tf32(step.x) @ _tf32(p["weight_x"]).T, _tf32(step.recurrent) @ _tf32(p["weight_h"]).T',
    )
    kernel = type("K", (NaiveKernel,), {"equations": edited(products)})
    report = run(_TF32(kernel), select="forward.switches")
    assert report.conforms
    assert run(_TF32(NaiveKernel), select="forward.switches").conforms
    assert not run(backend_of(kernel), precisions=["float32"], select="forward.switches").conforms


# Outcomes -------------------------------------------------------------------------------------------------------------


class _Poor(NaiveBackend):
    """Has neither peephole nor lengths nor jvp."""

    name = "poor"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            "cpu",
            frozenset({"float32"}),
            FEATURES - {"peephole", "lengths"},
            frozenset({"backward"}),
            {"peephole": "no diagonal weights here", "jvp": "only backward"},
        )


@pytest.mark.slow  # most of the suite: 28 seconds
def test_what_is_not_declared_is_unsupported_with_the_reason() -> None:
    report = run(_Poor())
    assert [item.message for item in report.bad] == []
    found = {check.id: check for check in report.checks}
    assert found["jvp.switches"].outcome is Outcome.UNSUPPORTED
    assert found["jvp.switches"].items[0].message == "jvp: only backward"
    assert found["lengths.forward"].outcome is Outcome.UNSUPPORTED
    assert found["forward.switches"].outcome is Outcome.PASSED
    reasons = {item.message for item in found["forward.switches"].items if item.outcome is Outcome.UNSUPPORTED}
    assert reasons == {"peephole: no diagonal weights here"}
    assert found["refusals.features"].outcome is Outcome.PASSED
    assert found["forward.combinations"].ran == len(found["forward.combinations"].items)


def shown(report: Report, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    report.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_report_tells_every_reason_once() -> None:
    class Refusing(_Poor):
        def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
            if config.layer_norm and config.proj_size:
                return "layer_norm and proj_size: not together; not yet"
            return super().refusal(config, precision)

    report = run(Refusing(), select="switches or no_state or lengths")
    lines = shown(report)
    first = next(index for index, line in enumerate(lines) if line.startswith("not declared"))
    text = lines[first:-2]
    assert text[:8] == [
        "not declared, not implemented:",
        "  bfloat16, float16, float64, tf32, lengths",
        "not declared, no diagonal weights here:",
        "  peephole",
        "not declared, only backward:",
        "  jvp",
        text[6],
        "unsupported, layer_norm and proj_size: not together; not yet:",
    ]
    skipped = [item.message for check in report.checks for item in check.items if item.outcome is Outcome.UNSUPPORTED]
    refused = [message for message in skipped if "not together" in message]
    assert text[6] == f"left out: {len(skipped) - len(refused)} cases and checks that need what is not declared"
    counts = {
        check.id: count for check in report.checks if (count := sum("not together" in i.message for i in check.items))
    }
    assert 1 in counts.values()
    wanted = [f"{id} ({count} cases)" if count > 1 else id for id, count in counts.items()]
    assert " ".join(line.strip() for line in text[8:]) == ", ".join(wanted)
    assert max(map(len, text)) <= 80


def test_an_error_of_the_suite_is_not_a_failure_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("in the suite")

    check = next(check for check in all_checks() if check.id == "forward.no_state")
    monkeypatch.setattr("lstmcore_conformance.suite.runner.all_checks", lambda: (replace(check, run=broken),))
    report = run(NaiveBackend(), precisions=["float64"])
    assert {item.outcome for item in report.bad} == {Outcome.ERROR}
    assert not report.conforms


def test_not_implemented_is_a_failure() -> None:
    class Absent(NaiveKernel):
        def _backward(self, *_: Any) -> Any:
            raise NotImplementedError

    report = run(backend_of(Absent), precisions=["float32"], select="backward.no_state")
    assert {item.outcome for check in report.checks for item in check.items} == {Outcome.FAILED}
    assert "NotImplementedError" in report.bad[0].message


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"select": "nothing_is_called_so"}, "nothing_is_called_so"),
        ({"select": "a and"}, "-k"),
        ({"precisions": ["bfloat16"]}, "bfloat16"),
        ({"precisions": ["float48"]}, "float48"),
    ],
)
def test_a_run_of_nothing_is_an_error(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        run(NaiveBackend(), **arguments)


def test_progress_comes_before_every_item() -> None:
    seen: list[tuple[int, int, str]] = []
    run(NaiveBackend(), precisions=["float64"], select="errors.x", progress=lambda *given: seen.append(given))
    assert seen == [(0, 1, "errors.x[float64-mistakes]")]


# The report -----------------------------------------------------------------------------------------------------------


def test_the_json_has_every_check_and_comes_back(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.write_json(path)
    found = json.loads(path.read_text())
    assert (found["schema"], found["version"], found["conforms"]) == ("lstmcore-conformance", 1, True)
    assert [check["id"] for check in found["checks"]] == [check.id for check in report.checks]
    for check in found["checks"]:
        assert set(check) >= {"id", "claim", "section", "needs", "outcome", "cases", "unsupported", "worst", "items"}
    assert found["counts"] == {"passed": report.count}
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_cannot_be_written_leaves_nothing(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file in a folder that exists; got .*no_folder"):
        report.write_json(tmp_path / "no_folder" / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_an_infinite_share_is_json() -> None:
    class NaN(NaiveKernel):
        def _forward(self, *args: Any, **given: Any) -> Any:
            y, last, tape = super()._forward(*args, **given)
            y[..., 0] = np.nan
            return y, last, tape

    report = run(backend_of(NaN), precisions=["float32"], select="forward.switches[float32-plain]")
    worst = json.loads(report.to_json())["checks"][0]["worst"]
    assert (worst["share"], worst["got"], worst["array"]) == ("inf", "nan", "y")


def test_the_command_of_a_failure_selects_it_alone() -> None:
    tested = BackendUnderTest(NaiveBackend())
    every = list(items(tested))
    for item in every[:: len(every) // 40]:
        assert [found.id for found in items(tested, select=item.id)] == [item.id]


# Profiles -------------------------------------------------------------------------------------------------------------


def test_smoke_is_a_few_cases_of_each_check() -> None:
    """Every check but the slow ones has its first and its last case in each precision."""
    tested = BackendUnderTest(NaiveBackend())
    quick, smoke = list(items(tested)), {item.id: item for item in items(tested, profile="smoke")}
    assert [item.id for item in quick if item.id in smoke] == list(smoke)
    assert {item.check.id for item in quick} - {item.check.id for item in smoke.values()} == {"backward.rows"}
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in quick:
        groups.setdefault((item.check.id, item.case.precision if item.case else ""), []).append(item)
    for (check, _), group in groups.items():
        kept = {item.id for item in group} & set(smoke)
        if check != "backward.rows":
            assert len(kept) == min(len(group), 3)
            assert {group[0].id, group[-1].id} <= kept


@pytest.mark.parametrize("id", ["lengths.state_not_held", "stack.directions_swapped"])
def test_smoke_catches_what_is_broken(id: str) -> None:
    report = run(MUTANTS[id].make(), precisions=["float32"], profile="smoke", draws=Draws(max_examples=3, shrink=False))
    assert report.result is Result.FAILS


def test_smoke_has_a_case_of_each_check_that_runs() -> None:
    """Cases that the backend refuses are not taken in the place of those that it runs."""
    poor = BackendUnderTest(_Poor())
    run_in = {
        profile: {item.check.id for item in items(poor, profile=profile) if item.case and item.reason is None}
        for profile in PROFILES
    }
    assert run_in["quick"] - run_in["smoke"] == {"backward.rows"}
    assert any(item.reason for item in items(poor, profile="smoke"))


def test_a_selection_of_smoke_has_cases_of_its_own() -> None:
    found = [
        item.id for item in items(BackendUnderTest(NaiveBackend()), ["float32"], "backward.switches and peep", "smoke")
    ]
    assert len(found) == 3
    assert all("peep" in id for id in found)


def test_an_unknown_profile_is_an_error() -> None:
    with pytest.raises(ValueError, match="profile: expected one of smoke, quick, full; got 'Smoke'"):
        run(NaiveBackend(), profile="Smoke")  # type: ignore[arg-type]  # the wrong value is what is tested


def test_smoke_is_no_verdict_on_a_backend() -> None:
    report = run(NaiveBackend(), precisions=["float16"], select="forward.no_state", profile="smoke")
    assert report.result is Result.PARTIAL
    whole = replace(report, selection=None)
    assert whole.result is Result.PARTIAL
    assert whole.verdict.startswith("naive passes 3 cases of the smoke profile in float16; the suite was not run")
    assert whole.max_examples == 3


# Checks and cases -----------------------------------------------------------------------------------------------------


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
    assert used == FEATURES
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
    rows = list(covering(_Poor().capabilities()))
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


def test_no_case_is_near_a_kink_or_ill_conditioned() -> None:
    poor = set()
    for item in items(BackendUnderTest(NaiveBackend()), precisions=["float32", "float16"]):
        if item.case is not None and attempt_of(item.case) and quality(item.case, item.case.data) < 1:
            poor.add(item.case.id)
    assert poor == set()


@pytest.mark.slow  # it judges all cases in TF32 anew: 20 seconds
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


# Selection ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("backward", True),
        ("BACKWARD", True),
        ("forward", False),
        ("backward and peephole", True),
        ("backward and not peephole", False),
        ("forward or peephole", True),
        ("not (forward or jvp)", True),
        ("(forward or backward) and float32", True),
        ("backward.switches[float32-peephole]", True),
        ("backward.switches[float64-peephole]", False),
        ("not backward or forward", False),
        ("section:3", True),
        ("section:4", False),
    ],
)
def test_selection(expression: str, selected: bool) -> None:
    assert selector(expression)("backward.switches[float32-peephole] section:3") is selected


@pytest.mark.parametrize("expression", ["", "and", "a and", "(a", "a)", "a b", "not", "]"])
def test_selection_that_is_not_well_formed(expression: str) -> None:
    with pytest.raises(ValueError, match="-k"):
        selector(expression)


def test_the_page_lists_every_check() -> None:
    from lstmcore_conformance.render.check_table import table

    assert table() in (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()


class _Nameless(NaiveBackend):
    name = None  # type: ignore[assignment]  # the mistake


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NaiveBackend, r"got the class NaiveBackend$"),
        ("naive", r"expected an object of a class that inherits Backend; got str$"),
        (_Nameless(), r"backend: expected _Nameless\.name, a text; got none$"),
    ],
)
def test_what_is_no_backend_is_told(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(given)
