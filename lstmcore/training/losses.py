"""Losses: the mean over the valid entries, and its gradient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, ClassVar, Final

import numpy as np

from lstmcore.arrays import add_to_columns, as_number, as_real, cast_number, device_of, namespace_of, or_one
from lstmcore.scalars import finite
from lstmcore.training.entries import IGNORED as IGNORED
from lstmcore.training.entries import check_fit, flatten_entries, select_counted
from lstmcore.training.scaling import Standardizer
from lstmcore.validation import check_real

Array = Any


class Loss(ABC):
    """A mean over valid entries.

    `mask` (the shape of the entries, bool) is True if an entry counts; None counts all. What a masked entry holds,
    even NaN, does not matter, and its gradient is 0. No valid entry at all gives a loss and gradients of 0.
    A loss with `weighted` also takes weights >= 0 as mask; it is then the weighted mean.

    Arrays are of one library on one device, see `lstmcore.arrays`. NumPy's give a float; those of a device give an
    array () there, which nothing waits for.

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
    #: Whether `mask` may hold weights.
    weighted: ClassVar[bool] = False

    def target_size(self, outputs: int) -> int:
        """Return how many values a target has for a readout of `outputs` values."""
        return outputs

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make this loss, in JSON types."""
        return {}

    def scaling_of_outputs(self, scaling: Standardizer) -> Standardizer:
        """Return the standardisation of the outputs from that of the targets."""
        return scaling

    def point(self, outputs: Array) -> Array:
        """Return the forecast (..., K) of each target from outputs in its units."""
        return outputs

    def interval(self, outputs: Array, coverage: float) -> Array:
        """Return (..., 3, K): the lower end, the forecast and the upper end of intervals that hold a share `coverage`.

        Raises
        ------
        ValueError
            A loss without intervals, or without these.
        """
        raise ValueError(f"coverage: expected a model trained with a quantile or a gaussian loss; got {self.name}")

    @abstractmethod
    def __call__(self, outputs: Array, targets: Array, mask: Array | None = None) -> tuple[Any, Array]:
        """Return the loss and its gradient with respect to `outputs`."""


class CrossEntropy(Loss):
    """Cross-entropy of the softmax of `outputs` (..., K) with class numbers `targets` (...), fused with the softmax.

    Computed as ``logsumexp(z) - z[target]``, so that large logits neither overflow nor lose the small losses.
    An entry whose target is -100 does not count.

    Examples
    --------
    >>> value, gradient = CrossEntropy()(np.zeros((2, 4)), np.array([0, 3]))
    >>> round(value, 4), gradient.shape
    (1.3863, (2, 4))
    """

    name = "cross-entropy"
    of_linear = True
    weighted = True

    def __call__(self, outputs: Array, targets: Array, mask: Array | None = None) -> tuple[Any, Array]:
        """See `Loss`.

        Raises
        ------
        TypeError
            `outputs` are no floating-point numbers, or a target is no integer.
        ValueError
            Shapes that do not fit, or a target outside 0 to K - 1; on a device, where a look at the targets would wait
            for it, such a target gives a loss of NaN.
        """
        check_real("outputs", outputs, axes=1, kinds="f")
        check_real("targets", targets, kinds="iu")
        shape = outputs.shape[:-1]
        if targets.shape not in (shape, (math.prod(shape),)):
            raise ValueError(f"targets: expected shape {shape}, one for each entry; got {targets.shape}")
        xp, every, labels, weights = flatten_entries(outputs, targets, mask, 1)
        rows, z, labels, weights = select_counted(xp, every, labels[:, 0], weights)
        shifted = z - xp.max(z, axis=1, keepdims=True)
        e = xp.exp(shifted)
        total = xp.sum(e, axis=1)
        whole = or_one(as_number(xp.sum(weights)))
        own = shifted[xp.arange(z.shape[0], device=device_of(z)), labels]
        value = as_number(xp.sum(weights * (xp.log(total) - own))) / whole
        p = add_to_columns(e / total[:, None], labels, -1)
        gradient = p * xp.astype(weights[:, None], p.dtype) / cast_number(whole, p)
        if rows is not None:
            chosen, gradient = gradient, xp.zeros_like(every)
            gradient[rows] = chosen
        return value, xp.reshape(gradient, outputs.shape)


class MeanSquaredError(Loss):
    """``mean((outputs - targets)**2)`` over the valid entries and their K values; `targets` like `outputs` (..., K).

    Examples
    --------
    >>> value, gradient = MeanSquaredError()(np.array([[1.0], [4.0]]), np.array([[2.0], [2.0]]))
    >>> value, gradient.tolist()
    (2.5, [[-1.0], [2.0]])
    """

    name = "mean-squared-error"
    weighted = True

    def __call__(self, outputs: Array, targets: Array, mask: Array | None = None) -> tuple[Any, Array]:
        """See `Loss`.

        Raises
        ------
        TypeError
            `outputs` are no floating-point numbers, or `targets` no real ones.
        ValueError
            The shapes differ.
        """
        check_real("outputs", outputs, axes=1, kinds="f")
        check_real("targets", targets, axes=1)
        if targets.shape != outputs.shape:
            raise ValueError(f"targets: expected shape {outputs.shape} as the outputs; got {targets.shape}")
        xp, z, wanted, weights = flatten_entries(outputs, targets, mask, outputs.shape[-1])
        wanted, each = as_real(wanted, z), weights[:, None]
        count = or_one(as_number(xp.sum(weights)) * outputs.shape[-1])
        error = xp.where(each > 0, z - xp.where(each > 0, wanted, 0), 0)
        value = as_number(xp.sum(each * xp.square(error))) / count
        gradient = error * xp.astype(each, error.dtype) * cast_number(2.0 / count, error)
        return value, xp.reshape(xp.astype(gradient, outputs.dtype, copy=False), outputs.shape)


class QuantileLoss(Loss):
    """The pinball loss of several quantiles, which gives intervals; `targets` (..., K).

    The readout has an output for each quantile of each target, ``Q * K``: all targets of the first quantile first.

    Parameters
    ----------
    quantiles
        Ascending numbers in (0, 1).

    Examples
    --------
    >>> value, gradient = QuantileLoss((0.1, 0.9))(np.array([[1.0, 3.0]]), np.array([[2.0]]))
    >>> round(value, 6), gradient.round(6).tolist()
    (0.1, [[-0.05, 0.05]])
    """

    name = "quantile"
    weighted = True

    def __init__(self, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> None:
        self.quantiles = tuple(finite("quantiles", quantile) for quantile in quantiles)
        if not self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles: expected ascending numbers; got {quantiles!r}")
        if not 0 < self.quantiles[0] <= self.quantiles[-1] < 1:
            raise ValueError(f"quantiles: expected numbers between 0 and 1; got {quantiles!r}")

    def __call__(self, outputs: Array, targets: Array, mask: Array | None = None) -> tuple[Any, Array]:
        """See `Loss`. Raises TypeError and ValueError as `MeanSquaredError`."""
        width = _target_width(self, outputs, targets)
        xp, z, wanted, weights = flatten_entries(outputs, targets, mask, width)
        z, wanted = xp.reshape(z, (z.shape[0], len(self.quantiles), width)), as_real(wanted, z)[:, None, :]
        weights = weights[:, None, None]
        each = xp.asarray(self.quantiles, dtype=z.dtype, device=device_of(z))[:, None]
        valid, share = weights > 0, 1 / or_one(as_number(xp.sum(weights)) * math.prod(z.shape[1:]))
        error = xp.where(valid, xp.where(valid, wanted, 0) - z, 0)
        value = as_number(xp.sum(weights * xp.maximum(each * error, (each - 1) * error))) * share
        gradient = xp.where(error > 0, -each, 1 - each) * xp.astype(weights, z.dtype) * cast_number(share, z)
        return value, xp.reshape(xp.astype(gradient, outputs.dtype, copy=False), outputs.shape)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Loss`."""
        return {"quantiles": list(self.quantiles)}

    @property
    def middle(self) -> int:
        """The place of the quantile next to the median."""
        return int(np.argmin(np.abs(np.array(self.quantiles) - 0.5)))

    def target_size(self, outputs: int) -> int:
        """See `Loss`."""
        return _parts("quantile", outputs, len(self.quantiles))

    def scaling_of_outputs(self, scaling: Standardizer) -> Standardizer:
        """See `Loss`."""
        count = len(self.quantiles)
        return Standardizer(np.tile(scaling.mean, count), np.tile(scaling.scale, count))

    def point(self, outputs: Array) -> Array:
        """Return the quantile next to the median; see `Loss`."""
        return self._sorted(outputs)[..., self.middle, :]

    def interval(self, outputs: Array, coverage: float) -> Array:
        """See `Loss`; the two ends must be among the quantiles."""
        share = check_coverage(coverage)
        places = [np.flatnonzero(np.isclose(self.quantiles, 0.5 + sign * share / 2)) for sign in (-1, 1)]
        if not all(place.size for place in places):
            ends = [round(0.5 + sign * share / 2, 6) for sign in (-1, 1)]
            raise ValueError(f"coverage: expected the quantiles {ends[0]} and {ends[1]}; got {self.quantiles}")
        ordered, (low, high) = self._sorted(outputs), (int(place[0]) for place in places)
        ends = [ordered[..., place, :] for place in (low, self.middle, high)]
        return namespace_of(outputs=outputs).stack(ends, axis=-2)

    def _sorted(self, outputs: Array) -> Array:
        """Return (..., Q, K), ascending: quantiles that are learned apart may cross."""
        check_real("outputs", outputs, axes=1, kinds="f")
        xp, width = namespace_of(outputs=outputs), self.target_size(outputs.shape[-1])
        return xp.sort(xp.reshape(outputs, (*outputs.shape[:-1], -1, width)), axis=-2)


