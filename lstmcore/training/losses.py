"""Losses: the mean over the valid entries, and its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Loss(ABC):
    """A mean over valid entries.

    `mask` (the shape of the entries, bool) is True if an entry counts; None counts all. What a masked entry holds,
    even NaN, does not matter, and its gradient is 0. No valid entry at all gives a loss and gradients of 0.

    Examples
    --------
    >>> class MeanAbsoluteError(Loss):
    ...     name = "mean-absolute-error"
    ...     def __call__(self, outputs, targets, mask=None):
    ...         error = outputs - targets
    ...         return float(np.abs(error).mean()), np.sign(error) / error.size
    >>> MeanAbsoluteError()(np.array([[1.0], [4.0]]), np.array([[2.0], [2.0]]))[0]
    1.5
    """

    name: ClassVar[str]
    #: Whether `outputs` are the readout's values before its activation (which then must be softmax or none).
    of_linear: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, outputs: Array, targets: Array, mask: Array | None = None) -> tuple[float, Array]:
        """Return the loss and its gradient with respect to `outputs`."""


class CrossEntropy(Loss):
    """Cross-entropy of the softmax of `outputs` (..., K) with class numbers `targets` (...), fused with the softmax.

    Computed as ``logsumexp(z) - z[target]``, so that large logits neither overflow nor lose the small losses.

    Examples
    --------
    >>> value, gradient = CrossEntropy()(np.zeros((2, 4)), np.array([0, 3]))
    >>> round(value, 4), gradient.shape
    (1.3863, (2, 4))
    """

    name = "cross-entropy"
    of_linear = True

    def __call__(self, outputs: Array, targets: Array, mask: Array | None = None) -> tuple[float, Array]:
        """See `Loss`. Raises ValueError for a target outside 0 to K - 1, TypeError for one that is no integer."""
        classes = outputs.shape[-1]
        if targets.dtype.kind not in "iu":
            raise TypeError(f"targets: expected class numbers of an integer dtype; got {targets.dtype}")
        z, labels, valid = _entries(outputs.reshape(-1, classes), targets, outputs.shape[:-1], mask)
        wrong = np.flatnonzero(valid & ((labels < 0) | (labels >= classes)))
        if wrong.size:
            raise ValueError(f"targets: expected class numbers 0 to {classes - 1}; got {labels[wrong[0]]}")
        gradient = np.zeros_like(z)
        rows = np.flatnonzero(valid)
        if rows.size:
            chosen, labels = z[rows], labels[rows]
            shifted = chosen - chosen.max(axis=1, keepdims=True)
            e = np.exp(shifted)
            total = e.sum(axis=1)
            each = np.arange(rows.size)
            value = float(np.mean(np.log(total) - shifted[each, labels], dtype=np.float64))
            p = e / total[:, None]
            p[each, labels] -= 1
            gradient[rows] = p / rows.size
        else:
            value = 0.0
        return value, gradient.reshape(outputs.shape)


class MeanSquaredError(Loss):
    """``mean((outputs - targets)**2)`` over the valid entries and their K values; `targets` like `outputs` (..., K).

    Examples
    --------
    >>> value, gradient = MeanSquaredError()(np.array([[1.0], [4.0]]), np.array([[2.0], [2.0]]))
    >>> value, gradient.tolist()
    (2.5, [[-1.0], [2.0]])
    """

    name = "mean-squared-error"

    def __call__(self, outputs: Array, targets: Array, mask: Array | None = None) -> tuple[float, Array]:
        """See `Loss`. Raises ValueError if the shapes differ."""
        if targets.shape != outputs.shape:
            raise ValueError(f"targets: expected shape {outputs.shape} as the outputs; got {targets.shape}")
        width = outputs.shape[-1]
        z, wanted, valid = _entries(outputs.reshape(-1, width), targets.reshape(-1, width), outputs.shape[:-1], mask)
        count = int(valid.sum()) * width
        error = np.where(valid[:, None], z - np.where(valid[:, None], wanted, 0), 0)
        value = float(np.sum(np.square(error), dtype=np.float64)) / max(count, 1)
        return value, (error * (2.0 / max(count, 1))).astype(outputs.dtype).reshape(outputs.shape)


def _entries(
    outputs: Array, targets: Array, shape: tuple[int, ...], mask: Array | None
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    if targets.ndim == 1 or targets.shape == shape:
        targets = targets.reshape(-1)
    if len(targets) != len(outputs):
        raise ValueError(f"targets: expected one for each of the {len(outputs)} entries {shape}; got {len(targets)}")
    if mask is None:
        return outputs, targets, np.ones(len(outputs), np.bool_)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise ValueError(f"mask: expected bool of shape {shape}; got {mask.dtype} of {mask.shape}")
    return outputs, targets, mask.reshape(-1)


LOSSES: Final = {loss.name: loss for loss in (CrossEntropy, MeanSquaredError)}


def make_loss(loss: object) -> Loss:
    """Return the loss of a name, or `loss` itself.

    Raises
    ------
    ValueError
        A name that is not in `LOSSES`.
    TypeError
        Neither a name nor a `Loss`.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise TypeError(f"loss: expected one of {', '.join(LOSSES)}, or a Loss; got {type(loss).__name__}")
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}; got {loss!r}")
    return LOSSES[loss]()
