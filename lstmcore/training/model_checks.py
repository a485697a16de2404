"""Checks of the parts of a `SequenceModel`. Each error names the part."""

from __future__ import annotations

from typing import Any

from lstmcore.chain import Chain
from lstmcore.layers import AttentionPooling, Embedding
from lstmcore.lstm import LSTM
from lstmcore.training.model_file import ModelParts, check_ends, check_widths
from lstmcore.training.readout import DTYPES, Readout
from lstmcore.training.scaling import Standardizer


def check_model(parts: ModelParts) -> None:
    """Raise unless the parts of a model fit together.

    Parameters
    ----------
    parts
        Objects of any type in their places.

    Raises
    ------
    TypeError, ValueError
        The first part that does not fit.
    """
    lstm, readout = parts.lstm, parts.readout
    kinds: tuple[tuple[str, Any, Any, str], ...] = (
        ("lstm", lstm, LSTM | Chain, "an LSTM or a Chain"),
        ("readout", readout, Readout, "Readout"),
        ("embedding", parts.embedding, Embedding | None, "an Embedding or None"),
        ("pooling", parts.pooling, AttentionPooling | None, "an AttentionPooling or None"),
        *((name, value, Standardizer | None, "a Standardizer or None") for name, value in parts.scalings.items()),
    )
    for name, value, kind, expected in kinds:
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {expected}; got {type(value).__name__}")
    check_widths((lstm.input_size, lstm.output_width), readout)
    if lstm.precision.storage not in DTYPES:
        raise ValueError(f"lstm dtype: expected {' or '.join(DTYPES)} for a model; got {lstm.precision.name}")
    for name, layer in (("readout", readout), ("embedding", parts.embedding), ("pooling", parts.pooling)):
        if layer is not None and layer.dtype != lstm.precision.storage:
            raise ValueError(f"{name} dtype: expected {lstm.precision.storage} as the LSTM stores; got {layer.dtype}")
    columns = (lstm.input_size, readout.output_size)
    for (name, scaling), width in zip(parts.scalings.items(), columns, strict=True):
        if scaling is not None and scaling.mean.shape != (width,):
            raise ValueError(f"{name}: expected mean and scale of shape ({width},); got {scaling.mean.shape}")
    check_ends((lstm.input_size, lstm.output_width), parts.ends, readout, parts.scalings)
