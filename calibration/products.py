"""Which products of the image graph may run in INT8, and in which layer group each is: the placement policy.

A *product* is a Conv or MatMul. Those that no rule names stay in floating point: the patch embedding (raw bytes, whose
sums cancel against its bias), everything of PWAM that acts on words (statistics, softmax side), the classifier and the
final upsampling of two channels. BERT runs once per sentence and stays as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

WEIGHTS, INTERPOLATION, ATTENTION = "weights", "interpolation", "attention"
POLICIES = ("auto", "full", "decoder")

_RULES = tuple(
    (re.compile(pattern), group, kind)
    for pattern, group, kind in (
        (r"(stage\d)\.block\d+\.attn\.(qkv|proj)/MatMul", r"\1.attn.\2", WEIGHTS),
        (r"(stage\d)\.block\d+\.attn/MatMul", r"\1.attn.scores", ATTENTION),
        (r"(stage\d)\.block\d+\.attn/MatMul_2", r"\1.attn.values", ATTENTION),
        (r"(stage\d)\.block\d+\.mlp\.(fc1|fc2)/MatMul", r"\1.mlp.\2", WEIGHTS),
        (r"(stage\d)\.pwam\.(?:vis_query|mix)/MatMul", r"\1.pwam", WEIGHTS),
        (r"(stage\d)\.gate\.(?:fc1|fc2)/MatMul", r"\1.gate", WEIGHTS),
        (r"(stage\d)\.merge\.reduction/MatMul", r"\1.merge", WEIGHTS),
        (r"(decoder\.level\d)\.upsampled\.taps\d/MatMul", r"\1.taps", WEIGHTS),
        (r"(decoder\.level\d)\.upsampled/MatMul(?:_\d)?", r"\1.interpolation", INTERPOLATION),
        (r"(decoder\.level\d)\.(skip|conv)/Conv", r"\1.\2", WEIGHTS),
    )
)


@dataclass(frozen=True)
class Product:
    """One product that may run in INT8: its node, its layer group, its kind, and its MACs for one image."""

    name: str
    group: str
    kind: str
    macs: int


def find_products(model: ir.Model, macs: dict[str, int]) -> list[Product]:
    """The products that the rules name, in the graph's order; `macs` gives those of every node."""
    found = []
    for node in model.graph:
        for pattern, group, kind in _RULES:
            match = pattern.fullmatch(node.name or "")
            if match:
                found.append(Product(match.string, match.expand(group), kind, macs[match.string]))
                break
    return found


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
