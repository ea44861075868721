"""The roofline (Williams et al., CACM 52(4), 2009): how fast each part could run here, and how near it comes.

Ceilings are measured on this machine through ONNX Runtime: in each precision the better of a large matrix product and a
large convolution, which have kernels of their own, and a large copy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from ...errors import InputError
from ...runtime.backend import create_session
from ..timing.result import Ceilings, Roofline, RooflinePart, TimedPart
from .costs import PRECISIONS, floor_seconds

_SIZE = 960  # of the product: its operands and result stay in a CPU's caches; rows of 4096 bytes would share cache sets
_CHANNELS, _SIDE = 512, 30  # of the convolution, 3x3
_COPIED = 128 << 20  # bytes, beyond any cache
_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.FLOAT}
_ROUNDS = 10

Array = npt.NDArray[Any]


def measure_ceilings(precisions: Sequence[str] = PRECISIONS, threads: int | None = None) -> Ceilings:
    """The best of several runs of each, taken in turn; the first precision is the ceilings' own. Takes a few seconds
    and 300 MB.

    Raises InputError for an unknown precision.
    """
    runs: dict[tuple[str, int], Callable[[], object]] = {}  # by precision and MACs
    map_shape = (1, _CHANNELS, _SIDE, _SIDE)
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r}: give some of {', '.join(PRECISIONS)}")
        kind = helper.tensor_dtype_to_np_dtype(_TYPES[precision])
        left, image = np.ones((_SIZE, _SIZE), kind), np.ones(map_shape, kind)
        runs[precision, _SIZE**3] = _runner(product_graph(precision, _SIZE), left, threads)
        macs = 9 * _CHANNELS * math.prod(map_shape)
        runs[precision, macs] = _runner(convolution_graph(precision, map_shape), image, threads)
    runs["copy", 0] = _runner(copy_graph(_COPIED // 4), np.ones(_COPIED // 4, np.float32), threads)
    seconds = dict.fromkeys(runs, math.inf)
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    moved = 2 * _COPIED / seconds.pop(("copy", 0))
    rates: dict[str, float] = {}
    for (precision, macs), least in seconds.items():
        rates[precision] = max(rates.get(precision, 0.0), macs / least)
    return Ceilings(rates[precisions[0]], precisions[0], rates, moved, threads, f"onnxruntime {ort.__version__}, CPU")


def product_graph(precision: str, size: int) -> onnx.ModelProto:
    """y = a w, both (size,size), w constant; INT8 as in a bundle's graph for CPUs: Q/DQ of uint8 and int8."""
    weight = np.random.default_rng(0).integers(-127, 128, (size, size))
    return _weighted_graph(precision, "MatMul", weight, (size, size), axis=1)


def convolution_graph(precision: str, shape: Sequence[int]) -> onnx.ModelProto:
    """y = a * w, 3x3 with padding, (1,C,H,W) to the same, w constant; INT8 as `product_graph`, also of the result."""
    weight = np.random.default_rng(0).integers(-127, 128, (shape[1], shape[1], 3, 3))
    return _weighted_graph(precision, "Conv", weight, shape, axis=0, pads=[1, 1, 1, 1])


def _weighted_graph(
    precision: str, operator: str, weight: npt.NDArray[np.int64], shape: Sequence[int], axis: int, **attributes: Any
) -> onnx.ModelProto:
    """An operator on `a` and a constant whose output channels lie along `axis`."""
    value = _TYPES[precision]
    if precision != "int8":
        weights = {"w": (weight / 127).astype(helper.tensor_dtype_to_np_dtype(value))}
        nodes = [helper.make_node(operator, ["a", "w"], ["y"], name="product", **attributes)]
        return _model(nodes, value, shape, weights)
    scales: dict[str, npt.ArrayLike] = {
        "w.scale": np.full(weight.shape[axis], 0.01, np.float32),
        "w.zero": np.zeros(weight.shape[axis], np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["a.int8"]),
        helper.make_node("DequantizeLinear", ["a.int8", "scale", "zero"], ["left"]),
        helper.make_node("DequantizeLinear", ["w.int8", "w.scale", "w.zero"], ["right"], axis=axis),
    ]
    if operator == "MatMul":
        nodes.append(helper.make_node(operator, ["left", "right"], ["y"], name="product", **attributes))
    else:  # ONNX Runtime computes a convolution in integers if its result is quantised
        nodes += [
            helper.make_node(operator, ["left", "right"], ["made"], name="product", **attributes),
            helper.make_node("QuantizeLinear", ["made", "made.scale", "zero"], ["made.int8"]),
            helper.make_node("DequantizeLinear", ["made.int8", "made.scale", "zero"], ["y"]),
        ]
    constants: dict[str, npt.ArrayLike] = {
        "scale": np.float32(0.02),
        "made.scale": np.float32(20),
        "zero": np.uint8(128),
        **scales,
    }
    return _model(nodes, value, shape, {**constants, "w.int8": weight.astype(np.int8)})


def copy_graph(count: int) -> onnx.ModelProto:
    """y = -a of `count` FP32 numbers: one pass that reads and writes each, which no optimiser removes."""
    return _model([helper.make_node("Neg", ["a"], ["y"], name="copy")], TensorProto.FLOAT, [count], {})


def _model(
    nodes: list[onnx.NodeProto], value: int, shape: Sequence[int], constants: Mapping[str, npt.ArrayLike]
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    ends = [helper.make_tensor_value_info(name, value, shape) for name in ("a", "y")]
    graph = helper.make_graph(nodes, "ceiling", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _runner(model: onnx.ModelProto, array: Array, threads: int | None) -> Callable[[], object]:
    """A call that runs the graph on `array` and writes the result to the same memory each time: fresh pages cost time
    that no bandwidth explains."""
    session = create_session(model.SerializeToString(), threads=threads)
    ends = [ort.OrtValue.ortvalue_from_numpy(values) for values in (array, np.zeros_like(array))]
    binding = session.io_binding()
    binding.bind_ortvalue_input("a", ends[0])
    binding.bind_ortvalue_output("y", ends[1])

    def run(kept: object = ends) -> None:  # the binding alone does not keep its ends alive
        session.run_with_iobinding(binding)

    return run


def roofline(rows: Iterable[TimedPart], ceilings: Ceilings) -> Roofline:
    """The parts beside the ceilings; `efficiency` is None if no time was measured."""
    parts = []
    for row in rows:
        floor, bound = floor_seconds(row.macs_by_precision, row.bytes, ceilings.by_precision, ceilings.bytes_per_second)
        parts.append(
            RooflinePart(
                **vars(row),
                floor_seconds=floor,
                bound=bound,
                macs_per_byte=row.macs / row.bytes if row.bytes else None,
                efficiency=floor / row.seconds if row.seconds else None,
            )
        )
    return Roofline(ceilings, tuple(parts))
