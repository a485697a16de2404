"""Backends whose kernels of optimizer steps, norms and clipping have a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lstmcore.backend import Array, Backend, Formula, Updates
from lstmcore_conformance.mutants.construction import fault
from lstmcore_conformance.oracle.naive import NaiveBackend


class HostUpdates(Updates):
    """Right updates with NumPy, in the dtype of the arrays; a mutant overrides a part."""

    def refusal(self, formula: str | None, dtype: str) -> str | None:
        """Return None for SGD, Adam, norm and clipping in every dtype."""
        return None if formula in (None, "sgd", "adam") else f"{formula} is not written"

    def move(
        self, formula: Formula, values: Sequence[Array], gradients: Sequence[Array], moments: Sequence[Array]
    ) -> Array:
        """Return the parameters after a step; see `Updates.move`."""
        n, p, g = formula.numbers, joined(values), self.slopes(values, gradients)
        with np.errstate(all="ignore"):
            g = g + as_type(n["weight_decay"], p) * p
            return (self.adam if formula.name == "adam" else self.sgd)(n, p, g, moments)

    def slopes(self, values: Sequence[Array], gradients: Sequence[Array]) -> Array:
        """Return the gradients in one flat array."""
        return joined(gradients)

    def sgd(self, n: Mapping[str, float], p: Array, g: Array, moments: Sequence[Array]) -> Array:
        """Return the parameters after a step of stochastic gradient descent.

        Parameters
        ----------
        n, p, g, moments
            The numbers of the formula, flat parameters and gradients, and the momentum if there is one.
        """
        if moments:
            (m,) = moments
            m[...] = g if n["initial"] else as_type(n["momentum"], p) * m + g
            g = g + as_type(n["momentum"], p) * m if n["nesterov"] else m
        return p - as_type(n["lr"], p) * g

    def adam(self, n: Mapping[str, float], p: Array, g: Array, moments: Sequence[Array]) -> Array:
        """Return the parameters after a step of Adam; the arguments are those of `sgd`."""
        m, v = moments
        m[...] = as_type(n["beta1"], p) * m + as_type(1 - n["beta1"], p) * g
        v[...] = as_type(n["beta2"], p) * v + as_type(1 - n["beta2"], p) * g * g
        return as_type(n["shrink"], p) * p - as_type(n["rate"], p) * m / self.root(n, v)

    def root(self, n: Mapping[str, float], v: Array) -> Array:
        """Return the denominator of Adam."""
        return np.sqrt(v) / as_type(n["correction"], v) + as_type(n["eps"], v)

    def norm(self, gradients: Sequence[Array]) -> Array:
        """Return the norm of all numbers in float64."""
        return np.asarray(np.sqrt(np.sum(np.square(joined(gradients).astype(np.float64)))))

    def clip(self, gradients: Sequence[Array], bound: float) -> tuple[Array, Array]:
        """Return the gradients, scaled if their norm is finite and above `bound`, and the norm."""
        norm, flat = self.norm(gradients), joined(gradients)
        return (flat * as_type(bound / norm, flat) if np.isfinite(norm) and norm > bound else flat), norm


def joined(arrays: Sequence[Array]) -> Array:
    """Return a flat copy of all arrays."""
    return np.concatenate([np.ravel(array) for array in arrays])


def as_type(number: float, like: Array) -> Array:
    """Return a number in the dtype of an array."""
    return np.asarray(number).astype(like.dtype)


def backend_with(updates: type[Updates]) -> Backend:
    """Return the naive backend with updates."""

    class B(NaiveBackend):
        def updates(self) -> Updates:
            return updates()

    return B()


@fault("updates.eps_in_root", "Adam adds eps below the root", "updates.steps")
def _eps_in_root() -> Backend:
    class U(HostUpdates):
        def root(self, n: Mapping[str, float], v: Array) -> Array:
            return np.sqrt(v + as_type(n["eps"], v)) / as_type(n["correction"], v)

    return backend_with(U)


@fault("updates.plain_momentum", "Nesterov's step is that of plain momentum", "updates.steps")
def _plain_momentum() -> Backend:
    class U(HostUpdates):
        def sgd(self, n: Mapping[str, float], p: Array, g: Array, moments: Sequence[Array]) -> Array:
            return super().sgd({**n, "nesterov": 0.0}, p, g, moments)

    return backend_with(U)


@fault("updates.initial_ignored", "the first momentum is not the gradient", "updates.steps")
def _initial_ignored() -> Backend:
    class U(HostUpdates):
        def sgd(self, n: Mapping[str, float], p: Array, g: Array, moments: Sequence[Array]) -> Array:
            return super().sgd({**n, "initial": 0.0}, p, g, moments)

    return backend_with(U)


@fault("updates.decoupled", "the decay of weights is not in the moments of Adam", "updates.steps")
def _decoupled() -> Backend:
    class U(HostUpdates):
        def move(
            self, formula: Formula, values: Sequence[Array], gradients: Sequence[Array], moments: Sequence[Array]
        ) -> Array:
            decay = formula.numbers["weight_decay"] if formula.name == "adam" else 0.0
            kept = formula._replace(
                numbers={**formula.numbers, "weight_decay": formula.numbers["weight_decay"] - decay}
            )
            p = joined(values)
            return super().move(kept, values, gradients, moments) - as_type(decay * 0.1, p) * p

    return backend_with(U)


@fault("updates.rest", "numbers of an array beyond a multiple of 4,096 stay", "updates.steps")
def _rest() -> Backend:
    class U(HostUpdates):
        def slopes(self, values: Sequence[Array], gradients: Sequence[Array]) -> Array:
            kept = [np.array(array) for array in gradients]
            for array in kept:
                if array.size > 4096:
                    array.reshape(-1)[array.size - array.size % 4096 :] = 0
            return joined(kept)

    return backend_with(U)


@fault("updates.many", "arrays beyond the 96th have the gradients of the first ones", "updates.steps")
def _many() -> Backend:
    class U(HostUpdates):
        def slopes(self, values: Sequence[Array], gradients: Sequence[Array]) -> Array:
            return joined([gradients[number % 96] for number in range(len(gradients))])

    return backend_with(U)


@fault("updates.written", "a step writes to its gradients", "updates.steps")
def _written() -> Backend:
    class U(HostUpdates):
        def slopes(self, values: Sequence[Array], gradients: Sequence[Array]) -> Array:
            flat = joined(gradients)
            for array in gradients:
                array[...] = 0
            return flat

    return backend_with(U)


@fault("updates.norm_of_all_but_one", "the norm leaves out the last number", "updates.clip")
def _norm_of_all_but_one() -> Backend:
    class U(HostUpdates):
        def norm(self, gradients: Sequence[Array]) -> Array:
            return super().norm([joined(gradients)[:-1]])

    return backend_with(U)


@fault("updates.always_scaled", "gradients below the bound are scaled up", "updates.clip")
def _always_scaled() -> Backend:
    class U(HostUpdates):
        def clip(self, gradients: Sequence[Array], bound: float) -> tuple[Array, Array]:
            norm, flat = self.norm(gradients), joined(gradients)
            return flat * as_type(bound / norm if np.isfinite(norm) else 1.0, flat), norm

    return backend_with(U)


@fault("updates.scaled_by_nan", "gradients are scaled by a norm that is not finite", "updates.clip")
def _scaled_by_nan() -> Backend:
    class U(HostUpdates):
        def clip(self, gradients: Sequence[Array], bound: float) -> tuple[Array, Array]:
            norm, flat = self.norm(gradients), joined(gradients)
            return (flat if norm <= bound else flat * as_type(bound / norm, flat)), norm

    return backend_with(U)


@fault("updates.norm_in_float32", "the norm is summed in float32", "updates.clip")
def _norm_in_float32() -> Backend:
    class U(HostUpdates):
        def norm(self, gradients: Sequence[Array]) -> Array:
            return np.asarray(np.sqrt(np.sum(np.square(joined(gradients)), dtype=np.float32)), np.float64)

    return backend_with(U)
