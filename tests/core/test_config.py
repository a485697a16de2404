"""The configuration: every error, every shape, and its dictionary form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from lstmcore.config import (
    ACTIVATIONS,
    CONFIG_VERSION,
    FEATURES,
    Activation,
    LSTMConfig,
    StackConfig,
    check_version,
    rate,
)
from lstmcore_conformance.cases.switches import FUNCTIONS, SWITCHES
from strategies import lstm_configs, switch_config, with_switches


def config(**switches: Any) -> LSTMConfig:
    return LSTMConfig(**({"input_size": 5, "hidden_size": 3} | switches))


@pytest.mark.parametrize(
    ("switches", "error", "message"),
    [
        ({"input_size": 0}, ValueError, r"input_size: expected at least 1; got 0"),
        ({"hidden_size": -2}, ValueError, r"hidden_size: expected at least 1; got -2"),
        ({"input_size": 2.0}, TypeError, r"input_size: expected a whole number; got 2\.0"),
        ({"hidden_size": True}, TypeError, r"hidden_size: expected a whole number; got True"),
        ({"hidden_size": "3"}, TypeError, r"hidden_size: expected a whole number; got '3'"),
        ({"proj_size": -1}, ValueError, r"proj_size: expected at least 0; got -1"),
        ({"proj_size": 3}, ValueError, r"proj_size: expected 0 or a value below hidden_size=3; got 3"),
        ({"proj_size": None}, TypeError, r"proj_size: expected a whole number; got None"),
        ({"bias": 1}, TypeError, r"bias: expected True or False; got 1"),
        ({"reverse": "no"}, TypeError, r"reverse: expected True or False; got 'no'"),
        ({"peephole": None}, TypeError, r"peephole: expected True or False; got None"),
        ({"layer_norm": 0}, TypeError, r"layer_norm: expected True or False; got 0"),
        ({"coupling": "cifg"}, ValueError, r"coupling: expected one of 'none', .*; got 'cifg'"),
        ({"coupling": None}, ValueError, r"coupling: expected one of .*; got None"),
        ({"recurrence": "memory"}, ValueError, r"recurrence: expected one of 'hidden', 'cell'; got 'memory'"),
        ({"gate_clip": 0}, ValueError, r"gate_clip: expected a number > 0, or None for none; got 0"),
        ({"gate_clip": float("nan")}, ValueError, r"gate_clip: expected a finite number; got nan"),
        ({"cell_clip": -1.0}, ValueError, r"cell_clip: expected a number > 0, or None for none; got -1\.0"),
        ({"cell_clip": "3"}, TypeError, r"cell_clip: expected a number; got '3'"),
        ({"cell_clip": float("inf")}, ValueError, r"cell_clip: expected a finite number; got inf"),
        ({"cell_clip": 10**400}, ValueError, r"cell_clip: expected a finite number; got one that"),
        ({"proj_clip": 1.0}, ValueError, r"proj_clip: needs proj_size > 0; got proj_clip=1\.0 with proj_size=0"),
        ({"proj_clip": -1.0, "proj_size": 2}, ValueError, r"proj_clip: expected a number > 0"),
        ({"layer_norm_eps": 0.0}, ValueError, r"layer_norm_eps: expected a number > 0"),
        ({"layer_norm_eps": None}, TypeError, r"layer_norm_eps: expected a number; got None"),
        ({"zoneout_hidden": 1.1}, ValueError, r"zoneout_hidden: expected a rate in \[0, 1\]; got 1\.1"),
        ({"zoneout_cell": -0.1}, ValueError, r"zoneout_cell: expected a rate in \[0, 1\]; got -0\.1"),
        ({"zoneout_cell": True}, TypeError, r"zoneout_cell: expected a number; got True"),
        ({"recurrent_dropout": 1.0}, ValueError, r"recurrent_dropout: expected a rate in \[0, 1\); got 1\.0"),
        ({"recurrent_dropout": "much"}, TypeError, r"recurrent_dropout: expected a number; got 'much'"),
        ({"gate_activation": "sigmoidal"}, ValueError, r"activation: expected one of sigmoid, .*; got 'sigmoidal'"),
        ({"cell_activation": 3}, TypeError, r"activation: expected an Activation or its text, such as 'tanh'; got int"),
        ({"hidden_activation": "tanh(1)"}, ValueError, r"activation tanh: has no parameter alpha; got alpha=1\.0"),
    ],
)
def test_value_outside_its_domain(switches: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        config(**switches)
    assert "\n" not in str(caught.value)


def test_values_on_the_edge_of_their_domain() -> None:
    made = config(zoneout_hidden=1, zoneout_cell=1.0, recurrent_dropout=0, proj_size=2, proj_clip=5e-324)
    assert (made.zoneout_hidden, made.zoneout_cell, made.recurrent_dropout) == (1.0, 1.0, 0.0)
    assert isinstance(made.zoneout_hidden, float)
    assert rate("r", 0) == 0.0


@pytest.mark.parametrize("coupling", ["none", "forget_from_input", "input_from_forget"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("proj", [0, 2])
@pytest.mark.parametrize("recurrence", ["hidden", "cell"])
def test_parameter_shapes(coupling: str, bias: bool, proj: int, recurrence: str) -> None:
    made = config(coupling=coupling, bias=bias, proj_size=proj, recurrence=recurrence, peephole=True, layer_norm=True)
    gates = {"none": 4, "forget_from_input": 3, "input_from_forget": 3}[coupling]
    width = 3 if recurrence == "cell" or not proj else 2
    expected: dict[str, tuple[int, ...]] = {"weight_x": (3 * gates, 5), "weight_h": (3 * gates, width)}
    if bias:
        expected["bias"] = (3 * gates,)
    if proj:
        expected["weight_proj"] = (2, 3)
    expected |= {"peephole": (gates - 1, 3), "norm_gain_x": (3 * gates,), "norm_gain_h": (3 * gates,)}
    expected["norm_gain_c"] = (3,)
    if bias:
        expected["norm_bias_c"] = (3,)
    assert list(made.parameter_shapes.items()) == list(expected.items())
    assert (made.output_size, made.recurrent_size) == (proj or 3, width)


@pytest.mark.parametrize(
    ("coupling", "gates", "peepholes"),
    [("none", "ifgo", "ifo"), ("forget_from_input", "igo", "io"), ("input_from_forget", "fgo", "fo")],
)
def test_gate_order(coupling: str, gates: str, peepholes: str) -> None:
    assert config(coupling=coupling).gates == tuple(gates)
    assert config(coupling=coupling).peephole_gates == ()
    assert config(coupling=coupling, peephole=True).peephole_gates == tuple(peepholes)


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("plain", set()),
        ("no_bias", {"no_bias"}),
        ("proj_clip", {"proj_size", "proj_clip"}),
        ("reverse", {"reverse"}),
        ("input_from_forget,peephole", {"coupling:input_from_forget", "peephole"}),
        ("recurrence_cell", {"recurrence:cell"}),
        ("gate_activation=softsign", {"activation:softsign", "activation:tanh"}),
        ("layer_norm", {"layer_norm"}),
        ("zoneout_cell", {"zoneout_cell"}),
    ],
)
def test_features(name: str, features: set[str]) -> None:
    assert switch_config(name).features == features


def test_every_switch_is_a_declarable_feature() -> None:
    used = set().union(*(switch_config(name).features for name in SWITCHES))
    assert used | {"lengths", "masks"} == FEATURES


@settings(max_examples=60)
@given(lstm_configs())
def test_dictionary_form_round_trips(made: LSTMConfig) -> None:
    values = json.loads(json.dumps(made.to_dict()))
    again = LSTMConfig.from_dict(values)
    assert again == made
    assert hash(again) == hash(made)
    assert again.parameter_shapes == made.parameter_shapes
    assert made.features <= FEATURES


def test_dictionary_form_names_every_switch_and_the_version() -> None:
    values = config().to_dict()
    assert values["version"] == CONFIG_VERSION
    assert "parameter_shapes" not in values
    assert LSTMConfig.from_dict({"version": 1, "input_size": 5, "hidden_size": 3}) == config()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": CONFIG_VERSION + 1}, r"config version: expected at most 1; got 2, written by a newer lstmcore"),
        ({"version": None}, r"config version: expected a whole number from 1 to 1; got None"),
        ({"version": True}, r"config version: expected a whole number from 1 to 1; got True"),
        ({"version": "1"}, r"config version: expected a whole number from 1 to 1; got '1'"),
        ({"version": 0}, r"config version: .*; got 0"),
        ({"forget_bias": 1.0}, r"config: unknown switch forget_bias; known are bias, .*"),
        ({"parameter_shapes": {}}, r"config: unknown switch parameter_shapes"),
        ({"hidden_size": 0}, r"hidden_size: expected at least 1; got 0"),
    ],
)
def test_dictionary_that_cannot_be_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTMConfig.from_dict(config().to_dict() | change)


def test_dictionary_that_lacks_a_size() -> None:
    with pytest.raises(ValueError, match="config: hidden_size, input_size missing"):
        LSTMConfig.from_dict({"version": 1})
    check_version("model", 1, 1)


# Activations as text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tanh", Activation("tanh")),
        ("tanh()", Activation("tanh")),
        (" elu ( 0.5 ) ", Activation("elu", 0.5)),
        ("elu", Activation("elu", 1.0)),
        ("hard_sigmoid(alpha=0.2, beta=0.5)", Activation("hard_sigmoid", 0.2, 0.5)),
        ("hard_sigmoid(beta=0.4)", Activation("hard_sigmoid", 0.2, 0.4)),
        ("affine(2, -1e-3)", Activation("affine", 2.0, -1e-3)),
        ("affine(2, beta=3)", Activation("affine", 2.0, 3.0)),
        ("leaky_relu(alpha=0)", Activation("leaky_relu", 0.0)),
    ],
)
def test_activation_text(text: str, expected: Activation) -> None:
    assert Activation.parse(text) == expected
    assert Activation.parse(str(expected)) == expected
    assert Activation.parse(expected) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a text such as"),
        ("tanh(", "expected a text such as"),
        ("tanh)x", "expected a text such as"),
        ("tanh tanh", "expected a text such as"),
        ("elu(elu(1))", "expected a text such as"),
        ("gelu", "expected one of sigmoid"),
        ("Tanh", "expected one of sigmoid"),
        ("elu(half)", "expected a number for alpha; got 'half'"),
        ("elu(,)", "expected a number for alpha; got ''"),
        ("elu(gamma=1)", "expected alpha and beta only"),
        ("elu(=1)", "expected alpha and beta only"),
        ("affine(1, 2, 3)", "expected alpha and beta only"),
        ("affine(1, alpha=2)", "expected alpha once"),
        ("affine(beta=1, beta=1)", "expected beta once"),
        ("elu(beta=1)", "activation elu: has no parameter beta"),
        ("sigmoid(0.5)", "activation sigmoid: has no parameter alpha"),
        ("elu(nan)", "activation elu alpha: expected a finite number; got nan"),
        ("affine(1, -inf)", "activation affine beta: expected a finite number; got -inf"),
    ],
)
def test_activation_text_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Activation.parse(text)


@pytest.mark.parametrize("value", [None, 3, b"tanh", ["tanh"]])
def test_activation_of_another_type(value: Any) -> None:
    with pytest.raises(TypeError, match="expected an Activation or its text"):
        Activation.parse(value)


def test_activation_made_by_hand() -> None:
    with pytest.raises(ValueError, match=r"expected one of .*; got \['tanh'\]"):
        Activation(["tanh"])  # type: ignore[arg-type]  # the wrong type is what is tested
    with pytest.raises(TypeError, match="activation elu alpha: expected a number; got '1'"):
        Activation("elu", "1")  # type: ignore[arg-type]  # the wrong type is what is tested


def test_every_activation_is_tested() -> None:
    assert {Activation.parse(text).name for text in FUNCTIONS} == set(ACTIVATIONS)


# Stacks ---------------------------------------------------------------------------------------------------------------


def test_stack_of_layers_and_directions() -> None:
    stack = StackConfig.make(config(proj_size=2), num_layers=2, bidirectional=True, dropout=0.5)
    assert (stack.num_layers, stack.num_directions) == (2, 2)
    assert (stack.input_size, stack.hidden_size, stack.output_size) == (5, 3, 2)
    assert stack.suffixes == ("_l0", "_l0_reverse", "_l1", "_l1_reverse")
    assert [c.input_size for c in stack.configs] == [5, 5, 4, 4]
    assert [c.reverse for c in stack.configs] == [False, True, False, True]
    assert stack.parameter_shapes["weight_x_l1_reverse"] == (12, 4)
    assert stack.parameter_shapes["weight_proj_l0"] == (2, 3)
    assert len(stack.parameter_shapes) == 16


def test_stack_of_one_layer() -> None:
    stack = StackConfig.make(config())
    assert stack.configs == (config(),)
    assert list(stack.parameter_shapes) == ["weight_x_l0", "weight_h_l0", "bias_l0"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, r"num_layers: expected at least 1; got 0"),
        ({"num_layers": 1.5}, TypeError, r"num_layers: expected a whole number; got 1\.5"),
        ({"num_layers": 10**9}, ValueError, r"num_layers: expected at most 65536; got 1000000000"),
        ({"bidirectional": 1}, TypeError, r"bidirectional: expected True or False; got 1"),
        ({"dropout": 1.0}, ValueError, r"dropout: expected a rate in \[0, 1\); got 1\.0"),
        ({"dropout": None}, TypeError, r"dropout: expected a number; got None"),
    ],
)
def test_stack_that_cannot_be_made(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StackConfig.make(config(), **arguments)


def test_stack_of_a_reversed_layer() -> None:
    with pytest.raises(ValueError, match=r"reverse: expected False here"):
        StackConfig.make(config(reverse=True))


PLAIN, BACK = config(), config(reverse=True)
ABOVE = with_switches(PLAIN, input_size=3)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), r"layers: expected at least one layer; got none"),
        (((),), r"layers\[0\]: expected 1 or 2 directions; got 0"),
        (((PLAIN, BACK, BACK),), r"layers\[0\]: expected 1 or 2 directions; got 3"),
        (((PLAIN,), (ABOVE, BACK)), r"layers\[1\]: expected 1 direction\(s\) as in layers\[0\]; got 2"),
        (((PLAIN,), (PLAIN,)), r"layers\[1\]\[0\]\.input_size: expected 3, the width of the layer below; got 5"),
        (((BACK,),), r"layers\[0\]\[0\]\.reverse: expected False; got True"),
        (((PLAIN, PLAIN),), r"layers\[0\]\[1\]\.reverse: expected True; got False"),
        (((PLAIN,), (with_switches(ABOVE, hidden_size=4),)), r"layers\[1\]\[0\]: hidden_size and proj_size must be"),
        (((PLAIN, with_switches(BACK, input_size=4)),), r"layers\[0\]\[1\]\.input_size: expected 5 as in the other"),
    ],
)
def test_layers_that_do_not_fit(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StackConfig(layers)
