"""Which products of the image graph may run in INT8: the placement policy.

A *product* is a Conv or MatMul; `export.rewrites.names.place_of` says which of them may, and which together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from ..export.rewrites.names import WEIGHTS, place_of

POLICIES = ("auto", "full", "decoder")


@dataclass(frozen=True)
class Product:
    """One product that may run in INT8: its node, its layer group, its kind, and its MACs for one image."""

    name: str
    group: str
    kind: str
    macs: int


def find_products(model: ir.Model, macs: dict[str, int]) -> list[Product]:
    """The products that have a layer group, in the graph's order; `macs` gives those of every node."""
    names = [str(node.name) for node in model.graph if node.op_type in ("Conv", "MatMul")]
    places = [(name, place_of(name)) for name in names]
    return [Product(name, place.group, place.kind, macs[name]) for name, place in places if place.group]


def candidates(products: Iterable[Product], policy: str) -> list[Product]:
    """The products that a policy starts from.

    `decoder`: the decoder's convolutions, the part that quantises best. `full`: every product with a weight. `auto`:
    attention and interpolation products besides, which accuracy control must let pass (see placement.py).
    """
    if policy == "decoder":
        return [one for one in products if one.kind == WEIGHTS and one.group.startswith("decoder.")]
    return [one for one in products if policy == "auto" or one.kind == WEIGHTS]


def group_macs(products: Iterable[Product]) -> dict[str, int]:
    """MACs of each group, in the graph's order."""
    groups: dict[str, int] = {}
    for one in products:
        groups[one.group] = groups.get(one.group, 0) + one.macs
    return groups


def int8_macs(model: ir.Model, macs: dict[str, int]) -> int:
    """MACs of the products whose operands both come through DequantizeLinear, seen through nothing but that node."""
    total = 0
    for node in model.graph:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            producers = [value.producer() if value is not None else None for value in node.inputs[:2]]
            if all(one is not None and one.op_type == "DequantizeLinear" for one in producers):
                total += macs[node.name or ""]
    return total
