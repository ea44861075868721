"""What a node of an exported graph belongs to, by its name: a part of the model, and a layer group of INT8.

Nodes are named after the module that they come from (`stage2.block5.attn.qkv/MatMul`; see export/graph.py), so these
rules and the attribute names of the rewritten modules change together. Nothing here needs torch.
"""

from __future__ import annotations

import re
from typing import NamedTuple

OTHER = "other"
# The second operand of a product: a weight, or what the image made.
WEIGHTS, ATTENTION = "weights", "attention"


class Place(NamedTuple):
    """Where in the model a node is.

    `part` is what a reader of the paper would name, such as "stage1.attention" or "decoder.level0"; "other" if unknown.
    `group` is the layer group of a product: those of one group are quantised together, or not at all. It is None for
    what stays in floating point: the patch embedding (bytes, which need 9 bits once they are centred), everything of
    PWAM that acts on words (statistics, softmax side), interpolation, and the classifier. BERT runs once per sentence
    and stays as well. `kind` is that of the product's second operand.
    """

    part: str
    group: str | None = None
    kind: str = ""


_RULES = tuple(
    (re.compile(pattern), Place(*place))
    for pattern, *place in (
        (r"patch_embed\b", "patch embedding"),
        (r"(stage\d+)\.block\d+\.attn\.(qkv|proj)\b", r"\1.attention", r"\1.attn.\2", WEIGHTS),
        (r"(stage\d+)\.block\d+\.attn(/MatMul)?$", r"\1.attention", r"\1.attn.scores", ATTENTION),
        (r"(stage\d+)\.block\d+\.attn/MatMul_2$", r"\1.attention", r"\1.attn.values", ATTENTION),
        (r"(stage\d+)\.block\d+(\.norm1|\.attn|/Add(?!_))", r"\1.attention"),
        (r"(stage\d+)\.block\d+\.mlp\.(fc1|fc2)\b", r"\1.mlp", r"\1.mlp.\2", WEIGHTS),
        (r"(stage\d+)\.block\d+(\.norm2|\.mlp|/Add_)", r"\1.mlp"),
        (r"(stage\d+)\.pwam\.(vis_query|mix)\b", r"\1.pwam", r"\1.pwam", WEIGHTS),
        (r"(stage\d+)\.gate\.(fc1|fc2)\b", r"\1.pwam", r"\1.gate", WEIGHTS),
        (r"(stage\d+)\.(pwam|gate|norm)\b", r"\1.pwam"),
        (r"(stage\d+)\.merge\.reduction\b", r"\1.merge", r"\1.merge", WEIGHTS),
        (r"(stage\d+)\.merge\b", r"\1.merge"),
        (r"(decoder\.level\d+)\.upsampled\.taps\d?\b", r"\1", r"\1.taps", WEIGHTS),
        (r"(decoder\.level\d+)\.upsampled\b", r"\1"),
        (r"(decoder\.level\d+)\.(skip|conv)\b", r"\1", r"\1.\2", WEIGHTS),
        (r"(decoder\.level\d+)\b", r"\1"),
        (r"decoder\.classifier\b|decoder(/(?!Reshape|Transpose)|$)|decoder\.(rows|columns)\b", "classifier"),
        (r"(logits|mask)\b", "classifier"),
        (r"(prompt|word_mask)\b", "words"),
        (r"(embeddings|layer\d+|input_ids|attention_mask)\b", "text"),
    )
)
_FP32_RULES = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r".*/LayerNormalization", "LayerNorm statistics"),
        (r".*\.pwam(\.query_norm/|\.word_norm/(?!Transpose|MatMul$)|/Sub).*", "PWAM statistics, means over all pixels"),
        (r"prompt/(ReduceSum|Div|Sub|Mul).*", "words are centred: what they share cancels"),
        (r"decoder/(Split|Greater)", "the mask compares the logits that are put out"),
    )
)
_PRODUCT = re.compile(r"/(Conv|MatMul|Gemm)(?:_[0-9]+)?$")
# What ONNX Runtime puts before the name of the node or tensor that it made a node for.
_MADE_FOR = "InsertedPrecisionFreeCast_"


def place_of(name: str) -> Place:
    """The place of a node or tensor, or of a module, also of a fused node (`stage0.block0.mlp.fc1/MatMul/Fusion`)."""
    name = name.removeprefix(_MADE_FOR)
    for pattern, place in _RULES:
        match = pattern.match(name)
        if match:
            return Place(match.expand(place.part), place.group and match.expand(place.group), place.kind)
    return Place(OTHER)


def part_of(name: str) -> str:
    """The part of a node or tensor; "other" if its name does not say, as for nodes that a runtime made."""
    return place_of(name).part


def product_type(node: str) -> str | None:
    """ "Conv", "MatMul" or "Gemm" if the node of this name is a product, else None."""
    match = _PRODUCT.search(node)
    return match and match[1]


def fp32_reason(node: str) -> str | None:
    """Why a node computes in FP32 in graphs of lower precision, or None."""
    return next((reason for pattern, reason in _FP32_RULES if pattern.fullmatch(node)), None)
