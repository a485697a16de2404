"""Faults that readers of the suite invented: the kinds that were asked for, and the profile that catches each."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Final

import pytest

from invented_faults import INVENTED
from lstmcore_conformance import run
from lstmcore_conformance.mutants import MUTANTS
from lstmcore_conformance.mutants.matrix import PLAIN, catches
from lstmcore_conformance.oracle.naive import NaiveBackend
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws
from lstmcore_conformance.suite.check import all_checks
from lstmcore_conformance.suite.report import Outcome
from lstmcore_conformance.suite.runner import items, run_item

CHECKS = {check.id: check for check in all_checks()}

#: Kind of fault -> what was asked for, and patterns of the mutants that have it.
ASKED: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "sizes": {
        "every switch at 40 to 129 units and 37 rows": ("ending.*_33", "ending.*_129", "size.clip_of_unit_33"),
        "256 to 1,100 units": ("size.*_unit_257", "size.*_unit_1025"),
        "more than 300 inputs": ("size.*_input_513",),
        "whole tiles, without a rest": ("size.whole_tiles_lengths", "size.whole_tiles_masks"),
        "34 to 600 rows": ("size.*_row_33", "size.*_row_513"),
        "65,536 rows": ("size.*_row_65536", "size.*_row_with_lengths_65536"),
        "more than 200 steps": ("size.*_step_257",),
        "more than 1,024 steps": ("size.*_step_1025", "size.*_step_with_lengths_1025"),
        "lengths of many rows and steps": ("size.*_with_lengths_257", "lengths.of_bytes"),
        "masks of many rows, units and steps": ("size.*_with_masks_257", "size.masked_row_37"),
        "projections of many outputs": ("size.*_output_257",),
    },
    "memory": {
        "negative strides": ("memory.negative_strides",),
        "columns of a wider array": ("memory.columns",),
        "aligned to one number": ("memory.alignment",),
        "out in batch-first memory": ("memory.batch_first_out",),
        "around out": ("memory.around_out",),
        "results that share memory": ("memory.final_h_in_y", "contract.state_returned"),
        "Fortran order": ("contract.strides_ignored",),
        "read-only": ("contract.read_only_refused",),
    },
    "between calls": {
        "tapes that alias x, y, out or weights": ("tape.aliases_*", "contract.pack_borrows"),
        "backward after other models": ("kept.last_recorded",),
        "models that differ in a number": ("kept.three_digits",),
        "workspace of a larger call": ("kept.workspace",),
        "every 1,000th call": ("kept.every_1000th",),
        "atomics": ("kept.atomics",),
        "other weights in backward": ("tape.met_others",),
    },
    "threads": {
        "one pack, other shapes, a cold kernel": ("kept.half_made",),
        "two models at once": ("kept.shared_by_models",),
        "one tape in several threads": ("tape.one_thread", "tape.thread"),
    },
    "NaN and kinks": {
        "functions and clips that hide a NaN": ("nan.clip", "nan.relu"),
        "a NaN that leaves its row": ("contract.rows_meet", "hidden.row_8_nan", "nan.no_gradients"),
        "derivatives at kinks and at NaN": ("backward.clip_side", "backward.cell_on_lower_bound", "jvp.cell_on_bound"),
        "infinity beside padding": ("lengths.held_times_zero", "jvp.times_zero"),
    },
    "jvp": {"a state of None with a tangent": ("jvp.no_state",), "some parameters": ("jvp.times_zero",)},
    "side effects": {
        "denormals, rounding": ("effects.denormals", "effects.rounding"),
        "warnings, printing, gc": ("effects.warnings", "effects.printing", "effects.collection"),
        "leaks of 5 kB": ("leaks.*", "hidden.leaks"),
    },
    "honesty": {"a fallback that begins at a size": ("receipts.many_rows", "receipts.lengths")},
    "16 bits": {
        "c and sums in 16 bits": ("half.cell", "half.sums", "half.products"),
        "h cut off": ("half.next_step", "half.next_layer"),
    },
    "wide values": {
        "beyond the range of exp": ("wide.softplus_overflows", "wide.elu_overflows"),
        "one-pass variance": ("wide.one_pass_variance",),
        "gates that are all but closed": ("wide.sigmoid_by_tanh", "wide.tanh_by_sigmoid"),
    },
    "state forms": {"a tuple, a list, one array": ("errors.named_state",)},
    "the oracle": {"0 times infinity": ("jvp.times_zero",), "subnormal numbers": ("hidden.tiny_is_zero",)},
}

#: The faults that the full profile alone catches. They need more steps, more calls or a look at memory.
FULL_ALONE: Final = {
    *(f"size.{kind}_step{only}_{start}" for kind in ("zero", "wrap", "path") for only in ("", "_with_lengths")
      for start in (513, 1025)),
    *("leaks.pack", "leaks.tape", "leaks.jvp", "leaks.threads", "hidden.leaks"),
}  # fmt: skip
#: Those of a check of the full profile that the quick one catches too, and by which of its checks.
QUICK_TOO: Final = {
    "hidden.after_many_steps": "large.ends",
    "hidden.gradient_of_many_steps": "large.ends",
    "hidden.drifts": "calls.many",
}


def _of(patterns: tuple[str, ...]) -> list[str]:
    return [id for id in MUTANTS if any(fnmatch(id, pattern) for pattern in patterns)]


def test_every_kind_has_mutants_beyond_plain_values() -> None:
    assert len(ASKED) == 12
    for asked in ASKED.values():
        for what, patterns in asked.items():
            assert all(_of((pattern,)) for pattern in patterns), what
            assert {MUTANTS[id].caught_by for id in _of(patterns)}.isdisjoint(PLAIN), what


@pytest.mark.slow  # plain value checks on 60 mutants: two minutes
@pytest.mark.parametrize(
    "id", sorted({_of((pattern,))[0] for asked in ASKED.values() for group in asked.values() for pattern in group})
)
def test_plain_values_do_not_show_what_was_asked_for(id: str) -> None:
    assert not catches(PLAIN, id)


def test_each_fault_is_bound_to_its_profile() -> None:
    full = {id for id, mutant in MUTANTS.items() if not CHECKS[mutant.caught_by].runs_in("quick")}
    assert full == FULL_ALONE | set(QUICK_TOO)


def test_quick_shows_fewer_steps_than_the_faults_of_full_need() -> None:
    """So no quick case can show them; their mutants need not run on all of it."""
    tested = BackendUnderTest(NaiveBackend())
    longest = max(item.case.steps for item in items(tested, ["float32"]) if item.case is not None)
    assert longest < min(int(id.rpartition("_")[2]) for id in FULL_ALONE if id.startswith("size."))


@pytest.mark.slow  # models of 257 steps: three seconds each
@pytest.mark.parametrize("id", QUICK_TOO)
def test_quick_catches_these_faults_of_the_full_profile(id: str) -> None:
    assert catches({QUICK_TOO[id]}, id)


@pytest.mark.parametrize("name", INVENTED)
def test_the_invented_fault_is_caught_by_the_quick_profile(name: str) -> None:
    check, words, precision, make = INVENTED[name]
    selected = f"({check}) and ({words})" if words else check
    tested = BackendUnderTest(make(), Draws(shrink=False))
    outcomes = (run_item(tested, item).outcome for item in items(tested, [precision], selected, "quick"))
    assert next(outcome for outcome in outcomes if outcome is not Outcome.PASSED) is Outcome.FAILED


@pytest.mark.parametrize("name", ["lengths are kept in 8 bits", "the tangent of the bias alone is taken for none"])
def test_the_naive_backend_passes_what_shows_a_fault(name: str) -> None:
    check, words, precision, _ = INVENTED[name]
    report = run(NaiveBackend(), precisions=[precision], select=f"({check}) and ({words})" if words else check)
    assert report.bad == ()
