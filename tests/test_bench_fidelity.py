"""What a precision keeps, as `lavt-bench` reports it: figures against FP32, and pictures of the worst cases."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from lavt_edge.benchmarks.evaluation.fidelity import mask_iou, measure_fidelity, most_disagreed, png_base64
from lavt_edge.benchmarks.timing.result import FidelityRow
from lavt_edge.data.sentences import Sentence, open_split
from lavt_edge.data.shapes.write import write_refcoco
from lavt_edge.errors import LavtError
from lavt_edge.export.source import open_source
from lavt_edge.runtime.bundle import file_entry
from lavt_edge.runtime.update import update_bundle
from PIL import Image

SENTENCES = 6


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> list[Sentence]:
    root = write_refcoco(tmp_path_factory.mktemp("data") / "shapes", seed=3, scenes={"val": 3})
    return list(open_split("refcoco", "val", data_root=root).sentences[:SENTENCES])


@pytest.fixture(scope="module")
def damaged(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo bundle whose graph of precision int8-cpu is the FP32 one, unchanged, and whose int8 is a damaged one."""
    root = tmp_path_factory.mktemp("fidelity") / "bundle"
    shutil.copytree(demo_bundle, root)
    model = onnx.load(root / "segmenter.onnx")
    weights = [one for one in model.graph.initializer if len(one.dims) == 4 and one.dims[2] == 3]
    array = onnx.numpy_helper.to_array(weights[0])
    rounded = (np.round(array / np.abs(array).max() * 4) / 4 * np.abs(array).max()).astype(array.dtype)
    weights[0].CopyFrom(onnx.numpy_helper.from_array(rounded, weights[0].name))
    with update_bundle(root) as change:
        onnx.save(model, change.new("segmenter.int8.onnx"))
        shutil.copyfile(root / "segmenter.onnx", change.new("segmenter.int8-cpu.onnx"))
        change.commit(
            {
                f"segmenter.{name}.onnx": file_entry(change.path(f"segmenter.{name}.onnx"), "segmenter", name)
                for name in ("int8", "int8-cpu")
            }
        )
    return root


@pytest.fixture(scope="module")
def rows(damaged: Path, sentences: list[Sentence]) -> dict[str, FidelityRow]:
    return {row.name: row for row in measure_fidelity(damaged, sentences, cases=2)}


def test_every_precision_has_a_row_and_fp32_is_first(rows: dict[str, FidelityRow]) -> None:
    assert list(rows) == ["fp32", "int8", "int8-cpu"]
    assert all(row.sentences == SENTENCES for row in rows.values())


def test_an_equal_graph_loses_nothing(rows: dict[str, FidelityRow]) -> None:
    row = rows["int8-cpu"]
    assert (row.drop, row.relative_error, row.pixel_agreement, row.iou_with_reference) == (
        0.0,
        0.0,
        1.0,
        100.0,
    )
    assert row.mean_iou == rows["fp32"].mean_iou > 50


def test_pytorch_is_the_reference_of_a_known_checkpoint(damaged: Path, sentences: list[Sentence]) -> None:
    """A wrong FP32 graph shows, where its own masks as the reference would hide it."""
    rows = {row.name: row for row in measure_fidelity(damaged, sentences, source=open_source("demo"), cases=1)}
    assert {row.against for row in rows.values()} == {"PyTorch"}
    assert 0 < rows["fp32"].relative_error < 1e-4
    assert rows["fp32"].pixel_agreement > 0.9999
    assert rows["int8"].relative_error > 1e-3
    root = damaged.parent / "wrong"
    shutil.copytree(damaged, root)
    with update_bundle(root) as change:
        shutil.copyfile(root / "segmenter.int8.onnx", change.new("segmenter.onnx"))
        change.commit({"segmenter.onnx": file_entry(change.path("segmenter.onnx"), "segmenter", "fp32")})
    wrong = measure_fidelity(root, sentences, source=open_source("demo"), precisions=["fp32"], cases=1)
    assert wrong[0].relative_error == pytest.approx(rows["int8"].relative_error, rel=1e-3)
    own = measure_fidelity(root, sentences, precisions=["fp32"], cases=1)
    assert (own[0].against, own[0].relative_error) == ("the FP32 graph", 0.0)


def test_a_checkpoint_that_is_not_the_bundles_is_refused(
    damaged: Path, sentences: list[Sentence], tmp_path: Path
) -> None:
    root = tmp_path / "other"
    shutil.copytree(damaged, root)
    manifest = json.loads((root / "lavt.json").read_text())
    manifest["checkpoint"]["sha256"] = "0" * 64
    (root / "lavt.json").write_text(json.dumps(manifest))
    with pytest.raises(LavtError, match="was not exported from the checkpoint demo; give its own"):
        measure_fidelity(root, sentences, source=open_source("demo"))


def test_a_damaged_graph_shows_in_every_figure(rows: dict[str, FidelityRow]) -> None:
    row = rows["int8"]
    assert row.relative_error > 1e-3
    assert row.pixel_agreement < 1
    assert row.iou_with_reference < 100
    assert row.drop == pytest.approx(rows["fp32"].mean_iou - row.mean_iou)


def test_each_row_shows_the_same_worst_cases_with_their_sentences(
    rows: dict[str, FidelityRow], sentences: list[Sentence]
) -> None:
    shown = [[one.case for one in row.overlays] for row in rows.values()]
    assert shown[0] == shown[1] == shown[2]
    assert 1 <= len(shown[0]) <= 2
    for row in rows.values():
        for one in row.overlays:
            assert one.sentence == sentences[one.case].text
            picture = Image.open(io.BytesIO(base64.b64decode(one.image_png_base64)))
            assert picture.format == "PNG"
            assert picture.width <= 320
    assert all(one.pixel_agreement == 1 for one in rows["int8-cpu"].overlays)
    agreements = [one.pixel_agreement for one in rows["int8"].overlays]
    assert agreements == sorted(agreements)
    assert agreements[0] < 1


def test_only_the_precisions_asked_for_are_run(damaged: Path, sentences: list[Sentence]) -> None:
    found = measure_fidelity(damaged, sentences[:1], precisions=["int8-cpu"])
    assert [row.name for row in found] == ["fp32", "int8-cpu"]
    assert found[1].overlays == ()  # no mask differs


def test_a_precision_that_is_not_there_is_refused_with_those_that_are(damaged: Path, sentences: list[Sentence]) -> None:
    with pytest.raises(LavtError, match="no image graph in fp8; it has fp32, int8, int8-cpu"):
        measure_fidelity(damaged, sentences, precisions=["fp8"])
    with pytest.raises(LavtError, match="one sentence"):
        measure_fidelity(damaged, [])


def test_worst_cases_come_first_and_equal_ones_not_at_all() -> None:
    truth = [np.zeros((2, 2), bool) for _ in range(4)]
    other = [mask.copy() for mask in truth]
    other[1][0, 0] = True
    third = [mask.copy() for mask in truth]
    third[3][:] = True
    assert most_disagreed([truth, other, third], 4) == [3, 1]
    assert most_disagreed([truth, other, third], 1) == [3]
    assert most_disagreed([truth, truth], 3) == []


def test_two_empty_masks_agree() -> None:
    empty, full = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    half = np.array([[True, True], [False, False]])
    assert (mask_iou(empty, empty), mask_iou(full, empty), mask_iou(half, full)) == (100, 0, 50)


def test_a_large_picture_is_made_small() -> None:
    content = base64.b64decode(png_base64(Image.new("RGB", (640, 400), "red")))
    assert Image.open(io.BytesIO(content)).size == (320, 200)
