"""Cells of other libraries: arrays of one layer, in one direction or in both, in our terms and back.

Their names are those of the library, joined with slashes where they are nested: ``"hf/kernel"``. A library that adds a
constant to the forget gate in a run has it in no array: reading adds it to our bias, and writing takes it off again.
Bounds are arguments of a cell too, and in no array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
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
from lstmcore.validation import check_mapping

Array: TypeAlias = npt.NDArray[Any]

#: The switches that a cell's arrays hold, or that act in training alone.
_CARRIED: Final = frozenset({"input_size", "hidden_size", "bias", "reverse", "recurrent_dropout", "layer_norm_eps"})
_SAME_WORDS: Final = {gate: gate for gate in "ifgo"}
_COREML_WORDS: Final = {"i": "inputGate", "f": "forgetGate", "g": "blockInput", "o": "outputGate"}


class CellFormat(NamedTuple):
    """The arrays of a cell.

    `gates` are ours in the library's order. `x`, `h`, `bias` and `peephole` are names, with ``{}`` for each gate where
    every gate has arrays of its own, which `words` names; `h` is '' where x and h are rows of one matrix.
    `rows_are_gates` is False for matrices of shape (width, 4 H). `forget_bias` is what a run adds. `cell_clip` is the
    bound of c that a run has, 0 for none, and None for a cell without such an argument. `coupled` says that the arrays
    of the forget gate may be left out, `both` that a layer may have two directions, `below_zero` that a negative bound
    is none, `zero_is_none` that 0 is no bound; else 0 is the bound of `cell_clip`, and an error if that is none.
    """

    gates: str
    x: str
    h: str
    bias: str
    rows_are_gates: bool
    forget_bias: float = 0.0
    words: Mapping[str, str] = _SAME_WORDS
    peephole: str = ""
    projection: str = ""
    cell_clip: float | None = None
    coupled: bool = False
    both: bool = False
    below_zero: bool = False
    zero_is_none: bool = True


_TF1: Final = CellFormat("igfo", "kernel", "", "bias", False, 1.0, peephole="w_{}_diag", projection="projection/kernel")
_BLOCK: Final = CellFormat("igfo", "w", "", "b", False, 1.0, peephole="wc{}", cell_clip=3.0, below_zero=True)

FORMATS: Final[Mapping[str, CellFormat]] = {
    "equinox": CellFormat("ifgo", "weight_ih", "weight_hh", "bias", True),
    "flax": CellFormat("ifgo", "i{}/kernel", "h{}/kernel", "h{}/bias", False),
    "flax-nnx": CellFormat("ifgo", "dense_i/kernel", "dense_h/kernel", "dense_h/bias", False),
    "haiku": CellFormat("igfo", "w", "", "b", False, forget_bias=1.0),
    "tf1": _TF1._replace(cell_clip=0.0),
    "tf-block": _BLOCK,
    "tf-block-v2": _BLOCK._replace(gates="ifgo", forget_bias=0.0, cell_clip=0.0),
    "coreml": CellFormat(
        "ifgo",
        "{}WeightMatrix",
        "{}RecursionMatrix",
        "{}BiasVector",
        True,
        words=_COREML_WORDS,
        peephole="{}PeepholeVector",
        cell_clip=50.0,
        coupled=True,
        both=True,
        zero_is_none=False,  # cellClipThreshold has no presence: a file holds the same bytes for 0 and for none given
    ),
    "coreml-mil": CellFormat(
        "ifog",
        "weight_ih",
        "weight_hh",
        "bias",
        True,
        peephole="peephole",
        cell_clip=0.0,
        both=True,
        zero_is_none=False,
    ),
}


class _Told(NamedTuple):
    """What a cell is told beside its arrays; None for no bound."""

    forget_bias: float
    cell_clip: float | None
    proj_clip: float | None


def read_cell(
    name: str,
    arrays: Mapping[str, Any],
    backward: Mapping[str, Any] | None = None,
    *,
    forget_bias: float | None = None,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
) -> LayerFile:
    """Return one layer in our terms.

    Parameters
    ----------
    name
        A name of `FORMATS`: ``"equinox"`` for ``equinox.nn.LSTMCell``; ``"flax"`` for ``flax.linen.LSTMCell`` and
        ``OptimizedLSTMCell``, and for ``nnx.LSTMCell``, whose gate ``if_`` is written ``if``; ``"flax-nnx"`` for
        ``nnx.OptimizedLSTMCell``; ``"haiku"`` for ``haiku.LSTM``; ``"tf1"`` for BasicLSTMCell and LSTMCell, with
        peepholes and projection; ``"tf-block"`` and ``"tf-block-v2"`` for ``tf.raw_ops.BlockLSTM`` and
        ``BlockLSTMV2``; ``"coreml"`` for the layers uniDirectionalLSTM and biDirectionalLSTM, with each matrix as
        (H, width); ``"coreml-mil"`` for the operator lstm of Core ML's MIL.
    arrays
        The library's name -> array. Other names are an error. Peepholes, projection and bias may be left out, and in
        ``"coreml"`` the forget gate, where it is coupled to the input gate.
    backward
        The arrays of the second direction, under the same names, for the formats of Core ML.
    forget_bias
        What the library adds to the forget gate in a run; None takes its default: 1 for haiku, tf1 and tf-block.
    cell_clip, proj_clip
        The bounds that the cell is told, 0 for none; None takes the library's default, which is none but for
        tf-block (3) and coreml (50). In coreml 0 is the default too, and in coreml-mil an error. A negative one is none
        for tf-block and tf-block-v2, as TensorFlow defines it, and an error for others.

    Raises
    ------
    TypeError, ValueError
        An unknown format, missing or unknown names, other shapes and dtypes, a bound that the cell does not have,
        numbers that are not finite.

    Examples
    --------
    >>> arrays = {"w": np.zeros((8, 20), np.float32), "b": np.zeros(20, np.float32)}
    >>> read_cell("haiku", arrays).parameters["bias_l0"][5:10].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    form = _format(name)
    told = _told(form, forget_bias, cell_clip, proj_clip)
    if backward is not None and not form.both:
        raise ValueError(f"backward: expected None, since a cell of {name} has one direction; got arrays")
    given = (arrays,) if backward is None else (arrays, backward)
    each = [_read_direction(form, part, told) for part in given]
    configs = tuple(replace(config, reverse=place == 1) for place, (config, _) in enumerate(each))
    parameters = tuple(part for _, part in each)
    if len(dtypes := {str(array.dtype) for part in parameters for array in part.values()}) > 1:
        raise TypeError(f"arrays: expected one dtype; got {', '.join(sorted(dtypes))}")
    layer = PlacedLayer("lstm", configs, parameters)
    return join_layers([layer], get_precision(dtypes.pop()), batch_first=False)


