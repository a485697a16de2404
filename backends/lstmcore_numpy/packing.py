"""Packed parameters and the order of their rows.

Inside this backend a column is a row of the batch: states are (H, N), gates (G H, N), sequences (T, ., N) in the
order in which the steps run. So a gate is contiguous, and a step is one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig
from lstmcore.precision import Precision
from lstmcore_numpy import tuning

Array: TypeAlias = npt.NDArray[Any]

#: Parameters with one row for each gate and unit.
_GATE_PARAMETERS = ("weight_x", "weight_h", "bias", "norm_gain_x", "norm_gain_h")


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of the gates in (G H, .), and of x, r and the bias row in the operand of a step.

    Attributes
    ----------
    gates
        The gates in the order **g, i, f, o**, without a coupled one. So the sigmoid gates are adjacent.
    places
        Gate -> its rows.
    size
        G H.
    sigmoids
        Rows of all gates but g.
    early
        Rows of the gates that are computed before the cell: all but o.
    x, r
        Rows of x and of the recurrent input in the operand of a step.
    ones
        Rows of the operand that hold 1; the first one meets the bias, the others are padding.
    depth
        Rows of the operand.
    """

    gates: str
    places: dict[str, slice]
    size: int
    sigmoids: slice
    early: slice
    x: slice
    r: slice
    ones: slice
    depth: int

    @classmethod
    def of(cls, config: LSTMConfig) -> Layout:
        """Return the layout of `config`."""
        gates = "".join(gate for gate in "gifo" if gate in config.gates)
        hidden, inputs = config.hidden_size, config.input_size
        size, end = len(gates) * hidden, inputs + config.recurrent_size
        depth = -(-(end + config.bias) // tuning.OPERAND_MULTIPLE) * tuning.OPERAND_MULTIPLE
        return cls(
            gates,
            {gate: slice(k * hidden, (k + 1) * hidden) for k, gate in enumerate(gates)},
            size,
            sigmoids=slice(hidden, size),
            early=slice(0, size - hidden),
            x=slice(0, inputs),
            r=slice(inputs, end),
            ones=slice(end, depth),
            depth=depth,
        )

    def pack_rows(self, rows: Array, order: tuple[str, ...]) -> Array:
        """Return a copy of `rows` (G H, ...), stacked by `order`, in the packed order."""
        blocks = dict(zip(order, np.split(rows, len(order)), strict=True))
        return np.concatenate([blocks[gate] for gate in self.gates])

    def pack_parameters(self, parameters: Mapping[str, Array], order: tuple[str, ...]) -> dict[str, Array]:
        """Return those of `parameters` that have gates, as packed copies (G H, .)."""
        return {
            name: self.pack_rows(parameters[name].reshape(self.size, -1), order)
            for name in _GATE_PARAMETERS
            if name in parameters
        }

    def unpack_rows(self, rows: Array, order: tuple[str, ...]) -> Array:
        """Return a copy of packed `rows` (G H, ...), stacked by `order`."""
        return np.concatenate([rows[self.places[gate]] for gate in order])


def peephole_columns(config: LSTMConfig, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Return views (H, 1) of the rows of the peephole parameter by gate; empty without that parameter."""
    if "peephole" not in parameters:
        return {}
    return {gate: row[:, None] for gate, row in zip(config.peephole_gates, parameters["peephole"], strict=True)}


@dataclass(frozen=True, slots=True)
class Weights:
    """Packed parameters in the compute dtype; vectors are columns.

    ``forward`` (G H, K) is ``[W R b]``, padded with zeros; ``backward`` (I + R, G H) is ``[W R]`` transposed.
    ``forward``, ``bias``, ``gain_x``, ``gain_h`` and ``peephole`` (by gate) carry the sign of `CellPlan.folded`.
    The derivatives use the ones without it: ``backward``, ``raw_gain_x``, ``raw_gain_h`` and ``raw_peephole``.
    """

    forward: Array
    backward: Array
    bias: Array | None
    proj: Array | None
    peephole: dict[str, Array]
    raw_peephole: dict[str, Array]
    gain_x: Array | None
    gain_h: Array | None
    raw_gain_x: Array | None
    raw_gain_h: Array | None
    gain_c: Array | None
    shift_c: Array | None


def pack(config: LSTMConfig, precision: Precision, parameters: Mapping[str, Array], *, fold: bool) -> Weights:
    """Copy the parameters into the packed order.

    Parameters
    ----------
    config, precision
        Those of the kernel.
    parameters
        Arrays in the storage dtype, with the names and shapes of `LSTMConfig.parameter_shapes`.
    fold
        Whether the rows of the sigmoid gates change their sign.
    """
    layout = Layout.of(config)
    dtype = np.dtype(precision.compute)
    p = {name: np.array(array, dtype) for name, array in parameters.items()}
    stacked = layout.pack_parameters(p, config.gates)
    sign = np.ones((layout.size, 1), dtype)
    if fold:
        sign[layout.sigmoids] = -1
    # With layer norm the signs go into its gains: the mean that it takes off is that of W x itself.
    before_norm = np.ones_like(sign) if config.layer_norm else sign
    forward = np.zeros((layout.size, layout.depth), dtype)
    np.multiply(stacked["weight_x"], before_norm, out=forward[:, layout.x])
    np.multiply(stacked["weight_h"], before_norm, out=forward[:, layout.r])
    if config.bias:
        forward[:, layout.ones.start, None] = stacked["bias"] * sign
    raw_peephole = peephole_columns(config, p)

    def signed(name: str) -> Array | None:
        return stacked[name] * sign if name in stacked else None

    def column(name: str) -> Array | None:
        return p[name][:, None] if name in p else None

    return Weights(
        forward=forward,
        backward=np.concatenate([stacked["weight_x"].T, stacked["weight_h"].T]),
        bias=signed("bias"),
        proj=p.get("weight_proj"),
        peephole={gate: -row if fold else row for gate, row in raw_peephole.items()},
        raw_peephole=raw_peephole,
        gain_x=signed("norm_gain_x"),
        gain_h=signed("norm_gain_h"),
        raw_gain_x=stacked.get("norm_gain_x"),
        raw_gain_h=stacked.get("norm_gain_h"),
        gain_c=column("norm_gain_c"),
        shift_c=column("norm_bias_c"),
    )
