"""Backends with a fault, as text of a plug-in: the benchmark runs them in processes of their own."""

from __future__ import annotations

from typing import Final

_PLUGIN: Final = """
{imports}import os
from dataclasses import replace
from lstmcore.hookspecs import BackendInfo, hookimpl
import numpy as np
from lstmcore.backend import State
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel


class Planted(NaiveKernel):
{body}


class Backend(NaiveBackend):
    name = {name!r}
    kernel = Planted
{backend}

@hookimpl
def lstmcore_backend_info():
    return BackendInfo({name!r}, "1", "a test", lambda: None)


@hookimpl
def lstmcore_backend():
    return Backend()
"""

_BODIES: Final = {
    "right": "    pass",
    "stepping": """
    def _forward(self, *args, **more):
        stepping.take(1_000_000)
        return super()._forward(*args, **more)
""",
    "slow": """
    def _forward(self, *args, **more):
        stepping.take(6_000_000)
        return super()._forward(*args, **more)
""",
    "twice": """
    def _forward(self, *args, **more):
        super()._forward(*args, **more)
        return super()._forward(*args, **more)
""",
    "wrong": """
    def _forward(self, *args, **more):
        y, state, tape = super()._forward(*args, **more)
        y[-1, -1, -1] += 0.001
        return y, state, tape
""",
    "wrong_later": """
    calls = 0

    def _forward(self, *args, **more):
        Planted.calls += 1
        y, state, tape = super()._forward(*args, **more)
        y[-1, -1, -1] += 0.001 * (Planted.calls > 4)
        return y, state, tape
""",
    "wrong_gradient": """
    def _backward(self, *args):
        found = super()._backward(*args)
        found.parameters["weight_h"][0, 0] += 0.01
        return found
""",
    "away": """
    def _forward(self, weights, x, *args, **more):
        if type(x) is np.ndarray:
            raise TypeError("x is not on the device")
        y, state, tape = super()._forward(weights, x, *args, **more)
        return y.view(Away), State(*(part.view(Away) for part in state)), tape


class Away(np.ndarray):
    \"""An array that is on a device of its own.\"""
""",
    "crashing_at_peephole": """
    def _forward(self, *args, **more):
        if self.config.peephole:
            os._exit(7)
        return super()._forward(*args, **more)
""",
    "crashing": """
    def _forward(self, *args, **more):
        if args[1].shape[1] == 2:
            os._exit(7)
        return super()._forward(*args, **more)
""",
}

#: Methods of the backend.
_BACKENDS: Final = {
    "away": """
    def capabilities(self):
        return replace(super().capabilities(), device="away")

    def to_device(self, array):
        return np.array(array).view(Away)

    def to_host(self, array):
        return np.asarray(array)
""",
}


def planted(kind: str) -> str:
    """The text of a plug-in that registers a backend of that name with that fault."""
    imports = "import stepping\n" if "stepping." in _BODIES[kind] else ""
    return _PLUGIN.format(imports=imports, name=kind, body=_BODIES[kind], backend=_BACKENDS.get(kind, ""))
