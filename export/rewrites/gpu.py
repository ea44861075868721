"""Rewrite 9, for graphs in 16 bits: what a GPU spends on moving numbers, spent less often. The function is the same.

A GPU waits for memory as often as for products, so here a few more products are worth a pass over a tensor less (see
docs/rewrites.md, which has the bytes and kernels):

- Upsampling. The matrices of rewrite 5 have six numbers a row. As products they write two large tensors and a copy in
  another layout; as weighted sums of gathered rows and columns a compiler makes one kernel of both.
- Windows. Rows mix in no norm and no product with a weight, so the gather to windows may lie before the norm and the
  gather back behind the output projection: there both fuse with other kernels. In between, rows are in the order
  (slot, window), and queries, keys and values are products of their own without biases: what a fused attention reads
  is then what a product writes. The norm's output has a constant sum, weighted by channel, which carries the biases.
- Words. The variance diag(V'^T S V') of a few words is a sum in one kernel; as products it takes three.

On a CPU, products beat gathers: graphs in FP32 stay as they are. Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..edits import array_of, constant, insert_after, new_output
from .packing import CLOSED, MOST_SPREAD, Windows, pack_windows

Array = npt.NDArray[Any]

# Windows have slots for padding besides pixels. Up to so many slots a pixel, queries, keys and values of all slots cost
# less than the copies that those of pixels alone need.
_MOST_SLOTS = 1.5
_ORIGINS = "origins of tensors"  # in the model's metadata, which is not written to its file


class Origin(NamedTuple):
    """What bounds a tensor's values: those of tensors of the graph before, and by how much they may have moved."""

    tensors: tuple[str, ...]
    moved: float = 0.0


class _Layout(NamedTuple):
    """A graph that is laid out, the known ranges of its tensors, and what its rewrites leave for others."""

    graph: ir.Graph
    ranges: Mapping[str, tuple[float, float]]
    origins: dict[str, Origin]
    masks: dict[bytes, ir.Value]  # blocks that are shifted alike share theirs


def lay_out_for_gpu(model: ir.Model, ranges: Mapping[str, tuple[float, float]] | None = None) -> None:
    """Rewrites an image graph that `lavt-export onnx` wrote, in place. Nodes and tensors that stay keep their names.

    `ranges` are those of its tensors on calibration data: windows whose scores are far apart are not packed.
    `known_ranges` then gives the ranges of tensors that are new or have other values than before.
    """
    layout = _Layout(model.graph, ranges or {}, {}, {})
    for node in list(model.graph):
        name = node.name or ""
        if name.endswith(".attn.proj/MatMul"):
            _attend_in_slots(layout, node)
        elif name.endswith(".upsampled/MatMul_4"):
            _sum_taps(layout, node)
        elif name.endswith(".pwam.word_norm/MatMul_2"):
            _sum_moments(model.graph, node)
    RemoveUnusedNodesPass()(model)
    model.meta[_ORIGINS] = layout.origins


def is_laid_out(model: ir.Model) -> bool:
    """Whether this was done to a graph."""
    return any(re.search(r"\.gpu\d*$", node.name or "") for node in model.graph)


