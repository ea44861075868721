"""The typed graphs on ONNX Runtime's CUDA provider, whose FP16 is real: it rounds every tensor and overflows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lavt_edge.data.shapes import scene_at
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.cuda import cuda_device_count

ort = pytest.importorskip("onnxruntime")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda_device_count(), reason="no CUDA device"),
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="this ONNX Runtime has no CUDA provider"
    ),
]
# Relative error of the logits, and the share of pixels that stay what they are in FP32.
LIMITS = {"fp32": (1e-3, 0.999), "fp16": (2e-2, 0.99), "bf16": (1e-1, 0.98), "int8": (1e-1, 0.98)}


@pytest.fixture(scope="module")
def typed_bundle(demo_bundle: Path) -> Path:
    pytest.importorskip("onnx_ir", reason="the typed graphs are made with lavt-edge[export]")
    from lavt_edge.calibration.quantize import QuantizeOptions, quantize_bundle
    from lavt_edge.calibration.sample import DataOptions

    options = QuantizeOptions(policy="decoder", data=DataOptions(samples=16))
    for precision in ("fp16", "int8"):
        quantize_bundle(demo_bundle, precision, options, replace_existing=True)
    return demo_bundle


@pytest.mark.parametrize("precision", LIMITS)
def test_a_typed_graph_keeps_fp32s_masks_on_a_gpu(typed_bundle: Path, precision: str) -> None:
    if not open_bundle(typed_bundle).has("segmenter", precision):
        pytest.skip(f"the bundle has no {precision} graph")
    cpu = Segmenter.load(typed_bundle / "segmenter.onnx", device="cpu")
    gpu = Segmenter.load(typed_bundle, device="cuda", precision=precision)
    assert gpu.device == "cuda"
    errors, agreements = [], []
    for index in range(12):
        scene = scene_at(0, "val", index)
        image, sentence = scene.render(), scene.sentences()[0].text
        result, wanted = gpu.segment(image, sentence), cpu.segment(image, sentence)
        difference = np.linalg.norm(result.probability - wanted.probability)
        errors.append(difference / np.linalg.norm(wanted.probability))
        agreements.append(np.mean(result.mask == wanted.mask))
    limit, agreement = LIMITS[precision]
    assert max(errors) < limit
    assert np.mean(agreements) > agreement


def test_tensorrt_for_rtx_compiles_for_this_gpu(tmp_path: Path, demo_bundle: Path) -> None:
    """Asked of an H100 too: `sm90` is among the targets or is not, and then the refusal names it."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from lavt_edge.errors import ExportError
    from lavt_edge.export.engines.build import known_targets
    from lavt_edge.export.engines.options import parse_targets
    from lavt_edge.runtime.cuda import find_device
    from lavt_edge.runtime.tensorrt.flavor import find_flavor

    device = find_device()
    assert device is not None
    known = known_targets(find_flavor("tensorrt_rtx"))
    if device.sm in known:
        assert parse_targets(device.sm) == (device.sm,)
    else:
        from lavt_edge.export import EngineOptions, build_engines

        with pytest.raises(ExportError, match=device.sm):
            build_engines(demo_bundle, EngineOptions(precision="fp32", flavor="tensorrt_rtx", targets=(device.sm,)))
