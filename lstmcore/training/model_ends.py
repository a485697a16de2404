"""What an ONNX file of a model has around its layers."""

from __future__ import annotations

from lstmcore.dialects.onnx_graph import OutputPart
from lstmcore.dialects.onnx_writer import ModelEnds
from lstmcore.training.losses import GaussianLoss, Loss, QuantileLoss
from lstmcore.training.model_file import ModelParts


def ends_of(parts: ModelParts) -> ModelEnds:
    """Return the readout, the standardisations and the forecast of a model.

    Raises
    ------
    ValueError
        Attention pooling; a loss with a forecast that is neither the outputs nor a part of them.
    """
    inputs, targets = (
        None if scaling is None else (scaling.mean, scaling.scale)
        for scaling in (parts.scalings[name] for name in ("input_scaling", "target_scaling"))
    )
    layer = parts.readout
    weight, bias = layer.parameters["weight"], layer.parameters["bias"]
    part = _part_of(parts.loss)
    if parts.pooling is not None:
        raise ValueError("pooling: expected a model without attention pooling for ONNX; got one with it")
    table = None if parts.embedding is None else parts.embedding.parameters["weight"]
    return ModelEnds(weight, bias, layer.activation, layer.x_size, layer.steps, inputs, targets, part, table)


def _part_of(loss: Loss | None) -> OutputPart | None:
    """Return which part of the outputs `Loss.point` takes."""
    if loss is None or type(loss).point is Loss.point:
        return None
    if isinstance(loss, QuantileLoss) and type(loss).point is QuantileLoss.point:
        return OutputPart(len(loss.quantiles), loss.middle, ascending=True)
    if isinstance(loss, GaussianLoss) and type(loss).point is GaussianLoss.point:
        return OutputPart(2, 0, ascending=False)
    raise ValueError(f"loss: expected quantile, gaussian or one without a forecast of its own; got {loss.name}")
