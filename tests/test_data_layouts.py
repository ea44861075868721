"""Data sets other than RefCOCO in its layout, read and scored: rrsisd, one's own, COCO 2017's images, gRefCOCO."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.benchmarks.evaluation.evaluate import evaluate
from lavt_edge.benchmarks.evaluation.predictors import BundlePredictor, load_bundle
from lavt_edge.calibration.sample import DataOptions, cases, draw_sample
from lavt_edge.data import RefCOCO
from lavt_edge.data.metrics import GeneralisedMetrics
from lavt_edge.data.sentences import open_split
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.tests import doc_blocks
from lavt_edge.tests.bench_results import MINI, counts_in, expected_counts, nearest, refusal
from lavt_edge.tests.runtime_bundle import HEIGHT, WIDTH, write_bundle
from PIL import Image
from pycocotools import mask as coco_mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2
SIDE = 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> BundlePredictor:
    return load_bundle(bundle, device="cpu", threads=1)


def boxes(seed: int) -> list[np.ndarray]:
    """Three masks of rectangles, which may overlap."""
    random = np.random.default_rng(seed)
    masks = []
    for _ in range(3):
        y, x = random.integers(0, SIDE // 2, 2)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y : y + random.integers(8, 32), x : x + random.integers(8, 32)] = True
        masks.append(mask)
    return masks


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def write(
    root: Path,
    name: str,
    images: str,
    ann_ids: list[Any],
    *,
    refs: str = "refs(unc).p",
    splits: Sequence[str] = ("val",),
) -> Path:
    """A data set with an image and a ref for each of `ann_ids`; annotation 10 i + k is object k of image i."""
    records: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    rows = []
    (root / images).mkdir(parents=True)
    for number, ann_id in enumerate(ann_ids):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / images / f"{number:05d}.png")
        records["images"].append({"id": number, "file_name": f"{number:05d}.png", "height": SIDE, "width": SIDE})
        for k, mask in enumerate(boxes(number)):
            records["annotations"].append(
                {"id": 10 * number + k, "image_id": number, "segmentation": [compressed(mask)]}
            )
        sentences = [{"raw": f"the {word} thing", "sent_id": 2 * number + k} for k, word in enumerate(("red", "left"))]
        rows.append(
            {
                "ref_id": number,
                "ann_id": ann_id,
                "image_id": number,
                "sentences": sentences,
                "split": splits[number % len(splits)],
            }
        )
    (root / name).mkdir()
    (root / name / "instances.json").write_text(json.dumps(records))
    content = json.dumps(rows).encode() if refs.endswith(".json") else pickle.dumps(rows, 2)
    (root / name / refs).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("rrsisd", "images/rrsisd/JPEGImages"),
        ("refclef", "images/saiapr_tc-12"),
        ("grefcoco", "images/train2014"),
        ("grefcoco", "images/mscoco/images/train2014"),
    ],
)
def test_published_layouts_open_with_a_list_of_rles_per_object(tmp_path: Path, name: str, images: str) -> None:
    grefs = "grefs(unc).p" if name == "grefcoco" else "refs(unc).p"
    root = write(tmp_path, name, images, [10 * i + 1 for i in range(4)], refs=grefs)
    for number, ref in enumerate(RefCOCO(root, name)):
        np.testing.assert_array_equal(ref.mask, boxes(number)[1])
        assert ref.image.size == (SIDE, SIDE)


def test_rrsisd_has_the_figures_of_refcoco(predictor: BundlePredictor, tmp_path: Path) -> None:
    root = write(tmp_path, "rrsisd", "images/rrsisd/JPEGImages", [10 * i for i in range(6)])
    evaluation = evaluate(predictor, open_split("rrsisd", "val", data_root=root), tmp_path / "results.jsonl")
    refcoco = write(tmp_path / "same", "refcoco", "images/mscoco/images/train2014", [10 * i for i in range(6)])
    expected = expected_counts(refcoco, "val")
    assert counts_in(tmp_path / "results.jsonl") == expected
    ious = [a / b if b else 0 for a, b in expected.values()]
    assert evaluation.figures["mean_iou"] == pytest.approx(100 * np.mean(ious))
    assert evaluation.figures["overall_iou"] == pytest.approx(
        100 * sum(a for a, _ in expected.values()) / sum(b for _, b in expected.values())
    )
    assert evaluation.published == ()


def test_a_data_set_and_splits_of_ones_own(tmp_path: Path) -> None:
    root = write(tmp_path, "mine", "elsewhere", [0, 11], refs="refs(me).p")
    assert "or name the splits of your own with --split-by" in refusal(
        lambda: open_split("mine", "val", data_root=root)
    )
    split = open_split("mine", "val", data_root=root, split_by="me", images=root / "elsewhere")
    assert [one.target.image.size for one in split.sentences] == [(SIDE, SIDE)] * 4
    assert set(split.files) == {"refs(me).p", "instances.json"}
    assert "no such folder; --images" in refusal(lambda: RefCOCO(root, "mine", "me", images=root / "none"))


def test_images_of_coco_2017_are_matched_by_their_ids(tmp_path: Path) -> None:
    root = Path(shutil.copytree(MINI, tmp_path / "mini"))
    (root / "images").rename(tmp_path / "away")
    folder = tmp_path / "train2017"
    folder.mkdir()
    for path in (tmp_path / "away" / "mscoco" / "images" / "train2014").iterdir():
        shutil.copy(path, folder / path.name.removeprefix("COCO_train2014_"))
    for ref, known in zip(RefCOCO(root, images=folder), RefCOCO(MINI), strict=True):
        assert ref.image_path == folder / f"{ref.image_id:012d}.jpg"
        np.testing.assert_array_equal(np.asarray(ref.image), np.asarray(known.image))


ANN_IDS = [[0], [10, 11], [-1], [30, 31, 32], [-1], [52]]


def plain_figures(counts: list[tuple[int, int, int, bool]]) -> dict[str, float]:
    """gRefCOCO's figures from (intersection, union, predicted, has a target), in plain Python."""
    ious, targets, named_none, named_some, intersections, unions = [], [], [], [], 0, 0
    for intersection, union, predicted, has_target in counts:
        empty = predicted < 50
        if has_target:
            intersection = 0 if empty else intersection
            targets.append(intersection / union)
            ious.append(targets[-1])
            named_some.append(not empty)
            intersections, unions = intersections + intersection, unions + union
        else:
            ious.append(1.0 if empty else 0.0)
            named_none.append(empty)
            unions += 0 if empty else predicted

    def percent(values: list[Any]) -> float:
        return 100 * sum(values) / len(values) if values else float("nan")

    return {
        "sentences": len(ious),
        "giou": percent(ious),
        "ciou": 100 * intersections / unions if unions else float("nan"),
        "n_acc": percent(named_none),
        "t_acc": percent(named_some),
        **{f"precision@{t}": percent([iou >= t for iou in targets]) for t in (0.7, 0.8, 0.9)},
    }


