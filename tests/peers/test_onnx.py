"""ONNX's operator LSTM against the reference: its own node tests, and a grid of its attributes in ONNX Runtime.

The numbers go through `lstmcore.dialects.onnx` in both directions. Budgets are those of the conformance suite.
"""
# long file: the grid, the differences and the node tests share their model builders and the judge

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from lstmcore.backend import State
from lstmcore.config import ACTIVATIONS, LSTMConfig, StackConfig
from lstmcore.dialects import onnx as translate
from lstmcore_conformance.cases.case import Case, Data, rounded
from lstmcore_conformance.cases.switches import FUNCTIONS, WIDTHS
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.composition import parts
from lstmcore_conformance.suite.backend_under_test import Failure, compare

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx import helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]

#: The operator's inputs and outputs in its order.
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = {"Y": "y", "Y_h": "h_n", "Y_c": "c_n"}

LENGTHS = (2, 4, 1)


@dataclass(frozen=True, kw_only=True)
class Given(Case):
    """A case with given numbers."""

    given: Data = field(compare=False)

    @property
    def data(self) -> Data:
        return rounded(self.given, self.policy)


def given(case: Case, name: str, **changes: Any) -> Given:
    """Return `case` with other numbers or another model."""
    known = {item.name: getattr(case, item.name) for item in fields(Case)}
    return Given(**{**known, "name": name, **changes})


# Ours to ONNX's -------------------------------------------------------------------------------------------------------


def make(name: str, **settings: Any) -> Case:
    """Return a case in float32; `directions` are the switches of each, forward first, or of one."""
    directions = settings.pop("directions", ({},))
    configs = [LSTMConfig(**{**WIDTHS, **switches}) for switches in directions]
    model = configs[0] if len(configs) == 1 else StackConfig((tuple(configs),))
    return Case(name=name, model=model, precision="float32", **settings)


def of_each(case: Case) -> list[translate.Direction]:
    """Return the configuration and the parameters of every direction."""
    parameters = case.data.parameters
    if case.stack is None:
        return [(case.config, parameters)]
    return [(config, parts(case.stack, parameters, index)) for index, config in enumerate(case.configs)]


