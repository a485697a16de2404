"""An LSTM inside a PyTorch model: `LSTM` takes the place of ``torch.nn.LSTM``. Importing it imports PyTorch."""

from __future__ import annotations

from lstmcore.extras import installing

try:
    import torch as _torch  # noqa: F401  (only whether it is there)
except ImportError:
    raise ImportError(f"lstmcore.torch: needs PyTorch: {installing('torch')}") from None

from lstmcore.torch.module import LSTM

__all__ = ["LSTM"]
