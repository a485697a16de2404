"""Optimizers as PyTorch defines them, and gradient clipping. They map arrays by name to new arrays by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from lstmcore.config import finite, integer
from lstmcore.scalars import flag
from lstmcore.validation import check_real

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


class Optimizer(ABC):
    """A rule that moves parameters against their gradients; keeps its moments by parameter name.

    Examples
    --------
    >>> rule = Adam(0.1)
    >>> isinstance(rule, Optimizer), rule.settings["lr"], rule.steps
    (True, 0.1, 0)
    """

    name: ClassVar[str]
    moments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, lr: float, **settings: float) -> None:
        self.settings = {key: finite(f"{self.name} {key}", value) for key, value in {"lr": lr, **settings}.items()}
        for key, value in self.settings.items():
            if value < 0 or (key == "lr" and value == 0):
                raise ValueError(
                    f"{self.name} {key}: expected a finite number {'> 0' if key == 'lr' else '>= 0'}; got {value!r}"
                )
            if key in ("momentum", "beta1", "beta2") and value >= 1:
                raise ValueError(f"{self.name} {key}: expected a number in [0, 1); got {value!r}")
        self.steps = 0
        self._state: dict[str, Arrays] = {moment: {} for moment in self.moments}

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> Arrays:
        """Return the parameters after one step, as fresh arrays of the same dtypes.

        Raises
        ------
        TypeError
            A parameter or a gradient that is no array of floating-point numbers.
        ValueError
            `gradients` lacks a parameter or has another shape for it, or the moments are those of other parameters.
        """
        for what, arrays in (("parameters", parameters), ("gradients", gradients)):
            _check_floats(what, arrays)
        if self.steps:
            self._check_moments(
                self._state, parameters, ": an optimizer goes with one model and one run, make a new one"
            )
        for name, value in parameters.items():
            shape = gradients[name].shape if name in gradients else "none"
            if shape != value.shape:
                raise ValueError(f"gradients[{name!r}]: expected shape {value.shape}; got {shape}")
        self.steps += 1
        return {
            name: np.asarray(self._update(name, value, gradients[name]), value.dtype)
            for name, value in parameters.items()
        }

    def state(self) -> Arrays:
        """Return the moments, ``"moment.parameter"`` -> array; with `steps` they are all that a resumed run needs."""
        return {
            f"{moment}.{name}": value.copy() for moment, arrays in self._state.items() for name, value in arrays.items()
        }

    def load_state(self, steps: int, arrays: Mapping[str, Array], parameters: Mapping[str, Array]) -> None:
        """Set the moments that `state` returned.

        Parameters
        ----------
        steps
            `Optimizer.steps` at that time.
        arrays
            What `state` gave.
        parameters
            The parameters that the next steps move.

        Raises
        ------
        TypeError, ValueError
            Moments that are not those of `parameters` after `steps` steps; nothing is changed then.
        """
        steps = integer("optimizer steps", steps, 0)
        _check_floats("optimizer state", arrays)
        state: dict[str, Arrays] = {moment: {} for moment in self.moments}
        for key, value in arrays.items():
            moment, _, name = key.partition(".")
            if moment not in state:
                raise ValueError(
                    f"optimizer state: expected {', '.join(self.moments) or 'none'} for {self.name}; got {key!r}"
                )
            state[moment][name] = np.array(value)
        if steps:
            self._check_moments(state, parameters)
        elif arrays:
            raise ValueError(f"optimizer state: expected no moments after 0 steps; got {len(arrays)}")
        self.steps, self._state = steps, state

    def _used(self) -> tuple[str, ...]:
        """Return those of `moments` that these settings need."""
        return self.moments

    def _check_moments(
        self, state: Mapping[str, Mapping[str, Array]], parameters: Mapping[str, Array], advice: str = ""
    ) -> None:
        for moment in self._used():
            moments = state[moment]
            for name in (*parameters, *moments):
                want, got = (
                    f"{arrays[name].dtype} of {arrays[name].shape}" if name in arrays else "none"
                    for arrays in (parameters, moments)
                )
                if want != got:
                    raise ValueError(
                        f"optimizer state: expected the moment {moment!r} of {name!r} to be {want}, as the parameter; "
                        f"got {got}{advice}"
                    )

    @abstractmethod
    def _update(self, name: str, value: Array, gradient: Array) -> Array:
        """Return the new value of one parameter; `steps` counts this step already."""


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD`` (dampening 0).

    ``g += weight_decay * p;  m = momentum * m + g  (m = g at first);  p -= lr * m``, with `nesterov`
    ``p -= lr * (g + momentum * m)``.

    Parameters
    ----------
    lr
        Learning rate, > 0.
    momentum
        In [0, 1).
    weight_decay
        At least 0; added to the gradient.
    nesterov
        Whether to look ahead along the momentum, which must be > 0 then.

    Examples
    --------
    >>> SGD(0.5).step({"w": np.array([1.0])}, {"w": np.array([0.2])})
    {'w': array([0.9])}
    """

    name = "sgd"
    moments = ("momentum",)

    def __init__(
        self, lr: float = 0.01, *, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        if flag("sgd nesterov", nesterov) and momentum == 0:
            raise ValueError("sgd nesterov: expected momentum > 0; got 0")
        super().__init__(lr, momentum=momentum, weight_decay=weight_decay, nesterov=float(nesterov))

    def _used(self) -> tuple[str, ...]:
        return self.moments if self.settings["momentum"] else ()

    def _update(self, name: str, value: Array, gradient: Array) -> Array:
        lr, momentum, decay = (self.settings[key] for key in ("lr", "momentum", "weight_decay"))
        if decay:
            gradient = gradient + decay * value
        if momentum:
            moments = self._state["momentum"]
            moments[name] = momentum * moments[name] + gradient if name in moments else gradient.copy()
            gradient = gradient + momentum * moments[name] if self.settings["nesterov"] else moments[name]
        return value - lr * gradient


class Adam(Optimizer):
    """Adam (Kingma and Ba 2014, arXiv:1412.6980) as ``torch.optim.Adam``.

    Parameters
    ----------
    lr
        Learning rate, > 0.
    beta1, beta2
        Decay of the first and the second moment, in [0, 1).
    eps
        Added to the root of the second moment.
    weight_decay
        At least 0; added to the gradient.

    Examples
    --------
    >>> moved = Adam(0.1).step({"w": np.array([1.0])}, {"w": np.array([0.2])})
    >>> round(float(moved["w"][0]), 6)
    0.9
    """

    name = "adam"
    moments = ("first", "second")
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        lr: float = 0.001,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def _update(self, name: str, value: Array, gradient: Array) -> Array:
        lr, beta1, beta2, eps, decay = (self.settings[key] for key in ("lr", "beta1", "beta2", "eps", "weight_decay"))
        if self._decoupled:
            value = value * (1 - lr * decay)
        elif decay:
            gradient = gradient + decay * value
        first, second = self._state["first"], self._state["second"]
        if name not in first:
            first[name], second[name] = np.zeros_like(gradient), np.zeros_like(gradient)
        m = first[name] = beta1 * first[name] + (1 - beta1) * gradient
        v = second[name] = beta2 * second[name] + (1 - beta2) * gradient * gradient
        scale = math.sqrt(1 - beta2**self.steps)
        return value - (lr / (1 - beta1**self.steps)) * m / (np.sqrt(v) / scale + eps)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101) as ``torch.optim.AdamW``.

    Parameters
    ----------
    lr, beta1, beta2, eps
        As for `Adam`.
    weight_decay
        At least 0; ``p *= 1 - lr * weight_decay`` before each step.

    Examples
    --------
    >>> moved = AdamW(0.1, weight_decay=0.5).step({"w": np.array([1.0])}, {"w": np.array([0.2])})
    >>> round(float(moved["w"][0]), 6)
    0.85
    """

    name = "adamw"
    _decoupled = True

    def __init__(
        self,
        lr: float = 0.001,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)


OPTIMIZERS: Final[Mapping[str, type[SGD] | type[Adam]]] = {rule.name: rule for rule in (SGD, Adam, AdamW)}


def _check_floats(what: str, arrays: object) -> None:
    """Raise TypeError unless `arrays` is a mapping of names to arrays of floating-point numbers."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{what}: expected a mapping of names to arrays; got {type(arrays).__name__}")
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"{what}: expected names; got {name!r}")
        check_real(f"{what}[{name!r}]", value, kinds="f")


