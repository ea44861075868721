"""Small edits of an ONNX graph that the rest of the folder is written in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

# What moves numbers and changes none of them; the data is the first input.
MOVEMENT = frozenset({"Reshape", "Transpose", "Gather", "Split", "Slice", "Squeeze", "Unsqueeze", "Flatten"})


def is_float(value: ir.Value) -> bool:
    return value.dtype in (FLOAT, HALF)


def insert_after(graph: ir.Graph, value: ir.Value, nodes: ir.Node | Iterable[ir.Node]) -> None:
    """Puts nodes right behind the one that makes `value`, or first where it is an input or a constant."""
    producer = value.producer()
    added = [nodes] if isinstance(nodes, ir.Node) else list(nodes)
    if producer is None:
        graph.insert_before(graph[0], added)
    else:
        graph.insert_after(producer, added)


def constant(graph: ir.Graph, name: str, array: npt.ArrayLike) -> ir.Value:
    """A new initializer."""
    data = np.asarray(array)
    value = ir.Value(name=name, const_value=ir.tensor(data, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(data.dtype), ir.Shape(data.shape)
    graph.register_initializer(value)
    return value


def node_names(model: ir.Model) -> dict[str, ir.Node]:
    return {str(node.name): node for node in model.graph}


def drop_unused(model: ir.Model) -> None:
    """Removes initializers that nothing reads."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in model.graph.outputs:
            del model.graph.initializers[name]