@pytest.mark.parametrize("refs", ["grefs(unc).json", "grefs(unc).p"])
def test_grefcoco_has_its_own_figures(predictor: BundlePredictor, tmp_path: Path, refs: str) -> None:
    root = write(tmp_path, "grefcoco", "images/train2014", ANN_IDS, refs=refs)
    split = open_split("grefcoco", "val", data_root=root)
    evaluation = evaluate(predictor, split, tmp_path / "results.jsonl")
    counts = []
    for ids, ref in zip(ANN_IDS, RefCOCO(root, "grefcoco"), strict=True):
        union = np.zeros((SIDE, SIDE), bool)
        for ann_id in ids:
            if ann_id >= 0:
                union |= boxes(ann_id // 10)[ann_id % 10]
        np.testing.assert_array_equal(ref.mask, union)
        assert ref.no_target == (ids == [-1])
        target, image = (
            nearest(union, HEIGHT, WIDTH),
            np.asarray(ref.image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)),
        )
        for text in ref.sentences:
            (mask,) = predictor.masks(np.stack([image]), [predictor.encode(text)])
            counts.append((int((mask & target).sum()), int((mask | target).sum()), int(mask.sum()), bool(target.any())))
    assert dict(evaluation.figures) == pytest.approx(plain_figures(counts), nan_ok=True)
    assert evaluate(predictor, split, tmp_path / "results.jsonl").figures == evaluation.figures
    assert [row[0] for row in evaluation.table()] == ["all"]
    assert evaluation.header[2:6] == ("gIoU", "cIoU", "N-acc.", "T-acc.")
    assert "--swap is for sentences that mean one object" in refusal(
        lambda: open_split("grefcoco", "val", data_root=root, swap=True)
    )


def test_figures_of_every_case_equal_the_plain_ones() -> None:
    cases_of = [(40, 90, 49, True), (40, 90, 50, True), (90, 100, 95, True), (0, 49, 49, False), (0, 50, 50, False)]
    for counts in (cases_of, cases_of[:3], cases_of[3:4], [*cases_of[3:], (0, 7, 0, True)], cases_of * 3):
        metrics = GeneralisedMetrics()
        for intersection, union, predicted, has_target in counts:
            metrics.add(intersection, union, predicted, no_target=not has_target)
        assert metrics.compute() == pytest.approx(plain_figures(counts), nan_ok=True)
    assert plain_figures(cases_of)["n_acc"] == 50


def test_without_no_target_sentences_ciou_is_refcocos_overall_iou(predictor: BundlePredictor, tmp_path: Path) -> None:
    ids = [10 * i for i in range(6)]
    one = write(tmp_path / "g", "grefcoco", "images/train2014", [[i] for i in ids], refs="grefs(unc).json")
    other = write(tmp_path / "r", "refcoco", "images/mscoco/images/train2014", ids)
    generalised = evaluate(predictor, open_split("grefcoco", "val", data_root=one), tmp_path / "g.jsonl").figures
    plain = evaluate(predictor, open_split("refcoco", "val", data_root=other), tmp_path / "r.jsonl").figures
    assert generalised["t_acc"] == 100, "a prediction of fewer than 50 pixels would count as none"
    assert 0 < plain["overall_iou"] == pytest.approx(generalised["ciou"])
    assert plain["mean_iou"] == pytest.approx(generalised["giou"])


