"""Graphs read and written, and the small edits of an ONNX graph that the rest of the folder is written in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import BundleError
from ..runtime.bundle import Bundle

# A protobuf file cannot pass 2 GiB; weights go beside the graph before that.
EXTERNAL_DATA_BYTES = 2_000_000_000

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
LOW = {"fp16": HALF, "bf16": BRAIN}
"""The types of graphs in 16 bits."""
LOW_NAMES = {dtype: name for name, dtype in LOW.items()}

# What moves numbers and changes none of them; the data is the first input.
MOVEMENT = frozenset({"Reshape", "Transpose", "Gather", "Split", "Slice", "Squeeze", "Unsqueeze", "Flatten"})


def load_graph(bundle: Bundle, role: str) -> ir.Model:
    """A FP32 graph of the bundle, with its weights. Raises BundleError."""
    path = bundle.file(role)
    try:
        return ir.load(path)
    except Exception as error:  # protobuf's own class, which onnx_ir does not name
        raise BundleError(f"{path} is not an ONNX graph ({type(error).__name__})") from error


def save_graph(model: ir.Model, path: Path, *, external_bytes: int = EXTERNAL_DATA_BYTES) -> list[Path]:
    """Writes the graph, its weights into a `.data` file beside it if they pass `external_bytes`; the paths written."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.metadata_props.clear()
    if size < external_bytes:
        ir.save(model, path)
        return [path]
    data = path.with_name(path.name + ".data")
    ir.save(model, path, external_data=data.name)
    return [path, data]


def is_float(value: ir.Value) -> bool:
    return value.dtype in (FLOAT, HALF, BRAIN)


def constant(graph: ir.Graph, name: str, array: npt.ArrayLike) -> ir.Value:
    """A new initializer."""
    data = np.asarray(array)
    value = ir.Value(name=name, const_value=ir.tensor(data, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(data.dtype), ir.Shape(data.shape)
    graph.register_initializer(value)
    return value


def array_of(value: ir.Value | None) -> npt.NDArray[Any]:
    """What a constant holds."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def new_output(
    op_type: str, inputs: Sequence[ir.Value], name: str, dtype: ir.DataType, shape: ir.Shape | None, **attributes: int
) -> ir.Value:
    """The output of a new node, both of the same name; the node is in no graph yet."""
    output = ir.node(op_type, inputs, attributes, name=name).outputs[0]
    output.name, output.dtype, output.shape = name, dtype, shape
    return output


def insert_after(graph: ir.Graph, value: ir.Value, *outputs: ir.Value) -> None:
    """Puts the nodes of new outputs right behind the one that makes `value`, or first if nothing makes it."""
    added = [node for output in outputs if (node := output.producer()) is not None]
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], added)
    else:
        graph.insert_after(producer, added)


def node_names(model: ir.Model) -> dict[str, ir.Node]:
    return {str(node.name): node for node in model.graph}