def write_cell(
    name: str,
    content: LayerFile,
    *,
    backward: bool = False,
    forget_bias: float | None = None,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
) -> dict[str, Array]:
    """Return the arrays of a library's cell with the weights of one layer.

    Parameters
    ----------
    name
        A name of `FORMATS`.
    content
        One layer, in one direction, or in both for the formats of Core ML.
    backward
        Whether to return the arrays of the second direction.
    forget_bias, cell_clip, proj_clip
        What the cell will be told, as for `read_cell`. Bounds have to be those of the layer: no array holds them.

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
    told = _told(form, forget_bias, cell_clip, proj_clip)
    values = read_parameters(content.parameters, content.precision.storage)
    groups = list(split_layers(content._replace(parameters=values)))
    if len(groups) != 1 or len(groups[0]) != 1 or groups[0][0].kind != "lstm":
        raise ValueError(f"{name}: expected one layer in one direction; got {len(content.parameters)} arrays of more")
    layer = groups[0][0]
    if len(layer.configs) != 1 and not form.both:
        raise ValueError(f"{name}: expected one layer in one direction; got one in both")
    if backward and len(layer.configs) != 2:
        raise ValueError("backward: expected False for a layer in one direction; got True")
    config, own = layer.configs[backward], layer.parameters[backward]
    _check_carried(name, form, config, told)
    x, h = (
        dict(zip(config.gates, np.split(own[key], len(config.gates)), strict=True)) for key in ("weight_x", "weight_h")
    )
    blocks = {"x": x, "h": h}
    if not form.h:
        blocks = {"x": {gate: np.concatenate([x[gate], h[gate]], axis=1) for gate in x}}
    if config.bias:
        bias = dict(zip(config.gates, np.split(own["bias"], len(config.gates)), strict=True))
        if told.forget_bias and "f" in bias:
            bias["f"] = bias["f"] - bias["f"].dtype.type(told.forget_bias)
        blocks["bias"] = bias
    if config.peephole:
        blocks["peephole"] = dict(zip(config.peephole_gates, own["peephole"], strict=True))
    made: dict[str, Array] = {}
    for role, each in blocks.items():
        made |= _joined(form, getattr(form, role), each)
    return made | ({form.projection: np.ascontiguousarray(own["weight_proj"].T)} if config.proj_size else {})


def _told(form: CellFormat, forget_bias: float | None, cell_clip: float | None, proj_clip: float | None) -> _Told:
    """Return what a cell is told; raise ValueError for a bound that it does not have, or a negative one."""
    given = {"cell_clip": cell_clip, "proj_clip": proj_clip}
    defaults = {"cell_clip": form.cell_clip, "proj_clip": 0.0 if form.projection else None}
    for key, value in given.items():
        if value is not None and defaults[key] is None:
            raise ValueError(f"{key}: expected None, since the cell has no such argument; got {value!r}")
    bounds = {
        key: defaults[key] or 0.0 if value is None else _bound(form, key, finite(key, value))
        for key, value in given.items()
    }
    added = form.forget_bias if forget_bias is None else finite("forget_bias", forget_bias)
    return _Told(added, *(bound if bound > 0 else None for bound in bounds.values()))


def _bound(form: CellFormat, key: str, value: float) -> float:
    """Return the bound that a cell has if it is told `value`, not above 0 for none; raise ValueError for no bound."""
    if form.zero_is_none:
        allowed = "0 for none"
    else:
        allowed = f"0 for {form.cell_clip}" if form.cell_clip else "None for none"
        if not value and form.cell_clip:
            return form.cell_clip
    if (value < 0 and not form.below_zero) or (not value and not form.zero_is_none):
        raise ValueError(f"{key}: expected a bound above 0, or {allowed}; got {value}")
    return value


def _check_carried(name: str, form: CellFormat, config: LSTMConfig, told: _Told) -> None:
    """Raise ValueError for a switch that the cell does not have, or a bound that it is not told."""
    free = {"peephole"} if form.peephole else set()
    free |= {"proj_size"} if form.projection else set()
    if form.coupled and config.coupling == "forget_from_input":
        free.add("coupling")
    for item in fields(LSTMConfig):
        value = getattr(config, item.name)
        wanted = getattr(told, item.name) if item.name in ("cell_clip", "proj_clip") else item.default
        wanted = None if item.name == "proj_clip" and not config.proj_size else wanted
        if item.init and item.name not in _CARRIED | free and value != wanted:
            raise ValueError(f"{item.name}: expected {wanted}, as a cell of {name} has it; got {value}")
    if not config.bias and (told.forget_bias or not form.h):
        raise ValueError(f"bias: expected True, as a cell of {name} has it; got False")


def _read_direction(form: CellFormat, arrays: Mapping[str, Any], told: _Told) -> tuple[LSTMConfig, dict[str, Array]]:
    """Return the configuration and the parameters of one direction."""
    check_mapping("arrays", arrays)
    for key, array in arrays.items():
        if not isinstance(key, str):
            raise TypeError(f"arrays: expected names; got {key!r:.40}")
        check_floats(key, array)
    if (unknown := sorted(set(arrays) - {*_names(form)})) and form.x.format(form.words["i"]) in arrays:
        raise ValueError(f"arrays: expected {', '.join(_names(form))}; got {', '.join(unknown)}")
    coupled = form.coupled and not any(key.startswith(form.words["f"]) for key in arrays)
    gates = form.gates.replace("f", "") if coupled else form.gates
    x, bias, peepholes = (_blocks(form, role, arrays, gates) for role in ("x", "bias", "peephole"))
    hidden = x["i"].shape[0]
    projection = arrays.get(form.projection) if form.projection else None
    if projection is not None and (projection.ndim != 2 or len(projection) != hidden):
        raise ValueError(f"{form.projection}: expected shape ({hidden}, P); got {projection.shape}")
    output = hidden if projection is None else projection.shape[1]
    x, h = (x, _blocks(form, "h", arrays, gates)) if form.h else _split_rows(x, output)
    _check_blocks(form, hidden, output, (x, h, bias, peepholes))
    order = [gate for gate in "ifgo" if gate in gates]
    parameters = {"weight_x": np.concatenate([x[g] for g in order]), "weight_h": np.concatenate([h[g] for g in order])}
    if bias or (told.forget_bias and not coupled):
        parts = bias or {gate: np.zeros(hidden, x["i"].dtype) for gate in gates}
        if told.forget_bias and not coupled:
            parts["f"] = parts["f"] + parts["f"].dtype.type(told.forget_bias)
        parameters["bias"] = np.concatenate([parts[gate] for gate in order])
    if projection is not None:
        parameters["weight_proj"] = np.ascontiguousarray(projection.T)
    if peepholes:
        parameters["peephole"] = np.stack([peepholes[gate] for gate in order if gate != "g"])
    config = LSTMConfig(
        input_size=x["i"].shape[1],
        hidden_size=hidden,
        bias="bias" in parameters,
        proj_size=0 if projection is None else output,
        peephole=bool(peepholes),
        coupling="forget_from_input" if coupled else "none",
        cell_clip=told.cell_clip,
        proj_clip=None if projection is None else told.proj_clip,
    )
    return config, {key: parameters[key] for key in config.parameter_shapes}


def _split_rows(both: Mapping[str, Array], output: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the columns of x and those of h, for a matrix that has both."""
    x = {gate: part[:, :-output] for gate, part in both.items()}
    return x, {gate: part[:, -output:] for gate, part in both.items()}


