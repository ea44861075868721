"""SmoothQuant (arXiv 2211.10438): outlier channels of a LayerNorm's output move into the weights behind it.

With a factor f per channel, (x / f) (f W) = x W. The division folds into the norm's weight and bias, the factor into
the product's rows: no cost at run time. f_j = max|x_j|^a / max|w_j|^(1-a), with the strength a chosen per pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..export.edits import array_of, constant, node_names

STRENGTHS = tuple(i / 10 for i in range(1, 10))
_LARGEST_FACTOR = 100.0
_NORM = "LayerNormalization"
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Of a norm's output: the largest magnitude and the mean square of each channel, both (C,)."""

    amax: Vector
    square: Vector


@dataclass(frozen=True)
class Pair:
    """A LayerNorm and the one product behind it, by node name."""

    norm: str
    product: str


def find_pairs(model: ir.Model, products: set[str]) -> list[Pair]:
    """Each LayerNorm whose output goes, perhaps padded, into a single MatMul of `products`, and nowhere else."""
    pairs = []
    for node in model.graph:
        if node.op_type != _NORM:
            continue
        value = node.outputs[0]
        reader = _only_reader(value)
        while reader is not None and reader.op_type == "Pad":  # with zeros, which a factor leaves alone
            reader = _only_reader(reader.outputs[0])
        if reader is not None and reader.op_type == "MatMul" and reader.name in products:
            pairs.append(Pair(str(node.name), str(reader.name)))
    return pairs


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = [node for node, _ in value.uses()]
    return readers[0] if len(readers) == 1 else None


def choose_strength(statistics: ChannelStatistics, weight: Vector) -> float | None:
    """The strength with the least expected error of the INT8 product; None: no smoothing is best.

    With step s of the activations and t_k of the weights of output k, the error of an output is about
    sum_j (w_jk^2 s^2 + t_k^2 E[x_j^2]) / 12.
    """
    best, best_error = None, _expected_error(statistics, weight, np.ones(len(weight)))
    for strength in STRENGTHS:
        error = _expected_error(statistics, weight, factors(statistics, weight, strength))
        if error < best_error:
            best, best_error = strength, error
    return best


def _expected_error(statistics: ChannelStatistics, weight: Vector, factor: Vector) -> float:
    scaled = weight * factor[:, None]
    step = np.max(statistics.amax / factor) / 127
    weight_step = np.abs(scaled).max(axis=0) / 127
    square = (statistics.square / factor**2).sum()
    return float((scaled**2).sum() * step**2 + (weight_step**2).sum() * square)


def factors(statistics: ChannelStatistics, weight: Vector, strength: float) -> Vector:
    """f (C,), of mean 1 in the logarithm; 1 where a channel or its weights are all zero."""
    largest = np.abs(weight).max(axis=1)
    usable = (statistics.amax > 0) & (largest > 0)
    amax, wmax = np.where(usable, statistics.amax, 1), np.where(usable, largest, 1)
    logarithm = strength * np.log(amax) - (1 - strength) * np.log(wmax)
    logarithm -= logarithm[usable].mean() if usable.any() else 0
    bound = np.log(_LARGEST_FACTOR)
    return np.where(usable, np.exp(logarithm.clip(-bound, bound)), 1.0)


def weight_of(model: ir.Model, product: str) -> Vector:
    """The weight (in,out) of a MatMul, in float64."""
    return array_of(node_names(model)[product].inputs[1]).astype(np.float64)


def smooth(model: ir.Model, pairs: Mapping[Pair, Vector]) -> None:
    """Folds each pair's factors (C,) into its norm and its product, in place; the function stays the same.

    Weights that nothing reads any more are removed.
    """
    nodes = node_names(model)
    for pair, factor in pairs.items():
        norm, product = nodes[pair.norm], nodes[pair.product]
        for node, i, scale in ((norm, 1, factor**-1.0), (norm, 2, factor**-1.0), (product, 1, factor[:, None])):
            array = (array_of(node.inputs[i]).astype(np.float64) * scale).astype(np.float32)
            node.replace_input_with(i, constant(model.graph, f"{node.name}.smoothed{i}", array))
    RemoveUnusedNodesPass()(model)


def apply_smoothing(model: ir.Model, channels: Mapping[str, ChannelStatistics], strengths: Mapping[str, float]) -> None:
    """Smooths, in place, the pairs of the LayerNorms that `strengths` names."""
    pairs = [pair for pair in find_pairs(model, set(node_names(model))) if pair.norm in strengths]
    chosen = {pair: (channels[pair.norm], weight_of(model, pair.product), strengths[pair.norm]) for pair in pairs}
    smooth(model, {pair: factors(*parts) for pair, parts in chosen.items()})
