"""`lavt-bench --dataset` of the reference in PyTorch: what the model itself computes, and the row of its bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lavt_edge.benchmarks.evaluation.evaluate import Evaluation, evaluate
from lavt_edge.benchmarks.evaluation.predictors import load_bundle
from lavt_edge.benchmarks.evaluation.reference import ReferencePredictor, load_reference
from lavt_edge.data.sentences import open_split
from lavt_edge.data.shapes import VOCABULARY
from lavt_edge.data.shapes.write import write_refcoco
from lavt_edge.export.source import open_source
from lavt_edge.reference import LAVT, LAVTConfig, TextConfig
from lavt_edge.runtime.tokenizer import build_tokenizer
from lavt_edge.tests.bench_results import counts_in, lines, mini, nearest
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2


@pytest.fixture(scope="module")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refcoco(tmp_path_factory.mktemp("data") / "shapes", seed=3, scenes={"val": 4})


@pytest.fixture(scope="module")
def small_lavt() -> LAVT:
    torch.manual_seed(0)
    text = TextConfig(len(VOCABULARY), 32, num_layers=1, num_heads=2, intermediate_size=32, max_positions=20)
    model = LAVT(LAVTConfig(swin="demo", window=4, text=text, variant="lavt_one")).eval()
    with torch.no_grad():  # an untrained model's masks are nearly empty
        model.classifier.conv1_1.bias.zero_()
        model.classifier.conv1_1.weight.mul_(10)
    return model


def test_the_reference_gives_what_the_model_itself_computes(
    small_lavt: LAVT, shapes_root: Path, tmp_path: Path
) -> None:
    split = open_split("shapes", "val", data_root=shapes_root)
    split = replace(split, sentences=[replace(split.sentences[0], text=" "), *split.sentences[1:]])
    predictors = [
        ReferencePredictor(small_lavt, VOCABULARY, (64, 80), checkpoint="0" * 64, batch=batch) for batch in (1, 3)
    ]
    found: list[Evaluation] = [evaluate(one, split, tmp_path / f"{one.batch}.jsonl", limit=8) for one in predictors]
    tokenizer = build_tokenizer(VOCABULARY)
    expected = {}
    for one in split.sentences[:8]:
        resized = one.target.image.resize((80, 64), Image.Resampling.BILINEAR)
        pixels = (np.asarray(resized) / 255.0 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        ids = tokenizer.encode(one.text).ids
        padding = [0] * (20 - len(ids))
        with torch.inference_mode():
            logits = small_lavt(
                torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32),
                torch.tensor([ids + padding]),
                torch.tensor([[1] * len(ids) + padding]),
            )
        mask = logits[0].argmax(0).numpy() == 1
        target = nearest(one.target.mask, 64, 80)
        expected[one.sentence_id] = (int((mask & target).sum()), int((mask | target).sum()))
    assert len({union for _, union in expected.values()}) > 2
    for name in ("1.jsonl", "3.jsonl"):
        for sentence_id, (intersection, union) in counts_in(tmp_path / name).items():
            # A pixel on the border of the classes may fall to either side in float32.
            assert intersection == pytest.approx(expected[sentence_id][0], abs=2)
            assert union == pytest.approx(expected[sentence_id][1], abs=2)
    assert found[0].figures["mean_iou"] == pytest.approx(found[1].figures["mean_iou"], abs=0.05)
    assert lines(tmp_path / "1.jsonl")[0]["model"]["runtime"] == "pytorch cpu"


def test_pytorch_and_the_bundle_give_the_same_row(demo_bundle: Path, shapes_root: Path, tmp_path: Path) -> None:
    split = open_split("shapes", "val", data_root=shapes_root)
    predictors = (load_bundle(demo_bundle, device="cpu", threads=1), load_reference(open_source("demo"), device="cpu"))
    on_runtime, in_pytorch = (evaluate(one, split, tmp_path / one.name, limit=24).figures for one in predictors)
    assert on_runtime["sentences"] == 24
    for one in predictors:
        assert evaluate(one, mini("val"), tmp_path / f"{one.name}.mini").published == (), (
            "no figures of it are published"
        )
    assert on_runtime == pytest.approx(in_pytorch, abs=0.05)
