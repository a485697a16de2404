"""The mutants that the vectors catch alone: ``python -m lstmcore_conformance.vectors.mutants_caught``.

Every mutant runs on the vectors and nothing else. `BEYOND` names those that a file of numbers cannot show, with the
reason. Some of these still give wrong numbers in a stack, where kernels are called one after another. All others must
be caught.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Final

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lstmcore_conformance.mutants import MUTANTS, Mutant
from lstmcore_conformance.vectors.catalogue import PRECISIONS
from lstmcore_conformance.vectors.reader import Entry, entries, verify_on

_TANGENT: Final = "directional derivatives are not in the files"
_CALLS: Final = "it shows from one call to the next"
_MEMORY: Final = "it is how arguments and results lie in memory"
_WORDS: Final = "it is what a backend says of itself or refuses"
_ROWS: Final = "its sums are longer than those of the files"
_TF32: Final = "the files have no TF32"
_STORED: Final = "the files have no stored weights"
_SIZES: Final = "it begins at a size, and there are hundreds of them: they do not run"
_FAR: Final = (
    "the files have no such values: NaN in clips, lower bounds, closed gates, beyond exp, infinity, rows of zeros, "
    "gains of one, masks of ones, odd alpha and beta"
)
_SINGLE: Final = "the files have no single step with lengths, and none of a stack with dropout"
_RESTS: Final = (
    "the files have no such sizes: a rest of 15 rows, a norm of one unit, a block of one row, one length for many rows"
)
_HALF: Final = "budgets in 16 bits are as wide as the roundings of h, and may hide it"
_FORM: Final = "it is the type of a pair, not its numbers"
_ERRORS: Final = "it is the answer to wrong arguments, and the files have none"
_UPDATES: Final = "the files have no steps of optimizers"

#: The id of the check that a mutant names, or its beginning -> why vectors cannot catch it.
BEYOND: Final[Mapping[str, str]] = {
    "errors.": _ERRORS,
    "refusals.": _WORDS,
    "declared.": _WORDS,
    "receipts.": _WORDS,
    "stack.receipts": _WORDS,
    "lengths.dtypes": _MEMORY,
    "inputs.": _MEMORY,
    "outputs.": _MEMORY,
    "drawn.unchanged": _MEMORY,
    "calls.": _CALLS,
    "tape.": _CALLS,
    "pack.": _CALLS,
    "drawn.same_bits": _CALLS,
    "backward.rows": _ROWS,
    "weights.": _STORED,
    "updates.": _UPDATES,
    "large.": _SIZES,
    "models.": _CALLS,
    "values.": _FAR,
    "masks.unselected": _FAR,
    "masks.odd": _FAR,
    "backward.both_bounds": _FAR,
    "backward.nan": _FAR,
    "stack.initial": _FAR,
    "stack.owns": _CALLS,
    "backward.clipped_nan": _FAR,
    "bits16.": _HALF,
    "state.forms": _FORM,
    "jvp.": _TANGENT,
    "lengths.jvp": _TANGENT,
    "masks.jvp": _TANGENT,
    "stack.jvp": _TANGENT,
    "drawn.jvp": _TANGENT,
    "drawn.adjoint": _TANGENT,
}

#: The same for single mutants, if vectors can catch other mutants of their check.
BEYOND_ALONE: Final[Mapping[str, str]] = {
    "hidden.resumed_in_half": _CALLS,
    "hidden.wide_resumed_in_half": _CALLS,
    "hidden.drifts": _CALLS,
    "int8a16.scale_of_batch": _STORED,
    "int8a16.scale_of_sequence": _STORED,
    "shortcut.single_step": _SINGLE,
    "spot.mask_of_single_step": _SINGLE,
    "spot.rest_of_15_rows": _RESTS,
    "spot.norm_of_one_unit": _RESTS,
    "spot.block_of_one_row": _RESTS,
    "spot.equal_lengths_of_rows": _RESTS,
    "spot.masks_of_ones": _FAR,
    "int8a16.scale_of_outputs": _STORED,
    "int8a16.scale_of_states": _STORED,
    "precision.bfloat16_in_tf32": _TF32,
    "precision.bfloat16_recurrent_in_tf32": _TF32,
}

#: Cases that run first, because they catch many mutants or mutants that few other cases catch.
#: The order changes the time until a mutant is caught, not whether it is caught.
FIRST: Final = (
    "L=2,D=2,everything",
    "only_recurrent,everything_coupled",
    "saturating,T=N=1",
    "everything,nan_in_padding",
    "T=70,N=1",
    "no_state,recurrent_dropout",
    "plain,nan_in_empty_row",
    "zoneout_all,masks",
    "H=9,forget_from_input",
    "H=129,P=2",
    "N=9,nan_in_row",
    "T=0,everything",
    "layer_norm_eps",
    "kink,gate_clip,on",
    "h,plain",
    "combination4",
    "N=7,nan_in_padding",
    "N=7,reverse,lengths",
    "saturating,H=9",
    "N=66",
    "tiny,T=N=1",
    "T=20,reverse,lengths",
    "N=9,y",
    "nothing",
)


def reason(mutant: Mutant) -> str | None:
    """Return why vectors cannot catch the mutant, or None if they must catch it."""
    whole = BEYOND_ALONE.get(mutant.id)
    return whole or next((why for start, why in BEYOND.items() if mutant.caught_by.startswith(start)), None)


def caught(mutant: Mutant) -> tuple[str, str] | None:
    """Return a case that shows the fault, with a message; None if no case shows it or the files lack the precision."""
    if mutant.precision not in PRECISIONS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faulty arithmetic warns; what it gives is judged
        return next(verify_on(mutant.make(), _ordered(mutant.precision)), None)


@cache
def _ordered(precision: str) -> tuple[Entry, ...]:
    """Return all cases in the precision, read once: those in `FIRST`, then the others."""
    rank = {name: place for place, name in enumerate(FIRST)}
    return tuple(sorted(entries(precision), key=lambda entry: rank.get(entry.case.name, len(rank))))


def main() -> None:
    """Print the figures; the exit code is 1 if a mutant is missed that vectors can show."""
    run = [mutant for mutant in MUTANTS.values() if reason(mutant) != _SIZES]
    judged = track(run, "mutants", console=Console(stderr=True), transient=True)
    missed = [mutant for mutant in judged if caught(mutant) is None]
    rows = {"": [mutant for mutant in MUTANTS.values() if reason(mutant) is None]}
    for mutant in MUTANTS.values():
        if why := reason(mutant):
            rows.setdefault(why, []).append(mutant)
    table = Table(title="Mutants on the golden vectors alone", title_justify="left")
    table.add_column("why vectors cannot show it")
    table.add_column("mutants", justify="right")
    table.add_column("caught", justify="right")
    for why, group in rows.items():
        found = "-" if why == _SIZES else str(sum(mutant not in missed for mutant in group))
        table.add_row(why or "(they can)", str(len(group)), found)
    console = Console()
    console.print(table)
    bad = [mutant for mutant in missed if reason(mutant) is None]
    for mutant in bad:
        console.print(f"missed {mutant.id}: {mutant.fault}", style="bold red", markup=False, soft_wrap=True)
    within = len(rows[""])
    console.print(
        f"{within - len(bad)} of the {within} that vectors can show are caught, "
        f"{len(run) - len(missed)} of {len(run)} in all"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
