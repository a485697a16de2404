"""Steps of optimizers, and norms of gradients, that a backend computes in few kernels on its device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Array = Any


class Formula(NamedTuple):
    """One step of an optimizer: a formula for each parameter p with its gradient g and its moments.

    Attributes
    ----------
    name
        ``"sgd"``: ``g += weight_decay * p;  m = momentum * m + g  (m = g if initial);  p -= lr * m``, and if nesterov
        ``p -= lr * (g + momentum * m)``; without momentum there is no m, and ``p -= lr * g``.
        ``"adam"``: ``g += weight_decay * p;  m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g * g;
        p = shrink * p - rate * m / (sqrt(v) / correction + eps)``.
    numbers
        The numbers of the formula by these names; `initial` and `nesterov` are 0 or 1.

    Examples
    --------
    >>> Formula("sgd", {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "initial": 1.0, "nesterov": 0.0}).name
    'sgd'
    """

    name: str
    numbers: Mapping[str, float]


class Updates(ABC):
    """Operations on many arrays of a device together; `LayerBackend.updates` returns them.

    Sizes of arrays differ, and their number is free. Nothing is copied to the host, which waits for nothing. The
    arrays given are those that `LayerBackend.locate` knows; they are not written to, but for the moments.

    Examples
    --------
    >>> class OnHost(Updates):
    ...     def refusal(self, formula, dtype):
    ...         return None if formula is None else f"{formula} is not written"
    ...     def move(self, formula, values, gradients, moments):
    ...         raise NotImplementedError  # never called: all formulas are refused
    ...     def norm(self, gradients):
    ...         return np.asarray(np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients)))
    ...     def clip(self, gradients, bound):
    ...         norm, flat = self.norm(gradients), np.concatenate([np.ravel(g) for g in gradients])
    ...         factor = bound / norm if bound < norm < np.inf else 1.0
    ...         return flat * flat.dtype.type(factor), norm
    >>> OnHost().clip([np.array([3.0]), np.array([4.0])], 2.5)[0].tolist()
    [1.5, 2.0]
    """

    @abstractmethod
    def refusal(self, formula: str | None, dtype: str) -> str | None:
        """Return why there is no kernel, or None.

        Parameters
        ----------
        formula
            `Formula.name`; None for `norm` and `clip`.
        dtype
            The dtype of all arrays, as NumPy names it.
        """

    @abstractmethod
    def move(
        self, formula: Formula, values: Sequence[Array], gradients: Sequence[Array], moments: Sequence[Array]
    ) -> Array:
        """Return the parameters after a step, one after the other in a fresh flat array.

        Parameters
        ----------
        formula
            The step.
        values, gradients
            An array for each parameter.
        moments
            m, or m and v: flat arrays of all parameters, which are changed in place. Empty if there is none.
        """

    @abstractmethod
    def norm(self, gradients: Sequence[Array]) -> Array:
        """Return the L2 norm of all numbers together, summed in float64, as an array () of float64."""

    @abstractmethod
    def clip(self, gradients: Sequence[Array], bound: float) -> tuple[Array, Array]:
        """Return the gradients one after the other in a fresh flat array, and `norm` of what they were.

        They are multiplied by ``bound / norm`` if the norm is finite and above `bound`.
        """
