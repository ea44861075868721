"""The figures of referring segmentation, as LAVT's tables give them (Yang et al., CVPR 2022, arXiv 2112.02244).

And the figures of two computations of the same: `relative_error`, `pixel_agreement`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, InputError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


class ReferringMetrics:
    """Mean IoU, overall IoU and precision over sentences, in percent.

    Add one sentence at a time with `update` (masks) or `add` (pixel counts from an earlier run), then `compute`.
    """

    def __init__(self) -> None:
        self._ious: list[float] = []
        self._intersection = 0
        self._union = 0

    def __len__(self) -> int:
        """Sentences so far."""
        return len(self._ious)

    def update(self, prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
        """Adds one sentence's predicted and true mask, bool arrays of one shape; the (intersection, union) in pixels.

        Raises:
            InputError: the arrays are not bool, or not of one shape.
        """
        for name, mask in (("prediction", prediction), ("target", target)):
            if mask.dtype != np.bool_:
                raise InputError(f"{name} has dtype {mask.dtype}; give a bool mask")
        if prediction.shape != target.shape:
            raise InputError(f"prediction is {prediction.shape} and target is {target.shape}; resize one to the other")
        intersection = int(np.count_nonzero(prediction & target))
        union = int(np.count_nonzero(prediction | target))
        self.add(intersection, union)
        return intersection, union

    def add(self, intersection: int, union: int) -> None:
        """Adds one sentence by its pixel counts. If the union is empty its IoU is 0.

        Raises:
            InputError: not 0 <= intersection <= union.
        """
        if not 0 <= intersection <= union:
            raise InputError(f"intersection {intersection} and union {union} cannot be pixel counts of two masks")
        self._ious.append(intersection / union if union else 0.0)
        self._intersection += intersection
        self._union += union

    def merge(self, other: "ReferringMetrics") -> None:
        """Adds another's sentences after these."""
        self._ious += other._ious
        self._intersection += other._intersection
        self._union += other._union

    def compute(self) -> dict[str, float]:
        """`sentences` (a count), `mean_iou`, `overall_iou` and `precision@0.5` … `precision@0.9`, in percent.

        Mean IoU is the mean over sentences; overall IoU the summed intersections over the summed unions; precision@t
        the share of sentences with IoU >= t. Each is computed in the order of the published evaluation, so that equal
        masks in equal order give equal figures to the last digit: the mean times 100, but counts times 100 first.

        Raises:
            DatasetError: no sentences: a row of zeros would read like a result.
        """
        sentences = len(self._ious)
        if not sentences:
            raise DatasetError("no sentences were evaluated; check the split and the limit")
        ious = np.array(self._ious)
        figures: dict[str, float] = {
            "sentences": sentences,
            "mean_iou": float(np.mean(ious)) * 100,
            "overall_iou": self._intersection * 100 / self._union if self._union else 0.0,
        }
        for threshold in THRESHOLDS:
            figures[f"precision@{threshold}"] = int(np.count_nonzero(ious >= threshold)) * 100 / sentences
        return figures


FEWEST_PIXELS = 50
"""A prediction of fewer pixels at the model's size counts as none: LAVT cannot say that there is no target.

As GRES (arXiv 2306.00968) has it for models without an output that says so.
"""
GENERALISED_THRESHOLDS = (0.7, 0.8, 0.9)


