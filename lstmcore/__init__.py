"""LSTM networks without a deep-learning framework: a specification, a reference, and backends tested equal to it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lstmcore")
except PackageNotFoundError:  # the code of a repository that nobody installed
    __version__ = "0+unknown"

from lstmcore.backend import State, UnsupportedError
from lstmcore.chain import Chain
from lstmcore.chain_layers import Merge, Reversed
from lstmcore.config import Activation, LSTMConfig, StackConfig
from lstmcore.lstm import LSTM
from lstmcore.registry import backends

__all__ = [
    "LSTM",
    "Activation",
    "Chain",
    "LSTMConfig",
    "Merge",
    "Reversed",
    "StackConfig",
    "State",
    "UnsupportedError",
    "__version__",
    "backends",
]
