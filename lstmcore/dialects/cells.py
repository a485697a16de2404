"""Cells of Equinox, Flax, Haiku and TensorFlow 1: arrays of one layer in one direction, in our terms and back.

Their names are those of the library, joined with slashes where they are nested: ``"hf/kernel"``. A library that adds a
constant to the forget gate in a run has it in no array: reading adds it to our bias, and writing takes it off again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig
from lstmcore.dialects.arrays import check_floats
from lstmcore.dialects.layers import PlacedLayer, join_layers, split_layers
from lstmcore.layer_file import LayerFile
from lstmcore.precision import get_precision
from lstmcore.scalars import finite
from lstmcore.stored_weights import read_parameters

Array: TypeAlias = npt.NDArray[Any]

#: The switches that a cell's arrays hold, or that act in training alone.
_CARRIED: Final = frozenset({"input_size", "hidden_size", "bias", "recurrent_dropout", "layer_norm_eps"})


class CellFormat(NamedTuple):
    """The arrays of a cell.

    `gates` are ours in the library's order. `x`, `h` and `bias` are names, with ``{}`` for each gate where every gate
    has arrays of its own; `h` is '' where x and h are rows of one matrix. `rows_are_gates` is False for matrices of
    shape (width, 4 H). `forget_bias` is what a run adds.
    """

    gates: str
    x: str
    h: str
    bias: str
    rows_are_gates: bool
    forget_bias: float = 0.0


FORMATS: Final[Mapping[str, CellFormat]] = {
    "equinox": CellFormat("ifgo", "weight_ih", "weight_hh", "bias", True),
    "flax": CellFormat("ifgo", "i{}/kernel", "h{}/kernel", "h{}/bias", False),
    "flax-nnx": CellFormat("ifgo", "dense_i/kernel", "dense_h/kernel", "dense_h/bias", False),
    "haiku": CellFormat("igfo", "w", "", "b", False, forget_bias=1.0),
    "tf1": CellFormat("igfo", "kernel", "", "bias", False, forget_bias=1.0),
}


def read_cell(name: str, arrays: Mapping[str, Any], *, forget_bias: float | None = None) -> LayerFile:
    """Return one layer in one direction in our terms.

    Parameters
    ----------
    name
        A name of `FORMATS`: ``"equinox"`` for ``equinox.nn.LSTMCell``; ``"flax"`` for ``flax.linen.LSTMCell`` and
        ``OptimizedLSTMCell``, and for ``nnx.LSTMCell``, whose gate ``if_`` is written ``if``; ``"flax-nnx"`` for
        ``nnx.OptimizedLSTMCell``; ``"haiku"`` for ``haiku.LSTM``; ``"tf1"`` for BasicLSTMCell and LSTMCell.
    arrays
        The library's name -> array. Other names are an error.
    forget_bias
        What the library adds to the forget gate in a run; None takes its default, which is 1 for haiku and tf1.

    Raises
    ------
    TypeError, ValueError
        An unknown format, missing or unknown names, other shapes and dtypes, numbers that are not finite.

    Examples
    --------
    >>> arrays = {"w": np.zeros((8, 20), np.float32), "b": np.zeros(20, np.float32)}
    >>> read_cell("haiku", arrays).parameters["bias_l0"][5:10].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    form = _format(name)
    added = form.forget_bias if forget_bias is None else finite("forget_bias", forget_bias)
    for key, array in arrays.items():
        check_floats(key, array)
    matrices = {role: _blocks(form, getattr(form, role), arrays) for role in ("x", "h", "bias") if getattr(form, role)}
    if unknown := sorted(set(arrays) - {*_names(form)}):
        raise ValueError(f"arrays: expected {', '.join(_names(form))}; got {', '.join(unknown)}")
    x, bias = matrices["x"], matrices.get("bias")
    hidden = x[0].shape[0]
    if not form.h:
        x, matrices["h"] = [block[:, :-hidden] for block in x], [block[:, -hidden:] for block in x]
    h = matrices["h"]
    if any(block.shape != (hidden, hidden) for block in h) or not x[0].shape[1]:
        raise ValueError(f"{form.h or form.x}: expected shapes of an LSTM with H={hidden}; got {h[0].shape}")
    if len({block.shape for block in x}) > 1 or (bias and any(block.shape != (hidden,) for block in bias)):
        raise ValueError(f"{form.bias}: expected the same H={hidden} in all arrays; got others")
    parameters = {"weight_x": np.concatenate(x), "weight_h": np.concatenate(h)}
    if bias or added:
        parts = list(bias or [np.zeros(hidden, x[0].dtype)] * 4)
        parts[1] = parts[1] + parts[1].dtype.type(added) if added else parts[1]
        parameters["bias"] = np.concatenate(parts)
    if len(dtypes := {str(array.dtype) for array in parameters.values()}) > 1:
        raise TypeError(f"arrays: expected one dtype; got {', '.join(sorted(dtypes))}")
    config = LSTMConfig(input_size=x[0].shape[1], hidden_size=hidden, bias="bias" in parameters)
    layer = PlacedLayer("lstm", (config,), (parameters,))
    return join_layers([layer], get_precision(dtypes.pop()), batch_first=False)


