"""Cases: a model, a precision and sizes, from which the same data are drawn on every machine.

The data are random and asymmetric, sizes differ from each other and divide nothing, states are not zero. They are
scaled so that every clip cuts some values and not all, and drawn again until no value is so close to a kink (a clip,
a threshold) that rounding decides on which side it lies, where a gradient has two right answers, and until no result
is so ill-conditioned (a layer norm of equal numbers) that rounding is most of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Masks, StackMasks, State, Tangents
from lstmcore.config import Activation, LSTMConfig, StackConfig
from lstmcore.precision import Precision, get_precision

Array: TypeAlias = npt.NDArray[Any]

#: The policy that a precision's naive evaluation runs in: its own, but for float64. The oracle cannot measure its
#: own error, so float64 is judged by float32, scaled.
NAIVE: Final = {
    "float64": "float32",
    "float32": "float32",
    "tf32": "tf32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}

#: What else a policy's naive evaluation may be: a device may also cut TF32's operands off.
ALSO: Final = {"tf32": (replace(get_precision("tf32"), operands="towards zero"),)}

#: How often a case is drawn at most; how far from a kink is enough, in errors of the naive evaluation; and how many
#: epsilons of an array's scale that evaluation may lose.
DRAWS: Final = 24
MARGIN: Final = 4.0
LOSS: Final = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What to run. Equal cases have equal data; the precision changes only their rounding.

    Attributes
    ----------
    name
        What is special about it; with the precision it makes the id, and the seed comes from it.
    model
        One layer in one direction, or a stack.
    lengths
        None for T everywhere.
    masks
        The random masks that are given: False for none, True for all that have a rate, or the name of the only one.
    state
        Whether an initial state is given.
    scale
        What x and the initial state are multiplied by.
    dy, dh, dc
        Which of y, the final h and the final c the differentiated scalar uses.
    draw
        The number of the draw that is taken; None for the first that is good enough, which another machine may judge
        otherwise.
    """

    name: str
    model: LSTMConfig | StackConfig
    precision: str
    steps: int = 4
    batch: int = 3
    lengths: tuple[int, ...] | None = None
    masks: bool | str = False
    state: bool = True
    scale: float = 1.0
    dy: bool = True
    dh: bool = True
    dc: bool = True
    draw: int | None = None

    @property
    def id(self) -> str:
        """Unique within a check."""
        return f"{self.precision}-{self.name}"

    @property
    def policy(self) -> Precision:
        """The precision."""
        return get_precision(self.precision)

    @property
    def stack(self) -> StackConfig | None:
        """The model where it is a stack."""
        return self.model if isinstance(self.model, StackConfig) else None

    @property
    def config(self) -> LSTMConfig:
        """The model where it is one layer in one direction.

        Raises
        ------
        TypeError
            It is a stack.
        """
        if isinstance(self.model, StackConfig):
            raise TypeError(f"case {self.id}: expected one layer in one direction; got a stack")
        return self.model

    @property
    def configs(self) -> tuple[LSTMConfig, ...]:
        """All layers and directions."""
        return self.model.configs if isinstance(self.model, StackConfig) else (self.model,)

    @property
    def features(self) -> frozenset[str]:
        """What a backend must declare to run the case."""
        used = frozenset().union(*(config.features for config in self.configs))
        return used | ({"lengths"} if self.lengths is not None else set()) | ({"masks"} if self.masks else set())

    @property
    def data(self) -> Data:
        """The case's own arrays; treat them as read-only."""
        return case_data(self)

    def with_precision(self, precision: str) -> Case:
        """The same in another precision."""
        return replace(self, precision=precision)


@dataclass(frozen=True, slots=True)
class Data:
    """The arguments of every call of a case."""

    parameters: dict[str, Array]
    x: Array
    state: State | None
    lengths: Array | None
    masks: Any
    dy: Array | None
    dstate: State | None
    tangents: Tangents

    def map(self, function: Callable[[Array], Any]) -> Data:
        """A copy with `function` applied to every array but the lengths."""

        def each(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, dict):
                return {key: each(item) for key, item in value.items()}
            if isinstance(value, State | Masks | StackMasks | Tangents):
                return type(value)(*(each(item) for item in value))
            if isinstance(value, tuple):
                return tuple(each(item) for item in value)
            return function(value)

        return Data(
            each(self.parameters),
            each(self.x),
            each(self.state),
            None if self.lengths is None else self.lengths.copy(),
            each(self.masks),
            each(self.dy),
            each(self.dstate),
            each(self.tangents),
        )

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Every array with a name for messages."""
        yield from ((f"parameters[{name!r}]", array) for name, array in self.parameters.items())
        yield "x", self.x
        for name, pair in (("state", self.state), ("dstate", self.dstate), ("tangents.state", self.tangents.state)):
            if pair is not None:
                yield f"{name}.h", pair.h
                yield f"{name}.c", pair.c
        if self.lengths is not None:
            yield "lengths", self.lengths
        for position, mask in enumerate(_flat(self.masks)):
            yield f"masks[{position}]", mask
        if self.dy is not None:
            yield "dy", self.dy
        if self.tangents.x is not None:
            yield "tangents.x", self.tangents.x
        yield from ((f"tangents.parameters[{name!r}]", a) for name, a in (self.tangents.parameters or {}).items())


def _flat(value: Any) -> Iterator[Array]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    elif value is not None:
        yield value


def storage_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name.

    Raises
    ------
    ModuleNotFoundError
        bfloat16 without ml_dtypes, which gives NumPy that dtype.
    """
    if name == "bfloat16":
        try:
            import ml_dtypes  # type: ignore[import-not-found,unused-ignore]  # optional
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "bfloat16 on the host needs ml_dtypes: install it with 'pip install ml_dtypes'"
            ) from error
        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(name)


