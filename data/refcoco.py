"""Data sets in the layout of RefCOCO as they lie on disk (Yu et al., ECCV 2016; Mao et al., CVPR 2016).

Under a root: `NAME/refs(SPLITBY).p` and `instances.json`, and a folder of images (see LAYOUTS). A *ref* is one object
in one image with the sentences that refer to it; in gRefCOCO (arXiv 2306.00968) any number of objects, or none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import DatasetError, reason_of
from .instances import is_plain_name, read_instances, read_json
from .masks import Segmentation, rasterise
from .safe_pickle import read_plain_pickle

IMAGE_FOLDER = Path("images", "mscoco", "images", "train2014")


class Layout(NamedTuple):
    """A published data set: whose divisions into splits there are, and where its images lie under the root."""

    split_by: tuple[str, ...]
    images: tuple[Path, ...] = (IMAGE_FOLDER,)
    """The first that is there."""
    refs: tuple[str, ...] = ("refs({}).p",)
    """The first that is there."""


LAYOUTS = {
    "refcoco": Layout(("unc", "google")),
    "refcoco+": Layout(("unc",)),
    "refcocog": Layout(("umd", "google")),
    "refclef": Layout(("unc", "berkeley"), (Path("images", "saiapr_tc-12"),)),
    "rrsisd": Layout(("unc",), (Path("images", "rrsisd", "JPEGImages"),)),
    "grefcoco": Layout(("unc",), (Path("images", "train2014"), IMAGE_FOLDER), ("grefs({}).p", "grefs({}).json")),
}
GENERALISED = "grefcoco"
"""Whose sentences mean any number of objects, or none."""
MAX_REFS = 1_000_000
"""Most refs in one file. RefCOCO has 50,000."""
MAX_SENTENCES = 2_000_000
"""Most sentences in one split, and most objects. RefCOCO train has 120,624."""
NO_TARGET = -1
"""gRefCOCO's annotation of sentences that refer to nothing in the image."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferredObject:
    """One ref: an object in an image, and the sentences that refer to it. Holds no pixels."""

    ref_id: int
    ann_id: int
    """The object's. Of gRefCOCO, the first object's, or NO_TARGET."""
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
    others: tuple[Segmentation, ...] | None = field(default=None, repr=False)
    """Of gRefCOCO: the further objects; the mask is the union of all. None for a data set of single objects."""

    @property
    def no_target(self) -> bool:
        """Whether the sentences refer to nothing in the image."""
        return self.ann_id == NO_TARGET

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
                "put the data set's images there, or name their folder with --images"
            ) from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = reason_of(error)
            raise DatasetError(
                f"{self.image_path}: cannot be read for ref {self.ref_id} ({reason}); download the image again"
            ) from error

    @property
    def mask(self) -> np.ndarray:
        """The mask of the object, or of all, bool (height, width), rasterised at each access (see `masks.rasterise`).

        Raises:
            DatasetError: the segmentation does not fit the image.
        """
        try:
            if self.others is None:
                return rasterise(self.segmentation, self.height, self.width)
            parts = tuple(part for segmentation in (self.segmentation, *self.others) for part in segmentation)
            return rasterise(parts, self.height, self.width, union=True)
        except ValueError as reason:
            raise DatasetError(
                f"annotation {self.ann_id} of ref {self.ref_id} ({self.image_path.name}): {reason}"
            ) from None


class RefCOCO:
    """The refs of one split, in the order of the file. Opening reads annotations only; images are read item by item.

    Args:
        root: the folder that holds the data sets and `images`.
        dataset: `refcoco`, `refcoco+`, `refcocog`, `refclef`, `rrsisd`, `grefcoco`, or the folder of your own.
        split_by: whose splits, as in the refs file's name: `unc` (all but refcocog), `umd` (refcocog), `google`
            (refcoco, refcocog), `berkeley` (refclef), or your own.
        split: `train` and `val` take the refs of exactly that split; `test` those whose split contains "test"; `testA`,
            `testB` and `testC` those whose split contains that letter (a ref can be in several).
        images: the folder of the images, if it is not the usual one. If an image of the annotations' name is not in
            it, `ID.jpg` is taken with the image's id in 12 digits, as COCO 2017 names the same images.

    `files` are the two annotation files that were read.

    Raises:
        DatasetError: an unknown data set or split, a file that is missing, damaged or unsafe, or a ref without its
            annotation or image record.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str = "refcoco",
        split_by: str = "unc",
        split: str = "val",
        images: str | Path | None = None,
    ) -> None:
        self.dataset, self.split_by, self.split = dataset, split_by, split
        self.files = _find_files(Path(root), dataset, split_by)
        refs = _read_refs(self.files[0], dataset, split)
        self._items = _items(refs, self.files[1], _image_folder(Path(root), dataset, images))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> ReferredObject:
        return self._items[index]

    def __iter__(self) -> Iterator[ReferredObject]:
        return iter(self._items)


class _Ref(NamedTuple):
    ref_id: int
    ann_ids: tuple[int, ...]
    image_id: int
    sentences: tuple[str, ...]
    sentence_ids: tuple[int, ...]
    kinds: tuple[str, ...]
    generalised: bool


def layout_of(dataset: str) -> Layout:
    """The layout of a published data set, or of one's own. Raises DatasetError if it is not the name of a folder."""
    if not is_plain_name(dataset):
        raise DatasetError(f"data set {dataset!r}: give the name of its folder")
    own = Path("images", dataset)
    return LAYOUTS.get(dataset) or Layout((), (own / "JPEGImages", own, IMAGE_FOLDER))


