"""The accuracy of a model on a data set, as the published evaluation measures it (arXiv 2112.02244, section 4).

Images are resized to the model's input (bilinear), the mask is the argmax of the logits at that size, and the target is
resized to it by nearest neighbour. Every sentence counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._base.progress import Progress, ignore
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
from ...errors import DatasetError, LavtError, PromptError
from ...runtime.batches import in_batches
from ...runtime.images import resize
from .predictors import Predictor
from .results import ResultsFile, Run, SentenceResult, Shard, open_results
from .shards import read_shards, write_merged

HEADER = ("", "count", "mIoU", "oIoU", *(f"P@{threshold}" for threshold in THRESHOLDS))
GENERALISED_HEADER = ("", "count", "gIoU", "cIoU", "N-acc.", "T-acc.", *(f"P@{t}" for t in GENERALISED_THRESHOLDS))


@dataclass(frozen=True)
class Evaluation:
    """Figures of all sentences and, for generated data, of each kind, in percent.

    See `ReferringMetrics.compute`; those of gRefCOCO are `GeneralisedMetrics.compute`'s. `published` are the rows that
    the figures can be compared with; `results` is the file with each sentence's result. `title` says what was measured.
    """

    title: str
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
    shard: tuple[int, int] | None = None,
    restart: bool = False,
    progress: Progress = ignore,
) -> Evaluation:
    """Runs `predictor` over a split and writes each sentence's result to `results` (see `results.open_results`).

    `results` defaults to a file in the working folder, named after the model and the split. What it holds already is
    not run again, unless `restart`. `limit` takes the first sentences only, in the order of the data set's file; the
    same results serve a larger limit later. `shard` (3, 8) takes the third of eight parts of these sentences, for
    `merge`. `progress` is called with (done, total).

    Raises:
        LavtError: the results file is of another run or cannot be written, or there are fewer batches than shards;
            DatasetError: an image or mask is missing or damaged; BackendError: the model cannot run.
    """
    count = len(split.sentences) if limit is None else min(limit, len(split.sentences))
    divided = None if shard is None else Shard(*shard, count, predictor.name, predictor.is_demo)
    run = Run(predictor.describe(), predictor.size, predictor.batch, **split.describe(), shard=divided)
    listed, sentences = split.sentences, split.sentences[:count]
    if divided is not None:
        listed = sentences = sentences[divided.part(run.batch)]
    results = results or _default_path(run, predictor.name)
    with open_results(results, run, listed, restart=restart) as file:
        total = len(sentences)
        progress(min(len(file.results), total), total)
        _run(predictor, sentences, file, lambda done: progress(done, total))
        done = file.results[:total]
    return _evaluation(run, predictor.name, predictor.is_demo, done, results)


def merge(paths: Sequence[Path], results: Path | None = None, *, restart: bool = False) -> Evaluation:
    """The evaluation whose shards are in `paths`, in any order, and its file: those of a run that was not divided.

    `results` defaults as in `evaluate`. Raises LavtError if a shard is missing, there twice, not finished or of another
    run, or if `results` holds something else; `restart` replaces that.
    """
    shards = read_shards(paths)
    name, run = shards[0].shard.name, replace(shards[0].run, shard=None)
    default = _default_path(run, name)
    if results is None and default.name != str(default):  # what the shards say is not to lead elsewhere
        raise LavtError(f"{default}: not the name of a file; name one with --results")
    results = results or default
    write_merged(shards, results, restart=restart)
    merged = [result for shard in shards for result in shard.results]
    return _evaluation(run, name, shards[0].shard.is_demo, merged, results)


def _default_path(run: Run, name: str) -> Path:
    shard = "" if run.shard is None else f".{run.shard.number}-of-{run.shard.of}"
    return Path(f"{name}.{_split(run).name}{shard}.jsonl")


def _split(run: Run) -> Split:
    """What a run says of its split: all but the sentences."""
    return Split(run.dataset, run.split_by, run.split, run.swap, (), run.files)


def _run(
    predictor: Predictor, sentences: Sequence[Sentence], file: ResultsFile, progress: Callable[[int], None]
) -> None:
    """Batches are cut and filled alike in every run: what a sentence is computed beside can move its last bits."""
    inputs = _Inputs(*predictor.size)
    for number, rows in enumerate(in_batches(sentences, predictor.batch)):
        start = number * predictor.batch
        left = sentences[len(file.results) : start + predictor.batch]
        if not left:
            continue
        images = np.stack([inputs.image(row.target) for row in rows])
        masks = predictor.masks(images, [_encode(predictor, row) for row in rows])
        for sentence, mask in zip(left, masks[len(file.results) - start :], strict=False):
            counts = ReferringMetrics().update(mask, inputs.mask(sentence.target))
            file.append(*counts, predicted=int(np.count_nonzero(mask)))
            progress(len(file.results))


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


def _evaluation(run: Run, name: str, is_demo: bool, results: Sequence[SentenceResult], path: Path) -> Evaluation:
    split, (height, width) = _split(run), run.input
    words = ", each with the words of another object in its image" if run.swap else ""
    shard = "" if run.shard is None else f", shard {run.shard.number}/{run.shard.of}"
    generated = any(result.kind is not None for result in results)
    comparable = len(results) == run.sentences and not (run.swap or generated or is_demo)
    published = published_rows(run.dataset, run.split_by or "", run.split) if comparable else ()
    title = f"{name} on {split.name}, {width}x{height}{words}{shard}"
    return Evaluation(title, *_figures(split, results), published=published, results=path)


def _figures(split: Split, results: Sequence[SentenceResult]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Those of all sentences, and of each kind."""
    if split.is_generalised:
        generalised = GeneralisedMetrics()
        for result in results:
            pixels = result.intersection, result.union, result.predicted or 0
            generalised.add(*pixels, no_target=result.no_target is True)
        return generalised.compute(), {}
    total, kinds = ReferringMetrics(), {kind: ReferringMetrics() for kind in KINDS}
    for result in results:
        total.add(result.intersection, result.union)
        if result.kind in kinds:
            kinds[result.kind].add(result.intersection, result.union)
    return total.compute(), {kind: metrics.compute() for kind, metrics in kinds.items() if len(metrics)}
