"""Which LSTM of a TFLite graph reads which, in which direction, found by running what lies between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.dialects.layers import PlacedLayer
from lstmcore.dialects.tflite_layers import LiteLayer
from lstmcore.dialects.tflite_loops import fixed_shape
from lstmcore.dialects.tflite_operators import evaluate
from lstmcore.notices import notify

Array: TypeAlias = npt.NDArray[Any]

#: Operators that move the numbers of their first input and change none.
_MOVES: Final = ("TRANSPOSE", "RESHAPE", "REVERSE_V2", "SQUEEZE", "EXPAND_DIMS")
#: Operators by which the outputs of two directions are merged.
_MERGES: Final = ("CONCATENATION", "ADD", "MUL", "DIV")


class Source(NamedTuple):
    """What an LSTM reads: the tensor, whether it does so from the end, and whether that tensor is (N, T, width)."""

    place: int
    reverse: bool
    batch_first: bool


class Arranged(NamedTuple):
    """Layers in their order, and those that give the output: a forward one, a reversed one or both."""

    placed: list[PlacedLayer]
    batch_first: bool
    first: LiteLayer
    last: Sequence[tuple[LiteLayer, bool]]


def arrange(layers: Sequence[LiteLayer], names: str) -> Arranged:
    """Return all LSTMs of a graph as layers one after another.

    Raises
    ------
    ValueError
        They are not one after another in one row; the message has their `names`.
    """
    refused = f"node: expected one of {names}, since they are not one after another in one row; got None"
    outputs = _random_outputs(layers)
    reads = {place: _read(layer, outputs) for place, layer in enumerate(layers)}
    begins = [place for place, x in reads.items() if x is None]
    sources = [source_of(layers[place]) for place in begins]
    stage = [(place, source.reverse ^ layers[place].backward) for place, source in zip(begins, sources, strict=True)]
    placed, batch_first, done = list[PlacedLayer](), sources[0].batch_first if sources else False, 0
    if len({source.place for source in sources}) != 1:
        raise ValueError(refused)
    while True:
        stage.sort(key=lambda each: each[1])
        if [reverse for _, reverse in stage] not in ([False], [True], [False, True]):
            raise ValueError(refused)
        last = [(layers[place], reverse) for place, reverse in stage]
        placed.append(_placed(last))
        done += len(stage)
        merged = dict(_merged(_in_order(last, outputs)))
        found = {place: match for place, x in reads.items() if x is not None and (match := _match(x, merged))}
        if not found:
            break
        stage = [(place, reverse ^ layers[place].backward) for place, (_, reverse) in found.items()]
        if len(modes := {mode for mode, _ in found.values()}) != 1:
            raise ValueError(refused)
        placed += _merge(modes.pop())
        reads = {place: x for place, x in reads.items() if place not in found}
    if done != len(layers):
        raise ValueError(refused)
    return Arranged(placed + _merge(_final_mode(last, outputs)), batch_first, layers[begins[0]], last)


def alone(layer: LiteLayer) -> Arranged:
    """Return one LSTM of a graph, in the direction in which it runs there."""
    source = source_of(layer)
    if source.reverse:
        notify(f"{layer.label}: y has the order of x; TFLite gives the steps of this LSTM from the last to the first")
    last = [(layer, source.reverse)]
    return Arranged([_placed(last)], source.batch_first, layer, last)


def source_of(layer: LiteLayer) -> Source:
    """Return what a layer reads, behind operators that only move numbers.

    Raises
    ------
    ValueError
        Numbers in another order than forward or backward in time; an operator without an input.
    """
    producers = {place: operator for operator in layer.graph.operators for place in operator.outputs}
    place, chain = layer.x, list[str]()
    while place in producers and producers[place].code in _MOVES and len(chain) < len(producers):
        chain.append(producers[place].code)
        place = producers[place].first()
    root = np.random.default_rng(0).standard_normal(fixed_shape(layer.graph.tensors[place].shape))
    x = evaluate(layer.graph, {place: root}, [layer.x]).get(layer.x)
    if x is not None and x.ndim == root.ndim == 3:
        x = _time_major(layer, x)
        for batch_first, array in ((False, root), (True, root.swapaxes(0, 1))):
            for reverse in (False, True):
                if np.array_equal(array[::-1] if reverse else array, x):
                    return Source(place, reverse, batch_first)
    if "REVERSE_V2" in chain:
        raise ValueError(f"{layer.label}: expected x in the order of time, or the reverse; got another order")
    return Source(place, False, not layer.time_major)


def _time_major(layer: LiteLayer, array: Array) -> Array:
    return array if layer.time_major else array.swapaxes(0, 1)


def _random_outputs(layers: Sequence[LiteLayer]) -> dict[int, Array]:
    """Return random numbers for each tensor that an LSTM gives; one may have the columns of two directions."""
    outputs = dict[int, Array]()
    for seed, layer in enumerate(layers):
        if layer.y >= 0:
            width = layer.columns[1] or layer.config.output_size
            y = np.random.default_rng(seed).standard_normal(fixed_shape((*_sizes(layer), width)))
            outputs[layer.y] = _time_major(layer, y)
    return outputs


def _sizes(layer: LiteLayer) -> tuple[int, int]:
    """Return T and N."""
    shape = fixed_shape(layer.graph.tensors[layer.x].shape)
    if len(shape) != 3:
        raise ValueError(f"{layer.label}: expected x with three axes; got {len(shape)}")
    return (shape[0], shape[1]) if layer.time_major else (shape[1], shape[0])


def _read(layer: LiteLayer, outputs: Mapping[int, Array]) -> Array | None:
    """Return x (T, N, width) for these outputs of LSTMs; None if it does not follow from them."""
    x = evaluate(layer.graph, outputs, [layer.x]).get(layer.x)
    return None if x is None or x.ndim != 3 else _time_major(layer, x)


def _in_order(last: Sequence[tuple[LiteLayer, bool]], outputs: Mapping[int, Array]) -> list[Array]:
    """Return the outputs (T, N, H) of a stage in the order of x; none if a layer gives only the last one."""
    if any(layer.y not in outputs for layer, _ in last):
        return []
    return [layer.steps(outputs[layer.y], reverse) for layer, reverse in last]


def _merged(each: Sequence[Array]) -> Iterator[tuple[str, Array]]:
    """Yield by mode what a stage gives, from the outputs of its directions."""
    if each:
        yield "concat", np.concatenate(each, axis=-1)
    if len(each) == 2 and each[0].shape == each[1].shape:
        yield from (("sum", each[0] + each[1]), ("mul", each[0] * each[1]), ("average", (each[0] + each[1]) / 2))


def _match(x: Array, merged: Mapping[str, Array]) -> tuple[str, bool] | None:
    """Return the mode by which `x` follows from a stage, and whether it is reversed in time."""
    for mode, array in merged.items():
        for reverse in (False, True):
            if array.shape == x.shape and np.allclose(array[::-1] if reverse else array, x, rtol=1e-6, atol=1e-6):
                return mode, reverse
    return None


def _placed(last: Sequence[tuple[LiteLayer, bool]]) -> PlacedLayer:
    if len(last) == 1:
        layer, reverse = last[0]
        return PlacedLayer("reversed" if reverse else "lstm", (layer.config,), (layer.weights,))
    configs = tuple(replace(layer.config, reverse=reverse) for layer, reverse in last)
    return PlacedLayer("lstm", configs, tuple(layer.weights for layer, _ in last))


def _merge(mode: str) -> list[PlacedLayer]:
    return [] if mode == "concat" else [PlacedLayer("merge", mode=mode)]


def _final_mode(last: Sequence[tuple[LiteLayer, bool]], outputs: Mapping[int, Array]) -> str:
    """Return how the graph merges the outputs of the last stage: of all steps, or of the last of each direction."""
    steps = _in_order(last, outputs)
    if len(steps) != 2:
        return "concat"
    graph, ends = last[0][0].graph, [y[0] if reverse else y[-1] for y, (_, reverse) in zip(steps, last, strict=True)]
    known = {**outputs, **{layer.h: end for (layer, _), end in zip(last, ends, strict=True) if layer.h >= 0}}
    places = [place for operator in graph.operators if operator.code in _MERGES for place in operator.outputs]
    results, mode = evaluate(graph, known, places), "concat"
    for array in (results[place].squeeze() for place in places if place in results):
        for name, wanted in (*_merged(steps), *_merged(ends)):
            for laid_out in (wanted.squeeze(), wanted.swapaxes(0, 1).squeeze()):
                if laid_out.shape == array.shape and np.allclose(laid_out, array, rtol=1e-6, atol=1e-6):
                    mode = name
    return mode
