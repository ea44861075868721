"""`lavt-export quantize` on a model whose values pass FP16's largest number: right, or refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest
from lavt_edge.calibration import quantize
from lavt_edge.calibration.evaluator import Evaluator
from lavt_edge.calibration.half import emulate_half, find_islands
from lavt_edge.calibration.quantize import QuantizeOptions, quantize_bundle
from lavt_edge.calibration.record import read_calibration
from lavt_edge.calibration.sample import draw_sample
from lavt_edge.errors import BackendError, ExportError
from lavt_edge.export import ExportOptions, export_bundle
from lavt_edge.export.edits import load_graph
from lavt_edge.export.source import open_source
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.tests.test_quantize import options as options  # a fixture
from lavt_edge.tests.test_quantize import root as root  # a fixture

# By stage. In graphs for GPUs the windows of stage 1 are gathered ahead of qkv, those of stage 2 behind it.
# The weights of stage 1 stay far from FP16's largest number.
OVERFLOW = {1: 2.0**14, 2: 2.0**18}


@pytest.fixture(scope="module")
def overflow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo model whose values pass FP16's largest number in stages 1 and 2: V scaled up, the projection down."""
    source = open_source(None)
    model = source.load()
    for stage, factor in OVERFLOW.items():
        attention = model.backbone.stages[stage].swin_blocks[1].attn
        for tensor in (attention.qkv.weight, attention.qkv.bias):
            tensor.data[2 * attention.qkv.in_features :] *= factor
        attention.proj.weight.data /= factor
    output = tmp_path_factory.mktemp("overflow") / "bundle"
    export_options = ExportOptions(size=source.size)
    export_bundle(model, output, source.info(), vocabulary=source.vocabulary, options=export_options)
    return output


class TestOverflow:
    def test_it_is_right_in_fp16(self, overflow_bundle: Path, options: QuantizeOptions) -> None:
        outcome = quantize_bundle(overflow_bundle, "fp16", options)
        assert outcome.figures.relative_error < 0.005
        assert outcome.figures.pixel_agreement > 0.999
        islands = outcome.manifest.precisions["fp16"]["islands"]["segmenter"]
        assert "reaches" in islands["stage2.block1.attn.qkv/Add"]
        assert "stage2.block0.attn.qkv/Add" not in islands
        assert "reaches" in islands["stage1.block1.attn.qkv/MatMul_3"]
        assert "stage1.block0.attn.qkv/MatMul_3" not in islands
        calibration = read_calibration(overflow_bundle / "calibration.json")
        assert calibration is not None
        for stage in OVERFLOW:
            low, high = calibration.ranges["segmenter"][f"stage{stage}.block1.attn.qkv/Add"]
            assert max(-low, high) > 65504

    def test_it_is_right_in_bfloat16_without_an_island_for_it(
        self, overflow_bundle: Path, options: QuantizeOptions
    ) -> None:
        """bfloat16 has the range of FP32: only what the structure asks for stays in FP32."""
        outcome = quantize_bundle(overflow_bundle, "bf16", options)
        assert outcome.figures.relative_error < 0.16
        assert outcome.figures.pixel_agreement > 0.99
        islands = outcome.manifest.precisions["bf16"]["islands"]["segmenter"]
        assert islands
        assert not [reason for reason in islands.values() if "reaches" in reason or "below" in reason]
        graph = ir.load(overflow_bundle / "segmenter.bf16.onnx").graph
        types = Counter(value.dtype for node in graph for value in node.outputs)
        assert types[ir.DataType.FLOAT16] == 0
        assert types[ir.DataType.BFLOAT16] > types[ir.DataType.FLOAT] > 0
        assert [value.dtype for value in graph.outputs] == [ir.DataType.FLOAT, ir.DataType.UINT8]

    def test_a_cpu_says_that_it_has_no_bfloat16(self, overflow_bundle: Path) -> None:
        with pytest.raises(BackendError) as refused:
            Segmenter.load(overflow_bundle, precision="bf16", device="cpu")
        assert "bf16" in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_it_is_right_in_int8(self, overflow_bundle: Path, options: QuantizeOptions) -> None:
        outcome = quantize_bundle(overflow_bundle, "int8", options)
        assert outcome.figures.drop <= options.max_drop
        assert outcome.figures.pixel_agreement > 0.99
        assert outcome.int8_share > 0.9
        islands = outcome.manifest.precisions["int8"]["islands"]["segmenter"]
        assert "reaches" in islands["stage2.block1.attn.proj/MatMul"]  # it reads them through DequantizeLinear
        assert "stage2.block0.attn.proj/MatMul" not in islands
        assert "reaches" in islands["stage1.block1.attn.qkv/MatMul_3"]

    def test_without_the_islands_it_is_refused(
        self, overflow_bundle: Path, options: QuantizeOptions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quantize, "find_islands", lambda *arguments: {})
        with pytest.raises(ExportError, match="FP16 loses too much"):
            quantize_bundle(overflow_bundle, "fp16", options, replace=True)

    def test_the_emulated_masks_are_wrong_with_the_structural_islands_alone(
        self, overflow_bundle: Path, options: QuantizeOptions
    ) -> None:
        opened = open_bundle(overflow_bundle)
        model = load_graph(opened, "segmenter")
        structural = {
            name: reason
            for name, reason in find_islands(model, {}).items()
            if "reaches" not in reason and "below" not in reason
        }
        quantize.to_half(model, structural)
        emulate_half(model)
        figures = Evaluator(opened, draw_sample(options.data)).evaluate(model)
        assert figures.drop > 10
