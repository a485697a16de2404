"""Domains: the values that a switch of `LSTMConfig` can take, and the description of a switch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from lstmcore.scalars import choice, finite, flag, integer, positive, rate

#: Activation name -> its parameters with the defaults of the ONNX operator set.
ACTIVATIONS: Final[Mapping[str, Mapping[str, float]]] = {
    "sigmoid": {},
    "tanh": {},
    "relu": {},
    "identity": {},
    "affine": {"alpha": 1.0, "beta": 0.0},
    "leaky_relu": {"alpha": 0.01},
    "thresholded_relu": {"alpha": 1.0},
    "scaled_tanh": {"alpha": 1.0, "beta": 1.0},
    "hard_sigmoid": {"alpha": 0.2, "beta": 0.5},
    "elu": {"alpha": 1.0},
    "softsign": {},
    "softplus": {},
}

_ACTIVATION_TEXT: Final = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<arguments>[^()]*)\))?\s*")


@dataclass(frozen=True, slots=True)
class Activation:
    """An element-wise function with its parameters, for example ``hard_sigmoid(alpha=0.2, beta=0.5)``.

    Parameters
    ----------
    name
        One of `ACTIVATIONS`.
    alpha, beta
        The parameters of the function; None takes the ONNX default. Giving one to a function that has none is
        an error.

    Raises
    ------
    ValueError
        Unknown name, a parameter that the function does not have, or one that is not finite.

    Examples
    --------
    >>> str(Activation("leaky_relu", alpha=0.1)), Activation("hard_sigmoid").beta
    ('leaky_relu(alpha=0.1)', 0.5)
    """

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}; got {self.name!r}")
        defaults = ACTIVATIONS[self.name]
        for key in ("alpha", "beta"):
            value = getattr(self, key)
            if key not in defaults:
                if value is not None:
                    raise ValueError(
                        f"activation {self.name}: has no parameter {key}; got {key}={value!r}, leave it out"
                    )
                continue
            object.__setattr__(
                self, key, defaults[key] if value is None else finite(f"activation {self.name} {key}", value)
            )

    @classmethod
    def parse(cls, value: Activation | str) -> Activation:
        """Return the activation of a text such as ``"elu(0.5)"`` or ``"hard_sigmoid(alpha=0.2, beta=0.5)"``."""
        if isinstance(value, Activation):
            return value
        if not isinstance(value, str):
            raise TypeError(
                f"activation: expected an Activation or its text, such as 'tanh'; got {type(value).__name__}"
            )
        match = _ACTIVATION_TEXT.fullmatch(value)
        if match is None:
            raise ValueError(f"activation: expected a text such as 'tanh' or 'elu(alpha=0.5)'; got {value!r}")
        arguments: dict[str, float] = {}
        text = match["arguments"] or ""
        for position, part in enumerate(text.split(",") if text.strip() else []):
            key, equals, number = part.rpartition("=")
            key = key.strip() if equals else ("alpha", "beta")[position] if position < 2 else ""
            try:
                parsed = float(number)
            except ValueError:
                raise ValueError(
                    f"activation: expected a number for {key or 'each parameter'}; got {part.strip()!r} in {value!r}"
                ) from None
            if key not in ("alpha", "beta"):
                raise ValueError(f"activation: expected alpha and beta only; got {value!r}")
            if key in arguments:
                raise ValueError(f"activation: expected {key} once; got {value!r}")
            arguments[key] = parsed
        return cls(match["name"], **arguments)

    def __str__(self) -> str:
        parameters = [f"{key}={getattr(self, key)!r}" for key in ACTIVATIONS[self.name]]
        return f"{self.name}({', '.join(parameters)})" if parameters else self.name


SIGMOID: Final = Activation("sigmoid")
TANH: Final = Activation("tanh")


Kind = Literal["flag", "size", "choice", "number", "bound", "rate", "function"]


@dataclass(frozen=True, slots=True)
class Domain:
    """Values that a switch can take.

    Attributes
    ----------
    kind
        What the values are, for code that treats all switches of a kind alike: options of the command line, macros,
        strategies of tests.
    check
        Takes the name of the switch and a value; returns the value as it is stored, or raises.
    choices
        All values, if there are finitely many; for functions, one of each name.
    """

    kind: Kind
    check: Callable[[str, object], Any]
    choices: tuple[Any, ...] = ()


def one_of(*names: str) -> Domain:
    """Return the domain of these texts."""
    return Domain("choice", partial(choice, choices=names), names)


def _function(_: str, value: object) -> Activation:
    """Return an activation or the one that a text describes."""
    return Activation.parse(value)  # type: ignore[arg-type]  # parse checks the type


FLAG: Final = Domain("flag", flag, (False, True))
SIZE: Final = Domain("size", partial(integer, minimum=0))
NUMBER: Final = Domain("number", positive)
#: A number > 0, or None for no bound.
BOUND: Final = Domain("bound", partial(positive, none_allowed=True))
#: [0, 1]
RATE: Final = Domain("rate", partial(rate, one_allowed=True))
#: [0, 1), for a mask that is divided by one minus its rate.
DROPOUT: Final = Domain("rate", rate)
FUNCTION: Final = Domain("function", _function, tuple(Activation(name) for name in ACTIVATIONS))

#: Every function, with parameters that differ from the defaults.
SAMPLE_FUNCTIONS: Final = (
    "sigmoid",
    "tanh",
    "relu",
    "identity",
    "affine(alpha=0.7, beta=0.1)",
    "leaky_relu(alpha=0.3)",
    "thresholded_relu(alpha=0.2)",
    "scaled_tanh(alpha=1.3, beta=0.6)",
    "hard_sigmoid(alpha=0.3, beta=0.45)",
    "elu(alpha=0.8)",
    "softsign",
    "softplus",
)


class Switch(NamedTuple):
    """One switch of `LSTMConfig`.

    Attributes
    ----------
    name, default
        Those of the field. The switch is in use if its value differs from `default`.
    domain
        The values that it can take.
    summary
        One line, for the help of the command line.
    feature
        The feature that a backend declares for it (`FEATURES`); None if the feature of another switch covers it.
        ``{}`` stands for the value. Switches with the same `feature` go together: if one is in use, each of them
        names its value.
    sample
        Values for tests. They are chosen for 5 inputs and 7 hidden units; the default among them is passed over.
    needs
        The switch without which this one has no effect.
    """

    name: str
    default: Any
    domain: Domain
    summary: str
    feature: str | None
    sample: tuple[Any, ...]
    needs: str | None


def switch(
    default: Any,
    domain: Domain,
    summary: str,
    *,
    feature: str | None,
    sample: tuple[Any, ...],
    needs: str | None = None,
) -> Any:
    """Return the dataclass field of a switch.

    Parameters
    ----------
    default, domain, summary, feature, sample, needs
        The attributes of `Switch`.
    """
    about = {"domain": domain, "summary": summary, "feature": feature, "sample": sample, "needs": needs}
    return field(default=default, metadata=about)