class _Sizes(NamedTuple):
    """The shapes around a model, for a layer and a stack alike."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    h: tuple[int, ...]
    c: tuple[int, ...]


def sizes(case: Case) -> _Sizes:
    """The shapes of x, y, and of the h and c of a state."""
    model, steps, batch = case.model, case.steps, case.batch
    if isinstance(model, StackConfig):
        rows, width = len(model.configs), model.num_directions * model.output_size
        return _Sizes(
            (steps, batch, model.input_size),
            (steps, batch, width),
            (rows, batch, model.output_size),
            (rows, batch, model.hidden_size),
        )
    return _Sizes(
        (steps, batch, model.input_size),
        (steps, batch, model.output_size),
        (batch, model.output_size),
        (batch, model.hidden_size),
    )


def seed_of(name: str, attempt: int) -> int:
    """The seed of a case: the first 8 bytes of the SHA-256 of its name and the number of the draw."""
    return int.from_bytes(hashlib.sha256(f"{name}/{attempt}".encode()).digest()[:8], "little")


def draw(case: Case, attempt: int) -> Data:
    """The data of `case` in float64, before they are rounded to its precision."""
    rng = np.random.default_rng(seed_of(case.name, attempt))
    shape = sizes(case)

    def normal(size: tuple[int, ...], scale: float, shift: float) -> Array:
        return rng.standard_normal(size) * scale + shift

    def parameter(name: str, size: tuple[int, ...]) -> Array:
        kind = name.split("_l")[0] if isinstance(case.model, StackConfig) else name
        if kind.startswith("weight"):
            return normal(size, 1.2 / size[-1] ** 0.5, 0.04)
        if kind.startswith("norm_gain"):
            return normal(size, 0.3, 1.1)
        return normal(size, 0.4, 0.1)

    shapes = case.model.parameter_shapes
    parameters = {name: parameter(name, size) for name, size in shapes.items()}
    x = case.scale * normal(shape.x, 1.0, 0.1)
    state = State(case.scale * normal(shape.h, 0.5, 0.05), case.scale * normal(shape.c, 0.6, -0.05))
    masks = draw_masks(case, rng) if case.masks else None
    dy, dh, dc = (normal(shape.y, 1.0, 0.1), normal(shape.h, 1.0, -0.1), normal(shape.c, 1.0, 0.1))
    tangents = Tangents(
        normal(shape.x, 1.0, 0.1),
        State(normal(shape.h, 1.0, 0.1), normal(shape.c, 1.0, -0.1)),
        {name: normal(size, 0.5, 0.05) for name, size in shapes.items()},
    )
    return Data(
        parameters,
        x,
        state if case.state else None,
        None if case.lengths is None else np.array(case.lengths, np.int64),
        masks,
        dy if case.dy else None,
        State(dh * case.dh, dc * case.dc) if case.dh or case.dc else None,
        tangents if case.state else tangents._replace(state=None),
    )


def draw_masks(case: Case, rng: np.random.Generator) -> Masks | StackMasks:
    """Masks for every rate that is not 0; each element is drawn with probability a half, so that small ones mix."""

    def of(config: LSTMConfig) -> Masks:
        def drawn(rate: float, size: tuple[int, ...], kept: float) -> Array | None:
            return np.where(rng.random(size) < 0.5, 0.0, kept) if rate else None

        masks = Masks(
            drawn(config.recurrent_dropout, (case.batch, config.recurrent_size), 1 / (1 - config.recurrent_dropout)),
            drawn(config.zoneout_hidden, (case.steps, case.batch, config.output_size), 1.0),
            drawn(config.zoneout_cell, (case.steps, case.batch, config.hidden_size), 1.0),
        )
        return masks if case.masks is True else Masks(**{str(case.masks): getattr(masks, str(case.masks))})

    if not isinstance(case.model, StackConfig):
        return of(case.model)
    stack = case.model
    between = (case.steps, case.batch, stack.num_directions * stack.output_size)
    count = stack.num_layers - 1 if stack.dropout else 0
    return StackMasks(
        tuple(of(config) for config in stack.configs),
        tuple(np.where(rng.random(between) < 0.5, 0.0, 1 / (1 - stack.dropout)) for _ in range(count)),
    )


def rounded(data: Data, policy: Precision) -> Data:
    """`data` in the dtypes of `policy`: what the backend gets is what the oracle sees."""
    storage, compute = storage_dtype(policy.storage), np.dtype(policy.compute)

    def state(pair: State | None) -> State | None:
        return None if pair is None else State(pair.h.astype(storage), pair.c.astype(compute))

    def masks(value: Any) -> Any:
        if isinstance(value, Masks | StackMasks):
            return type(value)(*(masks(item) for item in value))
        if isinstance(value, tuple):
            return tuple(masks(item) for item in value)
        return None if value is None else value.astype(compute)

    given = data.tangents
    return Data(
        {name: array.astype(storage) for name, array in data.parameters.items()},
        data.x.astype(storage),
        state(data.state),
        data.lengths,
        masks(data.masks),
        None if data.dy is None else data.dy.astype(storage),
        state(data.dstate),
        Tangents(
            None if given.x is None else given.x.astype(storage),
            state(given.state),
            {name: array.astype(storage) for name, array in (given.parameters or {}).items()},
        ),
    )


@lru_cache(maxsize=8192)
def case_data(case: Case) -> Data:
    """The data of `case`, from the first draw that is good enough (or the best one)."""
    return rounded(draw(case, attempt_of(case.with_precision(NAIVE[case.precision]))), case.policy)


@lru_cache(maxsize=8192)
def attempt_of(case: Case) -> int:
    """The number of the draw that `case` uses; `case` is in the precision of its naive evaluation."""
    if case.draw is not None:
        return case.draw
    if not (has_kinks(case) or any(config.layer_norm for config in case.configs)):
        return 0
    found = []
    for attempt in range(DRAWS):
        found.append(quality(case, rounded(draw(case, attempt), case.policy)))
        if found[-1] >= 1:
            return attempt
    return int(np.argmax(found))


def quality(case: Case, data: Data) -> float:
    """At least 1 where `data` are far enough from kinks and well enough conditioned."""
    from lstmcore_conformance.oracle.evaluation import draft

    exact, found = draft(case, data, "float64"), np.inf
    for policy in (case.policy, *ALSO.get(case.precision, ())):
        naive, loss = draft(case, data, policy), 0.0
        for name, array in exact.gradients.items():
            scale = np.abs(array).max(initial=0.0)
            if scale:
                loss = max(loss, np.abs(array - naive.gradients[name]).max() / scale / policy.epsilon)
        margin = kink_margin(case, exact.tapes, naive.tapes)
        found = min(found, margin / MARGIN, LOSS / loss if loss else np.inf)
    return found


def kinks_of(function: Activation) -> tuple[float, ...]:
    """Where the function or its first derivative jumps."""
    alpha, beta = function.alpha or 0.0, function.beta or 0.0
    if function.name in ("relu", "leaky_relu", "elu"):
        return (0.0,)
    if function.name == "thresholded_relu":
        return (alpha,)
    if function.name == "hard_sigmoid" and alpha:
        return (-beta / alpha, (1 - beta) / alpha)
    return ()


def has_kinks(case: Case) -> bool:
    """Whether anything in the model has a kink."""
    return any(
        config.gate_clip or config.cell_clip or config.proj_clip or kinks_of(function)
        for config in case.configs
        for function in (config.gate_activation, config.cell_activation, config.hidden_activation)
    )


def kink_margin(case: Case, exact: tuple[Any, ...], naive: tuple[Any, ...]) -> float:
    """The smallest distance of a value to a kink that applies to it, in errors of the naive evaluation."""
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
    """The values of a step that meet a kink, the same in the other evaluation, and where the kinks are."""

    def both(bound: float | None) -> tuple[float, ...]:
        return () if bound is None else (-bound, bound)

    for k, z in step.z.items():
        function = config.cell_activation if k == "g" else config.gate_activation
        yield z, near.z[k], (*both(config.gate_clip), *kinks_of(function))
    yield step.c_unclipped, near.c_unclipped, both(config.cell_clip)
    yield step.h_unclipped, near.h_unclipped, both(config.proj_clip)
    yield step.c_out, near.c_out, kinks_of(config.hidden_activation)
