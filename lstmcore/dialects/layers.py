"""Layers that a format has one after another, put together as a stack or as the layers of a chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.layer_file import LayerFile, LayerSpec, in_dtype, layer_widths
from lstmcore.precision import Precision, numpy_dtype
from lstmcore.stored_weights import StoredMatrix

Array: TypeAlias = npt.NDArray[Any]


class PlacedLayer(NamedTuple):
    """One layer in its one or two directions, or a merge.

    `kind` is one of `layer_file.KINDS`. The configurations of a reversed layer are forward ones.
    """

    kind: str
    configs: tuple[LSTMConfig, ...] = ()
    parameters: tuple[Mapping[str, Any], ...] = ()
    mode: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """What the layers of a stack have in common: directions, H and P."""
        return (len(self.configs), self.configs[0].hidden_size, self.configs[0].output_size)


def join_layers(layers: Sequence[PlacedLayer], precision: Precision, *, batch_first: bool) -> LayerFile:
    """Return layers as a stack where one can hold them all, else as a chain; neighbours of the same sizes are one LSTM.

    Raises
    ------
    ValueError
        Layers that do not fit together; numbers that are not finite.
    """
    groups = groupby(layers, lambda layer: (layer.kind, layer.sizes if layer.kind == "lstm" else id(layer)))
    joined = [_join(list(group)) for _, group in groups]
    specs = [spec for spec, _ in joined]
    if len(specs) == 1 and specs[0].kind == "lstm" and specs[0].stack is not None:
        return checked_file(LayerFile(specs[0].stack, precision, batch_first, joined[0][1]))
    named = {f"{index}.{name}": value for index, (_, own) in enumerate(joined) for name, value in own.items()}
    return checked_file(LayerFile(specs, precision, batch_first, named))


def _join(layers: Sequence[PlacedLayer]) -> tuple[LayerSpec, dict[str, Array | StoredMatrix]]:
    if layers[0].kind == "merge":
        return LayerSpec("merge", None, layers[0].mode), {}
    stack = StackConfig(tuple(layer.configs for layer in layers))
    parts = [part for layer in layers for part in layer.parameters]
    named = zip(stack.suffixes, parts, strict=True)
    parameters = {name + suffix: value for suffix, part in named for name, value in part.items()}
    return LayerSpec(layers[0].kind, stack, None), parameters


def checked_file(content: LayerFile) -> LayerFile:
    """Return layers with their parameters in the storage dtype, after a check.

    Raises
    ------
    ValueError
        Layers that do not fit together; numbers that are not finite, or too large for the dtype.
    """
    layer_widths(content.layers)
    parameters = in_dtype(content.parameters, numpy_dtype(content.precision.storage))
    for name, value in parameters.items():
        if isinstance(value, StoredMatrix):
            value.check(name, f"the scale of {name}")
        elif not np.isfinite(value.astype(np.float32, copy=False) if value.dtype.itemsize < 4 else value).all():
            raise ValueError(f"parameters[{name!r}]: expected finite numbers; got NaN or infinity")
    return content._replace(parameters=parameters)


def split_layers(content: LayerFile) -> Iterator[list[PlacedLayer]]:
    """Yield the layers of each LSTM of a stack or a chain, and each merge alone: the inverse of `join_layers`."""
    layers = content.layers
    specs = [LayerSpec("lstm", layers, None)] if isinstance(layers, StackConfig) else layers
    for place, (kind, stack, mode) in enumerate(specs):
        if stack is None:
            yield [PlacedLayer("merge", mode=mode)]
            continue
        prefix, suffixes = "" if isinstance(layers, StackConfig) else f"{place}.", iter(stack.suffixes)
        yield [
            PlacedLayer(
                kind,
                configs,
                tuple(
                    {name: content.parameters[f"{prefix}{name}{end}"] for name in config.parameter_shapes}
                    for config, end in zip(configs, [next(suffixes) for _ in configs], strict=True)
                ),
            )
            for configs in stack.layers
        ]
