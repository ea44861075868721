"""What an evaluation runs over: every sentence of a split, in the order of the file, with the object it refers to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._base.progress import Progress, ignore
from ..errors import DatasetError
from ..runtime.bundle import sha256_of
from . import RefCOCO, ReferredObject
from .refcoco import GENERALISED, LAYOUTS, layout_of
from .shapes.cached import generated_root
from .shapes.sentences import swapped

GENERATED = "shapes"


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence, and the object that its mask is scored against."""

    sentence_id: int
    text: str
    kind: str | None
    target: ReferredObject


@dataclass(frozen=True)
class Split:
    """The sentences of a split. `swap` says whether each is another object's (see `swap_sentences`).

    `files` holds the annotation files' SHA-256; `split_by` is None for generated data.
    """

    dataset: str
    split_by: str | None
    split: str
    swap: bool
    sentences: Sequence[Sentence]
    files: Mapping[str, str]

    @property
    def name(self) -> str:
        """As it goes into a file name."""
        parts = [self.dataset if self.split_by is None else f"{self.dataset}-{self.split_by}", self.split]
        return ".".join(parts + ["swapped"] * self.swap)

    @property
    def is_generalised(self) -> bool:
        """Whether a sentence may mean several objects or none, as in gRefCOCO, which has figures of its own."""
        return self.dataset == GENERALISED

    def describe(self) -> dict[str, Any]:
        """Plain JSON types: equal for equal sentences and masks."""
        return {
            "dataset": self.dataset,
            "split_by": self.split_by,
            "split": self.split,
            "swap": self.swap,
            "sentences": len(self.sentences),
            "files": dict(self.files),
        }


def open_split(
    dataset: str,
    split: str,
    *,
    data_root: Path | None = None,
    split_by: str | None = None,
    images: Path | None = None,
    swap: bool = False,
    progress: Progress = ignore,
) -> Split:
    """The sentences of a split of a data set in RefCOCO's layout (see RefCOCO), or of generated data, `shapes`.

    Without `data_root` the generated data comes from the user's cache; while it is written, `progress` is called with
    (scenes written, scenes in all). `split_by` defaults to the usual one: unc, for refcocog umd; a data set of one's
    own needs it. `images` is the folder of the images, if it is not the usual one.

    Raises:
        DatasetError: an unknown choice, a root that is missing, or data that is missing or damaged.
    """
    generated = dataset == GENERATED
    layout = "refcoco" if generated else dataset
    if not generated and split_by is None and dataset not in LAYOUTS:
        raise DatasetError(
            f"unknown data set {dataset!r}; choose one of {', '.join((GENERATED, *LAYOUTS))}, or name the splits of "
            "your own with --split-by"
        )
    for option, value in (("split-by", split_by), ("images", images)):
        if generated and value is not None:
            raise DatasetError(f"{GENERATED} is divided in one way and has its own images; leave --{option} out")
    if swap and dataset == GENERALISED:
        raise DatasetError(f"--swap is for sentences that mean one object, not for {dataset}; leave it out")
    if data_root is None:
        if not generated:
            raise DatasetError(f"{dataset} needs --data-root, the folder that holds {dataset} and images")
        data_root = generated_root(split, progress)
    division = split_by or layout_of(layout).split_by[0]
    refs = RefCOCO(data_root, layout, division, split, images)
    sentences = list(_sentences(refs))
    if swap:
        sentences = swap_sentences(sentences)
        if not sentences:
            raise DatasetError(f"split {split!r} has no image with sentences about two objects; leave --swap out")
    files = {path.name: sha256_of(path) for path in refs.files}
    return Split(dataset, None if generated else division, split, swap, sentences, files)


def _sentences(refs: RefCOCO) -> Iterator[Sentence]:
    for ref in refs:
        kinds = ref.kinds or (None,) * len(ref.sentences)
        for sentence_id, text, kind in zip(ref.sentence_ids, ref.sentences, kinds, strict=True):
            yield Sentence(sentence_id, text, kind, ref)


def swap_sentences(sentences: Sequence[Sentence]) -> list[Sentence]:
    """Each sentence with the words of one about another object in its image, of the same kind if there is one.

    The control that a model reads the words: it should now fail. A sentence whose image speaks of one object only has
    nobody to swap with and is left out.
    """
    owners = [(sentence.target.image_id, sentence.target.ref_id) for sentence in sentences]
    partners = swapped(owners, [sentence.kind or "" for sentence in sentences])
    return [
        replace(sentence, text=sentences[partner].text)
        for sentence, partner in zip(sentences, partners, strict=True)
        if partner is not None
    ]
