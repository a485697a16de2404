"""PyTorch's dynamic int8 of ``torch.nn.LSTM``, with its default settings, behind the contract of a kernel.

The weights are rounded to int8 by PyTorch's own rule, so the values are not those of SPEC.md's formats. The backend is
there for the checks of rows and steps: docs/deviations/torch-int8.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

import torch

from lstmcore.backend import Array, Capabilities, Receipt
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import PRECISIONS, Precision
from lstmcore_torch.kernel import Packed, TorchBackend, TorchKernel

_HAS: Final = frozenset({"reverse"})


class DynamicInt8Kernel(TorchKernel):
    """One layer in one direction. The packed weights are a module of ``torch.ao.nn.quantized.dynamic``."""

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        reason = "quantize_dynamic with its defaults: one scale for x of all rows and steps, and one for h of all rows"
        return Receipt(self.backend.name, "cpu", self.precision.name, "quantized.dynamic.LSTM", reason)

    def _pack(self, parameters: Mapping[str, Array]) -> Any:
        module = torch.nn.LSTM(self.config.input_size, self.config.hidden_size)
        tensors = [tensor.detach() for tensor in super()._pack(parameters)]
        names = list(module.state_dict())  # PyTorch's second bias is 0, as in the backend torch
        module.load_state_dict(dict(zip(names, (*tensors, torch.zeros_like(tensors[-1])), strict=True)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch moves its quantisation to another package, which has no LSTM
            whole = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(module), {torch.nn.LSTM})
        return whole[0]

    def _call(self, weights: Any, inputs: tuple[torch.Tensor, ...], packed: Packed | None) -> tuple[torch.Tensor, ...]:
        """Run PyTorch's module and return y, h and c."""
        x, *state = inputs
        y, last = weights(x, tuple(state))
        return y, *last


class DynamicInt8Backend(TorchBackend):
    """Plain LSTMs, in float32 as far as the caller sees; no gradient."""

    name = "torch-int8"

    def capabilities(self) -> Capabilities:
        """Return the features above, in float32, and no derivative."""
        reasons = dict.fromkeys(FEATURES - _HAS, "left out of this backend, which is there for rows and steps")
        reasons |= dict.fromkeys(PRECISIONS.keys() - {"float32"}, "PyTorch's dynamic int8 takes float32")
        reasons |= dict.fromkeys(("backward", "jvp"), "rounded weights have no derivatives")
        return Capabilities("cpu", frozenset({"float32"}), _HAS, frozenset(), reasons)

    def _compile(self, config: LSTMConfig, precision: Precision) -> DynamicInt8Kernel:
        return DynamicInt8Kernel(self, config, precision)
