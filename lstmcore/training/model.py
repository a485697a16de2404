"""An LSTM with a readout on top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Backend, State
from lstmcore.chain import Chain
from lstmcore.lstm import LSTM
from lstmcore.scalars import integer
from lstmcore.training.batches import pad
from lstmcore.training.data_checks import Targets, check_inputs, check_targets
from lstmcore.training.losses import Loss, make_loss
from lstmcore.training.model_file import SCALINGS, ModelParts, check_widths, json_types, read_model, write_model
from lstmcore.training.readout import DTYPES, Readout, ReadoutTape
from lstmcore.training.scaling import Standardizer

Array = npt.NDArray[Any]


class Evaluation(NamedTuple):
    """Means over a set: the loss, the accuracy (None for a regression) and the state drift.

    Examples
    --------
    >>> from lstmcore.training import CrossEntropy
    >>> model = SequenceModel(LSTM(2, 4, seed=0), Readout(4, 3, activation="softmax", seed=0))
    >>> evaluation = model.evaluate([np.ones((3, 2), np.float32)], np.array([1]), CrossEntropy())
    >>> evaluation.accuracy in (0.0, 1.0), evaluation.loss > 0
    (True, True)
    """

    loss: float
    accuracy: float | None
    drift: float


class Learned(NamedTuple):
    """The result of learning from one batch.

    `right` counts the right answers (None for a regression), `entries` the valid entries.
    """

    loss: float
    right: int | None
    entries: int
    gradients: dict[str, Array]


class SequenceModel:
    """``y = readout(lstm(x))`` for sequences that each start from a zero state.

    Parameters
    ----------
    lstm
        An `LSTM` or a `Chain` with a dtype of float32 or float64; sequences are (T, I) whatever its `batch_first`.
    readout
        Its `hidden_size` is the width of the LSTM's output, its `x_size` 0 or the LSTM's `input_size`.
    input_scaling, target_scaling
        Applied to inputs, and undone on the outputs of `predict`; the trainer fits the first if it is None.
    task
        The use of the model, kept in its file: a mapping of types that JSON has (a tuple becomes a list, a
        NumPy number a number).
    loss
        The loss that `evaluate` takes if it is given none: a name, a `Loss` or None. The trainer sets it.

    Raises
    ------
    TypeError, ValueError
        Layers that do not fit together; a `task` of other types than JSON has.

    Examples
    --------
    >>> from lstmcore.training import Trainer
    >>> model = SequenceModel(LSTM(2, 4, seed=0), Readout(4, 3, activation="softmax", seed=0))
    >>> inputs = [np.ones((length, 2)) for length in (3, 5, 4, 6)]
    >>> history = Trainer(model, epochs=1, validation=0, quiet=True).fit(inputs, np.array([0, 1, 2, 1]))
    >>> [output.shape for output in model.predict(inputs[:2])]
    [(3,), (3,)]
    """

    def __init__(
        self,
        lstm: LSTM | Chain,
        readout: Readout,
        *,
        input_scaling: Standardizer | None = None,
        target_scaling: Standardizer | None = None,
        task: Mapping[str, Any] | None = None,
        loss: str | Loss | None = None,
    ) -> None:
        if not isinstance(lstm, LSTM | Chain):
            raise TypeError(f"lstm: expected an LSTM or a Chain; got {type(lstm).__name__}")
        if not isinstance(readout, Readout):
            raise TypeError(f"readout: expected Readout; got {type(readout).__name__}")
        check_widths((lstm.input_size, lstm.output_width), readout)
        if lstm.precision.storage not in DTYPES:
            raise ValueError(f"lstm dtype: expected {' or '.join(DTYPES)} for a model; got {lstm.precision.name}")
        if readout.dtype != lstm.precision.storage:
            raise ValueError(
                f"readout dtype: expected {lstm.precision.storage} as the LSTM stores; got {readout.dtype}"
            )
        for name, scaling, columns in (
            ("input_scaling", input_scaling, lstm.input_size),
            ("target_scaling", target_scaling, readout.output_size),
        ):
            if scaling is not None and not isinstance(scaling, Standardizer):
                raise TypeError(f"{name}: expected a Standardizer or None; got {type(scaling).__name__}")
            if scaling is not None and scaling.mean.shape != (columns,):
                raise ValueError(f"{name}: expected mean and scale of shape ({columns},); got {scaling.mean.shape}")
        self.lstm, self.readout = lstm, readout
        self.input_scaling, self.target_scaling = input_scaling, target_scaling
        self.task = task or {}
        self.loss = None if loss is None else make_loss(loss)

    @property
    def task(self) -> dict[str, Any]:
        """The use of the model, in JSON types."""
        return self._task

    @task.setter
    def task(self, task: Mapping[str, Any]) -> None:
        if not isinstance(task, Mapping):
            raise TypeError(f"task: expected a mapping; got {type(task).__name__}")
        self._task: dict[str, Any] = json_types("task", dict(task))

    @property
    def parameters(self) -> dict[str, Array]:
        """All parameters: the LSTM's under ``lstm.``, the readout's under ``readout.``."""
        return self.parts.parameters

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

    def compress(self, weights: str, *, backend: str | Backend | None = None) -> SequenceModel:
        """Return this model with the weight matrices of its LSTM stored in another format, for inference.

        Parameters
        ----------
        weights, backend
            As for `LSTM.compressed`.

        Raises
        ------
        ValueError
            As `LSTM.compressed`.
        """
        return SequenceModel(
            self.lstm.compressed(weights, backend=backend),
            self.readout,
            input_scaling=self.input_scaling,
            target_scaling=self.target_scaling,
            task=self.task,
            loss=self.loss,
        )

    def check_inputs(self, inputs: Sequence[Array]) -> None:
        """Raise unless `inputs` is a non-empty collection of finite real arrays (T, I)."""
        check_inputs(inputs, self.lstm.input_size)

    def check_targets(self, targets: Targets, inputs: Sequence[Array], loss: Loss) -> list[Array]:
        """Raise unless `targets` are what `loss` needs for `inputs`; return them as one array a sequence.

        Raises
        ------
        TypeError, ValueError
            As `data_checks.check_targets`.
        """
        return check_targets(targets, inputs, loss, self.readout)

    def scaled(self, inputs: Sequence[Array]) -> list[Array]:
        """Return `inputs`, standardised, in the model's dtype.

        Raises
        ------
        ValueError
            A number that is too large for that dtype.
        """
        dtype = self.readout.dtype
        with np.errstate(over="ignore"):
            if self.input_scaling is None:
                scaled = [sequence.astype(dtype) for sequence in inputs]
            else:
                scaled = [self.input_scaling.apply(sequence, dtype) for sequence in inputs]
        for index, sequence in enumerate(scaled):
            if not np.isfinite(sequence).all():
                raise ValueError(
                    f"inputs[{index}]: expected numbers that fit into {dtype}, standardised where the model does; got "
                    f"up to {np.abs(inputs[index]).max():.3g}: bring them nearer to 1"
                )
        return scaled

    def learn(self, inputs: Sequence[Array], targets: Targets, loss: Loss) -> Learned:
        """Return the loss of a batch of scaled inputs and its gradient for every parameter; dropout is on."""
        x, lengths = pad(inputs)
        lstm: Any = self.lstm  # tapes and states of an LSTM and of a chain are of different types
        h, last, tape = lstm.record(self._laid_out(x), lengths=lengths)
        outputs, read = self._read(x, lengths, self._laid_out(h), last)
        wanted, mask = self._targets(targets, lengths, len(x))
        value, dy = loss(read.linear if loss.of_linear else outputs, wanted, mask)
        read_gradients = self.readout.backward(read, dy, of_linear=loss.of_linear)
        if self.readout.steps == "every":
            gradients = lstm.backward(tape, self._laid_out(read_gradients.h))
        else:
            gradients = lstm.backward(tape, None, lstm.last_output_gradient(last, read_gradients.h))
        named = {f"lstm.{name}": value for name, value in gradients.parameters.items()}
        named |= {f"readout.{name}": value for name, value in read_gradients.parameters.items()}
        entries = int(mask.sum()) if mask is not None else len(inputs)
        return Learned(value, _right(outputs, wanted, mask, loss), entries, named)

    def evaluate(
        self,
        inputs: Sequence[Array],
        targets: Targets,
        loss: str | Loss | None = None,
        *,
        batch_size: int = 256,
    ) -> Evaluation:
        """Return loss, accuracy and state drift on raw data, as `predict` and `Trainer.fit` take it; dropout is off.

        The loss is that of what `predict` gives, in its units: the mean squared error of ``predict(inputs)`` and
        `targets`. `History` has the loss of standardised targets, if the model standardises them.

        Parameters
        ----------
        inputs
            Raw sequences (T, I).
        targets
            One for each, as for `Trainer.fit`.
        loss
            The loss to evaluate: a name or a `Loss`. None takes the one that the model was trained with.
        batch_size
            How many sequences to run at once.

        Raises
        ------
        TypeError, ValueError
            No sequences, or ones that do not fit the model; targets that do not fit them or the loss; no loss, and
            none that the model was trained with.
        """
        chosen = self.loss if loss is None else make_loss(loss)
        if chosen is None:
            raise ValueError(
                "loss: expected a loss, since this model has none: it was not trained, or with a loss of your own, "
                "which no file holds; got None"
            )
        self.check_inputs(inputs)
        checked = self.check_targets(targets, inputs, chosen)
        return self._judge(self.scaled(inputs), checked, chosen, self.target_scaling, batch_size)

    def measure(self, inputs: Sequence[Array], targets: Targets, loss: Loss) -> Evaluation:
        """Return loss, accuracy and state drift on scaled inputs and targets, as `learn` takes them; dropout is off."""
        return self._judge(inputs, targets, loss, None, 256)

    def _judge(
        self, inputs: Sequence[Array], targets: Targets, loss: Loss, scaling: Standardizer | None, batch_size: int
    ) -> Evaluation:
        """Return the means over scaled inputs; `scaling` is undone on the outputs, which `targets` are like."""
        total, right, entries, drift = 0.0, 0, 0, 0.0
        answers = True
        for chosen in _chunks(inputs, batch_size):
            x, lengths = pad([inputs[index] for index in chosen])
            outputs, read, last = self._run(x, lengths)
            if scaling is not None and not loss.of_linear:
                outputs = scaling.undo(outputs)
            wanted, mask = self._targets([targets[index] for index in chosen], lengths, len(x))
            value, _ = loss(read.linear if loss.of_linear else outputs, wanted, mask)
            count = int(mask.sum()) if mask is not None else len(chosen)
            hits = _right(outputs, wanted, mask, loss)
            answers = answers and hits is not None
            total, right, entries = total + value * count, right + (hits or 0), entries + count
            drift += float(np.sqrt(_square_cells(last)).sum())  # the start is zero
        return Evaluation(total / max(entries, 1), right / max(entries, 1) if answers else None, drift / len(inputs))

    def predict(self, inputs: Sequence[Array], *, batch_size: int = 256) -> list[Array]:
        """Return the output for each sequence of raw `inputs`: (K,), or (T, K) if read out at every step; float64.

        Raises
        ------
        TypeError, ValueError
            A sequence that is not a finite array (T, I).
        """
        self.check_inputs(inputs)
        scaled = self.scaled(inputs)
        results: list[Array] = [np.empty(0)] * len(scaled)
        for chosen in _chunks(scaled, batch_size):
            x, lengths = pad([scaled[index] for index in chosen])
            outputs = self._run(x, lengths)[0].astype(np.float64)
            if self.target_scaling is not None:
                outputs = self.target_scaling.undo(outputs)
            for row, index in enumerate(chosen):
                every = self.readout.steps == "every"
                results[index] = outputs[: lengths[row], row].copy() if every else outputs[row].copy()
        return results

    @property
    def parts(self) -> ModelParts:
        """The LSTM, the readout, the standardisations, the task and the loss."""
        scalings = {name: getattr(self, name) for name in SCALINGS}
        return ModelParts(self.lstm, self.readout, scalings, self.task, self.loss)

    def save(self, path: str | Path) -> None:
        """Write the model to a safetensors file; see `lstmcore.training.save_model`."""
        write_model(self.parts, path)

    def to_onnx(self, path: str | Path) -> None:
        """Write the whole model as an ONNX model, for inference; needs the extra ``onnx``.

        Its inputs are raw x, (T, N, I) or (N, T, I) with the LSTM's `batch_first`, and ``lengths`` (N,) in int32; its
        output is y (N, K), or (T, N, K) and (N, T, K) where it is read out at every step. T and N are free.

        Raises
        ------
        ValueError
            A switch that ONNX's operator does not have, by name; more than 2 GiB; a path that cannot be written.
        ImportError
            ONNX is not installed.
        """
        from lstmcore.dialects.onnx_writer import ModelEnds, write_model_to_onnx

        pairs = [
            None if scaling is None else (scaling.mean, scaling.scale)
            for scaling in (self.input_scaling, self.target_scaling)
        ]
        layer = self.readout
        weight, bias = layer.parameters["weight"], layer.parameters["bias"]
        ends = ModelEnds(weight, bias, layer.activation, layer.x_size, layer.steps, *pairs)
        write_model_to_onnx(path, self.lstm.content, ends)

    @classmethod
    def load(cls, path: str | Path, *, backend: str | None = None, dtype: str | None = None) -> SequenceModel:
        """Read a model from a file; see `lstmcore.training.load_model`."""
        parts = read_model(path, backend, dtype)
        return SequenceModel(parts.lstm, parts.readout, task=parts.task, loss=parts.loss, **parts.scalings)

    def _laid_out(self, array: Array) -> Array:
        """Return (T, N, ...) in the layout of the LSTM, or back: a view."""
        return array.swapaxes(0, 1) if self.lstm.batch_first else array

    def _run(self, x: Array, lengths: Array) -> tuple[Array, ReadoutTape, Any]:
        """Return the outputs for padded x (T, N, I), the record of the readout, and the final state."""
        h, last = self.lstm(self._laid_out(x), lengths=lengths)
        return *self._read(x, lengths, self._laid_out(h), last), last

    def _read(self, x: Array, lengths: Array, h: Array, last: Any) -> tuple[Array, ReadoutTape]:
        if self.readout.steps == "every":
            return self.readout.record(h, x if self.readout.x_size else None)
        lstm: Any = self.lstm
        features = lstm.last_output(last)
        if not self.readout.x_size:
            return self.readout.record(features)
        ends = np.zeros((len(lengths), x.shape[2]), x.dtype)
        rows = np.flatnonzero(lengths)
        ends[rows] = x[lengths[rows] - 1, rows]
        return self.readout.record(features, ends)

    def _targets(self, targets: Targets, lengths: Array, steps: int) -> tuple[Array, npt.NDArray[np.bool_] | None]:
        if self.readout.steps == "last":
            return np.asarray(targets), None
        for row, (target, length) in enumerate(zip(targets, lengths, strict=True)):
            if len(target) != length:
                raise ValueError(f"targets[{row}]: expected {length} entries, one a step; got {len(target)}")
        padded, _ = pad(list(targets))
        return padded, np.arange(steps)[:, None] < lengths


def _square_cells(state: Any) -> Array:
    """Return (N,): the sum of the squares of all final cells of a row, of an LSTM or of each LSTM of a chain."""
    pairs = [state] if isinstance(state, State) else state
    return np.asarray(sum(np.square(c, dtype=np.float64).sum(axis=(0, 2)) for _, c in pairs))


def _chunks(sequences: Sequence[Array], batch_size: int) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the numbers of the sequences, at most `batch_size` of about the same length at a time."""
    size = integer("batch_size", batch_size, 1)
    order = np.argsort([len(sequence) for sequence in sequences], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _right(outputs: Array, targets: Array, mask: npt.NDArray[np.bool_] | None, loss: Loss) -> int | None:
    if not loss.of_linear:
        return None
    hits = outputs.argmax(axis=-1) == targets
    return int(hits.sum() if mask is None else (hits & mask).sum())
