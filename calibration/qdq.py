"""Explicit quantisation: QuantizeLinear and DequantizeLinear around the operands of chosen products.

Activations per tensor, weights per output channel, both symmetric with zero point 0, as TensorRT wants them. Biases
and what stands between the products stay as they are.

CPUs do better with `unsigned`: uint8 activations with a zero point, and two things without which ONNX Runtime runs a
product in FP32: quantised outputs of convolutions, and int32 biases of matrix products, in steps of (step of the
activations) x (step of the weights), which is as good as exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .graphs import constant, drop_unused, insert_after, node_names
from .half import Range, fits_half

_LEVELS = 127


def quantize_products(
    model: ir.Model, products: Iterable[str], ranges: Mapping[str, Range], *, unsigned: bool = False, half: bool = False
) -> None:
    """Quantises both operands of each product, by node name, in place.

    `ranges` holds the clipped range of every activation operand by tensor name (and, if `unsigned`, of what
    `convolution_outputs` names). With `half` all scales are numbers of FP16.
    """
    nodes, inserter = node_names(model), _Inserter(model.graph, ranges, unsigned, half)
    chosen = list(products)
    for name in chosen:
        node = nodes[name]
        for i in (0, 1):
            value = node.inputs[i]
            assert value is not None
            made = inserter.weight(node, i) if value.const_value is not None else inserter.activation(value)
            node.replace_input_with(i, made)
        if unsigned and node.op_type == "MatMul":
            inserter.bias(node)
    if unsigned:
        for value in convolution_outputs(model, chosen):
            readers = list(value.uses())
            made = inserter.activation(value)
            for reader, i in readers:
                if reader.op_type != "QuantizeLinear":
                    reader.replace_input_with(i, made)
    drop_unused(model)


def convolution_outputs(model: ir.Model, products: Iterable[str]) -> list[ir.Value]:
    """What the chosen convolutions put out, behind their Relu where they have one."""
    nodes = node_names(model)
    found = []
    for name in products:
        if nodes[name].op_type != "Conv":
            continue
        value = nodes[name].outputs[0]
        readers = [reader for reader, _ in value.uses()]
        found.append(readers[0].outputs[0] if len(readers) == 1 and readers[0].op_type == "Relu" else value)
    return found


def operands(model: ir.Model, products: Iterable[str]) -> list[str]:
    """The names of the activations that the products read."""
    nodes = node_names(model)
    values = [value for name in products for value in nodes[name].inputs[:2]]
    return list(dict.fromkeys(str(v.name) for v in values if v is not None and v.const_value is None))


class _Inserter:
    def __init__(self, graph: ir.Graph, ranges: Mapping[str, Range], unsigned: bool, half: bool) -> None:
        self._graph, self._ranges, self._unsigned, self._half = graph, ranges, unsigned, half
        self._made: dict[ir.Value, ir.Value] = {}

    def activation(self, value: ir.Value) -> ir.Value:
        """The value after quantisation and back; made once for all its readers."""
        if value not in self._made:
            low, high = self._ranges[str(value.name)]
            if self._unsigned:
                low, high = min(low, 0.0), max(high, 0.0)
                scale = self._scale(np.array((high - low) / 255))
                zero = np.array(round(-low / float(scale)), np.uint8)
            else:
                scale, zero = self._scale(np.array(max(-low, high) / _LEVELS)), np.array(0, np.int8)
            inputs = [constant(self._graph, f"{value.name}.{n}", a) for n, a in (("scale", scale), ("zero", zero))]
            quantize = ir.node("QuantizeLinear", [value, *inputs], name=f"{value.name}/QuantizeLinear")
            quantized = quantize.outputs[0]
            quantized.name, quantized.shape = str(quantize.name), value.shape
            quantized.dtype = ir.DataType.UINT8 if self._unsigned else ir.DataType.INT8
            node = self._dequantize([quantized, *inputs], f"{value.name}/DequantizeLinear", value)
            insert_after(self._graph, value, [quantize, node])
            self._made[value] = node.outputs[0]
        return self._made[value]

    def weight(self, node: ir.Node, i: int) -> ir.Value:
        """A constant operand as INT8 with a scale for each output channel."""
        value = node.inputs[i]
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy()
        axis = array.ndim - 1 if node.op_type != "Conv" and i == 1 else 0
        if value not in self._made:
            others = tuple(j for j in range(array.ndim) if j != axis)
            scale = self._scale(np.abs(array).max(axis=others) / _LEVELS)
            shaped = scale.reshape([-1 if j == axis else 1 for j in range(array.ndim)])
            rounded = np.rint(array / shaped).clip(-_LEVELS, _LEVELS).astype(np.int8)
            inputs = [
                constant(self._graph, f"{value.name}.{n}", a)
                for n, a in (("int8", rounded), ("scale", scale), ("zero", np.zeros(scale.shape, np.int8)))
            ]
            made = self._dequantize(inputs, f"{value.name}/DequantizeLinear", value, axis=axis)
            insert_after(self._graph, value, made)
            self._made[value] = made.outputs[0]
        return self._made[value]

    def bias(self, node: ir.Node) -> None:
        """The bias that is added to a product of an activation with a weight, as int32."""
        readers = list(node.outputs[0].uses())
        scales = [self._scale_of(value) for value in node.inputs[:2]]
        if len(readers) != 1 or readers[0][0].op_type != "Add" or scales[1] is None or scales[1].ndim != 1:
            return
        add, i = readers[0][0], 1 - readers[0][1]
        value = add.inputs[i]
        if value is None or value.const_value is None or value.const_value.numpy().shape != scales[1].shape:
            return
        assert scales[0] is not None
        step = (scales[0] * scales[1]).astype(np.float32)
        largest = np.iinfo(np.int32).max
        rounded = np.rint(value.const_value.numpy() / step.astype(np.float64)).clip(-largest, largest)
        inputs = [
            constant(self._graph, f"{node.name}.bias.{n}", a)
            for n, a in (("int32", rounded.astype(np.int32)), ("scale", step), ("zero", np.zeros(step.shape, np.int32)))
        ]
        made = self._dequantize(inputs, f"{node.name}.bias/DequantizeLinear", value, axis=0)
        insert_after(self._graph, value, made)
        add.replace_input_with(i, made.outputs[0])

    @staticmethod
    def _scale_of(value: ir.Value | None) -> npt.NDArray[np.float32] | None:
        """The scale that a dequantised value has."""
        producer = value.producer() if value is not None else None
        scale = producer.inputs[1] if producer is not None and producer.op_type == "DequantizeLinear" else None
        return scale.const_value.numpy() if scale is not None and scale.const_value is not None else None

    def _dequantize(self, inputs: list[ir.Value], name: str, value: ir.Value, **attributes: int) -> ir.Node:
        node = ir.node("DequantizeLinear", inputs, attributes, name=name)
        made = node.outputs[0]
        made.name, made.dtype, made.shape = name, ir.DataType.FLOAT, value.shape
        return node

    def _scale(self, wanted: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Scales as FP32; with `half`, the next number of FP16, up, so that nothing saturates. Never zero.

        Where FP16 does not hold the tensor itself, half.find_islands keeps it in FP32, and so its scale is any number.
        """
        scale = np.where(wanted > 0, wanted, 1.0).astype(np.float32)
        if self._half and fits_half(_LEVELS * float(np.max(wanted))):
            down = scale.astype(np.float16)
            up = np.where(down.astype(np.float32) < scale, np.nextafter(down, np.float16(np.inf)), down)
            scale = up.astype(np.float32)
        return np.asarray(scale)
