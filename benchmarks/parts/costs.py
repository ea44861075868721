"""What each part of the model costs, counted from its ONNX graph at its precision: MACs, bytes, memory.

A part is what a reader of the paper would name: the patch embedding, a stage's attention, its MLP, its PWAM with the
gate, its merging, a decoder level, the classifier with the last upsampling, and what parts the prompt among the stages
("words"). The text graph, once a sentence, is "text", but for what makes the prompt of the encoder's output ("words").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from ...errors import InputError
from ...export.edits import LOW_NAMES
from ...export.macs import count_macs
from ...export.rewrites.names import OTHER, part_of
from ..timing.result import PartCost, TimedPart

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")
_PRODUCTS = ("Conv", "MatMul", "Gemm")
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


class Operation(NamedTuple):
    """A node of any graph: its name, and the names of the tensors that it reads and writes."""

    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]


def assign_parts(operations: Sequence[Operation]) -> list[str]:
    """The part of each node, in topological order: by its name, else by the names of the tensors that it writes, else
    by the nodes that read these, else by those that wrote what it reads, else by the names of the tensors it reads."""
    parts = [_first([part_of(node.name), *map(part_of, node.outputs)]) for node in operations]
    readers: dict[str, list[int]] = {}
    writers: dict[str, int] = {}
    for i, node in enumerate(operations):
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(i)
        writers.update((tensor, i) for tensor in node.outputs)
    for i in reversed(range(len(operations))):
        if parts[i] == OTHER:
            parts[i] = _common(parts[j] for tensor in operations[i].outputs for j in readers.get(tensor, ()))
    for i, node in enumerate(operations):
        if parts[i] == OTHER:
            parts[i] = _common(parts[writers[tensor]] for tensor in node.inputs if tensor in writers)
        if parts[i] == OTHER:
            parts[i] = _common(part_of(tensor) for tensor in node.inputs)
    return parts


def _first(parts: Iterable[str]) -> str:
    return next((part for part in parts if part != OTHER), OTHER)


def _common(parts: Iterable[str]) -> str:
    """The part that all known ones agree on."""
    known = set(parts) - {OTHER}
    return known.pop() if len(known) == 1 else OTHER


def timed_parts(costs: Sequence[PartCost], seconds: Mapping[str, float]) -> tuple[TimedPart, ...]:
    """The costs with the seconds of each part, then the parts that have a time alone."""
    known = {cost.part: cost for cost in costs}
    names = [*known, *sorted(seconds.keys() - known.keys())]
    rows = [known.get(name, PartCost(name, 0, {}, 0, 0, 0)) for name in names]
    return tuple(TimedPart(**vars(row), seconds=seconds.get(row.part, 0.0)) for row in rows)


def cost_rows(onnx_path: Path, batch: int = 1) -> list[PartCost]:
    """The costs of each part of a graph, in its order, for `batch` images if its batch is dynamic, else for its own.

    The MACs of all parts are those that `export.macs.count_macs` counts. Raises InputError if a shape is unknown.
    """
    counted = count_macs(onnx_path)
    model = ir.load(onnx_path)
    parts = _parts_of_nodes(model)
    (traffic, weights), peaks = _traffic(model, parts), _peaks(model, parts)
    # Conversions may stand anywhere before their reader, all at the start too.
    macs: dict[str, Counter[str]] = {
        part: Counter() for node, part in parts.items() if node.op_type not in _CONVERSIONS
    }
    for node, part in parts.items():
        if node.op_type in _PRODUCTS:
            macs[part][_precision(node)] += counted[str(node.name)]
    shapes = [value.shape for value in model.graph.inputs]
    dynamic = any(shape is not None and len(shape) > 0 and not isinstance(shape[0], int) for shape in shapes)
    times = batch if dynamic else 1  # a dynamic batch is counted as one image
    return [
        PartCost(
            part=part,
            macs=times * macs[part].total(),
            macs_by_precision={precision: times * count for precision, count in macs[part].items()},
            bytes=weights[part] + times * (traffic[part] - weights[part]),
            weight_bytes=weights[part],
            peak_activation_bytes=times * peaks[part],
        )
        for part in sorted(macs, key=lambda part: part == OTHER)
    ]


def floor_seconds(
    macs: Mapping[str, int], nbytes: int, macs_per_second: Mapping[str, float], bytes_per_second: float | None
) -> tuple[float, str]:
    """The least time for `macs` by precision and `nbytes`, and what sets it: "compute" or "memory".

    max(sum of MACs / rate, bytes / bandwidth). What has no ceiling counts nothing, so that the bound holds.
    """
    compute = math.fsum(
        count / macs_per_second[precision] for precision, count in macs.items() if precision in macs_per_second
    )
    memory = nbytes / bytes_per_second if bytes_per_second else 0.0
    return max(compute, memory), "compute" if compute >= memory else "memory"


def node_parts(onnx_path: Path) -> dict[str, str]:
    """The part of each node of a graph, by node name."""
    return {str(node.name): part for node, part in _parts_of_nodes(ir.load(onnx_path)).items()}


def _parts_of_nodes(model: ir.Model) -> dict[ir.Node, str]:
    nodes = list(model.graph)
    return dict(zip(nodes, assign_parts([_operation(node) for node in nodes]), strict=True))


def _operation(node: ir.Node) -> Operation:
    inputs = [str(value.name) for value in node.inputs if value is not None]
    return Operation(str(node.name), inputs, [str(value.name) for value in node.outputs])


def _precision(product: ir.Node) -> str:
    operands = [value for value in product.inputs[:2] if value is not None]
    producers = [value.producer() for value in operands]
    if all(node is not None and node.op_type == "DequantizeLinear" for node in producers):
        return "int8"
    return next((LOW_NAMES[value.dtype] for value in operands if value.dtype in LOW_NAMES), "fp32")


def _nbytes(value: ir.Value) -> int:
    if value.const_value is not None:
        return value.const_value.nbytes
    if value.shape is None or value.dtype is None:
        raise InputError(f"the shape or type of {value.name} is unknown; give a graph whose inputs have shapes")
    return int(math.prod(dim if isinstance(dim, int) else 1 for dim in value.shape) * value.dtype.itemsize)


def _stored(value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """What a reader of a value must really fetch, and the value it all comes from: seen through casts and Q/DQ, which
    an engine fuses into the nodes around them, so that the narrowest type of those in between is the one to store."""
    stored = value
    while (node := value.producer()) is not None and node.op_type in _CONVERSIONS and node.inputs[0] is not None:
        value = node.inputs[0]
        if _nbytes(value) <= _nbytes(stored):
            stored = value
    return stored, value


def _traffic(model: ir.Model, parts: dict[ir.Node, str]) -> tuple[Counter[str], Counter[str]]:
    """Bytes that move to and from each part, and those of its constants."""
    moved: set[tuple[str, str, ir.Value]] = set()  # once for each part that reads or writes a tensor
    for node, part in parts.items():
        for value in () if node.op_type in _CONVERSIONS else node.inputs:
            if value is None:
                continue
            stored, source = _stored(value)
            producer = source.producer()
            writer = None if producer is None else parts[producer]
            if stored.const_value is not None:
                moved.add((part, "constant", stored))
            elif writer != part:
                moved.add((part, "read", stored))
                if writer is not None:
                    moved.add((writer, "write", stored))
    for value in model.graph.outputs:
        producer = value.producer()
        moved.add((OTHER if producer is None else parts[producer], "write", value))
    total, constants = Counter[str](), Counter[str]()
    for part, how, value in moved:
        total[part] += _nbytes(value)
        if how == "constant":
            constants[part] += _nbytes(value)
    return total, constants


def _peaks(model: ir.Model, parts: dict[ir.Node, str]) -> Counter[str]:
    """Bytes of the activations alive while each part runs, at most, in the graph's order. Views take no memory."""
    origin: dict[ir.Value, ir.Value] = {}
    last: dict[ir.Value, int] = {}
    born: dict[ir.Value, int] = dict.fromkeys(model.graph.inputs, 0)
    index = {node: i for i, node in enumerate(parts)}
    for i, node in enumerate(parts):
        if node.op_type in _CONVERSIONS:
            continue
        for value in node.inputs:
            if value is not None:
                stored, source = _stored(value)
                stored = origin.get(stored, stored)
                if stored.const_value is None:
                    last[stored] = i
                    made = source.producer()
                    born.setdefault(stored, 0 if made is None else index[made])
        for value in node.outputs:
            first = node.inputs[0] if node.inputs else None
            if node.op_type in _VIEWS and first is not None:
                stored = _stored(first)[0]
                origin[value] = origin.get(stored, stored)
            elif any(reader.op_type not in _CONVERSIONS for reader, _ in value.uses()) or not value.uses():
                born[value] = i
                last.setdefault(value, i)
    for value in model.graph.outputs:
        last[origin.get(value, value)] = len(parts)
        born.setdefault(origin.get(value, value), len(parts) - 1)
    change: Counter[int] = Counter()
    for value, start in born.items():
        change[start] += _nbytes(value)
        change[last.get(value, start) + 1] -= _nbytes(value)
    alive, peaks = 0, Counter[str]()
    for i, part in enumerate(parts.values()):
        alive += change[i]
        peaks[part] = max(peaks[part], alive)
    return peaks
