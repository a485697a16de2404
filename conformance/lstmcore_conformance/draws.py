"""Drawn cases: hypothesis chooses switches, sizes, lengths, masks and layers, and shrinks what fails.

The models come from a pool that the seed fixes, so that a backend that compiles for every model compiles a bounded
number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lstmcore.backend import Capabilities
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore_conformance.budgets import Measure
from lstmcore_conformance.cases import Case
from lstmcore_conformance.subject import Draws, Failure, Subject
from lstmcore_conformance.switches import FACTORS, allowed

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

#: How much longer, wider and taller than the small cases drawn ones get.
STEPS: Final = 11
BATCH: Final = 9
WIDTH: Final = 40

#: Activations that stay within bounds, so that no sum of their values overflows.
BOUNDED: Final = frozenset({"sigmoid", "tanh", "softsign", "hard_sigmoid", "scaled_tanh"})

Property = Callable[[Subject, Case], Measure | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """Which cases a property holds for.

    Attributes
    ----------
    stacks
        Whether it holds for several layers and directions too.
    lengths
        True where every case must have lengths, None where it may.
    all_used
        Whether the differentiated scalar must use y, h and c.
    bounded
        Whether all activations must be bounded.
    least_steps, least_batch
        The smallest T and N.
    """

    stacks: bool = True
    lengths: bool | None = None
    all_used: bool = True
    bounded: bool = False
    least_steps: int = 0
    least_batch: int = 0


def missing() -> str | None:
    """Why nothing can be drawn here, or None."""
    if find_spec("hypothesis") is None:
        return "hypothesis is not installed; install it with: pip install 'lstmcore[conformance]'"
    return None


def search(subject: Subject, precision: str, kind: Kind, holds: Property) -> Measure:
    """Look for a case of `kind` on which the property fails; the worst share where none is found.

    Raises
    ------
    Failure
        A case on which it fails, as small as it was possible to make it.
    """
    from hypothesis import HealthCheck, Phase, assume, given, seed, settings
    from hypothesis.errors import Flaky, Unsatisfiable

    draws, worst, failed = subject.draws, Measure(0.0), ""
    phases = (Phase.generate, Phase.shrink) if draws.shrink else (Phase.generate,)

    @seed(draws.seed)
    @settings(
        max_examples=draws.max_examples,
        phases=phases,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(_cases(subject.declared, precision, kind, draws))
    def examine(case: Case) -> None:
        nonlocal worst, failed
        assume(subject.refusal(case) is None)
        try:
            found = holds(subject, case)
        except Failure:
            failed = describe(case)
            raise
        if found is not None and not found.share <= worst.share:
            worst = found

    try:
        examine()
    except Failure as failure:
        raise Failure(f"{failed}: {failure}", failure.worst) from failure
    except Flaky as error:
        raise Failure(f"{failed}: fails on one run and passes on another") from error
    except Unsatisfiable as error:
        raise Failure("the backend refuses every model that was drawn") from error
    return worst


def describe(case: Case) -> str:
    """The case in one line, enough to write it down."""
    model = case.model
    base = case.configs[0]
    usual = LSTMConfig(input_size=base.input_size, hidden_size=base.hidden_size)
    changed = {
        name: getattr(base, name) for name in base.__dataclass_fields__ if getattr(base, name) != getattr(usual, name)
    }
    if isinstance(model, StackConfig):
        shape = {"num_layers": model.num_layers, "bidirectional": model.num_directions == 2, "dropout": model.dropout}
        changed |= {name: value for name, value in shape.items() if value}
    sizes = {"T": case.steps, "N": case.batch, "I": base.input_size, "H": base.hidden_size}
    call = {"lengths": case.lengths, "masks": case.masks or None, "state": None if case.state else "none"}
    words = {**sizes, **changed, **{name: value for name, value in call.items() if value is not None}}
    return ", ".join(f"{name}={value}" for name, value in words.items())


def pool(declared: Capabilities, draws: Draws, *, bounded: bool) -> list[Mapping[str, Any]]:
    """The switches of the models to draw from: plain first, then random combinations of what is declared."""
    rng = np.random.default_rng(draws.seed)
    found: list[Mapping[str, Any]] = [{}]
    for _ in range(draws.max_examples):
        changes: dict[str, Any] = {}
        for name, values in FACTORS.items():
            if name in ("lengths", "masks"):
                continue
            choice = values[int(rng.integers(len(values)))] if rng.random() < 0.6 else {}
            if allowed(choice, declared) and not (bounded and name.endswith("activation") and not _bounded(choice)):
                changes |= choice
        found.append(changes)
    return found


def _bounded(changes: Mapping[str, Any]) -> bool:
    return all(str(text).partition("(")[0] in BOUNDED for text in changes.values())


def _cases(declared: Capabilities, precision: str, kind: Kind, draws: Draws) -> SearchStrategy[Case]:
    from hypothesis import strategies as st

    models = pool(declared, draws, bounded=kind.bounded)

    @st.composite
    def cases(draw: DrawFn) -> Case:
        changes = dict(draw(st.sampled_from(models)))
        proj_size = changes.pop("proj_size", 0)
        hidden = draw(st.integers(2 if proj_size else 1, WIDTH))
        proj_size = draw(st.integers(1, hidden - 1)) if proj_size else 0
        width = draw(st.integers(1, WIDTH))
        config = LSTMConfig(input_size=width, hidden_size=hidden, proj_size=proj_size, **changes)
        model: LSTMConfig | StackConfig = config
        if kind.stacks and not config.reverse and draw(st.booleans()):
            layers = draw(st.integers(1, 3))
            dropout = 0.25 if layers > 1 and draw(st.booleans()) else 0.0
            model = StackConfig.make(config, num_layers=layers, bidirectional=draw(st.booleans()), dropout=dropout)
        steps = draw(st.integers(kind.least_steps, STEPS))
        batch = draw(st.integers(kind.least_batch, BATCH))
        lengths = None
        if kind.lengths or (kind.lengths is None and "lengths" in declared.features and draw(st.booleans())):
            lengths = tuple(draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch)))
        random = config.zoneout_hidden or config.zoneout_cell or config.recurrent_dropout
        random = random or (isinstance(model, StackConfig) and model.dropout)
        masks = bool(random) and "masks" in declared.features and draw(st.booleans())
        uses = (True, True, True) if kind.all_used else draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
        return Case(
            name=f"drawn{draw(st.integers(0, 255))}",
            model=model,
            precision=precision,
            steps=steps,
            batch=batch,
            lengths=lengths,
            masks=masks,
            state=kind.all_used or draw(st.booleans()),
            dy=uses[0],
            dh=uses[1],
            dc=uses[2],
        )

    return cases()
