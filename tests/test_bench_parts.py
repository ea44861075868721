"""Where the time of a graph goes: names to parts, what each part costs, and the profiler's seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lavt_edge.benchmarks.parts import measure
from lavt_edge.benchmarks.parts.costs import Operation, assign_parts, cost_rows, node_parts
from lavt_edge.benchmarks.parts.profile import part_times
from lavt_edge.benchmarks.timing.result import Estimate, Options
from lavt_edge.errors import BackendError
from lavt_edge.export.macs import count_macs
from lavt_edge.export.rewrites.names import part_of
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.tests.typed_bundle import add_typed_graphs, copy_bundle
from onnx import TensorProto, helper, numpy_helper

STAGE_PARTS = [f"stage{i}.{what}" for i in range(4) for what in ("attention", "mlp", "pwam")]
PARTS = {
    "patch embedding",
    "words",
    "classifier",
    *STAGE_PARTS,
    *(f"stage{i}.merge" for i in range(3)),
    *(f"decoder.level{i}" for i in range(3)),
}


@pytest.fixture(scope="module")
def typed(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle with FP16 and INT8 graphs; the scales are invented, which costs do not depend on."""
    bundle = copy_bundle(demo_bundle, tmp_path_factory.mktemp("parts") / "bundle")
    add_typed_graphs(bundle)
    return bundle


def image_feeds(bundle: Path, batch: int = 1) -> dict[str, Any]:
    spec, rng = open_bundle(bundle).manifest.input, np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8),
        "prompt": rng.standard_normal((batch, spec.max_words, spec.prompt_channels)).astype(np.float32),
        "word_mask": np.ones((batch, spec.max_words), np.float32),
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("patch_embed.proj/MatMul/MatMulAddFusion", "patch embedding"),
        ("stage2.block11.norm1/LayerNormalization", "stage2.attention"),
        ("stage2.block11.attn/MatMul/MatmulTransposeFusion/", "stage2.attention"),
        ("stage2.block11/Add", "stage2.attention"),
        ("stage2.block11/Add_2", "stage2.mlp"),
        ("stage0.block0.mlp.fc1/MatMul/MatMulAddFusion", "stage0.mlp"),
        ("stage0.block0.mlp.fc1/MatMul.smoothed1/DequantizeLinear", "stage0.mlp"),
        ("InsertedPrecisionFreeCast_stage3.block1.norm2/LayerNormalization", "stage3.mlp"),
        ("stage1.pwam.word_norm/MatMul_2", "stage1.pwam"),
        ("stage1.gate.fc2/MatMul", "stage1.pwam"),
        ("stage1.norm/LayerNormalization", "stage1.pwam"),
        ("stage1.merge.reduction/MatMul", "stage1.merge"),
        ("decoder.level0.conv/Conv_nchwc", "decoder.level0"),
        ("decoder.classifier/Conv", "classifier"),
        ("decoder/MatMul_2", "classifier"),
        ("layer11.attn.qkv/MatMul", "text"),
        ("word_mask/Sub", "words"),
        ("decoder/Reshape_4", "other"),
        ("gemm_input_reshape_token_2", "other"),
        ("node_conv2d_3", "other"),
    ],
)
def test_a_name_says_the_part(name: str, part: str) -> None:
    assert part_of(name) == part


def test_nodes_that_a_runtime_made_belong_where_their_tensors_do() -> None:
    operations = [
        Operation("stage0.block0/Add_2", ["x"], ["residual"]),
        Operation("reshape_1", ["residual"], ["flat"]),  # read by one part
        Operation("stage0.pwam.mix/MatMul", ["flat"], ["product"]),
        Operation("reshape_2", ["product"], ["stage0.pwam.mix/Add"]),  # writes a tensor that has a name
        Operation("", ["stage0.pwam.mix/Add"], ["a"]),  # read by two parts, written by one
        Operation("stage0.merge/Gather", ["a"], ["m"]),
        Operation("decoder.level0.skip/Conv", ["a"], ["s"]),
        Operation("join", ["m", "s"], ["end"]),  # of two parts, read by none
    ]
    wanted = ["stage0.mlp", "stage0.pwam", "stage0.pwam", "stage0.pwam", "stage0.pwam"]
    assert assign_parts(operations) == [*wanted, "stage0.merge", "decoder.level0", "other"]


