"""Functions that write the file of a model and read it again."""

from __future__ import annotations

from pathlib import Path

from lstmcore.training.model import SequenceModel


def save_model(model: SequenceModel, path: str | Path) -> None:
    """Write parameters, standardisation and configuration of a model, which any backend can read and run.

    Raises
    ------
    ValueError, TypeError
        A model that `load_model` would refuse, or a path that cannot be written.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> from lstmcore.training import Readout
    >>> save_model(SequenceModel(LSTM(2, 4, seed=0), Readout(4, 1, seed=0)), "model.safetensors")
    >>> load_model("model.safetensors").readout.output_size
    1
    """
    model.save(path)


def load_model(path: str | Path, *, backend: str | None = None, dtype: str | None = None) -> SequenceModel:
    """Read a model that `save_model` wrote.

    Parameters
    ----------
    path
        The file.
    backend
        The backend that runs it; None selects one as `LSTM` does.
    dtype
        Precision to run it in. None takes the file's, or float64 if the backend refuses a float32 model, as the
        reference does: that changes no weight. ``model.readout.dtype`` is the one that was taken.

    Raises
    ------
    ValueError
        A truncated or foreign file, a newer version, missing or unknown tensors, wrong shapes, NaN in the weights;
        the message names the file. A `backend` or `dtype` that is not there or does not run this model.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> from lstmcore.training import Readout
    >>> SequenceModel(LSTM(2, 4, seed=0), Readout(4, 1, seed=0)).save("model.safetensors")
    >>> load_model("model.safetensors", backend="numpy").lstm
    LSTM(2, 4, dtype='float32', backend='numpy')
    """
    return SequenceModel.load(path, backend=backend, dtype=dtype)
