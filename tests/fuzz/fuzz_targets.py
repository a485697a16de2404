"""The public entries, each as a function of bytes. It returns, or raises an error that the entry documents."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import fuzz_commands as commands
import fuzz_files as files
import fuzz_parts as parts
from fuzz_kernels import KINDS, kernels, warm
from fuzz_source import Source

#: Backend -> the package that its kernels need.
_PACKAGES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("numba", "torch", "jax", "onnxruntime", "openvino"), ""), "cupy": "ml_dtypes",
}  # fmt: skip


def _nothing() -> None:
    """Prepare nothing."""


class Target(NamedTuple):
    """A function of an input.

    `cost` is about how many of the cheapest inputs take as long. `needs` are packages, and `programs` what has to be
    installed beside them. `prepare` does what takes long once in a process,
    such as compiling; one that `keeps` the code on the disk does it once for all. One that is `apart` runs in processes
    of its own, since its library is large.
    """

    run: Callable[[Source], None]
    cost: int = 1
    needs: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    prepare: Callable[[], None] = _nothing
    keeps: bool = False
    apart: bool = False


def _kernel(backend: str, cost: int) -> Target:
    needs = (_PACKAGES[backend] or backend,) if backend in _PACKAGES else ()
    return Target(
        functools.partial(kernels, backend),
        cost,
        needs,
        programs=("g++",) * (backend == "cupy"),
        prepare=functools.partial(warm, backend),
        keeps=backend in ("numba", "cupy"),
        apart=backend in ("torch", "jax", "onnxruntime", "openvino", "cupy"),
    )


_COSTS: Final[Mapping[str, int]] = {**dict.fromkeys(KINDS, 16), "reference": 32, "openvino": 64, "cupy": 64}

TARGETS: Final[Mapping[str, Target]] = {
    "constructor": Target(parts.constructor, 2),
    "calls": Target(parts.calls, 8),
    "chains": Target(parts.chains, 4),
    "layers": Target(parts.layers),
    "cells": Target(parts.cells, 8),
    **{f"kernels-{backend}": _kernel(backend, cost) for backend, cost in _COSTS.items()},
    "loaders": Target(files.loaders, 8),
    "csv": Target(files.csv, 8),
    "labelled": Target(files.labelled, 4),
    "frames": Target(parts.frames, 16, ("pandas", "narwhals")),
    "texts": Target(files.texts, 16),
    "reports": Target(files.reports, 16),
    "onnx": Target(files.onnx, 4, ("onnx",)),
    "onnx-files": Target(files.onnx_files, 8, ("onnx",)),
    "keras": Target(files.keras, 8, ("h5py",)),
    "openvino": Target(files.openvino, 8),
    "tflite": Target(files.tflite, 8, ("tflite",)),
    "torch-files": Target(files.torch_files, 8, ("torch",), apart=True),
    "parts": Target(parts.parts, 2),
    "losses": Target(parts.losses),
    "training": Target(parts.training, 16),
    "estimators": Target(parts.estimators, 32, ("sklearn",)),
    "plugins": Target(commands.plugins, 16),
    "command-line": Target(commands.command_line, 16),
    "command-files": Target(commands.command_files, 32),
}


def missing(name: str) -> str | None:
    """Return what a target needs and is not installed, or None."""
    import importlib.util

    target = TARGETS[name]
    lacking = [package for package in target.needs if importlib.util.find_spec(package) is None]
    lacking += [program for program in target.programs if shutil.which(program) is None]
    return ", ".join(lacking) or None
