"""Files and weights of other libraries: what an `LSTM` and a `Chain` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy.typing as npt

from lstmcore.backend import Backend
from lstmcore.layer_file import LayerFile, read_layers, write_layers
from lstmcore.precision import Precision


class Interchange(ABC):
    """Layers that are written to files, and read from those of other libraries."""

    #: The format of the files that `save` writes.
    file_format: ClassVar[str]

    @property
    @abstractmethod
    def content(self) -> LayerFile:
        """Layers, precision, layout and parameters: what a file holds."""

    @classmethod
    @abstractmethod
    def from_content(
        cls,
        content: LayerFile,
        *,
        dtype: str | npt.DTypeLike | Precision | None = None,
        backend: str | Backend | None = None,
    ) -> Self:
        """Return what a file holds, to be computed with: the inverse of `content`."""

    def save(self, path: str | Path) -> None:
        """Write configuration and parameters to a safetensors file, completely or not at all. `load` reads it.

        It is no model: `lstmcore.training.SequenceModel` has a readout too, and a file of its own.

        Raises
        ------
        ValueError, OSError
            A path that cannot be written.
        """
        write_layers(path, self.content)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        backend: str | Backend | None = None,
        dtype: str | npt.DTypeLike | Precision | None = None,
    ) -> Self:
        """Read what `save` wrote; the parameters come back bit for bit.

        Parameters
        ----------
        path
            The file.
        backend
            As for the constructor.
        dtype
            The precision to run it in; None takes that of the file.

        Raises
        ------
        ValueError
            A truncated or foreign file, a newer version, missing or unknown tensors, other shapes, numbers that are
            not finite; the message names the file, what was expected and what was found.
        OSError
            The file cannot be read.
        """
        found = read_layers(path, cls.file_format, dtype)
        try:
            return cls.from_content(found, backend=backend)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_source(cls, source: object, content: LayerFile, dtype: Any, backend: str | Backend | None) -> Self:
        """As `from_content`; if `source` is a path, an error names it."""
        try:
            return cls.from_content(content, dtype=dtype, backend=backend)
        except (TypeError, ValueError) as error:
            if not isinstance(source, str | Path):
                raise
            raise type(error)(f"{source}: {error}") from error

    @classmethod
    def from_onnx(
        cls,
        path: str | Path,
        node: str | None = None,
        *,
        dtype: str | npt.DTypeLike | Precision | None = None,
        backend: str | Backend | None = None,
    ) -> Self:
        """Return the weights of the operator LSTM in an ONNX model; needs the extra ``onnx``.

        A `Chain` also has reversed layers, layers of other sizes, and merges of two directions.

        Parameters
        ----------
        path
            The file of a model.
        node
            The name of a node, or of its first output where it has no name; ``lstmcore convert --list`` shows them.
            None takes all, where each reads what the one before gives.
        dtype
            None takes that of the weights. The int8 matrices of DynamicQuantizeLSTM are stored weights.
        backend
            As for the constructor.

        Raises
        ------
        TypeError, ValueError
            No such node, weights that the model computes from its inputs, an attribute or a shape that is not one of
            an LSTM, layers that need a `Chain`, numbers that are not finite, another kind of file.
        OSError, ImportError
            The file cannot be read; ONNX is not installed.
        """
        from lstmcore.dialects.onnx_reader import read_onnx

        return cls._from_source(path, read_onnx(path, node), dtype, backend)

    @classmethod
    def from_tflite(
        cls,
        path: str | Path,
        node: str | None = None,
        *,
        dtype: str | npt.DTypeLike | Precision | None = None,
        backend: str | Backend | None = None,
    ) -> Self:
        """Return the weights of LSTMs in a TFLite model; needs the extra ``tflite``.

        Read are the operator UNIDIRECTIONAL_SEQUENCE_LSTM, and loops (WHILE) that compute an LSTM of Keras. A `Chain`
        also has reversed layers, layers of other sizes, and merges of two directions.

        Parameters
        ----------
        path
            The file of a model.
        node
            The name of an LSTM's first output; ``lstmcore convert --list`` shows them. None takes all, where each reads
            what the one before gives.
        dtype
            None takes float32. Matrices of int8 and of float16 are stored weights.
        backend
            As for the constructor.

        Raises
        ------
        TypeError, ValueError
            No such LSTM, a switch that lstmcore lacks (such as TFLite's layer normalisation), a loop that computes
            something else, integer activations, layers that need a `Chain`, another kind of file or a damaged one.
        OSError, ImportError
            The file cannot be read; the package tflite is not installed.
        """
        from lstmcore.dialects.tflite_reader import read_tflite

        return cls._from_source(path, read_tflite(path, node), dtype, backend)

    def to_onnx(self, path: str | Path, *, lengths: bool = True, state: bool = True) -> None:
        """Write an ONNX model with these weights, for inference; needs the extra ``onnx``.

        Its inputs are x, ``lengths`` (N,) in int32 and the initial state ``h_0`` and ``c_0``; its outputs y and the
        final state ``h_n`` and ``c_n``. The names of the states of a chain end with the number of the LSTM: ``h_0.0``.
        T and N are free. Numbers of 16 bits and stored weights are written as float32.

        Parameters
        ----------
        path
            The file to write.
        lengths, state
            Whether the model has these inputs and, for the state, these outputs. Without, rows have T steps and start
            from zero.

        Raises
        ------
        ValueError
            A switch that ONNX's operator does not have, by name; more than 2 GiB; a path that cannot be written.
        ImportError
            ONNX is not installed.
        """
        from lstmcore.dialects.onnx_writer import write_layers_to_onnx

        write_layers_to_onnx(path, self.content, lengths=lengths, state=state)

    @classmethod
    def from_keras(
        cls,
        source: Any,
        layer: str | None = None,
        *,
        dtype: str | npt.DTypeLike | Precision | None = None,
        backend: str | Backend | None = None,
    ) -> Self:
        """Return the weights of layers LSTM and Bidirectional of Keras; files need the extra ``keras``.

        The layout is ``batch_first``, as Keras has it. A `Chain` also has merges of two directions, layers of other
        sizes, and one with ``go_backwards``.

        Parameters
        ----------
        source
            A live layer or model, or the path of a .keras, .weights.h5 or .h5 file. A file of weights alone has no
            configuration: tanh, sigmoid and concatenated directions are taken, and a warning says so.
        layer
            The name of one layer; ``lstmcore convert --list`` shows them. None takes all LSTMs that follow each other
            in a sequential model.
        dtype
            None takes that of the weights.
        backend
            As for the constructor.

        Raises
        ------
        TypeError, ValueError
            No such layer, a function or a shape that is not one of an LSTM, layers that need a `Chain`, numbers that
            are not finite, another kind of file.
        OSError, ImportError
            The file cannot be read; h5py is not installed.
        """
        from lstmcore.dialects.keras_files import read_keras_source

        return cls._from_source(source, read_keras_source(source, layer), dtype, backend)

    def to_keras(self) -> list[list[npt.NDArray[Any]]]:
        """Return the arrays of each layer of Keras, for its ``set_weights``.

        They are kernel, recurrent_kernel and bias, and the same of the reversed direction in a Bidirectional. A merge
        has none: it is an argument of the layer.

        Raises
        ------
        ValueError
            A switch that the weights of Keras do not hold, by name; a layer that is reversed alone.
        """
        from lstmcore.dialects.keras import to_keras

        return to_keras(self.content)
