"""Graphs in 16 bits, FP16 or bfloat16: every tensor but for islands of FP32, each with its reason.

Types stand in the graph, as TensorRT 11 wants them: a cast where a value crosses between the two. Movement (Reshape,
Gather, ...) takes the type that comes in, so it costs no cast.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..export.edits import BRAIN, FLOAT, HALF, MOVEMENT, array_of, constant, insert_after, is_float, new_output
from ..export.rewrites.names import fp32_reason

MAX_HALF = 65504.0
HEADROOM = 8.0
# The step of FP16's smallest numbers is 2^-24. If all of a tensor is below 2^-13, that is coarser than 2^-11 of its
# largest value, FP16's precision everywhere else.
LEAST_HALF = 2.0**-13
# What takes words that are none out of a softmax (export/rewrites/words.py, text_model.py). No input makes it larger,
# so it needs no headroom.
WORD_BIAS = 1e4

Range = tuple[float, float]

_SUFFIX = {FLOAT: "fp32", HALF: "fp16", BRAIN: "bf16"}
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


def find_islands(model: ir.Model, ranges: Mapping[str, Range], low: ir.DataType = HALF) -> dict[str, str]:
    """The nodes of a graph in type `low` that stay in FP32, with the reason for each.

    By structure, and by `ranges` (smallest and largest value of each tensor on calibration data): a tensor that comes
    within HEADROOM of FP16's largest number, or that is so small that FP16 would lose its digits, stays FP32 with the
    node that makes it and the nodes that read it. So do nodes whose weights are such. bfloat16 has the range of FP32:
    its islands are by structure alone.
    """
    islands: dict[str, str] = {}
    for node in model.graph:
        name = node.name or ""
        reason = fp32_reason(name)
        if reason:
            islands[name] = reason
        if node.op_type in MOVEMENT or low == BRAIN:
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
    source = _unbiased(_moved_from(value))
    if _is_word_bias(source):
        return None
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
    largest = float(np.abs(array_of(value).astype(np.float64)).max(initial=0.0))
    for node, i in value.uses():
        if node.op_type == "DequantizeLinear" and i == 0:
            return largest * float(array_of(node.inputs[1]).max())
    return largest


def _moved_from(value: ir.Value) -> ir.Value:
    """The value whose numbers these are, seen through movement, quantisation and back."""
    through = MOVEMENT | _QDQ
    while (node := value.producer()) is not None and node.op_type in through and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _unbiased(value: ir.Value) -> ir.Value:
    """What a word bias was added to, if `value` is such a sum: the scores, whose range is what counts."""
    node = value.producer()
    if node is None or node.op_type != "Add":
        return value
    terms = [_moved_from(term) for term in node.inputs if term is not None]
    scores = [term for term in terms if not _is_word_bias(term)]
    return scores[0] if len(scores) == 1 else value


def _is_word_bias(value: ir.Value) -> bool:
    node = value.producer()
    terms = node.inputs if node is not None and node.op_type == "Mul" else ()
    constants = [array_of(term) for term in terms if term and term.const_value]
    return any(array.size == 1 and array.item() == WORD_BIAS for array in constants)


def to_half(model: ir.Model, islands: Mapping[str, str], low: ir.DataType = HALF) -> None:
    """Types a FP32 graph, in place: nodes in `islands` FP32, all others `low`; inputs and outputs keep their types."""
    graph = model.graph

    @cache
    def cast(value: ir.Value, wanted: ir.DataType) -> ir.Value:
        return _cast(graph, value, wanted)

    for node in list(graph):
        wanted = _type_of(node, islands, low)
        if node.op_type == "Cast" and is_float(node.outputs[0]):
            node.attributes["to"] = ir.AttrInt64("to", int(wanted))
        else:
            for i, value in enumerate(node.inputs):
                if value is None or not is_float(value):
                    continue
                # One tensor in memory and not two; and what cancels between both readers does so to the last digit.
                source = cast(value, low) if wanted == FLOAT and _is_stored(value, islands, low) else value
                if source.dtype != wanted:
                    node.replace_input_with(i, cast(source, wanted))
        for value in node.outputs:
            if is_float(value):
                value.dtype = wanted
    for i, value in enumerate(list(graph.outputs)):
        if value.dtype == low:
            name, graph.outputs[i] = str(value.name), cast(value, FLOAT)
            value.name, graph.outputs[i].name = f"{name}.{_SUFFIX[low]}", name
    RemoveUnusedNodesPass()(model)


def _type_of(node: ir.Node, islands: Mapping[str, str], low: ir.DataType) -> ir.DataType:
    """The type of a node's float inputs and outputs, once the nodes before it have theirs."""
    if node.op_type != "QuantizeLinear" and not any(map(is_float, node.outputs)):  # such as a comparison
        return FLOAT if any(value is not None and value.dtype == FLOAT for value in node.inputs) else low
    if node.name in islands:
        return FLOAT
    source = node.inputs[0]
    moves = node.op_type in MOVEMENT and source is not None and source.const_value is None
    return FLOAT if moves and source is not None and source.dtype != low else low


def _is_stored(value: ir.Value, islands: Mapping[str, str], low: ir.DataType) -> bool:
    """Whether what a node made in FP32 is stored in type `low` too, for another node that reads it."""
    made = value.producer() is not None and value.dtype == FLOAT
    return made and low in (_type_of(reader, islands, low) for reader, _ in value.uses())


def _cast(graph: ir.Graph, value: ir.Value, wanted: ir.DataType) -> ir.Value:
    """A value in another type: a constant of its own, or through a Cast behind the node that makes it."""
    suffix = _SUFFIX[wanted]
    if value.const_value is not None:
        return constant(graph, f"{value.name}.{suffix}", array_of(value).astype(wanted.numpy()))
    cast = new_output("Cast", [value], f"{value.name}/Cast.{suffix}", wanted, value.shape, to=int(wanted))
    insert_after(graph, value, cast)
    return cast


def emulate_half(model: ir.Model) -> None:
    """Makes a graph in 16 bits compute what a GPU computes, on a CPU in FP32, in place: every result is rounded.

    ONNX Runtime on a CPU runs a FP16 graph in FP32 and drops the casts in between, so an overflow does not show there;
    one in bfloat16 it does not run. Here every tensor that would be of 16 bits is rounded to its type and back
    explicitly: storage in 16 bits, accumulation in FP32.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype in (HALF, BRAIN) and value.const_value is not None:
            value.const_value = ir.tensor(array_of(value).astype(np.float32), name=value.name)
            value.dtype = FLOAT
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() in (HALF, BRAIN):
            node.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
        for value in list(node.outputs):
            low = value.dtype
            if low not in (HALF, BRAIN):
                continue
            value.dtype = FLOAT
            if node.op_type in MOVEMENT:
                continue  # rounded already
            readers = list(value.uses())
            rounded = new_output("Cast", [value], f"{value.name}/Round", low, value.shape, to=int(low))
            back = new_output("Cast", [rounded], f"{value.name}/Rounded", FLOAT, value.shape, to=int(FLOAT))
            for reader, i in readers:
                reader.replace_input_with(i, back)
            insert_after(graph, value, rounded, back)