class TestCosts:
    @pytest.mark.parametrize("precision", ["", ".fp16", ".int8"])
    def test_macs_of_the_parts_are_those_of_the_graph(self, typed: Path, precision: str) -> None:
        graph = typed / f"segmenter{precision}.onnx"
        rows, total = cost_rows(graph), sum(count_macs(graph).values())
        assert sum(row.macs for row in rows) == total
        assert precision or total == open_bundle(typed).manifest.model["macs"]["segmenter"]
        assert [row.macs for row in rows] == [sum(row.macs_by_precision.values()) for row in rows]
        assert {row.part for row in rows} == PARTS
        assert [row.part for row in rows][:4] == ["patch embedding", "words", "stage0.attention", "stage0.mlp"]

    def test_precision_is_that_of_the_operands(self, typed: Path) -> None:
        def share(name: str, precision: str) -> float:
            rows = cost_rows(typed / name)
            return sum(row.macs_by_precision.get(precision, 0) for row in rows) / sum(row.macs for row in rows)

        assert share("segmenter.onnx", "fp32") == 1
        assert share("segmenter.fp16.onnx", "fp16") > 0.98
        assert share("segmenter.bf16.onnx", "bf16") > 0.98
        assert share("segmenter.int8.onnx", "int8") > 0.95

    def test_a_bound_in_bfloat16_is_that_of_fp16(self, typed: Path) -> None:
        def estimated(name: str) -> Estimate:
            engine = typed / name
            return measure._estimate(*measure.image_graph(engine), "jetson-orin-nano", Options(engine))

        half, brain = estimated("segmenter.fp16.onnx"), estimated("segmenter.bf16.onnx")
        assert brain.precision == "bf16"
        assert brain.compute_seconds == pytest.approx(half.compute_seconds, rel=0.01)
        assert brain.needed_bytes == pytest.approx(half.needed_bytes, rel=0.05)

    def test_weights_shrink_with_their_type(self, typed: Path) -> None:
        weights = {
            suffix: {row.part: row.weight_bytes for row in cost_rows(typed / f"segmenter{suffix}.onnx")}
            for suffix in ("", ".fp16", ".int8")
        }
        for part in ("stage2.mlp", "decoder.level0"):
            assert weights[".fp16"][part] / weights[""][part] == pytest.approx(0.5, abs=0.02)
            assert weights[".int8"][part] / weights[""][part] == pytest.approx(0.25, abs=0.05)

    def test_every_node_of_the_image_graph_has_a_part(self, typed: Path) -> None:
        assert set(node_parts(typed / "segmenter.onnx").values()) == PARTS
        assert set(node_parts(typed / "text_encoder.onnx").values()) == {"text", "words"}

    def test_a_free_batch_multiplies_all_but_the_weights(self, demo_bundle: Path) -> None:
        one, three = (cost_rows(demo_bundle / "segmenter.onnx", batch) for batch in (1, 3))
        for a, b in zip(one, three, strict=True):
            assert (b.macs, b.weight_bytes) == (3 * a.macs, a.weight_bytes)
            assert b.bytes - b.weight_bytes == 3 * (a.bytes - a.weight_bytes)

    def test_bytes_are_what_crosses_the_parts_borders(self, tmp_path: Path) -> None:
        rows = {row.part: row for row in cost_rows(two_parts(tmp_path))}
        # x (4,8) and w (8,16) in, y (4,16) out as its reader takes it, INT8; the product before the Relu stays within.
        assert rows["patch embedding"].weight_bytes == 4 * 128
        assert rows["patch embedding"].bytes == 4 * (32 + 128) + 64
        # y in as INT8 beside an INT8 weight (16,2), z (4,2) out.
        assert rows["stage0.mlp"].weight_bytes == 32
        assert rows["stage0.mlp"].bytes == 64 + 32 + 4 * 8
        assert rows["stage0.mlp"].macs_by_precision == {"int8": 4 * 16 * 2}
        # Alive at most: x and the first product; then y in INT8 and z.
        assert rows["patch embedding"].peak_activation_bytes == 4 * (32 + 64)
        assert rows["stage0.mlp"].peak_activation_bytes == 64 + 4 * 8


def two_parts(folder: Path) -> Path:
    """A product with Relu in one part, and a quantised product that reads it in another."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "w": rng.standard_normal((8, 16)).astype(np.float32),
        "v.int8": rng.integers(-127, 128, (16, 2)).astype(np.int8),
        "scale": np.float32(0.1),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="patch_embed.proj/MatMul"),
        helper.make_node("Relu", ["p"], ["y"], name="patch_embed/Relu"),
        helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["y.int8"], name="y/QuantizeLinear"),
        helper.make_node("DequantizeLinear", ["y.int8", "scale", "zero"], ["y.back"], name="y/DequantizeLinear"),
        helper.make_node("DequantizeLinear", ["v.int8", "scale", "zero"], ["v"], name="v/DequantizeLinear"),
        helper.make_node("MatMul", ["y.back", "v"], ["z"], name="stage0.block0.mlp.fc1/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "two parts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 2])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "two.onnx")
    return folder / "two.onnx"


class TestTimes:
    @pytest.mark.parametrize("precision", ["", ".fp16", ".int8"])
    def test_parts_add_up_to_the_whole(self, typed: Path, precision: str) -> None:
        rows, seconds = part_times(typed / f"segmenter{precision}.onnx", image_feeds(typed), threads=2, rounds=3)
        assert sum(row.seconds for row in rows) == pytest.approx(seconds, rel=0.05)
        assert {row.part for row in rows if row.part != "other"} == PARTS
        assert all(row.seconds > 0 for row in rows)
        assert sum(row.seconds for row in rows if row.part == "other") < 0.02 * seconds

    def test_time_goes_where_the_work_is(self, demo_bundle: Path) -> None:
        measured, _ = part_times(demo_bundle / "segmenter.onnx", image_feeds(demo_bundle), 1)
        rows = {row.part: row for row in measured}
        assert rows["decoder.level0"].macs == max(row.macs for row in rows.values())
        assert rows["decoder.level0"].macs > 10 * rows["decoder.level2"].macs
        assert rows["decoder.level0"].seconds > 3 * rows["decoder.level2"].seconds

    def test_a_batch_counts_as_often_as_it_runs(self, demo_bundle: Path) -> None:
        rows, _ = part_times(demo_bundle / "segmenter.onnx", image_feeds(demo_bundle, batch=2), rounds=1)
        total = open_bundle(demo_bundle).manifest.model["macs"]["segmenter"]
        assert sum(row.macs for row in rows) == 2 * total

    def test_what_cannot_run_is_refused(self, demo_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="rounds 0"):
            part_times(demo_bundle / "segmenter.onnx", image_feeds(demo_bundle), rounds=0)
        with pytest.raises(BackendError, match="could not profile"):
            part_times(demo_bundle / "segmenter.onnx", {"image": np.zeros((1, 2), np.uint8)})
        (tmp_path / "broken.onnx").write_bytes(b"no graph")
        with pytest.raises(BackendError, match="could not profile"):
            part_times(tmp_path / "broken.onnx", image_feeds(demo_bundle))
