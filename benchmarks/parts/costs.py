"""What each part of the model costs, counted from its ONNX graph at its precision: MACs, bytes, memory.

A part is what a reader of the paper would name: the patch embedding, a stage's attention, its MLP, its PWAM with the
gate, its merging, a decoder level, the classifier with the last upsampling, and what parts the prompt among the stages
("words"). The text graph, once a sentence, is "text", but for what makes the prompt of the encoder's output ("words").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from ...errors import InputError
from ...export.macs import count_macs
from ...export.rewrites.names import OTHER, part_of

PRECISIONS = ("fp32", "fp16", "int8")

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
    parts = [_first([part_of(one.name), *map(part_of, one.outputs)]) for one in operations]
    readers: dict[str, list[int]] = {}
    writers: dict[str, int] = {}
    for i, one in enumerate(operations):
        for tensor in one.inputs:
            readers.setdefault(tensor, []).append(i)
        writers.update((tensor, i) for tensor in one.outputs)
    for i in reversed(range(len(operations))):
        if parts[i] == OTHER:
            parts[i] = _common(parts[j] for tensor in operations[i].outputs for j in readers.get(tensor, ()))
    for i, one in enumerate(operations):
        if parts[i] == OTHER:
            parts[i] = _common(parts[writers[tensor]] for tensor in one.inputs if tensor in writers)
        if parts[i] == OTHER:
            parts[i] = _common(part_of(tensor) for tensor in one.inputs)
    return parts


def _first(parts: Iterable[str]) -> str:
    return next((part for part in parts if part != OTHER), OTHER)


def _common(parts: Iterable[str]) -> str:
    """The one part that all are, those apart of which nothing is known."""
    found = set(parts) - {OTHER}
    return found.pop() if len(found) == 1 else OTHER


@dataclass(frozen=True)
class PartCost:
    """What one part costs for one image.

    `macs` by the precision that a product is computed in: "int8" where both operands come through DequantizeLinear.
    `bytes` are the least that must move to and from memory: each constant once, and each tensor that crosses the
    part's border once for each part that reads or writes it; what stays within a part may stay on the chip. Tensors
    count in the narrowest type between writer and reader, quantised ones with one byte. `weight_bytes` are the
    constants alone, `peak_bytes` the activations alive at the part's fullest moment, those of other parts included.
    """

    part: str
    macs: dict[str, int]
    bytes: int
    weight_bytes: int
    peak_bytes: int

    def for_batch(self, batch: int) -> PartCost:
        """Of a batch of images: all but the constants as many times."""
        macs = {precision: batch * count for precision, count in self.macs.items()}
        moved = self.weight_bytes + batch * (self.bytes - self.weight_bytes)
        return PartCost(self.part, macs, moved, self.weight_bytes, batch * self.peak_bytes)

    def to_row(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "macs": sum(self.macs.values()),
            "macs_by_precision": dict(self.macs),
            "bytes": self.bytes,
            "weight_bytes": self.weight_bytes,
            "peak_activation_bytes": self.peak_bytes,
        }


def cost_rows(onnx_path: Path, batch: int = 1) -> list[dict[str, Any]]:
    """`part_costs` as rows of plain JSON types: part, macs, macs_by_precision, bytes, weight_bytes,
    peak_activation_bytes. Where the graph leaves its batch free they are for `batch` images."""
    costs, free = part_costs(onnx_path), _free_batch(onnx_path)
    return [cost.for_batch(batch if free else 1).to_row() for cost in costs]


def _free_batch(onnx_path: Path) -> bool:
    shapes = [value.shape for value in ir.load(onnx_path).graph.inputs]
    return any(shape is not None and len(shape) > 0 and not isinstance(shape[0], int) for shape in shapes)


def part_costs(onnx_path: Path) -> list[PartCost]:
    """The costs of each part of a graph, in the graph's order, for a batch of one where the batch is free.

    The MACs of all parts are those that `export.macs.count_macs` counts. Raises InputError if a shape is unknown.
    """
    counted = count_macs(onnx_path)
    model = ir.load(onnx_path)
    nodes = list(model.graph)
    found = assign_parts([_operation(node) for node in nodes])
    parts = dict(zip(nodes, found, strict=True))
    traffic, peaks = _Traffic(model, parts), _peaks(model, parts)
    # Conversions may stand anywhere before their reader, all at the start too.
    macs: dict[str, Counter[str]] = {part: Counter() for one, part in parts.items() if one.op_type not in _CONVERSIONS}
    for node, part in parts.items():
        if node.op_type in _PRODUCTS:
            macs[part][_precision(node)] += counted[str(node.name)]
    return [
        PartCost(part, dict(macs[part]), traffic.bytes[part], traffic.weights[part], peaks[part])
        for part in sorted(macs, key=lambda part: part == OTHER)
    ]


def node_parts(onnx_path: Path) -> dict[str, str]:
    """The part of each node of a graph, by node name."""
    nodes = list(ir.load(onnx_path).graph)
    return dict(
        zip((str(node.name) for node in nodes), assign_parts([_operation(node) for node in nodes]), strict=True)
    )


def _operation(node: ir.Node) -> Operation:
    inputs = [str(value.name) for value in node.inputs if value is not None]
    return Operation(str(node.name), inputs, [str(value.name) for value in node.outputs])


def _precision(product: ir.Node) -> str:
    operands = [value for value in product.inputs[:2] if value is not None]
    producers = [value.producer() for value in operands]
    if all(one is not None and one.op_type == "DequantizeLinear" for one in producers):
        return "int8"
    return "fp16" if any(value.dtype == ir.DataType.FLOAT16 for value in operands) else "fp32"


def _nbytes(value: ir.Value) -> int:
    if value.const_value is not None:
        return value.const_value.nbytes
    if value.shape is None or value.dtype is None:
        raise InputError(f"the shape or type of {value.name} is unknown; give a graph whose inputs have shapes")
    return int(prod(dim if isinstance(dim, int) else 1 for dim in value.shape) * value.dtype.itemsize)


def _stored(value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """What a reader of a value must really fetch, and the value it all comes from: seen through casts and Q/DQ, which
    an engine fuses into the nodes around them, so that the narrowest type of those in between is the one to store."""
    stored = value
    while (node := value.producer()) is not None and node.op_type in _CONVERSIONS and node.inputs[0] is not None:
        value = node.inputs[0]
        if _nbytes(value) <= _nbytes(stored):
            stored = value
    return stored, value


class _Traffic:
    """Bytes that move to and from each part, and those of its constants."""

    def __init__(self, model: ir.Model, parts: dict[ir.Node, str]) -> None:
        self.bytes: Counter[str] = Counter()
        self.weights: Counter[str] = Counter()
        self._counted: set[tuple[str, str, ir.Value]] = set()
        for node, part in parts.items():
            if node.op_type not in _CONVERSIONS:
                for value in node.inputs:
                    if value is not None:
                        self._read(part, *_stored(value), parts)
        for value in model.graph.outputs:
            producer = value.producer()
            self._count(parts[producer] if producer is not None else OTHER, "write", value)

    def _read(self, part: str, stored: ir.Value, source: ir.Value, parts: dict[ir.Node, str]) -> None:
        if stored.const_value is not None:
            if self._count(part, "read", stored):
                self.weights[part] += _nbytes(stored)
            return
        producer = source.producer()
        writer = parts[producer] if producer is not None else None
        if writer != part:
            self._count(part, "read", stored)
            if writer is not None:
                self._count(writer, "write", stored)

    def _count(self, part: str, direction: str, value: ir.Value) -> bool:
        key = (part, direction, value)
        if key in self._counted:
            return False
        self._counted.add(key)
        self.bytes[part] += _nbytes(value)
        return True


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