@pytest.mark.parametrize(
    ("ann_id", "named"),
    [
        ([], "ref 0 has no list of whole numbers as ann_id"),
        (["1"], "ref 0 has no list of whole numbers as ann_id"),
        ([0, -1], "ref 0 has -1, which is for no object"),
        ([99], "no annotation 99, which ref 0 needs"),
    ],
)
def test_malformed_objects_of_grefcoco_are_named(tmp_path: Path, ann_id: object, named: str) -> None:
    root = write(tmp_path, "grefcoco", "images/train2014", [ann_id], refs="grefs(unc).json")
    assert named in refusal(lambda: RefCOCO(root, "grefcoco"))


def test_no_target_is_for_grefcoco_alone(tmp_path: Path) -> None:
    root = write(tmp_path, "rrsisd", "images/rrsisd/JPEGImages", [-1])
    assert "no annotation -1, which ref 0 needs" in refusal(lambda: RefCOCO(root, "rrsisd"))


@pytest.mark.parametrize("instead", ["", ', "predicted": -1', ', "predicted": 99999'])
def test_a_result_without_its_predictions_pixels_is_refused(
    predictor: BundlePredictor, tmp_path: Path, instead: str
) -> None:
    root = write(tmp_path, "grefcoco", "images/train2014", ANN_IDS, refs="grefs(unc).json")
    split, results = open_split("grefcoco", "val", data_root=root), tmp_path / "results.jsonl"
    evaluate(predictor, split, results)
    kept = results.read_text()
    results.write_text(re.sub(r', "predicted": \d+', instead, kept, count=1))
    assert results.read_text() != kept
    assert "line 2 is damaged" in refusal(lambda: evaluate(predictor, split, results))


def test_damaged_json_of_grefcoco_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, "grefcoco", "images/train2014", [[0]], refs="grefs(unc).json")
    path = root / "grefcoco" / "grefs(unc).json"
    whole = path.read_bytes()
    for content in (b"", whole[:-9], b"[" * 200_000, b"{}", b"[7]"):
        path.write_bytes(content)
        assert str(path) in refusal(lambda: RefCOCO(root, "grefcoco"))


@pytest.mark.parametrize("name", ["rrsisd", "grefcoco"])
def test_calibration_draws_from_them(bundle: Path, tmp_path: Path, name: str) -> None:
    ann_ids: list[Any] = ANN_IDS if name == "grefcoco" else [10 * i for i in range(6)]
    root = write(tmp_path, name, "photos", ann_ids, refs="grefs(unc).json" if name == "grefcoco" else "refs(unc).p")
    sample = draw_sample(DataOptions(name, root=root, split="val", images=root / "photos", samples=8))
    assert sample.origin["dataset"] == name
    drawn = [*sample.calibrated, *sample.held_out]
    for case, sentence in zip(cases(open_bundle(bundle), drawn), drawn, strict=True):
        assert case.image.shape == (HEIGHT, WIDTH, 3)
        assert case.target.any() == (not sentence.target.no_target)
    assert len(sample.held_out) > 0
    assert not any(one.target.no_target for one in sample.held_out)
    assert any(one.target.no_target for one in sample.calibrated) == (name == "grefcoco")


def test_calibration_needs_images_with_objects(tmp_path: Path) -> None:
    root = write(tmp_path, "grefcoco", "images/train2014", [[-1], [10], [-1], [30], [-1]], refs="grefs(unc).json")
    options = DataOptions("grefcoco", root=root, split="val", samples=8)
    assert "has 2 images with objects; calibration needs three or more" in refusal(lambda: draw_sample(options))


def test_commands_of_the_docs(demo_bundle: Path, tmp_path: Path) -> None:
    """docs/calibration.md, other data sets: each is measured, and calibrated on."""
    shutil.copytree(demo_bundle, tmp_path / "bundle")
    root, objects, halves = tmp_path / "ROOT", [10 * i for i in range(24)], ("train", "val")
    write(root, "rrsisd", "images/rrsisd/JPEGImages", objects, splits=halves)
    write(root, "mine", "../photos", objects, refs="refs(me).p", splits=halves)
    some: list[Any] = [[i, i + 2] if i % 3 else [-1] for i in objects]
    write(root, "grefcoco", "images/train2014", some, refs="grefs(unc).json", splits=halves)
    page = doc_blocks.ROOT / "docs" / "calibration.md"
    (block,) = [block for block in doc_blocks.blocks(page) if "test_commands_of_the_docs" in block.mark]
    printed = doc_blocks.run(block, tmp_path)
    for name, of in (("rrsisd-unc", "mIoU"), ("grefcoco-unc", "N-acc."), ("mine-me", "mIoU")):
        _, table = printed.split(f"on {name}.val, 240x240")
        assert of in table.split("each sentence's result")[0]
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.find("segmenter", "fp16") == "segmenter.fp16.onnx"
    assert manifest.precisions["fp16"]["data"]["dataset"] == "grefcoco"
