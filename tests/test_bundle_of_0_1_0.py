"""A bundle that lavt-edge 0.1.0 wrote opens, segments as it did then, and takes new graphs.

`data/bundle_0_1_0.zip` holds what the code of that version made of a LAVT of 4 channels with random weights at 64x64:
`export_bundle`, `quantize_bundle` to FP16 and to INT8 for CPUs, `build_engines` for sm86. Beside it, from that code's
own `Segmenter`: an image, three sentences, the FP32 probabilities, and the masks of each precision. The two engines and
a chart, which the manifest lists, are left out for their size.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.calibration import DataOptions, QuantizeOptions, quantize_bundle
from lavt_edge.calibration.record import read_calibration
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.tensorrt.record import engine_record

PRECISIONS = ("fp32", "fp16", "int8-cpu")
MINI = Path(__file__).parent / "data" / "refer_mini"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    with zipfile.ZipFile(Path(__file__).parent / "data" / "bundle_0_1_0.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def recorded(unpacked: Path) -> dict[str, np.ndarray]:
    with np.load(unpacked / "recorded.npz") as arrays:
        return dict(arrays)


def masks(recorded: dict[str, np.ndarray], precision: str) -> np.ndarray:
    """The recorded masks of all sentences, bool (3, H, W)."""
    width = recorded["image"].shape[1]
    return np.unpackbits(recorded[precision], axis=-1, count=width).astype(bool)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_segments_as_it_did(unpacked: Path, recorded: dict[str, np.ndarray], precision: str) -> None:
    with Segmenter.load(unpacked / "bundle", device="cpu", precision=precision) as segmenter:
        results = segmenter.segment(recorded["image"], [str(text) for text in recorded["sentences"]])
        assert segmenter.precision == precision
    actual = np.stack([result.mask for result in results])
    assert [0.3 < mask.mean() < 0.8 for mask in actual] == [True] * 3
    assert (actual == masks(recorded, precision)).mean() > (0.99 if precision == "int8-cpu" else 0.999)
    if precision == "fp32":
        assert np.abs([result.probability for result in results] - recorded["probability"]).max() < 1e-3


def test_its_records_are_read(unpacked: Path) -> None:
    bundle = open_bundle(unpacked / "bundle")
    assert bundle.manifest.generator["lavt_edge"] == "0.1.0"
    assert sorted(bundle.manifest.precisions) == ["fp16", "int8-cpu"]
    assert sorted(bundle.manifest.engines) == ["segmenter.fp16.engine", "text_encoder.fp16.engine"]
    for name in bundle.manifest.engines:
        record = engine_record(bundle.root, bundle.manifest, name)
        assert record.flavor == "tensorrt_rtx"
    assert read_calibration(bundle.root / "calibration.json") is not None


def test_it_is_quantized_again(unpacked: Path, recorded: dict[str, np.ndarray], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(unpacked / "bundle", tmp_path / "bundle"))
    data = DataOptions("refcoco", MINI, samples=4)
    quantize_bundle(bundle, "fp16", QuantizeOptions(data=data), replace=True)
    options = QuantizeOptions(policy="decoder", rest="fp32", max_drop=50, data=data)
    quantize_bundle(bundle, "int8", options, replace=True)
    for precision in PRECISIONS[1:]:
        with Segmenter.load(bundle, device="cpu", precision=precision) as segmenter:
            mask = segmenter.segment(recorded["image"], str(recorded["sentences"][0])).mask
        assert (mask == masks(recorded, "fp32")[0]).mean() > 0.95
