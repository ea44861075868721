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
import onnx.parser
import onnxruntime as ort
from onnx import helper, numpy_helper

from ...errors import InputError
from ...runtime.backend import create_session
from ..timing.result import Ceilings, Roofline, RooflinePart, TimedPart
from .costs import floor_seconds

_SIZE = 960  # of the product: its operands and result stay in a CPU's caches; rows of 4096 bytes would share cache sets
_CHANNELS, _SIDE = 512, 30  # of the convolution, 3x3
_COPIED = 128 << 20  # bytes, beyond any cache
_KINDS = {"fp32": np.float32, "fp16": np.float16, "int8": np.float32}
_ROUNDS = 10

Array = npt.NDArray[Any]


def measure_ceilings(precisions: Sequence[str] = tuple(_KINDS), threads: int | None = None) -> Ceilings:
    """The best of several runs of each, taken in turn; the first precision is the ceilings' own. Takes a few seconds
    and 300 MB.

    Raises InputError for an unknown precision.
    """
    runs: dict[tuple[str, int], Callable[[], object]] = {}  # by precision and MACs
    map_shape = (1, _CHANNELS, _SIDE, _SIDE)
    for precision in precisions:
        if precision not in _KINDS:
            raise InputError(f"precision {precision!r}: give some of {', '.join(_KINDS)}")
        left, image = (np.ones(shape, _KINDS[precision]) for shape in ((_SIZE, _SIZE), map_shape))
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
    return _weighted_graph(precision, "[product] {} = MatMul ({}, {})", weight, (size, size), axis=1)


def convolution_graph(precision: str, shape: Sequence[int]) -> onnx.ModelProto:
    """y = a * w, 3x3 with padding, (1,C,H,W) to the same, w constant; INT8 as `product_graph`, also of the result."""
    weight = np.random.default_rng(0).integers(-127, 128, (shape[1], shape[1], 3, 3))
    return _weighted_graph(precision, "[product] {} = Conv <pads = [1, 1, 1, 1]> ({}, {})", weight, shape, axis=0)


def _weighted_graph(
    precision: str, product: str, weight: npt.NDArray[np.int64], shape: Sequence[int], axis: int
) -> onnx.ModelProto:
    """A product, its result and operands left open, of `a` and a constant whose output channels lie along `axis`."""
    if precision != "int8":
        return _model(product.format("y", "a", "w"), precision, shape, {"w": (weight / 127).astype(_KINDS[precision])})
    nodes = f"""
        a_int8 = QuantizeLinear (a, scale, zero)
        left = DequantizeLinear (a_int8, scale, zero)
        right = DequantizeLinear <axis = {axis}> (w, w_scale, w_zero)
    """
    if "MatMul" in product:
        nodes += product.format("y", "left", "right")
    else:  # ONNX Runtime computes a convolution in integers if its result is quantised
        nodes += f"""
            {product.format("made", "left", "right")}
            made_int8 = QuantizeLinear (made, made_scale, zero)
            y = DequantizeLinear (made_int8, made_scale, zero)
        """
    constants: dict[str, npt.ArrayLike] = {
        "scale": np.float32(0.02),
        "made_scale": np.float32(20),
        "zero": np.uint8(128),
        "w": weight.astype(np.int8),
        "w_scale": np.full(weight.shape[axis], 0.01, np.float32),
        "w_zero": np.zeros(weight.shape[axis], np.int8),
    }
    return _model(nodes, precision, shape, constants)


def copy_graph(count: int) -> onnx.ModelProto:
    """y = -a of `count` FP32 numbers: one pass that reads and writes each, which no optimiser removes."""
    return _model("[copy] y = Neg (a)", "fp32", [count], {})


def _model(nodes: str, precision: str, shape: Sequence[int], constants: Mapping[str, npt.ArrayLike]) -> onnx.ModelProto:
    """A model from `a` to `y`, both of `shape`; `nodes` are in ONNX's textual syntax."""
    end = f"{'float16' if precision == 'fp16' else 'float'}[{', '.join(map(str, shape))}]"
    graph = onnx.parser.parse_graph(f"ceiling ({end} a) => ({end} y) {{ {nodes} }}")
    graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())
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
