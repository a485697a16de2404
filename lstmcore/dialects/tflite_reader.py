"""Reading the LSTMs of a TFLite model: the fused operators, and the loops that Keras's converters make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lstmcore.dialects.layers import PlacedLayer, join_layers
from lstmcore.dialects.tflite_file import DAMAGE, Graph, Operator, open_tflite
from lstmcore.dialects.tflite_layers import BOTH, FUSED, LiteLayer, read_fused
from lstmcore.dialects.tflite_links import Arranged, alone, arrange
from lstmcore.dialects.tflite_loops import LOOP, graphs_of, parts_of, read_loop
from lstmcore.layer_file import LayerFile
from lstmcore.precision import get_precision
from lstmcore.stored_weights import SAME, StoredMatrix, is_matrix

#: The LSTM that TFLite has and that is not read.
_OTHER: Final = "LSTM"


@dataclass(frozen=True)
class LiteNode:
    """An LSTM in a file that is not read yet."""

    label: str
    graph: Graph
    operator: Operator
    loop: tuple[Graph, Graph] | None

    def read(self) -> list[LiteLayer]:
        """Return the layer, or both directions; raise TypeError or ValueError if ours cannot be it, with its label."""
        try:
            if self.operator.code == _OTHER:
                raise ValueError(f"expected the operator {FUSED}, {BOTH} or a loop; got {self.operator.code}")
            if self.loop is None:
                return read_fused(self.graph, self.operator, self.label)
            return [read_loop(self.graph, self.operator, self.label, *self.loop)]
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.label}: {str(error).removeprefix(f'{self.label}: ')}") from error
        except DAMAGE as error:  # options are read here for the first time
            raise ValueError(f"{self.label}: expected a whole operator; got a damaged file: {error}") from error


def open_nodes(path: str | Path) -> list[LiteNode]:
    """Return the LSTMs of a file; errors are those of `tflite_file.open_tflite`."""
    found = list(_found(open_tflite(path)))
    names = [_name(graph, operator) for graph, operator, _ in found]
    taken, nodes = set(names), list[LiteNode]()
    for place, (name, parts) in enumerate(zip(names, found, strict=True)):
        label, number = name, names[:place].count(name) + 1
        while number > 1 and (label := f"{name}#{number}") in taken:  # which another LSTM may have as its name
            number += 1
        taken.add(label)
        nodes.append(LiteNode(label, *parts))
    return nodes


def _name(graph: Graph, operator: Operator) -> str:
    return next((graph.tensors[place].name for place in operator.outputs if graph.tensors[place].name), "lstm")


def _found(graphs: Sequence[Graph]) -> Iterator[tuple[Graph, Operator, tuple[Graph, Graph] | None]]:
    for graph in graphs:
        for operator in graph.operators:
            if operator.code in (FUSED, BOTH, _OTHER):
                yield graph, operator, None
            elif operator.code == LOOP:
                loop = graphs_of(graphs, operator)
                if loop is not None and parts_of(loop[1]) is not None:
                    yield graph, operator, loop


def read_tflite(path: str | Path, node: str | None = None) -> LayerFile:
    """Return an LSTM of a model in our terms.

    Parameters
    ----------
    path
        The file of the model.
    node
        The name of an LSTM's first output. None takes all LSTMs, where each reads what the one before gives: they are
        the layers of one stack, or of a chain.

    Raises
    ------
    TypeError, ValueError
        No such LSTM, a damaged file, what the operator has and ours has not, weights that are computed in a run or
        have another type, numbers that are not finite.
    OSError, ImportError
        The file cannot be read; the package tflite is not installed.
    """
    try:
        with np.errstate(all="ignore"):  # numbers of a damaged file; those that are not finite are refused below
            arranged = arranged_layers(path, node)
            placed, form = _in_one_form(arranged.placed)
        return join_layers(placed, get_precision("float32").with_weights(form), batch_first=arranged.batch_first)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def arranged_layers(path: str | Path, node: str | None) -> Arranged:
    """Return the layers of a node, or of all in their order; arguments and errors are those of `read_tflite`."""
    nodes = open_nodes(path)
    if not nodes:
        raise ValueError("expected an LSTM; got a model with none")
    names = ", ".join(sorted(repr(each.label) for each in nodes))
    if node is None and len(nodes) > 1:
        if any(each.graph is not nodes[0].graph for each in nodes):
            raise ValueError(f"node: expected one of {names}, since they are in several graphs; got None")
        return arrange([layer for each in nodes for layer in each.read()], names)
    chosen = [each for each in nodes if node in (None, each.label)]
    if len(chosen) != 1:
        raise ValueError(f"node: expected one of {names}; got {node!r}")
    layers = chosen[0].read()
    return alone(layers[0]) if len(layers) == 1 else arrange(layers, names)


def _in_one_form(placed: Sequence[PlacedLayer]) -> tuple[list[PlacedLayer], str]:
    """Return layers whose matrices have one format, and that format: numbers as they are where formats differ."""
    values = [value for layer in placed for part in layer.parameters for name, value in part.items() if is_matrix(name)]
    forms = {value.format if isinstance(value, StoredMatrix) else SAME for value in values}
    if len(forms) == 1:
        return list(placed), forms.pop()
    read = [layer._replace(parameters=tuple(map(_as_floats, layer.parameters))) for layer in placed]
    return read, SAME


def _as_floats(part: Any) -> dict[str, Any]:
    return {name: value.read() if isinstance(value, StoredMatrix) else value for name, value in part.items()}