def write_cell(name: str, content: LayerFile, *, forget_bias: float | None = None) -> dict[str, Array]:
    """Return the arrays of a library's cell with the weights of one layer in one direction.

    Raises
    ------
    ValueError
        More layers or directions, or a switch that the cell does not have, by name.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> sorted(write_cell("equinox", LSTM(3, 5, seed=0).content))
    ['bias', 'weight_hh', 'weight_ih']
    """
    form = _format(name)
    values = read_parameters(content.parameters, content.precision.storage)
    groups = list(split_layers(content._replace(parameters=values)))
    if len(groups) != 1 or len(groups[0]) != 1 or len(groups[0][0].configs) != 1 or groups[0][0].kind != "lstm":
        raise ValueError(f"{name}: expected one layer in one direction; got {len(content.parameters)} arrays of more")
    (config,), (own,) = groups[0][0].configs, groups[0][0].parameters
    for item in fields(LSTMConfig):
        value = getattr(config, item.name)
        if item.init and item.name not in _CARRIED and value != item.default:
            raise ValueError(f"{item.name}: expected {item.default}, as a cell of {name} has it; got {value}")
    if not config.bias and (form.forget_bias or not form.h):
        raise ValueError(f"bias: expected True, as a cell of {name} has it; got False")
    x, h = (np.split(own[key], 4) for key in ("weight_x", "weight_h"))
    if not form.h:
        x = [np.concatenate(pair, axis=1) for pair in zip(x, h, strict=True)]
    blocks = {"x": x, "h": h}
    if config.bias:
        parts = np.split(own["bias"], 4)
        added = form.forget_bias if forget_bias is None else finite("forget_bias", forget_bias)
        parts[1] = parts[1] - parts[1].dtype.type(added) if added else parts[1]
        blocks["bias"] = parts
    made: dict[str, Array] = {}
    for role, each in blocks.items():
        made |= _joined(form, getattr(form, role), each) if getattr(form, role) else {}
    return made


def _format(name: str) -> CellFormat:
    if name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}; got {name!r}")
    return FORMATS[name]


def _names(form: CellFormat) -> Iterator[str]:
    """Yield the name of every array."""
    for pattern in filter(None, (form.x, form.h, form.bias)):
        yield from (pattern.format(gate) for gate in (form.gates if "{}" in pattern else "i"))


def _blocks(form: CellFormat, pattern: str, arrays: Mapping[str, Array]) -> list[Array]:
    """Return the arrays of the gates i, f, g, o, with the gate's units first; none if a bias is left out."""
    names = [pattern.format(gate) for gate in form.gates] if "{}" in pattern else [pattern]
    if missing := [name for name in names if name not in arrays]:
        if pattern == form.bias and len(missing) == len(names):
            return []
        raise ValueError(f"arrays: expected {missing[0]}; got {', '.join(sorted(arrays)) or 'none'}")
    found = [arrays[name] for name in names]
    ndim = 1 if pattern == form.bias else 2
    if any(array.ndim != ndim for array in found):
        raise ValueError(f"{names[0]}: expected {ndim} axes; got {found[0].shape}")
    turned = [array if form.rows_are_gates else array.T for array in found]
    if len(turned) == 1:
        if len(turned[0]) % 4 or not len(turned[0]):
            raise ValueError(f"{names[0]}: expected 4 H units; got {found[0].shape}")
        turned = np.split(turned[0], 4)
    each = dict(zip(form.gates, turned, strict=True))
    return [np.ascontiguousarray(each[gate]) for gate in "ifgo"]


def _joined(form: CellFormat, pattern: str, blocks: list[Array]) -> dict[str, Array]:
    """Return the arrays of a pattern, from those of the gates i, f, g, o."""
    each = dict(zip("ifgo", blocks, strict=True))
    if "{}" in pattern:
        found = {pattern.format(gate): each[gate] for gate in form.gates}
    else:
        found = {pattern: np.concatenate([each[gate] for gate in form.gates])}
    return {name: np.ascontiguousarray(array if form.rows_are_gates else array.T) for name, array in found.items()}
