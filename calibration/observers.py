"""Graphs that report on their own tensors: extra outputs, and sessions that run them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import BundleError, reason_of
from ..export.edits import FLOAT, MOVEMENT, constant, insert_after, is_float, new_output
from ..runtime.backend import create_session, cuda_problem

Array = npt.NDArray[Any]

_LARGE = 1 << 16  # bytes of a weight


class Session:
    """A graph on ONNX Runtime, run for all or some of its outputs.

    The order of sums depends on `threads` (None: one per core): results are equal bit for bit for equal numbers. With
    `fused` false quantised products run as they are written, in FP32 between the rounding steps, and not in a CPU's
    INT8 kernels.
    """

    def __init__(self, model: ir.Model, *, threads: int | None = None, fused: bool = True) -> None:
        config = {} if fused else {"session.disable_quant_qdq": "1"}
        try:
            graph, self._weights = _apart(model)  # which the session reads while it lives
            cuda = cuda_problem() is None
            self._session = create_session(graph, cuda=cuda, threads=threads, config=config, weights=self._weights)
        except Exception as error:  # the classes of ONNX Runtime's errors derive from Exception alone
            raise BundleError(f"a graph that ONNX Runtime cannot load ({reason_of(error)})") from error

    def run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The named outputs. Raises BundleError if the graph does not take these inputs."""
        try:
            return [np.asarray(output) for output in self._session.run(list(outputs), feeds)]
        except Exception as error:
            raise BundleError(f"a graph that cannot run ({reason_of(error)})") from error


def _apart(model: ir.Model) -> tuple[bytes, dict[str, Array]]:
    """A graph, serialised without its large weights, and those by name: ONNX Runtime takes them as they are."""
    large = {
        value: value.const_value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.nbytes >= _LARGE
        and value.const_value.dtype.numpy().isbuiltin == 1  # ONNX Runtime takes no arrays of bfloat16
        and value.uses()  # nor weights that nothing reads
    }
    try:
        for value, tensor in large.items():
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor("", 0, tensor.nbytes, tensor.dtype, shape=shape, name=str(value.name))
        graph = ir.to_proto(model).SerializeToString()
    finally:
        for value, tensor in large.items():
            value.const_value = tensor
    return graph, {str(value.name): np.ascontiguousarray(tensor.numpy()) for value, tensor in large.items()}


def observed_tensors(model: ir.Model) -> list[str]:
    """The tensors whose ranges count: each float input, and what every node that changes numbers puts out."""
    values = [value for value in model.graph.inputs if is_float(value)]
    for node in model.graph:
        if node.op_type not in MOVEMENT:
            values += [value for value in node.outputs if is_float(value)]
    return [str(value.name) for value in values]


def add_range_outputs(model: ir.Model, tensors: Iterable[str]) -> list[str]:
    """Adds, in place, two scalar outputs for each tensor: its smallest and its largest value. Returns their names."""
    values = _values(model)
    reductions = [(tensor, op) for tensor in tensors for op in ("ReduceMin", "ReduceMax")]
    return [_add_output(model, op, [values[tensor]], f"{tensor}/{op}.range", []) for tensor, op in reductions]


def add_channel_outputs(model: ir.Model, tensors: Iterable[str]) -> list[str]:
    """Adds, in place, two outputs (C,) for each tensor (B,N,C): each channel's largest magnitude and sum of squares."""
    values, names = _values(model), []
    for tensor in tensors:
        value = values[tensor]
        assert value.shape is not None
        magnitude = new_output("Abs", [value], f"{tensor}/Abs.channels", FLOAT, value.shape)
        insert_after(model.graph, value, magnitude)
        axes = constant(model.graph, f"{tensor}/axes", np.arange(len(value.shape) - 1))
        for op, source in (("ReduceMax", magnitude), ("ReduceSumSquare", value)):
            names.append(_add_output(model, op, [source, axes], f"{tensor}/{op}.channels", value.shape[-1:]))
    return names


def expose_outputs(model: ir.Model, tensors: Iterable[str]) -> None:
    """Makes tensors outputs, in place."""
    values = _values(model)
    for tensor in tensors:
        if values[tensor] not in model.graph.outputs:
            model.graph.outputs.append(values[tensor])


def _add_output(model: ir.Model, op: str, inputs: list[ir.Value], name: str, shape: Iterable[Any]) -> str:
    output = new_output(op, inputs, name, FLOAT, ir.Shape(shape), keepdims=0)
    insert_after(model.graph, inputs[0], output)
    model.graph.outputs.append(output)
    return name


def _values(model: ir.Model) -> dict[str, ir.Value]:
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {str(value.name): value for value in values}
