"""An LSTM inside a PyTorch model: `LSTM` takes the place of ``torch.nn.LSTM``. Importing it imports PyTorch."""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401  (only whether it is there)
except ImportError:
    raise ImportError("lstmcore.torch: needs PyTorch: pip install 'lstmcore[torch]'") from None

from lstmcore.torch.module import LSTM

__all__ = ["LSTM"]
