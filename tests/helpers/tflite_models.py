"""TFLite models for the tests, built by the schema package: graphs of operators, fused LSTMs, loops as of Keras."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import tflite

TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "bool": 6, "int8": 9}
CODES = {name: number for number, name in tflite.BUILTIN_OPCODE2NAME.items()}
#: The first version of an operator that has what the tests use.
VERSIONS = {"UNIDIRECTIONAL_SEQUENCE_LSTM": 1, "FULLY_CONNECTED": 1, "DEQUANTIZE": 2}


class Built:
    """A graph under construction; a tensor is its place."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tensors: list[tuple[str, Sequence[int], str, bytes | None, Any, bool]] = []
        self.operators: list[tuple[str, Sequence[int], Sequence[int], str, Mapping[str, Any]]] = []
        self.inputs: Sequence[int] = ()
        self.outputs: Sequence[int] = ()

    def tensor(self, shape: Sequence[int], dtype: str = "float32", *, name: str = "", variable: bool = False) -> int:
        self.tensors.append((name, shape, dtype, None, None, variable))
        return len(self.tensors) - 1

    def constant(self, array: Any, scale: Any = None, *, name: str = "") -> int:
        array = np.asarray(array)
        self.tensors.append((name, array.shape, str(array.dtype), array.tobytes(), scale, False))
        return len(self.tensors) - 1

    def weights(self, array: Any, kind: str, scale: float = 0.01) -> int:
        """Return a matrix in float32, float16 with an operator that reads it back, or int8 with a scale."""
        if kind == "int8":
            return self.constant(np.rint(np.clip(array / scale, -127, 127)).astype(np.int8), [scale])
        if kind == "float16":
            stored = self.constant(array.astype(np.float16))
            return self.add("DEQUANTIZE", [stored], array.shape)
        return self.constant(array.astype(np.float32))

    def add(self, code: str, inputs: Sequence[int], *shapes: Any, options: str = "", **given: Any) -> Any:
        """Add an operator and return its output, or a list of several; a shape may be (shape, dtype)."""
        made = [
            self.tensor(*shape) if isinstance(shape[0] if shape else 0, tuple) else self.tensor(shape)
            for shape in shapes
        ]
        self.operators.append((code, inputs, made, options, given))
        return made[0] if len(made) == 1 else made


