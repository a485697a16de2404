"""A training on a device: parameters and moments go there once, and come back at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmcore.arrays import is_on_host, move_like, to_host
from lstmcore.kernels import LayerBackend
from lstmcore.scalars import integer
from lstmcore.training.model import SequenceModel
from lstmcore.training.optimizers import Optimizer

Array = Any


def check_device(device: Any, model: SequenceModel, ranks: int) -> str | None:
    """Return the argument `device` of a trainer: None, or the device of the backend of each LSTM of the model.

    Parameters
    ----------
    device
        The argument: ``"cuda:0"``, or ``"cuda"`` for that which the backend computes on.
    model
        The model.
    ranks
        How many processes train it.

    Raises
    ------
    TypeError
        No text.
    ValueError
        Another device than that of each LSTM's backend, or a part of the model, or the ranks, that need the host.
    """
    if device is None:
        return None
    if not isinstance(device, str):
        raise TypeError(f"device: expected the name of a device, such as 'cuda:0', or None; got {device!r}")
    if ranks > 1:
        raise ValueError(f"device: expected None with several ranks, which exchange arrays of the host; got {device!r}")
    _check_backends(device, model)
    return device


def _check_backends(device: str, model: SequenceModel) -> None:
    """Raise ValueError unless every LSTM of the model computes on the device, and all on the same one."""
    first = model.lstm.backend.capabilities().device
    for lstm in getattr(model.lstm, "lstms", (model.lstm,)):
        backend = lstm.backend
        name = backend.capabilities().device
        if is_on_host(_made_by(backend, model)):
            raise ValueError(
                f"device: expected None, since backend {backend.name!r} of the model computes on the host; got "
                f"{device!r}: make each LSTM with backend='cupy'"
            )
        if name != first:
            raise ValueError(
                f"device: expected None, since the LSTMs of the model compute on {first} and {name}; got {device!r}: "
                "make each LSTM with a backend of one device"
            )
        if device not in (name, name.partition(":")[0]):
            raise ValueError(f"device: expected {name!r}, where backend {backend.name!r} computes; got {device!r}")


def check_placing(device: Any, resident_bytes: Any, model: SequenceModel, ranks: int) -> tuple[str | None, int | None]:
    """Return the arguments `device` and `resident_bytes` of a trainer.

    Parameters
    ----------
    device, model, ranks
        As for `check_device`.
    resident_bytes
        The argument.

    Raises
    ------
    TypeError, ValueError
        As `check_device`; no whole number of bytes, one below 0, or one without a device.
    """
    device = check_device(device, model, ranks)
    if resident_bytes is None:
        return device, None
    if device is None:
        raise ValueError(f"resident_bytes: expected None without device; got {resident_bytes!r}: give device='cuda'")
    return device, integer("resident_bytes", resident_bytes, 0)


def _made_by(backend: LayerBackend, model: SequenceModel) -> Array:
    """Return an array where the backend computes."""
    return backend.to_device(np.zeros(1, model.readout.dtype))


@contextmanager
def computing_on(device: str | None, model: SequenceModel, optimizer: Optimizer) -> Iterator[None]:
    """Keep the parameters and moments of a run on a device; at the end the parameters are on the host again."""
    if device is None:
        yield
        return
    like = _made_by(model.lstm.backend, model)
    parameters = {name: move_like(value, like) for name, value in model.parameters.items()}
    moments = {name: move_like(to_host(value), like) for name, value in optimizer.state().items()}
    try:
        model.load_parameters(parameters)
        optimizer.load_state(optimizer.steps, moments, parameters)
        optimizer.use_backend(model.lstm.backend)
        yield
    finally:
        optimizer.use_backend(None)
        model.load_parameters(on_host(model.parameters))


def on_host(arrays: Mapping[str, Array]) -> dict[str, npt.NDArray[Any]]:
    """Return arrays by name as NumPy's; those of a device are copied."""
    return {name: value if is_on_host(value) else to_host(value) for name, value in arrays.items()}
