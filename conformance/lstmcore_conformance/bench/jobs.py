"""What is timed: one call of one mode at one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np

from lstmcore.config import LSTMConfig
from lstmcore.precision import get_precision
from lstmcore_conformance.cases.case import Case, storage_dtype

#: A kind of call. inference: y and the final state. training: those and every gradient. streaming: one step, the state
#: handed on.
Call = Literal["inference", "training", "streaming"]
#: The calls, and those of them that take sequences of different lengths.
Mode = Literal["inference", "training", "streaming", "lengths-inference", "lengths-training"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
LENGTHS_MODES: Final[tuple[Mode, ...]] = ("lengths-inference", "lengths-training")
#: Word of the command line -> the modes that it stands for.
MODES_OF_WORD: Final[Mapping[str, tuple[Mode, ...]]] = {
    "inference": ("inference",),
    "training": ("training",),
    "streaming": ("streaming",),
    "lengths": LENGTHS_MODES,
}

#: Steps of the sequence that a streaming job is checked on, and that its calls go through again and again.
STREAMED: Final = 16

#: Name of a variant -> the switches that it turns on.
VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "peephole": {"peephole": True},
    "input_from_forget": {"coupling": "input_from_forget"},
    "forget_from_input": {"coupling": "forget_from_input"},
    "gate_clip": {"gate_clip": 2.5},
    "cell_clip": {"cell_clip": 1.5},
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout_hidden": 0.1, "zoneout_cell": 0.1},
    "recurrent_dropout": {"recurrent_dropout": 0.25},
    "recurrence_cell": {"recurrence": "cell"},
}


class Point(NamedTuple):
    """Sizes of a call: steps, batch, input and hidden units."""

    T: int
    N: int
    I: int
    H: int

    def __str__(self) -> str:
        return ", ".join(map(str, self))


def parse_point(text: str) -> Point:
    """Return the sizes that a text ``T,N,I,H`` names.

    Raises
    ------
    ValueError
        It has other than four whole numbers of at least 1.
    """
    words = text.split(",")
    if len(words) != 4 or not all(word.strip().isdecimal() and int(word) for word in words):
        raise ValueError(f"expected four whole numbers T,N,I,H of at least 1; got {text!r}")
    return Point(*map(int, words))


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of call at one point.

    Attributes
    ----------
    variant
        A name of `VARIANTS`.
    """

    mode: Mode
    point: Point
    precision: str = "float32"
    variant: str = "plain"

    @property
    def call(self) -> Call:
        """The kind of call, whether or not it takes lengths."""
        calls: tuple[Call, ...] = get_args(Call)
        return next(call for call in calls if self.mode.endswith(call))

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The length of each row: uniform from T / 4 to T, but T for one of them; None in modes without lengths."""
        if self.mode not in LENGTHS_MODES:
            return None
        rng, (steps, batch, *_) = np.random.default_rng(self.point), self.point
        lengths = rng.integers(-(-steps // 4), steps, batch, endpoint=True)
        lengths[rng.integers(batch)] = steps
        return tuple(map(int, lengths))

    @property
    def row_steps(self) -> int:
        """The steps of all rows together, without padding."""
        return self.point.T * self.point.N if self.lengths is None else sum(self.lengths)

    @property
    def config(self) -> LSTMConfig:
        """The layer."""
        return LSTMConfig(input_size=self.point.I, hidden_size=self.point.H, **VARIANTS[self.variant])

    @property
    def case(self) -> Case:
        """The values that are compared; masks are given where training draws them.

        With lengths the gradient of the final c is zero: a peer that pads has no such value.
        """
        steps = STREAMED if self.call == "streaming" else self.point.T
        masked = self.call == "training" and self.variant in ("zoneout", "recurrent_dropout")
        return Case(
            name=f"benchmark {self.point}",
            model=self.config,
            precision=self.precision,
            steps=steps,
            batch=self.point.N,
            lengths=self.lengths,
            masks=masked,
            dc=self.lengths is None,
        )

    @property
    def flops(self) -> float:
        """Floating-point operations of the products of a call: 8 T N H (I + H), in training three times that.

        With lengths their sum takes the place of T N.
        """
        _, _, I, H = self.point
        return 8.0 * self.row_steps * H * (I + H) * (3 if self.call == "training" else 1)

    @property
    def bytes(self) -> float:
        """Bytes that the products of a call read at least where the weights are read again at every step."""
        T, _, I, H = self.point
        numbers = 4.0 * T * H * (I + H) + self.row_steps * (I + H)
        return (
            storage_dtype(get_precision(self.precision).storage).itemsize
            * numbers
            * (3 if self.call == "training" else 1)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return asdict(self) | {"point": self.point._asdict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        """Return the inverse of `to_dict`."""
        return cls(values["mode"], Point(**values["point"]), values["precision"], values["variant"])

    def __str__(self) -> str:
        variant = "" if self.variant == "plain" else f" {self.variant}"
        return f"{self.mode} {self.precision}{variant} {self.point}"