def known_ranges(model: ir.Model, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The ranges of a graph's tensors, given those of the graph before it was laid out for GPUs, if it was."""
    known = dict(ranges)
    for name, (tensors, moved) in model.meta.get(_ORIGINS, {}).items():
        if ranges.keys() >= set(tensors):
            lows, highs = zip(*(ranges[tensor] for tensor in tensors), strict=True)
            known[name] = (min(lows) - moved, max(highs) + moved)
    return known


class _Chain:
    """New nodes, one behind the other, in front of a node of the graph."""

    def __init__(self, graph: ir.Graph, before: ir.Node, prefix: str) -> None:
        self._graph, self._before, self._prefix = graph, before, prefix
        self._made = 0

    def add(
        self, op_type: str, inputs: Sequence[ir.Value], shape: Sequence[Any], name: str = "", **attributes: Any
    ) -> ir.Value:
        self._made += 1
        node = ir.node(op_type, inputs, attributes, name=name or f"{self._prefix}/{op_type}.gpu{self._made}")
        value, dtype = node.outputs[0], inputs[0].dtype
        assert dtype is not None
        value.name, value.dtype, value.shape = node.name, dtype, ir.Shape(shape)
        self._graph.insert_before(self._before, node)
        return value

    def constant(self, data: Array) -> ir.Value:
        self._made += 1
        return constant(self._graph, f"{self._prefix}/constant.gpu{self._made}", data)

    def reshape(self, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """To (B, *sizes), whether the batch is dynamic or not."""
        batch = _shape(value)[0]
        sizes_value = self.constant(np.array([batch if isinstance(batch, int) else -1, *sizes], np.int64))
        return self.add("Reshape", [value, sizes_value], [batch, *sizes])

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        return self.add("Transpose", [value], [_shape(value)[axis] for axis in perm], perm=perm)

    def unsqueeze(self, value: ir.Value, axis: int) -> ir.Value:
        shape = _shape(value)
        shape.insert(axis, 1)
        return self.add("Unsqueeze", [value, self.constant(np.array([axis]))], shape)


def _shape(value: ir.Value) -> list[Any]:
    assert value.shape is not None
    return list(value.shape)


def _input(node: ir.Node, i: int = 0) -> ir.Value:
    value = node.inputs[i]
    assert value is not None
    return value


def _source(node: ir.Node, i: int = 0) -> ir.Node:
    """The node that makes a node's input."""
    producer = _input(node, i).producer()
    assert producer is not None
    return producer


def _attend_in_slots(layout: _Layout, product: ir.Node) -> None:
    """The gathers of a block's windows outside of its projections; `product` is the output projection.

    The gather back to pixels goes behind it: attended (B,nW,h,S,d) -> projection (B,S*nW,C) -> (B,N,C). Rows are in the
    order (slot, window), but (window, slot) for several images or one head: there TensorRT for RTX 1.7 ends with an
    internal error in its choice of strides.
    """
    merged = _source(product)
    gather = _source(merged)
    values = _source(_source(gather))
    attended = values.outputs[0]
    pixels = _pack_windows(layout, values, array_of(gather.inputs[1]))
    batch, windows, heads, slots, width = _shape(attended)
    slots_first = batch == 1 and heads > 1
    rows = (pixels.T if slots_first else pixels).ravel()
    places = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]  # the row of each pixel
    chain = _Chain(layout.graph, product, str(product.name).removesuffix(".proj/MatMul"))
    turned = chain.transpose(attended, [0, 3, 1, 2, 4] if slots_first else [0, 1, 3, 2, 4])
    in_slots = chain.reshape(turned, [slots * windows, heads * width])
    _take_name(in_slots, merged.outputs[0])
    product.replace_input_with(0, in_slots)
    ((bias, _),) = product.outputs[0].uses()
    for node in (product, bias):
        node.outputs[0].shape = in_slots.shape
    ((residual, _),) = bias.outputs[0].uses()
    result = bias.outputs[0]
    worth = slots_first and len(rows) <= _MOST_SLOTS * len(places)
    if worth and _project_slots(layout, values, rows):
        (result,) = (reader.outputs[0] for reader, _ in residual.outputs[0].uses() if reader.op_type == "Add")
    _gather_rows(layout.graph, result, places, f"{result.name}.pixels", list(result.uses()))


def _pack_windows(layout: _Layout, values: ir.Node, back: Array) -> Array:
    """A block's windows in fewer, if that moves fewer numbers. Returns the pixel in each slot (nW,S), -1 in padding.

    `values` is attention times values; `back` has the row (window, head, slot) of each pixel and head. The ranges known
    of scores and weights leave out what does not count: between windows, where the mask is, and in padding, where
    values are zero.
    """
    batch, windows, heads, slots, width = _shape(values.outputs[0])
    window, slot = back[::heads] // (heads * slots), back[::heads] % slots
    pixels = np.full((windows, slots), -1)
    pixels[window, slot] = np.arange(len(window))
    softmax = _source(values)
    summed = _source(softmax)
    biased = summed if _source(summed).op_type == "MatMul" else _source(summed)
    scores = _source(biased)
    low, high = layout.ranges.get(str(scores.outputs[0].name), (0.0, 0.0))
    if high - low > MOST_SPREAD:
        return pixels
    mask = None if biased is summed else array_of(summed.inputs[1])
    given = Windows(pixels, array_of(biased.inputs[1]), mask)
    packed = pack_windows(given)
    if packed.numbers(heads * width) >= given.numbers(heads * width):
        return pixels

    windows, slots = packed.pixels.shape
    prefix = f"{str(values.name).removesuffix('/MatMul_2')}.packed"
    chain, closing = _Chain(layout.graph, scores, prefix), _Chain(layout.graph, softmax, f"{prefix}.mask")
    rows = _input(_source(_source(scores)))
    head, row = np.arange(heads)[:, None], np.where(packed.pixels < 0, len(window), packed.pixels)[:, None]
    for part, (reader, place) in enumerate(((scores, 0), (scores, 1), (values, 1))):
        index = ((row * 3 + part) * heads + head).ravel()
        gathered = chain.add("Gather", [rows, chain.constant(index)], [batch, len(index), width], axis=1)
        operand = chain.reshape(gathered, [windows, heads, slots, width])
        if part == 1:
            operand = chain.transpose(operand, [0, 1, 2, 4, 3])
        _take_name(operand, reader.inputs[place])
        reader.replace_input_with(place, operand)
    biased.replace_input_with(1, chain.constant(packed.bias))
    assert packed.mask is not None
    key = packed.mask.tobytes()
    closed = layout.masks.get(key) or closing.constant(packed.mask)
    layout.masks[key] = closed
    shape = [batch, windows, heads, slots, slots]
    if mask is None:
        softmax.replace_input_with(0, closing.add("Add", [biased.outputs[0], closed], shape))
    else:
        summed.replace_input_with(1, closed)
    for node in (scores, biased, summed, softmax):
        node.outputs[0].shape = ir.Shape(shape)
    values.outputs[0].shape = ir.Shape([*shape[:-1], width])
    name, farthest = str(biased.outputs[0].name), float(np.abs(packed.bias).max())
    layout.origins[name] = Origin((name,), farthest)
    layout.origins[str(_input(softmax).name)] = Origin((name,), farthest - CLOSED)
    return packed.pixels


def _project_slots(layout: _Layout, values: ir.Node, rows: Array) -> bool:
    """norm (B,N,C) -> qkv -> gathers  becomes  gather (B,S*nW,C) -> norm -> one product for each of q, k and v.

    `values` is attention times values, `rows` are the slots' pixels, -1 in padding. Without padding, all rows of a
    stage's first block can be in this order: what is before the block puts them out so, and the result is True.
    """
    graph, origins = layout.graph, layout.origins
    batch, windows, heads, slots, width = _shape(values.outputs[0])
    scores = _nearest(_source(values), "MatMul")
    bias = _nearest(_source(scores, 1), "Add")
    qkv = _source(bias)
    norm = _source(qkv)
    real = rows >= 0
    reordered = bool(real.all()) and _reorder(graph, _source(norm), rows)
    if not reordered:
        _gather_rows(graph, _input(norm), rows.clip(0), f"{norm.name}.rows", [(norm, 0)])

    chain = _Chain(graph, qkv, f"{str(qkv.name).removesuffix('/MatMul')}.slots")
    old = [array_of(value).astype(np.float64) for value in (*norm.inputs[1:3], qkv.inputs[1], bias.inputs[1])]
    *affine, weights = (array.astype(np.float32) for array in without_bias(*old))
    for i, array in enumerate(affine, start=1):
        norm.replace_input_with(i, chain.constant(array))
    y = norm.outputs[0]
    name, largest = str(y.name), np.sqrt(heads * width)  # of what has variance 1 over the channels
    origins[name] = Origin((name,), float(np.max(largest * np.abs(affine[0] - old[0]) + np.abs(affine[1] - old[1]))))
    y.shape = ir.Shape([batch, slots * windows, heads * width])
    if not real.all():
        normed, y = y, chain.add("Mul", [y, chain.constant(real.astype(np.float32)[:, None])], _shape(y))
        _take_name(y, normed)
        origins[str(normed.name)] = origins[name]
    parts = []
    for i, weight in enumerate(np.split(weights, 3, axis=1)):
        name = f"{qkv.name}_{i + 1}" if i else f"{qkv.name}"
        part = chain.add("MatMul", [y, chain.constant(np.ascontiguousarray(weight))], _shape(y), name=name)
        origins[name] = Origin((str(bias.outputs[0].name),))
        parts.append(chain.reshape(part, [slots, windows, heads, width]))
    for i, (reader, place) in enumerate(((scores, 0), (scores, 1), (values, 1))):
        operand = chain.transpose(parts[i], [0, 2, 3, 4, 1] if i == 1 else [0, 2, 3, 1, 4])
        _take_name(operand, reader.inputs[place])
        reader.replace_input_with(place, operand)
    return reordered


def _reorder(graph: ir.Graph, source: ir.Node, rows: Array) -> bool:
    """Has the node before a stage's first block put out its rows in another order; False if it is none of those."""
    if source.op_type == "LayerNormalization":
        _gather_rows(graph, _input(source), rows, f"{source.name}.rows", [(source, 0)])
        return True
    if not str(source.name).endswith(".merge.reduction/MatMul"):
        return False
    quads = _nearest(source, "Gather")  # four rows become one
    index = array_of(quads.inputs[1]).reshape(len(rows), 4)[rows].ravel()
    quads.replace_input_with(1, constant(graph, f"{quads.name}.rows", index))
    return True


def without_bias(factor: Array, offset: Array, weight: Array, bias: Array) -> tuple[Array, Array, Array]:
    """A norm's factor and offset (C,) and a weight (C,K) with which the product needs no bias (K,).

    The norm's output y has mean 0 over the channels before its factor and offset. So the sum of y / factor is that of
    offset / factor, a constant, and a multiple of it can be any bias. The offset is moved so that it is not small.
    """
    least = 0.1 * np.abs(factor).mean() or 1.0
    scale = np.where(np.abs(factor) < least, least, factor)
    rows = weight * (factor / scale)[:, None]
    inverse = 1 / scale
    shift = np.copysign(np.abs(scale).mean(), scale)
    moved = offset + (shift if inverse @ offset >= 0 else -shift)
    rest = offset @ weight + bias - moved @ rows
    return scale, moved, rows + np.outer(inverse, rest) / (inverse @ moved)


def _take_name(value: ir.Value, old: ir.Value | None) -> None:
    """Gives a value that a product reads the name of the one it read before: calibration knows its range by it."""
    assert old is not None
    name, old.name = old.name, f"{old.name}.before"
    value.name = name


def _nearest(node: ir.Node, op_type: str) -> ir.Node:
    """The first node of a type on the way back from `node`, along first inputs."""
    while node.op_type != op_type:
        node = _source(node)
    return node


def _gather_rows(
    graph: ir.Graph, value: ir.Value, rows: Array, name: str, readers: Sequence[tuple[ir.Node, int]]
) -> None:
    """Puts a gather of rows behind a value (B,N,C), for these readers; of two gathers it makes one."""
    before = value.producer()
    if before is not None and before.op_type == "Gather":
        value, rows = _input(before), array_of(before.inputs[1])[rows]
    batch, _, channels = _shape(value)
    assert value.dtype is not None
    index, shape = constant(graph, name, rows), ir.Shape([batch, len(rows), channels])
    gathered = new_output("Gather", [value, index], f"{name}/Gather.gpu", value.dtype, shape, axis=1)
    insert_after(graph, value, gathered)
    for reader, i in readers:
        reader.replace_input_with(i, gathered)


def _sum_taps(layout: _Layout, rows: ir.Node) -> None:
    """rows @ concat of (columns @ taps), matrices with few numbers a row, as weighted sums of what they select.

    The taps, three products of one input, become one: compilers merge them anyway, and copy its parts apart again.
    """
    stacked = _source(rows, 1)
    concat = _source(stacked)
    columns = [_source(concat, i) for i in range(3)]
    reshapes = [_source(node, 1) for node in columns]
    products = [_source(node) for node in reshapes]
    ((last, _),) = rows.outputs[0].uses()
    result, x = last.outputs[0], products[0].inputs[0]
    assert x is not None
    prefix = str(rows.name).rpartition("/")[0]
    chain = _Chain(layout.graph, products[0], prefix)
    weights = constant(layout.graph, f"{prefix}.taps.weight", np.stack([array_of(node.inputs[1]) for node in products]))
    batch, pixels, _ = _shape(x)
    lifted = chain.unsqueeze(x, 1)
    _take_name(lifted, x)
    layout.origins[str(x.name)] = Origin((str(lifted.name),))
    shape = [batch, 3, pixels, _shape(weights)[-1]]
    taps = chain.add("MatMul", [lifted, weights], shape, name=f"{prefix}.taps/MatMul")
    layout.origins[str(taps.name)] = Origin(tuple(str(node.outputs[0].name) for node in products))
    matrices = [array_of(node.inputs[0]) for node in (rows, columns[0])]
    value = chain.reshape(taps, [matrices[0].shape[1], matrices[1].shape[1], _shape(result)[-1]])
    for axis, matrix in enumerate(matrices, start=1):
        value = _weighted_sum(chain, value, matrix, axis)
    result.replace_all_uses_with(value)
    value.name = result.name


def _sum_moments(graph: ir.Graph, product: ir.Node) -> None:
    """sum_t ((S @ V) * V)_t  becomes  sum_st S_st V_s V_t, for moments S (B,T,T) and values V (B,T,C)."""
    moments, value = product.inputs
    ((weighted, _),) = product.outputs[0].uses()
    ((total, _),) = weighted.outputs[0].uses()
    assert moments is not None
    assert value is not None
    batch, words, channels = _shape(value)
    chain = _Chain(graph, product, str(product.name).removesuffix("/MatMul_2"))
    shape = [batch, words, words, channels]
    summand = chain.add("Mul", [chain.unsqueeze(moments, 3), chain.unsqueeze(value, 1)], shape)
    summand = chain.add("Mul", [summand, chain.unsqueeze(value, 2)], shape)
    summed = chain.add("ReduceSum", [summand, chain.constant(np.array([1, 2]))], [batch, 1, 1, channels], keepdims=1)
    variance = chain.reshape(summed, [1, channels])
    total.outputs[0].replace_all_uses_with(variance)
    variance.name = total.outputs[0].name


def _weighted_sum(chain: _Chain, value: ir.Value, matrix: Array, axis: int) -> ir.Value:
    """matrix @ value along an axis of (B,rows,columns,C), by the numbers in each row that are not zero."""
    terms = int((matrix != 0).sum(axis=1).max())
    chosen = np.sort(np.argsort(matrix == 0, axis=1, kind="stable")[:, :terms], axis=1)
    shape = _shape(value)
    shape[axis] = len(matrix)
    total: ir.Value | None = None
    for indices in chosen.T:
        weights = np.take_along_axis(matrix, indices[:, None], axis=1).reshape([-1] + [1] * (3 - axis))
        picked = chain.add("Gather", [value, chain.constant(np.ascontiguousarray(indices))], shape, axis=axis)
        term = chain.add("Mul", [picked, chain.constant(weights)], shape)
        total = term if total is None else chain.add("Add", [total, term], shape)
    assert total is not None
    return total
