"""Right evaluations by another way, which a budget must let pass with room to spare.

Each is the naive evaluation with sums in another order or functions by another formula, as kernels have them.
The experiment in docs/conformance.md compares them with faults of precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore import reference
from lstmcore.backend import Array, Backend, Gradients, Masks, State, Tangents
from lstmcore.precision import Precision
from lstmcore_conformance.mutants import backend_of, edited
from lstmcore_conformance.oracle.naive import NaiveKernel


class PermutedKernel(NaiveKernel):
    """A kernel that permutes inputs, hidden units and outputs, so that every sum runs in another order."""

    def _order(self, size: int) -> Array:
        return np.random.default_rng(size).permutation(size)

    def _orders(self) -> tuple[Array, Array, Array, Array]:
        """Return the orders of inputs, hidden units, outputs and gate rows."""
        config = self.config
        units = self._order(config.hidden_size)
        outputs = self._order(config.output_size) if config.proj_size else units
        rows = np.concatenate([gate * config.hidden_size + units for gate in range(len(config.gates))])
        return self._order(config.input_size), units, outputs, rows

    def _permute(self, parameters: Mapping[str, Array], *, back: bool = False) -> dict[str, Array]:
        inputs, units, outputs, rows = self._orders()
        recurrent = units if self.config.recurrence == "cell" else outputs
        axes = {
            "weight_x": (rows, inputs),
            "weight_h": (rows, recurrent),
            "bias": (rows,),
            "weight_proj": (outputs, units),
            "peephole": (np.arange(len(self.config.peephole_gates)), units),
            "norm_gain_x": (rows,),
            "norm_gain_h": (rows,),
            "norm_gain_c": (units,),
            "norm_bias_c": (units,),
        }
        permuted = {}
        for name, array in parameters.items():
            order = tuple(np.argsort(axis) if back else axis for axis in axes[name])
            permuted[name] = array[np.ix_(*order)]
        return permuted

    def _pack(self, parameters: Mapping[str, Array]) -> Any:
        return super()._pack(self._permute(parameters))

    def _state_in(self, state: State | None) -> State | None:
        _, units, outputs, _ = self._orders()
        return None if state is None else State(state.h[:, outputs], state.c[:, units])

    def _state_out(self, state: State) -> State:
        _, units, outputs, _ = self._orders()
        return State(state.h[:, np.argsort(outputs)], state.c[:, np.argsort(units)])

    def _masks_in(self, masks: Masks | None) -> Masks | None:
        if masks is None:
            return None
        _, units, outputs, _ = self._orders()
        recurrent = units if self.config.recurrence == "cell" else outputs
        return Masks(
            *(
                None if mask is None else mask[..., order]
                for mask, order in zip(masks, (recurrent, outputs, units), strict=True)
            )
        )

    def _forward(
        self,
        weights: Any,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        out: Array | None,
        **options: Any,
    ) -> tuple[Array, State, Any]:
        inputs, _, outputs, _ = self._orders()
        y, last, tape = super()._forward(
            weights, x[:, :, inputs], self._state_in(state), lengths, self._masks_in(masks), out=None, **options
        )
        y = y[:, :, np.argsort(outputs)]
        if out is not None:
            out[...] = y
            y = out
        return y, self._state_out(last), tape

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        inputs, _, outputs, _ = self._orders()
        permuted = None if dy is None else dy[:, :, outputs]
        gradients = super()._backward(weights, saved, permuted, self._state_in(dstate))
        x = gradients.x[:, :, np.argsort(inputs)]
        return Gradients(x, self._state_out(gradients.state), self._permute(gradients.parameters, back=True))

    def _jvp(
        self, weights: Any, x: Array, state: State | None, tangents: Tangents, lengths: Any, masks: Masks | None
    ) -> Any:
        inputs, _, outputs, _ = self._orders()
        permuted = Tangents(
            None if tangents.x is None else tangents.x[:, :, inputs],
            self._state_in(tangents.state),
            None if tangents.parameters is None else self._permute(tangents.parameters),
        )
        pair = super()._jvp(weights, x[:, :, inputs], self._state_in(state), permuted, lengths, self._masks_in(masks))
        order = np.argsort(outputs)
        return tuple(result._replace(y=result.y[:, :, order], state=self._state_out(result.state)) for result in pair)


def _chunked(a: Array, b: Array) -> Array:
    """Return ``a @ b``, summed in chunks of three columns."""
    total = np.zeros((len(a), b.shape[1]), a.dtype)
    for start in range(0, a.shape[1], 3):
        total = total + a[:, start : start + 3] @ b[start : start + 3]
    return total


def _edited(*edits: tuple[str, str], **names: Any) -> Backend:
    module = edited(*edits)
    module.__dict__.update(names)
    return backend_of(type("VariantKernel", (NaiveKernel,), {"equations": module}))


def _sigmoid_of_both_signs(z: Array) -> Array:
    return np.exp(np.minimum(z, 0)) / (1 + np.exp(-np.abs(z)))


def _tanh_through_expm1(z: Array) -> Array:
    grown = np.expm1(-2 * np.abs(z))
    return np.copysign(grown / (2 + grown), z)


def _cut_off(array: Array, policy: Precision) -> Array:
    """Return operands of TF32 without their last bits, as tensor cores read numbers that are not rounded for them."""
    other = policy if policy.operands == "as they are" else replace(policy, operands="towards zero")
    return reference._operand(array, other)


def _functions() -> Backend:
    from lstmcore.activations import value

    def other(function: Any, z: Array) -> Array:
        if function.name == "sigmoid":
            return _sigmoid_of_both_signs(z)
        return _tanh_through_expm1(z) if function.name == "tanh" else value(function, z)

    return _edited(("# The parts ----", "# The parts: functions by other formulas ----"), value=other)


#: Name -> function that makes a right backend.
VARIANTS: Final[Mapping[str, Callable[[], Backend]]] = {
    "units and inputs in another order": lambda: backend_of(PermutedKernel),
    "products in chunks of three": lambda: _edited(
        (
            'step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T',
            '_chunked(step.x, p["weight_x"].T), _chunked(step.recurrent, p["weight_h"].T)',
        ),
        ('dx = from_x @ p["weight_x"]', 'dx = _chunked(from_x, p["weight_x"])'),
        ('from_h @ p["weight_h"])', '_chunked(from_h, p["weight_h"]))'),
        ('dp["weight_h"] += from_h.T @ step.recurrent', 'dp["weight_h"] += _chunked(from_h.T, step.recurrent)'),
        _chunked=_chunked,
    ),
    "recurrent product first": lambda: _edited(
        ("z = from_x + from_h\n", "z = from_h + from_x\n"), ('z = z + p["bias"]', 'z = (p["bias"] + from_h) + from_x')
    ),
    "sigmoid by exp, tanh by expm1": _functions,
    "operands of TF32 cut off": lambda: _edited(
        ("# The parts ----", "# The parts: operands cut off ----"), _operand=_cut_off
    ),
    "gradient of W summed over rows backwards": lambda: _edited(
        ('dp["weight_x"] += from_x.T @ step.x', 'dp["weight_x"] += (from_x[::-1].T @ step.x[::-1])')
    ),
}
