"""FP16 graphs: every tensor half precision but for islands of FP32, each with its reason.

Types stand in the graph, as TensorRT 11 wants them: a cast where a value crosses between the two. Movement (Reshape,
Gather, ...) takes the type that comes in, so it costs no cast.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..export.rewrites.names import fp32_reason
from .graphs import FLOAT, HALF, MOVEMENT, constant, drop_unused, insert_after, is_float

MAX_HALF = 65504.0
HEADROOM = 8.0
# The step of FP16's smallest numbers is 2^-24. Where all of a tensor is below 2^-13, that is coarser than 2^-11 of its
# largest value, FP16's precision everywhere else.
LEAST_HALF = 2.0**-13

Range = tuple[float, float]

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


def find_islands(model: ir.Model, ranges: Mapping[str, Range]) -> dict[str, str]:
    """The nodes that stay in FP32, with the reason for each.

    By structure, and by `ranges` (smallest and largest value of each tensor on calibration data): a tensor that comes
    within HEADROOM of FP16's largest number, or that is so small that FP16 would lose its digits, stays FP32 with the
    node that makes it and the nodes that read it. So do nodes whose weights are such.
    """
    islands: dict[str, str] = {}
    for node in model.graph:
        name = node.name or ""
        reason = fp32_reason(name)
        if reason:
            islands[name] = reason
        if node.op_type in MOVEMENT:
            continue
        read = node.inputs[:1] if node.op_type in _QDQ else node.inputs  # a scale is no tensor's value
        for value in [*read, *node.outputs]:
            unfit = _unfit(value, ranges)
            if unfit:
                islands.setdefault(name, unfit)
    return islands


def _unfit(value: ir.Value | None, ranges: Mapping[str, Range]) -> str | None:
    """Why FP16 cannot hold a value well, or None."""
    if value is None or not is_float(value):
        return None
    source = moved_from(value)
    if source.const_value is not None:
        what, largest = f"the constant {source.name}", _largest_constant(source)
    elif str(source.name) in ranges:
        what, largest = str(source.name), max(map(abs, ranges[str(source.name)]))
    else:
        return None
    if largest * HEADROOM >= MAX_HALF:
        return f"{what} reaches {largest:.4g}, within a factor {HEADROOM:g} of FP16's largest number"
    if not fits_half(largest):
        return f"{what} stays below {largest:.2g}, where FP16 loses digits"
    return None


def fits_half(largest: float) -> bool:
    """Whether FP16 holds a tensor whose largest magnitude is this, with HEADROOM to spare and all its digits."""
    return largest == 0 or LEAST_HALF <= largest < MAX_HALF / HEADROOM


def _largest_constant(value: ir.Value) -> float:
    """The largest magnitude of a constant; of quantised weights, of what they stand for."""
    assert value.const_value is not None
    largest = float(np.abs(value.const_value.numpy().astype(np.float64)).max(initial=0.0))
    for node, i in value.uses():
        if node.op_type == "DequantizeLinear" and i == 0 and (scale := node.inputs[1]) is not None:
            assert scale.const_value is not None
            return largest * float(scale.const_value.numpy().max())
    return largest


def moved_from(value: ir.Value) -> ir.Value:
    """The value whose numbers these are, seen through movement, quantisation and back."""
    through = MOVEMENT | _QDQ
    while (node := value.producer()) is not None and node.op_type in through and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def to_half(model: ir.Model, islands: Mapping[str, str]) -> None:
    """Types a FP32 graph, in place: nodes in `islands` FP32, all others FP16; inputs and outputs keep their types."""
    caster = _Caster(model)
    outputs = {value: value.name for value in model.graph.outputs}
    for node in list(model.graph):
        if not any(is_float(value) for value in node.outputs) and node.op_type != "QuantizeLinear":
            caster.align(node)
            continue
        wanted = FLOAT if node.name in islands else HALF
        source = node.inputs[0]
        if node.op_type in MOVEMENT and source is not None and source.const_value is None and node.name not in islands:
            wanted = caster.type_of(source)
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(wanted))
        else:
            caster.give(node, wanted)
        for value in node.outputs:
            if is_float(value):
                value.dtype = wanted
    for value, name in outputs.items():
        if value.dtype == HALF:
            _cast_output(model, value, str(name))
    drop_unused(model)


class _Caster:
    """Casts of values, each made once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def type_of(self, value: ir.Value) -> ir.DataType:
        return HALF if value.dtype == HALF else FLOAT

    def give(self, node: ir.Node, wanted: ir.DataType) -> None:
        """Gives a node all its float inputs in one type."""
        for i, value in enumerate(node.inputs):
            if value is not None and is_float(value) and value.dtype != wanted:
                node.replace_input_with(i, self._cast(value, wanted))

    def align(self, node: ir.Node) -> None:
        """Of a node without float outputs, such as a comparison: its float inputs in one type."""
        floats = [value for value in node.inputs if value is not None and is_float(value)]
        if any(value.dtype == FLOAT for value in floats):
            self.give(node, FLOAT)

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        key = (value, wanted)
        if key not in self._made:
            self._made[key] = (
                self._constant(value, wanted) if value.const_value is not None else self._node(value, wanted)
            )
        return self._made[key]

    def _constant(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        array = value.const_value.numpy().astype(np.float16 if wanted == HALF else np.float32)
        return constant(self._graph, f"{value.name}.{'fp16' if wanted == HALF else 'fp32'}", array)

    def _node(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        suffix = "fp16" if wanted == HALF else "fp32"
        node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"{value.name}/Cast.{suffix}")
        made = node.outputs[0]
        made.name, made.dtype, made.shape = str(node.name), wanted, value.shape
        insert_after(self._graph, value, node)
        return made


def _cast_output(model: ir.Model, value: ir.Value, name: str) -> None:
    """A graph output that became FP16, as FP32 under its old name."""
    value.name = f"{name}.fp16"
    node = ir.node("Cast", [value], {"to": int(FLOAT)}, name=f"{name}/Cast.fp32")
    made = node.outputs[0]
    made.name, made.dtype, made.shape = name, FLOAT, value.shape
    insert_after(model.graph, value, node)
    position = [i for i, output in enumerate(model.graph.outputs) if output is value]
    for i in position:
        model.graph.outputs[i] = made


def emulate_half(model: ir.Model) -> None:
    """Makes a FP16 graph compute what a GPU computes, on a CPU in FP32, in place: every FP16 result is rounded.

    ONNX Runtime on a CPU runs a FP16 graph in FP32 and drops the casts in between, so an overflow does not show there.
    Here every tensor that would be FP16 is rounded to it and back explicitly: FP16 storage, FP32 accumulation.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype == HALF and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = FLOAT
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == HALF:
            node.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
        for value in list(node.outputs):
            if value.dtype != HALF:
                continue
            value.dtype = FLOAT
            if node.op_type in MOVEMENT:
                continue  # rounded already
            readers = list(value.uses())
            rounded = ir.node("Cast", [value], {"to": int(HALF)}, name=f"{value.name}/Round")
            back = ir.node("Cast", [rounded.outputs[0]], {"to": int(FLOAT)}, name=f"{value.name}/Rounded")
            rounded.outputs[0].name, back.outputs[0].name = str(rounded.name), str(back.name)
            rounded.outputs[0].dtype, back.outputs[0].dtype = HALF, FLOAT
            for reader, i in readers:
                reader.replace_input_with(i, back.outputs[0])
            graph.insert_after(node, [rounded, back])
