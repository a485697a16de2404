"""Several processes that train one model: the protocol between them, its engines, and a launcher for one machine."""

from lstmcore.distributed.agreement import agree, share_text
from lstmcore.distributed.engine import Engine, EngineInfo
from lstmcore.distributed.finding import engines, get_engine
from lstmcore.distributed.launcher import launch
from lstmcore.ranks import DistributedError

__all__ = [
    "DistributedError",
    "Engine",
    "EngineInfo",
    "agree",
    "engines",
    "get_engine",
    "launch",
    "share_text",
]