def _check_blocks(form: CellFormat, hidden: int, output: int, parts: tuple[Mapping[str, Array], ...]) -> None:
    """Raise ValueError unless the arrays of all gates are those of an LSTM."""
    x, h, bias, peepholes = (list(part.values()) for part in parts)
    if any(block.shape != (hidden, output) for block in h) or not x[0].shape[1]:
        raise ValueError(f"{form.h or form.x}: expected shapes of an LSTM with H={hidden}; got {h[0].shape}")
    if len({block.shape for block in x}) > 1 or any(block.shape != (hidden,) for block in bias):
        raise ValueError(f"{form.bias}: expected the same H={hidden} in all arrays; got others")
    if any(block.shape != (hidden,) for block in peepholes):
        raise ValueError(f"{form.peephole}: expected H={hidden} numbers for each gate; got {peepholes[0].shape}")


def _format(name: str) -> CellFormat:
    if name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}; got {name!r}")
    return FORMATS[name]


def _gates_of(form: CellFormat, role: str) -> str:
    """Return the gates of a role, in the library's order; peepholes are always i, f, o."""
    return "ifo" if role == "peephole" else form.gates


def _names(form: CellFormat) -> Iterator[str]:
    """Yield the name of every array."""
    for role in ("x", "h", "bias", "peephole"):
        pattern = getattr(form, role)
        if pattern:
            yield from (pattern.format(form.words[g]) for g in (_gates_of(form, role) if "{}" in pattern else "i"))
    if form.projection:
        yield form.projection


