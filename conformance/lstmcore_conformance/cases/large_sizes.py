"""Sizes at which kernels change their path: vectors, tiles, caches, threads, and the ranges of small integers.

A fault of a real kernel often begins at a size: a second tile of rows, a 9th vector of units, a length above 255. Each
switch is tried at sizes of several vectors and tiles, and each axis alone at sizes above every usual threshold. Most
of the longest are one more than a power of 2: the last tile of every width has one element.

One precision has all of it: float32 if it is declared. Each of the others has a part, and all parts differ, so that a
backend with many precisions does not pay for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

from lstmcore.backend import Capabilities
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.quality import NAIVE, has_kinks
from lstmcore_conformance.cases.switches import SWITCHES, config_of


class SizeClass(NamedTuple):
    """T, N, I, H and P (of models with a projection) of a case."""

    steps: int
    batch: int
    input_size: int
    hidden_size: int
    proj_size: int


#: The sizes of every switch: several vectors and a rest; more units than a tile has; multiples of all tiles.
CLASSES: Final[Mapping[str, SizeClass]] = {
    "H=40": SizeClass(3, 37, 11, 40, 21),
    "H=129": SizeClass(2, 37, 17, 129, 33),
    "H=64": SizeClass(2, 32, 24, 64, 16),
}


class Extent(NamedTuple):
    """A case in which one axis is long: T, N, I, H, further switches, whether it has lengths, masks and a state.

    `scale` is the factor of x and the state. Where a sum is over 520 units or more, a plain loop loses much of it. A
    larger scale makes h depend more on x, so that the case is better conditioned.
    """

    steps: int
    batch: int
    input_size: int
    hidden_size: int
    changes: Mapping[str, Any] = {}
    lengths: bool = False
    masks: bool = False
    state: bool = True
    scale: float = 1.0


#: A precision that does not have all cases of a table has one in so many.
PARTS: Final = 4

_ZONEOUT: Final = {"zoneout_hidden": 0.2, "zoneout_cell": 0.3, "recurrent_dropout": 0.25}

WIDTHS: Final[Mapping[str, Extent]] = {
    "H=256": Extent(2, 3, 5, 256, {"peephole": True, "reverse": True}),
    "H=512": Extent(2, 3, 5, 512, {"layer_norm": True}),
    "H=520,P=257": Extent(2, 3, 5, 520, {"proj_size": 257}, scale=3.0),
    "H=768": Extent(2, 2, 6, 768, {"coupling": "forget_from_input", "recurrence": "cell"}),
    "H=1024": Extent(2, 2, 8, 1024),
    "H=1100,P=41": Extent(2, 2, 3, 1100, {"proj_size": 41, "peephole": True}, scale=3.0),
    "I=311": Extent(3, 5, 311, 9),
    "I=640": Extent(2, 8, 640, 16, {"peephole": True}),
    "I=1025": Extent(2, 3, 1025, 6),
}
ROWS: Final[Mapping[str, Extent]] = {
    "N=34": Extent(3, 34, 5, 8, {"peephole": True}),
    "N=48": Extent(3, 48, 8, 16, {"layer_norm": True}),
    "N=65": Extent(3, 65, 5, 7, {"proj_size": 3}, state=False),
    "N=96": Extent(3, 96, 16, 24),
    "N=129": Extent(2, 129, 5, 129, {"coupling": "input_from_forget"}),
    "N=128,multiples": Extent(8, 128, 64, 64),
    "N=300": Extent(3, 300, 4, 6, {"zoneout_hidden": 0.2, "zoneout_cell": 0.3}),
    "N=600": Extent(2, 600, 4, 17),
    "N=1025": Extent(2, 1025, 3, 5, {"reverse": True}),
    "N=70000": Extent(2, 70_000, 2, 1),
}
STEPS: Final[Mapping[str, Extent]] = {
    "T=129": Extent(129, 16, 8, 8, {"peephole": True}),
    "T=257": Extent(257, 3, 4, 6, {"reverse": True}),
}
LONGEST: Final[Mapping[str, Extent]] = {
    "T=513": Extent(513, 2, 3, 5, {"reverse": True}),
    "T=1025": Extent(1025, 3, 4, 6),
    "N=300,T=600": Extent(600, 300, 2, 3, lengths=True),
    "T=1025,lengths": Extent(1025, 5, 4, 6, lengths=True),
}
LENGTHS: Final[Mapping[str, Extent]] = {
    "N=37,T=45": Extent(45, 37, 5, 12, {"peephole": True}, lengths=True),
    "N=37,H=129": Extent(4, 37, 7, 129, {"reverse": True}, lengths=True),
    "N=130,T=70": Extent(70, 130, 4, 9, {"layer_norm": True}, lengths=True),
    "N=300,T=260": Extent(260, 300, 2, 3, lengths=True),
    "N=1030": Extent(3, 1030, 3, 5, {"proj_size": 3}, lengths=True),
    "N=70000": Extent(2, 70_000, 2, 1, lengths=True),
    "T=48,N=96,multiples": Extent(48, 96, 48, 96, {"proj_size": 48}, lengths=True),
}
MASKS: Final[Mapping[str, Extent]] = {
    "N=37,H=40": Extent(9, 37, 11, 40, {**_ZONEOUT, "proj_size": 21}, lengths=True, masks=True),
    "H=260": Extent(3, 5, 7, 260, _ZONEOUT, masks=True),
    "N=300": Extent(4, 300, 3, 9, {**_ZONEOUT, "proj_size": 4}, masks=True),
    "T=260": Extent(260, 3, 3, 9, {**_ZONEOUT, "reverse": True}, lengths=True, masks=True),
    "T=24,N=96,multiples": Extent(24, 96, 48, 96, {**_ZONEOUT, "proj_size": 64}, lengths=True, masks=True),
}


#: Stacks: what one layer hands to the next in tiles, vectors and chunks of steps.
STACKED: Final[Mapping[str, tuple[Extent, Mapping[str, Any]]]] = {
    "L=2,D=2,N=37": (Extent(5, 37, 11, 40, lengths=True), {"num_layers": 2, "bidirectional": True}),
    "L=2,N=129": (Extent(2, 129, 5, 24, {"peephole": True}), {"num_layers": 2}),
    "L=2,T=129": (Extent(129, 3, 4, 9, {"proj_size": 4}), {"num_layers": 2, "bidirectional": True}),
    "L=3,H=129": (Extent(3, 5, 9, 129, masks=True), {"num_layers": 3, "dropout": 0.25}),
}


@lru_cache(maxsize=64)
def ends_of(steps: int, batch: int) -> tuple[int, ...]:
    """Return lengths from 0 to T, both among them, in no order."""
    return tuple(0 if row % 31 == 1 else (7 * row * row + 5 * row + steps) % (steps + 1) for row in range(batch))


def _turn(declared: Capabilities, precision: str) -> int | None:
    """Return the number by which a precision picks its part of the cases; None if it has all of them."""
    first = "float32" if "float32" in declared.precisions else min(declared.precisions)
    return None if precision == first else tuple(PRECISIONS).index(precision)


def switch_cases(declared: Capabilities, precision: str) -> Iterator[Case]:
    """Yield every switch at every class of sizes; activations, and in most precisions all switches, at one of them."""
    turn = _turn(declared, precision)
    for place, (size, (steps, batch, *widths, projection)) in enumerate(CLASSES.items()):
        for position, (name, changes) in enumerate(SWITCHES.items()):
            alone = turn is not None or "_activation=" in name
            if alone and (position + (turn or 0)) % len(CLASSES) != place:
                continue
            sizes = dict(zip(("input_size", "hidden_size"), widths, strict=True))
            if "proj_size" in changes:
                sizes["proj_size"] = projection
            model = LSTMConfig(**{**changes, **sizes})
            masks = "masks" in declared.features and any(key.startswith(("zoneout", "recurrent_")) for key in changes)
            case = Case(name=f"{size},{name}", model=model, precision=precision, steps=steps, batch=batch, masks=masks)
            yield _with_draw(case)


def _with_draw(case: Case) -> Case:
    """Return the case with its first draw, unless other draws can keep its numbers away from kinks.

    Among so many numbers one lies near a kink in every draw if the precision is coarse. The naive evaluation then takes
    the other side of it as well, and the budgets of gradients are wide. Layer norm of many units is well conditioned.
    """
    return case if has_kinks(case) and NAIVE[case.precision] == "float32" else replace(case, draw=0)


def extent_cases(extents: Mapping[str, Extent], declared: Capabilities, precision: str) -> Iterator[Case]:
    """Yield the cases of a table: all of them, or every fourth in most precisions."""
    turn = _turn(declared, precision)
    for position, (name, extent) in enumerate(extents.items()):
        if turn is None or (position - turn) % PARTS == 0:
            yield _with_draw(_extent_case(name, extent, precision))


def stacked_cases(declared: Capabilities, precision: str) -> Iterator[Case]:
    """Yield the cases of `STACKED`: all of them, or every fourth in most precisions."""
    plain = {name: extent for name, (extent, _) in STACKED.items()}
    for case in extent_cases(plain, declared, precision):
        shape = STACKED[case.name.removeprefix("large,")][1]
        lengths, masks = (name in declared.features for name in ("lengths", "masks"))
        yield replace(
            case,
            model=StackConfig.make(case.config, **shape),
            lengths=case.lengths if lengths else None,
            masks=case.masks and masks,
        )


def _extent_case(name: str, extent: Extent, precision: str) -> Case:
    return Case(
        name=f"large,{name}",
        model=config_of({**extent.changes, "input_size": extent.input_size, "hidden_size": extent.hidden_size}),
        precision=precision,
        steps=extent.steps,
        batch=extent.batch,
        lengths=ends_of(extent.steps, extent.batch) if extent.lengths else None,
        masks=extent.masks,
        state=extent.state,
        scale=extent.scale,
    )