class GaussianLoss(Loss):
    """The negative log-likelihood of a normal distribution, which gives intervals; `targets` (..., K).

    The readout has ``2 * K`` outputs: the means of all targets, then the logarithms of their variances.

    Examples
    --------
    >>> value, gradient = GaussianLoss()(np.array([[1.0, 0.0]]), np.array([[3.0]]))
    >>> round(value, 4), gradient.tolist()
    (2.9189, [[-2.0, -1.5]])
    """

    name = "gaussian"
    weighted = True

    def __call__(self, outputs: Array, targets: Array, mask: Array | None = None) -> tuple[Any, Array]:
        """See `Loss`. Raises TypeError and ValueError as `MeanSquaredError`."""
        width = _target_width(self, outputs, targets)
        xp, z, wanted, weights = flatten_entries(outputs, targets, mask, width)
        wanted, each = as_real(wanted, z), weights[:, None]
        valid, share = each > 0, 1 / or_one(as_number(xp.sum(weights)) * width)
        mean, spread = xp.where(valid, z[:, :width], 0), xp.where(valid, z[:, width:], 0)
        error = xp.where(valid, wanted, 0) - mean
        scaled = error * xp.exp(-spread)
        value = as_number(xp.sum(each * (spread + error * scaled + math.log(2 * math.pi)))) * 0.5 * share
        gradient = xp.concat((-scaled, 0.5 * (1 - error * scaled)), axis=1) * each * share
        return value, xp.reshape(xp.astype(gradient, outputs.dtype, copy=False), outputs.shape)

    def target_size(self, outputs: int) -> int:
        """See `Loss`."""
        return _parts("gaussian", outputs, 2)

    def scaling_of_outputs(self, scaling: Standardizer) -> Standardizer:
        """Return the scaling of the means, and a shift of the logarithms of the variances; see `Loss`."""
        shift = 2 * np.log(np.where(scaling.scale > 0, scaling.scale, 1e-150))
        return Standardizer(np.append(scaling.mean, shift), np.append(scaling.scale, np.ones_like(shift)))

    def point(self, outputs: Array) -> Array:
        """See `Loss`."""
        check_real("outputs", outputs, axes=1, kinds="f")
        return outputs[..., : self.target_size(outputs.shape[-1])]

    def interval(self, outputs: Array, coverage: float) -> Array:
        """See `Loss`."""
        reach = NormalDist().inv_cdf(0.5 + check_coverage(coverage) / 2)
        mean = self.point(outputs)
        xp = namespace_of(outputs=outputs)
        width = reach * xp.exp(0.5 * outputs[..., mean.shape[-1] :])
        return xp.stack([mean - width, mean, mean + width], axis=-2)


