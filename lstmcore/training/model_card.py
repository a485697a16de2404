"""A model in words, and as a folder that Hugging Face's hub takes: weights, config.json, README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lstmcore.files import UnwritableError, write_atomically
from lstmcore.training.model import SequenceModel
from lstmcore.training.model_file import model_header

#: Files of the folder.
WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
CARD: Final = "README.md"
#: The `steps` of a readout, in words.
_STEPS: Final = {"last": "at the last step", "every": "at every step", "mean": "from the mean over the steps"}


def describe_model(model: SequenceModel) -> dict[str, str]:
    """Return what a model does and what it is made of, as headings with a line each.

    Parameters
    ----------
    model
        The model; its task is described if ``lstmcore train`` made it.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> from lstmcore.training import Readout
    >>> model = SequenceModel(LSTM(3, 4, seed=0), Readout(4, 2, seed=0), loss="mean-squared-error")
    >>> described = describe_model(model)
    >>> described["reads"], described["parameters"]
    ('sequences of 3 numbers a step', '138 in float32')
    """
    return {**_describe_task(model.task), **_describe_layers(model)}


def _describe_task(task: Mapping[str, Any]) -> dict[str, str]:
    if task.get("kind") == "forecast":
        targets = [str(task.get("target")), *task.get("other_targets", ())]
        lines = {
            "task": f"forecast {', '.join(targets)}: the next {count_of(task.get('horizon'), 'row')} from the last "
            f"{task.get('window')}"
        }
        if task.get("features"):
            lines["features"] = ", ".join(task["features"])
        if task.get("series"):
            lines["series"] = f"{len(task.get('trained_to', ()))}, told apart by the column {task['series']!r}"
        return {**lines, "test data": f"the last {count_of(task.get('test_rows'), 'row')} were held out"}
    if task.get("kind") == "classify":
        classes = list(map(str, task.get("classes", ())))
        shown = ", ".join(classes[:12]) + ", ..." * (len(classes) > 12)
        lines = {"task": f"classify sequences into {len(classes)} classes: {shown}"}
        if task.get("features"):
            lines["features"] = ", ".join(task["features"])
        if task.get("trained_on"):
            lines["trained on"] = f"{count_of(len(task['trained_on']), 'sequence')} of {task.get('data')}"
        return lines
    return {"task": "none in the file"}


def count_of(number: Any, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _describe_layers(model: SequenceModel) -> dict[str, str]:
    lstm, readout = model.lstm, model.readout
    tensors = {name: value.size for name, value in model.parameters.items()}
    scaled = [name for name, one in (("inputs", model.input_scaling), ("targets", model.target_scaling)) if one]
    stored = lstm.precision.weights
    weights = f", weights stored as {stored}" if stored != "same" else ""
    return {
        "reads": _describe_reading(model),
        "gives": f"{count_of(readout.output_size, 'number')} {_STEPS[readout.steps]}"
        + (", through attention over all steps" if model.pooling is not None else "")
        + (f", through {readout.activation}" if readout.activation != "none" else ""),
        "layers": repr(lstm),
        "parameters": f"{sum(tensors.values()):,} in {lstm.precision.storage}{weights}",
        "standardised": " and ".join(scaled) or "nothing",
        "loss": model.loss.name if model.loss is not None else "none in the file",
    }


def _describe_reading(model: SequenceModel) -> str:
    width = count_of(model.lstm.input_size, "number")
    if model.embedding is None:
        return f"sequences of {width} a step"
    return f"sequences of whole numbers from 0 to {model.embedding.entries - 1}, each embedded in {width}"


def model_card(model: SequenceModel, *, title: str, scores: Sequence[str] = ()) -> str:
    """Return a model card in Markdown, with the front matter that the hub reads.

    Parameters
    ----------
    model, title
        The model and its name.
    scores
        Lines about how the model was judged.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> from lstmcore.training import Readout
    >>> model = SequenceModel(LSTM(3, 4, seed=0), Readout(4, 2, seed=0))
    >>> model_card(model, title="Mine").splitlines()[:3]
    ['---', 'library_name: lstmcore', 'tags:']
    """
    forecast = model.task.get("kind") == "forecast"
    front = ["---", "library_name: lstmcore", "tags:", "- lstm", "- time-series"]
    front += ["pipeline_tag: time-series-forecasting"] * forecast + ["---", "", f"# {title}", ""]
    listed = [f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in describe_model(model).items()]
    judged = ["", "## Scores", "", *(f"- {line}" for line in scores)] if scores else []
    shape = "(steps, numbers)" if model.embedding is None else "(steps,) of whole numbers"
    use = f"lstmcore predict FOLDER {'my.csv' if forecast else 'my-sequences.csv'}"
    return "\n".join(
        [
            *front,
            "A model of [lstmcore](https://pypi.org/project/lstmcore/), an LSTM library that needs NumPy alone.",
            "",
            "| | |",
            "|---|---|",
            *listed,
            *judged,
            "",
            "## Use",
            "",
            "```sh",
            use,
            "```",
            "",
            "```python",
            "from lstmcore.training import load_model",
            "",
            'model = load_model("FOLDER")',
            f"outputs = model.predict([sequence])  # one array {shape} for each sequence",
            "```",
            "",
            "`FOLDER` is the folder with these files. No file runs code when it is read.",
            "",
        ]
    )


def save_folder(model: SequenceModel, folder: str | Path, *, title: str = "", scores: Sequence[str] = ()) -> None:
    """Write a model as a folder for Hugging Face's hub: ``model.safetensors``, ``config.json`` and ``README.md``.

    ``SequenceModel.load`` reads the folder. Upload it with ``hf upload USER/NAME FOLDER``.

    Parameters
    ----------
    model
        The model.
    folder
        A folder that is new or empty.
    title
        The heading of the card; the name of the folder if it is empty.
    scores
        Lines for the card about how the model was judged.

    Raises
    ------
    ValueError
        A folder with files in it, or a path where none can be made.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> from lstmcore.training import Readout
    >>> save_folder(SequenceModel(LSTM(3, 4, seed=0), Readout(4, 2, seed=0)), "mine")
    >>> SequenceModel.load("mine").readout.output_size
    2
    """
    path = Path(folder)
    try:
        path.mkdir(exist_ok=True)
        if any(path.iterdir()):
            raise UnwritableError("folder", f"expected a new or an empty one; got {str(path)!r}, which has files", path)
    except OSError as error:
        problem = f"expected a folder that can be made; got {str(path)!r}: {error.strerror}"
        raise UnwritableError("folder", problem, path) from None
    model.save(path / WEIGHTS)
    config = {"library_name": "lstmcore", "architectures": ["SequenceModel"], **model_header(model.parts)}
    write_atomically(path / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    write_atomically(path / CARD, model_card(model, title=title or path.resolve().name, scores=scores).encode())