class GeneralisedMetrics:
    """The figures of gRefCOCO, whose sentences mean any number of objects or none (GRES, arXiv 2306.00968), in percent.

    A sentence without a target counts as IoU 1 if nothing is predicted, else as 0, and what is predicted adds to the
    union. A target for which nothing is predicted has no intersection.
    """

    def __init__(self) -> None:
        self._ious: dict[bool, list[float]] = {False: [], True: []}  # by whether there is no target
        self._named: dict[bool, int] = {False: 0, True: 0}  # those of them that were told right
        self._intersection = self._union = 0

    def __len__(self) -> int:
        """Sentences so far."""
        return sum(map(len, self._ious.values()))

    def add(self, intersection: int, union: int, predicted: int, *, no_target: bool) -> None:
        """Adds one sentence by its pixel counts at the model's size; `predicted` are those of the prediction."""
        nothing = predicted < FEWEST_PIXELS
        self._named[no_target] += nothing == no_target
        if no_target:
            self._ious[True].append(float(nothing))
            self._union += 0 if nothing else predicted
            return
        intersection = 0 if nothing else intersection
        self._ious[False].append(intersection / union if union else 0.0)
        self._intersection += intersection
        self._union += union

    def compute(self) -> dict[str, float]:
        """`sentences` (a count), `giou`, `ciou`, `n_acc`, `t_acc` and `precision@0.7` … `precision@0.9`, in percent.

        gIoU is the mean over sentences; cIoU the summed intersections over the summed unions; N-acc. the share of
        sentences without a target for which nothing is predicted, T-acc. that of sentences with one for which something
        is; precision is over sentences with a target. A figure over no sentences, or no pixels, is NaN.

        Raises:
            DatasetError: no sentences: a row of zeros would read like a result.
        """
        if not len(self):
            raise DatasetError("no sentences were evaluated; check the split and the limit")
        ious = np.array(self._ious[False])
        figures: dict[str, float] = {
            "sentences": len(self),
            "giou": 100 * sum(map(sum, self._ious.values())) / len(self),
            "ciou": 100 * self._intersection / self._union if self._union else math.nan,
        }
        for name, no_target in (("n_acc", True), ("t_acc", False)):
            count = len(self._ious[no_target])
            figures[name] = 100 * self._named[no_target] / count if count else math.nan
        for threshold in GENERALISED_THRESHOLDS:
            share = np.count_nonzero(ious >= threshold) / len(ious) if len(ious) else math.nan
            figures[f"precision@{threshold}"] = 100 * float(share)
        return figures


def relative_error(
    values: npt.NDArray[Any] | Sequence[npt.NDArray[Any]], reference: npt.NDArray[Any] | Sequence[npt.NDArray[Any]]
) -> float:
    """norm(values - reference) / norm(reference) in float64, of two arrays of one shape or over all pairs of two lists.

    Infinite if anything is not finite, or if the reference is all zero and the values are not. Never NaN.
    """
    values = [values] if isinstance(values, np.ndarray) else values
    reference = [reference] if isinstance(reference, np.ndarray) else reference
    difference_squares = reference_squares = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for value, target in zip(values, reference, strict=True):
            target = target.astype(np.float64).ravel()
            difference = value.ravel() - target
            difference_squares += float(difference @ difference)
            reference_squares += float(target @ target)
    if not math.isfinite(difference_squares):
        return math.inf
    if not reference_squares:
        return math.inf if difference_squares else 0.0
    return math.sqrt(difference_squares) / math.sqrt(reference_squares)


def pixel_agreement(logits: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """The share of pixels, 0 to 1, of the same class in two arrays of logits (...,2,H,W)."""
    masks = [array[..., 1, :, :] > array[..., 0, :, :] for array in (logits, reference)]
    return float(np.mean(masks[0] == masks[1]))


@dataclass(frozen=True)
class PublishedRow:
    """A published result of LAVT, in percent; `mean_iou` is None if only overall IoU is known for sure."""

    dataset: str
    split_by: str
    split: str
    variant: str
    swin: str
    overall_iou: float
    mean_iou: float | None


_PAPER: tuple[tuple[Any, ...], ...] = (  # Yang et al., CVPR 2022, arXiv 2112.02244: overall and mean IoU
    ("refcoco", "unc", "val", 72.73, 74.46),
    ("refcoco", "unc", "testA", 75.82, 76.89),
    ("refcoco", "unc", "testB", 68.79, 70.94),
    ("refcoco+", "unc", "val", 62.14, 65.81),
    ("refcoco+", "unc", "testA", 68.38, 70.97),
    ("refcoco+", "unc", "testB", 55.10, 59.23),
    ("refcocog", "umd", "val", 61.24, 63.34),
    ("refcocog", "umd", "test", 62.09, 63.62),
    ("refcocog", "google", "val", 60.50, None),
)
PUBLISHED = (
    *(PublishedRow(name, split_by, split, "lavt", "base", *ious) for name, split_by, split, *ious in _PAPER),
    PublishedRow("refcoco", "unc", "val", "lavt_one", "base", overall_iou=73.50, mean_iou=75.41),
)
"""The paper's rows, and the one published for the released weights of `lavt_one`."""


def published_rows(dataset: str, split_by: str, split: str) -> tuple[PublishedRow, ...]:
    """The published rows for a split; empty if there are none."""
    wanted = (dataset, split_by, split)
    return tuple(row for row in PUBLISHED if (row.dataset, row.split_by, row.split) == wanted)