class Model:
    """A model under construction; graph 0 is the model."""

    def __init__(self) -> None:
        self.graphs: list[Built] = []

    def graph(self) -> Built:
        self.graphs.append(Built(self))
        return self.graphs[-1]

    def content(self) -> bytes:  # long: the tables of the format in their order
        """Return the bytes of the file."""
        self.builder = builder = flatbuffers.Builder(1024)
        codes = sorted({operator[0] for graph in self.graphs for operator in graph.operators})
        datas: list[bytes] = [b""]
        graphs = [self._graph(graph, codes, datas) for graph in self.graphs]
        made_codes = []
        for code in codes:
            tflite.OperatorCodeStart(builder)
            tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, min(CODES[code], 127))
            tflite.OperatorCodeAddBuiltinCode(builder, CODES[code])
            tflite.OperatorCodeAddVersion(builder, VERSIONS.get(code, 1))
            made_codes.append(tflite.OperatorCodeEnd(builder))
        buffers = []
        for data in datas:
            vector = self._bytes(data) if data else None
            tflite.BufferStart(builder)
            if vector is not None:
                tflite.BufferAddData(builder, vector)
            buffers.append(tflite.BufferEnd(builder))
        tables = [self._offsets(each) for each in (made_codes, graphs, buffers)]
        tflite.ModelStart(builder)
        tflite.ModelAddVersion(builder, 3)
        tflite.ModelAddOperatorCodes(builder, tables[0])
        tflite.ModelAddSubgraphs(builder, tables[1])
        tflite.ModelAddBuffers(builder, tables[2])
        builder.Finish(tflite.ModelEnd(builder), b"TFL3")
        return bytes(builder.Output())

    def _offsets(self, places: Sequence[int]) -> int:
        self.builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            self.builder.PrependUOffsetTRelative(place)
        return self.builder.EndVector()

    def _numbers(self, values: Any, dtype: Any = np.int32) -> int:
        return self.builder.CreateNumpyVector(np.asarray(values, dtype))

    def _bytes(self, data: bytes) -> int:
        """Return a vector of bytes at a place that arrays may have."""
        self.builder.StartVector(1, len(data), 16)
        self.builder.head -= len(data)
        self.builder.Bytes[self.builder.head : self.builder.head + len(data)] = data
        return self.builder.EndVector()

    def _graph(self, graph: Built, codes: Sequence[str], datas: list[bytes]) -> int:
        builder = self.builder
        tensors = [self._tensor(*each, datas) for each in graph.tensors]
        operators = [self._operator(*each, codes) for each in graph.operators]
        tables = [self._offsets(tensors), self._offsets(operators)]
        ends = [self._numbers(each) for each in (graph.inputs, graph.outputs)]
        tflite.SubGraphStart(builder)
        tflite.SubGraphAddTensors(builder, tables[0])
        tflite.SubGraphAddInputs(builder, ends[0])
        tflite.SubGraphAddOutputs(builder, ends[1])
        tflite.SubGraphAddOperators(builder, tables[1])
        return tflite.SubGraphEnd(builder)

    def _tensor(  # noqa: PLR0913  (the fields of a tensor)
        self, name: str, shape: Any, dtype: str, data: bytes | None, scale: Any, variable: bool, datas: list[bytes]
    ) -> int:
        builder, fields = self.builder, {"name": self.builder.CreateSharedString(name), "shape": self._numbers(shape)}
        if scale is not None:
            scales, zeros = self._numbers(scale, np.float32), self._numbers(np.zeros(len(scale)), np.int64)
            tflite.QuantizationParametersStart(builder)
            tflite.QuantizationParametersAddScale(builder, scales)
            tflite.QuantizationParametersAddZeroPoint(builder, zeros)
            fields["quantization"] = tflite.QuantizationParametersEnd(builder)
        if data is not None:
            datas.append(data)
        tflite.TensorStart(builder)
        tflite.TensorAddName(builder, fields["name"])
        tflite.TensorAddShape(builder, fields["shape"])
        tflite.TensorAddType(builder, TYPES[dtype])
        tflite.TensorAddBuffer(builder, 0 if data is None else len(datas) - 1)
        tflite.TensorAddIsVariable(builder, variable)
        if scale is not None:
            tflite.TensorAddQuantization(builder, fields["quantization"])
        return tflite.TensorEnd(builder)

    def _operator(
        self, code: str, inputs: Any, outputs: Any, options: str, given: Mapping[str, Any], codes: Sequence[str]
    ) -> int:
        builder, ends = self.builder, [self._numbers(each) for each in (inputs, outputs)]
        table = None
        if options:
            values = {key: self._numbers(value) if isinstance(value, list) else value for key, value in given.items()}
            getattr(tflite, f"{options}Start")(builder)
            for key, value in values.items():
                getattr(tflite, f"{options}Add{key}")(builder, value)
            table = getattr(tflite, f"{options}End")(builder)
        tflite.OperatorStart(builder)
        tflite.OperatorAddOpcodeIndex(builder, codes.index(code))
        tflite.OperatorAddInputs(builder, ends[0])
        tflite.OperatorAddOutputs(builder, ends[1])
        if table is not None:
            tflite.OperatorAddBuiltinOptionsType(builder, getattr(tflite.BuiltinOptions, options))
            tflite.OperatorAddBuiltinOptions(builder, table)
        return tflite.OperatorEnd(builder)


#: T, N, I and H of the models of the tests.
SIZES = (7, 2, 3, 5)


