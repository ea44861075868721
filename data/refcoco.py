"""RefCOCO, RefCOCO+ and RefCOCOg as they lie on disk (Yu et al., ECCV 2016; Mao et al., CVPR 2016).

Layout under a root: `{refcoco,refcoco+,refcocog}/refs(SPLITBY).p` and `instances.json`, and the COCO images in
`images/mscoco/images/train2014`. A *ref* is one object in one image with the sentences that refer to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import DatasetError, reason_of
from .instances import read_instances
from .masks import Segmentation, rasterise
from .safe_pickle import read_plain_pickle

SPLIT_BY = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
"""Data sets, and whose division into splits each is published with."""
SPLITS = ("train", "val", "test", "testA", "testB", "testC")
IMAGE_FOLDER = Path("images", "mscoco", "images", "train2014")
MAX_REFS = 1_000_000
"""Most refs in one file. RefCOCO has 50,000."""
MAX_SENTENCES = 2_000_000
"""Most sentences in one split. RefCOCO train has 120,624."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferredObject:
    """One ref: an object in an image, and the sentences that refer to it. Holds no pixels."""

    ref_id: int
    ann_id: int
    image_id: int
    image_path: Path
    height: int
    width: int
    sentences: tuple[str, ...]
    """As they were written (`raw`), one for each of `sentence_ids`."""
    sentence_ids: tuple[int, ...]
    segmentation: Segmentation = field(repr=False)
    kinds: tuple[str, ...] = ()
    """Of generated data: what each sentence goes by (see `shapes.objects.KINDS`). Empty if the file does not say."""

    @property
    def image(self) -> Image.Image:
        """The image, RGB, read from disk at each access.

        Raises:
            DatasetError: the file is missing, damaged, or not of the size that the annotations give.
        """
        try:
            with Image.open(self.image_path) as image:
                if image.size != (self.width, self.height):
                    raise DatasetError(
                        f"{self.image_path}: {image.width}x{image.height}, but image {self.image_id} "
                        f"is annotated at {self.width}x{self.height}; put the original COCO file there"
                    )
                return image.convert("RGB")
        except FileNotFoundError:
            raise DatasetError(
                f"{self.image_path}: missing, needed by ref {self.ref_id} (image {self.image_id}); "
                "put COCO's train2014 images there"
            ) from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = reason_of(error)
            raise DatasetError(
                f"{self.image_path}: cannot be read for ref {self.ref_id} ({reason}); download the image again"
            ) from error

    @property
    def mask(self) -> np.ndarray:
        """The object's mask, bool (height, width), rasterised at each access (see `masks.rasterise`).

        Raises:
            DatasetError: the segmentation does not fit the image.
        """
        try:
            return rasterise(self.segmentation, self.height, self.width)
        except ValueError as reason:
            raise DatasetError(
                f"annotation {self.ann_id} of ref {self.ref_id} ({self.image_path.name}): {reason}"
            ) from None


class RefCOCO:
    """The refs of one split, in the order of the file. Opening reads annotations only; images are read item by item.

    Args:
        root: the folder that holds the data sets and `images`.
        dataset: `refcoco`, `refcoco+` or `refcocog`.
        split_by: `unc` (refcoco, refcoco+), `umd` (refcocog) or `google` (refcoco, refcocog).
        split: `train` and `val` take the refs of exactly that split; `test` those whose split contains "test"; `testA`,
            `testB` and `testC` those whose split contains that letter (a ref can be in several).

    Raises:
        DatasetError: an unknown data set or split, a file that is missing, damaged or unsafe, or a ref without its
            annotation or image record.
    """

    def __init__(self, root: str | Path, dataset: str = "refcoco", split_by: str = "unc", split: str = "val") -> None:
        _check_choice(dataset, split_by, split)
        self.dataset, self.split_by, self.split = dataset, split_by, split
        self._items = _read_items(Path(root), dataset, split_by, split)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> ReferredObject:
        return self._items[index]

    def __iter__(self) -> Iterator[ReferredObject]:
        return iter(self._items)


