"""The rules on node names: what a node belongs to, said by its name alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lavt_edge.export.rewrites.names import ATTENTION, WEIGHTS, fp32_reason, place_of, product_type


@pytest.mark.parametrize(
    ("product", "part", "group", "kind"),
    [
        ("stage2.block17.attn.qkv/MatMul", "stage2.attention", "stage2.attn.qkv", WEIGHTS),
        ("stage2.block0.attn/MatMul", "stage2.attention", "stage2.attn.scores", ATTENTION),
        ("stage2.block0.attn/MatMul_2", "stage2.attention", "stage2.attn.values", ATTENTION),
        ("stage0.block1.mlp.fc2/MatMul", "stage0.mlp", "stage0.mlp.fc2", WEIGHTS),
        ("stage3.pwam.vis_query/MatMul", "stage3.pwam", "stage3.pwam", WEIGHTS),
        ("stage1.gate.fc1/MatMul", "stage1.pwam", "stage1.gate", WEIGHTS),
        ("stage1.merge.reduction/MatMul", "stage1.merge", "stage1.merge", WEIGHTS),
        ("decoder.level2.upsampled.taps1/MatMul", "decoder.level2", "decoder.level2.taps", WEIGHTS),
        ("decoder.level2.upsampled.taps/MatMul", "decoder.level2", "decoder.level2.taps", WEIGHTS),
        ("decoder.level2.upsampled/MatMul_3", "decoder.level2", None, ""),
        ("decoder.level0.skip/Conv", "decoder.level0", "decoder.level0.skip", WEIGHTS),
        ("patch_embed.proj/MatMul", "patch embedding", None, ""),
        ("stage3.pwam/MatMul_2", "stage3.pwam", None, ""),
        ("stage3.pwam.word_norm/MatMul", "stage3.pwam", None, ""),
        ("decoder.classifier/Conv", "classifier", None, ""),
        ("decoder/MatMul", "classifier", None, ""),
        ("layer0.attn.qkv/MatMul", "text", None, ""),
        ("prompt.project/MatMul", "words", None, ""),
    ],
)
def test_a_product_has_a_part_and_perhaps_a_layer_group(product: str, part: str, group: str | None, kind: str) -> None:
    assert place_of(product) == (part, group, kind)
    assert place_of(product.partition("/")[0]).part == part  # its module, for the costs in docs/rewrites.md


def test_a_name_says_whether_a_node_is_a_product() -> None:
    assert product_type("stage0.block0.attn/MatMul_2") == "MatMul"
    assert product_type("decoder.level0.skip/Conv") == "Conv"
    assert product_type("graph/Gemm_12") == "Gemm"
    for other in ("stage0.block0.attn/Add", "x/Conv_nchwc", "x/MatMul/MatMulAddFusion", "Conv"):
        assert product_type(other) is None


def test_what_stays_in_fp32_has_a_reason() -> None:
    assert fp32_reason("stage1.block0.norm1/LayerNormalization") == "LayerNorm statistics"
    assert fp32_reason("stage1.pwam.query_norm/ReduceMean") == "PWAM statistics, means over all pixels"
    assert fp32_reason("stage1.pwam.word_norm/MatMul_2") == "PWAM statistics, means over all pixels"
    assert fp32_reason("stage1.pwam.word_norm/MatMul") is None
    assert fp32_reason("patch_embed.proj/MatMul") is None
    assert "centred" in str(fp32_reason("prompt/Sub"))
    assert fp32_reason("stage1.pwam.mix/MatMul") is None
    assert fp32_reason("stage1.block0.attn/Softmax") is None


def test_the_rules_need_no_torch() -> None:
    code = "import sys, lavt_edge.export.rewrites.names; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
