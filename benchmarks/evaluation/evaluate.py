"""The accuracy of a model on a data set, as the published evaluation measures it (arXiv 2112.02244, section 4).

Images are resized to the model's input (bilinear), the mask is the argmax of the logits at that size, and the target is
resized to it by nearest neighbour. Every sentence counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._base.progress import Progress, ignore
from ..._base.records import to_plain
from ...data import ReferredObject, resize_mask
from ...data.metrics import (
    GENERALISED_THRESHOLDS,
    THRESHOLDS,
    GeneralisedMetrics,
    PublishedRow,
    ReferringMetrics,
    published_rows,
)
from ...data.sentences import Sentence, Split
from ...data.shapes.objects import KINDS
from ...errors import DatasetError, PromptError
from ...runtime.batches import in_batches
from ...runtime.images import resize
from .predictors import Predictor
from .results import ResultsFile

HEADER = ("", "count", "mIoU", "oIoU", *(f"P@{threshold}" for threshold in THRESHOLDS))
GENERALISED_HEADER = ("", "count", "gIoU", "cIoU", "N-acc.", "T-acc.", *(f"P@{t}" for t in GENERALISED_THRESHOLDS))


@dataclass(frozen=True)
class Evaluation:
    """Figures of all sentences and, for generated data, of each kind, in percent.

    See `ReferringMetrics.compute`; those of gRefCOCO are `GeneralisedMetrics.compute`'s. `published` are the rows that
    the figures can be compared with; `results` is the file with each sentence's result.
    """

    figures: Mapping[str, float]
    kinds: Mapping[str, Mapping[str, float]]
    published: Sequence[PublishedRow]
    results: Path

    @property
    def header(self) -> tuple[str, ...]:
        """Of the table: HEADER, or GENERALISED_HEADER for gRefCOCO."""
        return GENERALISED_HEADER if "giou" in self.figures else HEADER

    def table(self) -> list[tuple[str, ...]]:
        """The paper's row, a row for each kind of sentence, and the published rows, under `header`."""
        rows = [_row("all", self.figures), *(_row(kind, figures) for kind, figures in self.kinds.items())]
        for row in self.published:
            figures = ("" if row.mean_iou is None else f"{row.mean_iou:.2f}", f"{row.overall_iou:.2f}")
            rows.append((f"paper, {row.variant} {row.swin}", "", *figures, *("" for _ in THRESHOLDS)))
        return rows


def _row(name: str, figures: Mapping[str, float]) -> tuple[str, ...]:
    count, *percent = figures.values()
    return name, f"{count:.0f}", *("" if math.isnan(value) else f"{value:.2f}" for value in percent)


def evaluate(
    predictor: Predictor,
    split: Split,
    results: Path | None = None,
    *,
    limit: int | None = None,
    restart: bool = False,
    progress: Progress = ignore,
) -> Evaluation:
    """Runs `predictor` over a split and writes each sentence's result to `results` (see `results.ResultsFile`).

    `results` defaults to a file in the working folder, named after the model and the split. What it holds already is
    not run again, unless `restart`. `limit` takes the first sentences only, in the order of the data set's file; the
    same results serve a larger limit later. `progress` is called with (done, total).

    Raises:
        LavtError: the results file is of another run or cannot be written; DatasetError: an image or mask is missing or
            damaged; BackendError: the model cannot run.
    """
    count = len(split.sentences) if limit is None else min(limit, len(split.sentences))
    model = to_plain(predictor.describe())
    run = {"model": model, "input": list(predictor.size), "batch": predictor.batch, **split.describe()}
    results = results or Path(f"{predictor.name}.{split.name}.jsonl")
    with ResultsFile(results, run, split.sentences, restart=restart) as file:
        progress(min(len(file.counts), count), count)
        _run(predictor, split.sentences[:count], file, lambda done: progress(done, count))
        counts = file.counts[:count]
    whole = count == len(split.sentences)
    published = published_rows(split.dataset, split.split_by or "", split.split)
    comparable = whole and not (split.swap or split.is_generated or predictor.is_demo)
    return Evaluation(*_figures(split, counts), published=published if comparable else (), results=results)


def _run(
    predictor: Predictor, sentences: Sequence[Sentence], file: ResultsFile, progress: Callable[[int], None]
) -> None:
    """Batches are cut and filled alike in every run: what a sentence is computed beside can move its last bits."""
    inputs = _Inputs(*predictor.size)
    for number, rows in enumerate(in_batches(sentences, predictor.batch)):
        start = number * predictor.batch
        left = sentences[len(file.counts) : start + predictor.batch]
        if not left:
            continue
        images = np.stack([inputs.image(row.target) for row in rows])
        masks = predictor.masks(images, [_encode(predictor, row) for row in rows])
        for sentence, mask in zip(left, masks[len(file.counts) - start :], strict=False):
            counts = ReferringMetrics().update(mask, inputs.mask(sentence.target))
            file.append(*counts, predicted=int(np.count_nonzero(mask)))
            progress(len(file.counts))


def _encode(predictor: Predictor, sentence: Sentence) -> Any:
    try:
        return predictor.encode(sentence.text)
    except PromptError as error:
        raise DatasetError(f"sentence {sentence.sentence_id} of ref {sentence.target.ref_id}: {error}") from error


class _Inputs:
    """Images and masks at a model's size; the last of each is kept, for sentences about it follow one another."""

    def __init__(self, height: int, width: int) -> None:
        self._size = (height, width)
        self._image: tuple[Path, npt.NDArray[np.uint8]] | None = None
        self._mask: tuple[ReferredObject, npt.NDArray[np.bool_]] | None = None

    def image(self, target: ReferredObject) -> npt.NDArray[np.uint8]:
        if self._image is None or self._image[0] != target.image_path:
            self._image = (target.image_path, resize(target.image, *self._size))
        return self._image[1]

    def mask(self, target: ReferredObject) -> npt.NDArray[np.bool_]:
        if self._mask is None or self._mask[0] is not target:
            self._mask = (target, resize_mask(target.mask, *self._size))
        return self._mask[1]


def _figures(
    split: Split, counts: Sequence[tuple[int, int, int]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Those of all sentences, and of each kind."""
    if split.is_generalised:
        generalised = GeneralisedMetrics()
        for sentence, pixels in zip(split.sentences, counts, strict=False):
            generalised.add(*pixels, no_target=sentence.target.no_target)
        return generalised.compute(), {}
    total, kinds = ReferringMetrics(), {kind: ReferringMetrics() for kind in KINDS}
    for sentence, (intersection, union, _) in zip(split.sentences, counts, strict=False):
        total.add(intersection, union)
        if sentence.kind in kinds:
            kinds[sentence.kind].add(intersection, union)
    return total.compute(), {kind: metrics.compute() for kind, metrics in kinds.items() if len(metrics)}
