"""Attention over the steps of an LSTM."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstmcore import validation
from lstmcore.arrays import device_of, is_on_host, move_like
from lstmcore.layer_base import Array, Layer, LayerGradients
from lstmcore.scalars import integer


class _AttentionTape(NamedTuple):
    """The input, the queries (None for the input), the tanh of the sums (Q, S, N, H), and the weights (Q, S, N)."""

    x: Array
    queries: Array | None
    sums: Array
    weights: Array


class AttentionPooling(Layer):
    """Additive attention of each step over all steps: (T, N, C) to (T, N, C) (Bahdanau, Cho and Bengio 2014).

    ``y[t] = sum over s of softmax_s(v . tanh(W q[t] + U x[s])) x[s]``, where the queries q are x unless others are
    given: one query gives one vector a row. Parameters are ``W.weight`` and ``U.weight``
    (H, C) and ``v.weight`` (1, H), as three ``torch.nn.Linear`` without bias in a module.

    Parameters
    ----------
    input_size
        C.
    hidden_size
        H; None for C.
    dtype, seed
        As for `Layer`.

    Examples
    --------
    >>> AttentionPooling(6, seed=0)(np.ones((7, 4, 6), np.float32)).shape
    (7, 4, 6)
    """

    _on_devices = True

    def __init__(
        self, input_size: int, hidden_size: int | None = None, *, dtype: str = "float32", seed: int | None = None
    ) -> None:
        self.input_size = integer("input_size", input_size, 1)
        self.hidden_size = integer("hidden_size", input_size if hidden_size is None else hidden_size, 1)
        matrix = (self.hidden_size, self.input_size)
        shapes = {"W.weight": matrix, "U.weight": matrix, "v.weight": (1, self.hidden_size)}
        super().__init__(shapes, input_size, dtype, seed)

    def __call__(self, x: Array, lengths: Array | None = None, queries: Array | None = None) -> Array:
        """Return y as `record` does, without the tape."""
        return self.record(x, lengths, queries)[0]

    def record(
        self, x: Array, lengths: Array | None = None, queries: Array | None = None
    ) -> tuple[Array, _AttentionTape]:
        """Return y and the tape.

        Parameters
        ----------
        x
            (T, N, C).
        lengths
            (N,) whole numbers from 0 to T: steps past a row's end are not attended to, and y is 0 there.
        queries
            (Q, N, C), then y is (Q, N, C); 0 for a row of length 0. None takes x.
        """
        xp = self._check_place("x", x, (None, None, self.input_size), "(T, N, C)")
        steps, rows, _ = x.shape
        if queries is not None:
            self._check_place("queries", queries, (None, rows, self.input_size), "(Q, N, C)")
        w, u, v = self._matrices()
        ends = validation.check_lengths(lengths, steps, rows)
        asked = (x if queries is None else queries) @ w.T
        sums = asked[:, None, ...] + (x @ u.T)[None, ...]
        sums = np.tanh(sums, out=sums) if is_on_host(sums) else xp.tanh(sums)  # the largest array by far
        scores = sums @ v[0, ...]
        outside = None if ends is None else move_like(np.arange(steps)[:, None] >= ends, x)
        if outside is not None:
            never = xp.full((), -xp.inf, dtype=scores.dtype, device=device_of(x))
            scores = xp.where(outside[None, ...], never, scores)
        weights = _softmax(xp, scores) if steps else scores
        if outside is not None and queries is None:
            weights = weights * xp.astype(~outside, weights.dtype)[:, None, ...]
        return _by_row(xp, weights, x), _AttentionTape(x, queries, sums, weights)

    def _matrices(self) -> tuple[Array, Array, Array]:
        w, u, v = (self._parameters[f"{name}.weight"] for name in "WUv")
        return w, u, v

    def backward(self, tape: _AttentionTape, dy: Array) -> LayerGradients:
        """Return the gradients; see `Layer.backward`."""
        x, queries, sums, weights = tape
        xp = self._check_place("dy", dy, (x if queries is None else queries).shape, "(T, N, C)")
        w, u, v = self._matrices()
        dweights = xp.permute_dims(_each_row(xp, dy) @ xp.permute_dims(x, (1, 2, 0)), (1, 2, 0))
        dscores = weights * (dweights - xp.sum(weights * dweights, axis=1, keepdims=True))
        dsums = dscores[..., None] * v[0, ...] * (1 - sums * sums)
        dasked, dkeys = xp.sum(dsums, axis=1), xp.sum(dsums, axis=0)
        dx = _by_row(xp, xp.permute_dims(weights, (1, 0, 2)), dy) + dkeys @ u

        def flat(array: Array, width: int) -> Array:
            rows: Array = xp.reshape(array, (-1, width))
            return rows

        made = {
            "W.weight": flat(dasked, self.hidden_size).T @ flat(x if queries is None else queries, self.input_size),
            "U.weight": flat(dkeys, self.hidden_size).T @ flat(x, self.input_size),
            "v.weight": xp.reshape(dscores, (1, -1)) @ flat(sums, self.hidden_size),
        }
        dqueries = dasked @ w
        return LayerGradients(dx + dqueries, made) if queries is None else LayerGradients(dx, made, dqueries)


def _softmax(xp: Any, scores: Array) -> Array:
    """Return the softmax over axis 1, and zeros where all scores are -inf."""
    top, lowest = xp.max(scores, axis=1, keepdims=True), xp.finfo(scores.dtype).min
    weights = xp.exp(scores - xp.where(top < lowest, xp.full_like(top, lowest), top))
    total = xp.sum(weights, axis=1, keepdims=True)
    shares: Array = weights / xp.where(total == 0, xp.ones_like(total), total)
    return shares


def _each_row(xp: Any, array: Array) -> Array:
    """Return an array (T, N, C) as a matrix (T, C) for each row."""
    matrices: Array = xp.permute_dims(array, (1, 0, 2))
    return matrices


def _by_row(xp: Any, weights: Array, x: Array) -> Array:
    """Return the sums (T, N, C) over s of weights (T, S, N) times x (S, N, C)."""
    sums: Array = xp.permute_dims(xp.permute_dims(weights, (2, 0, 1)) @ _each_row(xp, x), (1, 0, 2))
    return sums
