"""Rewrite 7, for graphs in 16 bits: what a GPU spends on moving numbers, spent less often. The function is the same.

A GPU waits for memory as often as for products, so here a few more products are worth a pass over a tensor less (see
docs/rewrites.md, which has the bytes and kernels):

- Upsampling. The matrices of rewrite 5 have six numbers a row. As products they write two large tensors and a copy in
  another layout; as weighted sums of gathered rows and columns a compiler makes one kernel of both.
- Windows. The gather back to pixels lies before the output projection, in a kernel of its own. Rows mix in no product
  with a weight, so it may lie behind: there it fuses with the residual sum and the norm.
- Words. The variance diag(V'^T S V') of a few words is a sum in one kernel; as products it takes three.

On a CPU, products beat gathers: graphs in FP32 stay as they are. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..edits import array_of, constant, drop_unused

Array = npt.NDArray[Any]


def lay_out_for_gpu(model: ir.Model) -> None:
    """Rewrites an image graph that `lavt-export onnx` wrote, in place. Nodes and tensors that stay keep their names."""
    for node in list(model.graph):
        name = node.name or ""
        if name.endswith(".attn.proj/MatMul"):
            _project_windows(model.graph, node)
        elif name.endswith(".upsampled/MatMul_4"):
            _sum_taps(model.graph, node)
        elif name.endswith(".pwam.word_norm/MatMul_2"):
            _sum_moments(model.graph, node)
    drop_unused(model)


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


def _shape(value: ir.Value) -> list[Any]:
    assert value.shape is not None
    return list(value.shape)


def _source(node: ir.Node, i: int = 0) -> ir.Node:
    """The node that makes a node's input."""
    value = node.inputs[i]
    assert value is not None
    producer = value.producer()
    assert producer is not None
    return producer


def _project_windows(graph: ir.Graph, product: ir.Node) -> None:
    """attended (B,nW,h,S,d) -> gather (B,N,C) -> projection + bias  becomes  projection + bias (B,nW*S,C) -> gather."""
    merged = _source(product)
    gather = _source(merged)
    split = _source(gather)
    attended = split.inputs[0]
    assert attended is not None
    batch, windows, heads, slots, width = _shape(attended)
    rows = array_of(gather.inputs[1]).reshape(-1, heads)[:, 0]  # of (window, head 0, slot), for each pixel
    chain = _Chain(graph, product, str(product.name).removesuffix(".proj/MatMul"))
    turned = chain.add("Transpose", [attended], [batch, windows, slots, heads, width], perm=[0, 1, 3, 2, 4])
    in_windows = chain.reshape(turned, [windows * slots, heads * width])
    in_windows.name = merged.outputs[0].name
    product.replace_input_with(0, in_windows)
    ((bias, _),) = product.outputs[0].uses()
    for node in (product, bias):
        node.outputs[0].shape = ir.Shape([batch, windows * slots, heads * width])
    ((residual, i),) = bias.outputs[0].uses()
    back = _Chain(graph, residual, str(bias.name).removesuffix("/Add"))
    pixels = back.constant(rows // (heads * slots) * slots + rows % slots)
    gathered = back.add("Gather", [bias.outputs[0], pixels], [batch, len(rows), heads * width], axis=1)
    residual.replace_input_with(i, gathered)
    graph.remove([merged, gather, split], safe=True)


def _sum_taps(graph: ir.Graph, rows: ir.Node) -> None:
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
    chain = _Chain(graph, products[0], prefix)
    weights = constant(graph, f"{prefix}.taps.weight", np.stack([array_of(node.inputs[1]) for node in products]))
    batch, pixels, _ = _shape(x)
    lifted = chain.add("Unsqueeze", [x, chain.constant(np.array([1]))], [batch, 1, *_shape(x)[1:]])
    # What the product reads keeps its name: calibration knows its range by it.
    x.name, lifted.name = f"{x.name}.rows", x.name
    shape = [batch, 3, pixels, _shape(weights)[-1]]
    taps = chain.add("MatMul", [lifted, weights], shape, name=f"{prefix}.taps/MatMul")
    matrices = [array_of(node.inputs[0]) for node in (rows, columns[0])]
    value = chain.reshape(taps, [matrices[0].shape[1], matrices[1].shape[1], _shape(result)[-1]])
    for axis, matrix in enumerate(matrices, start=1):
        value = _weighted_sum(chain, value, matrix, axis)
    result.replace_all_uses_with(value)
    graph.remove([last, rows, stacked, concat, *columns, *reshapes, *products], safe=True)
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

    def unsqueezed(x: ir.Value, axis: int, shape: list[Any]) -> ir.Value:
        return chain.add("Unsqueeze", [x, chain.constant(np.array([axis]))], shape)

    summand = chain.add(
        "Mul",
        [unsqueezed(moments, 3, [batch, words, words, 1]), unsqueezed(value, 1, [batch, 1, words, channels])],
        [batch, words, words, channels],
    )
    summand = chain.add("Mul", [summand, unsqueezed(value, 2, [batch, words, 1, channels])], _shape(summand))
    summed = chain.add("ReduceSum", [summand, chain.constant(np.array([1, 2]))], [batch, 1, 1, channels], keepdims=1)
    variance = chain.reshape(summed, [1, channels])
    total.outputs[0].replace_all_uses_with(variance)
    variance.name = total.outputs[0].name
    graph.remove([total, weighted, product], safe=True)


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