def _find_files(root: Path, dataset: str, split_by: str) -> tuple[Path, Path]:
    """The refs and the annotations."""
    layout = layout_of(dataset)
    names = [name.format(split_by) for name in layout.refs]
    if not all(map(is_plain_name, names)):
        raise DatasetError(f"split_by {split_by!r}: give what stands in the brackets of {layout.refs[0].format('...')}")
    refs = [root / dataset / name for name in names]
    path = next(filter(Path.is_file, refs), refs[-1])
    for needed in (path, root / dataset / "instances.json"):
        if not needed.is_file():
            others = layout.split_by and split_by not in layout.split_by
            published = f"; published splits are {', '.join(layout.split_by)}" if others else ""
            raise DatasetError(
                f"{needed}: not found; ROOT/{dataset} must hold {' or '.join(names)} and instances.json{published}"
            )
    return path, root / dataset / "instances.json"


def _image_folder(root: Path, dataset: str, images: str | Path | None) -> Path:
    if images is not None:
        if not Path(images).is_dir():
            raise DatasetError(f"{images}: no such folder; --images names the folder of the data set's images")
        return Path(images)
    folders = [root / folder for folder in layout_of(dataset).images]
    return next(filter(Path.is_dir, folders), folders[0])


def _read_refs(path: Path, dataset: str, split: str) -> list[_Ref]:
    records: Any = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    try:
        refs = _parse_refs(records, split, generalised=dataset == GENERALISED)
    except ValueError as reason:
        raise DatasetError(f"{path}: {reason}; is it {dataset}'s file?") from None
    if not refs:
        there = sorted({record["split"] for record in records if record["split"].isprintable()})
        raise DatasetError(f"{path}: no refs of split {split!r}; it has {', '.join(there)[:80] or 'none'}")
    return refs


def _items(refs: list[_Ref], instances_path: Path, folder: Path) -> list[ReferredObject]:
    ann_ids = {ann_id for ref in refs for ann_id in ref.ann_ids} - {NO_TARGET}
    annotations, images = read_instances(instances_path, ann_ids, {ref.image_id for ref in refs})
    if refs[0].generalised:
        annotations[NO_TARGET] = ()
    paths = {image_id: _image_path(folder, image_id, record.file_name) for image_id, record in images.items()}
    items = []
    for ref in refs:
        lacking = [f"annotation {ann_id}" for ann_id in ref.ann_ids if ann_id not in annotations]
        lacking += [f"image {ref.image_id}"] * (ref.image_id not in images)
        if lacking:
            raise DatasetError(f"{instances_path}: no {lacking[0]}, which ref {ref.ref_id} needs; get the file again")
        _, height, width = images[ref.image_id]
        fields = ref._asdict()
        first, *others = fields.pop("ann_ids")
        items.append(
            ReferredObject(
                ann_id=first,
                image_path=paths[ref.image_id],
                height=height,
                width=width,
                segmentation=annotations[first],
                others=tuple(annotations[ann_id] for ann_id in others) if fields.pop("generalised") else None,
                **fields,
            )
        )
    return items


def _image_path(folder: Path, image_id: int, name: str) -> Path:
    """Where an image is: under its own name or, as in COCO 2017, under its id."""
    path, by_id = folder / name, folder / f"{image_id:012d}.jpg"
    return by_id if not path.exists() and by_id.exists() else path


def _parse_refs(records: object, split: str, *, generalised: bool) -> list[_Ref]:
    """The refs of a split. Raises ValueError with what is wrong with them."""
    if not isinstance(records, list) or len(records) > MAX_REFS:
        raise ValueError(f"not a list of at most {MAX_REFS} refs")
    refs: list[_Ref] = []
    sentences = objects = 0
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("split"), str):
            raise ValueError(f"entry {position} is not a ref with a split")
        if _in_split(record["split"], split):
            ref = _parse_ref(position, record, MAX_SENTENCES - sentences, MAX_SENTENCES - objects, generalised)
            sentences += len(ref.sentences)
            objects += len(ref.ann_ids)
            refs.append(ref)
    return refs


def _in_split(ref_split: str, wanted: str) -> bool:
    if wanted in ("testA", "testB", "testC"):
        return wanted[-1] in ref_split
    return "test" in ref_split if wanted == "test" else ref_split == wanted


def _parse_ref(
    position: int, record: dict[str, object], most_sentences: int, most_objects: int, generalised: bool
) -> _Ref:
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
        ann_ids=_ann_ids(name, record, most_objects) if generalised else (_int_field(name, record, "ann_id"),),
        image_id=_int_field(name, record, "image_id"),
        sentences=tuple(sentence["raw"] for sentence in sentences),
        sentence_ids=tuple(_int_field(name, sentence, "sent_id") for sentence in sentences),
        kinds=kinds if len(kinds) == len(sentences) else (),
        generalised=generalised,
    )


def _ann_ids(name: str, record: dict[str, object], most: int) -> tuple[int, ...]:
    """The annotations of a ref of gRefCOCO, one or more; NO_TARGET alone if it has none."""
    ids = record.get("ann_id")
    ids = ids if isinstance(ids, list) else [ids]
    if not 0 < len(ids) <= most or any(type(ann_id) is not int for ann_id in ids):
        raise ValueError(f"{name} has no list of whole numbers as ann_id, or too many")
    if NO_TARGET in ids and len(ids) > 1:
        raise ValueError(f"{name} has {NO_TARGET}, which is for no object, beside objects")
    return tuple(ids)


def _int_field(name: str, record: dict[str, object], field: str) -> int:
    value = record.get(field)
    if type(value) is not int:
        raise ValueError(f"{name} has no whole number as {field}")
    return value
