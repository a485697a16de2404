"""An LSTM with a readout on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore.lstm import LSTM
from lstmcore.training.batches import pad
from lstmcore.training.losses import Loss
from lstmcore.training.readout import Readout, ReadoutTape
from lstmcore.training.scaling import Standardizer

Array = npt.NDArray[Any]
Targets = Array | Sequence[Array]


class Evaluation(NamedTuple):
    """Means over a set: the loss, the accuracy (None for a regression) and the state drift."""

    loss: float
    accuracy: float | None
    drift: float


class Learned(NamedTuple):
    """What one batch taught: loss, number of right answers (None for a regression), valid entries, gradients."""

    loss: float
    right: int | None
    entries: int
    gradients: dict[str, Array]


class SequenceModel:
    """``y = readout(lstm(x))`` for sequences that each start from a zero state.

    Parameters
    ----------
    lstm
        With ``batch_first=False`` and a dtype of float32 or float64.
    readout
        Its `hidden_size` is the width of the LSTM's output, its `x_size` 0 or the LSTM's `input_size`.
    input_scaling, target_scaling
        Applied to what comes in and undone on what `predict` gives; the trainer fits the first where it is None.
    task
        What the model is for, in JSON types; kept in the model's file.

    Raises
    ------
    ValueError
        Layers that do not fit together.
    """

    def __init__(
        self,
        lstm: LSTM,
        readout: Readout,
        *,
        input_scaling: Standardizer | None = None,
        target_scaling: Standardizer | None = None,
        task: Mapping[str, Any] | None = None,
    ) -> None:
        stack = lstm.stack
        width = stack.num_directions * stack.output_size
        if lstm.batch_first:
            raise ValueError("lstm: expected batch_first=False; got True")
        if readout.hidden_size != width:
            raise ValueError(
                f"readout hidden_size: expected {width}, the width of the LSTM's output; got {readout.hidden_size}"
            )
        if readout.x_size not in (0, stack.input_size):
            raise ValueError(f"readout x_size: expected 0 or input_size={stack.input_size}; got {readout.x_size}")
        if readout.dtype != lstm.precision.storage:
            raise ValueError(
                f"readout dtype: expected {lstm.precision.storage} as the LSTM stores; got {readout.dtype}"
            )
        for name, scaling, columns in (
            ("input_scaling", input_scaling, stack.input_size),
            ("target_scaling", target_scaling, readout.output_size),
        ):
            if scaling is not None and (scaling.mean.shape != (columns,) or scaling.scale.shape != (columns,)):
                raise ValueError(f"{name}: expected mean and scale of shape ({columns},); got {scaling.mean.shape}")
        self.lstm, self.readout = lstm, readout
        self.input_scaling, self.target_scaling = input_scaling, target_scaling
        self.task = dict(task or {})

    @property
    def parameters(self) -> dict[str, Array]:
        """All parameters: the LSTM's under ``lstm.``, the readout's under ``readout.``."""
        parts = (("lstm", self.lstm.parameters), ("readout", self.readout.parameters))
        return {f"{part}.{name}": value for part, values in parts for name, value in values.items()}

    def load_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Set all parameters, by the names of `parameters`."""
        groups: dict[str, dict[str, Array]] = {"lstm": {}, "readout": {}}
        for key, value in parameters.items():
            part, _, name = key.partition(".")
            if part not in groups:
                raise ValueError(f"parameters: expected names that begin with lstm. or readout.; got {key!r}")
            groups[part][name] = value
        self.lstm.load_parameters(groups["lstm"])
        self.readout.load_parameters(groups["readout"])

    def check_inputs(self, inputs: Sequence[Array]) -> None:
        """Raise unless `inputs` is a non-empty collection of finite real arrays (T, I)."""
        wanted = self.lstm.stack.input_size
        if not len(inputs):
            raise ValueError("inputs: expected at least one sequence; got none")
        for index, sequence in enumerate(inputs):
            if not isinstance(sequence, np.ndarray) or sequence.dtype.kind not in "fiu":
                found = getattr(sequence, "dtype", type(sequence).__name__)
                raise TypeError(f"inputs[{index}]: expected an array of numbers (T, {wanted}); got {found}")
            if sequence.ndim != 2 or sequence.shape[1] != wanted:
                raise ValueError(f"inputs[{index}]: expected shape (T, {wanted}); got {sequence.shape}")
            if not np.isfinite(sequence).all():
                step = int(np.flatnonzero(~np.isfinite(sequence).all(axis=1))[0])
                raise ValueError(f"inputs[{index}]: expected finite numbers; got NaN or infinity at step {step}")

    def scaled(self, inputs: Sequence[Array]) -> list[Array]:
        """`inputs` standardised and in the model's dtype."""
        dtype = self.readout.dtype
        if self.input_scaling is None:
            return [sequence.astype(dtype) for sequence in inputs]
        return [self.input_scaling.apply(sequence, dtype) for sequence in inputs]

    def learn(self, inputs: Sequence[Array], targets: Targets, loss: Loss) -> Learned:
        """The loss of one batch of scaled inputs and its gradient for every parameter; dropout is on."""
        x, lengths = pad(inputs)
        h, (h_n, c_n), tape = self.lstm.record(x, lengths=lengths)
        outputs, read = self._read(x, lengths, h, h_n)
        wanted, mask = self._targets(targets, lengths, len(x))
        value, dy = loss(read.linear if loss.of_linear else outputs, wanted, mask)
        read_gradients = self.readout.backward(read, dy, of_linear=loss.of_linear)
        if self.readout.steps == "every":
            gradients = self.lstm.backward(tape, read_gradients.h)
        else:
            directions, width = self.lstm.stack.num_directions, self.lstm.stack.output_size
            dh = np.zeros_like(h_n)
            dh[-directions:] = read_gradients.h.reshape(-1, directions, width).swapaxes(0, 1)
            gradients = self.lstm.backward(tape, None, (dh, np.zeros_like(c_n)))
        named = {f"lstm.{name}": value for name, value in gradients.parameters.items()}
        named |= {f"readout.{name}": value for name, value in read_gradients.parameters.items()}
        entries = int(mask.sum()) if mask is not None else len(inputs)
        return Learned(value, _right(outputs, wanted, mask, loss), entries, named)

    def evaluate(self, inputs: Sequence[Array], targets: Targets, loss: Loss, *, batch_size: int = 256) -> Evaluation:
        """Loss, accuracy and state drift on scaled inputs; dropout is off."""
        order = np.argsort([len(sequence) for sequence in inputs], kind="stable")
        total, right, entries, drift = 0.0, 0, 0, 0.0
        answers = True
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            x, lengths = pad([inputs[index] for index in chosen])
            h, (h_n, c_n) = self.lstm(x, lengths=lengths)
            outputs, read = self._read(x, lengths, h, h_n)
            wanted, mask = self._targets([targets[index] for index in chosen], lengths, len(x))
            value, _ = loss(read.linear if loss.of_linear else outputs, wanted, mask)
            count = int(mask.sum()) if mask is not None else len(chosen)
            found = _right(outputs, wanted, mask, loss)
            answers = answers and found is not None
            total, right, entries = total + value * count, right + (found or 0), entries + count
            drift += float(np.sqrt(np.square(c_n, dtype=np.float64).sum(axis=(0, 2))).sum())  # the start is zero
        return Evaluation(total / max(entries, 1), right / max(entries, 1) if answers else None, drift / len(order))

    def predict(self, inputs: Sequence[Array], *, batch_size: int = 256) -> list[Array]:
        """The model's output for each sequence of raw `inputs`, (K,) or, read out at every step, (T, K); float64.

        Raises
        ------
        TypeError, ValueError
            A sequence that is not a finite array (T, I).
        """
        self.check_inputs(inputs)
        scaled = self.scaled(inputs)
        order = np.argsort([len(sequence) for sequence in scaled], kind="stable")
        results: list[Array] = [np.empty(0)] * len(scaled)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            x, lengths = pad([scaled[index] for index in chosen])
            h, (h_n, _) = self.lstm(x, lengths=lengths)
            outputs = self._read(x, lengths, h, h_n)[0].astype(np.float64)
            if self.target_scaling is not None:
                outputs = self.target_scaling.undo(outputs)
            for row, index in enumerate(chosen):
                every = self.readout.steps == "every"
                results[index] = outputs[: lengths[row], row].copy() if every else outputs[row].copy()
        return results

    def save(self, path: str | Path) -> None:
        """Write the model to a safetensors file; see `lstmcore.training.save_model`."""
        from lstmcore.training.files import save_model  # files.py is built on this module

        save_model(self, path)

    @classmethod
    def load(cls, path: str | Path, *, backend: str | None = None, dtype: str | None = None) -> SequenceModel:
        """Read a model from a file; see `lstmcore.training.load_model`."""
        from lstmcore.training.files import load_model  # files.py is built on this module

        return load_model(path, backend=backend, dtype=dtype)

    def _read(self, x: Array, lengths: Array, h: Array, h_n: Array) -> tuple[Array, ReadoutTape]:
        if self.readout.steps == "every":
            return self.readout.record(h, x if self.readout.x_size else None)
        directions = self.lstm.stack.num_directions
        features = h_n[-directions:].swapaxes(0, 1).reshape(h_n.shape[1], -1)
        if not self.readout.x_size:
            return self.readout.record(features)
        last = np.zeros((len(lengths), x.shape[2]), x.dtype)
        rows = np.flatnonzero(lengths)
        last[rows] = x[lengths[rows] - 1, rows]
        return self.readout.record(features, last)

    def _targets(self, targets: Targets, lengths: Array, steps: int) -> tuple[Array, npt.NDArray[np.bool_] | None]:
        if self.readout.steps == "last":
            return np.asarray(targets), None
        for row, (target, length) in enumerate(zip(targets, lengths, strict=True)):
            if len(target) != length:
                raise ValueError(f"targets[{row}]: expected {length} entries, one a step; got {len(target)}")
        padded, _ = pad(list(targets))
        return padded, np.arange(steps)[:, None] < lengths


def _right(outputs: Array, targets: Array, mask: npt.NDArray[np.bool_] | None, loss: Loss) -> int | None:
    if not loss.of_linear:
        return None
    hits = outputs.argmax(axis=-1) == targets
    return int(hits.sum() if mask is None else (hits & mask).sum())
