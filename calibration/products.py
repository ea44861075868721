"""Which products of the image graph may run in INT8: the placement policy.

A *product* is a Conv or MatMul; `export.rewrites.names.place_of` says which of them may, and which together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from ..export.macs import count_macs
from ..export.rewrites.names import WEIGHTS, place_of
from ..runtime.bundle import Bundle

POLICIES = ("auto", "full", "decoder", "bytes")
RESTS = ("fp16", "fp32")


@dataclass(frozen=True)
class Product:
    """One product that may run in INT8: its node, its layer group, its kind, and its MACs for one image."""

    name: str
    group: str
    kind: str
    macs: int


def image_macs(bundle: Bundle, model: ir.Model) -> dict[str, int]:
    """MACs of each product of an image graph of the bundle, by node name, for one image."""
    batch = bundle.manifest.input.batch or 1
    return {name: count // batch for name, count in count_macs(model).items()}


def image_products(bundle: Bundle, model: ir.Model) -> list[Product]:
    """The products of the image graph that may be quantised, with their MACs for one image."""
    return find_products(model, image_macs(bundle, model))


def find_products(model: ir.Model, macs: dict[str, int]) -> list[Product]:
    """The products that have a layer group, in the graph's order; `macs` gives those of every node."""
    names = [str(node.name) for node in model.graph if node.op_type in ("Conv", "MatMul")]
    places = [(name, place_of(name)) for name in names]
    return [Product(name, place.group, place.kind, macs[name]) for name, place in places if place.group]


def candidates(products: Iterable[Product], policy: str, rest: str = "fp16") -> list[Product]:
    """The products that a policy starts from, in a graph whose rest is of a precision of RESTS.

    `decoder`: the decoder's convolutions, the part that quantises best. `full`: every product with a weight. `auto`:
    attention products besides, which accuracy control must let pass (see placement.py), but not beside FP32:
    activations times activations gain nothing in a CPU's INT8 kernels. `bytes`: where INT8 moves fewer bytes on a GPU:
    attention, patch merging, the taps and the MLPs of the last stage, which are mostly weights. An INT8 product
    elsewhere writes FP16 or FP32, and one kernel more reads it, adds the bias and quantises (TensorRT for RTX 1.7).
    """
    parts = {"decoder": re.compile(r"decoder\."), "bytes": re.compile(r".*\.(attn|merge|taps)\b|stage3\.mlp\b")}
    return [
        product
        for product in products
        if (product.kind == WEIGHTS or (policy in ("auto", "bytes") and rest == "fp16"))
        and (policy not in parts or parts[policy].match(product.group))
    ]


def group_macs(products: Iterable[Product]) -> dict[str, int]:
    """MACs of each group, in the graph's order."""
    groups: Counter[str] = Counter()
    for product in products:
        groups[product.group] += product.macs
    return groups


def int8_macs(model: ir.Model, macs: dict[str, int]) -> int:
    """MACs of the products whose operands both come through DequantizeLinear, seen through nothing but that node."""
    total = 0
    for node in model.graph:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            producers = [value.producer() if value is not None else None for value in node.inputs[:2]]
            if all(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers):
                total += macs[node.name or ""]
    return total