def check_coverage(value: object) -> float:
    """Check a share in (0, 1) and return it as a float."""
    if not 0 < (share := finite("coverage", value)) < 1:
        raise ValueError(f"coverage: expected a share between 0 and 1; got {value!r}")
    return share


def _parts(name: str, outputs: int, count: int) -> int:
    if outputs % count:
        raise ValueError(
            f"readout output_size: expected a multiple of {count} for the loss {name}, {count} for each target; got "
            f"{outputs}"
        )
    return outputs // count


def _target_width(loss: Loss, outputs: Array, targets: Array) -> int:
    """Return how many values a target has, after a check of both arrays of a loss with intervals."""
    check_real("outputs", outputs, axes=1, kinds="f")
    check_real("targets", targets, axes=1, kinds="fiubO")
    width = loss.target_size(outputs.shape[-1])
    check_fit(outputs, targets, width)
    return width


LOSSES: Final = {loss.name: loss for loss in (CrossEntropy, MeanSquaredError, QuantileLoss, GaussianLoss)}


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


def loss_to_json(loss: Loss) -> Any:
    """Return the name of a loss, or a mapping with its settings."""
    return {"name": loss.name, **loss.settings} if loss.settings else loss.name


def loss_from_json(value: Any) -> Loss:
    """Return the loss that `loss_to_json` described.

    Raises
    ------
    TypeError, ValueError
        Not what `loss_to_json` gives.
    """
    if not isinstance(value, dict):
        return make_loss(value)
    loss = LOSSES.get(value.get("name", ""))
    if loss is not QuantileLoss or not isinstance(value.get("quantiles"), list) or len(value) != 2:
        raise ValueError(f"loss: expected name and quantiles; got {value!r}")
    return QuantileLoss(value["quantiles"])


def require_weighted(loss: Loss) -> None:
    """Raise ValueError unless `loss` takes weights."""
    if not loss.weighted:
        raise ValueError(
            f"sample_weight, class_weight: expected a loss that takes weights as its mask; got {loss.name}: set "
            "weighted = True in its class"
        )