def numbers(seed: int, *shape: int) -> Any:
    """Return random float32 numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(np.float32)


def add_fused(graph: Built, x: int, width: int, name: str = "lstm", seed: int = 0, **given: Any) -> int:
    """Add the operator with random weights and return y.

    `given` may have the flags peephole, coupled and layer_norm, the sizes hidden and proj, kind of the weights,
    proj_bias, time_major, and options of the operator.
    """
    time_major, layer_norm = given.pop("time_major", True), given.get("layer_norm", False)
    inputs, output, states = _inputs(graph, width, seed, given)
    inputs = [x, *inputs[:17], *states, *inputs[17:]] if layer_norm else [x, *inputs[:17], *states]
    y = graph.tensor(_laid_out(output, time_major), name=name)
    options = {"FusedActivationFunction": 4, "TimeMajor": time_major} | given
    graph.operators.append(("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], "UnidirectionalSequenceLSTMOptions", options))
    return y


def add_both(graph: Built, x: int, width: int, name: str = "lstm", seed: int = 0, **given: Any) -> list[int]:
    """Add the operator in both directions and return y, or those of each direction without the option MergeOutputs.

    `given` is that of `add_fused`, without layer_norm, and may have `second_x`, the place of another x.
    """
    time_major, second_x = given.pop("time_major", True), given.pop("second_x", -1)
    shared = dict(given)
    first, output, states = _inputs(graph, width, seed, given)
    second, _, more = _inputs(graph, width, seed + 1, shared)
    inputs = [x, *first[:17], *second[:17], *states, *more, second_x, *[-1] * 8]
    options = {"FusedActivationFunction": 4, "TimeMajor": time_major, "MergeOutputs": True} | given
    widths = [2 * output] if options["MergeOutputs"] else [output, output]
    outputs = [
        graph.tensor(_laid_out(size, time_major), name=name if not place else "") for place, size in enumerate(widths)
    ]
    graph.operators.append(
        ("BIDIRECTIONAL_SEQUENCE_LSTM", inputs, outputs, "BidirectionalSequenceLSTMOptions", options)
    )
    return outputs


def _laid_out(width: int, time_major: bool) -> tuple[int, ...]:
    steps, batch, *_ = SIZES
    return (steps, batch, width) if time_major else (batch, steps, width)


def _inputs(graph: Built, width: int, seed: int, given: dict[str, Any]) -> tuple[list[int], int, list[int]]:
    """Add random weights of a direction; return them from place 1 on without the states, the width of y, and these.

    What is no option of an operator is taken out of `given`.
    """
    _, batch, _, hidden = SIZES
    hidden, proj = given.pop("hidden", hidden), given.pop("proj", 0)
    kind = given.pop("kind", "float32")
    flags = {key: given.pop(key, False) for key in ("peephole", "coupled", "layer_norm")}
    proj_bias, output = given.pop("proj_bias", None), proj or hidden
    rng, inputs = np.random.default_rng(seed), [-1] * 21

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape) / 2

    for place in range(4):
        if flags["coupled"] and place == 0:
            continue
        inputs[place] = graph.weights(draw(hidden, width), kind)
        inputs[4 + place] = graph.weights(draw(hidden, output), kind)
        inputs[11 + place] = graph.constant(draw(hidden).astype(np.float32))
        if flags["layer_norm"]:
            inputs[17 + place] = graph.constant(draw(hidden).astype(np.float32))
    if flags["peephole"]:
        for place in range(3)[flags["coupled"] :]:
            inputs[8 + place] = graph.weights(draw(hidden), kind)
    if proj:
        inputs[15] = graph.weights(draw(proj, hidden), kind)
    if proj_bias is not None:
        inputs[16] = graph.constant(np.full(output, proj_bias, np.float32))
    states = [graph.tensor((batch, size), variable=True) for size in (output, hidden)]
    return inputs, output, states


def one_graph(build: Callable[[Built, int], int], *, batch_first: bool = False) -> bytes:
    """Return a model of one input x, (T, N, I) or (N, T, I); `build` adds operators and returns the output."""
    model = Model()
    graph = model.graph()
    steps, batch, width, _ = SIZES
    x = graph.tensor((batch, steps, width) if batch_first else (steps, batch, width), name="x")
    graph.inputs, graph.outputs = [x], [build(graph, x)]
    return model.content()


def turn(graph: Built, x: int, shape: Sequence[int]) -> int:
    """Add a change of layout between time and batch first."""
    return graph.add(
        "TRANSPOSE", [x, graph.constant(np.array([1, 0, 2], np.int32))], tuple(shape), options="TransposeOptions"
    )


def reverse(graph: Built, x: int, shape: Sequence[int], axis: int) -> int:
    """Add a reversal along an axis."""
    return graph.add(
        "REVERSE_V2", [x, graph.constant(np.array([axis], np.int32))], tuple(shape), options="ReverseV2Options"
    )


def add_loop(  # long: the operators of a step in their order
    graph: Built, x: int, width: int, name: str = "while", seed: int = 0, *, kind: str = "float32", **given: Any
) -> tuple[int, int]:
    """Add a loop over x (T, N, I) as Keras's converter makes it, and return y (T, N, H) and the last h.

    `given` may have the operator `gates` of the gates and `cell` of the cell, `fused_bias` (bias in the product of h),
    `two_biases` (and one more), `hoisted` (the matrix of x is a variable of the loop), `start` of the counters,
    `last` (y has one step), `state` (what h and c start from), `limit` (of the steps) or `limit_of` (the tensor whose
    first axis is the limit), `sliced` (a step of x and the gates are slices, as LiteRT's converter makes them of JAX).
    """
    steps, batch, _, hidden = SIZES
    rng = np.random.default_rng(seed)
    kernel, recurrent = (rng.standard_normal((4 * hidden, size)) / 2 for size in (width, hidden))
    bias = (rng.standard_normal(4 * hidden) / 2).astype(np.float32)
    body, cond = graph.model.graph(), graph.model.graph()
    number = graph.model.graphs.index
    scalars = [((), "int32"), ((), "int32")]
    rows = 1 if given.get("last") else steps
    shapes: list[Any] = [*scalars, (rows, batch, hidden), (batch, hidden), (batch, hidden), (steps, batch, width)]
    hoisted = given.get("hoisted", False)
    limited = "limit_of" in given
    shapes += ([(4 * hidden, width)] if hoisted else []) + (scalars[:1] if limited else [])
    for each in (body, cond):
        each.inputs = [each.tensor(*s) if s and isinstance(s[0], tuple) else each.tensor(s) for s in shapes]
    count, time, ys, h, c, xs = body.inputs[:6]
    state = (batch, hidden)
    if sliced := given.get("sliced", False):
        now = slice_of(body, xs, [time, *body_scalars(body, (0, 0))], (1, batch, width))
    else:
        now = body.add("GATHER", [xs, time], (batch, width), options="GatherOptions", Axis=0)
    matrix = body.inputs[6] if hoisted else body.weights(kernel, kind)
    of_x = body.add("FULLY_CONNECTED", [now, matrix], (batch, 4 * hidden), options="FullyConnectedOptions")
    inside = [body.constant(bias)] if given.get("fused_bias") else []
    of_h = body.add(
        "FULLY_CONNECTED",
        [h, body.weights(recurrent, kind), *inside],
        (batch, 4 * hidden),
        options="FullyConnectedOptions",
    )
    z = body.add("ADD", [of_x, of_h], (batch, 4 * hidden), options="AddOptions")
    if not inside or given.get("two_biases"):
        z = body.add("ADD", [z, body.constant(bias)], (batch, 4 * hidden), options="AddOptions")
    if sliced:
        i, f, g, o = (slice_of(body, z, body_scalars(body, (0, gate * hidden)), state) for gate in range(4))
    else:
        axis = body.constant(np.array(1, np.int32))
        i, f, g, o = body.add("SPLIT", [axis, z], state, state, state, state, options="SplitOptions", NumSplits=4)
    gate, cell = given.get("gates", "LOGISTIC"), given.get("cell", "TANH")
    i, f, o = (body.add(gate, [each], state) for each in (i, f, o))
    g = body.add(cell, [g], state)
    kept = body.add("MUL", [f, c], state, options="MulOptions")
    added = body.add("MUL", [i, g], state, options="MulOptions")
    c_next = body.add("ADD", [kept, added], state, options="AddOptions")
    h_next = body.add("MUL", [o, body.add(cell, [c_next], state)], state, options="MulOptions")
    one = body.constant(np.array(1, np.int32))
    counts = [body.add("ADD", [each, one], ((), "int32"), options="AddOptions") for each in (count, time)]
    first, *others = body_scalars(body, (0, 0, 0))
    begin = [first if rows == 1 else time, *others]
    begin = body.add("PACK", begin, ((3,), "int32"), options="PackOptions", ValuesCount=3)
    row = body.add(
        "EXPAND_DIMS", [h_next, body.constant(np.array(0, np.int32))], (1, batch, hidden), options="ExpandDimsOptions"
    )
    listed = body.add("DYNAMIC_UPDATE_SLICE", [ys, row, begin], (rows, batch, hidden))
    body.outputs = [*counts, listed, h_next, c_next, xs, *body.inputs[6:]]
    limit = cond.inputs[-1] if limited else cond.constant(np.array(given.get("limit", steps), np.int32))
    cond.outputs = [cond.add("LESS", [cond.inputs[1], limit], ((), "bool"), options="LessOptions")]
    start = graph.constant(np.array(given.get("start", 0), np.int32))
    zeros = graph.constant(np.full(state, given.get("state", 0), np.float32))
    lists = graph.constant(np.zeros((rows, batch, hidden), np.float32))
    outer = [start, start, lists, zeros, zeros, x]
    outer += [graph.weights(kernel, kind)] if hoisted else []
    outer += [first_size(graph, given["limit_of"])] if limited else []
    made = [graph.tensor(*s) if s and isinstance(s[0], tuple) else graph.tensor(s) for s in shapes]
    graph.tensors[made[0]] = (name, *graph.tensors[made[0]][1:])
    places = {"CondSubgraphIndex": number(cond), "BodySubgraphIndex": number(body)}
    graph.operators.append(("WHILE", outer, made, "WhileOptions", places))
    return made[2], made[3]


def slice_of(graph: Built, array: int, begin: Sequence[int], size: Sequence[int]) -> Any:
    """Add a slice that begins at these scalars."""
    count = len(begin)
    start = graph.add("PACK", begin, ((count,), "int32"), options="PackOptions", ValuesCount=count)
    return graph.add("SLICE", [array, start, graph.constant(np.array(size, np.int32))], tuple(size))


def first_size(graph: Built, x: int) -> Any:
    """Add the length of the first axis, as it is found in a run."""
    ends = [graph.constant(np.array([end], np.int32)) for end in (0, 1, 1)]
    sizes = graph.add("SHAPE", [x], ((3,), "int32"), options="ShapeOptions")
    return graph.add("STRIDED_SLICE", [sizes, *ends], ((), "int32"), options="StridedSliceOptions", ShrinkAxisMask=1)


def body_scalars(graph: Built, values: Sequence[int]) -> list[int]:
    """Add int32 scalars."""
    return [graph.constant(np.array(value, np.int32)) for value in values]
