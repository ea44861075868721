"""Explicit quantisation: QuantizeLinear and DequantizeLinear around the operands of chosen products.

Activations per tensor, weights per output channel (see `_Quantizer.weight`), both symmetric with zero point 0, as
TensorRT wants them. Biases and what stands between the products stay as they are.

CPUs do better with `unsigned`: uint8 activations with a zero point, and two things without which ONNX Runtime runs a
product in FP32: quantised outputs of convolutions, and int32 biases of matrix products, in steps of (step of the
activations) x (step of the weights), which is as good as exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..export.edits import FLOAT, MOVEMENT, array_of, constant, insert_after, new_output, node_names
from ..export.rewrites.names import place_of
from .half import Range, fits_half

_LEVELS = 127


def quantize_products(
    model: ir.Model,
    products: Iterable[str],
    ranges: Mapping[str, Range],
    *,
    unsigned: bool = False,
    half: bool = False,
) -> None:
    """Quantises both operands of each product, by node name, in place.

    `ranges` holds the clipped range of every activation operand by tensor name (and, if `unsigned`, of what
    `convolution_outputs` names). With `half` all scales are numbers of FP16, and the decoder's taps, which a GPU reads
    several times, are quantised as well: their ranges are needed too.
    """
    nodes, quantizer = node_names(model), _Quantizer(model.graph, ranges, unsigned, half)
    chosen = list(products)
    for name in chosen:
        node = nodes[name]
        for i, value in enumerate(node.inputs[:2]):
            assert value is not None
            quantized = quantizer.weight(node, i) if value.const_value is not None else quantizer.activation(value)
            node.replace_input_with(i, quantized)
        if unsigned and node.op_type == "MatMul":
            quantizer.bias(node)
    outputs = list(convolution_outputs(model, chosen).values()) if unsigned else []
    if half:
        outputs = [nodes[name].outputs[0] for name in chosen if str(place_of(name).group).endswith(".taps")]
    for value in outputs:
        readers = list(value.uses())
        quantized = quantizer.activation(value)
        for reader, i in readers:
            if reader.op_type != "QuantizeLinear" and reader is not quantized.producer():
                reader.replace_input_with(i, quantized)
    RemoveUnusedNodesPass()(model)


def convolution_outputs(model: ir.Model, products: Iterable[str]) -> dict[str, ir.Value]:
    """What each of the chosen convolutions puts out, behind its Relu if it has one."""
    nodes = node_names(model)
    outputs = {}
    for name in products:
        if nodes[name].op_type == "Conv":
            value = nodes[name].outputs[0]
            readers = [reader for reader, _ in value.uses()]
            outputs[name] = readers[0].outputs[0] if [reader.op_type for reader in readers] == ["Relu"] else value
    return outputs


def operands(model: ir.Model, products: Iterable[str]) -> list[str]:
    """The names of the activations that the products read."""
    nodes = node_names(model)
    values = [value for name in products for value in nodes[name].inputs[:2]]
    return list(dict.fromkeys(str(v.name) for v in values if v is not None and v.const_value is None))


def _is_only_moved(value: ir.Value) -> bool:
    return all(reader.op_type in MOVEMENT for reader, _ in value.uses())


class _Quantizer:
    """Values after quantisation and back, each made once for all its readers."""

    def __init__(self, graph: ir.Graph, ranges: Mapping[str, Range], unsigned: bool, half: bool) -> None:
        self._graph, self._ranges, self._unsigned, self._half = graph, ranges, unsigned, half
        self._made: dict[ir.Value, ir.Value] = {}
        self._scales: dict[ir.Value | None, npt.NDArray[np.float32]] = {}  # of what was made

    def activation(self, value: ir.Value) -> ir.Value:
        """An activation as INT8 with one scale."""
        if value not in self._made:
            low, high = self._ranges[str(value.name)]
            if self._unsigned:
                low, high = min(low, 0.0), max(high, 0.0)
                scale = self._scale(np.array((high - low) / 255))
                zero, dtype = np.array(round(-low / float(scale)), np.uint8), ir.DataType.UINT8
            else:
                scale = self._scale(np.array(max(-low, high) / _LEVELS))
                zero, dtype = np.array(0, np.int8), ir.DataType.INT8
            name, shape = value.name, value.shape
            parts = [constant(self._graph, f"{name}.{part}", data) for part, data in (("scale", scale), ("zero", zero))]
            quantized = new_output("QuantizeLinear", [value, *parts], f"{name}/QuantizeLinear", dtype, shape)
            made = new_output("DequantizeLinear", [quantized, *parts], f"{name}/DequantizeLinear", FLOAT, shape)
            insert_after(self._graph, value, quantized, made)
            self._made[value], self._scales[made] = made, scale
        return self._made[value]

    def weight(self, node: ir.Node, i: int) -> ir.Value:
        """A constant operand as INT8 with a scale for each output channel.

        With `half`, one scale if the product's output is only moved: nothing follows that could scale each channel in
        its own kernel.
        """
        value = node.inputs[i]
        assert value is not None
        if value not in self._made:
            array = array_of(value)
            axis = array.ndim - 1 if node.op_type != "Conv" and i == 1 else 0
            scale = self._scale(np.abs(array).max(axis=tuple(j for j in range(array.ndim) if j != axis)) / _LEVELS)
            if self._half and _is_only_moved(node.outputs[0]):
                scale = scale.max()
            shaped = scale.reshape([-1 if j == axis else 1 for j in range(array.ndim)])
            rounded = np.rint(array / shaped).clip(-_LEVELS, _LEVELS).astype(np.int8)
            self._made[value] = self._constant(value, str(value.name), rounded, scale, axis)
        return self._made[value]

    def bias(self, node: ir.Node) -> None:
        """The bias that is added to a product of an activation with a weight, as int32."""
        readers = list(node.outputs[0].uses())
        activation_scale, scale = (self._scales.get(value) for value in node.inputs[:2])
        if len(readers) != 1 or readers[0][0].op_type != "Add" or scale is None or scale.ndim != 1:
            return
        add, i = readers[0][0], 1 - readers[0][1]
        value = add.inputs[i]
        if value is None or value.const_value is None or array_of(value).shape != scale.shape:
            return
        assert activation_scale is not None
        step = (activation_scale * scale).astype(np.float32)
        largest = np.iinfo(np.int32).max
        rounded = np.rint(array_of(value) / step.astype(np.float64)).clip(-largest, largest).astype(np.int32)
        add.replace_input_with(i, self._constant(value, f"{node.name}.bias", rounded, step, axis=0))

    def _constant(
        self, value: ir.Value, name: str, rounded: npt.NDArray[Any], scale: npt.NDArray[np.float32], axis: int
    ) -> ir.Value:
        """`rounded`, in steps of `scale`, in place of the constant `value`."""
        parts = {rounded.dtype.name: rounded, "scale": scale, "zero": np.zeros(scale.shape, rounded.dtype)}
        inputs = [constant(self._graph, f"{name}.{part}", data) for part, data in parts.items()]
        made = new_output("DequantizeLinear", inputs, f"{name}/DequantizeLinear", FLOAT, value.shape, axis=axis)
        insert_after(self._graph, value, made)
        self._scales[made] = scale
        return made

    def _scale(self, wanted: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Scales as FP32; with `half`, the next number of FP16, up, so that nothing saturates. Never zero.

        If FP16 does not hold the tensor itself, half.find_islands keeps it in FP32, and so its scale is any number.
        """
        scale = np.where(wanted > 0, wanted, 1.0).astype(np.float32)
        if self._half and fits_half(_LEVELS * float(np.max(wanted))):
            down = scale.astype(np.float16)
            up = np.where(down.astype(np.float32) < scale, np.nextafter(down, np.float16(np.inf)), down)
            scale = up.astype(np.float32)
        return np.asarray(scale)
