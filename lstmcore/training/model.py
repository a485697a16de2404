"""An LSTM with a readout on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmcore.arrays import to_host
from lstmcore.backend import Backend
from lstmcore.chain import Chain
from lstmcore.layers import AttentionPooling, Embedding
from lstmcore.lstm import LSTM
from lstmcore.training.batches import chunks_by_length, pad
from lstmcore.training.data_checks import Targets, as_codes, as_sequences, check_targets, entry_shapes
from lstmcore.training.judging import Evaluation, Judging, judge
from lstmcore.training.losses import Loss, make_loss, require_weighted
from lstmcore.training.metrics import check_metrics
from lstmcore.training.model_checks import check_model
from lstmcore.training.model_file import SCALINGS, ModelParts, json_types, read_model, write_model
from lstmcore.training.network import Batch, Examples, ExampleSet, Learned, Network
from lstmcore.training.readout import Readout
from lstmcore.training.scaling import Standardizer
from lstmcore.training.streams import is_source, open_examples, open_inputs
from lstmcore.training.weights import check_weights
from lstmcore.validation import check_mapping

Array = npt.NDArray[Any]


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
    embedding
        A table below the LSTM, whose `output_size` is the LSTM's `input_size`: sequences are arrays (T,) of whole
        numbers then. None for sequences of real numbers.
    pooling
        Attention above the LSTM. With a readout of the last step, the last output is the query, and the readout reads
        what it attends to, instead of itself; with one at every step, each step attends to all of them, which takes
        memory of T**2. None for none.

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
    >>> lstm = LSTM(4, 6, seed=0)
    >>> model = SequenceModel(
    ...     lstm, Readout.of(lstm, 2, seed=0), embedding=Embedding(30, 4, seed=0), pooling=AttentionPooling(6, seed=0)
    ... )
    >>> model.predict([np.array([3, 1, 29])])[0].shape
    (2,)
    """

    def __init__(  # noqa: PLR0913  (a public constructor)
        self,
        lstm: LSTM | Chain,
        readout: Readout,
        *,
        input_scaling: Standardizer | None = None,
        target_scaling: Standardizer | None = None,
        task: Mapping[str, Any] | None = None,
        loss: str | Loss | None = None,
        embedding: Embedding | None = None,
        pooling: AttentionPooling | None = None,
    ) -> None:
        scalings = dict(zip(SCALINGS, (input_scaling, target_scaling), strict=True))
        check_model(ModelParts(lstm, readout, scalings, {}, None, embedding, pooling))
        self.lstm, self.readout, self.embedding, self.pooling = lstm, readout, embedding, pooling
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
        """All parameters, under ``lstm.``, ``readout.``, ``embedding.`` and ``pooling.``."""
        return self.parts.parameters

    def load_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Set all parameters, by the names of `parameters`."""
        check_mapping("parameters", parameters)
        layers = self.parts.layers
        groups: dict[str, dict[str, Array]] = {name: {} for name in layers}
        for key, value in parameters.items():
            part, _, name = str(key).partition(".")
            if part not in groups:
                expected = " or ".join(f"{name}." for name in groups)
                raise ValueError(f"parameters: expected names that begin with {expected}; got {key!r}")
            groups[part][name] = value
        for part, layer in layers.items():
            layer.load_parameters(groups[part])

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
            embedding=self.embedding,
            pooling=self.pooling,
        )

    @property
    def classes(self) -> list[str]:
        """The names of the classes, of which the task keeps a list; empty for none."""
        return list(self._task.get("classes", ()))

    def check_inputs(self, inputs: Any) -> Sequence[Array]:
        """Return `inputs` as a non-empty collection of finite real arrays (T, I); DataFrames become arrays.

        With an embedding they are arrays (T,) of whole numbers.

        Raises
        ------
        TypeError, ValueError
            As `data_checks.as_sequences` and `data_checks.as_codes`.
        """
        if self.embedding is not None:
            return as_codes(inputs, self.embedding.entries)
        return as_sequences(inputs, self.lstm.input_size)

    def check_targets(
        self, targets: Targets, inputs: Sequence[Array], loss: Loss, weights: Sequence[Array] | None = None
    ) -> list[Array]:
        """Raise unless `targets` are what `loss` needs for `inputs`; return them as one array a sequence.

        Raises
        ------
        TypeError, ValueError
            As `data_checks.check_targets`.
        """
        return check_targets(targets, inputs, loss, self.readout, classes=self.classes, weights=weights)

    def scaled(self, inputs: Sequence[Array]) -> list[Array]:
        """Return `inputs`, standardised, in the model's dtype.

        Raises
        ------
        ValueError
            A number that is too large for that dtype.
        """
        if self.embedding is not None:
            return list(inputs)
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

    def learn(
        self, inputs: Sequence[Array], targets: Targets, loss: Loss, weights: Sequence[Array] | None = None
    ) -> Learned:
        """Return the loss of a batch of scaled inputs and its gradient for every parameter; dropout is on."""
        return self.network.learn(Batch.of(inputs, targets, weights, self.readout), loss)

    @property
    def network(self) -> Network:
        """The layers, for padded batches."""
        return Network(self.lstm, self.readout, self.embedding, self.pooling)

    def evaluate(
        self,
        inputs: Any,
        targets: Targets | None = None,
        loss: str | Loss | None = None,
        *,
        sample_weight: Any = None,
        metrics: Sequence[str] = (),
        batch_size: int = 256,
    ) -> Evaluation:
        """Return loss, accuracy and state drift on raw data, as `predict` and `Trainer.fit` take it; dropout is off.

        The loss is that of what `predict` gives, in its units: the mean squared error of ``predict(inputs)`` and
        `targets`. `History` has the loss of standardised targets, if the model standardises them.

        Parameters
        ----------
        inputs
            Raw sequences (T, I), or a `SequenceSource`, which is loaded a batch at a time.
        targets
            One for each, as for `Trainer.fit`; None for a source, which has them.
        loss
            The loss to evaluate: a name or a `Loss`. None takes the one that the model was trained with.
        sample_weight
            As for `Trainer.fit`; the loss and the accuracy are weighted means then.
        metrics
            Names of metrics to compute too, as for `Trainer`.
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
        how = Judging(self.target_scaling, True, check_metrics(metrics, chosen.of_linear), batch_size)
        if targets is None:
            if sample_weight is not None:
                raise ValueError("sample_weight: expected None with a source of sequences; got weights")
            return judge(self.network, open_examples(self, inputs, chosen), chosen, how)
        inputs = self.check_inputs(inputs)
        weights = None
        if sample_weight is not None:
            require_weighted(chosen)
            weights = check_weights(sample_weight, entry_shapes(inputs, self.readout))
        checked = self.check_targets(targets, inputs, chosen, weights)
        examples = Examples(self.scaled(inputs), checked, weights)
        return judge(self.network, examples, chosen, how)

    def measure(self, examples: ExampleSet, loss: Loss, metrics: Sequence[str] = ()) -> Evaluation:
        """Return loss, accuracy and state drift on scaled examples, as `learn` takes them; dropout is off."""
        return judge(self.network, examples, loss, Judging(self.target_scaling, False, metrics, 256))

    def predict(self, inputs: Any, *, coverage: float | None = None, batch_size: int = 256) -> list[Array]:
        """Return the output for each sequence of raw `inputs`, float64.

        Parameters
        ----------
        inputs
            Raw sequences (T, I), arrays or DataFrames; or a `SequenceSource`, whose items may be x alone.
        coverage
            None for (K,), or (T, K) if read out at every step. A share in (0, 1), for a model trained with a quantile
            or a gaussian loss, gives (3, K), or (T, 3, K): the lower end of the interval that holds the target with
            that probability, the forecast, and the upper end.
        batch_size
            How many sequences to run at once.

        Raises
        ------
        TypeError, ValueError
            A sequence that is not a finite array (T, I); a model without intervals, or without these.
        """
        lengths_of_all, load = open_inputs(self, inputs) if is_source(inputs) else self._in_memory(inputs)
        if coverage is not None and self.loss is None:
            raise ValueError(
                "coverage: expected a model trained with a quantile or a gaussian loss; got one of no loss"
            )
        results: list[Array] = [np.empty(0)] * len(lengths_of_all)
        for chosen in chunks_by_length(lengths_of_all, batch_size):
            x, lengths = pad(load(chosen))
            outputs = to_host(self.network.run(x, lengths)[0]).astype(np.float64)
            if self.target_scaling is not None:
                outputs = self.target_scaling.undo(outputs)
            if self.loss is not None:
                outputs = self.loss.point(outputs) if coverage is None else self.loss.interval(outputs, coverage)
            for row, index in enumerate(chosen):
                every = self.readout.steps == "every"
                results[index] = outputs[: lengths[row], row].copy() if every else outputs[row].copy()
        return results

    def _in_memory(self, inputs: Any) -> tuple[list[int], Callable[[npt.NDArray[np.intp]], list[Array]]]:
        """Return T of each sequence, and a function that returns those with some numbers, scaled."""
        scaled = self.scaled(self.check_inputs(inputs))
        return [len(sequence) for sequence in scaled], lambda rows: [scaled[row] for row in rows]

    @property
    def parts(self) -> ModelParts:
        """The layers, the standardisations, the task and the loss."""
        scalings = {name: getattr(self, name) for name in SCALINGS}
        return ModelParts(self.lstm, self.readout, scalings, self.task, self.loss, self.embedding, self.pooling)

    def save(self, path: str | Path) -> None:
        """Write the model to a safetensors file; see `lstmcore.training.save_model`."""
        write_model(self.parts, path)

    def to_onnx(self, path: str | Path) -> None:
        """Write the whole model as an ONNX model, for inference; needs the extra ``onnx``.

        Its inputs are raw x, (T, N, I) or (N, T, I) with the LSTM's `batch_first` (with an embedding (T, N) or (N, T),
        in int64), and ``lengths`` (N,) in int32; its
        output is y (N, K), or (T, N, K) and (N, T, K) where it is read out at every step, as `predict`
        gives it without `coverage`. T and N are free.

        Raises
        ------
        ValueError
            Attention pooling; a loss with a forecast of its own; a switch that ONNX's operator does not have, by name;
            more than 2 GiB; a path that cannot be written.
        ImportError
            ONNX is not installed.
        """
        from lstmcore.dialects.onnx_writer import write_model_to_onnx
        from lstmcore.training.model_ends import ends_of

        write_model_to_onnx(path, self.lstm.content, ends_of(self.parts))

    @classmethod
    def load(cls, path: str | Path, *, backend: str | None = None, dtype: str | None = None) -> SequenceModel:
        """Read a model from a file; see `lstmcore.training.load_model`."""
        parts = read_model(path, backend, dtype)
        more: dict[str, Any] = {
            "task": parts.task,
            "loss": parts.loss,
            "embedding": parts.embedding,
            "pooling": parts.pooling,
        }
        return SequenceModel(parts.lstm, parts.readout, **(more | dict(parts.scalings)))
