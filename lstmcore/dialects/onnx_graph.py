"""Building of an ONNX graph: nodes, constants, inputs and outputs. ONNX is imported when the first is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig
from lstmcore.dialects.onnx import LARGEST, SMALLEST, attributes, tensors

Array: TypeAlias = npt.NDArray[Any]

#: The first version of the operator that has our semantics, apart from its layout, and the file format of that version.
_OPSET: Final = 14
_IR: Final = 7
OUTPUTS: Final = ("Y", "Y_h", "Y_c")

#: No protobuf message is larger.
_MOST_BYTES: Final = 2**31 - 2**16
#: Mode of a merge -> the operator that applies it along the axis of the directions.
_MERGES: Final = {"sum": "ReduceSum", "mul": "ReduceProd", "average": "ReduceMean"}


class OutputPart(NamedTuple):
    """The part of a model's outputs (Q * K,) that is its forecast: `place` of `parts` = Q, of ascending ones if so."""

    parts: int
    place: int
    ascending: bool


@dataclass
class GraphBuilder:
    """The nodes, constants, inputs and outputs of a graph; a tensor is its name.

    Parameters
    ----------
    dtype
        That of x, y and the parameters.
    """

    dtype: npt.DTypeLike
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def add(self, operator: str, inputs: Sequence[str], **given: Any) -> str:
        """Add a node with one output and return its name."""
        from onnx import helper

        name = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, list(inputs), [name], name=f"{operator}_{len(self.nodes)}", **given)
        )
        return name

    def constant(self, values: Any, name: str = "") -> str:
        """Add an initializer, of the dtype of `values`, or int64 for a list, and return its name."""
        from onnx import numpy_helper

        array = np.asarray(values, np.int64 if isinstance(values, list) else None, order="C")
        name = name or f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add_input(self, name: str, shape: Sequence[Any], dtype: npt.DTypeLike | None = None) -> None:
        """Add an input of `dtype`; None takes int32 for one axis, else the dtype of the graph."""
        self.inputs.append(self._value(name, shape, dtype or (np.int32 if len(shape) == 1 else self.dtype)))

    def add_output(self, name: str, shape: Sequence[Any]) -> None:
        """Add an output."""
        self.outputs.append(self._value(name, shape, self.dtype))

    def _value(self, name: str, shape: Sequence[Any], dtype: npt.DTypeLike) -> Any:
        from onnx import helper

        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    def add_lstm(
        self,
        name: str,
        directions: Sequence[tuple[LSTMConfig, Mapping[str, Array]]],
        inputs: Sequence[str],
    ) -> tuple[str, str, str]:
        """Add the operator and return the names of its `OUTPUTS`.

        Parameters
        ----------
        name
            That of the node, and a part of the names of its tensors; '' gives these the names that ONNX has for them.
        directions
            A configuration and its parameters for each direction.
        inputs
            The names of x, lengths, h and c; '' for one that is left out.

        Raises
        ------
        ValueError
            A switch that the operator does not have, or a number that float32 cannot hold.
        """
        from onnx import helper

        # dropout acts in training alone, and a model of ONNX is for inference
        configs = [replace(config, recurrent_dropout=0.0) for config, _ in directions]
        given = attributes(*configs)
        for key, value in given.items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and number and not SMALLEST <= abs(number) <= LARGEST:
                    raise ValueError(f"{key}: expected a number that float32 holds, as ONNX stores it; got {number!r}")
        arrays = tensors(*((config, own) for config, (_, own) in zip(configs, directions, strict=True)))
        prefix = name and f"{name}."
        names = {key: self.constant(array, prefix + key) for key, array in arrays.items()}
        y, h, c = (prefix + output for output in OUTPUTS)
        x, *others = inputs
        read = [x, names["W"], names["R"], names.get("B", ""), *others, names.get("P", "")]
        self.nodes.append(helper.make_node("LSTM", read, [y, h, c], name=name, **given))
        return y, h, c

    def merge(self, name: str, mode: str, axis: int) -> str:
        """Return the sum, product or average over the axis of two directions."""
        if mode == "sum":  # in this version of the operators alone the axes are an input
            return self.add("ReduceSum", [name, self.constant([axis])], keepdims=0)
        return self.add(_MERGES[mode], [name], axes=[axis], keepdims=0)

    def side_by_side(self, name: str, sizes: Sequence[int], axis: int) -> str:
        """Return (..., D * H) from an array with D at `axis`, before N and H."""
        directions, hidden = sizes
        if directions == 1:
            return self.add("Squeeze", [name, self.constant([axis])])
        turned = self.add("Transpose", [name], perm=[0, 2, 1, 3] if axis else [1, 0, 2])
        return self.add("Reshape", [turned, self.constant([0] * (axis + 1) + [directions * hidden])])

    def state_input(self, name: str, sizes: Sequence[int]) -> list[str]:
        """Add an initial state (L * D, N, H) and return the part of each layer."""
        from onnx import helper

        layers, directions, hidden = sizes
        self.add_input(name, [layers * directions, "N", hidden])
        if layers == 1:
            return [name]
        parts = [f"{name}_l{index}" for index in range(layers)]
        self.nodes.append(helper.make_node("Split", [name, self.constant([directions] * layers)], parts, axis=0))
        return parts

    def state_output(self, name: str, parts: Sequence[str], sizes: Sequence[int]) -> None:
        """Add a final state (L * D, N, H) from the parts of the layers."""
        layers, directions, hidden = sizes
        self.rename(self.add("Concat", parts, axis=0), name)
        self.add_output(name, [layers * directions, "N", hidden])

    def time_major(self, name: str, batch_first: bool) -> str:
        """Return (T, N, ...) from (N, T, ...), or back, where the layout says so."""
        return self.add("Transpose", [name], perm=[1, 0, 2]) if batch_first else name

    def in_double(self, name: str, steps: Sequence[tuple[str, Array]]) -> str:
        """Return what operators with a constant make of a tensor, computed in float64, as `Standardizer` does."""
        from onnx import TensorProto, helper

        name = self.add("Cast", [name], to=TensorProto.DOUBLE)
        for operator, array in steps:
            name = self.add(operator, [name, self.constant(array.astype(np.float64))])
        return self.add("Cast", [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def last_step(self, x: str) -> str:
        """Return (N, I), x at the last valid step of each row, 0 for a row of length 0."""
        from onnx import TensorProto

        ends = self.add("Cast", ["lengths"], to=TensorProto.INT64)
        rows = self.add("Unsqueeze", [ends, self.constant([1])])
        places = self.add("Max", [self.add("Sub", [rows, self.constant([1])]), self.constant([0])])
        found = self.add("GatherND", [self.add("Transpose", [x], perm=[1, 0, 2]), places], batch_dims=1)
        some = self.add("Greater", [rows, self.constant([0])])
        return self.add("Where", [some, found, self.constant(np.zeros((1, 1), self.dtype))])

    def mean_over_steps(self, values: str) -> str:
        """Return (N, W): the mean of (T, N, W) over the valid steps of each row, 0 for a row of length 0."""
        from onnx import TensorProto, helper

        ends = self.add("Cast", ["lengths"], to=TensorProto.INT64)
        count = self.add("Gather", [self.add("Shape", [values]), self.constant(np.int64(0))])
        steps = self.add("Range", [self.constant(np.int64(0)), count, self.constant(np.int64(1))])
        columns = [
            self.add("Unsqueeze", [name, self.constant(axes)]) for name, axes in ((steps, [1, 2]), (ends, [0, 2]))
        ]
        valid = self.add("Where", [self.add("Less", columns), values, self.constant(np.zeros(1, self.dtype))])
        total = self.add("ReduceSum", [valid, self.constant([0])], keepdims=0)
        share = self.add("Max", [self.add("Unsqueeze", [ends, self.constant([1])]), self.constant([1])])
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        return self.add("Div", [total, self.add("Cast", [share], to=kind)])

    def part_of(self, name: str, part: OutputPart, axes: int) -> str:
        """Return (..., K), one part of a tensor (..., Q * K) with that many axes."""
        from onnx import helper

        name = self.add("Reshape", [name, self.constant([0] * (axes - 1) + [part.parts, -1])])
        if part.ascending:
            found = [f"{name}_sorted", f"{name}_places"]
            self.nodes.append(
                helper.make_node("TopK", [name, self.constant([part.parts])], found, axis=axes - 1, largest=0)
            )
            name = found[0]
        return self.add("Gather", [name, self.constant(np.int64(part.place))], axis=axes - 1)

    def rename(self, name: str, wanted: str) -> None:
        """Give a tensor the name of an output."""
        from onnx import helper

        self.nodes.append(helper.make_node("Identity", [name], [wanted]))

    def model(self) -> Any:
        """Return the ``onnx.ModelProto``.

        Raises
        ------
        ValueError
            A model of more than 2 GiB.
        """
        from onnx import helper

        if (size := sum(tensor.ByteSize() for tensor in self.constants)) > _MOST_BYTES:
            raise ValueError(f"path: expected less than 2 GiB of parameters, as an ONNX file holds; got {size} bytes")
        graph = helper.make_graph(self.nodes, "lstm", self.inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="lstmcore")
