"""Random cases: switches, sizes, lengths, masks and layers that nobody chose.

The cases are drawn independently of each other, since hypothesis spends most of its examples near earlier ones. It
finds a small case near one that fails. The switches depend on the seed alone: a backend that compiles for every model
compiles a bounded number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lstmcore.backend import Capabilities
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.cases.switches import FACTORS, allowed
from lstmcore_conformance.oracle.budgets import Measure
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Draws, Failure, NotChecked

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

#: The largest T, N, I and H of random cases.
STEPS: Final = 20
BATCH: Final = 18
WIDTH: Final = 48

#: The largest T, N, I and H if a value may lie near a kink, or if layer norm may meet nearly equal numbers. No draw
#: keeps more numbers away from there, and gradients would have two right answers.
DELICATE: Final = (4, 3, 7, 7)

#: Activations with bounded values: others grow without bound from step to step and layer to layer.
BOUNDED: Final = frozenset({"sigmoid", "tanh", "softsign", "hard_sigmoid", "scaled_tanh"})

Property = Callable[[BackendUnderTest, Case], Measure | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """The cases for which a property holds.

    Attributes
    ----------
    stacks
        Whether the property holds for several layers and directions too.
    lengths
        True if every case must have lengths, None if it may have them.
    all_used
        Whether the differentiated scalar must use y, h and c.
    least_steps, least_batch
        The smallest T and N.
    """

    stacks: bool = True
    lengths: bool | None = None
    all_used: bool = True
    least_steps: int = 0
    least_batch: int = 0


def search(tested: BackendUnderTest, precision: str, kind: Kind, holds: Property) -> Measure:
    """Search for a case on which the property fails, and return the worst measure if there is none.

    Parameters
    ----------
    tested
        The backend, which also says how cases are drawn.
    precision
        The precision of the cases.
    kind
        The cases for which the property holds.
    holds
        The property: raises `Failure`, or returns the worst element.

    Raises
    ------
    Failure
        The property fails. The message describes the case, which hypothesis made small if it is installed.
    NotChecked
        The property says so of every case that was drawn.
    """
    draws, worst, tried = tested.draws, Measure(0.0), 0
    judged, reason = 0, NotChecked("")
    for sketch in sketches(tested.declared, kind, draws):
        case = sketch.case(precision)
        if tested.refusal(case) is not None:
            continue
        tried += 1
        try:
            measured = holds(tested, case)
            judged += 1
        except NotChecked as why:
            reason = why
            continue
        except Failure as failure:
            case, failure = _smallest(tested, precision, kind, sketch, holds) or (case, failure)
            raise Failure(f"{describe(case)}: {failure}", failure.worst) from failure
        if measured is not None and not measured.share <= worst.share:
            worst = measured
    if not tried:
        raise Failure("the backend refuses every model that was drawn")
    if not judged:
        raise reason
    return worst


def _smallest(
    tested: BackendUnderTest, precision: str, kind: Kind, sketch: Sketch, holds: Property
) -> tuple[Case, Failure] | None:
    """Return a case with fewer switches and smaller sizes on which the property fails too, or None."""
    if not tested.draws.shrink or find_spec("hypothesis") is None:
        return None
    from hypothesis import HealthCheck, Phase, assume, given, reject, seed, settings
    from hypothesis.errors import Flaky

    failed: list[tuple[Case, Failure]] = []

    @seed(tested.draws.seed)
    @settings(
        max_examples=100,
        phases=(Phase.generate, Phase.shrink),
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(_smaller(kind, sketch))
    def examine(small: Sketch) -> None:
        case = small.case(precision)
        assume(tested.refusal(case) is None)
        try:
            holds(tested, case)
        except NotChecked:
            reject()
        except Failure as failure:
            failed.append((case, failure))
            raise

    try:
        examine()
    except (Failure, Flaky):
        return failed[-1]  # hypothesis runs the smallest case last
    return None


def describe(case: Case) -> str:
    """Return one line from which the case can be written down."""
    model = case.model
    base = case.configs[0]
    usual = LSTMConfig(input_size=base.input_size, hidden_size=base.hidden_size)
    names = [item.name for item in fields(LSTMConfig) if item.init]
    changed = {name: getattr(base, name) for name in names if getattr(base, name) != getattr(usual, name)}
    if isinstance(model, StackConfig):
        shape = {"num_layers": model.num_layers, "bidirectional": model.num_directions == 2, "dropout": model.dropout}
        changed |= {name: value for name, value in shape.items() if value}
    sizes = {"T": case.steps, "N": case.batch, "I": base.input_size, "H": base.hidden_size}
    call = {"lengths": case.lengths, "masks": case.masks or None, "state": None if case.state else "none"}
    words = {**sizes, **changed, **{name: value for name, value in call.items() if value is not None}}
    return ", ".join(f"{name}={value}" for name, value in words.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """The random choices for a case; `case` makes the case."""

    switches: Mapping[str, Any]
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    bidirectional: bool
    stacked: bool
    steps: int
    batch: int
    lengths: tuple[int, ...] | None
    masks: bool
    state: bool
    uses: tuple[bool, bool, bool]
    number: int

    def case(self, precision: str) -> Case:
        """Return the case in that precision."""
        sizes = {"input_size": self.input_size, "hidden_size": self.hidden_size, "proj_size": self.proj_size}
        config = LSTMConfig(**(dict(self.switches) | sizes))
        model: LSTMConfig | StackConfig = config
        if self.stacked:
            dropout = 0.25 if self.num_layers > 1 else 0.0
            model = StackConfig.make(
                config, num_layers=self.num_layers, bidirectional=self.bidirectional, dropout=dropout
            )
        random = any((config.zoneout_hidden, config.zoneout_cell, config.recurrent_dropout))
        dy, dh, dc = self.uses
        return Case(
            name=f"drawn{self.number}",
            model=model,
            precision=precision,
            steps=self.steps,
            batch=self.batch,
            lengths=self.lengths,
            masks=self.masks and (random or (self.stacked and self.num_layers > 1)),
            state=self.state,
            dy=dy,
            dh=dh,
            dc=dc,
        )


def sketches(declared: Capabilities, kind: Kind, draws: Draws) -> Iterator[Sketch]:
    """Yield `draws.max_examples` sketches; their switches depend on the seed alone, so that all kinds share models."""
    shared, rng = np.random.default_rng(draws.seed), np.random.default_rng([draws.seed, 1])
    for number in range(draws.max_examples):
        switches = _switches(declared, shared)
        projected = switches.pop("proj_size", 0)
        if not projected:
            switches.pop("proj_clip", None)
        delicate = _delicate(switches)
        most = DELICATE if delicate else (STEPS, BATCH, WIDTH, WIDTH)
        hidden = int(rng.integers(2 if projected else 1, most[3] + 1))
        stacked = kind.stacks and "reverse" not in switches and not delicate and bool(rng.random() < 0.5)
        steps = int(rng.integers(kind.least_steps, most[0] + 1))
        batch = int(rng.integers(kind.least_batch, most[1] + 1))
        ends = tuple(int(end) for end in rng.integers(0, steps + 1, batch))
        with_lengths = kind.lengths or (kind.lengths is None and "lengths" in declared.features and rng.random() < 0.5)
        uses = tuple(bool(kind.all_used or rng.random() < 0.6) for _ in range(3))
        yield Sketch(
            switches=switches,
            input_size=int(rng.integers(1, most[2] + 1)),
            hidden_size=hidden,
            proj_size=int(rng.integers(1, hidden)) if projected else 0,
            num_layers=int(rng.integers(1, 4)),
            bidirectional=bool(rng.random() < 0.5),
            stacked=stacked,
            steps=steps,
            batch=batch,
            lengths=ends if with_lengths else None,
            masks="masks" in declared.features and bool(rng.random() < 0.5),
            state=bool(kind.all_used or rng.random() < 0.7),
            uses=(uses[0], uses[1], uses[2]),
            number=number,
        )


def _switches(declared: Capabilities, rng: np.random.Generator) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    smooth = rng.random() < 0.5
    for name, values in FACTORS.items():
        choice = values[int(rng.integers(len(values)))] if rng.random() < 0.6 else {}
        if name not in ("lengths", "masks") and allowed(choice, declared):
            changes |= {key: value for key, value in choice.items() if _bounded(key, value)}
    return {key: value for key, value in changes.items() if not (smooth and _delicate({key: value}))}


def _delicate(switches: Mapping[str, Any]) -> bool:
    """Return whether a value may lie near a kink, or layer norm may meet nearly equal numbers."""
    return any(name.endswith("_clip") or name == "layer_norm" or "hard" in str(v) for name, v in switches.items())


def _bounded(name: str, value: Any) -> bool:
    """Return whether the switch is no activation, or a bounded one."""
    return not name.endswith("activation") or str(value).partition("(")[0] in BOUNDED


def _smaller(kind: Kind, sketch: Sketch) -> SearchStrategy[Sketch]:
    """Return sketches with some of the switches of `sketch`, and sizes up to its sizes."""
    from hypothesis import strategies as st

    @st.composite
    def smaller(draw: DrawFn) -> Sketch:
        def size(least: int, most: int) -> int:
            return draw(st.integers(min(least, most), most))

        def flag(value: bool) -> bool:
            return value and draw(st.booleans())

        switches = {name: value for name, value in sketch.switches.items() if draw(st.booleans())}
        projected = sketch.proj_size and (draw(st.booleans()) or "proj_clip" in switches)
        hidden = size(2 if projected else 1, sketch.hidden_size)
        steps, batch = size(kind.least_steps, sketch.steps), size(kind.least_batch, sketch.batch)
        lengths = sketch.lengths
        if lengths is not None:
            lengths = tuple(size(0, min(end, steps)) for end in lengths[:batch])
        return replace(
            sketch,
            switches=switches,
            input_size=size(1, sketch.input_size),
            hidden_size=hidden,
            proj_size=size(1, min(sketch.proj_size, hidden - 1)) if projected else 0,
            num_layers=size(1, sketch.num_layers),
            bidirectional=flag(sketch.bidirectional),
            stacked=flag(sketch.stacked),
            steps=steps,
            batch=batch,
            lengths=lengths,
            masks=flag(sketch.masks),
        )

    return smaller()
