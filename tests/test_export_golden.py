"""The exported graphs compute the published function: the golden cases on ONNX Runtime."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from lavt_edge.export import ExportOptions, export_bundle
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.manifest import Manifest
from lavt_edge.tests.export_graphs import CHECKPOINT, export_image, export_text, run_graph
from lavt_edge.tests.golden import Case, byte_patches, golden_lavt
from onnx.utils import Extractor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one_tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole export of the golden `lavt_one` case, with a free batch."""
    case = Case.load("one_tiny_w7_224")
    folder = tmp_path_factory.mktemp("one_tiny") / "bundle"
    export_bundle(golden_lavt(case.config), folder, CHECKPOINT, options=ExportOptions(case.size, batch=None))
    gc.collect()
    return folder


def cut(path: Path, inputs: list[str], output: list[str]) -> onnx.ModelProto:
    """The part of a graph behind the named tensors."""
    return Extractor(onnx.load(path)).extract_model(inputs, output)


def run_golden(case: Case, text: Path, image: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Logits and mask of a bundle's graphs for a golden case.

    Its image is of normalised numbers, where a bundle takes bytes: it enters behind the cast from bytes, as numbers
    that the graph's own normalisation turns into the case's. Word features enter behind BERT.
    """
    mask = case.word_mask.numpy()
    if case.config.variant == "lavt_one":
        prompt = run_graph(text, {"input_ids": case.input_ids.numpy(), "attention_mask": mask})["prompt"]
    else:
        (words,) = (node.input[0] for node in onnx.load(text).graph.node if node.name == "prompt/Mul")
        feed = {words: case.words.transpose(1, 2).numpy(), "attention_mask": mask}
        prompt = run_graph(cut(text, list(feed), ["prompt"]), feed)["prompt"]
    (patches,) = (node.input[0] for node in onnx.load(image).graph.node if node.name == "patch_embed.proj/MatMul")
    feed = {patches: byte_patches(case.image), "prompt": prompt, "word_mask": mask.astype(np.float32)}
    outputs = run_graph(cut(image, list(feed), ["logits", "mask"]), feed)
    return outputs["logits"], outputs["mask"]


@pytest.mark.parametrize("name", ["tiny_w7_224", "one_tiny_w7_224", "small_w12_heads_200x312", "base_w12_480"])
def test_golden_case_on_onnx_runtime(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    case = Case.load(name)
    if name == "base_w12_480":
        bundle = request.getfixturevalue("base").bundle
    elif name == "one_tiny_w7_224":
        bundle = request.getfixturevalue("one_tiny_bundle")
    else:
        bundle, model, batch = tmp_path, golden_lavt(case.config), len(case.word_counts)
        export_text(model, tmp_path / "text_encoder.onnx", batch)
        export_image(model, tmp_path / "segmenter.onnx", case.size, batch=batch)
    logits, mask = run_golden(case, bundle / "text_encoder.onnx", bundle / "segmenter.onnx")
    assert logits.dtype == np.float32
    error, agreement = case.compare(logits)
    print(f"\n{name} on ONNX Runtime: relative error {error:.2e}, mask agreement {100 * agreement:.4f} %")
    assert error <= case.float32_bound
    assert agreement >= 0.9995
    assert np.array_equal(mask, (logits[:, 1] > logits[:, 0]).astype(np.uint8))


def test_whole_export_is_a_bundle_that_runs(one_tiny_bundle: Path) -> None:
    manifest = Manifest.parse_json((one_tiny_bundle / "lavt.json").read_text())
    assert sorted(path.name for path in one_tiny_bundle.iterdir()) == sorted([*manifest.files, "lavt.json"])
    assert set(manifest.files) == {"tokenizer.json", "text_encoder.onnx", "segmenter.onnx"}
    assert (manifest.input.height, manifest.input.width, manifest.input.batch) == (224, 224, None)
    parity = manifest.parity["segmenter"]
    assert parity["cases"] == 4
    assert parity["relative_error"] <= 1e-3
    assert parity["pixel_agreement"] > 0.999
    with Segmenter.load(one_tiny_bundle, device="cpu") as segmenter:
        result = segmenter.segment(np.zeros((50, 60, 3), np.uint8), "the man in red")
    assert result.mask.shape == (50, 60)