def global_norm(gradients: Mapping[str, Array]) -> float:
    """Return the L2 norm of all gradients together, summed in float64.

    Raises
    ------
    TypeError
        A gradient that is no array of floating-point numbers.

    Examples
    --------
    >>> global_norm({"a": np.array([3.0]), "b": np.array([4.0])})
    5.0
    """
    _check_floats("gradients", gradients)
    return math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values()))


def _check_bound(bound: object) -> None:
    if isinstance(bound, bool) or not isinstance(bound, Real):
        raise TypeError(f"clip_norm: expected a number > 0; got {bound!r}")
    if not float(bound) > 0:
        raise ValueError(f"clip_norm: expected a number > 0; got {bound!r}")


def clip_by_global_norm(gradients: Mapping[str, Array], bound: float) -> tuple[Arrays, float]:
    """Scale all gradients by ``bound / norm`` if their global norm is above `bound`.

    Returns the gradients and the norm that they had.

    Raises
    ------
    TypeError
        Gradients that are no arrays of floating-point numbers, or a `bound` that is no number.
    ValueError
        `bound` is not > 0.

    Examples
    --------
    >>> clipped, norm = clip_by_global_norm({"a": np.array([3.0]), "b": np.array([4.0])}, 2.5)
    >>> norm, clipped["b"].tolist()
    (5.0, [2.0])
    """
    _check_bound(bound)
    norm = global_norm(gradients)
    if norm <= bound or not math.isfinite(norm):
        return dict(gradients), norm
    return {name: (value * (bound / norm)).astype(value.dtype) for name, value in gradients.items()}, norm
