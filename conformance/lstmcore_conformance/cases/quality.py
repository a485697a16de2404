"""The choice of a draw: data far from kinks, and well conditioned.

Data are drawn again until no value is so close to a kink (a clip, a threshold) that rounding decides on which side it
lies: a gradient has two right answers there. No result may be so ill-conditioned (a layer norm of equal numbers) that
it consists mostly of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import numpy as np

from lstmcore.config import Activation, LSTMConfig
from lstmcore.precision import get_precision
from lstmcore.stored_weights import SAME
from lstmcore_conformance.cases.call_data import Array, Data
from lstmcore_conformance.cases.case_spec import CaseSpec
from lstmcore_conformance.cases.drawing import draw, rounded
from lstmcore_conformance.oracle.composition import draft

#: The policy in which the naive evaluation of a precision runs: the precision itself, except for float64. The oracle
#: cannot measure its own error, so float64 is judged by float32, scaled.
NAIVE: Final = {
    "float64": "float32",
    "float32": "float32",
    "tf32": "tf32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}

#: Other naive evaluations of a policy: a device may also cut off the operands of TF32.
ALSO: Final = {"tf32": (replace(get_precision("tf32"), operands="towards zero"),)}

#: The largest number of draws of a case.
DRAWS: Final = 24
#: The required distance from a kink, in errors of the naive evaluation.
MARGIN: Final = 4.0
#: The largest error of the naive evaluation, in epsilons of an array's scale.
LOSS: Final = 40.0
#: Multiply-adds of a case above which its data are not kept for later checks.
LARGE_WORK: Final = 1 << 19


def case_data(case: CaseSpec) -> Data:
    """Return the data of `case`, from the first draw that is good enough, or from the best of all draws."""
    return (_large_data if case.work > LARGE_WORK else _small_data)(case)


def forget() -> None:
    """Free the data that were kept."""
    for kept in (_small_data, _large_data):
        kept.cache_clear()


@lru_cache(maxsize=8192)
def _small_data(case: CaseSpec) -> Data:
    return _data(case)


@lru_cache(maxsize=2)
def _large_data(case: CaseSpec) -> Data:
    return _data(case)


def _data(case: CaseSpec) -> Data:
    return rounded(_drawn(case), case.policy)


def unstored_parameters(case: CaseSpec) -> dict[str, Array]:
    """Return the parameters of `case` before they are rounded into the format of its weights."""
    return rounded(_drawn(case), case.policy.with_weights(SAME)).parameters


def _drawn(case: CaseSpec) -> Data:
    return draw(case, attempt_of(case.with_precision(NAIVE[case.precision])))


@lru_cache(maxsize=8192)
def attempt_of(case: CaseSpec) -> int:
    """Return the number of the draw of `case`, which is in the precision of its naive evaluation."""
    if case.draw is not None:
        return case.draw
    if not (has_kinks(case) or any(config.layer_norm for config in case.configs)):
        return 0
    qualities = []
    for attempt in range(DRAWS):
        qualities.append(quality(case, rounded(draw(case, attempt), case.policy)))
        if qualities[-1] >= 1:
            return attempt
    return int(np.argmax(qualities))


def quality(case: CaseSpec, data: Data) -> float:
    """Return the quality of `data`: at least 1 if they are far enough from kinks and well enough conditioned."""
    exact, worst = draft(case.model, data, "float64"), np.inf
    for policy in (case.policy, *ALSO.get(case.precision, ())):
        naive, loss = draft(case.model, data, policy), 0.0
        for name, array in exact.gradients.items():
            scale = np.abs(array).max(initial=0.0)
            if scale:
                loss = max(loss, np.abs(array - naive.gradients[name]).max() / scale / policy.epsilon)
        margin = kink_margin(case, exact.tapes, naive.tapes)
        worst = min(worst, margin / MARGIN, LOSS / loss if loss else np.inf)
    return worst


def kinks_of(function: Activation) -> tuple[float, ...]:
    """Return the points at which the function or its first derivative jumps."""
    alpha, beta = function.alpha or 0.0, function.beta or 0.0
    if function.name in ("relu", "leaky_relu", "elu"):
        return (0.0,)
    if function.name == "thresholded_relu":
        return (alpha,)
    if function.name == "hard_sigmoid" and alpha:
        return (-beta / alpha, (1 - beta) / alpha)
    return ()


def has_kinks(case: CaseSpec) -> bool:
    """Return whether a clip or an activation of the model has a kink."""
    return any(
        config.gate_clip or config.cell_clip or config.proj_clip or kinks_of(function)
        for config in case.configs
        for function in (config.gate_activation, config.cell_activation, config.hidden_activation)
    )


def kink_margin(case: CaseSpec, exact: tuple[Any, ...], naive: tuple[Any, ...]) -> float:
    """Return the smallest distance of a value to its kinks, in errors of the naive evaluation.

    Parameters
    ----------
    case
        The case.
    exact, naive
        The tapes of each layer and direction, of the exact and of the naive evaluation.
    """
    margin = np.inf
    for config, tape, other in zip(case.configs, exact, naive, strict=True):
        for (_, step), (_, near) in zip(tape.steps, other.steps, strict=True):
            rows = step.active[:, 0]
            for value, approximation, points in _bent(config, step, near):
                if not points or not value[rows].size:
                    continue
                error = np.abs(value - approximation)[rows].max()
                distance = min(np.abs(value[rows] - point).min() for point in points)
                margin = min(margin, distance / max(error, np.finfo(np.float32).tiny))
    return float(margin)


def _bent(config: LSTMConfig, step: Any, near: Any) -> Iterator[tuple[Array, Array, tuple[float, ...]]]:
    """Yield the values of a step that meet a kink, the same values of the other evaluation, and the kinks."""

    def both(bound: float | None) -> tuple[float, ...]:
        return () if bound is None else (-bound, bound)

    for k, z in step.z.items():
        function = config.cell_activation if k == "g" else config.gate_activation
        yield z, near.z[k], (*both(config.gate_clip), *kinks_of(function))
    yield step.c_unclipped, near.c_unclipped, both(config.cell_clip)
    yield step.h_unclipped, near.h_unclipped, both(config.proj_clip)
    yield step.c_out, near.c_out, kinks_of(config.hidden_activation)