def inputs_of(case: Case) -> dict[str, Array]:
    """Return the operator's inputs, the batch second. The bias is the exact sum of two that differ."""
    data, found = case.data, {"X": case.data.x, **translate.tensors(*of_each(case))}
    if "B" in found:
        both = found["B"][:, : found["B"].shape[1] // 2]
        first = (np.round(both * 16) / 16).astype(np.float32)
        found["B"] = np.concatenate([first, both - first], axis=1)
    if data.lengths is not None:
        found["sequence_lens"] = data.lengths.astype(np.int32)
    if data.state is not None:
        h, c = data.state if case.stack is not None else (data.state.h[None], data.state.c[None])
        found |= {"initial_h": h, "initial_c": c}
    return found


def outputs_of(case: Case, found: Mapping[str, Array]) -> dict[str, Array]:
    """Return y, h_n and c_n as a case has them, from the operator's outputs with the batch second."""
    made = {}
    for name, array in found.items():
        if name == "Y":
            array = np.moveaxis(array, 1, 2).reshape(*array.shape[::2], -1)
        elif case.stack is None:
            array = array[0]
        made[OUTPUTS[name]] = array
    return made


def batch_first(name: str, array: Array) -> Array:
    """Return `array` of layout 0 in layout 1."""
    if name == "Y":
        return np.moveaxis(array, 2, 0)
    return np.swapaxes(array, 0, 1) if name in ("X", "initial_h", "initial_c", "Y_h", "Y_c") else array


def batch_second(name: str, array: Array) -> Array:
    """Return `array` of layout 1 in layout 0."""
    return np.moveaxis(array, 0, 2) if name == "Y" else batch_first(name, array)


def model_of(inputs: Mapping[str, Array], outputs: tuple[str, ...], attributes: Mapping[str, Any]) -> onnx.ModelProto:
    """Return a model of one node; every input is one of the model."""
    node = helper.make_node(
        "LSTM",
        [name if name in inputs else "" for name in INPUTS],
        [name if name in outputs else "" for name in OUTPUTS],
        **attributes,
    )
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(name, kind(array.dtype), array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=7)


def run_runtime(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


def run_evaluator(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    return ReferenceEvaluator(model).run(None, dict(inputs))


def judge(case: Case, outputs: tuple[str, ...], found: list[Array]) -> None:
    """Raise `Failure` if an output is over its budget."""
    expected = budgets.forward(case)
    got = outputs_of(case, dict(zip(outputs, found, strict=True)))
    compare(got, {name: expected[name] for name in got})


# The grid -------------------------------------------------------------------------------------------------------------

ROLES = ("gate_activation", "cell_activation", "hidden_activation")
EACH = ({}, {"reverse": True})
GRID = {
    "plain": {},
    "reverse": {"directions": ({"reverse": True},)},
    "bidirectional": {"directions": EACH},
    "no state": {"state": False},
    "no state, bidirectional": {"state": False, "directions": EACH},
    "no bias": {"directions": ({"bias": False},)},
    "P": {"directions": ({"peephole": True},)},
    "P, bidirectional": {"directions": tuple({**one, "peephole": True} for one in EACH)},
    "lengths": {"lengths": LENGTHS},
    "lengths, reverse": {"lengths": LENGTHS, "directions": ({"reverse": True},)},
    "lengths, bidirectional, P": {
        "lengths": LENGTHS,
        "directions": tuple({**one, "peephole": True} for one in EACH),
    },
    "input_forget": {"directions": ({"coupling": "forget_from_input"},)},
    "input_forget, P, clip, bidirectional": {
        "directions": tuple(
            {**one, "coupling": "forget_from_input", "peephole": True, "gate_clip": 0.9} for one in EACH
        )
    },
    "clip": {"directions": ({"gate_clip": 0.9},)},
    "clip, P": {"directions": ({"gate_clip": 0.9, "peephole": True},)},
    "clip, no bias": {"directions": ({"gate_clip": 0.9, "bias": False},)},
    "clip, large state": {"directions": ({"gate_clip": 0.9},), "scale": 30.0},
    **{f"{role}={text}": {"directions": ({role: text},)} for role in ROLES for text in FUNCTIONS},
    "one alpha of three functions": {
        "directions": ({"gate_activation": "sigmoid", "cell_activation": "tanh", "hidden_activation": "elu(0.6)"},)
    },
    "alpha and beta of all": {
        "directions": (
            dict(zip(ROLES, ("hard_sigmoid(0.3, 0.45)", "elu(0.8)", "scaled_tanh(1.3, 0.6)"), strict=True)),
            {"reverse": True, **dict(zip(ROLES, ("sigmoid", "affine(0.7, 0.1)", "leaky_relu(0.3)"), strict=True))},
        )
    },
}


def grid(name: str) -> tuple[Case, dict[str, Any], dict[str, Array]]:
    """Return the case, the operator's attributes and its inputs."""
    case = make(name, **GRID[name])
    return case, translate.attributes(*case.configs), inputs_of(case)


@pytest.mark.parametrize("name", GRID)
def test_onnx_runtime_does_what_the_attributes_say(name: str) -> None:
    case, attributes, inputs = grid(name)
    judge(case, tuple(OUTPUTS), run_runtime(model_of(inputs, tuple(OUTPUTS), attributes), inputs))


@pytest.mark.parametrize("name", GRID)
def test_attributes_and_tensors_come_back_as_the_configuration(name: str) -> None:
    case, attributes, inputs = grid(name)
    found = translate.directions(attributes, **{key: inputs.get(key) for key in "WRBP"})
    for (config, parameters), (given, expected) in zip(found, of_each(case), strict=True):
        functions = {role: getattr(given, role) for role in ROLES}
        affine = {role: "affine" for role, function in functions.items() if function.name == "identity"}
        assert config == replace(given, **affine)
        assert list(parameters) == list(expected)
        for key, array in parameters.items():
            np.testing.assert_array_equal(array, expected[key])


def test_a_node_is_read_as_it_was_written() -> None:
    functions = dict(zip(ROLES, ("hard_sigmoid(0.25, 0.5)", "relu", "elu(0.75)"), strict=True))
    config = LSTMConfig(**WIDTHS, reverse=True, coupling="forget_from_input", gate_clip=1.5, **functions)
    written = translate.attributes(config)
    assert translate.attributes_of(helper.make_node("LSTM", ["X", "W", "R"], ["Y"], **written)) == written


def test_missing_function_parameters_have_onnx_defaults() -> None:
    """Parameters of activation functions that are not given have the defaults of ONNX."""
    W, R = np.zeros((1, 28, 5), np.float32), np.zeros((1, 28, 7), np.float32)
    for theirs, ours in (("HardSigmoid", "hard_sigmoid"), ("LeakyRelu", "leaky_relu"), ("Elu", "elu")):
        ((config, _),) = translate.directions({"activations": [theirs] * 3, "activation_alpha": [0.75]}, W, R)
        assert config.gate_activation.alpha == 0.75
        assert config.cell_activation.alpha == config.hidden_activation.alpha == ACTIVATIONS[ours]["alpha"]


@pytest.mark.parametrize("outputs", [("Y",), ("Y_h",), ("Y_c",), ("Y", "Y_c"), ("Y_h", "Y_c")])
@pytest.mark.parametrize("name", ["bidirectional", "lengths", "lengths, reverse", "lengths, bidirectional, P"])
def test_outputs_that_are_left_out(name: str, outputs: tuple[str, ...]) -> None:
    case, attributes, inputs = grid(name)
    judge(case, outputs, run_runtime(model_of(inputs, outputs, attributes), inputs))


@pytest.mark.parametrize("missing", ["initial_h", "initial_c"])
def test_half_of_the_initial_state(missing: str) -> None:
    case, attributes, inputs = grid("bidirectional")
    h, c = case.data.state or pytest.fail("the case has a state")
    state = State(0 * h, c) if missing == "initial_h" else State(h, 0 * c)
    half = given(case, f"without {missing}", given=replace(case.data, state=state))
    del inputs[missing]
    judge(half, tuple(OUTPUTS), run_runtime(model_of(inputs, tuple(OUTPUTS), attributes), inputs))


def test_the_grid_would_see_a_gate_in_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    case, attributes, _ = grid("plain")
    monkeypatch.setattr(translate, "_GATES", "ifog")
    inputs = inputs_of(case)
    with pytest.raises(Failure):
        judge(case, tuple(OUTPUTS), run_runtime(model_of(inputs, tuple(OUTPUTS), attributes), inputs))


@pytest.mark.parametrize(
    "switches", [{"proj_size": 3}, {"cell_clip": 1.0}, {"recurrence": "cell"}, {"coupling": "input_from_forget"}]
)
def test_what_the_operator_has_not_is_an_error(switches: dict[str, Any]) -> None:
    (name,) = (config := LSTMConfig(**WIDTHS, **switches)).features
    with pytest.raises(ValueError, match=f"config: expected what ONNX's LSTM has; got {name}"):
        translate.attributes(config)


@pytest.mark.parametrize(
    ("directions", "told"),
    [
        (
            ({}, {"reverse": True, "bias": False}),
            r"bias: expected the same in both directions of an operator; got \[True",
        ),
        (({"gate_clip": 1.0}, {"reverse": True}), "gate_clip: expected the same in both directions"),
        (({"reverse": True}, {}), r"layers\[0\]\[0\]\.reverse: expected False"),
        (({}, {"reverse": True, "hidden_size": 3}), "hidden_size and proj_size must be the same"),
    ],
)
def test_directions_beyond_one_operator_are_an_error(directions: tuple[dict[str, Any], ...], told: str) -> None:
    """Two directions that one operator cannot have are an error."""
    with pytest.raises(ValueError, match=told):
        translate.attributes(*(LSTMConfig(**{**WIDTHS, **switches}) for switches in directions))


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"direction": "backward"}, "direction: expected one of forward, reverse, bidirectional; got 'backward'"),
        ({"activations": ["Sigmoid", "Tanh"]}, r"activations: expected 3 of Sigmoid, .*; got \['Sigmoid', 'Tanh'\]"),
        ({"activations": ["Sigmoid", "Tanh", "Gelu"]}, "activations: expected 3 of Sigmoid, .*'Gelu'"),
        ({"clip": -1.0}, "gate_clip: expected a number > 0"),
    ],
)
def test_attributes_outside_their_domain_are_an_error(attributes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        translate.directions(attributes, np.zeros((1, 28, 5)), np.zeros((1, 28, 7)))


# Where ONNX, its reference evaluator and ONNX Runtime differ ----------------------------------------------------------

#: Names of the grid that the evaluator supports.
EVALUATED = (
    "plain",
    "reverse",
    "bidirectional",
    "no state",
    "no state, bidirectional",
    "no bias",
    "P",
    "P, bidirectional",
)
#: Names of the grid that have something it ignores silently.
IGNORED = ("lengths", "input_forget", "clip", "cell_activation=relu")


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("name", EVALUATED)
def test_the_evaluator_does_what_the_attributes_say(name: str, layout: int) -> None:
    case, attributes, inputs = grid(name)
    if layout:
        inputs = {key: batch_first(key, array) for key, array in inputs.items()}
    found = run_evaluator(model_of(inputs, tuple(OUTPUTS), {**attributes, "layout": layout}), inputs)
    if layout:
        found = [batch_second(key, array) for key, array in zip(OUTPUTS, found, strict=True)]
    judge(case, tuple(OUTPUTS), found)


@pytest.mark.parametrize("name", IGNORED)
def test_the_evaluator_leaves_out_lengths_and_attributes(name: str) -> None:
    case, attributes, inputs = grid(name)
    found = run_evaluator(model_of(inputs, tuple(OUTPUTS), attributes), inputs)
    with pytest.raises(Failure):
        judge(case, tuple(OUTPUTS), found)
    ((config, parameters),) = translate.directions({}, **{key: inputs.get(key) for key in "WRBP"})
    left = replace(case.data, lengths=None, parameters=parameters)
    judge(given(case, f"what is left of {name}", model=config, lengths=None, given=left), tuple(OUTPUTS), found)


@pytest.mark.parametrize("name", ["plain", "bidirectional"])
def test_onnx_runtime_has_no_layout_1(name: str) -> None:
    _, attributes, inputs = grid(name)
    inputs = {key: batch_first(key, array) for key, array in inputs.items()}
    with pytest.raises(Exception, match="layout == 1"):
        run_runtime(model_of(inputs, tuple(OUTPUTS), {**attributes, "layout": 1}), inputs)


def test_onnx_runtime_does_not_clip_the_hidden_input() -> None:
    """The grid compares its result for this case. This test shows that a cell is outside the bound."""
    _, attributes, inputs = grid("clip, large state")
    _, _, c = run_runtime(model_of(inputs, tuple(OUTPUTS), attributes), inputs)
    assert np.abs(c).max() > 1.5 * attributes["clip"]


def test_onnx_runtime_has_another_default_of_thresholded_relu() -> None:
    _, attributes, inputs = grid("hidden_activation=thresholded_relu(alpha=0.2)")
    del attributes["activation_alpha"]
    found = run_runtime(model_of(inputs, tuple(OUTPUTS), attributes), inputs)
    zero = run_runtime(model_of(inputs, tuple(OUTPUTS), {**attributes, "activation_alpha": [0.0]}), inputs)
    for got, expected in zip(found, zero, strict=True):
        np.testing.assert_array_equal(got, expected)
    (default,) = (one for one in onnx.defs.get_schema("ThresholdedRelu").attributes.values())
    assert helper.get_attribute_value(default.default_value) == 1.0


# ONNX's node tests ----------------------------------------------------------------------------------------------------


@cache
def node_tests() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tests of other operators, which are made with these
        from onnx.backend.test.case.node import collect_testcases

        return {test.name: test for test in collect_testcases("LSTM")}


def node_test(name: str) -> tuple[onnx.ModelProto, dict[str, Array], tuple[str, ...], list[Array], int]:
    """Return the model, its inputs by name, its outputs' names, ONNX's expected outputs, and the layout."""
    test = node_tests()[name]
    (node,), ((inputs, expected),) = test.model.graph.node, test.data_sets
    names = [name for name, here in zip(INPUTS, node.input, strict=False) if here]
    outputs = tuple(name for name, here in zip(OUTPUTS, node.output, strict=False) if here)
    layout = translate.attributes_of(node).get("layout", 0)
    return test.model, dict(zip(names, inputs, strict=True)), outputs, expected, layout


def case_of(name: str) -> Case:
    """Return a node test as a case. Its expected values are the reference's, in float64."""
    model, inputs, _, _, layout = node_test(name)
    if layout:
        inputs = {key: batch_second(key, array) for key, array in inputs.items()}
    attributes = translate.attributes_of(model.graph.node[0])
    parts = translate.directions(attributes, **{key: inputs.get(key) for key in "WRBP"})
    count, batch = inputs["X"].shape[:2]
    zeros = np.zeros((len(parts), batch, parts[0][0].hidden_size), np.float32)
    state = State(inputs.get("initial_h", zeros), inputs.get("initial_c", zeros))
    lengths = inputs.get("sequence_lens")
    if len(parts) == 1:
        ((config, parameters),) = parts
        shape, state = config, State(*(part[0] for part in state))
    else:
        stack = StackConfig((tuple(config for config, _ in parts),))
        shape, parameters = (
            stack,
            {
                key + suffix: array
                for suffix, (_, own) in zip(stack.suffixes, parts, strict=True)
                for key, array in own.items()
            },
        )
    plain = Case(name=name, model=shape, precision="float32", steps=count, batch=batch)
    data = replace(plain.data, x=inputs["X"], parameters=parameters, state=state, lengths=lengths)
    return given(plain, name, given=data)


NODE_TESTS = (
    "test_lstm_defaults",
    "test_lstm_with_initial_bias",
    "test_lstm_with_peepholes",
    "test_lstm_batchwise",
    "test_lstm_reverse",
    "test_lstm_bidirectional",
)


@pytest.mark.parametrize("name", "WRBP")
@pytest.mark.parametrize("count", [0, 2])
def test_inputs_of_another_number_of_directions(name: str, count: int) -> None:
    """An empty one was an IndexError, and the second direction of two was dropped."""
    arrays = {"W": np.zeros((1, 28, 5)), "R": np.zeros((1, 28, 7)), "B": np.zeros((1, 56)), "P": np.zeros((1, 21))}
    changed = arrays | {name: np.zeros((count, *arrays[name].shape[1:]))}
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \(1, .*; got \({count}, "):
        translate.directions({}, **changed)
    assert len(translate.directions({}, **arrays)) == 1


def test_the_node_tests_are_these() -> None:
    assert set(node_tests()) == set(NODE_TESTS)


@pytest.mark.parametrize("who", ["ONNX", "ONNX's evaluator", "ONNX Runtime"])
@pytest.mark.parametrize("name", NODE_TESTS)
def test_node_test(name: str, who: str) -> None:
    model, inputs, outputs, expected, layout = node_test(name)
    named = dict(zip((one.name for one in model.graph.input), inputs.values(), strict=True))
    if who == "ONNX Runtime" and layout:
        with pytest.raises(Exception, match="layout == 1"):
            run_runtime(model, named)
        return
    found = {"ONNX": lambda *_: expected, "ONNX's evaluator": run_evaluator, "ONNX Runtime": run_runtime}[who](
        model, named
    )
    if layout:
        found = [batch_second(key, array) for key, array in zip(outputs, found, strict=True)]
    judge(case_of(name), outputs, found)
