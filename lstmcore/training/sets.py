"""The training and the validation set of a run: checked, weighted, and with targets as the readout gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.training.data_checks import entry_shapes
from lstmcore.training.digests import digest_of
from lstmcore.training.losses import Loss, require_weighted
from lstmcore.training.model import SequenceModel
from lstmcore.training.network import Examples, ExampleSet
from lstmcore.training.scaling import Standardizer, scale_targets
from lstmcore.training.weights import (
    ClassWeight,
    check_weights,
    class_table,
    count_classes,
    mean_weight,
    require_entry,
    with_class_weights,
)

Array = npt.NDArray[Any]
Rows: TypeAlias = npt.NDArray[np.intp]


class Sets(NamedTuple):
    """The sets of a run.

    Attributes
    ----------
    fit, held_out
        The training and the validation set; the latter may be empty.
    whole
        All that was given to train on.
    given
        The validation set, if it was given apart.
    """

    fit: Examples
    held_out: Examples
    whole: Examples
    given: Examples | None

    def digests(self) -> dict[str, str]:
        """Return digests of all numbers, by what they are; that of the weights and of the validation set if any."""
        found = {"data_sha256": digest_of([*self.whole.inputs, *self.whole.targets])}
        if self.fit.weights is not None:
            found["weights_sha256"] = digest_of([*self.fit.weights, *(self.held_out.weights or ())])
        elif self.held_out.weights is not None:
            found["validation_weights_sha256"] = digest_of(self.held_out.weights)
        if self.given is not None:
            found["validation_sha256"] = digest_of([*self.given.inputs, *self.given.targets])
        return found

    def input_scaling(self) -> Standardizer:
        """Return the standardisation of the inputs of the training set."""
        return Standardizer.fit(self.fit.inputs)

    def target_scaling(self, loss: Loss) -> Standardizer:
        """Return the standardisation of the readout's outputs."""
        return fit_target_scaling(self.fit, loss)


def check_examples(model: SequenceModel, loss: Loss, inputs: Any, targets: Any, sample_weight: Any = None) -> Examples:
    """Return checked sequences, targets and weights.

    Raises
    ------
    TypeError, ValueError
        The first thing that does not fit the model or the loss.
    """
    sequences, weights = model.check_inputs(inputs), None
    if sample_weight is not None:
        require_weighted(loss)
        weights = check_weights(sample_weight, entry_shapes(sequences, model.readout))
    return Examples(sequences, model.check_targets(targets, sequences, loss, weights), weights)


def make_sets(
    whole: Examples, given: Examples | None, divide: Callable[[int, Array | None], tuple[Rows, Rows]], classes: bool
) -> Sets:
    """Return the sets: `given` watches the run, or else a part of `whole`.

    Parameters
    ----------
    whole, given
        Checked examples.
    divide
        Number of sequences, and their classes or None -> the rows of the training and of the validation set.
    classes
        Whether the targets are one class a sequence.
    """
    if given is not None:
        return Sets(whole, given, whole, given)
    rows = divide(len(whole.inputs), np.asarray(whole.targets) if classes else None)
    fit, held_out = (whole.take(part) for part in rows)
    return Sets(fit, held_out, whole, None)


def weigh(sets: Sets, model: SequenceModel, loss: Loss, class_weight: ClassWeight | None) -> Sets:
    """Return the sets with the weights of classes in those of entries, and a mean weight of 1 in the training set.

    Raises
    ------
    ValueError
        No entry of the training set counts, or none of a validation set.
    """
    parts = [sets.fit, sets.held_out]
    if class_weight is not None:
        outputs = model.readout.output_size
        table = class_table(class_weight, count_classes(sets.fit.targets, outputs), model.classes, outputs)
        parts = [part._replace(weights=with_class_weights(part.weights, part.targets, table)) for part in parts]
    for name, part in zip(("training", "validation"), parts, strict=True):
        if len(part.inputs):
            require_entry(name, part.weights, part.targets, loss)
    if (weights := parts[0].weights) is None:
        return sets
    mean = mean_weight(weights, sets.fit.targets, loss)
    scaled = [None if part.weights is None else [own / mean for own in part.weights] for part in parts]
    fit, held_out = (part._replace(weights=own) for part, own in zip(parts, scaled, strict=True))
    return sets._replace(fit=fit, held_out=held_out)


def fit_target_scaling(examples: Examples, loss: Loss) -> Standardizer:
    """Return the standardisation of the readout's outputs, from the targets with a weight above 0."""
    targets = list(examples.targets)
    if examples.weights is not None:
        pairs = zip(targets, examples.weights, strict=True)
        targets = [np.atleast_2d(target)[np.atleast_1d(weight) > 0] for target, weight in pairs]
    return loss.scaling_of_outputs(Standardizer.fit(targets))


def scale_examples(examples: ExampleSet, model: SequenceModel, loss: Loss) -> ExampleSet:
    """Return the examples as `SequenceModel.learn` takes them; those of a source are scaled when they are loaded.

    Raises
    ------
    ValueError
        A number that is too large for the model's dtype.
    """
    if not isinstance(examples, Examples):
        return examples
    return Examples(model.scaled(examples.inputs), _scale_targets(examples.targets, model, loss), examples.weights)


def _scale_targets(targets: Iterable[Array], model: SequenceModel, loss: Loss) -> Sequence[Array]:
    if loss.of_linear:
        return list(targets)
    width, scaling = loss.target_size(model.readout.output_size), model.target_scaling
    return scale_targets(targets, model.readout.dtype, None if scaling is None else scaling.first(width))
