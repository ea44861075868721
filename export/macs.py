"""Multiply-accumulates of an ONNX graph, counted from its own shapes."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import onnx
import onnx.shape_inference


def count_macs(model: onnx.ModelProto | str | Path) -> dict[str, int]:
    """MACs of each Conv, MatMul and Gemm by node name, for a batch of one where the batch is free.

    Raises ValueError for a product whose shapes are unknown.
    """
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(str(model), load_external_data=False)
    shapes = _shapes(model)
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        try:
            left, right = (shapes[name] for name in node.input[:2])
            output = shapes[node.output[0]]
        except KeyError as error:
            raise ValueError(f"{node.name}: the shape of {error} is unknown") from None
        if node.op_type == "Conv":
            depth = math.prod(right[1:])
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            depth = left[-2] if transposed else left[-1]
        counts[node.name] += math.prod(output) * depth
    return dict(counts)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True)
    graph = inferred.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in dims)
    return shapes


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its large weights declared as inputs, since shape inference would copy them."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= 1024:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light
