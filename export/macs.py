"""Multiply-accumulates of an ONNX graph, counted from its own shapes."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

if TYPE_CHECKING:
    import onnx

from ..errors import InputError


def count_macs(model: onnx.ModelProto | ir.Model | str | Path) -> dict[str, int]:
    """MACs of each Conv, MatMul and Gemm by node name, for a batch of one if the batch is dynamic.

    Raises InputError for a product whose shapes are unknown.
    """
    if isinstance(model, ir.Model):
        loaded = model
    else:
        loaded = ir.load(model) if isinstance(model, (str, Path)) else ir.from_proto(model)
    ShapeInferencePass(check_type=False, strict_mode=False)(loaded)
    counts: Counter[str] = Counter()
    for node in loaded.graph:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        left, right, output = (_shape(node, value) for value in (*node.inputs[:2], node.outputs[0]))
        if node.op_type == "Conv":
            depth = math.prod(right[1:])
        else:
            depth = left[-2] if node.attributes.get_int("transA", 0) else left[-1]
        counts[str(node.name)] += math.prod(output) * depth
    return dict(counts)


def _shape(node: ir.Node, value: ir.Value | None) -> tuple[int, ...]:
    if value is None or value.shape is None:
        name = value.name if value is not None else "an input"
        raise InputError(f"{node.name}: the shape of {name} is unknown; give a graph whose inputs have shapes")
    return tuple(dim if isinstance(dim, int) else 1 for dim in value.shape)
