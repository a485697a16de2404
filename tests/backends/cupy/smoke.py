"""The emulated tests that ``.ci/run`` runs. The rest is marked slow, because compiling takes minutes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lstmcore_conformance.suite.report import ItemReport, Outcome
from lstmcore_conformance.suite.runner import Item
from lstmcore_conformance.suite.selection import selector

#: One pass forward, backward and along tangents, of a plain LSTM and of one with every switch, at sizes of a few units;
#: and one forward with weights in each format.
SMOKE = (
    "(forward.switches or backward.switches or jvp.switches) and (float32-plain or float32-everything)"
    " or weights. and (float32-bfloat16,plain or float32-float16,plain or float32-int8,everything)"
)


#: What takes minutes where emulated threads take turns: receipts of calls with many rows, steps and units, of which
#: the three smallest stay; long calls whose layer norm makes the threads of a block meet at every step; large stacks,
#: whose layers are tried alone.
CHEAP = "not (receipts.sizes and not (N=34 or N=48 or I=311)) and not (bits and layer_norm) and not large.stacks"


def require_passed(report: ItemReport) -> None:
    """Fail unless the item passed; skip it with the reason if these arrays do not let the suite check it."""
    if report.outcome is Outcome.NOT_CHECKED:
        pytest.skip(report.message)
    assert report.outcome is Outcome.PASSED, report.message


def smoke_or_slow(items: Sequence[Item], smoke: str = SMOKE) -> list[object]:
    """Return parameters for `pytest.mark.parametrize`, one for each item; those outside `smoke` are marked slow.

    Raises
    ------
    ValueError
        No item is in the smoke.
    """
    chosen = selector(smoke)
    slow = [not chosen(item.id) for item in items]
    if all(slow):
        raise ValueError(f"smoke: expected words of some item; got {smoke!r}")
    return [
        pytest.param(item, id=item.id, marks=pytest.mark.slow if late else ())
        for item, late in zip(items, slow, strict=True)
    ]
