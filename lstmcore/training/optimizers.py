"""Optimizers as PyTorch defines them. They map arrays by name to new arrays by name.

Arrays are those of one library on one device, see `lstmcore.arrays`, and so are the results.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from lstmcore.arrays import device_of, dtype_name, namespace_of
from lstmcore.config import finite, integer
from lstmcore.kernels import LayerBackend
from lstmcore.scalars import flag
from lstmcore.training.flat_arrays import (
    FlatGroup,
    blocks_of,
    check_floats,
    check_moments,
    find_updates,
    flat_copy,
    group_arrays,
    move_by,
)
from lstmcore.updates import Formula, Updates

Array = Any
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
    _decoupled: ClassVar[bool] = False
    _formula_for: ClassVar[Any] = None  # the `_update` that computes what `_formula` tells

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
        self._layout: tuple[Any, ...] = ()
        self._groups: list[FlatGroup] = []
        self._backend: LayerBackend | None = None
        self._updates: Updates | None = None
        self._path = "no step yet"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has, which arranges its moments anew: it shares no module and no device."""
        return self.__dict__ | {"_layout": (), "_backend": None, "_updates": None}

    def use_backend(self, backend: LayerBackend | None) -> None:
        """Let steps on arrays of the device of `backend` be one kernel each, if it declares `Backend.updates`.

        None lets operations of the arrays' library compute again. `Trainer` calls it for its runs; a copy has none.
        """
        self._backend, self._layout = backend, ()

    def explain(self) -> str:
        """Return how the last step was computed: in one kernel of a backend, or by operations of a library, and why."""
        return self._path

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> Arrays:
        """Return the parameters after one step, as fresh arrays of the same dtypes.

        All parameters of a dtype are updated together, as parts of one flat array.

        Raises
        ------
        TypeError
            A parameter or a gradient that is no array of floating-point numbers, or arrays of two libraries.
        ValueError
            `gradients` lacks a parameter or has another shape for it, arrays on two devices, or moments of other
            parameters.
        """
        named = check_floats("parameters", parameters) | check_floats("gradients", gradients)
        xp = namespace_of(**named)
        for name, value in parameters.items():
            shape = gradients[name].shape if name in gradients else "none"
            if shape != value.shape:
                raise ValueError(f"gradients[{name!r}]: expected shape {value.shape}; got {shape}")
        self._arrange(xp, parameters, gradients)
        self.steps += 1
        moved: Arrays = {}
        for group in self._groups:
            moved |= group.split(xp, self._move(xp, group, parameters, gradients))
        return moved if len(self._groups) == 1 else {name: moved[name] for name in parameters}

    def _move(self, xp: Any, group: FlatGroup, *both: Mapping[str, Array]) -> Array:
        """Return the parameters of a group after a step, as one flat array; `both` are parameters and gradients."""
        formula = None if self._updates is None else self._formula(self.steps)
        if self._updates is not None and formula is not None:
            values, slopes = ([arrays[name] for name in group.names] for arrays in both)
            return self._updates.move(formula, values, slopes, list(group.moments.values()))
        value, gradient = (group.flatten(xp, arrays) for arrays in both)
        for part in blocks_of(value):
            own = {moment: flat[part] for moment, flat in group.moments.items()}
            self._update(xp, value[part], gradient[part], own)
        return xp.astype(value, both[0][group.names[0]].dtype, copy=False)

    def _arrange(self, xp: Any, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        """Arrange the moments for these parameters and gradients, which are those of the step before as a rule."""
        kinds = [(value.dtype, gradients[name].dtype) for name, value in parameters.items()]
        places = (xp, *map(device_of, list(parameters.values())[:1]))  # `step` has checked that all are there
        rule = (bool(self.steps), self._has_formula())
        layout = (*rule, *places, *parameters, *kinds, *(value.shape for value in parameters.values()))
        if layout == self._layout:
            return
        moments = self._split_moments()
        if self.steps:
            advice = ": an optimizer goes with one model and one run, make a new one"
            check_moments(self._used(), moments, parameters, advice)
            state = check_floats("optimizer state", self._named_moments(moments))
            namespace_of(**check_floats("parameters", parameters), **state)
        groups = group_arrays(parameters, [(dtype_name(own), dtype_name(other)) for own, other in kinds])
        for group in groups:
            none = [xp.reshape(arrays[group.names[0]], (-1,))[:0] for arrays in (parameters, gradients)]
            dtype = self._dtype_after(*none)
            for moment in self._used():
                flat = group.flatten(xp, moments[moment] if self.steps else gradients)
                group.moments[moment] = xp.astype(flat if self.steps else xp.zeros_like(flat), dtype, copy=False)
                layout = layout if dtype == none[0].dtype else ()  # the next step arranges anew, and refuses them
        self._groups, self._layout = groups, layout
        self._find_updates([*parameters.values(), *gradients.values()])

    def _find_updates(self, arrays: list[Array]) -> None:
        """Find out what computes steps on these arrays: `Updates` of the backend, or operations of their library."""
        backend, formula = self._backend, self._formula(self.steps + 1) if self._has_formula() else None
        why = find_updates(backend, formula.name, arrays) if formula else f"{type(self).__name__} has no formula"
        self._updates, self._path = None, f"operations of the arrays' library: {why}"
        if backend is not None and not isinstance(why, str):
            self._updates, self._path = why, f"one kernel of backend {backend.name!r}"

    def _dtype_after(self, value: Array, gradient: Array) -> Any:
        """Return the dtype that the formulas give the moments in this step; the arrays are empty."""
        if self.settings["weight_decay"] and not self._decoupled:
            gradient = gradient + 0.5 * value
        if self.steps:
            return (0.5 * value + gradient).dtype  # the moments have the dtype of the parameters here
        return self._first_moment(gradient).dtype

    def _split_moments(self) -> dict[str, Arrays]:
        """Return the moments by name and by parameter: views."""
        moments: dict[str, Arrays] = {moment: {} for moment in self.moments}
        for group in self._groups:
            for moment, flat in group.moments.items():
                moments[moment] |= group.split(namespace_of(flat), flat)
        return moments

    def state(self) -> Arrays:
        """Return the moments, ``"moment.parameter"`` -> array; with `steps` they are all that a resumed run needs."""
        moments = self._named_moments(self._split_moments())
        return {name: namespace_of(value).asarray(value, copy=True) for name, value in moments.items()}

    @staticmethod
    def _named_moments(moments: Mapping[str, Arrays]) -> Arrays:
        return {f"{moment}.{name}": value for moment, arrays in moments.items() for name, value in arrays.items()}

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
        namespace_of(**check_floats("optimizer state", arrays), **check_floats("parameters", parameters))
        state: dict[str, Arrays] = {moment: {} for moment in self.moments}
        for key, value in arrays.items():
            moment, _, name = key.partition(".")
            if moment not in state:
                raise ValueError(
                    f"optimizer state: expected {', '.join(self.moments) or 'none'} for {self.name}; got {key!r}"
                )
            state[moment][name] = value
        if steps:
            check_moments(self._used(), state, parameters)
        elif arrays:
            raise ValueError(f"optimizer state: expected no moments after 0 steps; got {len(arrays)}")
        self.steps, self._layout = steps, ()
        self._groups = [
            FlatGroup((name,), (value.shape,), {m: flat_copy(state[m][name]) for m in self._used()} if steps else {})
            for name, value in parameters.items()
        ]

    def _formula(self, step: int) -> Formula | None:
        """Return the formula of a step, counted from 1; None if `_update` alone has the rule."""
        return None

    def _has_formula(self) -> bool:
        """Return whether steps are by the `_update` that the formula was written for: a mixin may have another one."""
        return getattr(self._update, "__func__", None) is type(self)._formula_for

    def _used(self) -> tuple[str, ...]:
        """Return those of `moments` that these settings need."""
        return self.moments

    def _first_moment(self, gradient: Array) -> Array:
        """Return an array of the dtype that a moment has after the first step."""
        return 0.5 * gradient

    @abstractmethod
    def _update(self, xp: Any, value: Array, gradient: Array, moments: Arrays) -> None:
        """Move parameters and their moments in place; `steps` counts this step already.

        Parameters
        ----------
        xp
            The namespace of the arrays.
        value, gradient
            Flat arrays, both free to be changed.
        moments
            Flat arrays by the names that the settings need, 0 at the first step.
        """


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

    def _first_moment(self, gradient: Array) -> Array:
        return gradient

    def _update(self, xp: Any, value: Array, gradient: Array, moments: Arrays) -> None:
        lr, momentum, decay = (self.settings[key] for key in ("lr", "momentum", "weight_decay"))
        if decay:
            gradient = gradient + decay * value
        if momentum:
            m = moments["momentum"]
            m *= momentum
            m[...] = m + gradient if self.steps > 1 else gradient
            gradient = gradient + momentum * m if self.settings["nesterov"] else m
        move_by(xp, value, value, lr * gradient)

    _formula_for = _update

    def _formula(self, step: int) -> Formula:
        numbers = {name: self.settings[name] for name in ("lr", "momentum", "weight_decay", "nesterov")}
        return Formula("sgd", numbers | {"initial": float(step == 1)})


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

    def _update(self, xp: Any, value: Array, gradient: Array, moments: Arrays) -> None:
        lr, beta1, beta2, eps, decay = (self.settings[key] for key in ("lr", "beta1", "beta2", "eps", "weight_decay"))
        m, v = moments["first"], moments["second"]
        start = value * (1 - lr * decay) if self._decoupled else value
        if decay and not self._decoupled:
            gradient = gradient + decay * value
        m *= beta1
        m += (1 - beta1) * gradient
        v *= beta2
        v += (1 - beta2) * gradient * gradient
        root = xp.sqrt(v)
        root /= math.sqrt(1 - beta2**self.steps)
        root += eps
        move_by(xp, value, start, (lr / (1 - beta1**self.steps)) * m / root)

    _formula_for = _update

    def _formula(self, step: int) -> Formula:
        lr, beta1, beta2, eps, decay = (self.settings[key] for key in ("lr", "beta1", "beta2", "eps", "weight_decay"))
        numbers = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": 0.0 if self._decoupled else decay}
        numbers |= {"rate": lr / (1 - beta1**step), "correction": math.sqrt(1 - beta2**step)}
        return Formula("adam", numbers | {"shrink": 1 - lr * decay if self._decoupled else 1.0})


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
