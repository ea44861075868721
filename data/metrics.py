"""The figures of referring segmentation, as LAVT's tables give them (Yang et al., CVPR 2022, arXiv 2112.02244)."""

from dataclasses import dataclass

import numpy as np

from ..errors import DatasetError

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
            ValueError: the arrays are not bool, or not of one shape.
        """
        for name, mask in (("prediction", prediction), ("target", target)):
            if mask.dtype != np.bool_:
                raise ValueError(f"{name} has dtype {mask.dtype}; give a bool mask")
        if prediction.shape != target.shape:
            raise ValueError(f"prediction is {prediction.shape} and target is {target.shape}; resize one to the other")
        intersection = int(np.count_nonzero(prediction & target))
        union = int(np.count_nonzero(prediction | target))
        self.add(intersection, union)
        return intersection, union

    def add(self, intersection: int, union: int) -> None:
        """Adds one sentence by its pixel counts. Where the union is empty its IoU is 0.

        Raises:
            ValueError: not 0 <= intersection <= union.
        """
        if not 0 <= intersection <= union:
            raise ValueError(f"intersection {intersection} and union {union} cannot be pixel counts of two masks")
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


@dataclass(frozen=True)
class PublishedRow:
    """A published result of LAVT, in percent."""

    dataset: str
    split_by: str
    split: str
    variant: str
    swin: str
    overall_iou: float
    mean_iou: float


PUBLISHED = (
    PublishedRow("refcoco", "unc", "val", "lavt", "base", overall_iou=72.73, mean_iou=74.46),
    PublishedRow("refcoco", "unc", "val", "lavt_one", "base", overall_iou=73.50, mean_iou=75.41),
)
"""Rows published for LAVT's released weights."""


def published_rows(dataset: str, split_by: str, split: str) -> tuple[PublishedRow, ...]:
    """The published rows for a split; none where there are none to compare with."""
    wanted = (dataset, split_by, split)
    return tuple(row for row in PUBLISHED if (row.dataset, row.split_by, row.split) == wanted)