def _blocks(form: CellFormat, role: str, arrays: Mapping[str, Array], gates: str) -> dict[str, Array]:
    """Return the array of each gate, with the gate's units first; none if a bias or the peepholes are left out."""
    pattern = getattr(form, role)
    wanted = [gate for gate in _gates_of(form, role) if gate in gates]
    names = [pattern.format(form.words[gate]) for gate in wanted] if "{}" in pattern else [pattern]
    if missing := [name for name in names if name not in arrays]:
        if role in ("bias", "peephole") and len(missing) == len(names):
            return {}
        raise ValueError(f"arrays: expected {missing[0]}; got {', '.join(sorted(arrays)) or 'none'}")
    found = [arrays[name] for name in names]
    ndim = 2 if role in ("x", "h") else 1
    if any(array.ndim != ndim for array in found):
        raise ValueError(f"{names[0]}: expected {ndim} axes; got {found[0].shape}")
    turned = [array if form.rows_are_gates else array.T for array in found]
    if "{}" not in pattern:
        if len(turned[0]) % len(wanted) or not len(turned[0]):
            raise ValueError(f"{names[0]}: expected {len(wanted)} H units; got {found[0].shape}")
        turned = np.split(turned[0], len(wanted))
    return {gate: np.ascontiguousarray(block) for gate, block in zip(wanted, turned, strict=True)}


def _joined(form: CellFormat, pattern: str, each: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays of a pattern, from those of the gates."""
    order = [gate for gate in (form.gates if len(each) > 3 or "g" in each else "ifo") if gate in each]
    if "{}" in pattern:
        found = {pattern.format(form.words[gate]): each[gate] for gate in order}
    else:
        found = {pattern: np.concatenate([each[gate] for gate in order])}
    return {name: np.ascontiguousarray(array if form.rows_are_gates else array.T) for name, array in found.items()}
