"""The contract of a backend: `Backend` makes a `Kernel` for a configuration and a precision.

A backend writes `Backend.capabilities` and `Backend._compile`, and the methods of `Kernel` with a leading underscore.
The parts of the contract are all here under one name: `lstmcore.kernels` has the kernels, `lstmcore.containers` what
goes in and comes out, `lstmcore.declaration` what a backend declares, `lstmcore.updates` what it may do for optimizers.
"""

from __future__ import annotations

from typing import final

from lstmcore.config import StackConfig
from lstmcore.containers import (
    Array,
    Forward,
    Gradients,
    Masks,
    StackMasks,
    State,
    Tangents,
    Tape,
    Weights,
)
from lstmcore.declaration import DERIVATIVES, Capabilities, Receipt, UnsupportedError
from lstmcore.kernels import Kernel, LayerBackend, StackKernel
from lstmcore.precision import Precision, get_precision
from lstmcore.stack import ComposedStack
from lstmcore.updates import Formula, Updates

__all__ = [
    "DERIVATIVES",
    "Array",
    "Backend",
    "Capabilities",
    "Formula",
    "Forward",
    "Gradients",
    "Kernel",
    "Masks",
    "Receipt",
    "StackKernel",
    "StackMasks",
    "State",
    "Tangents",
    "Tape",
    "UnsupportedError",
    "Updates",
    "Weights",
]


class Backend(LayerBackend):
    """Makes kernels. One object per process and name; cheap to make.

    Examples
    --------
    >>> from lstmcore.registry import get_backend
    >>> backend = get_backend("numpy")
    >>> backend.name, backend.capabilities().device, "backward" in backend.capabilities().derivatives
    ('numpy', 'cpu', True)
    """

    @final
    def compile_stack(self, stack: StackConfig, precision: Precision | str) -> StackKernel:
        """Return the kernel of all layers and directions. Raises as `compile`."""
        precision = get_precision(precision)
        self._refuse(stack.configs, precision)
        return self._compile_stack(stack, precision)

    def warm(self, precision: Precision | str) -> str:
        """Compile ahead what first calls would compile, and return what that was in a few words.

        The default compiles nothing and returns an empty text. For a backend that keeps compiled code on the disk.
        """
        return ""

    def _compile_stack(self, stack: StackConfig, precision: Precision) -> StackKernel:
        """Make the stack's kernel. The default composes the kernels of `_compile`."""
        return ComposedStack(self, stack, precision)
