"""The runtimes: a registered backend through `lstmcore.LSTM`, and peers through their own fastest native call."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, NamedTuple

from lstmcore_conformance.bench.jobs import LENGTHS_MODES, MODES, Job, Mode
from lstmcore_conformance.cases.case import Array, Data

Kind = Literal["backend", "peer"]


class Peer(NamedTuple):
    """A peer.

    Attributes
    ----------
    module
        The module of this package that runs it.
    label
        The name that readers know.
    packages
        What it needs.
    modes
        Those in which it takes part.
    lacks
        Outputs that its way to call has not, and that are not judged.
    """

    module: str
    label: str
    packages: tuple[str, ...]
    modes: tuple[Mode, ...] = ("inference", "training", "streaming")
    lacks: frozenset[str] = frozenset()


PEERS: Final[Mapping[str, Peer]] = {
    "torch": Peer("pytorch", "PyTorch", ("torch",)),
    "torch-packed": Peer("pytorch_lengths", "PyTorch packed", ("torch",), LENGTHS_MODES),
    "torch-padded": Peer("pytorch_lengths", "PyTorch padded", ("torch",), LENGTHS_MODES, frozenset(("c_n",))),
    "onnxruntime": Peer("onnx_runtime", "ONNX Runtime", ("onnxruntime", "onnx"), MODES),
    "jax": Peer("xla", "JAX", ("jax",)),
    "tutorial": Peer("tutorial", "tutorial", ()),
}


class Unsupported(Exception):  # noqa: N818  (it names an outcome)
    """The runtime does not do the job; the message says why."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that is ready to be timed.

    Attributes
    ----------
    call
        What is timed; it returns when all work is done.
    outputs
        Makes the values that are compared, by the same call: y, h_n and c_n, in training the gradients too.
    how
        Which call of the runtime it is.
    around
        What its users enter once, and not for every call.
    path, fallback
        Those of a kernel's receipt: which of its paths it takes, and why it is not the one that was asked for.
    """

    call: Callable[[], Any]
    outputs: Callable[[], Mapping[str, Array]]
    how: str
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    path: str = ""
    fallback: str | None = None


class Runtime(ABC):
    """A runtime in a process of its own."""

    @abstractmethod
    def __init__(self, name: str, threads: int) -> None:
        """Import the runtime and make it use that many threads."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that it computes with."""

    @abstractmethod
    def prepare(self, job: Job, data: Data) -> Prepared:
        """Build what the job needs.

        Raises
        ------
        Unsupported
            The runtime does not do it.
        """


def missing(name: str) -> str | None:
    """Return the first package that a peer needs and that is not installed, or None."""
    return next((package for package in PEERS[name].packages if find_spec(package) is None), None)


def make(kind: str, name: str, threads: int, *, resident: bool = False) -> Runtime:
    """Return the runtime, imported."""
    module = PEERS[name].module if kind == "peer" else "resident" if resident else "registered"
    found: Runtime = importlib.import_module(f"{__name__}.{module}").make(name, threads)
    return found
