"""ReferringMetrics against the published evaluation's figures, and its own rules."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.data import RefCOCO, resize_mask
from lavt_edge.data.metrics import PUBLISHED, ReferringMetrics, pixel_agreement, published_rows, relative_error
from lavt_edge.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

MINI = Path(__file__).parent / "data" / "refer_mini"
EXPECTED = json.loads((MINI / "expected.json").read_text())


def golden_prediction(sentence_id: int, target: np.ndarray) -> np.ndarray:
    """The prediction behind the golden figures: a rectangle, or for every third sentence the target without its top."""
    random = np.random.default_rng(sentence_id)
    y, x = random.integers(0, 60, 2)
    height, width = random.integers(0, 60, 2)
    if sentence_id % 3 == 0:
        prediction = target.copy()
        prediction[: random.integers(0, 40)] = False
        return prediction
    prediction = np.zeros_like(target)
    prediction[y : y + height, x : x + width] = True
    return prediction


@pytest.mark.parametrize("split", EXPECTED["splits"])
def test_figures_equal_the_published_evaluation_to_the_last_digit(split: str) -> None:
    metrics, resumed = ReferringMetrics(), ReferringMetrics()
    for item in RefCOCO(MINI, split=split):
        target = resize_mask(item.mask, 96, 96)
        for sentence_id in item.sentence_ids:
            resumed.add(*metrics.update(golden_prediction(sentence_id, target), target))
    assert metrics.compute() == EXPECTED["metrics"][split]
    assert list(metrics.compute()) == list(EXPECTED["metrics"][split])
    assert resumed.compute() == metrics.compute()


def test_an_empty_union_counts_as_a_sentence_with_iou_zero() -> None:
    metrics = ReferringMetrics()
    empty = np.zeros((4, 4), bool)
    assert metrics.update(empty, empty) == (0, 0)
    assert metrics.compute() == {"sentences": 1, "mean_iou": 0, "overall_iou": 0} | {
        f"precision@{t}": 0 for t in (0.5, 0.6, 0.7, 0.8, 0.9)
    }


def test_precision_counts_an_iou_at_the_threshold() -> None:
    metrics = ReferringMetrics()
    metrics.add(1, 2)
    metrics.add(7, 10)
    figures = metrics.compute()
    assert [figures[f"precision@{t}"] for t in (0.5, 0.6, 0.7, 0.8)] == [100, 50, 50, 0]
    assert (figures["mean_iou"], figures["overall_iou"]) == (60, 800 / 12)


def test_merging_two_halves_equals_the_whole() -> None:
    counts = [(1, 3), (0, 0), (5, 7), (2, 9), (11, 13)]
    whole, first, second = ReferringMetrics(), ReferringMetrics(), ReferringMetrics()
    for position, pair in enumerate(counts):
        whole.add(*pair)
        (first if position < 2 else second).add(*pair)
    first.merge(second)
    assert len(first) == 5
    assert first.compute() == whole.compute()


@pytest.mark.parametrize(
    ("prediction", "target", "reason"),
    [
        (np.zeros((2, 3), bool), np.zeros((3, 2), bool), r"\(2, 3\) and target is \(3, 2\)"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), bool), "prediction has dtype uint8"),
        (np.zeros((2, 2), bool), np.zeros((2, 2)), "target has dtype float64"),
    ],
)
def test_arrays_that_are_not_bool_masks_of_one_shape_are_refused(
    prediction: np.ndarray, target: np.ndarray, reason: str
) -> None:
    metrics = ReferringMetrics()
    with pytest.raises(ValueError, match=reason):
        metrics.update(prediction, target)
    assert len(metrics) == 0


@pytest.mark.parametrize(("intersection", "union"), [(2, 1), (-1, 1), (-2, -1)])
def test_counts_that_no_masks_can_have_are_refused(intersection: int, union: int) -> None:
    with pytest.raises(ValueError, match="cannot be pixel counts"):
        ReferringMetrics().add(intersection, union)


def test_no_sentences_give_no_row() -> None:
    with pytest.raises(DatasetError, match="no sentences were evaluated"):
        ReferringMetrics().compute()


def test_published_rows_stand_beside_their_split_only() -> None:
    rows = {row.variant: (row.overall_iou, row.mean_iou) for row in published_rows("refcoco", "unc", "val")}
    assert rows == {"lavt": (72.73, 74.46), "lavt_one": (73.50, 75.41)}
    (test_a,) = published_rows("refcoco", "unc", "testA")
    assert (test_a.variant, test_a.overall_iou, test_a.mean_iou) == ("lavt", 75.82, 76.89)
    assert published_rows("rrsisd", "unc", "val") == published_rows("refcoco", "google", "val") == ()
    assert len(PUBLISHED) == 10
    assert {row.swin for row in PUBLISHED} == {"base"}


def test_relative_error_is_norm_over_norm() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert relative_error(np.array([3.0, 4.5], np.float32), reference) == pytest.approx(0.1)
    assert relative_error(np.zeros((2, 2)), np.zeros((2, 2))) == 0
    assert relative_error(np.array(5.0), np.array(4.0)) == 0.25
    pairs = [np.array([[1.0, 2.0]]), np.array([2.0])], [np.array([[1.0, 2.0]]), np.array([0.0])]
    assert relative_error(*pairs) == pytest.approx(2 / math.sqrt(5))
    half = np.full(100_000, 200.0, np.float16)  # whose squares no float16 holds
    assert relative_error(half * np.float16(1.5), half) == 0.5


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        ([3.0, math.nan], [3.0, 4.0]),
        ([3.0, -math.inf], [3.0, 4.0]),
        ([3.0, 4.0], [3.0, math.nan]),
        ([3.0, math.inf], [3.0, math.inf]),
        ([1.0, 1.0], [0.0, 0.0]),
    ],
)
def test_relative_error_of_what_is_not_finite_is_infinite(values: list[float], reference: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert relative_error(np.array(values, np.float32), np.array(reference, np.float32)) == math.inf


def test_pixel_agreement_is_of_classes() -> None:
    reference = np.stack([np.zeros((3, 2, 2)), np.ones((3, 2, 2))], axis=1)  # three images, all object
    logits = reference.copy()
    assert pixel_agreement(logits, reference) == 1
    logits[1, :, 0, 0] = (4, 0)
    logits[2, :, 0, 0] = (0, 4)
    assert pixel_agreement(logits, reference) == 11 / 12
    assert pixel_agreement(logits[1], reference[1]) == 0.75
