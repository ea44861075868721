"""The sentences that a calibration sees, and those that accuracy is held against: drawn from a train split by seed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.progress import Progress, ignore
from ..data import resize_mask
from ..data.sentences import GENERATED, Sentence, open_split
from ..errors import DatasetError, ExportError
from ..runtime.batches import image_feeds, text_feeds
from ..runtime.bundle import Bundle
from ..runtime.images import resize

HELD_OUT_PART = 4
MAX_HELD_OUT = 512
"""They and what FP32 makes of them are kept in memory, about 2.8 MB each at 480x480."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DataOptions:
    """The sentences and images to calibrate on. Raises ExportError for a value out of range."""

    dataset: str = GENERATED
    """The data set: "refcoco", "refcoco+", "refcocog", "refclef", "rrsisd", "grefcoco", the folder of your own, or
    "shapes" for generated scenes."""
    root: str | os.PathLike[str] | None = None
    """The folder with the data sets; None is for generated scenes alone, which are then in the user's cache."""
    split: str = "train"
    split_by: str | None = None
    """Whose splits: "unc", "umd", "google" or your own; None is the data set's usual one."""
    images: str | os.PathLike[str] | None = None
    """The folder of the images, if it is not the data set's usual one."""
    samples: int = 512
    """Sentences to calibrate on, 1 to 1000000; a quarter more is held out to measure accuracy on."""
    seed: int = 0
    """Which sentences are drawn, 0 or more."""

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= 1_000_000:
            raise ExportError(f"samples {self.samples}: give 1 to 1000000")
        if not 0 <= self.seed < 2**63:
            raise ExportError(f"seed {self.seed}: give 0 or more")


@dataclass(frozen=True)
class Sample:
    """Sentences to calibrate on, and others, about other images, to hold accuracy against.

    `origin` is plain JSON: equal for equal sentences, images and masks.
    """

    calibrated: Sequence[Sentence]
    held_out: Sequence[Sentence]
    origin: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One sentence as the graphs take it: image (H,W,3) uint8, ids (T,), attention mask (T,), and its mask (H,W)."""

    image: npt.NDArray[np.uint8]
    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    target: npt.NDArray[np.bool_]


def draw_sample(options: DataOptions, progress: Progress = ignore) -> Sample:
    """Draws a sample, stratified over images: each gives one sentence before any gives a second.

    A quarter as many sentences again are held out, 8 to MAX_HELD_OUT, about images of their own. Those that refer to
    nothing (gRefCOCO) are not held out: their IoU is 0 in any precision, and would hide what a precision loses.

    Raises DatasetError if the data is missing, of another layout, or has too few images.
    """
    root = None if options.root is None else Path(options.root)
    split = open_split(
        options.dataset,
        options.split,
        data_root=root,
        split_by=options.split_by,
        images=None if options.images is None else Path(options.images),
        progress=progress,
    )
    by_image: dict[int, list[Sentence]] = {}
    for sentence in split.sentences:
        by_image.setdefault(sentence.target.image_id, []).append(sentence)
    rng = np.random.default_rng(options.seed)
    images = [by_image[image_id] for image_id in sorted(by_image)]
    images = [images[i] for i in rng.permutation(len(images))]
    images.sort(key=lambda sentences: not _with_target(sentences))
    usable = sum(bool(_with_target(sentences)) for sentences in images)
    wanted_held = min(MAX_HELD_OUT, max(8, options.samples // HELD_OUT_PART))
    held_images = min(wanted_held, usable // 3)
    if held_images == 0:
        raise DatasetError(f"{split.name} has {usable} images with objects; calibration needs three or more")
    held_out = _take([_with_target(sentences) for sentences in images[:held_images]], wanted_held, rng)
    calibrated = _take(images[held_images:], options.samples, rng)
    ids = [[sentence.sentence_id for sentence in part] for part in (calibrated, held_out)]
    origin = {
        **split.describe(),
        "seed": options.seed,
        "samples": len(calibrated),
        "held_out": len(held_out),
        "sentence_ids": hashlib.sha256(repr(ids).encode()).hexdigest(),
    }
    return Sample(calibrated, held_out, origin)


def _with_target(sentences: Sequence[Sentence]) -> list[Sentence]:
    return [sentence for sentence in sentences if not sentence.target.no_target]


def _take(images: Sequence[list[Sentence]], wanted: int, rng: np.random.Generator) -> list[Sentence]:
    """Up to `wanted` sentences, image by image in turns."""
    shuffled = [[image[i] for i in rng.permutation(len(image))] for image in images]
    turns = zip_longest(*shuffled)
    return [sentence for turn in turns for sentence in turn if sentence is not None][:wanted]


def cases(bundle: Bundle, sentences: Sequence[Sentence]) -> Iterator[Case]:
    """The sentences as the bundle's graphs take them, one at a time.

    Raises BundleError for a damaged tokenizer, DatasetError for a missing or damaged image.
    """
    spec, tokenizer = bundle.manifest.input, bundle.tokenizer()
    for sentence in sentences:
        ids, mask, _ = tokenizer.encode(sentence.text, blank=True)
        target = resize_mask(sentence.target.mask, spec.height, spec.width)
        yield Case(resize(sentence.target.image, spec.height, spec.width), ids, mask, target)


def text_inputs(batch: Sequence[Case]) -> dict[str, Array]:
    """The text graph's inputs for a batch of cases."""
    return text_feeds([case.input_ids for case in batch], [case.attention_mask for case in batch])


def image_inputs(batch: Sequence[Case], prompts: Sequence[Array]) -> dict[str, Array]:
    """The image graph's inputs for a batch of cases and their prompts (T,P)."""
    return image_feeds([case.image for case in batch], prompts, [case.attention_mask for case in batch])
