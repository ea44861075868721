"""The first layer whose output diverges from FP32: every tensor that two graphs share, compared on one input."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from ...calibration.half import emulate_half
from ...calibration.observers import Session, expose_outputs, observed_tensors
from ...data.metrics import relative_error
from ...errors import BackendError, reason_of
from ...export.edits import LOW_NAMES, MOVEMENT
from ...export.rewrites.gpu import is_laid_out, lay_out_for_gpu
from ..timing.result import LayerError

Array = npt.NDArray[Any]

# The relative error that rounding alone may give a product of exact operands, by the graph's lowest precision.
_ROUNDING = {"int8": 0.03, "bf16": 1.6e-2, "fp16": 2e-3, "fp32": 1e-4}
# How much worse than all before it a tensor is, or than what a product was made of, if the graphs diverge there.
_JUMP, _PRODUCT_JUMP = 6.0, 2.5
_PRODUCTS = ("Conv", "MatMul", "Gemm")
_BYTES_AT_ONCE = 512 << 20


def compare_layers(
    reference_onnx: Path, other_onnx: Path, feeds: Mapping[str, Array], threads: int | None = None
) -> list[LayerError]:
    """The tensors of a FP32 graph that another one, in 16 bits or INT8, has as well, worst first.

    `first` marks where the graphs diverge: the first tensor in the graph's order whose error is several times that of
    all before it, or a product's several times that of its operands, and beyond what rounding to the other graph's
    precision explains. No row is marked if there is none, as in a graph that is sound.

    The other graph runs as a GPU would compute it: results in 16 bits are rounded, quantised products run as they are
    written. Left out are tensors that only move numbers, and those that SmoothQuant scaled on purpose.

    Raises:
        BackendError: a graph cannot run on `feeds`, or the two share no tensor.
    """
    reference, other = ir.load(reference_onnx), ir.load(other_onnx)
    if is_laid_out(other):
        lay_out_for_gpu(reference)  # rows are in the same order then
    precision = _precision(other)
    emulate_half(other)
    shared = _shared(reference, other)
    if not shared:
        raise BackendError(f"{reference_onnx} and {other_onnx} share no named tensor: are they of one model?")
    wanted, found = list(shared), list(shared.values())
    nodes = {str(value.name): str(node.name) for node in reference.graph for value in node.outputs}
    sizes = _sizes(reference, wanted)
    for model, names in ((reference, wanted), (other, found)):
        expose_outputs(model, names)
    errors: dict[str, float] = {}
    try:
        sides = [Session(model, threads=threads, fused=False) for model in (reference, other)]
        for part in _pieces(wanted, sizes):
            right = sides[0].run(dict(feeds), part)
            made = sides[1].run(dict(feeds), [shared[name] for name in part])
            errors |= {name: relative_error(a, b) for name, a, b in zip(part, made, right, strict=True)}
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BackendError(f"{other_onnx} could not be compared: {reason_of(error)}") from error
    first = first_divergence(errors, _sources(reference, errors), _ROUNDING[precision])
    worst_first = sorted(errors.items(), key=lambda pair: -pair[1])
    return [
        LayerError(name, nodes[name], error if math.isfinite(error) else None, name == first)
        for name, error in worst_first
    ]


def first_divergence(errors: Mapping[str, float], products: Mapping[str, Iterable[str]], rounding: float) -> str | None:
    """The first tensor, in the order of `errors`, where two graphs diverge, or None; see `compare_layers`.

    `products` holds, for each tensor that a product made, the tensors in `errors` that it was made from.
    """
    before = rounding
    for name, error in errors.items():
        if error > _JUMP * before:
            return name
        if name in products and error > _PRODUCT_JUMP * max(
            rounding, *(errors[source] for source in products[name]), 0.0
        ):
            return name
        before = max(before, error)
    return None


def _sources(model: ir.Model, compared: Mapping[str, float]) -> dict[str, set[str]]:
    """For each product, by its tensor: the nearest compared tensors that its operands were made from."""
    nearest: dict[ir.Value, set[str]] = {}
    found: dict[str, set[str]] = {}
    for node in model.graph:
        sources: set[str] = set()
        for value in node.inputs:
            if value is not None:
                sources |= {str(value.name)} if value.name in compared else nearest.get(value, set())
        for value in node.outputs:
            nearest[value] = sources
            if value.name in compared and node.op_type in _PRODUCTS:
                found[str(value.name)] = sources
    return found


def _precision(model: ir.Model) -> str:
    """The lowest precision in a graph."""
    if any(node.op_type == "DequantizeLinear" for node in model.graph):
        return "int8"
    types = (value.dtype for node in model.graph for value in node.outputs)
    return next((LOW_NAMES[dtype] for dtype in types if dtype in LOW_NAMES), "fp32")


def _shared(reference: ir.Model, other: ir.Model) -> dict[str, str]:
    """The tensors to compare, in the reference's order, and what each is called in the other graph."""
    known = {str(value.name): str(value.shape) for node in other.graph for value in node.outputs}
    shapes = {str(value.name): str(value.shape) for node in reference.graph for value in node.outputs}
    skipped = _smoothed(other)
    names = [
        name
        for name in observed_tensors(reference)
        if name in shapes and known.get(name) == shapes[name] and name not in skipped
    ]
    # What a FP16 tensor holds is what it was rounded to.
    return {name: f"{name}/Rounded" if f"{name}/Rounded" in known else name for name in names}


def _smoothed(model: ir.Model) -> set[str]:
    """What stands between a LayerNorm that smoothing scaled and the product whose weights make up for it.

    A norm that carries biases, in a graph laid out for GPUs, has other factors if it was smoothed before.
    """
    smoothed: set[ir.Value] = set()
    for node in model.graph:
        scaled = node.op_type == "LayerNormalization" and any(
            value is not None and value.const_value is not None and re.search(r"\.(smoothed|slots/)", str(value.name))
            for value in node.inputs
        )
        if scaled or (node.op_type in {*MOVEMENT, "Pad", "Cast"} and node.inputs[0] in smoothed):
            smoothed.update(node.outputs)
    return {str(value.name) for value in smoothed}


def _sizes(model: ir.Model, names: Iterable[str]) -> dict[str, int]:
    """Bytes of tensors in FP32, for one image if the batch is dynamic."""
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    shapes = {name: values[name].shape or () for name in names}
    return {name: 4 * math.prod(dim if isinstance(dim, int) else 1 for dim in shape) for name, shape in shapes.items()}


def _pieces(names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The tensors in groups that fit in memory together."""
    piece: list[str] = []
    held = 0
    for name in names:
        if piece and held + sizes[name] > _BYTES_AT_ONCE:
            yield piece
            piece, held = [], 0
        piece.append(name)
        held += sizes[name]
    if piece:
        yield piece
