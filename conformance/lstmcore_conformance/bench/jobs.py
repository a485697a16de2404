"""What is timed: one call of one mode at one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

from lstmcore.config import LSTMConfig
from lstmcore.precision import get_precision
from lstmcore_conformance.cases.case import Case, storage_dtype

#: inference: y and the final state. training: those and every gradient. streaming: one step, the state handed on.
Mode = Literal["inference", "training", "streaming"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)

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
    def config(self) -> LSTMConfig:
        """The layer."""
        return LSTMConfig(input_size=self.point.I, hidden_size=self.point.H, **VARIANTS[self.variant])

    @property
    def case(self) -> Case:
        """The values that are compared; masks are given where training draws them."""
        steps = STREAMED if self.mode == "streaming" else self.point.T
        masked = self.mode == "training" and self.variant in ("zoneout", "recurrent_dropout")
        return Case(
            name=f"benchmark {self.point}",
            model=self.config,
            precision=self.precision,
            steps=steps,
            batch=self.point.N,
            masks=masked,
        )

    @property
    def flops(self) -> float:
        """Floating-point operations of the products of a call: 8 T N H (I + H), in training three times that."""
        T, N, I, H = self.point
        return 8.0 * T * N * H * (I + H) * (3 if self.mode == "training" else 1)

    @property
    def bytes(self) -> float:
        """Bytes that the products of a call read at least where the weights are read again at every step."""
        T, N, I, H = self.point
        numbers = 4.0 * T * H * (I + H) + T * N * (I + H)
        return (
            storage_dtype(get_precision(self.precision).storage).itemsize
            * numbers
            * (3 if self.mode == "training" else 1)
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
