"""Properties of one layer in one direction that every pass reads: layout, dtypes, activations of the gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmcore.backend import Masks
from lstmcore.config import SIGMOID, TANH, Activation, LSTMConfig
from lstmcore.precision import Precision
from lstmcore.stored_weights import INT8A16
from lstmcore_numpy import tuning
from lstmcore_numpy.packing import Array, Layout


@dataclass(frozen=True, slots=True)
class CellPlan:
    """The configuration, its layout and its dtypes.

    Attributes
    ----------
    config, layout
        The configuration and the order of its packed rows.
    dtype, storage
        The compute dtype, and the dtype of x, y, h and parameters.
    folded
        Whether the sigmoid is ``1 / (1 + exp(-z))`` with the sign folded into the weights.
    rounds
        Whether each h is rounded to the storage dtype.
    integers
        Whether activations are rounded to int16 where they meet a weight.
    """

    config: LSTMConfig
    layout: Layout
    dtype: np.dtype[Any]
    storage: np.dtype[Any]
    folded: bool
    rounds: bool
    integers: bool

    @classmethod
    def of(cls, config: LSTMConfig, precision: Precision) -> CellPlan:
        """Return the plan of a configuration in a precision."""
        dtype, storage = np.dtype(precision.compute), np.dtype(precision.storage)
        folded = config.gate_activation == SIGMOID and config.cell_activation == TANH and config.gate_clip is None
        integers = precision.weights == INT8A16
        return cls(config, Layout.of(config), dtype, storage, folded, rounds=dtype != storage, integers=integers)

    def splits_input(self, steps: int, batch: int) -> bool:
        """Return whether ``W x`` is one matrix product for many steps, apart from ``R r``.

        If not, each step has one product ``[W R b] [x; r; 1]``. That reads W again at every step, which costs time
        with one row, or with an input much wider than the state. A layer norm needs the two products apart.
        """
        config = self.config
        wide = config.input_size > tuning.WIDE_INPUT * config.recurrent_size
        return config.layer_norm or (steps > 1 and (batch == 1 or wide))

    def activation(self, gate: str) -> Activation:
        """Return the activation of a gate."""
        return self.config.cell_activation if gate == "g" else self.config.gate_activation

    def input_and_forget(self, gates: Array) -> tuple[Array, Array]:
        """Return the gates i and f (H, N) of packed gates (G H, N); a coupled one is a fresh array."""
        coupling, places = self.config.coupling, self.layout.places
        if coupling == "forget_from_input":
            i = gates[places["i"]]
            return i, 1 - i
        f = gates[places["f"]]
        return (1 - f if coupling == "input_from_forget" else gates[places["i"]]), f

    def keep_hidden(self, masks: Masks, t: int) -> Any:
        """Return the zoneout factor of the old h at step `t`: the rate, or the mask (P, N)."""
        return self.config.zoneout_hidden if masks.zoneout_hidden is None else masks.zoneout_hidden[t]

    def keep_cell(self, masks: Masks, t: int) -> Any:
        """Return the zoneout factor of the old c at step `t`: the rate, or the mask (H, N)."""
        return self.config.zoneout_cell if masks.zoneout_cell is None else masks.zoneout_cell[t]
