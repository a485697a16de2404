"""What a backend declares: its capabilities, and the receipt of the path that a kernel takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import PRECISIONS, Precision
from lstmcore.stored_weights import SAME, WEIGHT_FEATURES

DERIVATIVES: Final = frozenset({"backward", "jvp"})


class UnsupportedError(ValueError):
    """A call asks for something that the backend does not declare; the message says what and why.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> LSTM(3, 5, backend="numpy", dtype="bfloat16")
    Traceback (most recent call last):
    lstmcore.declaration.UnsupportedError: ...bfloat16: NumPy has no bfloat16...
    """


def require_trainable(precision: Precision) -> None:
    """Raise UnsupportedError if the weights are rounded into a format: a step of training would be lost in it."""
    if precision.weights != SAME:
        raise UnsupportedError(
            f"weights: derivatives need weights that are stored as they are; got {precision.weights}: train an LSTM "
            "with weights='same', then use its compressed()"
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """The path that a kernel takes, and why.

    Attributes
    ----------
    backend, device, precision, path
        Names. `path` is the backend's own name for the code that runs.
    reason
        Why that path.
    fallback
        None if this is the backend's best path, else why it could not take a faster one;
        ``LSTM(..., strict=True)`` refuses to run then.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> (suffix, receipt), = LSTM(3, 5, backend="numpy", seed=0).explain(steps=7, batch=2).receipts
    >>> suffix, receipt.backend, receipt.fallback
    ('_l0', 'numpy', None)
    """

    backend: str
    device: str
    precision: str
    path: str
    reason: str
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The abilities that a backend declares. A declared one is tested; any other is refused, with the reason.

    Attributes
    ----------
    device
        ``"cpu"`` if the backend computes on NumPy arrays in place, else the name of its device.
    precisions
        Names from `PRECISIONS`.
    features
        Names from `config.FEATURES` and `stored_weights.WEIGHT_FEATURES`.
    derivatives
        Names from `DERIVATIVES`.
    reasons
        Precision, feature or derivative -> why it is not there.

    Raises
    ------
    TypeError
        Values of another type; `reasons` are texts by name.
    ValueError
        Names that are unknown.

    Examples
    --------
    >>> plain = Capabilities("cpu", frozenset({"float32"}), features=frozenset(), derivatives=frozenset(),
    ...                      reasons={"backward": "this kernel runs inference"})
    >>> plain.missing("backward")
    'backward: this kernel runs inference'
    """

    device: str
    precisions: frozenset[str]
    features: frozenset[str]
    derivatives: frozenset[str] = DERIVATIVES
    reasons: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not self.device:
            raise TypeError(f"device: expected a name, such as 'cpu'; got {self.device!r}")
        reasons = dict(self.reasons) if isinstance(self.reasons, Mapping) else {None: None}
        if not all(isinstance(text, str) for text in (*reasons, *reasons.values())):
            raise TypeError(f"reasons: expected a mapping of names to texts; got {self.reasons!r}")
        object.__setattr__(self, "reasons", reasons)
        for name, allowed in (
            ("precisions", frozenset(PRECISIONS)),
            ("features", FEATURES | WEIGHT_FEATURES),
            ("derivatives", DERIVATIVES),
        ):
            given = getattr(self, name)
            names = tuple(given) if isinstance(given, Iterable) else (None,)
            if not all(isinstance(item, str) for item in names):
                raise TypeError(f"{name}: expected a set of names; got {given!r}")
            value = frozenset(names)
            if unknown := sorted(value - allowed):
                raise ValueError(f"{name}: unknown {', '.join(unknown)}; known are {', '.join(sorted(allowed))}")
            object.__setattr__(self, name, value)

    def missing(self, what: str) -> str:
        """Return the end of a sentence that says why the backend lacks `what`."""
        return f"{what}: {self.reasons.get(what, 'not implemented')}"

    def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
        """Return why `config` in `precision` cannot run, or None if it can."""
        wanted = [name for name in (precision.name,) if name not in self.precisions]
        used = config.features if precision.weights == SAME else config.features | {f"weights:{precision.weights}"}
        wanted += sorted(used - self.features)
        return "; ".join(self.missing(name) for name in wanted) or None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The backend of an LSTM, why it was selected, and a receipt for each layer; its text is made for reading.

    Attributes
    ----------
    backend, device, precision
        Names.
    selection
        Why the backend was selected, and which ones were passed over.
    receipts
        For each of `StackConfig.configs` the suffix of its parameters, and its receipt.
    """

    backend: str
    device: str
    precision: str
    selection: str
    receipts: tuple[tuple[str, Receipt], ...]

    def __str__(self) -> str:
        lines = [f"backend {self.backend} on {self.device}, {self.precision}: {self.selection}"]
        for suffix, receipt in self.receipts:
            lines.append(f"  {suffix.removeprefix('_')}: {receipt.path}: {receipt.reason}")
            if receipt.fallback is not None:
                lines.append(f"    not the fastest path: {receipt.fallback}")
        return "\n".join(lines)

    __repr__ = __str__