class _Ref(NamedTuple):
    ref_id: int
    ann_id: int
    image_id: int
    sentences: tuple[str, ...]
    sentence_ids: tuple[int, ...]
    kinds: tuple[str, ...]


def _check_choice(dataset: str, split_by: str, split: str) -> None:
    if dataset not in SPLIT_BY:
        raise DatasetError(f"unknown data set {dataset!r}; choose one of {', '.join(SPLIT_BY)}")
    if split_by not in SPLIT_BY[dataset]:
        raise DatasetError(f"unknown split_by {split_by!r} for {dataset}; choose one of {', '.join(SPLIT_BY[dataset])}")
    if split not in SPLITS:
        raise DatasetError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")


def _read_items(root: Path, dataset: str, split_by: str, split: str) -> list[ReferredObject]:
    refs_path = root / dataset / f"refs({split_by}).p"
    instances_path = root / dataset / "instances.json"
    for path in (refs_path, instances_path):
        if not path.is_file():
            raise DatasetError(f"{path}: not found; ROOT/{dataset} must hold refs({split_by}).p and instances.json")
    try:
        refs = _parse_refs(read_plain_pickle(refs_path), split)
    except ValueError as reason:
        raise DatasetError(f"{refs_path}: {reason}; is it RefCOCO's file?") from None
    if not refs:
        raise DatasetError(f"{refs_path}: no refs of split {split!r}; choose another split or split_by")
    annotations, images = read_instances(instances_path, {ref.ann_id for ref in refs}, {ref.image_id for ref in refs})
    paths = {image_id: root / IMAGE_FOLDER / record.file_name for image_id, record in images.items()}
    items = []
    for ref in refs:
        for name, number, records in (("annotation", ref.ann_id, annotations), ("image", ref.image_id, images)):
            if number not in records:
                raise DatasetError(
                    f"{instances_path}: no {name} {number}, which ref {ref.ref_id} needs; get the file again"
                )
        _, height, width = images[ref.image_id]
        items.append(
            ReferredObject(
                image_path=paths[ref.image_id],
                height=height,
                width=width,
                segmentation=annotations[ref.ann_id],
                **ref._asdict(),
            )
        )
    return items


def _parse_refs(records: object, split: str) -> list[_Ref]:
    """The refs of a split. Raises ValueError with what is wrong with them."""
    if not isinstance(records, list) or len(records) > MAX_REFS:
        raise ValueError(f"not a list of at most {MAX_REFS} refs")
    refs = []
    sentences = 0
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("split"), str):
            raise ValueError(f"entry {position} is not a ref with a split")
        if _in_split(record["split"], split):
            ref = _parse_ref(position, record, MAX_SENTENCES - sentences)
            sentences += len(ref.sentences)
            refs.append(ref)
    return refs


def _in_split(ref_split: str, wanted: str) -> bool:
    if wanted in ("testA", "testB", "testC"):
        return wanted[-1] in ref_split
    return "test" in ref_split if wanted == "test" else ref_split == wanted


def _parse_ref(position: int, record: dict[str, object], most_sentences: int) -> _Ref:
    ref_id = record.get("ref_id")
    name = f"ref {ref_id}" if type(ref_id) is int else f"entry {position}"
    sentences = record.get("sentences")
    if not isinstance(sentences, list) or len(sentences) > most_sentences:
        raise ValueError(f"{name} has no list of sentences, or too many")
    for sentence in sentences:
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
            raise ValueError(f"{name} has a sentence without its raw text")
    kinds = tuple(kind for sentence in sentences if isinstance(kind := sentence.get("kind"), str))
    return _Ref(
        ref_id=_int_field(name, record, "ref_id"),
        ann_id=_int_field(name, record, "ann_id"),
        image_id=_int_field(name, record, "image_id"),
        sentences=tuple(sentence["raw"] for sentence in sentences),
        sentence_ids=tuple(_int_field(name, sentence, "sent_id") for sentence in sentences),
        kinds=kinds if len(kinds) == len(sentences) else (),
    )


def _int_field(name: str, record: dict[str, object], field: str) -> int:
    value = record.get(field)
    if type(value) is not int:
        raise ValueError(f"{name} has no whole number as {field}")
    return value
